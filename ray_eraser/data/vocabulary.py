"""From raw ids to rows and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ray_eraser.errors import RequestError, UnknownIdError, shortened
from ray_eraser.ids import RawId
from ray_eraser.seeds import hash_ids


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The ids of one kind (users or items), all integers or all strings; an id's row is its position.

    A new vocabulary is sorted by id, so rows do not depend on the order of the log. Erasing an id leaves a tombstone (None):
    the other rows keep their numbers.
    """

    kind: str
    ids: tuple[RawId | None, ...]

    @classmethod
    def of(cls, kind: str, ids: Iterable[RawId]) -> Vocabulary:
        """Distinct ids in ascending order; integers by value, strings by their UTF-8 bytes."""
        distinct = set(ids)
        integers = [raw for raw in distinct if isinstance(raw, int)]
        if len(integers) == len(distinct):
            return cls(kind, tuple(sorted(integers)))
        strings: list[str] = sorted({str(raw) for raw in distinct}, key=str.encode)
        return cls(kind, tuple(strings))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _rows(self) -> dict[RawId, int]:
        return {raw: row for row, raw in enumerate(self.ids) if raw is not None}

    @cached_property
    def _integers(self) -> bool:
        return all(isinstance(raw, int) for raw in self.ids if raw is not None)

    @property
    def is_empty(self) -> bool:
        """Whether no id is left."""
        return not self._rows

    def __contains__(self, raw: RawId) -> bool:
        return self.parsed(raw) in self._rows

    def row(self, raw: RawId) -> int:
        """The row of an id; "12" finds 12 where ids are integers.

        Raises:
            UnknownIdError: the id was never here or has been erased.
        """
        row = self._rows.get(self.parsed(raw))
        if row is None:
            raise UnknownIdError(self.kind, str(raw))
        return row

    def raw(self, rows: Sequence[int] | np.ndarray) -> list[RawId | None]:
        """The ids of rows; None for a tombstone."""
        return [self.ids[int(row)] for row in rows]

    def tombstones(self) -> np.ndarray:
        """Rows whose id was erased, ascending."""
        return np.array([row for row, raw in enumerate(self.ids) if raw is None], np.int32)

    def without(self, rows: Iterable[int]) -> Vocabulary:
        """The same rows with tombstones for the ids of these."""
        gone = {int(row) for row in rows}
        return Vocabulary(self.kind, tuple(None if row in gone else raw for row, raw in enumerate(self.ids)))

    def extended(self, ids: Iterable[RawId]) -> Vocabulary:
        """The same rows, and after them one for each id that is new, in the order in which they come.

        Raises:
            RequestError: an id is not of the kind of those that are here, integers or strings.
        """
        new: dict[RawId, None] = {}
        present: Vocabulary = self
        for raw in ids:
            if present.is_empty:  # the first that comes says of which kind the ids are
                present = Vocabulary(self.kind, (raw,))
            if raw not in self:
                new[present.checked(raw)] = None
        return Vocabulary(self.kind, self.ids + tuple(new)) if new else self

    def checked(self, raw: RawId) -> RawId:
        """An id as it stands, or would stand, here: an integer where all are integers, else a string.

        Raises:
            RequestError: it is no integer of 64 bits, where all are.
        """
        parsed = self.parsed(raw)
        if self._integers and not self.is_empty and not (isinstance(parsed, int) and -(2**63) <= parsed < 2**63):
            raise RequestError(
                f"{self.kind} {shortened(raw)} is no integer of 64 bits, as the {self.kind} ids of this deployment are"
            )
        return parsed

    def keys(self, key: bytes) -> np.ndarray:
        """Keyed 64-bit hash of every id, (n,) uint64; 0 for tombstones. Depends on the raw id, never on its row."""
        hashed = hash_ids([str(raw).encode() for raw in self.ids], key)
        hashed[self.tombstones()] = 0  # the hash of an erased id would still betray it to whoever has the key
        return hashed

    def parsed(self, raw: RawId) -> RawId:
        """An id as it would stand here."""
        if self._integers and isinstance(raw, str):
            # Only as the id is written: "1_0", "+10" and " 10" are read as 10 by int(), and would hit another user.
            # What is longer than any integer of 64 bits is none, and int() refuses thousands of digits.
            return int(raw) if len(raw) <= 20 and raw.removeprefix("-").isdecimal() and str(int(raw)) == raw else raw
        return raw if self._integers else str(raw)
