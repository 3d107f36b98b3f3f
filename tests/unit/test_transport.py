"""UltraRE's partition: the plan against the theory of optimal transport, and the assignment of whole users."""

import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from ray_eraser.config import PartitionConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.partition.transport import log_plan, rounded, sinkhorn, transport

pairs = st.sets(st.tuples(st.integers(0, 13), st.integers(0, 7)), max_size=50)


def log_of(pairs) -> Interactions:
    users, items = np.array(sorted(pairs), np.int32).reshape(-1, 2).T
    return Interactions.of(users, items)


def on_a_line(users) -> Embeddings:
    rows = np.arange(len(users), dtype=np.int32)
    return Embeddings(rows, np.array(users, np.float32)[:, None], np.zeros(1, np.int32), np.zeros((1, 1), np.float32))


def vectors_with_ties() -> Embeddings:
    return on_a_line(np.random.default_rng(3).integers(0, 4, 14))


@st.composite
def problems(draw):
    """Costs and unequal marginals."""
    n_rows, n_columns = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    row = st.lists(st.integers(0, 9), min_size=n_columns, max_size=n_columns)
    costs = np.array(draw(st.lists(row, min_size=n_rows, max_size=n_rows)), np.float64)
    rows, columns = (np.array(draw(st.lists(st.integers(1, 5), min_size=n, max_size=n)), np.float64) for n in costs.shape)
    return costs, rows / rows.sum(), columns / columns.sum()


def cheapest(costs, rows, columns) -> float:
    """The least cost of a plan with these marginals, by linear programming."""
    n_rows, n_columns = costs.shape
    of_rows = np.kron(np.eye(n_rows), np.ones(n_columns))
    of_columns = np.kron(np.ones(n_rows), np.eye(n_columns))
    return linprog(costs.ravel(), A_eq=np.vstack([of_rows, of_columns]), b_eq=np.concatenate([rows, columns])).fun


# The plan.


@given(problem=problems(), eps=st.sampled_from([0.2, 1.0, 30.0]))
def test_the_marginals_hold(problem, eps):
    costs, rows, columns = problem
    plan = np.exp(log_plan(costs, rows, sinkhorn(costs, rows, columns, eps, 1e-4, 20_000), eps))
    assert np.abs(plan.sum(axis=1) - rows).max() <= 1e-12
    assert np.abs(plan.sum(axis=0) - columns).sum() <= 1e-4


@given(problem=problems())
def test_the_plan_approaches_the_linear_programs_as_eps_vanishes(problem):
    """The plan's cost exceeds the optimum by at most eps times the difference of two entropies, which is at most eps log nK.

    At most 1e-5 of the mass is in wrong columns, which changes the cost by at most 9 per unit of mass.
    """
    costs, rows, columns = problem
    optimum = cheapest(costs, rows, columns)
    for eps in (1.0, 0.2, 0.05):
        plan = np.exp(log_plan(costs, rows, sinkhorn(costs, rows, columns, eps, 1e-5, 20_000), eps))
        assert optimum - 1e-4 <= (plan * costs).sum() <= optimum + eps * math.log(costs.size) + 1e-4


def test_a_plan_by_hand():
    """Two rows and two columns of mass 1/2; the cost is 0 on the diagonal and 1 off it.

    By symmetry, both prices are equal, and each row is divided in the ratio 1 : exp(-1 / eps).
    """
    costs, half = 1 - np.eye(2), np.full(2, 0.5)
    for eps in (0.3, 2.0):
        plan = np.exp(log_plan(costs, half, sinkhorn(costs, half, half, eps), eps))
        stays = 0.5 / (1 + math.exp(-1 / eps))
        assert plan == pytest.approx(np.array([[stays, 0.5 - stays], [0.5 - stays, stays]]), abs=1e-6)


