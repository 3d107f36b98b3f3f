"""Plans decide when a run is due, and a model of past runs predicts its time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ray_eraser.config import DAY, EraserConfig, UnlearningConfig, load_config
from ray_eraser.errors import ConfigError
from ray_eraser.unlearning.plan import (
    KEPT_RUNS,
    KEPT_SHARDS,
    UNMEASURED,
    CostModel,
    Costs,
    Plan,
    Prediction,
    Run,
    ShardRun,
    Waiting,
    makespan,
    oldest_pending_seconds,
    overdue,
    parse_plan,
    plan_of,
)

ARRIVALS = st.lists(st.integers(0, 10_000), min_size=1, max_size=30).map(sorted)


def carried_out(plan: Plan, arrivals: Sequence[float], seconds: float) -> list[tuple[float, list[float]]]:
    """(start, requests) of every run, where each takes `seconds` and carries out what has arrived when it starts."""
    runs: list[tuple[float, list[float]]] = []
    left, free_at, last_run_at = list(arrivals), 0.0, None
    while left:
        due = plan.next_run([Waiting(left[0])], last_run_at, seconds)
        start = max(due, free_at)
        runs.append((start, [at for at in left if at <= start]))
        left = [at for at in left if at > start]
        free_at, last_run_at = start + seconds, start
    return runs


# ---- plans -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("immediate", Plan("immediate")),
        ("every=10s", Plan("every", 10)),
        ("every=5m", Plan("every", 300)),
        ("every=1.5h", Plan("every", 5400)),
        ("every=1d", Plan("every", 86_400)),
        ("deadline=30d", Plan("deadline", 30 * 86_400, 7)),
        ("deadline=30", Plan("deadline", 30 * 86_400, 7)),
        (" deadline=12h ", Plan("deadline", 12 * 3600, 7)),
    ],
)
def test_a_plan_is_read_from_its_text(text, plan):
    assert parse_plan(text, margin_seconds=7) == plan


@pytest.mark.parametrize(
    "text",
    ["", "now", "every", "every=", "every=10", "every=0s", "every=-5m", "every=5 m", "deadline", "deadline=0", "deadline=1w",
     "deadline=1e3", "deadline=nan", "immediate=1s", "every=5m deadline=1d", "every=\u0665m", "every=" + "9" * 400 + "s"],
)  # fmt: skip
def test_a_text_that_is_not_a_plan_is_refused_with_the_way_out(text):
    with pytest.raises(ConfigError, match="immediate, every=6h or deadline=30d") as caught:
        parse_plan(text, 0)
    assert caught.value.key == "unlearning.plan"
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["immediate", "every=1h", "deadline=30d"])
def test_no_run_is_due_without_waiting_requests(text):
    assert parse_plan(text, 0).next_run([], 5.0, 1.0) is None


def test_an_immediate_run_is_due_when_the_oldest_request_arrives():
    assert Plan("immediate").next_run([Waiting(30), Waiting(20)], 25.0, 1.0) == 20


def test_periodic_plans_count_from_the_previous_run_or_the_first_request():
    plan = Plan("every", 100)
    assert plan.next_run([Waiting(30), Waiting(20)], None, 1.0) == 120
    assert plan.next_run([Waiting(30), Waiting(20)], 10.0, 1.0) == 110
    assert plan.next_run([Waiting(500)], 10.0, 1.0) == 500  # the previous run is long ago, so the run is due at once


def test_a_deadline_leaves_the_margin_and_twice_the_predicted_seconds():
    assert Plan("deadline", 1000, 50).next_run([Waiting(30), Waiting(20)], None, 60.0) == 20 + 1000 - 50 - 2 * 60


@pytest.mark.parametrize("text", ["immediate", "every=1h", "deadline=30d"])
def test_an_urgent_request_makes_a_run_due_at_once(text):
    assert parse_plan(text, 0).next_run([Waiting(500), Waiting(700, priority=1), Waiting(600)], 450.0, 1.0) <= 700
    assert parse_plan("deadline=30d", 0).next_run([Waiting(500), Waiting(700, 1), Waiting(600, 2)], None, 1.0) == 600


def test_an_urgent_request_does_not_delay_an_earlier_run():
    assert Plan("every", 100).next_run([Waiting(0), Waiting(150, 1)], None, 1.0) == 100


@given(ARRIVALS, st.integers(1, 3000), st.integers(0, 500))
def test_runs_of_a_periodic_plan_are_never_closer_than_its_period(arrivals, every, seconds):
    starts = [start for start, _ in carried_out(Plan("every", every), arrivals, seconds)]
    assert all(later - earlier >= every for earlier, later in pairwise(starts))
    assert starts[0] == arrivals[0] + every


@given(ARRIVALS, st.integers(1, 5000), st.integers(0, 500), st.integers(0, 500))
def test_a_deadline_is_met_if_the_prediction_is_right_and_two_runs_fit(arrivals, deadline, margin, seconds):
    assume(deadline - margin >= 2 * seconds)  # a request may arrive right after a run has started, and needs the next one
    plan = Plan("deadline", deadline, margin, safety=1)
    for start, requests in carried_out(plan, arrivals, seconds):
        assert start + seconds - requests[0] <= deadline - margin


@given(ARRIVALS, st.integers(1, 5000), st.integers(0, 500))
def test_a_deadline_plan_never_runs_more_often_than_an_immediate_one(arrivals, deadline, seconds):
    assume(deadline >= 2 * seconds)
    late, at_once = (carried_out(plan, arrivals, seconds) for plan in (Plan("deadline", deadline), Plan("immediate")))
    assert len(late) <= len(at_once)
    assert sum(len(requests) for _, requests in late) == len(arrivals)


def test_overdue_counts_requests_past_the_deadline_and_not_at_it():
    waiting = [Waiting(0), Waiting(10), Waiting(11, priority=3)]
    assert overdue(waiting, 90, now=100) == 1
    assert overdue(waiting, 90, now=90) == 0
    assert overdue([], 90, now=1e9) == 0


def test_the_oldest_pending_request_is_the_first_received():
    assert oldest_pending_seconds([Waiting(30), Waiting(10)], now=100) == 90
    assert oldest_pending_seconds([], now=100) == 0


# ---- what a run costs ------------------------------------------------------------------------------------------------------


def test_shards_are_trained_in_parallel_the_longest_first():
    """Graham's example: 3, 3, 2, 2, 2 on two slots ends at 7, in 3 + 2 + 2 and 3 + 2, although 6 would be possible."""
    assert makespan([2, 3, 2, 3, 2], 2) == 7
    assert makespan([2, 3], 9) == 3
    assert makespan([2, 3], 1) == 5
    assert makespan([], 4) == 0


