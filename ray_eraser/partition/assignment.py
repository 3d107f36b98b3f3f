"""The assignment of interactions to shards.

K shards, n interactions, U users, D embedding width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from scipy import sparse

from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings


@dataclass(frozen=True, eq=False)
class Partition:
    """The owning shard of every interaction.

    Attributes:
        n_shards: K.
        owners: (n,) int16, the owning shard of each interaction, in the order of the divided interactions.
    """

    n_shards: int
    owners: np.ndarray

    def sizes(self) -> np.ndarray:
        """The number of interactions of every shard, (K,)."""
        return np.bincount(self.owners, minlength=self.n_shards)

    def balance(self) -> float:
        """The size of the largest shard, divided by the mean; 1 is perfect."""
        return balance_of(self.sizes())

    def shards_per_user(self, interactions: Interactions) -> float:
        """The mean number of shards that hold data of a user. Erasing a user retrains these shards."""
        pairs = np.unique(interactions.users.astype(np.int64) * self.n_shards + self.owners)
        return len(pairs) / max(1, len(interactions.user_rows()))

    def scatter(self, interactions: Interactions, embeddings: Embeddings) -> float:
        """How much the users within a shard differ: the sum of squares within shards over the total sum of squares, 0 to 1.

        The squares are distances from users' vectors to the mean of their shard and to the mean of all. A user counts once per
        interaction, in the shard of that interaction. The total is therefore the same for every partition of a log, even if
        users are divided. A random partition has a scatter close to 1. The smaller the scatter, the more a user's shard tells
        about the user.

        Args:
            interactions: the interactions that were divided.
            embeddings: vectors of at least every user of `interactions`.
        """
        if len(interactions) == 0:
            return 0.0
        rows, users = np.unique(interactions.users, return_inverse=True)
        positions = np.searchsorted(embeddings.user_rows, rows)
        assert np.array_equal(embeddings.user_rows.take(positions, mode="clip"), rows), "the embeddings do not cover all users"
        users_UD = embeddings.users[positions].astype(np.float64)
        weights_U = np.bincount(users)
        users_UD -= (weights_U[:, None] * users_UD).sum(axis=0) / len(users)
        total = float((weights_U * (users_UD**2).sum(axis=1)).sum())
        shape = (self.n_shards, len(rows))
        members_KU = sparse.csr_matrix((np.ones(len(users)), (self.owners, users)), shape=shape)
        sums_KD = np.asarray(members_KU @ users_UD)
        between = float(((sums_KD**2).sum(axis=1) / np.maximum(self.sizes(), 1)).sum())
        return max(0.0, 1 - between / total) if total > 0 else 0.0

    def describe(self, interactions: Interactions, embeddings: Embeddings | None = None) -> dict[str, Any]:
        """Measures of the partition: `sizes`, `balance`, `shards_per_user` and, with embeddings, `scatter`."""
        figures: dict[str, Any] = {
            "sizes": self.sizes().tolist(),
            "balance": self.balance(),
            "shards_per_user": self.shards_per_user(interactions),
        }
        return figures if embeddings is None else {**figures, "scatter": self.scatter(interactions, embeddings)}


def capacity_of(slack: float, load: int, n_shards: int) -> int:
    """The capacity of a shard: `slack` times the mean load, rounded up.

    The slack is taken as a decimal number, because 1.1 times 50 is a little more than 55 in binary floating point.
    """
    return math.ceil(Fraction(str(slack)) * load / n_shards)


def balance_of(sizes: np.ndarray) -> float:
    """The largest of the sizes (K,), divided by their mean; 1 is perfect."""
    return float(sizes.max() / sizes.mean()) if sizes.sum() else 1.0
