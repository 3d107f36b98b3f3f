"""UltraRE's balanced clustering of users by optimal transport (Li et al., NeurIPS 2023).

n users, K shards, D embedding width.
"""

from __future__ import annotations

import logging
import math

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist

from ray_eraser.config import PartitionConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.partition.assignment import Partition, capacity_of
from ray_eraser.partition.balanced import unit_weights, vectors_of, walk_down
from ray_eraser.seeds import derive

log = logging.getLogger(__name__)

_TOLERANCE = 1e-4  # share of the mass that may be in the wrong column; rounding repairs it
_ON_THE_WAY = 1e-2  # the tolerance at a larger eps, whose prices are only the start for the next eps
_MAX_STEPS = 2000  # maximum number of Sinkhorn steps at one eps


def transport(interactions: Interactions, embeddings: Embeddings, config: PartitionConfig, seed: int) -> Partition:
    """Transport users to anchors at the least squared distance, with an equal load for each anchor; move the anchors; repeat.

    The load of a user depends on `balance`; by default it is the number of interactions. A transport plan may divide a user
    over several anchors. The whole user then goes to the anchor with the largest share; see `rounded`.

    Args:
        interactions: the interactions to divide.
        embeddings: embeddings of the whole log. They must cover every user of `interactions`.
        config: `entropy`, `slack`, `balance` and `max_iterations` are used.
        seed: chooses the first anchors.
    """
    if len(interactions) == 0:
        return Partition(config.n_shards, np.empty(0, np.int16))
    compact = interactions.compact()
    users = compact.interactions.users
    users_nD = vectors_of(embeddings.user_rows, embeddings.users, compact.user_rows)
    weights = unit_weights(users, config)
    capacity = capacity_of(config.slack, int(weights.sum()), config.n_shards)
    # With fewer users than shards, the last shards stay empty.
    n_anchors = min(len(users_nD), config.n_shards)
    mass, columns = weights / weights.sum(), np.full(n_anchors, 1 / n_anchors)
    generator = np.random.default_rng(derive(seed, "partition", "anchors"))
    anchors_KD = users_nD[generator.choice(len(mass), n_anchors, replace=False)]
    owners = np.full(len(mass), -1, np.int16)
    settled, iteration = False, 0
    while not settled and iteration < config.max_iterations:
        iteration += 1
        # Not computed from inner products, because BLAS would make the bits depend on its thread count.
        costs_nK, previous = cdist(users_nD, anchors_KD, "sqeuclidean"), owners
        # If all users are equal, all costs are zero, and any positive eps will do.
        eps = config.entropy * (float(costs_nK.mean()) or 1.0)
        prices = sinkhorn(costs_nK, mass, columns, eps)
        owners = rounded(costs_nK - prices, weights, capacity)
        settled = np.array_equal(previous, owners)
        anchors_KD = _weighted_means(users_nD, weights, owners, anchors_KD)
    log.info(
        "partition learned",
        extra={"kind": config.kind, "shards": config.n_shards, "iterations": iteration, "settled": settled},
    )
    return Partition(config.n_shards, owners[users])


def sinkhorn(
    costs_nK: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    eps: float,
    tolerance: float = _TOLERANCE,
    max_steps: int = _MAX_STEPS,
) -> np.ndarray:
    """The column prices (K,) of the plan pi that minimises sum pi C - eps H(pi) with the given marginals.

    Sinkhorn's iterations on logarithms, so that no eps is too small for the exponential. The row potentials follow from the
    prices, so a plan always has the right row sums; see `log_plan`. Eps starts at the largest cost and is halved repeatedly: a
    step moves a price by about eps, so a small eps alone would need many steps.

    Args:
        costs_nK: C.
        rows: (n,) the mass of each row, positive, with sum 1.
        columns: (K,) the mass of each column, positive, with sum 1.
        eps: the weight of the entropy, positive.
        tolerance: the maximum mass in wrong columns.
        max_steps: the maximum number of steps at each eps. If they do not suffice, the prices reached so far are used.
    """
    prices, log_columns = np.zeros(len(columns)), np.log(columns)
    halvings = max(0, math.ceil(math.log2(costs_nK.max() / eps))) if costs_nK.any() else 0
    for step_eps in eps * 2.0 ** np.arange(halvings, -1, -1):
        near = tolerance if step_eps == eps else max(tolerance, _ON_THE_WAY)
        for _ in range(max_steps):
            log_carried = _log_sums(log_plan(costs_nK, rows, prices, step_eps), axis=0)
            if np.abs(np.exp(log_carried) - columns).sum() <= near:
                break
            prices = prices + step_eps * (log_columns - log_carried)
    return prices


def log_plan(costs_nK: np.ndarray, rows: np.ndarray, prices: np.ndarray, eps: float) -> np.ndarray:
    """Logarithms of the plan with these prices, (n, K): each row's mass times the softmax of (price - cost) / eps."""
    logits_nK: np.ndarray = (prices - costs_nK) / eps
    logits_nK += np.log(rows)[:, None] - _log_sums(logits_nK, axis=1)[:, None]
    return logits_nK


def _log_sums(logs: np.ndarray, axis: int) -> np.ndarray:
    highest = logs.max(axis=axis, keepdims=True)
    return np.asarray(np.log(np.exp(logs - highest).sum(axis=axis)) + highest.squeeze(axis))


def rounded(net_costs_nK: np.ndarray, weights: np.ndarray, capacity: int) -> np.ndarray:
    """Assign whole users to the shard with their largest share, and repair shards that are too full; (n,) int16.

    For every eps, the largest share of a user goes to the shard with the least cost minus price. Users are assigned in the
    order of how much the next best shard would cost them more, the largest difference first, so that nearly indifferent users
    give way. A user whose shard is full goes on to the next best. `walk_down` does this for the costs relative to the best
    other shard, which are negative only for the best shard.

    Args:
        net_costs_nK: cost minus price.
        weights: (n,) integers.
        capacity: the maximum total weight in one shard. See `walk_down` for users that fit nowhere.
    """
    n_units, n_shards = net_costs_nK.shape
    if n_shards == 1:
        return np.zeros(n_units, np.int16)
    best, second = np.partition(net_costs_nK, 1)[:, :2].T
    is_best = np.arange(n_shards) == net_costs_nK.argmin(axis=1)[:, None]
    return walk_down(net_costs_nK - np.where(is_best, second[:, None], best[:, None]), weights, capacity)


def _weighted_means(users_nD: np.ndarray, weights: np.ndarray, owners: np.ndarray, anchors_KD: np.ndarray) -> np.ndarray:
    """The weighted mean vector of each shard's users, (K, D); a shard without users keeps its anchor."""
    shape = (len(anchors_KD), len(owners))
    members_Kn = sparse.csr_matrix((weights.astype(np.float64), (owners, np.arange(len(owners)))), shape)
    loads_K1 = np.bincount(owners, weights, minlength=len(anchors_KD))[:, None]
    return np.where(loads_K1 > 0, (members_Kn @ users_nD) / np.maximum(loads_K1, 1), anchors_KD)