def test_prices_move_rows_away_from_a_column_that_all_prefer():
    """Four rows have costs (0, d) with d = 1, 2, 3, 4. The rows that lose least leave, so the prices differ by 2 to 3."""
    costs = np.array([[0, 1], [0, 2], [0, 3], [0, 4]], np.float64)
    prices = sinkhorn(costs, np.full(4, 0.25), np.full(2, 0.5), 0.01)
    assert 2 < prices[1] - prices[0] < 3
    assert rounded(costs - prices, np.ones(4, np.int64), 2).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("eps", [1e-6, 1e-3])
def test_no_eps_is_too_small(eps):
    """exp(-1 / 1e-6) is zero in floating point, but the plan is still correct."""
    costs, half = 1 - np.eye(2), np.full(2, 0.5)
    plan = np.exp(log_plan(costs, half, sinkhorn(costs, half, half, eps), eps))
    assert plan == pytest.approx(np.eye(2) / 2, abs=1e-9)


def test_with_zero_costs_every_row_is_divided_evenly():
    costs, rows = np.zeros((3, 2)), np.array([0.5, 0.3, 0.2])
    prices = sinkhorn(costs, rows, np.full(2, 0.5), 1.0)
    assert np.exp(log_plan(costs, rows, prices, 1.0)) == pytest.approx(np.repeat(rows[:, None] / 2, 2, axis=1))


# Whole users.


def test_nearly_indifferent_users_give_way():
    """All three users are nearest to shard 0, by 3, 1 and 2. It has room for two, so the second user goes to shard 2."""
    net_costs = np.array([[0, 9, 3], [0, 9, 1], [0, 2, 9]], np.float64)
    assert rounded(net_costs, np.ones(3, np.int64), 2).tolist() == [0, 2, 0]


@given(problem=problems(), weights=st.lists(st.integers(1, 4), min_size=8, max_size=8), spare=st.integers(0, 9))
def test_rounding_takes_the_best_shard_with_room_and_keeps_to_the_capacity(problem, weights, spare):
    """With units of weight 1, and with other weights if every unit fits somewhere."""
    net_costs = problem[0]
    for loads in (np.ones(len(net_costs), np.int64), np.array(weights[: len(net_costs)])):
        n_shards = net_costs.shape[1]
        capacity = math.ceil(loads.sum() / n_shards) + spare
        owners = rounded(net_costs, loads, capacity)
        assert owners.dtype == np.int16
        best = net_costs.argmin(axis=1)
        used = np.bincount(owners, loads, minlength=n_shards)
        if np.bincount(best, loads).max() <= capacity:
            assert owners.tolist() == best.tolist()
        assert used.max() <= max(capacity, loads.sum() / n_shards + loads.max())
        if loads.max() == 1:
            assert used.max() <= capacity


@pytest.mark.parametrize("balance", ["interactions", "units"])
@pytest.mark.parametrize("seed", range(6))
def test_planted_clouds_are_found(seed, balance):
    """Two clouds of six users on a line. From all initial anchors, half of the load goes to each side."""
    log = log_of([(user, item) for user in range(12) for item in range(2)])
    partition = transport(
        log,
        on_a_line([*range(6), *range(100, 106)]),
        PartitionConfig(kind="transport", n_shards=2, balance=balance),
        seed,
    )
    assert partition.sizes().tolist() == [12, 12]
    assert len(set(partition.owners[:12])) == len(set(partition.owners[12:])) == 1


@pytest.mark.parametrize("seed", range(4))
def test_interactions_are_balanced_by_default(seed):
    """Users at 0 .. 9. The first has 16 interactions, the second 8, and the others one each.

    Two shards of 16 hold the first user alone and all others. Balanced by units, they hold the first five users and the last
    five, with 27 and 5 interactions.
    """
    log = log_of([(0, item) for item in range(16)] + [(1, item) for item in range(8)] + [(user, 0) for user in range(2, 10)])
    sizes = {}
    for balance in ("interactions", "units"):
        config = PartitionConfig(kind="transport", n_shards=2, balance=balance, slack=1)
        sizes[balance] = sorted(transport(log, on_a_line(range(10)), config, seed).sizes().tolist())
    assert sizes == {"interactions": [16, 16], "units": [5, 27]}


