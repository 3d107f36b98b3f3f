"""Ed25519 keys in PEM files: a deployment signs its receipts, and anyone with the public key can check them.

The extra `sign` installs the `cryptography` package, which is imported only when a key is used.
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
        """Make the key from its 32 raw bytes in hexadecimal.

        Raises:
            ValueError: the text is not 32 hexadecimal bytes.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        return cls(key_id_of(raw), Ed25519PublicKey.from_public_bytes(bytes.fromhex(raw)))

    @property
    def raw(self) -> str:
        """The key's 32 raw bytes, hexadecimal."""
        return self._key.public_bytes_raw().hex()

    def verifies(self, digest: str, signature: str) -> bool:
        """Whether this key made the signature of this digest; both are hexadecimal."""
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
    """The id of a key in receipts: the first 16 hexadecimal digits of the SHA-256 of its 32 raw public bytes."""
    return hashlib.sha256(bytes.fromhex(raw)).hexdigest()[:16]


def load_signing_key(file: str | Path) -> SigningKey:
    """Load the private key from an unencrypted PEM file that only its owner can read.

    Raises:
        InputError: the file is missing, others can read it, it is not an Ed25519 private key, or `cryptography` is not
            installed.
    """
    _check_installed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = Path(file)
    text = _content(path, "signing key")
    if path.stat().st_mode & 0o077:
        raise InputError(f"others can read signing key {path}: run chmod 600 {path}")
    try:
        key = load_pem_private_key(text, password=None)
    except TypeError as error:
        raise InputError(
            f"signing key {path} is encrypted: store it without a passphrase, readable by its owner only"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"signing key {path} is not a PEM private key: make one with ray-eraser keys") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"signing key {path} is not an Ed25519 key: make one with ray-eraser keys")
    return SigningKey(_key_id(key.public_key()), key)


def refuse_other_key(in_force: str | None, signer: SigningKey | None) -> None:
    """Refuse a missing or wrong signing key, with which the chain would not verify.

    Args:
        in_force: id of the key that signs the next link; None if no link is signed yet.
        signer: the given key, if any.

    Raises:
        InputError: `signer` is not the key that signs the next link.
    """
    if in_force is None or (signer is not None and signer.key_id == in_force):
        return
    given = "names none" if signer is None else f"names key {signer.key_id}"
    raise InputError(
        f"key {in_force} signs the receipts so far, and unlearning.signing_key {given}: name the file of that key, or "
        "change keys with ray-eraser keys --rotate"
    )


def load_public_key(file: str | Path) -> PublicKey:
    """Load the public key from a PEM file.

    Raises:
        InputError: the file is missing, it is not an Ed25519 public key, or `cryptography` is not installed.
    """
    _check_installed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    path = Path(file)
    try:
        key = load_pem_public_key(_content(path, "public key"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"public key {path} is not a PEM public key: give the .pub.pem that ray-eraser keys wrote") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"public key {path} is not an Ed25519 key: give the .pub.pem that ray-eraser keys wrote")
    return PublicKey(_key_id(key), key)


def make_key_pair(stem: str | Path) -> tuple[Path, Path, str]:
    """Make a new key: STEM.pem, which only its owner can read, and STEM.pub.pem for everyone.

    Returns:
        (private file, public file, id of the key).

    Raises:
        InputError: a file exists already or cannot be written, or `cryptography` is not installed.
    """
    _check_installed()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    pem = serialization.Encoding.PEM
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    private_file, public_file = Path(f"{stem}.pem"), Path(f"{stem}.pub.pem")
    _write_new(public_file, public, 0o644)  # written first, so that a failure here leaves no private key behind
    try:
        _write_new(private_file, secret, 0o600)
    except InputError:
        public_file.unlink()
        raise
    return private_file, public_file, _key_id(key.public_key())


def _check_installed() -> None:
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401 - imported only to see whether it is installed
    except ImportError as error:
        raise InputError("signatures need the cryptography package: pip install 'ray-eraser[sign]'") from error


def _key_id(key: Ed25519PublicKey) -> str:
    return key_id_of(key.public_bytes_raw().hex())


def _content(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read ({error.strerror}): check the path") from error


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        # Made with its final mode, so that others cannot read it at any moment.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise InputError(f"{path} exists and a key is never overwritten: choose another name") from error
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another folder") from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
