"""GraphEraser's partitions: a round computed by hand, the fast code against its definition, and the capacities."""

import logging
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from ray_eraser.config import PartitionConfig, config_from
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import ConfigError
from ray_eraser.partition import communities
from ray_eraser.partition.balanced import balanced

pairs = st.sets(st.tuples(st.integers(0, 13), st.integers(0, 7)), max_size=50)


def log_of(pairs) -> Interactions:
    users, items = np.array(sorted(pairs), np.int32).reshape(-1, 2).T
    return Interactions.of(users, items)


def blpa(n_shards, **settings) -> PartitionConfig:
    return PartitionConfig(kind="label_propagation", n_shards=n_shards, **settings)


def groups(n_groups, size, n_items) -> Interactions:
    """Groups of users, each with its own items. Users 0, 1, 2, ... belong to groups 0, 1, 2, ..., 0, 1, ... in turn."""
    generator = np.random.default_rng(9)
    return log_of(
        {
            (user, user % n_groups * n_items + int(item))
            for user in range(n_groups * size)
            for item in generator.choice(n_items, n_items // 2, replace=False)
        }
    )


def shards_of_users(log, partition) -> dict[int, set[int]]:
    return {user: set(partition.owners[log.users == user].tolist()) for user in log.user_rows().tolist()}


def round_of(graph, labels, capacity, n_shards, weights=None) -> list[int]:
    """One round, with labels and weights as lists."""
    weights = np.ones(len(labels), np.int64) if weights is None else np.array(weights, np.int64)
    moved = communities.propagate(sparse.csr_matrix(graph), np.array(labels, np.int16), weights, capacity, n_shards)
    assert moved.dtype == np.int16
    return moved.tolist()


def naive_round(graph, labels, weights, capacity, n_shards) -> list[int]:
    """A round of BLPA as the paper defines it, user by user."""
    wanted = []
    for user, row in enumerate(graph):
        counts = Counter(dict.fromkeys(range(n_shards), 0))
        for other, n_edges in enumerate(row):
            counts[labels[other]] += n_edges
        upwards = [(labels[user] + step) % n_shards for step in range(n_shards)]
        wish = max(upwards, key=lambda shard: counts[shard])  # the first of equals
        wanted.append((-counts[wish], user, wish))
    now, queues = list(labels), {shard: [] for shard in range(n_shards)}

    def load(shard) -> int:
        return sum(weight for label, weight in zip(now, weights, strict=True) if label == shard)

    for _, user, wish in sorted(wanted):
        if wish == labels[user]:
            continue
        queues[wish].append(user)
        admitting = [] if load(wish) + weights[user] > capacity else [(wish, [user])]
        if admitting:
            queues[wish].remove(user)
            freed, now[user] = [labels[user]], wish
            while freed:
                shard = freed.pop(0)
                while queues[shard] and load(shard) + weights[queues[shard][0]] <= capacity:
                    follower = queues[shard].pop(0)
                    freed.append(labels[follower])
                    now[follower] = shard
    return now


def naive_graph(log, n_neighbours) -> list[list[int]]:
    """Cosines squared as fractions, so that nothing is rounded."""
    compact = log.compact()
    items = [
        set(compact.interactions.items[compact.interactions.users == user].tolist()) for user in range(len(compact.user_rows))
    ]
    graph = [[0] * len(items) for _ in items]
    for user, mine in enumerate(items):
        alike = [
            (-Fraction(len(mine & theirs) ** 2, len(mine) * len(theirs)), other)
            for other, theirs in enumerate(items)
            if other != user and mine & theirs
        ]
        for _, other in sorted(alike)[:n_neighbours]:
            graph[user][other] = graph[other][user] = 1
    return graph


# One round.

TRIANGLES = np.kron(np.eye(2, dtype=np.int64), np.ones((3, 3), np.int64) - np.eye(3, dtype=np.int64))


def test_a_round_by_hand():
    """Two triangles, {0, 1, 2} and {3, 4, 5}. Users 2 and 5 start in the other triangle's shard, so each shard has three users.

    0 and 1 have a neighbour in each shard and keep their label, as do 3 and 4. 2 wishes for shard 0 and 5 for shard 1, with
    gain 2 each. With room for four, 2 moves first, then 5.
    """
    assert round_of(TRIANGLES, [0, 0, 1, 1, 1, 0], 4, 2) == [0, 0, 0, 1, 1, 1]


def test_two_users_who_want_to_swap_wait_for_each_other_if_both_shards_are_full():
    assert round_of(TRIANGLES, [0, 0, 1, 1, 1, 0], 3, 2) == [0, 0, 1, 1, 1, 0]


def test_a_move_out_admits_the_head_of_the_queue_which_admits_the_next():
    """Three shards with room for two: {0, 1}, {2, 3}, {4}. An edge of weight m stands for m neighbours with one label.

    2 wishes for shard 0 (gain 3), which is full, so it waits. 4 wishes for shard 1 (gain 2), which is full, so it waits. 0
    wishes for shard 2 (gain 1), which has room, so it moves. Then 2 takes its place in shard 0, and 4 takes the place of 2 in
    shard 1.
    """
    graph = np.zeros((5, 5), np.int64)
    graph[2, 0], graph[4, 3], graph[0, 4] = 3, 2, 1
    assert round_of(graph, [0, 0, 1, 1, 2], 2, 3) == [2, 0, 0, 1, 1]


def test_the_queue_is_served_in_the_order_of_gains():
    """1 and 2 wish for shard 0 with gains 1 and 2. User 0 leaves it, which makes room for one: 2 is the head of the queue."""
    graph = np.zeros((5, 5), np.int64)
    graph[1, 3], graph[2, 3], graph[0, 4] = 1, 2, 1
    assert round_of(graph, [0, 1, 1, 0, 2], 2, 3) == [2, 1, 0, 0, 2]


def test_a_queue_waits_for_its_head_and_one_move_out_may_admit_several():
    """The capacity is 4. User 0 (weight 3) leaves shard 0, and 1 (weight 1) stays. 2, 3 and 4 wait, with weights 1, 2 and 1.

    2 and 3 take all of the free 3, so 4 keeps waiting.
    """
    graph = np.zeros((6, 6), np.int64)
    graph[2, 1], graph[3, 1], graph[4, 1], graph[0, 5] = 9, 8, 7, 1
    assert round_of(graph, [0, 0, 1, 1, 1, 2], 4, 3, [3, 1, 1, 2, 1, 1]) == [2, 0, 0, 0, 1, 2]


def test_users_without_neighbours_keep_their_labels():
    assert round_of(np.zeros((3, 3), np.int64), [2, 1, 2], 3, 3) == [2, 1, 2]


def test_in_a_tie_the_next_higher_label_is_chosen():
    """User 0 in shard 1 of four has one neighbour in shard 0 and one in shard 3. Upwards from 1, shard 3 comes first."""
    graph = np.zeros((3, 3), np.int64)
    graph[0, 1] = graph[0, 2] = 1
    assert round_of(graph, [1, 0, 3], 3, 4) == [3, 0, 3]


@given(data=st.data(), n_users=st.integers(0, 12), n_shards=st.integers(1, 5), heavy=st.sampled_from([1, 4]))
def test_a_round_equals_its_definition_and_fills_no_shard_beyond_its_capacity(data, n_users, n_shards, heavy):
    def numbers(highest) -> list[int]:
        return data.draw(st.lists(st.integers(0, highest), min_size=n_users, max_size=n_users))

    graph = np.array([numbers(2) for _ in range(n_users)], np.int64).reshape(n_users, n_users)
    labels, weights = numbers(n_shards - 1), [1 + number for number in numbers(heavy - 1)]
    before = np.bincount(labels, weights, minlength=n_shards)
    capacity = data.draw(st.integers(1, 1 + int(before.max())))
    moved = round_of(graph, labels, capacity, n_shards, weights)
    assert moved == naive_round(graph, labels, weights, capacity, n_shards)
    assert (np.bincount(moved, weights, minlength=n_shards) <= np.maximum(before, capacity)).all()


# The graph.


def test_the_graph_joins_users_with_items_in_common():
    """0 has {a, b}, 1 has {a, b, c}, 2 has {c, d}, 3 has {e}.

    Cosines: 0 and 1 share two items, 2 / sqrt 6; 1 and 2 share one, 1 / sqrt 6; 3 shares none. Each user chooses one: 0 chooses
    1, 1 chooses 0, and 2 chooses 1. An edge needs only one choice, so 1 has two neighbours.
    """
    matrix = log_of([(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 2), (2, 3), (3, 4)]).matrix(4, 5)
    assert communities.similarity_graph(matrix, 1).toarray().tolist() == [
        [0, 1, 0, 0],
        [1, 0, 1, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 0],
    ]


@given(pairs=pairs, n_neighbours=st.integers(1, 5), block=st.sampled_from([1, 40, 1 << 22]))
def test_the_graph_equals_its_definition_for_every_block_size(pairs, n_neighbours, block):
    log = log_of(pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(communities, "_BLOCK", block)
        graph = communities.similarity_graph(log.compact().matrix(), n_neighbours)
    assert graph.toarray().tolist() == naive_graph(log, n_neighbours)


# The first labels.


@given(weights=st.lists(st.integers(1, 9), max_size=20), n_shards=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_first_labels_are_balanced_to_within_one_user(weights, n_shards, seed):
    labels = communities.dealt_out(np.array(weights, np.int64), n_shards, seed)
    loads = np.bincount(labels, weights, minlength=n_shards)
    assert loads.max() - loads.min() <= max(weights, default=0)
    again = communities.dealt_out(np.array(weights, np.int64), n_shards, seed)
    assert np.array_equal(labels, again)


def test_the_first_labels_are_random():
    """With 1000 users and 2 shards, two seeds agree on half of the users, with a standard deviation of 16."""
    first, second = (communities.dealt_out(np.ones(1000, np.int64), 2, seed) for seed in (0, 1))
    assert abs((first == second).sum() - 500) < 80


# Label propagation.


@given(
    pairs=pairs,
    n_shards=st.integers(1, 6),
    slack=st.sampled_from([None, 1, 1.5]),
    balance=st.sampled_from(["interactions", "units"]),
    seed=st.integers(0, 3),
)
def test_whole_users_within_the_capacity(pairs, n_shards, slack, balance, seed):
    log = log_of(pairs)
    config = blpa(n_shards, balance=balance, neighbours=3, **({} if slack is None else {"slack": slack}))
    partition = communities.label_propagation(log, config, seed)
    assert partition.owners.dtype == np.int16
    shards = shards_of_users(log, partition)
    assert all(len(of_user) == 1 for of_user in shards.values())
    if balance == "units":
        n_users = Counter(shard for of_user in shards.values() for shard in of_user)
        assert max(n_users.values(), default=0) <= math.ceil(config.slack * len(shards) / n_shards)
    else:  # the first labels overfill a shard by less than one user, and no user is added to it
        heaviest = np.bincount(log.users, minlength=1).max()
        assert partition.sizes().max() <= max(math.ceil(config.slack * len(log) / n_shards), len(log) / n_shards + heaviest)
    assert np.array_equal(communities.label_propagation(log, config, seed).owners, partition.owners)


@pytest.mark.parametrize("balance", ["interactions", "units"])
@pytest.mark.parametrize("seed", range(8))
def test_two_planted_communities_are_found(seed, balance):
    """Two groups of 30 users with their own items, seven per user. A shard has room for 31 users or their interactions."""
    log = groups(2, 30, 14)
    partition = communities.label_propagation(
        log, blpa(2, balance=balance, neighbours=20, slack=1.033 if balance == "units" else 1.047), seed
    )
    first, second = (set(partition.owners[log.users % 2 == group].tolist()) for group in (0, 1))
    assert len(first) == len(second) == 1
    assert first != second


@pytest.mark.parametrize("seed", range(8))
def test_propagation_brings_neighbours_together(seed):
    """With five groups and five random shards, a fifth of the neighbours share a shard. Propagation at least doubles this
    share.

    Most seeds reach all neighbours. With the others, full shards of two half groups wait for each other.
    """
    log = groups(5, 40, 14)
    graph = communities.similarity_graph(log.compact().matrix(), 10).tocoo()
    partition = communities.label_propagation(log, blpa(5, balance="units"), seed)
    labels = np.array([next(iter(shards)) for shards in shards_of_users(log, partition).values()])
    assert (labels[graph.row] == labels[graph.col]).mean() > 0.4


def test_the_labels_settle_and_the_log_says_so(caplog):
    """With one group and one shard, the first round changes nothing."""
    with caplog.at_level(logging.INFO, "ray_eraser"):
        communities.label_propagation(groups(1, 5, 4), blpa(1), 0)
    (record,) = caplog.records
    assert (record.message, record.kind, record.iterations, record.settled) == (
        "partition learned",
        "label_propagation",
        1,
        True,
    )


def test_users_who_share_no_item_stay_where_they_were_dealt():
    log = log_of([(user, user) for user in range(12)])
    partition = communities.label_propagation(log, blpa(4), 3)
    assert partition.sizes().tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("balance", ["interactions", "units"])
def test_one_shard_few_users_and_an_empty_log_are_handled(balance):
    log = log_of([(2, 3), (5, 1), (5, 3)])
    assert communities.label_propagation(log, blpa(1, balance=balance), 0).owners.tolist() == [0, 0, 0]
    assert sorted(communities.label_propagation(log, blpa(4, balance=balance), 0).sizes()) in ([0, 0, 1, 2], [0, 0, 0, 3])
    nothing = communities.label_propagation(Interactions.none(), blpa(3, balance=balance), 0)
    assert nothing.owners.dtype == np.int16
    assert nothing.sizes().tolist() == [0, 0, 0]


# Balanced k-means.


def clouds(n_users) -> Embeddings:
    """Users on a line, at (user modulo 3) times 100 plus a little. The item vector does not matter."""
    at = np.arange(n_users) % 3 * 100 + np.arange(n_users) / 100
    rows = np.arange(n_users, dtype=np.int32)
    return Embeddings(rows, at.astype(np.float32)[:, None], np.zeros(1, np.int32), np.zeros((1, 1), np.float32))


@pytest.mark.parametrize("balance", ["interactions", "units"])
def test_balanced_kmeans_finds_clouds(balance):
    """The paper's capacity is 11 of 30 users. With some seeds, two anchors start in one cloud and stay there; most do not."""
    log = log_of([(user, user % 4) for user in range(30)])
    config = PartitionConfig(kind="embedding_kmeans", n_shards=3, balance=balance)
    found = 0
    for seed in range(10):
        partition = communities.embedding_kmeans(log, clouds(30), config, seed)
        assert partition.sizes().max() <= 11
        of_clouds = [set(partition.owners[log.users % 3 == cloud].tolist()) for cloud in range(3)]
        found += of_clouds in [[{a}, {b}, {c}] for a in range(3) for b in range(3) for c in range(3) if len({a, b, c}) == 3]
    assert found >= 7


@given(pairs=pairs, n_shards=st.integers(1, 6), seed=st.integers(0, 3))
def test_balanced_kmeans_is_the_user_based_algorithm_with_graph_erasers_capacity(pairs, n_shards, seed):
    log, config = log_of(pairs), PartitionConfig(kind="embedding_kmeans", n_shards=n_shards)
    user_based = PartitionConfig(kind="user_based", n_shards=n_shards, slack=1 + 0.005 * (n_shards - 1), max_iterations=20)
    items = np.arange(8, dtype=np.int32)
    vectors = Embeddings(clouds(14).user_rows, clouds(14).users, items, np.zeros((8, 1), np.float32))
    partition = communities.embedding_kmeans(log, vectors, config, seed)
    assert partition.owners.dtype == np.int16
    assert np.array_equal(partition.owners, balanced(log, vectors, user_based, seed).owners)
    assert all(len(of_user) == 1 for of_user in shards_of_users(log, partition).values())


def test_balanced_kmeans_handles_one_shard_few_users_and_an_empty_log():
    log = log_of([(2, 3), (5, 1), (5, 3)])
    by_shards = {k: PartitionConfig(kind="embedding_kmeans", n_shards=k) for k in (1, 3, 4)}
    assert communities.embedding_kmeans(log, clouds(6), by_shards[1], 0).owners.tolist() == [0, 0, 0]
    assert sorted(communities.embedding_kmeans(log, clouds(6), by_shards[4], 0).sizes()) == [0, 0, 1, 2]
    assert communities.embedding_kmeans(Interactions.none(), clouds(6), by_shards[3], 0).sizes().tolist() == [0, 0, 0]


# Settings.


@pytest.mark.parametrize("kind", ["label_propagation", "embedding_kmeans"])
@pytest.mark.parametrize("n_shards", [1, 2, 10, 50])
def test_the_default_capacity_is_graph_erasers(kind, n_shards):
    config = PartitionConfig(kind=kind, n_shards=n_shards)
    for n in (1, 7, 1000, 2000, 6040, 31668):
        exact = Fraction(n, n_shards) + Fraction(5, 1000) * (n - Fraction(n, n_shards))
        assert math.ceil(config.slack * n / n_shards) == math.ceil(exact)


def test_the_default_rounds_and_capacities_are_those_of_each_paper():
    usual = {kind: PartitionConfig(kind=kind) for kind in ("user_based", "label_propagation", "embedding_kmeans", "transport")}
    assert [config.max_iterations for config in usual.values()] == [50, 100, 20, 10]
    assert [config.slack for config in usual.values()] == [1.2, 1.045, 1.045, 1.2]
    assert PartitionConfig(kind="label_propagation", slack=1.5, max_iterations=3).slack == 1.5


def test_a_setting_out_of_range_is_named_even_if_other_defaults_depend_on_it():
    with pytest.raises(ConfigError) as caught:
        config_from({"partition": {"n_shards": 0}})
    assert "partition.n_shards" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        config_from({"partition": {"kind": "metis"}})
    assert "partition.kind" in str(caught.value)


def test_only_some_kinds_need_embeddings():
    needs = {
        kind: PartitionConfig(kind=kind).needs_embeddings for kind in ("hashed", "random", "label_propagation", "transport")
    }
    assert needs == {"hashed": False, "random": False, "label_propagation": False, "transport": True}
