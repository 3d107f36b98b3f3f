"""User and item vectors of a submodel or an aggregate.

U' and I' are the users and items that the model covers, D the width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors of the users and items that a model knows, by row. Other users and items are absent, not random and not zero.

    Tables are compact, because a shard knows only a small part of a large log. Scores are inner products. Row numbers belong to
    the numbering of the current computation; files and messages between processes use keys instead (`KeyedEmbeddings`).

    Attributes:
        user_rows: (U',) int32, ascending rows of the users covered.
        users: (U', D) float32.
        item_rows: (I',) int32, ascending rows of the items covered.
        items: (I', D) float32.
    """

    user_rows: np.ndarray
    users: np.ndarray
    item_rows: np.ndarray
    items: np.ndarray

    @property
    def width(self) -> int:
        return int(self.users.shape[1])

    @classmethod
    def empty(cls, width: int) -> Embeddings:
        """A model without users and items, which is the submodel of an empty shard."""
        none, nothing = np.empty(0, np.int32), np.empty((0, width), np.float32)
        return cls(none, nothing, none, nothing)

    def keyed(self, user_keys: np.ndarray, item_keys: np.ndarray) -> KeyedEmbeddings:
        """Replace rows by keys, given the ascending keys of all rows."""
        return KeyedEmbeddings(user_keys[self.user_rows], self.users, item_keys[self.item_rows], self.items)

    def scores(self, rows_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score all items for users given by ascending rows.

        Returns:
            Mask (U,) of the users that the model knows, and the scores of these users, (n, I') float32.
        """
        known = np.isin(rows_U, self.user_rows)
        return known, self.users[np.searchsorted(self.user_rows, rows_U[known])] @ self.items.T

    def same_bits(self, other: Embeddings) -> bool:
        """Whether every row number and every bit of every vector agree."""
        return _same_bits(self.arrays(), other.arrays())

    def arrays(self) -> dict[str, np.ndarray]:
        """The four arrays by name."""
        return {"user_rows": self.user_rows, "users": self.users, "item_rows": self.item_rows, "items": self.items}


@dataclass(frozen=True, eq=False)
class KeyedEmbeddings:
    """Embeddings in the order of the ids' keys, as they are stored. They depend only on the ids and the vectors.

    Attributes:
        user_keys: (U',) uint64, ascending.
        users: (U', D) float32.
        item_keys: (I',) uint64, ascending.
        items: (I', D) float32.
    """

    user_keys: np.ndarray
    users: np.ndarray
    item_keys: np.ndarray
    items: np.ndarray

    @property
    def width(self) -> int:
        return int(self.users.shape[1])

    @classmethod
    def empty(cls, width: int) -> KeyedEmbeddings:
        none, nothing = np.empty(0, np.uint64), np.empty((0, width), np.float32)
        return cls(none, nothing, none, nothing)

    def in_rows(self, user_keys: np.ndarray, item_keys: np.ndarray) -> Embeddings:
        """Replace keys by rows, given the ascending keys of all rows. Users and items with other keys are left out."""
        user_rows, users = _in_rows(self.user_keys, self.users, user_keys)
        item_rows, items = _in_rows(self.item_keys, self.items, item_keys)
        return Embeddings(user_rows, users, item_rows, items)

    def vector_of_user(self, key: int) -> np.ndarray | None:
        """The vector of a user, (D,); None if the user is absent."""
        place = int(np.searchsorted(self.user_keys, np.uint64(key)))
        known = place < len(self.user_keys) and int(self.user_keys[place]) == key
        return self.users[place] if known else None

    def same_bits(self, other: KeyedEmbeddings) -> bool:
        """Whether every key and every bit of every vector agree."""
        return _same_bits(self.arrays(), other.arrays())

    def arrays(self) -> dict[str, np.ndarray]:
        """The four arrays by name, as they are stored."""
        return {"user_keys": self.user_keys, "users": self.users, "item_keys": self.item_keys, "items": self.items}


def _in_rows(keys: np.ndarray, vectors: np.ndarray, ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.searchsorted(ascending, keys).astype(np.int32)
    known = ascending.take(rows, mode="clip") == keys if len(ascending) else np.zeros(len(keys), bool)
    return (rows, vectors) if known.all() else (rows[known], vectors[known])


def _same_bits(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return mine.keys() == theirs.keys() and all(
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        for one, other in zip(mine.values(), theirs.values(), strict=True)
    )
