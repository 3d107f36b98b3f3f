"""Partitions: divide interactions into shards.

n interactions, K shards, U users, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np

from ray_eraser.config import PartitionConfig, PartitionSettings, extension
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData, places_of
from ray_eraser.embeddings import Embeddings
from ray_eraser.partition import balanced, communities, hashed, transport
from ray_eraser.partition.assignment import Partition

__all__ = ["Divider", "Partition", "divide", "place", "place_learned"]


class Divider(Protocol):
    """A partition of another package, made from its settings; see docs/extend.md.

    The result of `divide` must depend only on its arguments and the settings. If the settings say that the partition is not
    learned, the shard of a pair must depend only on the keys of that pair.
    """

    def divide(
        self,
        interactions: Interactions,
        user_keys: np.ndarray,
        item_keys: np.ndarray,
        seed: int,
        embeddings: Embeddings | None,
    ) -> Partition:
        """See the function `divide`."""
        ...


def divide(
    interactions: Interactions,
    user_keys: np.ndarray,
    item_keys: np.ndarray,
    config: PartitionSettings,
    seed: int,
    embeddings: Embeddings | None = None,
) -> Partition:
    """Assign every interaction to a shard, with any kind of partition.

    Args:
        interactions: n pairs.
        user_keys: (U,) uint64, keyed hash of the raw id by row; see `Vocabulary.keys`.
        item_keys: (I,) uint64, the same for items.
        config: the kind and its settings.
        seed: the root seed.
        embeddings: embeddings of the whole log, for the kinds that need them (`needs_embeddings`); ignored by the others.
    """
    if not isinstance(config, PartitionConfig):
        return cast(Divider, extension(config)(config)).divide(interactions, user_keys, item_keys, seed, embeddings)
    if config.kind == "hashed":
        return hashed.hashed(interactions, user_keys, config.n_shards)
    if config.kind == "random":
        return hashed.random_pairs(interactions, user_keys, item_keys, config.n_shards, seed)
    if config.kind == "label_propagation":
        return communities.label_propagation(interactions, config, seed)
    assert embeddings is not None, f"a {config.kind} partition is learned from embeddings"
    others = {"embedding_kmeans": communities.embedding_kmeans, "transport": transport.transport}
    return others.get(config.kind, balanced.balanced)(interactions, embeddings, config, seed)


def place(
    valid: Interactions,
    interactions: Interactions,
    partition: Partition,
    user_keys: np.ndarray,
    item_keys: np.ndarray,
    config: PartitionSettings,
    seed: int,
) -> np.ndarray:
    """Assign held-out interactions to shards, (n_valid,) int16, so that each shard uses only its own for early stopping.

    A partition that is not learned assigns a held-out pair like any other pair. `item_based` assigns it to the shard of its
    item, and the other learned kinds to the shard that owns most of the user's interactions (ties: the lowest shard). Users and
    items without interactions are assigned by keyed hash.

    Args:
        valid: held-out pairs, none of them in `interactions`.
        interactions: the interactions that were divided.
        partition: the result of `divide`.
        user_keys: (U,) uint64, keyed hash of the raw id by row.
        item_keys: (I,) uint64, the same for items.
        config: the same as for `divide`.
        seed: the same as for `divide`.
    """
    if not config.is_learned:
        return divide(valid, user_keys, item_keys, config, seed).owners
    if config.follows_items:
        return _main_shards(interactions.items, partition, item_keys).take(valid.items)
    return _main_shards(interactions.users, partition, user_keys).take(valid.users)


def place_learned(new: KeyedPairs, shards: Sequence[ShardData], config: PartitionSettings, seed: int) -> list[KeyedPairs]:
    """Assign interactions that arrive after the partition was made, and return the pairs that each shard gains.

    A partition that is not learned assigns a new pair like any other pair. `item_based` assigns it to the shard that owns most
    of the item's interactions, and the other learned kinds to the shard that owns most of the user's (ties: the lowest shard).
    Unknown users or items go to the shard with the fewest interactions at that point, in ascending order of their keys.

    Args:
        new: pairs that no shard has.
        shards: the data of each shard, in order.
        config: the same as for `divide`.
        seed: the same as for `divide`.
    """
    pairs, user_keys, item_keys = new.compact()
    if not config.is_learned:
        owners = divide(pairs, user_keys, item_keys, config, seed).owners
    elif config.follows_items:
        owners = _homes(item_keys, np.bincount(pairs.items), [(data.item_keys, data.train.items) for data in shards])[
            pairs.items
        ]
    else:
        owners = _homes(user_keys, np.bincount(pairs.users), [(data.user_keys, data.train.users) for data in shards])[
            pairs.users
        ]
    return [KeyedPairs.in_keys(pairs.take(owners == shard), user_keys, item_keys) for shard in range(len(shards))]


def _homes(keys: np.ndarray, wanted: np.ndarray, shards: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The shard for the new interactions of each key, (n,) int16.

    Args:
        keys: (n,) ascending, of users or of items.
        wanted: (n,) the number of new interactions of each key.
        shards: for each shard, the keys of its rows and the row of every training interaction.
    """
    owned = np.zeros((len(shards), len(keys)), np.int64)
    for shard, (known, rows) in enumerate(shards):
        places = places_of(keys, known)
        counts = np.bincount(rows, minlength=len(known))
        owned[shard, places >= 0] = counts[places[places >= 0]]
    homes = owned.argmax(axis=0).astype(np.int16)
    is_known = owned.any(axis=0)
    sizes = np.array([len(rows) for _, rows in shards]) + np.bincount(
        homes[is_known], weights=wanted[is_known], minlength=len(shards)
    ).astype(np.int64)
    for place in np.flatnonzero(~is_known):
        homes[place] = np.argmin(sizes)
        sizes[homes[place]] += wanted[place]
    return np.asarray(homes)


def _main_shards(rows: np.ndarray, partition: Partition, keys: np.ndarray) -> np.ndarray:
    """The shard that owns most interactions of each user (or item), (U,) int16. `rows` (n,) is the user of each interaction."""
    main = hashed.shard_of_keys(keys, partition.n_shards)
    present, shards = _most_owned(rows, partition.owners, partition.n_shards)
    main[present] = shards
    return main


def _most_owned(rows: np.ndarray, owners: np.ndarray, n_shards: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows, ascending, and the shard that owns most interactions of each; ties: the lowest shard."""
    cells, counts = np.unique(rows.astype(np.int64) * n_shards + owners, return_counts=True)
    owned_rows, shards = np.divmod(cells, n_shards)
    order = np.lexsort((shards, -counts, owned_rows))
    present, first = np.unique(owned_rows[order], return_index=True)
    return present, shards[order][first]
