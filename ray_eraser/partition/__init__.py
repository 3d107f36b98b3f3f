"""How interactions are divided into shards.

n interactions, K shards, U users, I items.
"""

from __future__ import annotations

import numpy as np

from ray_eraser.config import PartitionConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.partition import balanced, communities, hashed, transport
from ray_eraser.partition.assignment import Partition

__all__ = ["Partition", "divide", "place"]


def divide(
    interactions: Interactions,
    user_keys: np.ndarray,
    item_keys: np.ndarray,
    config: PartitionConfig,
    seed: int,
    embeddings: Embeddings | None = None,
) -> Partition:
    """An owner for every interaction, by any kind of partition.

    Args:
        interactions: n pairs.
        user_keys: (U,) uint64, keyed hash of the raw id by row; see `Vocabulary.keys`.
        item_keys: (I,) uint64, the same for items.
        config: the kind and its settings.
        seed: the root seed.
        embeddings: of the whole log, for the kinds made from them (`needs_embeddings`); the others pass them over.
    """
    if config.kind == "hashed":
        return hashed.hashed(interactions, user_keys, config.n_shards)
    if config.kind == "random":
        return hashed.random_pairs(interactions, user_keys, item_keys, config.n_shards, seed)
    if config.kind == "label_propagation":
        return communities.label_propagation(interactions, config, seed)
    assert embeddings is not None, f"a {config.kind} partition is learned from embeddings"
    if config.kind == "embedding_kmeans":
        return communities.embedding_kmeans(interactions, embeddings, config, seed)
    if config.kind == "transport":
        return transport.transport(interactions, embeddings, config, seed)
    return balanced.balanced(interactions, embeddings, config, seed)


def place(
    valid: Interactions,
    interactions: Interactions,
    partition: Partition,
    user_keys: np.ndarray,
    item_keys: np.ndarray,
    config: PartitionConfig,
    seed: int,
) -> np.ndarray:
    """The shards that held-out interactions go to, (n_valid,) int16, so that each shard stops early by its own alone.

    `hashed` and `random` place a pair where they would have put it at first. `item_based` sends it to the item's shard, the
    other learned kinds to the shard that owns most of the user's interactions (ties: the lowest shard). Users and items without
    interactions go by keyed hash.

    Args:
        valid: pairs held out, none of them in `interactions`.
        interactions: what was divided.
        partition: how.
        user_keys: (U,) uint64, keyed hash of the raw id by row.
        item_keys: (I,) uint64, the same for items.
        config: what `divide` was given.
        seed: what `divide` was given.
    """
    if config.kind in ("hashed", "random"):
        return divide(valid, user_keys, item_keys, config, seed).owners
    if config.kind == "item_based":
        return _main_shards(interactions.items, partition, item_keys).take(valid.items)
    return _main_shards(interactions.users, partition, user_keys).take(valid.users)


def _main_shards(rows: np.ndarray, partition: Partition, keys: np.ndarray) -> np.ndarray:
    """The shard that owns most interactions of each user (or item), by row; (U,) int16. `rows`: (n,), whose each one is."""
    cells, counts = np.unique(rows.astype(np.int64) * partition.n_shards + partition.owners, return_counts=True)
    owned_rows, shards = np.divmod(cells, partition.n_shards)
    order = np.lexsort((shards, -counts, owned_rows))
    present, first = np.unique(owned_rows[order], return_index=True)
    main = hashed.shard_of_keys(keys, partition.n_shards)
    main[present] = shards[order][first]
    return main
