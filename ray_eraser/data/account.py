"""Counts of the rows of a log: how many were read, merged and left out, and why. No count and no notice names an id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

BELOW_RATING = "rated below data.min_rating"
HEADER_LINE = "header line in the middle"
NO_ROWS = "files without rows were passed over"
"""A notice."""


def blank(kind: str) -> str:
    """The reason for leaving out rows without an id of this kind, `user` or `item`."""
    return f"blank {kind} id"


def listed(left_out: Mapping[str, int]) -> str:
    """Reasons and counts on one line, such as `3 blank user id, 1 header line in the middle`."""
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items())


@dataclass(frozen=True)
class Account:
    """The rows of a log, counted.

    Erased rows are among these counts, so they go into reports, never into the files of a generation.

    Attributes:
        rows_read: rows of the log, or items where a line lists a user's items. Header lines in the middle count as rows.
        merged: rows that repeat a pair of another row.
        left_out: further rows that are not part of the log, by reason.
        held_for_test: pairs of the test set.
        notices: remarks on how the log was read, for people.
    """

    rows_read: int = 0
    merged: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    held_for_test: int = 0
    notices: tuple[str, ...] = ()

    @property
    def n_left_out(self) -> int:
        return sum(self.left_out.values())

    @classmethod
    def together(cls, parts: Sequence[Account]) -> Account:
        """The account of a log in parts. A notice that several parts have is given once."""
        left_out: Counter[str] = Counter()
        for part in parts:
            left_out.update(part.left_out)
        return cls(
            sum(part.rows_read for part in parts),
            sum(part.merged for part in parts),
            dict(left_out),
            sum(part.held_for_test for part in parts),
            tuple(dict.fromkeys(notice for part in parts for notice in part.notices)),
        )

    def noting(self, *notices: str) -> Account:
        """The same with further notices in front."""
        return replace(self, notices=tuple(dict.fromkeys((*notices, *self.notices))))
