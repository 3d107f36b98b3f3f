"""Balanced partitions learned from embeddings: RecEraser's algorithms 1 and 2 (Chen et al. 2022, "Recommendation Unlearning").

n units (users, items or interactions), K shards, D embedding width, V vectors.

All kinds use one greedy assignment: go through all unit-anchor costs in ascending order (ties: unit number, then shard number),
and assign each free unit to the anchor's shard if that has room. `walk_down` does exactly this. `deferred_acceptance` gives the
same result without the sort, but only if all units have the same weight. With different weights, a shard could refuse a light
unit for a nearer heavy one, and then replace the heavy one by a still nearer unit, so that the light one would have fit.
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
"""A function from unit numbers (m,) to their costs (m, K), float32 and not negative."""

_BLOCK = 1 << 19  # number of costs in memory at once; they fit in a core's cache, which is fastest
_NO_LIMIT = np.iinfo(np.int64).max
_UNIT = np.int64(0xFFFFFFFF)


@dataclass(frozen=True, eq=False)
class Factor:
    """One factor of the cost E(unit, anchor): the distance between the anchor and one vector of the unit.

    Attributes:
        vectors: (V, D) float64.
        of_unit: (n,) integers, the index of each unit's vector.
    """

    vectors: np.ndarray
    of_unit: np.ndarray

    def distances(self, anchors_KD: np.ndarray) -> np.ndarray:
        """Euclidean distances, (V, K) float32."""
        # Not computed from inner products, because BLAS would make the bits depend on its thread count.
        return np.asarray(cdist(self.vectors, anchors_KD), np.float32)

    def means(self, owners: np.ndarray, anchors_KD: np.ndarray) -> np.ndarray:
        """Mean vector of the units that each shard owns, (K, D) float64; a shard without units keeps its anchor."""
        shape = (len(anchors_KD), len(self.vectors))
        members_KV = sparse.csr_matrix((np.ones(len(owners)), (owners, self.of_unit)), shape=shape)
        sizes_K1 = np.bincount(owners, minlength=len(anchors_KD))[:, None]
        # The mean of each dimension, as in the paper's equations. The authors' code takes one mean over members and dimensions.
        return np.where(sizes_K1 > 0, (members_KV @ self.vectors) / np.maximum(sizes_K1, 1), anchors_KD)


def balanced(interactions: Interactions, embeddings: Embeddings, config: PartitionConfig, seed: int) -> Partition:
    """Assign units to near anchors, and keep every shard within its capacity.

    Args:
        interactions: the interactions to divide.
        embeddings: embeddings of the whole log. They must cover every user and item of `interactions`.
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

    The paper limits the number of units in a shard. Our default limits their interactions, because these determine the cost of
    training and of erasures. In both cases an anchor is the mean of its units, each counted once.

    Args:
        vectors_VD: (V, D) float64, one per unit.
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

    Distances are computed once per user and once per item. The cost of an interaction is the product of two of them.

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
    """Make the cost function E(unit, anchor): the product of the factors' distances."""
    first, *others = [(factor.distances(anchor), factor.of_unit) for factor, anchor in zip(factors, anchors, strict=True)]

    def costs(units: np.ndarray) -> np.ndarray:
        table, of_unit = first
        product: np.ndarray = table[of_unit[units]]
        for table, of_unit in others:
            product *= table[of_unit[units]]
        return product

    return costs


def _settle(factors: list[Factor], weights: np.ndarray | None, config: PartitionConfig, seed: int) -> np.ndarray:
    """Assign units and move anchors in turn, until nothing changes or `max_iterations` is reached; (n,) int16."""
    n_units = len(factors[0].of_unit)
    load = n_units if weights is None else int(weights.sum())
    # The paper leaves the capacity open; its code takes 1.2 times the mean: PartitionConfig.slack.
    capacity = capacity_of(config.slack, load, config.n_shards)
    # With fewer units than shards, the last shards stay empty.
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
    """The greedy assignment of weighted units by its definition: sort all costs and walk down. (n,) int16.

    A shard has room for a unit if used + weight <= capacity, so a shard that refuses a heavy unit may accept a lighter one
    later. Units that fit nowhere are assigned last, the heaviest first (ties: unit number), each to the emptiest shard (ties:
    shard number). Only these units can push a shard over its capacity.

    Args:
        costs_nK: (n, K).
        weights: (n,) integers.
        capacity: the maximum total weight in one shard.
    """
    n_units, n_shards = costs_nK.shape
    owners = np.full(n_units, -1, np.int16)
    room = np.full(n_shards, capacity, np.int64)
    # The costs are flattened row by row, so a stable sort breaks ties by unit, then by shard.
    order = np.argsort(costs_nK.ravel(), kind="stable")
    for start in range(0, len(order), max(1, n_units)):
        units, shards = np.divmod(order[start : start + n_units], n_shards)
        # Assignments are final and room only shrinks, so a unit that fails here would also fail in the walk below.
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
    """The greedy assignment of units of weight 1, in rounds and without sorting n * K costs. (n,) int16.

    Every free unit proposes to the nearest shard that would still accept it. A shard with too many units keeps the nearest
    `capacity` of them (ties: unit number). A full shard accepts only units nearer than its farthest one. Both sides rank by the
    same costs, so there is only one stable matching (Gale and Shapley 1962), and it equals the result of `walk_down`.

    Args:
        costs: the cost function; costs are not negative.
        n_units: n, at most K * capacity and less than 2^32.
        n_shards: K.
        capacity: the maximum number of units in a shard.
    """
    assert n_units <= n_shards * capacity, "a unit that every shard refuses would propose forever"
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
    """The shards that receive proposals, each with the keys of the proposing units.

    A key holds the bits of a cost above the bits of the unit number. The bits of non-negative floats sort like the floats, so
    keys sort by cost, then by unit, and no two are equal.
    """
    shards, keys = np.empty(len(free), np.int16), np.empty(len(free), np.int64)
    block = max(1, _BLOCK // len(limits))
    for start in range(0, len(free), block):
        units = free[start : start + block]
        keys_mK = costs(units).view(np.int32).astype(np.int64)
        keys_mK <<= 32
        keys_mK |= units[:, None]
        keys_mK[keys_mK >= limits] = _NO_LIMIT
        nearest = keys_mK.argmin(axis=1)  # the first minimum, so ties go to the lower shard
        shards[start : start + block] = nearest
        keys[start : start + block] = keys_mK[np.arange(len(units)), nearest]
    order = np.argsort(shards, kind="stable")
    present, starts = np.unique(shards[order], return_index=True)
    return list(zip(present.tolist(), np.split(keys[order], starts[1:]), strict=True))


def unit_weights(rows: np.ndarray, config: PartitionConfig) -> np.ndarray:
    """The load of each whole user (or item): its number of interactions, or 1 if `balance` is `units`. `rows`: (n,)."""
    counts = np.bincount(rows)
    return counts if config.balance == "interactions" else np.ones_like(counts)


def vectors_of(rows: np.ndarray, table: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The vectors of the wanted rows, float64."""
    positions = np.searchsorted(rows, wanted)
    assert np.array_equal(rows.take(positions, mode="clip"), wanted), "the embeddings must cover all users and items to divide"
    return np.asarray(table[positions], np.float64)
