"""Every kind of partition: which pairs may move after an erasure, and the paper's algorithms against their definition."""

import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.config import PartitionConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import Embeddings
from ray_eraser.partition import balanced, divide, hashed, place
from ray_eraser.partition.assignment import Partition, capacity_of

N_USERS, N_ITEMS = 12, 9
USER_KEYS = Vocabulary.of("user", range(100, 100 + N_USERS), seed=1).keys
ITEM_KEYS = Vocabulary.of("item", range(N_ITEMS), seed=1).keys
LEARNED = ["user_based", "item_based", "interaction_based"]
KINDS = ["hashed", "random", *LEARNED]

pairs = st.sets(st.tuples(st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1)), max_size=40)
kinds = st.sampled_from(KINDS)


def log_of(pairs) -> Interactions:
    users, items = np.array(sorted(pairs), np.int32).reshape(-1, 2).T
    return Interactions.of(users, items)


def on_a_line(users) -> Embeddings:
    """User vectors of width 1, by row. The item vectors do not matter."""
    items_I1 = np.zeros((N_ITEMS, 1), np.float32)
    return Embeddings(
        np.arange(len(users), dtype=np.int32),
        np.array(users, np.float32)[:, None],
        np.arange(N_ITEMS, dtype=np.int32),
        items_I1,
    )


def some_embeddings() -> Embeddings:
    """Small whole numbers, so that many distances tie."""
    generator = np.random.default_rng(5)
    users, items = (generator.integers(0, 3, (n, 2)).astype(np.float32) for n in (N_USERS, N_ITEMS))
    return Embeddings(np.arange(N_USERS, dtype=np.int32), users, np.arange(N_ITEMS, dtype=np.int32), items)


def divided(interactions: Interactions, config: PartitionConfig, seed: int = 7) -> Partition:
    return divide(interactions, USER_KEYS, ITEM_KEYS, config, seed, some_embeddings())


def naive(costs: np.ndarray, weights: list[int], capacity: int) -> list[int]:
    """The greedy assignment as the paper defines it, one cost after the other."""
    n_units, n_shards = costs.shape
    owners, used = [-1] * n_units, [0] * n_shards
    for _, unit, shard in sorted((costs[unit, shard], unit, shard) for unit in range(n_units) for shard in range(n_shards)):
        if owners[unit] == -1 and used[shard] + weights[unit] <= capacity:
            owners[unit], used[shard] = shard, used[shard] + weights[unit]
    for _, unit in sorted((-weights[unit], unit) for unit in range(n_units) if owners[unit] == -1):
        owners[unit] = used.index(min(used))
        used[owners[unit]] += weights[unit]
    return owners


@st.composite
def problems(draw):
    """Costs with many ties, and the room above the mean."""
    n_units, n_shards = draw(st.integers(0, 14)), draw(st.integers(1, 5))
    row = st.lists(st.integers(0, draw(st.sampled_from([1, 4, 30]))), min_size=n_shards, max_size=n_shards)
    costs = draw(st.lists(row, min_size=n_units, max_size=n_units))
    return np.array(costs, np.float32).reshape(n_units, n_shards), draw(st.integers(0, 3))


# The assignment.


def test_the_nearest_are_taken_until_a_shard_is_full():
    """Units at 0, 1, 2 and 10, anchors at 0 and 10, two units per shard.

    In ascending order of cost: 0 goes to anchor 0 (cost 0) and 10 to anchor 10 (0). 1 goes to anchor 0 (1), which is then full.
    2 is refused there (2) and goes to anchor 10 (8).
    """
    costs = np.array([[0, 10], [1, 9], [2, 8], [10, 0]], np.float32)
    assert balanced.walk_down(costs, np.ones(4, np.int64), 2).tolist() == [0, 0, 1, 1]
    assert balanced.deferred_acceptance(costs.__getitem__, 4, 2, 2).tolist() == [0, 0, 1, 1]


def test_ties_go_to_the_lower_unit_and_then_to_the_lower_shard():
    costs = np.ones((4, 2), np.float32)
    assert balanced.walk_down(costs, np.ones(4, np.int64), 2).tolist() == [0, 0, 1, 1]
    assert balanced.deferred_acceptance(costs.__getitem__, 4, 2, 2).tolist() == [0, 0, 1, 1]


