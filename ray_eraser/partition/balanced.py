"""Balanced partitions learned from embeddings: RecEraser's algorithms 1 and 2 (Chen et al. 2022, "Recommendation Unlearning").

n units (users, items or interactions), K shards, D embedding width, V vectors.

One greedy assignment serves all kinds: all unit-anchor costs in ascending order (ties: unit number, then shard number), each
free unit to its anchor if that shard has room. `walk_down` does just that. `deferred_acceptance` comes to the same without the
sort, but only where all units weigh the same: a shard that refuses a light unit for a nearer heavy one may lose the heavy one
to a nearer unit still, and then the light one would have fit after all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist

from ray_eraser.config import PartitionConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.partition.assignment import Partition, capacity_of
from ray_eraser.seeds import derive

log = logging.getLogger(__name__)

Costs = Callable[[np.ndarray], np.ndarray]
"""Unit numbers (m,) to their costs (m, K), float32 and not negative."""

_BLOCK = 1 << 19  # costs held at a time: what fits a core's cache is also the fastest
_NO_LIMIT = np.iinfo(np.int64).max
_UNIT = np.int64(0xFFFFFFFF)


@dataclass(frozen=True, eq=False)
class Factor:
    """One factor of the cost E(unit, anchor): the distance between the anchor and one vector of the unit.

    Attributes:
        vectors: (V, D) float64.
        of_unit: (n,) integers, which of the vectors is the unit's.
    """

    vectors: np.ndarray
    of_unit: np.ndarray

    def distances(self, anchors_KD: np.ndarray) -> np.ndarray:
        """Euclidean, (V, K) float32."""
        # Not from inner products: BLAS would bring its thread count into the bits.
        return np.asarray(cdist(self.vectors, anchors_KD), np.float32)

    def means(self, owners: np.ndarray, anchors_KD: np.ndarray) -> np.ndarray:
        """Mean vector of the units that each shard owns, (K, D) float64; a shard without units keeps its anchor."""
        shape = (len(anchors_KD), len(self.vectors))
        members_KV = sparse.csr_matrix((np.ones(len(owners)), (owners, self.of_unit)), shape=shape)
        sizes_K1 = np.bincount(owners, minlength=len(anchors_KD))[:, None]
        # Per dimension, as the paper's equations say; the authors' code takes one scalar mean over members and dimensions.
        return np.where(sizes_K1 > 0, (members_KV @ self.vectors) / np.maximum(sizes_K1, 1), anchors_KD)


def balanced(interactions: Interactions, embeddings: Embeddings, config: PartitionConfig, seed: int) -> Partition:
    """Divide by nearness to anchors, every shard within its capacity.

    Args:
        interactions: what is divided.
        embeddings: of the whole log; cover every user and item of `interactions`, and may cover more.
        config: `kind` is `user_based`, `item_based` or `interaction_based`.
        seed: chooses the first anchors.
    """
    if len(interactions) == 0:
        return Partition(config.n_shards, np.empty(0, np.int16))
    compact = interactions.compact()
    users, items = compact.interactions.users, compact.interactions.items
    users_UD = vectors_of(embeddings.user_rows, embeddings.users, compact.user_rows)
    items_ID = vectors_of(embeddings.item_rows, embeddings.items, compact.item_rows)
    if config.kind == "user_based":
        owners = whole_units(users_UD, np.bincount(users), config, seed)[users]
    elif config.kind == "item_based":
        owners = whole_units(items_ID, np.bincount(items), config, seed)[items]
    else:
        owners = interaction_based(Factor(users_UD, users), Factor(items_ID, items), config, seed)
    return Partition(config.n_shards, owners)


def whole_units(vectors_VD: np.ndarray, weights: np.ndarray, config: PartitionConfig, seed: int) -> np.ndarray:
    """Algorithm 1, UBP for users and IBP for items: E = ||p - a||, every unit in one shard.

    The paper counts units; by default we count their interactions, since those are what training costs and what an erasure
    trains again. An anchor is the mean of its units, each counted once, either way.

    Args:
        vectors_VD: (V, D) float64, one a unit.
        weights: (V,) interactions of each unit, at least 1.
        config: the partition's settings.
        seed: chooses the first anchors.

    Returns:
        (V,) int16, the shard of every unit.
    """
    unit = Factor(vectors_VD, np.arange(len(vectors_VD)))
    return _settle([unit], weights if config.balance == "interactions" else None, config, seed)


def interaction_based(user: Factor, item: Factor, config: PartitionConfig, seed: int) -> np.ndarray:
    """Algorithm 2, InBP: anchors are pairs (p_a, q_a), E = ||p_u - p_a|| * ||q_v - q_a||.

    Distances are taken once a user and once an item; interactions multiply what they look up.

    Args:
        user: user vectors, and the user of every interaction.
        item: item vectors, and the item of every interaction.
        config: the partition's settings.
        seed: chooses the first anchors.

    Returns:
        (n,) int16, the shard of every interaction.
    """
    return _settle([user, item], None, config, seed)


def product_costs(factors: list[Factor], anchors: list[np.ndarray]) -> Costs:
    """E(unit, anchor), the product of the factors' distances, looked up for the units asked for."""
    first, *others = [(factor.distances(anchor), factor.of_unit) for factor, anchor in zip(factors, anchors, strict=True)]

    def costs(units: np.ndarray) -> np.ndarray:
        table, of_unit = first
        product: np.ndarray = table[of_unit[units]]
        for table, of_unit in others:
            product *= table[of_unit[units]]
        return product

    return costs