@given(st.lists(st.integers(0, 100), min_size=1, max_size=20), st.integers(1, 8))
def test_a_makespan_is_at_least_the_longest_job_and_the_mean_load_and_at_most_twice_that(jobs, slots):
    bound = max(*jobs, sum(jobs) / slots)
    assert bound <= makespan(jobs, slots) <= bound * 2


def test_a_prediction_adds_the_aggregation_to_both_figures():
    costs = Costs(shard_seconds=1, seconds_per_interaction=0.01, aggregation_seconds=10)
    assert costs.predict([100, 200], slots=2) == Prediction(seconds=3 + 10, machine_seconds=2 + 3 + 10)
    assert costs.predict([100, 200], slots=1) == Prediction(seconds=5 + 10, machine_seconds=5 + 10)
    assert costs.predict([], slots=1) == Prediction(10, 10)


def observed(*shards: tuple[int, float], aggregation: float = 1.0) -> CostModel:
    return CostModel().observe(Run(tuple(ShardRun(*shard) for shard in shards), aggregation))


def test_before_the_first_run_the_guess_is_long():
    assert CostModel().costs() == UNMEASURED
    assert CostModel().predict([1_000_000], 1).seconds == pytest.approx(5 + 200 + 60)


def test_one_shard_gives_the_time_of_an_interaction():
    assert observed((1000, 2.0)).costs() == Costs(0, 0.002, 1.0)
    assert observed((1000, 2.0), (1000, 4.0)).costs() == Costs(0, 0.003, 1.0)


def test_a_shard_without_interactions_gives_the_fixed_time():
    assert observed((0, 2.0)).costs() == Costs(2.0, 0, 1.0)


def test_the_line_through_shards_of_several_sizes_is_found():
    costs = observed((100, 3.0), (200, 5.0), (400, 9.0)).costs()
    assert (costs.shard_seconds, costs.seconds_per_interaction) == pytest.approx((1, 0.02))


def test_faster_larger_shards_are_treated_as_noise():
    assert observed((100, 3.0), (200, 1.0)).costs() == Costs(2.0, 0, 1.0)


def test_a_line_with_a_negative_intercept_goes_through_zero():
    costs = observed((100, 0.0), (200, 2.0)).costs()
    assert (costs.shard_seconds, costs.seconds_per_interaction) == pytest.approx((0, 400 / 50_000))