def test_a_shard_that_refuses_a_heavy_unit_takes_a_lighter_one_later():
    """The capacity is 2; x and b weigh 2, c and a weigh 1.

    In ascending order of cost: x goes to shard 1 (.5), which is then full. c is refused there (1) and goes to shard 0 (1.5). b
    is refused there (2: 1 + 2 > 2). a fits there (3). b fits nowhere; both shards hold 2, so it goes to the lower one.
    Proposals in rounds would go wrong: b and a would propose to shard 0 before c returns from shard 1, so b would be kept and a
    refused.
    """
    x, c, b, a = [9, 0.5], [1.5, 1], [2, 6], [3, 7]
    assert balanced.walk_down(np.array([x, c, b, a], np.float32), np.array([2, 1, 2, 1]), 2).tolist() == [1, 0, 0, 0]


def test_units_that_fit_nowhere_go_to_the_emptiest_shard_heaviest_first():
    """The capacity is 3. The two light units go to shard 0 (2 used), then 9 goes to shard 1, and then 5 to shard 0."""
    costs = np.array([[0, 5], [0, 5], [0, 5], [0, 5]], np.float32)
    assert balanced.walk_down(costs, np.array([1, 5, 9, 1]), 3).tolist() == [0, 0, 1, 0]


@given(problem=problems(), block=st.sampled_from([1, 8, 1 << 19]))
def test_deferred_acceptance_equals_the_sorted_walk(problem, block):
    costs, spare = problem
    n_units, n_shards = costs.shape
    capacity = math.ceil(n_units / n_shards) + spare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balanced, "_BLOCK", block)
        owners = balanced.deferred_acceptance(costs.__getitem__, n_units, n_shards, capacity)
    assert owners.dtype == np.int16
    assert owners.tolist() == naive(costs, [1] * n_units, capacity)


@given(problem=problems(), data=st.data())
def test_the_walk_with_weights_equals_its_definition(problem, data):
    costs, spare = problem
    n_units, n_shards = costs.shape
    weights = data.draw(st.lists(st.integers(1, 6), min_size=n_units, max_size=n_units))
    capacity = math.ceil(sum(weights) / n_shards) + spare
    owners = balanced.walk_down(costs, np.array(weights, np.int64), capacity)
    assert owners.dtype == np.int16
    assert owners.tolist() == naive(costs, weights, capacity)


@pytest.mark.parametrize("steps", [3, 50, 10**6])
def test_long_chains_of_refusals_end_where_the_sorted_walk_ends(steps):
    costs = np.floor(np.random.default_rng(0).random((3000, 7)) ** 2 * steps).astype(np.float32)
    expected = naive(costs, [1] * 3000, 429)
    assert balanced.deferred_acceptance(costs.__getitem__, 3000, 7, 429).tolist() == expected
    assert balanced.walk_down(costs, np.ones(3000, np.int64), 429).tolist() == expected


# The paper's algorithms.


@pytest.mark.parametrize("balance", ["interactions", "units"])
@pytest.mark.parametrize("seed", range(6))
def test_algorithm_1_on_four_users(seed, balance):
    """Users at 0, 1, 10 and 11 with one interaction each, two shards with room for three.

    From anchors 0 and 1: 0 is alone, and 10 (9) and 11 (10) join 1. The means are 0 and 22 / 3, so 1 is now nearer to 0. The
    shards {0, 1} and {10, 11} with means .5 and 10.5 are stable. From anchors 10 and 11 the result is the same by symmetry, and
    from one anchor of each pair it is reached at once.
    """
    log = log_of([(0, 0), (1, 1), (2, 2), (3, 3)])
    config = PartitionConfig(kind="user_based", n_shards=2, slack=1.5, balance=balance)
    owners = balanced.balanced(log, on_a_line([0, 1, 10, 11]), config, seed).owners
    assert owners.dtype == np.int16
    assert owners[0] == owners[1] != owners[2] == owners[3]


