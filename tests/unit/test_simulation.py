"""Replay streams under plans: small streams computed by hand, and random streams against their expected values.

By hand: two shards have 100 and 200 interactions. A shard takes 1 s plus .01 s per interaction, so 2 s and 3 s; the aggregation
takes 1 s. A run for shard 0 alone takes 3 s. A run for both takes 6 s in one slot and 4 s in two.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.config import DAY, PartitionConfig
from ray_eraser.errors import ConfigError, DataFileError, InputError
from ray_eraser.partition import divide
from ray_eraser.study.figures import draw_plans
from ray_eraser.study.simulation import (
    Arrival,
    EvenDivision,
    LogDivision,
    Outcome,
    Routed,
    duration,
    parse_mix,
    poisson_stream,
    read_stream,
    replay,
    route,
    shown_rows,
)
from ray_eraser.unlearning.plan import Costs, Plan

SIZES = (100, 200)
COSTS = Costs(shard_seconds=1, seconds_per_interaction=0.01, aggregation_seconds=1)


def requests(*arrivals: tuple[float, set[int]]) -> list[Routed]:
    return [Routed(at, frozenset(shards)) for at, shards in arrivals]


THREE = requests((0, {0}), (1, {1}), (2, {0}))


# ---- by hand ---------------------------------------------------------------------------------------------------------------


def test_with_immediate_plans_requests_that_arrive_during_a_run_share_the_next():
    """Run 1: 0 to 3, shard 0. Run 2: 3 to 9, both shards, for the requests received at 1 and 2."""
    assert replay(THREE, Plan("immediate"), SIZES, COSTS, slots=1) == Outcome((3, 8, 7), (1, 2), 3, 3 + 6, 1.0)


def test_a_second_slot_shortens_the_run_and_not_the_work():
    """Run 2: 3 to 7, because the shards of 2 s and 3 s are trained at the same time."""
    assert replay(THREE, Plan("immediate"), SIZES, COSTS, slots=2) == Outcome((3, 6, 5), (1, 2), 3, 3 + 6, 1.0)


def test_with_periodic_plans_all_waiting_requests_share_a_run():
    """Run 1: 10 to 16, both shards. Run 2: 20 to 23, shard 0, for the request received at 12. Runs take 9 of the 23 s."""
    stream = requests((0, {0}), (1, {1}), (12, {0}))
    assert replay(stream, Plan("every", 10), SIZES, COSTS, 1) == Outcome((16, 15, 11), (2, 1), 3, 9, 9 / 23)


def test_a_deadline_makes_one_run_of_three_requests():
    """The run starts at 100 - 10 - 2 * 6 = 78 and ends at 84."""
    assert replay(THREE, Plan("deadline", 100, 10), SIZES, COSTS, 1) == Outcome((84, 83, 82), (3,), 2, 6, 6 / 84)


def test_a_request_that_makes_the_run_longer_makes_it_start_earlier():
    """A run for shard 0 alone would start at 15 - 2 * 3 = 9. With shard 1, added at 8, it should have started at
    15 - 2 * 6 = 3, so it starts at once and lasts from 8 to 14.

    The run for the request received at 8.5 starts at 8.5 + 15 - 2 * 3 = 17.5 and ends at 20.5.
    """
    stream = requests((0, {0}), (8, {1}), (8.5, {0}))
    assert replay(stream, Plan("deadline", 15), SIZES, COSTS, 1).latencies == (14, 6, 12)


def test_requests_of_the_same_moment_share_a_run():
    assert replay(requests((5, {0}), (5, {0})), Plan("immediate"), SIZES, COSTS, 1) == Outcome((3, 3), (2,), 1, 3, 1.0)


def test_a_request_without_data_in_any_shard_needs_only_an_aggregation():
    assert replay(requests((5, set())), Plan("immediate"), SIZES, COSTS, 1) == Outcome((1,), (1,), 0, 1, 1.0)


def test_a_row_has_nearest_rank_percentiles_and_missed_deadlines():
    """Among 1 to 20, half are at most 10, 95 % at most 19, and 99 % at most 20; two exceed 18."""
    row = Outcome(tuple(map(float, range(20, 0, -1))), (15, 5), 7, 7200.0, 0.25).to_row(deadline_seconds=18)
    assert row == {
        "requests": 20, "p50": 10, "p95": 19, "p99": 20, "max": 20, "missed": 2, "runs": 2, "batch_mean": 10, "batch_max": 15,
        "retrainings": 7, "machine_hours": 2, "busy": 0.25,
    }  # fmt: skip


def test_a_stream_without_requests_is_refused():
    with pytest.raises(InputError, match="no request"):
        replay([], Plan("immediate"), SIZES, COSTS, 1)


# ---- streams ---------------------------------------------------------------------------------------------------------------


def test_a_poisson_stream_has_the_given_rate_mix_and_seed():
    stream = poisson_stream(100, 50, {"user": 3, "pairs": 1}, seed=4)
    assert len(stream) == pytest.approx(5000, abs=5 * math.sqrt(5000))
    assert sum(arrival.kind == "user" for arrival in stream) / len(stream) == pytest.approx(0.75, abs=0.03)
    assert {arrival.kind for arrival in stream} == {"user", "pairs"}
    times = [arrival.at for arrival in stream]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= 50 * DAY
    assert stream == poisson_stream(100, 50, {"user": 3, "pairs": 1}, seed=4)
    assert stream != poisson_stream(100, 50, {"user": 3, "pairs": 1}, seed=5)


@pytest.mark.parametrize(("per_day", "days"), [(0, 5), (1e9, 1e9), (math.nan, 1), (math.inf, 1)])
def test_a_rate_of_zero_or_above_the_limit_is_refused(per_day, days):
    with pytest.raises(InputError, match="cannot be replayed"):
        poisson_stream(per_day, days, {"user": 1}, 0)


def test_a_mix_is_read_from_its_text():
    assert parse_mix("user=90, item=2,pairs=0.5") == {"user": 90, "item": 2, "pairs": 0.5}


@pytest.mark.parametrize("text", ["", "user", "user=x", "user=-1", "user=nan", "film=3", "user=1,user=2", "user=0,item=0"])
def test_a_text_that_is_not_a_mix_is_refused(text):
    with pytest.raises(ConfigError, match="config --mix"):
        parse_mix(text)


def test_a_stream_is_read_from_a_file_in_any_order(tmp_path):
    file = tmp_path / "stream.csv"
    file.write_text("1970-01-01T00:01:30,item\n30.5,user\n1970-01-01T01:01:00+01:00,pairs\n")
    assert read_stream(file) == [Arrival(30.5, "user"), Arrival(60, "pairs"), Arrival(90, "item")]


@pytest.mark.parametrize("line", ["5", "5,film", "soon,user", "nan,user", "5,user,9", ""])
def test_an_invalid_line_is_named(tmp_path, line):
    file = tmp_path / "stream.csv"
    file.write_text(f"1,user\n{line}\n")
    with pytest.raises(DataFileError, match=r"stream\.csv, line 2: expected 'time,kind'"):
        read_stream(file)


def test_a_missing_stream_file_is_refused(tmp_path):
    with pytest.raises(DataFileError, match="cannot be read"):
        read_stream(tmp_path / "absent.csv")


# ---- what requests touch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "single"),
    [
        ("hashed", {"user", "pairs"}),
        ("user_based", {"user", "pairs"}),
        ("label_propagation", {"user", "pairs"}),
        ("item_based", {"item", "pairs"}),
        ("random", {"pairs"}),
        ("interaction_based", {"pairs"}),
    ],
)
def test_a_unit_that_a_partition_keeps_whole_touches_one_shard(kind, single):
    division = EvenDivision(kind, 10, 100_000, 1000, 500)
    rng = np.random.default_rng(0)
    for request in ("user", "item", "pairs"):
        counts = [len(division.touched(request, rng)) for _ in range(200)]
        assert (max(counts) == 1) == (request in single)
        assert min(counts) >= 1


def test_a_spread_unit_touches_as_many_shards_as_expected():
    """M interactions, geometric with mean 20, in K = 10 shards touch K (1 - E q^M) shards on average.

    Here q = .9 and E q^M = p q / (1 - (1 - p) q).
    """
    p, q = 1 / 20, 0.9
    rng = np.random.default_rng(1)
    counts = [len(EvenDivision("random", 10, 20_000, 1000, 500).touched("user", rng)) for _ in range(4000)]
    assert np.mean(counts) == pytest.approx(10 * (1 - p * q / (1 - (1 - p) * q)), rel=0.02)


def test_even_shards_share_the_interactions():
    assert EvenDivision("hashed", 4, 1000, 10, 10).sizes == (250, 250, 250, 250)


@pytest.mark.parametrize("kind", ["hashed", "random"])
def test_a_real_log_is_divided_as_in_a_deployment(tiny, tiny_config, kind):
    config = PartitionConfig(kind=kind, n_shards=3)
    division = LogDivision(tiny, config, tiny_config.seed)
    partition = divide(tiny.train, tiny.users.keys, tiny.items.keys, config, tiny_config.seed)
    assert list(division.sizes) == partition.sizes().tolist()
    rng = np.random.default_rng(0)
    for request, rows in (("user", tiny.train.users), ("item", tiny.train.items)):
        possible = {frozenset(partition.owners[rows == row].tolist()) for row in np.unique(rows)}
        assert {division.touched(request, rng) for _ in range(2000)} == possible
    assert {division.touched("pairs", rng) for _ in range(200)} == {frozenset([shard]) for shard in range(3)}


def test_a_log_is_divided_under_the_given_seed(tiny):
    config = PartitionConfig(kind="hashed", n_shards=3)
    other = tiny.under(7)
    owners = divide(other.train, other.users.keys, other.items.keys, config, 7).owners
    assert LogDivision(tiny, config, 7).sizes == tuple(np.bincount(owners, minlength=3).tolist())


def test_a_learned_partition_of_a_log_is_refused(tiny):
    with pytest.raises(ConfigError, match="hashed or random only"):
        LogDivision(tiny, PartitionConfig(kind="user_based"), 0)


# ---- all together ----------------------------------------------------------------------------------------------------------


def test_a_batch_of_user_requests_trains_as_many_shards_as_expected():
    """The 20 requests of a day on ten shards train 10 (1 - .9^20) = 8.8 shards per run."""
    stream = [Arrival(day * DAY + hour, "user") for day in range(300) for hour in range(20)]
    routed = route(stream, EvenDivision("hashed", 10, 1000, 100, 10), seed=2)
    outcome = replay(routed, Plan("deadline", DAY / 2), (100,) * 10, Costs(0, 0, 1), 1)
    assert outcome.batches == (20,) * 300
    assert outcome.retrainings / 300 == pytest.approx(10 * (1 - 0.9**20), rel=0.02)


@given(
    st.lists(st.tuples(st.integers(0, 500), st.sets(st.integers(0, 1))), min_size=1, max_size=15),
    st.sampled_from([Plan("immediate"), Plan("every", 50), Plan("deadline", 80, 5)]),
    st.integers(1, 2),
)
def test_every_request_is_carried_out_once_and_in_order(arrivals, plan, slots):
    stream = requests(*sorted(arrivals, key=lambda arrival: arrival[0]))
    outcome = replay(stream, plan, SIZES, COSTS, slots)
    assert len(outcome.latencies) == sum(outcome.batches) == len(stream)
    ends = [request.at + latency for request, latency in zip(stream, outcome.latencies, strict=True)]
    assert ends == sorted(ends)
    assert min(outcome.latencies) >= COSTS.aggregation_seconds
    assert 0 < outcome.busy <= 1
    if plan.kind == "deadline":
        assert max(outcome.latencies) <= 80


def test_the_longer_requests_may_wait_the_less_is_trained():
    division = EvenDivision("hashed", 10, 10_000, 1000, 100)
    routed = route(poisson_stream(50, 60, {"user": 1}, 0), division, 0)
    plans = [Plan("immediate"), Plan("every", DAY / 4), Plan("every", DAY), Plan("deadline", 30 * DAY, DAY)]
    hours = [replay(routed, plan, division.sizes, COSTS, 2).machine_seconds for plan in plans]
    assert hours == sorted(hours, reverse=True)
    assert hours[0] > 10 * hours[-1]


def test_durations_are_shown_in_a_suitable_unit():
    assert [duration(s) for s in (0.25, 59, 90, 3600, 36 * 3600)] == ["0.25 s", "59 s", "1.5 min", "1 h", "1.5 d"]


def test_outcomes_make_a_table_and_a_figure(tmp_path):
    rows = [
        {"plan": name, "shards": shards, **replay(THREE, plan, SIZES, COSTS, shards).to_row(83.5)}
        for name, plan in (("immediate", Plan("immediate")), ("deadline=100s", Plan("deadline", 100, 10)))
        for shards in (1, 2)
    ]
    assert json.loads(json.dumps(rows)) == rows
    shown = shown_rows(rows)
    assert shown[3] == [
        "deadline=100s",
        "1",
        "1.38 min",
        "1.4 min",
        "1.4 min",
        "1.4 min",
        "1",
        "1",
        "3.0",
        "2",
        "0.001667",
        "7.1%",
    ]
    pytest.importorskip("matplotlib")  # an extra; the table does without
    png, svg = draw_plans(rows, 30, tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text("utf-8")
