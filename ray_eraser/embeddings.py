"""User and item vectors, of a submodel or of an aggregate.

U' and I' are the users and items that the model covers, D the width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors of the users and items that a model knows, in rows; everyone else is absent, not random and not zero.

    Tables are compact: a shard of a large log knows a small part of it. Scores are inner products. Rows are places in whatever
    numbering the computation uses; between processes and in files there are keys instead (`KeyedEmbeddings`).

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
        """A model that knows nobody: what an empty shard trains to."""
        none, nothing = np.empty(0, np.int32), np.empty((0, width), np.float32)
        return cls(none, nothing, none, nothing)

    def keyed(self, user_keys: np.ndarray, item_keys: np.ndarray) -> KeyedEmbeddings:
        """The same with keys instead of rows, given the ascending keys of all rows."""
        return KeyedEmbeddings(user_keys[self.user_rows], self.users, item_keys[self.item_rows], self.items)

    def scores(self, rows_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(mask (U,) of the users covered, their scores (n, I') float32), for users by ascending rows."""
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
    """The same in the order of the ids' keys, as it is stored: a function of the ids and the vectors alone.

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
        """The same in rows of ascending keys; users and items that are not among them are left out."""
        user_rows, users = _in_rows(self.user_keys, self.users, user_keys)
        item_rows, items = _in_rows(self.item_keys, self.items, item_keys)
        return Embeddings(user_rows, users, item_rows, items)

    def vector_of_user(self, key: int) -> np.ndarray | None:
        """A user's vector, (D,); None where the user is absent."""
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
