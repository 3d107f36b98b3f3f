"""GraphEraser's balanced partitions of a log's users (Chen et al., CCS 2022, "Graph Unlearning").

n users, K shards, I items.

GraphEraser divides the nodes of a graph. In the graph of users and items an item's node cannot be in one shard without taking
its interactions from their users, or losing them. So users are what is divided, each whole in one shard, as RecEraser's paper
has it where it compares with GraphEraser. An edge of our graph joins users with items in common.
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

_BLOCK = 1 << 22  # similarities held at a time


def label_propagation(interactions: Interactions, config: PartitionConfig, seed: int) -> Partition:
    """BLPA: users take the label that most of the users like them have, as far as there is room. Needs no embeddings.

    The paper counts a shard's nodes; by default we count their interactions, since those are what training costs and what an
    erasure trains again.

    Args:
        interactions: what is divided.
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

    RecEraser's user-based algorithm grew out of it: the same greedy assignment, the same anchors, begun at random users. What
    differs is the capacity and the number of rounds, which `config` has by its kind.

    Args:
        interactions: what is divided.
        embeddings: of the whole log; cover every user of `interactions`, and may cover more. The paper takes them from a graph
            network; ours are the factorisation's that all learned partitions here are made from.
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
    """Who is like whom: an edge where one is among the other's most similar users, (n, n) int32, symmetric, no loops.

    Similarity is the cosine of the two users' item sets, common / sqrt(degree degree'); ties go to the lower user. Users
    without a common item are never joined.

    Args:
        matrix_nI: ones where a user has an item.
        n_neighbours: the most similar users that each user chooses; others may choose it too.
    """
    n_users = matrix_nI.shape[0]
    degrees = np.diff(matrix_nI.indptr)
    # Of one user, cosines order as common^2 / degree' does: whole numbers divided once, so that equals are equal.
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
    """The users with the highest keys, at most `n_wanted`; ties go to the lower user, and a key of zero is none."""
    users, keys = users[keys > 0], keys[keys > 0]
    if len(users) <= n_wanted:
        return users
    limit = np.partition(keys, -n_wanted)[-n_wanted]
    above, level = users[keys > limit], users[keys == limit]
    return np.concatenate([above, np.sort(level)[: n_wanted - len(above)]])


def dealt_out(weights: np.ndarray, n_shards: int, seed: int) -> np.ndarray:
    """A random balanced labelling, (n,) int16: users in random order, each to the emptiest shard (ties: the lowest).

    No shard is fuller than the mean by more than one user.
    """
    labels = np.empty(len(weights), np.int16)
    shards = [(0, shard) for shard in range(n_shards)]
    for user in np.random.default_rng(seed).permutation(len(weights)):
        load, shard = shards[0]
        labels[user] = shard
        heapq.heapreplace(shards, (load + int(weights[user]), shard))
    return labels


def propagate(graph: sparse.csr_matrix, labels: np.ndarray, weights: np.ndarray, capacity: int, n_shards: int) -> np.ndarray:
    """One round of BLPA, algorithm 1 of the paper: the labels after it, (n,) int16.

    Each user wishes the label that most neighbours have; its gain is their number. Users are visited by descending gain (ties:
    user number). One who wishes another label moves if that shard has room, else joins the queue for it. A move out admits the
    head of the queue for the shard that was left, which may admit another in turn.

    The authors' code admits the whole queue once one user has left, so that shards outgrow their capacity, and sends users
    without neighbours to shard 0; here they stay.

    Args:
        graph: (n, n) neighbours, symmetric.
        labels: (n,) int16, at the beginning of the round.
        weights: (n,) integers, what a user takes of its shard's capacity.
        capacity: what the weights in one shard may add up to; a shard that is fuller already takes nobody.
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
        """The shard that was left."""
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
            # Where users weigh the same this admits one; where they do not, as many as fit.
            while queues[freed] and sizes[queues[freed][0]] <= room[freed]:
                left.append(move(queues[freed].popleft()))
    return moved


def _wishes(graph: sparse.csr_matrix, labels: np.ndarray, n_shards: int) -> tuple[np.ndarray, np.ndarray]:
    """The label that most neighbours of each user have, and how many have it, (n,) each.

    Ties: the own label, so that labels can come to rest; else the next one upwards, cyclically. The code of the paper draws
    among equals; the lowest would favour shard 0, to which almost all tie at first.
    """
    n_users = len(labels)
    one_hot_nK = sparse.csr_matrix((np.ones(n_users, np.int64), labels, np.arange(n_users + 1)), shape=(n_users, n_shards))
    counts_nK = graph @ one_hot_nK
    lengths = np.diff(counts_nK.indptr)
    steps = (counts_nK.indices - np.repeat(labels, lengths)) % n_shards
    # One number ranks by count, then by the fewest steps upwards; a user without neighbours keeps its label with gain 0.
    keys = counts_nK.data * n_shards + (n_shards - 1 - steps)
    best = np.full(n_users, n_shards - 1)
    best[lengths > 0] = np.maximum.reduceat(keys, counts_nK.indptr[:-1][lengths > 0]) if len(keys) else 0
    gains, fewest = np.divmod(best, n_shards)
    return (labels + n_shards - 1 - fewest) % n_shards, gains
