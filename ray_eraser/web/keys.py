"""API keys and their roles."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ray_eraser.errors import InputError

SHORTEST_KEY = 32
"""In characters. Keys are stored as plain hashes, which is safe only if nobody can guess the key."""
_LONGEST_KEY = 512
_MAKE_ONE = "make one with: openssl rand -hex 32"


class Role(StrEnum):
    """What a key allows."""

    READ = "read"
    """Recommendations, the deployment's status, the state of erasures, receipts."""
    ERASE = "erase"
    """The same, and to submit erasures, start runs and retry erasures."""

    def allows(self, wanted: Role) -> bool:
        """Whether a key with this role may do what needs the role `wanted`."""
        return wanted is Role.READ or self is Role.ERASE


@dataclass(frozen=True)
class Keys:
    """The hashes of all keys, with their roles. The keys themselves are not stored."""

    entries: tuple[tuple[Role, bytes], ...]

    @classmethod
    def of(cls, keys: Sequence[tuple[Role, str]]) -> Keys:
        return cls(tuple((role, _hashed(key)) for role, key in keys))

    def find(self, presented: str) -> tuple[Role, bytes] | None:
        """The role of a key, and its hash as a name for it; None if there is no such key.

        Takes the same time for every key, so that the time does not tell how much of a guess was right.
        """
        hashed, found = _hashed(presented), None
        for entry in self.entries:
            if hmac.compare_digest(entry[1], hashed):
                found = entry
        return found


def read_keys(file: Path) -> Keys:
    """Read a key file: one `read KEY` or `erase KEY` a line; `#` begins a comment. Only its owner may have access to it.

    Raises:
        InputError: the file cannot be read, others have access to it, or a line is malformed. The message never holds a key.
    """
    try:
        mode, text = file.stat().st_mode, file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"key file {file} cannot be read ({type(error).__name__}): check the path") from error
    if mode & 0o077:
        raise InputError(f"key file {file} can be read by others: chmod 600 {file}")
    keys: list[tuple[Role, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or words[0] not in list(Role):
            raise InputError(f"{file}, line {number}: expected 'read KEY' or 'erase KEY'")
        role, key = words
        if problem := _key_problem(key):
            raise InputError(f"{file}, line {number}: the key {problem}")
        if key in [other for _, other in keys]:
            raise InputError(f"{file}, line {number}: an earlier line has the same key: give each key one role")
        keys.append((Role(role), key))
    if not keys:
        raise InputError(f"key file {file} holds no key: write lines 'read KEY' and 'erase KEY', {_MAKE_ONE}")
    return Keys.of(keys)


def _key_problem(key: str) -> str:
    if not SHORTEST_KEY <= len(key) <= _LONGEST_KEY:
        return f"has {len(key)} characters, not {SHORTEST_KEY} to {_LONGEST_KEY}: {_MAKE_ONE}"
    return "" if key.isascii() and key.isprintable() else f"has characters that a header cannot hold: {_MAKE_ONE}"


def _hashed(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
