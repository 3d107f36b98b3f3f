"""Keys in files: made once, read strictly, and the same bits sign the same."""

from __future__ import annotations

import hashlib
import os
import stat
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519

from ray_eraser.errors import InputError
from ray_eraser.unlearning.signing import PublicKey, load_public_key, load_signing_key, make_key_pair, refuse_other_key

DIGEST, OTHER = "ab" * 32, "cd" * 32
PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


@pytest.fixture
def pair(tmp_path):
    return make_key_pair(tmp_path / "shop")


def private_file(folder, key, encryption=None, mode=0o600):
    path = folder / "key.pem"
    path.write_bytes(key.private_bytes(PEM, PKCS8, encryption or serialization.NoEncryption()))
    path.chmod(mode)
    return path


def test_what_the_private_key_signs_the_public_one_verifies(pair):
    private, public, key_id = pair
    signer, verifier = load_signing_key(private), load_public_key(public)
    assert signer.key_id == verifier.key_id == key_id
    assert verifier.verifies(DIGEST, signer.sign(DIGEST))
    assert signer.sign(DIGEST) == signer.sign(DIGEST)


@pytest.mark.parametrize("signature", ["", "zz", "00" * 64, "00" * 63])
def test_nothing_else_verifies(pair, signature):
    assert not load_public_key(pair[1]).verifies(DIGEST, signature)


def test_a_signature_is_of_one_digest_and_one_key(pair, tmp_path):
    signature = load_signing_key(pair[0]).sign(DIGEST)
    assert not load_public_key(pair[1]).verifies(OTHER, signature)
    other = load_public_key(make_key_pair(tmp_path / "other")[1])
    assert not other.verifies(DIGEST, signature)
    assert other.key_id != pair[2]


def test_signatures_are_plain_ed25519_of_the_digests_bytes():
    # RFC 8032, section 7.1, test 3: the key that any other program has too.
    seed = bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")
    key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    signature = bytes.fromhex(
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
    )
    assert key.sign(bytes.fromhex("af82")) == signature


def test_the_key_id_begins_the_hash_of_the_raw_public_key(tmp_path):
    key = ed25519.Ed25519PrivateKey.from_private_bytes(b"k" * 32)
    expected = hashlib.sha256(key.public_key().public_bytes_raw()).hexdigest()[:16]
    loaded = load_signing_key(private_file(tmp_path, key))
    assert loaded.key_id == expected
    assert loaded.sign(DIGEST) == key.sign(bytes.fromhex(DIGEST)).hex()


def test_a_key_is_the_same_from_its_raw_bytes(pair):
    signer, verifier = load_signing_key(pair[0]), load_public_key(pair[1])
    assert len(bytes.fromhex(signer.raw)) == 32
    assert signer.raw == verifier.raw == signer.public.raw
    again = PublicKey.from_raw(signer.raw)
    assert again.key_id == pair[2]
    assert again.verifies(DIGEST, signer.sign(DIGEST))


@pytest.mark.parametrize("raw", ["", "zz", "ab" * 31])
def test_what_are_no_raw_bytes_of_a_key_is_refused(raw):
    with pytest.raises(ValueError):  # noqa: PT011 - whichever library says it
        PublicKey.from_raw(raw)


def test_only_the_key_in_force_may_sign_on(pair, tmp_path):
    signer = load_signing_key(pair[0])
    other = load_signing_key(make_key_pair(tmp_path / "other")[0])
    refuse_other_key(signer.key_id, signer)
    refuse_other_key(None, signer)
    refuse_other_key(None, None)
    for wrong, named in ((other, f"names key {other.key_id}"), (None, "names none")):
        with pytest.raises(InputError, match=f"key {signer.key_id} signs the receipts so far, .* {named}: .*--rotate"):
            refuse_other_key(signer.key_id, wrong)


def test_only_the_owner_can_read_a_new_private_key(pair):
    assert stat.S_IMODE(pair[0].stat().st_mode) == 0o600
    assert b"PRIVATE" not in pair[1].read_bytes()


@pytest.mark.parametrize("there", ["shop.pem", "shop.pub.pem"])
def test_a_key_is_never_overwritten_and_no_half_of_a_pair_is_left(tmp_path, there):
    (tmp_path / there).write_text("precious")
    with pytest.raises(InputError, match=rf"{there} exists and a key is never overwritten"):
        make_key_pair(tmp_path / "shop")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(there, "precious")]


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        make_key_pair(tmp_path / "none" / "shop")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_private_key_that_others_can_reach_is_refused(pair, mode):
    pair[0].chmod(mode)
    with pytest.raises(InputError, match=r"others can read signing key .*: run chmod 600"):
        load_signing_key(pair[0])


@pytest.mark.parametrize("load", [load_signing_key, load_public_key])
def test_a_missing_file_is_refused(tmp_path, load):
    with pytest.raises(InputError, match=r"none\.pem cannot be read .*: check the path"):
        load(tmp_path / "none.pem")


@pytest.mark.parametrize("content", [b"", b"no key at all", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path, content):
    path = tmp_path / "key.pem"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a PEM private key"):
        load_signing_key(path)
    with pytest.raises(InputError, match="not a PEM public key"):
        load_public_key(path)


def test_the_halves_of_a_pair_are_not_taken_for_each_other(pair):
    private, public, _ = pair
    public.chmod(0o600)
    with pytest.raises(InputError, match="not a PEM private key"):
        load_signing_key(public)
    with pytest.raises(InputError, match="not a PEM public key"):
        load_public_key(private)


def test_a_key_of_another_kind_is_refused(tmp_path):
    key = x25519.X25519PrivateKey.generate()
    with pytest.raises(InputError, match="is not an Ed25519 key"):
        load_signing_key(private_file(tmp_path, key))
    public = tmp_path / "public.pem"
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(InputError, match="is not an Ed25519 key"):
        load_public_key(public)


def test_an_encrypted_key_is_refused(tmp_path):
    key = ed25519.Ed25519PrivateKey.generate()
    path = private_file(tmp_path, key, serialization.BestAvailableEncryption(b"secret"))
    with pytest.raises(InputError, match="is encrypted"):
        load_signing_key(path)


def test_without_the_package_one_is_told_what_to_install(monkeypatch, pair, tmp_path):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    for call in (lambda: load_signing_key(pair[0]), lambda: load_public_key(pair[1]), lambda: make_key_pair(tmp_path / "new")):
        with pytest.raises(InputError, match=r"pip install 'ray-eraser\[sign\]'"):
            call()


def test_importing_the_module_does_not_need_the_package():
    import subprocess

    code = "import sys; sys.modules['cryptography'] = None; import ray_eraser.unlearning.signing, ray_eraser.coordinator"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=dict(os.environ)).returncode == 0