def _settle(factors: list[Factor], weights: np.ndarray | None, config: PartitionConfig, seed: int) -> np.ndarray:
    """Assign and move the anchors in turn, until nothing changes or the iterations are used up; (n,) int16."""
    n_units = len(factors[0].of_unit)
    load = n_units if weights is None else int(weights.sum())
    # The paper leaves the capacity open; its code takes 1.2 times the mean: PartitionConfig.slack.
    capacity = capacity_of(config.slack, load, config.n_shards)
    # With fewer units than shards the last shards stay empty.
    n_anchors = min(n_units, config.n_shards)
    chosen = np.random.default_rng(derive(seed, "partition", "anchors")).choice(n_units, n_anchors, replace=False)
    anchors = [factor.vectors[factor.of_unit[chosen]] for factor in factors]
    owners = np.full(n_units, -1, np.int16)
    settled, iteration = False, 0
    while not settled and iteration < config.max_iterations:
        iteration += 1
        costs, previous = product_costs(factors, anchors), owners
        if weights is None:
            owners = deferred_acceptance(costs, n_units, n_anchors, capacity)
        else:
            owners = walk_down(costs(np.arange(n_units)), weights, capacity)
        settled = np.array_equal(previous, owners)
        anchors = [factor.means(owners, anchor) for factor, anchor in zip(factors, anchors, strict=True)]
    log.info(
        "partition learned",
        extra={"kind": config.kind, "shards": config.n_shards, "iterations": iteration, "settled": settled},
    )
    return owners


def walk_down(costs_nK: np.ndarray, weights: np.ndarray, capacity: int) -> np.ndarray:
    """The greedy assignment of weighted units, by definition: sort every cost and walk down. (n,) int16.

    A shard has room for a unit if used + weight <= capacity, so a shard that refuses a heavy unit may take a lighter one later.
    Units that fit nowhere come last, the heaviest first (ties: unit number), each into the emptiest shard (ties: shard number);
    only then is a shard fuller than its capacity.

    Args:
        costs_nK: (n, K).
        weights: (n,) integers.
        capacity: what the weights in one shard may add up to.
    """
    n_units, n_shards = costs_nK.shape
    owners = np.full(n_units, -1, np.int16)
    room = np.full(n_shards, capacity, np.int64)
    # Row after row: a stable sort of the flat costs breaks ties by unit, then by shard.
    order = np.argsort(costs_nK.ravel(), kind="stable")
    for start in range(0, len(order), max(1, n_units)):
        units, shards = np.divmod(order[start : start + n_units], n_shards)
        # Owned stays owned and room only shrinks: what fails here would fail in the walk.
        possible = (owners[units] < 0) & (weights[units] <= room[shards])
        units, shards = units[possible], shards[possible]
        for unit, shard, weight in zip(units.tolist(), shards.tolist(), weights[units].tolist(), strict=True):
            if owners[unit] < 0 and weight <= room[shard]:
                owners[unit] = shard
                room[shard] -= weight
    left = np.flatnonzero(owners < 0)
    for unit in left[np.argsort(-weights[left], kind="stable")]:
        owners[unit] = np.argmax(room)
        room[owners[unit]] -= weights[unit]
    return owners