def test_shards_are_nearly_equal_long_before_the_capacity():
    """400 users have 1 to 9 interactions. Columns are equal and few users are divided, so sizes are within 5 % of the mean."""
    generator = np.random.default_rng(2)
    log = log_of({(user, item) for user in range(400) for item in range(generator.integers(1, 10))})
    rows, items = np.arange(400, dtype=np.int32), np.zeros(1, np.int32)
    vectors = Embeddings(rows, generator.standard_normal((400, 4), np.float32), items, np.zeros((1, 4), np.float32))
    assert transport(log, vectors, PartitionConfig(kind="transport", n_shards=5), 0).balance() < 1.05


@given(
    pairs=pairs,
    n_shards=st.integers(1, 6),
    slack=st.sampled_from([1, 1.2, 3]),
    balance=st.sampled_from(["interactions", "units"]),
    seed=st.integers(0, 3),
)
def test_whole_users_are_within_the_capacity_and_the_result_is_reproducible(pairs, n_shards, slack, balance, seed):
    log, vectors = log_of(pairs), vectors_with_ties()
    config = PartitionConfig(kind="transport", n_shards=n_shards, slack=slack, balance=balance, entropy=0.1, max_iterations=3)
    partition = transport(log, vectors, config, seed)
    assert partition.owners.dtype == np.int16
    shards = np.unique(log.users * n_shards + partition.owners) % n_shards
    assert len(shards) == len(log.user_rows())
    if balance == "units":
        assert np.bincount(shards, minlength=n_shards).max() <= math.ceil(slack * len(shards) / n_shards)
    else:
        heaviest = np.bincount(log.users, minlength=1).max()
        assert partition.sizes().max() <= max(math.ceil(slack * len(log) / n_shards), len(log) / n_shards + heaviest)
    assert np.array_equal(transport(log, vectors, config, seed).owners, partition.owners)


def test_one_shard_few_users_and_an_empty_log_are_handled():
    log = log_of([(2, 3), (5, 1), (5, 3)])
    config = {k: PartitionConfig(kind="transport", n_shards=k) for k in (1, 3, 4)}
    assert transport(log, on_a_line(range(6)), config[1], 0).owners.tolist() == [0, 0, 0]
    assert sorted(transport(log, on_a_line(range(6)), config[4], 0).sizes()) == [0, 0, 1, 2]
    nothing = transport(Interactions.none(), on_a_line(range(6)), config[3], 0)
    assert nothing.owners.dtype == np.int16
    assert nothing.sizes().tolist() == [0, 0, 0]


def test_identical_users_are_still_divided():
    log = log_of([(user, 0) for user in range(12)])
    config = PartitionConfig(kind="transport", n_shards=3, slack=1)
    assert transport(log, on_a_line([7] * 12), config, 0).sizes().tolist() == [4, 4, 4]


def test_users_without_interactions_do_not_move_a_partition():
    log = log_of([(user, item) for user in range(0, 14, 2) for item in range(8) if (user + item) % 3])
    everyone, config = vectors_with_ties(), PartitionConfig(kind="transport", n_shards=3)
    users = log.user_rows()
    fewer = Embeddings(users, everyone.users[users], everyone.item_rows, everyone.items)
    assert np.array_equal(transport(log, everyone, config, 3).owners, transport(log, fewer, config, 3).owners)


def test_the_log_records_the_number_of_rounds(caplog):
    with caplog.at_level(logging.INFO, "ray_eraser"):
        transport(log_of([(2, 3), (5, 1)]), on_a_line(range(6)), PartitionConfig(kind="transport", n_shards=1), 0)
    (record,) = caplog.records
    assert (record.message, record.kind, record.iterations, record.settled) == ("partition learned", "transport", 2, True)
