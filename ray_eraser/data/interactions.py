"""Sets of (user, item) pairs.

n pairs; rows are numbers in a `Vocabulary`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

_SPARSE = 16
"""Rows are sparse if the highest row is more than this many times their number."""


@dataclass(frozen=True, eq=False)
class Interactions:
    """A set of (user, item) pairs, sorted by user and then by item, no pair twice.

    Values are frozen: removing pairs gives a new value.

    Attributes:
        users: (n,) int32 user rows.
        items: (n,) int32 item rows.
    """

    users: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, users: np.ndarray, items: np.ndarray) -> Interactions:
        """Make a set from pairs in any order. Repeated pairs are merged; their number is `len(users) - len(result)`."""
        return cls.of_codes(_codes(np.asarray(users), np.asarray(items)))

    @classmethod
    def of_codes(cls, codes: np.ndarray) -> Interactions:
        """Make a set from codes as `codes` returns them, in any order. Repeated codes are merged."""
        return cls._from_codes(_distinct(codes))

    @classmethod
    def none(cls) -> Interactions:
        return cls._from_codes(np.empty(0, np.int64))

    @classmethod
    def union(cls, parts: list[Interactions]) -> Interactions:
        """The pairs of all parts."""
        return cls.of_codes(np.concatenate([np.empty(0, np.int64), *(part.codes() for part in parts)]))

    @classmethod
    def _from_codes(cls, codes: np.ndarray) -> Interactions:
        return cls((codes >> 32).astype(np.int32), (codes & 0xFFFFFFFF).astype(np.int32))

    def __len__(self) -> int:
        return len(self.users)

    def codes(self) -> np.ndarray:
        """One int64 for each pair, ascending, with the user in the upper half. So sets of pairs become sets of numbers."""
        return _codes(self.users, self.items)

    def take(self, chosen: np.ndarray) -> Interactions:
        """The pairs at ascending positions or where a mask (n,) is true."""
        return Interactions(self.users[chosen], self.items[chosen])

    def without(self, erased: Interactions) -> Interactions:
        """The pairs that are not in `erased`. Unknown pairs in `erased` are ignored."""
        return self.take(~self._holds(erased))

    def common(self, other: Interactions) -> Interactions:
        """The pairs that both have."""
        return self.take(self._holds(other))

    def _holds(self, other: Interactions) -> np.ndarray:
        """Mask (n,) of the pairs that `other` has too. Both sets are sorted, so the smaller is searched in the larger."""
        mine, theirs = self.codes(), other.codes()
        if len(theirs) > len(mine):
            return np.isin(mine, theirs, assume_unique=True, kind="sort")
        found = np.zeros(len(mine), bool)
        positions = np.searchsorted(mine, theirs)
        inside = positions < len(mine)
        found[positions[inside][mine[positions[inside]] == theirs[inside]]] = True
        return found

    def of_users(self, rows: np.ndarray) -> Interactions:
        """The pairs of these users."""
        if len(rows) == 1:  # the pairs of one user are next to each other
            return Interactions(np.full(len(own := self.items_of(rows[0])), rows[0], np.int32), own)
        return self.take(np.isin(self.users, rows))

    def items_of(self, row: int) -> np.ndarray:
        """The items of one user, ascending."""
        # An int32, because numpy would convert all users for a Python number.
        first = self.users.searchsorted(np.int32(row))
        return self.items[first : first + self.users[first:].searchsorted(np.int32(row), side="right")]

    def of_items(self, rows: np.ndarray) -> Interactions:
        """The pairs with these items."""
        return self.take(np.isin(self.items, rows))

    def user_rows(self) -> np.ndarray:
        """Ascending rows of the users that have a pair."""
        return _numbered(self.users)[0]

    def item_rows(self) -> np.ndarray:
        """Ascending rows of the items that have a pair."""
        return _numbered(self.items)[0]

    def matrix(self, n_users: int, n_items: int) -> sparse.csr_matrix:
        """A sparse (n_users, n_items) float32 matrix of ones, with ascending indices in every row."""
        shape, ones = (n_users, n_items), np.ones(len(self), np.float32)
        starts = np.concatenate([[0], np.cumsum(np.bincount(self.users, minlength=n_users))])
        return sparse.csr_matrix((ones, self.items, starts), shape=shape)

    def compact(self) -> Compact:
        """The same pairs, with rows renumbered to 0 .. U'-1 and 0 .. I'-1, so that absent users and items take no room."""
        user_rows, users = _numbered(self.users)
        item_rows, items = _numbered(self.items)
        return Compact(user_rows, item_rows, Interactions(users, items))


@dataclass(frozen=True, eq=False)
class Compact:
    """Interactions renumbered without gaps, with their original rows.

    Attributes:
        user_rows: (U',) the original row of every user.
        item_rows: (I',) the original row of every item.
        interactions: the pairs in the new rows.
    """

    user_rows: np.ndarray
    item_rows: np.ndarray
    interactions: Interactions

    def matrix(self) -> sparse.csr_matrix:
        """The (U', I') matrix; see `Interactions.matrix`."""
        return self.interactions.matrix(len(self.user_rows), len(self.item_rows))


def _codes(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    return (users.astype(np.int64) << 32) | items.astype(np.int64)


def _numbered(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the distinct rows, ascending; the place of each of `rows` among them), both int32."""
    if rows.max(initial=0) > _SPARSE * len(rows):
        distinct, inverse = np.unique(rows, return_inverse=True)
        return distinct.astype(np.int32), inverse.astype(np.int32)
    # Several times as fast as a sort, while a table of all rows is not much larger than the pairs.
    present = np.bincount(rows) > 0
    places = np.cumsum(present, dtype=np.int32) - np.int32(1)
    return np.flatnonzero(present).astype(np.int32), places[rows]


def _distinct(codes: np.ndarray) -> np.ndarray:
    """The distinct codes, ascending. numpy.unique hashes the lower bits, which collide here, and takes 30 times as long."""
    codes = np.sort(codes)
    first = np.ones(len(codes), bool)
    first[1:] = codes[1:] != codes[:-1]
    return codes[first]
