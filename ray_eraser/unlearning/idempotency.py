"""Idempotency keys: a submission repeated with the same key is the same request.

A key may name a user ("erase u7"), and stays recorded after the request is finished. So the ledger keeps a keyed hash. The
random secret of the hash is stored outside the storage path and the ledger, so nobody can test guesses with a copy of these.
If the secret is lost, repeated keys of earlier requests count as new.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ray_eraser.errors import ConfigError, RequestError
from ray_eraser.unlearning.request import key_problem
from ray_eraser.unlearning.work import Work

log = logging.getLogger(__name__)

_BYTES = 32


class KeyHash:
    """Hashes idempotency keys for the ledger. The secret is read or made when the first key is hashed."""

    def __init__(self, secret: Callable[[], bytes]) -> None:
        self._read = secret
        self._lock = threading.Lock()
        self._known: bytes | None = None

    @classmethod
    def of(cls, folder: str, ledger: str, storage: Path | None = None, *, must_last: bool = False) -> KeyHash:
        """Hash with the secret of one ledger.

        Args:
            folder: the folder of the secrets; if empty, `ray_eraser` in the user's state folder ($XDG_STATE_HOME).
            ledger: name of the ledger.
            storage: the storage path, if it is local. A copy of it must not include the secret.
            must_last: whether the hashes must stay the same after a restart.

        Raises:
            ConfigError: the given folder cannot be used, or the secret must last and there is no folder for it.
        """
        if not folder and not must_last:
            return cls(lambda: _usual_secret(ledger))
        try:
            file = secret_file(folder, ledger)
        except RuntimeError as error:
            raise ConfigError("unlearning.key_folder", f"must be set ({error}): choose a private folder") from error
        if storage is not None and file.resolve().is_relative_to(storage.resolve()):
            raise ConfigError(
                "unlearning.key_folder",
                f"{folder!r} is under the storage path, and would be copied with it: choose another folder",
            )
        try:
            secret = _kept_secret(file)
        except (OSError, ValueError) as error:
            raise ConfigError(
                "unlearning.key_folder", f"{folder!r} cannot be used ({error}): choose a private folder"
            ) from error
        return cls(lambda: secret)

    @property
    def _secret(self) -> bytes:
        with self._lock:
            if self._known is None:
                self._known = self._read()
            return self._known

    def __call__(self, key: str | None) -> str | None:
        """The hexadecimal hash of a key; None if no key is given.

        Raises:
            RequestError: the value cannot be a key.
        """
        if key is None:
            return None
        if problem := key_problem(key):
            raise RequestError(f"the idempotency key {problem}")
        return hmac.new(self._secret, key.encode(), "sha256").hexdigest()

    def bound(self, key: str | None, work: Work, *ways: str) -> str | None:
        """The hexadecimal hash of a key, the work and its options (`ways`); None if no key is given."""
        return None if key is None else self._of("work", key, work.kind, work.to_json(), *ways)

    def subject(self, kind: str, *ids: str) -> str:
        """The hexadecimal hash of a user, an item or a pair, for the suppression list."""
        return self._of("subject", kind, *ids)

    def _of(self, *parts: str) -> str:
        """Hash several texts. As JSON, no two different lists give the same text."""
        return hmac.new(self._secret, json.dumps(parts).encode(), "sha256").hexdigest()


def secret_file(folder: str, ledger: str) -> Path:
    """Path of the secret of one ledger; see `KeyHash.of`.

    Raises:
        RuntimeError: no folder is given, and the user has no home folder.
    """
    return (Path(folder).expanduser() if folder else _usual_folder()) / f"{ledger}.key"


def _usual_secret(ledger: str) -> bytes:
    try:
        return _kept_secret(secret_file("", ledger))
    except (OSError, RuntimeError, ValueError) as error:
        # Requests are safe without it. Only repetitions across a restart are not recognized.
        log.warning("no folder for the secret of idempotency keys", extra={"problem": type(error).__name__})
        return secrets.token_bytes(_BYTES)


def _usual_folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state else Path.home() / ".local" / "state") / "ray_eraser"


def _kept_secret(file: Path) -> bytes:
    if not file.exists():
        _make_secret(file)
    content = file.read_bytes()
    if len(content) != _BYTES:
        raise ValueError(f"{file.name} does not hold {_BYTES} bytes")
    return content


def _make_secret(file: Path) -> None:
    """Write a complete file under another name, then link it without overwriting. Concurrent starts share one secret."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileExistsError):
            os.link(fresh, file)
    finally:
        fresh.unlink()
