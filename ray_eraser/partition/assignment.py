"""Which shard owns which interaction.

K shards, n interactions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ray_eraser.data.interactions import Interactions
from ray_eraser.ids import ShardId


@dataclass(frozen=True, eq=False)
class Partition:
    """An owner for every interaction.

    Attributes:
        n_shards: K.
        owners: (n,) int16, the owning shard of each interaction, in the order of the interactions that were divided.
    """

    n_shards: int
    owners: np.ndarray

    def sizes(self) -> np.ndarray:
        """Interactions of every shard, (K,)."""
        return np.bincount(self.owners, minlength=self.n_shards)

    def balance(self) -> float:
        """The largest shard over the mean; 1 is perfect."""
        sizes = self.sizes()
        return float(sizes.max() / sizes.mean()) if sizes.sum() else 1.0

    def shards_per_user(self, interactions: Interactions) -> float:
        """How many shards the data of one user sits in, on average: what one erasure costs."""
        pairs = np.unique(interactions.users.astype(np.int64) * self.n_shards + self.owners)
        return len(pairs) / max(1, len(interactions.user_rows()))

    def of_shard(self, interactions: Interactions, shard: ShardId) -> Interactions:
        """The part of the divided interactions that a shard owns."""
        return interactions.take(self.owners == shard)