def test_algorithm_2_on_four_interactions():
    """Users at 0 and 4, items at 0 and 3, all four pairs; anchors (1, 1) and (4, 2).

    The user distances are (1, 4) and (3, 0), and the item distances (1, 2) and (2, 1), so E = (1, 8), (2, 4), (3, 0), (6, 0).
    With two pairs per shard, the third and fourth pair go to anchor 1 (0), and the first (1) and second (2) to anchor 0. The
    new anchors are (0, 1.5) and (4, 1.5).
    """
    user = balanced.Factor(np.array([[0.0], [4.0]]), np.array([0, 0, 1, 1]))
    item = balanced.Factor(np.array([[0.0], [3.0]]), np.array([0, 1, 0, 1]))
    user_anchors, item_anchors = np.array([[1.0], [4.0]]), np.array([[1.0], [2.0]])
    costs = balanced.product_costs([user, item], [user_anchors, item_anchors])
    assert costs(np.arange(4)).tolist() == [[1, 8], [2, 4], [3, 0], [6, 0]]
    owners = balanced.deferred_acceptance(costs, 4, 2, 2)
    assert owners.tolist() == [0, 0, 1, 1]
    assert user.means(owners, user_anchors).tolist() == [[0], [4]]
    assert item.means(owners, item_anchors).tolist() == [[1.5], [1.5]]


def test_an_anchor_is_the_mean_of_its_members_in_every_dimension():
    """The second vector counts twice, because two units have it: (1 + 4 + 4) / 3 and (10 + 40 + 40) / 3."""
    factor = balanced.Factor(np.array([[1.0, 10.0], [4.0, 40.0]]), np.array([0, 1, 1]))
    means = factor.means(np.array([1, 1, 1], np.int16), np.array([[7.0, 8.0], [0.0, 0.0]]))
    assert means.tolist() == [[7, 8], [3, 30]], "and a shard without members keeps its anchor"


@pytest.mark.parametrize("kind", ["user_based", "item_based"])
@pytest.mark.parametrize("seed", range(8))
def test_planted_communities_are_found(seed, kind):
    """Two distant clouds, rows 1 to 6 and 7 to 12. Row 0 has no interactions, and all rows of the other side are equal."""
    near = [(0.1 * step, 0.2 * (step % 2)) for step in range(6)]
    clouds = np.array([(50, 50), *near, *((20 - x, 20 + y) for x, y in near)], np.float32)
    rows, two, alike = np.arange(13, dtype=np.int32), np.arange(2, dtype=np.int32), np.zeros((2, 2), np.float32)
    grid = [(row, other) for row in range(1, 13) for other in range(2)]
    if kind == "user_based":
        log, vectors = log_of(grid), Embeddings(rows, clouds, two, alike)
    else:
        log, vectors = log_of([(other, row) for row, other in grid]), Embeddings(two, alike, rows, clouds)
    owners = balanced.balanced(log, vectors, PartitionConfig(kind=kind, n_shards=2, slack=2), seed).owners
    near_ones = (log.users if kind == "user_based" else log.items) <= 6
    assert len(set(owners[near_ones])) == len(set(owners[~near_ones])) == 1
    assert len(set(owners)) == 2


@pytest.mark.parametrize("seed", range(6))
def test_capacity_counts_interactions_or_units_as_configured(seed):
    """Two users at 0 and 1 with four interactions each, one user at 100 with one interaction; two shards.

    With interactions and slack 1.2, a shard has room for 6, so the users at 0 and 1 cannot share one: sizes 4 and 5. With slack
    2, it has room for all 9, and they share one from all anchors: 8 and 1. With units and slack 1, a shard has room for two
    users, and they also share one.
    """
    log = log_of([(user, item) for user in (0, 1) for item in range(4)] + [(2, 0)])
    for balance, slack, sizes in (("interactions", 1.2, [4, 5]), ("interactions", 2, [1, 8]), ("units", 1, [1, 8])):
        config = PartitionConfig(kind="user_based", n_shards=2, slack=slack, balance=balance)
        assert sorted(balanced.balanced(log, on_a_line([0, 1, 100]), config, seed).sizes()) == sizes


