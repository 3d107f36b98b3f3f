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

_TOLERANCE = 1e-4  # mass in the wrong column, of 1: what is repaired afterwards anyway
_ON_THE_WAY = 1e-2  # the same at a larger eps, whose prices are but where the next begins
_MAX_STEPS = 2000  # of Sinkhorn, at one eps


def transport(interactions: Interactions, embeddings: Embeddings, config: PartitionConfig, seed: int) -> Partition:
    """Carry the users to anchors at the least squared distance, an equal load to each; then move the anchors, in turn.

    A user weighs what it takes of a capacity (`balance`): by default its interactions, so that those are what is balanced. The
    plan may divide a user; whole users go where most of them is carried, see `rounded`.

    Args:
        interactions: what is divided.
        embeddings: of the whole log; cover every user of `interactions`, and may cover more.
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
    # With fewer users than shards the last shards stay empty.
    n_anchors = min(len(users_nD), config.n_shards)
    mass, columns = weights / weights.sum(), np.full(n_anchors, 1 / n_anchors)
    generator = np.random.default_rng(derive(seed, "partition", "anchors"))
    anchors_KD = users_nD[generator.choice(len(mass), n_anchors, replace=False)]
    owners = np.full(len(mass), -1, np.int16)
    settled, iteration = False, 0
    while not settled and iteration < config.max_iterations:
        iteration += 1
        # Not from inner products: BLAS would bring its thread count into the bits.
        costs_nK, previous = cdist(users_nD, anchors_KD, "sqeuclidean"), owners
        # Where all users are alike, any plan is the cheapest and eps is of no account.
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
    """The plan pi that minimises sum pi C - eps H(pi) with the given marginals, as the price of each column, (K,).

    Sinkhorn's iterations on logarithms, where no eps is too small for the exponential. The rows' potentials follow from the
    prices, so that a plan's rows always hold, see `log_plan`. Eps comes down by halves from the largest cost: a step moves a
    price by some eps, so that a small one would take long to come from afar.

    Args:
        costs_nK: C.
        rows: (n,) what each row carries, positive; they sum to 1.
        columns: (K,) what each column takes, positive; they sum to 1.
        eps: weight of the entropy, positive.
        tolerance: how much mass may end in the wrong columns.
        max_steps: at each eps; where they do not suffice, the prices are what has been reached.
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
    """Logarithms of the plan with these prices, (n, K): each row's mass by the softmax of (price - cost) / eps."""
    logits_nK: np.ndarray = (prices - costs_nK) / eps
    logits_nK += np.log(rows)[:, None] - _log_sums(logits_nK, axis=1)[:, None]
    return logits_nK


def _log_sums(logs: np.ndarray, axis: int) -> np.ndarray:
    highest = logs.max(axis=axis, keepdims=True)
    return np.asarray(np.log(np.exp(logs - highest).sum(axis=axis)) + highest.squeeze(axis))


def rounded(net_costs_nK: np.ndarray, weights: np.ndarray, capacity: int) -> np.ndarray:
    """Whole users where most of each is carried, and where that is more than fits, repaired; (n,) int16.

    Most of a user goes where cost less price is least, whatever eps is. Users are taken in the order of what any other shard
    would cost them more, so that those who are nearly indifferent give way. A user that finds its shard full goes on to the
    next. `walk_down` does this, with the cost of a shard over the best of the others, which is negative for the best alone.

    Args:
        net_costs_nK: cost less price.
        weights: (n,) integers.
        capacity: what the weights in one shard may add up to; see `walk_down` for what fits nowhere.
    """
    n_units, n_shards = net_costs_nK.shape
    if n_shards == 1:
        return np.zeros(n_units, np.int16)
    best, second = np.partition(net_costs_nK, 1)[:, :2].T
    is_best = np.arange(n_shards) == net_costs_nK.argmin(axis=1)[:, None]
    return walk_down(net_costs_nK - np.where(is_best, second[:, None], best[:, None]), weights, capacity)


def _weighted_means(users_nD: np.ndarray, weights: np.ndarray, owners: np.ndarray, anchors_KD: np.ndarray) -> np.ndarray:
    """Mean vector of each shard's users by weight, (K, D); a shard without users keeps its anchor."""
    shape = (len(anchors_KD), len(owners))
    members_Kn = sparse.csr_matrix((weights.astype(np.float64), (owners, np.arange(len(owners)))), shape)
    loads_K1 = np.bincount(owners, weights, minlength=len(anchors_KD))[:, None]
    return np.where(loads_K1 > 0, (members_Kn @ users_nD) / np.maximum(loads_K1, 1), anchors_KD)
