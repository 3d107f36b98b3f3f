"""User and item vectors, of a submodel or of an aggregate.

U' and I' are the users and items that the model covers, D the width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors of the users and items that a model knows; everyone else is absent, not random and not zero.

    Tables are compact: a shard of a large log knows a small part of it. Scores are inner products.

    Attributes:
        user_rows: (U',) int32, ascending vocabulary rows of the users covered.
        users: (U', D) float32.
        item_rows: (I',) int32, ascending vocabulary rows of the items covered.
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

    def position_of_user(self, row: int) -> int | None:
        """Where the user's vector stands in `users`, or None where the user is absent."""
        position = int(np.searchsorted(self.user_rows, row))
        known = position < len(self.user_rows) and self.user_rows[position] == row
        return position if known else None

    def same_bits(self, other: Embeddings) -> bool:
        """Whether every row number and every bit of every vector agree."""
        return all(
            mine.dtype == theirs.dtype and mine.shape == theirs.shape and mine.tobytes() == theirs.tobytes()
            for mine, theirs in zip(self.arrays().values(), other.arrays().values(), strict=True)
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The four arrays by name, as they are stored."""
        return {"user_rows": self.user_rows, "users": self.users, "item_rows": self.item_rows, "items": self.items}
