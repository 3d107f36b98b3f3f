"""Partitions by keyed hashes of the raw ids. They learn nothing from the data, so no trace of erased data remains in them.

n interactions, K shards, U users, I items.
"""

from __future__ import annotations

import numpy as np

from ray_eraser.data.interactions import Interactions
from ray_eraser.partition.assignment import Partition
from ray_eraser.seeds import derive, mix

# The same keys also decide initial vectors and hold-outs. A separate salt keeps the shard independent of both.
_SHARD_SALT = 0x7368617264  # "shard"


def shard_of_keys(keys: np.ndarray, n_shards: int) -> np.ndarray:
    """The shard of each keyed 64-bit hash of a raw id, (n,) int16."""
    return (mix(keys, _SHARD_SALT) % np.uint64(n_shards)).astype(np.int16)


def hashed(interactions: Interactions, user_keys: np.ndarray, n_shards: int) -> Partition:
    """Assign whole users by the keyed hash of their raw id. A user's shard never changes, whatever other users there are.

    Args:
        interactions: n pairs.
        user_keys: (U,) uint64, keyed hash of the raw id by row; see `Vocabulary.keys`.
        n_shards: K.
    """
    return Partition(n_shards, shard_of_keys(user_keys, n_shards).take(interactions.users))


def random_pairs(
    interactions: Interactions, user_keys: np.ndarray, item_keys: np.ndarray, n_shards: int, seed: int
) -> Partition:
    """Assign each interaction to a random shard, as SISA does (Bourtoule et al. 2021).

    SISA shuffles the list. Here the keyed hash of the pair decides, so that removing one interaction moves no other.

    Args:
        interactions: n pairs.
        user_keys: (U,) uint64, keyed hash of the raw id by row.
        item_keys: (I,) uint64, the same for items.
        n_shards: K.
        seed: the root seed; a different seed gives a different partition.
    """
    salted = mix(user_keys, derive(seed, "partition", "random"))
    return Partition(n_shards, shard_of_keys(mix(salted[interactions.users], item_keys[interactions.items]), n_shards))