def deferred_acceptance(costs: Costs, n_units: int, n_shards: int, capacity: int) -> np.ndarray:
    """The greedy assignment of units that weigh 1, in rounds and without sorting n * K costs. (n,) int16.

    Every free unit proposes to the nearest shard that would still take it; a shard with too many keeps its nearest `capacity`
    (ties: unit number), and once full takes only what is nearer than the farthest it keeps. Both sides rank by the same costs,
    so there is one stable matching (Gale and Shapley 1962): the walk's.

    Args:
        costs: of any units, not negative.
        n_units: n, at most K * capacity and less than 2^32.
        n_shards: K.
        capacity: units a shard may own.
    """
    assert n_units <= n_shards * capacity, "a unit that every shard refuses would propose for ever"
    kept = [np.empty(0, np.int64)] * n_shards
    limits = np.full(n_shards, _NO_LIMIT)
    free = np.arange(n_units)
    while len(free):
        proposals = _propose(costs, free, limits)
        refused = [np.empty(0, np.int64)]
        for shard, keys in proposals:
            pool = np.concatenate([kept[shard], keys])
            if len(pool) >= capacity:
                pool.partition(capacity - 1)
                limits[shard] = pool[capacity - 1]
            kept[shard] = pool[:capacity]
            refused.append(pool[capacity:])
        free = np.sort(np.concatenate(refused) & _UNIT)
    owners = np.full(n_units, -1, np.int16)
    for shard, keys in enumerate(kept):
        owners[keys & _UNIT] = shard
    return owners


def _propose(costs: Costs, free: np.ndarray, limits: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The shards that are proposed to, each with its suitors' keys.

    A key is the bits of a cost above those of the unit number. Floats that are not negative order as their bits do, so keys
    rank by cost, then by unit, and no two are equal.
    """
    shards, keys = np.empty(len(free), np.int16), np.empty(len(free), np.int64)
    block = max(1, _BLOCK // len(limits))
    for start in range(0, len(free), block):
        units = free[start : start + block]
        keys_mK = costs(units).view(np.int32).astype(np.int64)
        keys_mK <<= 32
        keys_mK |= units[:, None]
        keys_mK[keys_mK >= limits] = _NO_LIMIT
        nearest = keys_mK.argmin(axis=1)  # the first of equals: ties go to the lower shard
        shards[start : start + block] = nearest
        keys[start : start + block] = keys_mK[np.arange(len(units)), nearest]
    order = np.argsort(shards, kind="stable")
    present, starts = np.unique(shards[order], return_index=True)
    return list(zip(present.tolist(), np.split(keys[order], starts[1:]), strict=True))


def unit_weights(rows: np.ndarray, config: PartitionConfig) -> np.ndarray:
    """What each whole user (or item) takes of a capacity: its interactions, or 1 where `units` are balanced. `rows`: (n,)."""
    counts = np.bincount(rows)
    return counts if config.balance == "interactions" else np.ones_like(counts)


def vectors_of(rows: np.ndarray, table: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The vectors of rows, float64."""
    positions = np.searchsorted(rows, wanted)
    assert np.array_equal(rows.take(positions, mode="clip"), wanted), "the embeddings do not cover all that is to be divided"
    return np.asarray(table[positions], np.float64)