@given(st.lists(st.tuples(st.integers(0, 10**9), st.floats(0, 10**6)), min_size=1, max_size=12))
def test_coefficients_are_not_negative_and_locally_optimal(shards):
    costs = observed(*shards).costs()
    assert costs.shard_seconds >= 0
    assert costs.seconds_per_interaction >= 0
    sizes, seconds = np.array(shards, float).T

    def error(fixed: float, rate: float) -> float:
        return float(((fixed + rate * sizes - seconds) ** 2).sum())

    best = error(costs.shard_seconds, costs.seconds_per_interaction)
    for fixed in (0.0, costs.shard_seconds * 0.9, costs.shard_seconds * 1.1 + 0.1):
        for rate in (0.0, costs.seconds_per_interaction * 0.9, costs.seconds_per_interaction * 1.1):
            assert best <= error(fixed, rate) * (1 + 1e-6) + 1e-6


def test_old_measurements_are_forgotten():
    model = CostModel()
    for _ in range(max(KEPT_SHARDS, KEPT_RUNS)):
        model = model.observe(Run((ShardRun(1000, 1000.0),), 1000.0))
    for _ in range(max(KEPT_SHARDS, KEPT_RUNS)):
        model = model.observe(Run((ShardRun(1000, 1.0),), 2.0))
    assert model.costs() == Costs(0, 0.001, 2.0)
    assert (len(model.shards), len(model.aggregations)) == (KEPT_SHARDS, KEPT_RUNS)


@given(st.integers(0, 10**9))
def test_a_size_is_remembered_to_within_a_tenth(interactions):
    assert abs(ShardRun.of(interactions, 1.0).interactions - interactions) <= interactions / 10


def test_sizes_that_differ_by_little_are_remembered_alike():
    remembered = [ShardRun.of(interactions, 1.0).interactions for interactions in range(1000, 2001)]
    assert remembered == sorted(remembered)
    assert len(set(remembered)) == 9
    assert ShardRun.of(10**6, 2.5) == ShardRun.of(10**6 - 200, 2.5)  # except for the pairs of one user
    assert ShardRun.of(0, 2.5) == ShardRun(0, 2.5)


def test_the_last_aggregations_count_by_their_mean():
    model = observed((10, 1.0), aggregation=1.0).observe(Run((), 3.0))
    assert model.costs().aggregation_seconds == 2


@given(
    st.lists(st.tuples(st.integers(0, 10**9), st.floats(0, 1e6)), max_size=5),
    st.lists(st.floats(0, 1e6), max_size=5),
)
def test_a_model_kept_as_json_is_the_same_again(shards, aggregations):
    model = CostModel(tuple(ShardRun(*shard) for shard in shards), tuple(aggregations))
    assert CostModel.from_json(model.to_json()) == model


# ---- settings --------------------------------------------------------------------------------------------------------------


def test_the_default_plan_is_immediate():
    assert plan_of(UnlearningConfig()) == Plan("immediate")


def test_a_deadline_plan_uses_the_margin_of_the_settings():
    assert plan_of(UnlearningConfig(plan="deadline=30d")) == Plan("deadline", 30 * DAY, DAY)
    assert plan_of(UnlearningConfig(plan="deadline=12h", margin_days=0.25)) == Plan("deadline", DAY / 2, DAY / 4)


def test_plans_can_be_set_on_the_command_line_and_survive_toml(tmp_path):
    config = load_config(None, ["unlearning.plan=deadline=20d", "unlearning.margin_days=2", "unlearning.signing_key=key.pem"])
    assert plan_of(config.unlearning) == Plan("deadline", 20 * DAY, 2 * DAY)
    file = tmp_path / "eraser.toml"
    file.write_text(config.to_toml(), "utf-8")
    assert load_config(file) == config
    assert config.fingerprint() == EraserConfig().fingerprint()


@pytest.mark.parametrize(
    ("changes", "key", "way_out"),
    [
        (["unlearning.plan=sometimes"], "unlearning.plan", "every=6h"),
        (["unlearning.plan=deadline=31d"], "unlearning.plan", "shorter plan"),
        (["unlearning.plan=every=2d", "unlearning.deadline_days=1"], "unlearning.plan", "shorter plan"),
        (["unlearning.plan=deadline=12h"], "unlearning.margin_days", "at most 0.5"),
        (["unlearning.deadline_days=0"], "unlearning.deadline_days", "greater than 0"),
        (["unlearning.margin_days=-1"], "unlearning.margin_days", "greater than or equal to 0"),
        (["unlearning.max_pending=0"], "unlearning.max_pending", "greater than or equal to 1"),
        (["unlearning.max_attempts=0"], "unlearning.max_attempts", "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused_with_the_way_out(changes, key, way_out):
    with pytest.raises(ConfigError) as caught:
        load_config(None, changes)
    assert caught.value.key == key
    assert way_out in str(caught.value)
