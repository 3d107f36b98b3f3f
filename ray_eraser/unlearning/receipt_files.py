"""The asker's file: first the salt of an accepted request, then its receipt. A deployment hands out the salt only once.

Only the owner can read the file. It is never overwritten, except when the receipt replaces an accepted request.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ray_eraser.errors import InputError
from ray_eraser.ids import RequestId
from ray_eraser.unlearning.evidence import ReceiptFile
from ray_eraser.unlearning.receipt import Receipt

_STATE = "accepted"


@dataclass(frozen=True)
class Accepted:
    """An accepted request that has no receipt yet.

    Attributes:
        request_id: its name.
        salt: opens the receipt's commitment; None if it was handed out before.
        deployment: the deployment that accepted the request.
    """

    request_id: RequestId
    salt: str | None
    deployment: str = ""

    def to_json(self) -> str:
        fields = {"state": _STATE, "request_id": self.request_id, "salt": self.salt, "deployment": self.deployment}
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Accepted | None:
        """Parse an accepted request; None if the text is anything else, such as a receipt."""
        try:
            fields = dict(json.loads(text))
            if fields.pop("state", None) != _STATE:
                return None
            return cls(**fields)
        except (ValueError, TypeError):
            return None


def accepted_in(file: Path) -> Accepted | None:
    """The accepted request in a file; None if the file is missing or holds anything else."""
    try:
        return Accepted.from_json(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def check_free(file: Path) -> None:
    """Check that a file can be made, before a request whose answer the file must keep.

    Raises:
        InputError: the file exists, or its folder is not writable.
    """
    if os.path.lexists(file):
        waiting = accepted_in(file)
        way_out = "choose another name"
        if waiting is not None:
            fetch = f"ray-eraser receipt --receipt {file}"
            way_out = f"it waits for the receipt of request {waiting.request_id}; to fetch it: {fetch}"
        raise InputError(f"{file} exists and is never overwritten: {way_out}")
    probe = _beside(file)
    _make(probe, "", file)
    probe.unlink()


def make(file: Path, text: str) -> None:
    """Make a new file, readable by its owner only. On return, all of it is on the disk.

    Raises:
        InputError: the file exists, or cannot be written.
    """
    _make(file, text, file)


def complete(file: Path, receipt: Receipt, salt: str | None = None) -> None:
    """Write a receipt into a new file, or into the file of its accepted request, keeping the salt of that file.

    Raises:
        InputError: the file holds something else, or cannot be written.
    """
    if not os.path.lexists(file):
        make(file, ReceiptFile.of(receipt, salt).to_json())
        return
    accepted = accepted_in(file)
    if accepted is None or accepted.request_id != receipt.request_id:
        other = "it" if accepted is None else f"it holds request {accepted.request_id} and"
        raise InputError(f"{file} exists, and {other} is never overwritten: choose another name")
    whole = _beside(file)
    _make(whole, ReceiptFile.of(receipt, salt if accepted.salt is None else accepted.salt).to_json(), file)
    try:
        whole.replace(file)
    except OSError as error:
        whole.unlink(missing_ok=True)
        raise InputError(f"{file} cannot be written ({error.strerror}): fix that, and fetch the receipt again") from error


def _beside(file: Path) -> Path:
    return file.with_name(f".{file.name}.{secrets.token_hex(4)}")


def _make(file: Path, text: str, named: Path) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            with suppress(OSError):
                file.unlink()
            raise
    except FileExistsError:
        raise InputError(f"{named} exists and is never overwritten: choose another name") from None
    except OSError as error:
        raise InputError(f"{named} cannot be written ({error.strerror}): choose another folder") from error