@given(
    pairs=pairs, kind=st.sampled_from(LEARNED), n_shards=st.integers(1, 6), slack=st.sampled_from([1, 1.2, 3]), data=st.data()
)
def test_no_shard_is_fuller_than_its_capacity(pairs, kind, n_shards, slack, data):
    balance = data.draw(st.sampled_from(["interactions", "units"]))
    log, config = log_of(pairs), PartitionConfig(kind=kind, n_shards=n_shards, slack=slack, balance=balance)
    partition = divided(log, config)
    assert partition.owners.dtype == np.int16
    assert len(partition.owners) == len(log)
    assert partition.sizes().shape == (n_shards,)
    if kind == "interaction_based":
        assert partition.sizes().max() <= capacity_of(slack, len(log), n_shards)
        return
    rows = log.users if kind == "user_based" else log.items
    units = np.unique(rows * n_shards + partition.owners)
    assert len(units) == len(np.unique(rows)), "whole users, whole items"
    if balance == "units":
        assert np.bincount(units % n_shards, minlength=n_shards).max() <= capacity_of(slack, len(units), n_shards)
    else:  # a unit that fits nowhere goes to a shard whose load is at most the mean
        heaviest = np.bincount(rows, minlength=1).max()
        assert partition.sizes().max() <= max(capacity_of(slack, len(log), n_shards), len(log) / n_shards + heaviest)


@pytest.mark.parametrize("kind", LEARNED)
def test_fewer_units_than_shards_leave_shards_empty(kind):
    log = log_of([(2, 3), (5, 1)])
    assert sorted(divided(log, PartitionConfig(kind=kind, n_shards=4)).sizes()) == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_one_shard_owns_everything_and_an_empty_log_is_divided(kind):
    log = log_of([(2, 3), (5, 1), (5, 2)])
    assert divided(log, PartitionConfig(kind=kind, n_shards=1)).owners.tolist() == [0, 0, 0]
    empty = divided(Interactions.none(), PartitionConfig(kind=kind, n_shards=3))
    assert empty.owners.dtype == np.int16
    assert empty.sizes().tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", LEARNED)
def test_users_and_items_without_interactions_do_not_move_a_learned_partition(kind):
    log = log_of([(user, item) for user in range(0, N_USERS, 2) for item in range(0, N_ITEMS, 2) if (user + item) % 3])
    everyone, config = some_embeddings(), PartitionConfig(kind=kind, n_shards=3)
    users, items = log.user_rows(), log.item_rows()
    fewer = Embeddings(users, everyone.users[users], items, everyone.items[items])
    expected = balanced.balanced(log, everyone, config, 3).owners
    assert np.array_equal(balanced.balanced(log, fewer, config, 3).owners, expected)


def test_a_learned_partition_logs_how_many_iterations_it_took(caplog):
    """With one shard, the second assignment changes nothing."""
    with caplog.at_level(logging.INFO, "ray_eraser"):
        divided(log_of([(2, 3), (5, 1)]), PartitionConfig(kind="user_based", n_shards=1))
    (record,) = caplog.records
    assert (record.message, record.iterations, record.settled) == ("partition learned", 2, True)


# Hashes.


@given(pairs=pairs, erased=pairs, kind=st.sampled_from(["hashed", "random"]))
def test_erasing_any_pairs_moves_no_other(pairs, erased, kind):
    log, gone, config = log_of(pairs), log_of(erased), PartitionConfig(kind=kind, n_shards=5)
    remains = ~np.isin(log.codes(), gone.codes())
    before = divide(log, USER_KEYS, ITEM_KEYS, config, 7).owners
    assert np.array_equal(divide(log.without(gone), USER_KEYS, ITEM_KEYS, config, 7).owners, before[remains])


def test_a_hashed_shard_depends_on_the_raw_id_and_not_on_the_row():
    everyone, some = Vocabulary.of("user", range(200), seed=4), Vocabulary.of("user", range(1, 200, 3), seed=4)
    log = Interactions.of(np.arange(200), np.zeros(200, np.int32))
    owners = hashed.hashed(log, everyone.keys, 8).owners
    again = hashed.hashed(log.take(np.arange(len(some))), some.keys, 8).owners
    assert again.tolist() == [owners[everyone.row(raw)] for raw in some.ids]


def test_another_secret_gives_another_hashed_partition():
    log, users = (
        Interactions.of(np.arange(200), np.zeros(200, np.int32)),
        [Vocabulary.of("user", range(200), s) for s in (1, 2)],
    )
    owners = [hashed.hashed(log, vocabulary.keys, 8).owners for vocabulary in users]
    moved = sum(owners[0][users[0].row(raw)] != owners[1][users[1].row(raw)] for raw in range(200))
    assert moved > 120, "175 expected"


