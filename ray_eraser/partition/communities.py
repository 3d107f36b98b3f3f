"""GraphEraser's balanced partitions of a log's users (Chen et al., CCS 2022, "Graph Unlearning").

n users, K shards, I items.

GraphEraser divides the nodes of a graph. In a user-item graph, an item's node cannot be in one shard without separating its
interactions from their users, or losing them. We therefore divide users, each whole in one shard, as the RecEraser paper does
in its comparison with GraphEraser. An edge of our graph joins two users with items in common.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque

import numpy as np
from scipy import sparse

from ray_eraser.config import PartitionConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.partition.assignment import Partition, capacity_of
from ray_eraser.partition.balanced import unit_weights, vectors_of, whole_units
from ray_eraser.seeds import derive

log = logging.getLogger(__name__)

_BLOCK = 1 << 22  # number of similarities in memory at once


def label_propagation(interactions: Interactions, config: PartitionConfig, seed: int) -> Partition:
    """BLPA: each user takes the most frequent label of its similar users, if that shard has room. It needs no embeddings.

    The paper limits the number of nodes in a shard. Our default limits their interactions, because these determine the cost of
    training and of erasures.

    Args:
        interactions: the interactions to divide.
        config: `neighbours`, `slack`, `balance` and `max_iterations` are used.
        seed: chooses the first labels.
    """
    if len(interactions) == 0:
        return Partition(config.n_shards, np.empty(0, np.int16))
    compact = interactions.compact()
    users = compact.interactions.users
    weights = unit_weights(users, config)
    capacity = capacity_of(config.slack, int(weights.sum()), config.n_shards)
    graph = similarity_graph(compact.matrix(), config.neighbours)
    labels = dealt_out(weights, config.n_shards, derive(seed, "partition", "labels"))
    settled, iteration = False, 0
    while not settled and iteration < config.max_iterations:
        iteration += 1
        previous = labels
        labels = propagate(graph, previous, weights, capacity, config.n_shards)
        settled = np.array_equal(previous, labels)
    log.info(
        "partition learned",
        extra={"kind": config.kind, "shards": config.n_shards, "iterations": iteration, "settled": settled},
    )
    return Partition(config.n_shards, labels[users])


def embedding_kmeans(interactions: Interactions, embeddings: Embeddings, config: PartitionConfig, seed: int) -> Partition:
    """BEKM: balanced k-means on the users' vectors.

    RecEraser's user-based algorithm is derived from it. Both use the same greedy assignment and anchors that start at random
    users. They differ in the capacity and the number of rounds, which `config` sets by its kind.

    Args:
        interactions: the interactions to divide.
        embeddings: embeddings of the whole log. They must cover every user of `interactions`. The paper takes them from a graph
            network; ours come from the factorisation that all learned partitions here use.
        config: `slack`, `balance` and `max_iterations` are used.
        seed: chooses the first anchors.
    """
    if len(interactions) == 0:
        return Partition(config.n_shards, np.empty(0, np.int16))
    compact = interactions.compact()
    users = compact.interactions.users
    users_nD = vectors_of(embeddings.user_rows, embeddings.users, compact.user_rows)
    return Partition(config.n_shards, whole_units(users_nD, np.bincount(users), config, seed)[users])


def similarity_graph(matrix_nI: sparse.csr_matrix, n_neighbours: int) -> sparse.csr_matrix:
    """The graph of similar users, (n, n) int32, symmetric, without loops.

    An edge joins two users if one is among the most similar users of the other. Similarity is the cosine of the two users' item
    sets, common / sqrt(degree degree'); ties go to the lower user. Users without a common item are never joined.

    Args:
        matrix_nI: ones where a user has an item.
        n_neighbours: the number of similar users that each user chooses. More users may choose it.
    """
    n_users = matrix_nI.shape[0]
    degrees = np.diff(matrix_nI.indptr)
    # For one user, common^2 / degree' sorts like the cosine. It divides whole numbers once, so equal values stay equal.
    transposed_In = matrix_nI.T.tocsr()
    chosen: list[np.ndarray] = []
    block = max(1, _BLOCK // max(1, n_users))
    for start in range(0, n_users, block):
        common = matrix_nI[start : start + block] @ transposed_In
        keys = common.data.astype(np.float64) ** 2 / degrees[common.indices]
        keys[common.indices == start + np.repeat(np.arange(common.shape[0]), np.diff(common.indptr))] = 0
        for first, end in zip(common.indptr[:-1], common.indptr[1:], strict=True):
            chosen.append(_highest(common.indices[first:end], keys[first:end], n_neighbours))
    starts = np.concatenate([[0], np.cumsum([len(users) for users in chosen])])
    others = np.concatenate([np.empty(0, np.int32), *chosen])
    nearest = sparse.csr_matrix((np.ones(len(others), np.int32), others, starts), shape=(n_users, n_users))
    graph = (nearest + nearest.T).tocsr()
    graph.data[:] = 1
    return graph


def _highest(users: np.ndarray, keys: np.ndarray, n_wanted: int) -> np.ndarray:
    """At most `n_wanted` users with the highest keys above zero; ties go to the lower user."""
    users, keys = users[keys > 0], keys[keys > 0]
    if len(users) <= n_wanted:
        return users
    limit = np.partition(keys, -n_wanted)[-n_wanted]
    above, level = users[keys > limit], users[keys == limit]
    return np.concatenate([above, np.sort(level)[: n_wanted - len(above)]])


def dealt_out(weights: np.ndarray, n_shards: int, seed: int) -> np.ndarray:
    """A random balanced labelling, (n,) int16: users in random order, each to the emptiest shard (ties: the lowest shard).

    No shard exceeds the mean load by more than one user.
    """
    labels = np.empty(len(weights), np.int16)
    shards = [(0, shard) for shard in range(n_shards)]
    for user in np.random.default_rng(seed).permutation(len(weights)):
        load, shard = shards[0]
        labels[user] = shard
        heapq.heapreplace(shards, (load + int(weights[user]), shard))
    return labels


def propagate(graph: sparse.csr_matrix, labels: np.ndarray, weights: np.ndarray, capacity: int, n_shards: int) -> np.ndarray:
    """The labels after one round of BLPA, (n,) int16. Algorithm 1 of the paper.

    Each user wishes for the most frequent label among its neighbours, and its gain is the number of neighbours with that label.
    Users are visited by descending gain (ties: user number). A user who wishes for another label moves if that shard has room,
    and joins the shard's queue otherwise. When a user leaves a shard, the head of that shard's queue moves in, which may let
    another user move in turn.

    The authors' code admits the whole queue after one user has left, so shards exceed their capacity. It also sends users
    without neighbours to shard 0; here they stay.

    Args:
        graph: (n, n) neighbours, symmetric.
        labels: (n,) int16, at the start of the round.
        weights: (n,) integers, the load of each user.
        capacity: the maximum total weight in one shard. A shard that already exceeds it accepts no user.
        n_shards: K.
    """
    wishes, gains = _wishes(graph, labels, n_shards)
    movers = np.flatnonzero(wishes != labels)
    movers = movers[np.argsort(-gains[movers], kind="stable")]

    used = np.zeros(n_shards, np.int64)
    np.add.at(used, labels, weights)
    room, moved = (capacity - used).tolist(), labels.copy()
    targets: dict[int, int] = dict(zip(movers.tolist(), wishes[movers].tolist(), strict=True))
    queues: list[deque[int]] = [deque() for _ in range(n_shards)]
    sources: list[int] = labels.tolist()
    sizes: list[int] = weights.tolist()

    def move(user: int) -> int:
        """Move a user to its target, and return the shard that it left."""
        room[targets[user]] -= sizes[user]
        room[sources[user]] += sizes[user]
        moved[user] = targets[user]
        return sources[user]

    for user, shard in targets.items():
        if sizes[user] > room[shard]:
            queues[shard].append(user)
            continue
        left = deque([move(user)])
        while left:
            freed = left.popleft()
            # This admits one user if all weights are equal, and otherwise as many as fit.
            while queues[freed] and sizes[queues[freed][0]] <= room[freed]:
                left.append(move(queues[freed].popleft()))
    return moved


def _wishes(graph: sparse.csr_matrix, labels: np.ndarray, n_shards: int) -> tuple[np.ndarray, np.ndarray]:
    """The most frequent label among each user's neighbours, and the number of neighbours with it, (n,) each.

    In a tie, a user keeps its own label if it can, so that labels can settle, and otherwise takes the next higher one,
    cyclically. The paper's code draws at random. The lowest label would favour shard 0, because almost all labels tie at first.
    """
    n_users = len(labels)
    one_hot_nK = sparse.csr_matrix((np.ones(n_users, np.int64), labels, np.arange(n_users + 1)), shape=(n_users, n_shards))
    counts_nK = graph @ one_hot_nK
    lengths = np.diff(counts_nK.indptr)
    steps = (counts_nK.indices - np.repeat(labels, lengths)) % n_shards
    # Keys sort by count, then by the fewest steps upwards. A user without neighbours keeps its label with gain 0.
    keys = counts_nK.data * n_shards + (n_shards - 1 - steps)
    best = np.full(n_users, n_shards - 1)
    best[lengths > 0] = np.maximum.reduceat(keys, counts_nK.indptr[:-1][lengths > 0]) if len(keys) else 0
    gains, fewest = np.divmod(best, n_shards)
    return (labels + n_shards - 1 - fewest) % n_shards, gains
