"""Ed25519 keys in PEM files: a deployment signs its receipts, anyone with the public key can check them.

The `cryptography` package comes with the extra `sign` and is imported only where a key is used.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ray_eraser.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


@dataclass(frozen=True, eq=False)
class PublicKey:
    """Checks signatures."""

    key_id: str
    _key: Ed25519PublicKey

    @classmethod
    def from_raw(cls, raw: str) -> PublicKey:
        """From the key's 32 raw bytes in hexadecimal.

        Raises:
            ValueError: they are no such bytes.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        return cls(key_id_of(raw), Ed25519PublicKey.from_public_bytes(bytes.fromhex(raw)))

    @property
    def raw(self) -> str:
        """The key's 32 raw bytes, hexadecimal."""
        return self._key.public_bytes_raw().hex()

    def verifies(self, digest: str, signature: str) -> bool:
        """Whether the signature is this key's, of this digest; both hexadecimal."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(bytes.fromhex(signature), bytes.fromhex(digest))
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, eq=False)
class SigningKey:
    """Signs digests. A `receipt.Signer`."""

    key_id: str
    _key: Ed25519PrivateKey

    @property
    def public(self) -> PublicKey:
        """The key that checks what this one signs."""
        return PublicKey(self.key_id, self._key.public_key())

    @property
    def raw(self) -> str:
        """The public key's 32 raw bytes, hexadecimal."""
        return self.public.raw

    def sign(self, digest: str) -> str:
        """The signature of a digest, both hexadecimal. The same digest always gives the same signature."""
        return self._key.sign(bytes.fromhex(digest)).hex()


def key_id_of(raw: str) -> str:
    """How receipts name a key: the first 16 hexadecimal digits of the SHA-256 of its 32 raw public bytes."""
    return hashlib.sha256(bytes.fromhex(raw)).hexdigest()[:16]


def load_signing_key(file: str | Path) -> SigningKey:
    """The private key in an unencrypted PEM file that only its owner may read.

    Raises:
        InputError: it is missing, others may read it, it is no Ed25519 private key, or `cryptography` is not installed.
    """
    _check_installed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = Path(file)
    text = _content(path, "signing key")
    if path.stat().st_mode & 0o077:
        raise InputError(f"signing key {path} can be read by others: chmod 600 {path}")
    try:
        key = load_pem_private_key(text, password=None)
    except TypeError as error:
        raise InputError(
            f"signing key {path} is encrypted: store it without a passphrase, readable by its owner only"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"signing key {path} is no PEM private key: make one with jobs/keys.py") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"signing key {path} is not an Ed25519 key: make one with jobs/keys.py")
    return SigningKey(_key_id(key.public_key()), key)


def refuse_other_key(in_force: str | None, signer: SigningKey | None) -> None:
    """Refuse to sign with another key than the one that the chain goes on with, or not at all: the chain would not verify.

    Args:
        in_force: id of the key that signs the next link; None where no link is signed yet.
        signer: what would sign.

    Raises:
        InputError: it is not that key.
    """
    if in_force is None or (signer is not None and signer.key_id == in_force):
        return
    given = "names none" if signer is None else f"names key {signer.key_id}"
    raise InputError(
        f"receipts are signed with key {in_force} until now, and unlearning.signing_key {given}: name the file of that key, or "
        "change keys with jobs/keys.py --rotate"
    )


def load_public_key(file: str | Path) -> PublicKey:
    """The public key in a PEM file.

    Raises:
        InputError: it is missing, it is no Ed25519 public key, or `cryptography` is not installed.
    """
    _check_installed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    path = Path(file)
    try:
        key = load_pem_public_key(_content(path, "public key"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"public key {path} is no PEM public key: give the .pub.pem that jobs/keys.py wrote") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"public key {path} is not an Ed25519 key: give the .pub.pem that jobs/keys.py wrote")
    return PublicKey(_key_id(key), key)


def make_key_pair(stem: str | Path) -> tuple[Path, Path, str]:
    """Make a new key: STEM.pem, which only its owner can read, and STEM.pub.pem for everyone. Gives both and the key's id.

    Raises:
        InputError: one of the files exists already or cannot be written, or `cryptography` is not installed.
    """
    _check_installed()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    pem = serialization.Encoding.PEM
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    private_file, public_file = Path(f"{stem}.pem"), Path(f"{stem}.pub.pem")
    _write_new(public_file, public, 0o644)  # first: a failure here leaves no private key behind
    try:
        _write_new(private_file, secret, 0o600)
    except InputError:
        public_file.unlink()
        raise
    return private_file, public_file, _key_id(key.public_key())


def _check_installed() -> None:
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise InputError("signatures need the cryptography package: pip install ray_eraser[sign]") from error


def _key_id(key: Ed25519PublicKey) -> str:
    return key_id_of(key.public_bytes_raw().hex())


def _content(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read ({error.strerror}): check the path") from error


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        # Made with its final mode: there is no moment at which others could read it.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise InputError(f"{path} exists: a key is never overwritten, choose another name") from error
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another folder") from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