@given(pairs=pairs)
def test_hashed_keeps_a_users_interactions_together(pairs):
    log = log_of(pairs)
    partition = divided(log, PartitionConfig(kind="hashed", n_shards=5))
    assert len(set(zip(log.users.tolist(), partition.owners.tolist(), strict=True))) == len(log.user_rows())


def test_hashes_fill_the_shards_evenly():
    """40,000 draws into 4 shards give 10,000 per shard, with a standard deviation of 87."""
    keys = Vocabulary.of("user", range(40_000)).keys
    by_user = hashed.hashed(Interactions.of(np.arange(40_000), np.zeros(40_000, np.int32)), keys, 4)
    users, items = np.divmod(np.arange(40_000), 200)
    by_pair = hashed.random_pairs(Interactions.of(users, items), keys[:200], keys[200:400], 4, 0)
    for partition in (by_user, by_pair):
        assert np.abs(partition.sizes() - 10_000).max() < 450


def test_random_pairs_scatter_a_user_and_depend_on_the_seed():
    """With 200 pairs of one user and 4 shards, every shard gets some pairs, and two seeds agree on a quarter."""
    log, keys = Interactions.of(np.zeros(200, np.int32), np.arange(200)), Vocabulary.of("item", range(200)).keys
    first, second = (hashed.random_pairs(log, USER_KEYS, keys, 4, seed) for seed in (0, 1))
    assert first.sizes().min() > 0
    assert 20 < (first.owners == second.owners).sum() < 80


# Capacities.


@pytest.mark.parametrize(
    ("slack", "load", "n_shards", "capacity"),
    [
        (1.1, 50, 1, 55),
        (1.1, 500, 10, 55),
        (1.2, 10, 2, 6),
        (1.2, 11, 2, 7),
        (1.005, 1000, 1, 1005),
        (1, 7, 3, 3),
        (3, 0, 4, 0),
    ],
)
def test_the_slack_is_a_decimal_number(slack, load, n_shards, capacity):
    """In binary floating point, 1.1 times 50 is 55.000000000000007, which would round up to 56."""
    assert capacity_of(slack, load, n_shards) == capacity


@given(hundredths=st.integers(100, 400), load=st.integers(0, 10**7), n_shards=st.integers(1, 300))
def test_the_capacity_is_the_slack_times_the_mean_rounded_up_in_whole_numbers(hundredths, load, n_shards):
    assert capacity_of(hundredths / 100, load, n_shards) == -(-hundredths * load // (100 * n_shards))


# Held-out pairs.


@given(pairs=pairs, held_out=pairs, kind=kinds, n_shards=st.integers(1, 5))
def test_held_out_pairs_go_to_the_shard_of_their_user_or_item(pairs, held_out, kind, n_shards):
    log, config = log_of(pairs), PartitionConfig(kind=kind, n_shards=n_shards)
    valid = log_of(held_out - pairs)
    partition = divided(log, config)
    owners = place(valid, log, partition, USER_KEYS, ITEM_KEYS, config, 7)
    assert owners.dtype == np.int16
    by_user, by_item = (hashed.shard_of_keys(keys, n_shards) for keys in (USER_KEYS, ITEM_KEYS))
    if kind == "random":
        together = Interactions.union([log, valid])
        assert np.array_equal(owners, divided(together, config).owners[np.isin(together.codes(), valid.codes())])
        return
    for user, item, owner in zip(valid.users, valid.items, owners, strict=True):
        shards = partition.owners[log.items == item] if kind == "item_based" else partition.owners[log.users == user]
        if len(shards):
            assert owner == np.bincount(shards).argmax()
        else:
            assert owner == (by_item[item] if kind == "item_based" else by_user[user])


def test_a_held_out_pair_goes_to_the_shard_with_most_of_the_users_interactions_or_the_lowest_in_a_tie():
    log, config = log_of([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]), PartitionConfig(kind="interaction_based", n_shards=3)
    partition = Partition(3, np.array([2, 1, 2, 2, 1], np.int16))
    valid = log_of([(0, 3), (1, 3)])
    assert place(valid, log, partition, USER_KEYS, ITEM_KEYS, config, 7).tolist() == [2, 1]
