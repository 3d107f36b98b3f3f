"""Partitions drawn from keyed hashes of the raw ids: nothing is learned from the data, so nothing remains in them.

n interactions, K shards, U users, I items.
"""

from __future__ import annotations

import numpy as np

from ray_eraser.data.interactions import Interactions
from ray_eraser.partition.assignment import Partition
from ray_eraser.seeds import derive, mix

# The keys serve initial vectors and hold-outs too: a salt of its own keeps the shard independent of both.
_SHARD_SALT = 0x7368617264  # "shard"


def shard_of_keys(keys: np.ndarray, n_shards: int) -> np.ndarray:
    """The shard that each keyed 64-bit hash of a raw id falls into, (n,) int16."""
    return (mix(keys, _SHARD_SALT) % np.uint64(n_shards)).astype(np.int16)


def hashed(interactions: Interactions, user_keys: np.ndarray, n_shards: int) -> Partition:
    """Whole users by the keyed hash of their raw id: one shard a user for ever, whoever else comes or goes.

    Args:
        interactions: n pairs.
        user_keys: (U,) uint64, keyed hash of the raw id by row; see `Vocabulary.keys`.
        n_shards: K.
    """
    return Partition(n_shards, shard_of_keys(user_keys, n_shards).take(interactions.users))


def random_pairs(
    interactions: Interactions, user_keys: np.ndarray, item_keys: np.ndarray, n_shards: int, seed: int
) -> Partition:
    """Each interaction to a random shard, as SISA divides (Bourtoule et al. 2021).

    SISA shuffles the list; here the keyed hash of the pair decides, so that removing one interaction moves no other.

    Args:
        interactions: n pairs.
        user_keys: (U,) uint64, keyed hash of the raw id by row.
        item_keys: (I,) uint64, the same for items.
        n_shards: K.
        seed: another seed, another division.
    """
    salted = mix(user_keys, derive(seed, "partition", "random"))
    return Partition(n_shards, shard_of_keys(mix(salted[interactions.users], item_keys[interactions.items]), n_shards))
