"""When the requests that wait are carried out, what that will cost, and what past runs teach about it.

Times are seconds since 1970, and always handed in. K shards.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ray_eraser.config import DAY, PlanKind, UnlearningConfig, read_plan

SAFETY = 2.0
"""Predictions are wrong by less than this factor, it is hoped."""


@dataclass(frozen=True)
class Waiting:
    """What a plan looks at of a request that waits. A priority above 0 does not wait."""

    received_at: float
    priority: int = 0


@dataclass(frozen=True)
class Plan:
    """Says when a run is due that carries out everything that waits.

    Attributes:
        kind: `immediate`: as soon as something waits. `every`: runs start at least `seconds` apart, the first so long after its
            oldest request. `deadline`: as late as possible, so that the run is over before the oldest request is `seconds` old.
        seconds: 0 for `immediate`.
        margin_seconds: `deadline`: how long before that the run is over, for what may go wrong.
        safety: `deadline`: leaves so many times the predicted seconds for the run.
    """

    kind: PlanKind
    seconds: float = 0.0
    margin_seconds: float = 0.0
    safety: float = SAFETY

    def next_run(self, waiting: Sequence[Waiting], last_run_at: float | None, predicted_seconds: float) -> float | None:
        """When the next run must be started; a time that has passed means now, None that nothing waits.

        Args:
            waiting: the requests, in any order.
            last_run_at: when the last run was started; None where there was none.
            predicted_seconds: how long a run for all of `waiting` will take.
        """
        if not waiting:
            return None
        oldest = due = min(request.received_at for request in waiting)
        if self.kind == "every":
            due = oldest + self.seconds if last_run_at is None else max(oldest, last_run_at + self.seconds)
        elif self.kind == "deadline":
            due = oldest + self.seconds - self.margin_seconds - self.safety * predicted_seconds
        return min([due, *(request.received_at for request in waiting if request.priority > 0)])


def parse_plan(text: str, margin_seconds: float) -> Plan:
    """The plan that `unlearning.plan` names; `margin_seconds` is for those with a deadline.

    Raises:
        ConfigError: it names none.
    """
    kind, seconds = read_plan(text)
    return Plan(kind, seconds, margin_seconds if kind == "deadline" else 0.0)


def plan_of(config: UnlearningConfig) -> Plan:
    """The plan of a deployment, with its margin."""
    return parse_plan(config.plan, config.margin_days * DAY)


def overdue(waiting: Sequence[Waiting], deadline_seconds: float, now: float) -> int:
    """How many requests have waited longer than the law allows, whichever the plan."""
    return sum(now - request.received_at > deadline_seconds for request in waiting)


def oldest_pending_seconds(waiting: Sequence[Waiting], now: float) -> float:
    """For how long the oldest request has waited; 0 where none does."""
    return max((now - request.received_at for request in waiting), default=0.0)


# ---- what a run costs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """What a run will take: `seconds` from start to end, `machine_seconds` of slots at work."""

    seconds: float
    machine_seconds: float


@dataclass(frozen=True)
class Costs:
    """What a run consists of: each shard takes `shard_seconds` and `seconds_per_interaction` times its interactions."""

    shard_seconds: float
    seconds_per_interaction: float
    aggregation_seconds: float

    def predict(self, shard_interactions: Sequence[int], slots: int) -> Prediction:
        """A run that trains shards with so many interactions, `slots` (at least 1) of them at a time, and aggregates."""
        seconds = [self.shard_seconds + self.seconds_per_interaction * size for size in shard_interactions]
        return Prediction(
            makespan(seconds, slots) + self.aggregation_seconds,
            sum(seconds) + self.aggregation_seconds,
        )


UNMEASURED = Costs(shard_seconds=5.0, seconds_per_interaction=2e-4, aggregation_seconds=60.0)
"""What is taken for true before the first run: 200 seconds for a million interactions, twice what LightGCN, the slowest base
model, takes with its defaults on MovieLens-1M. Too long a guess makes a `deadline` plan start early, too short a one late."""

KEPT_SHARDS, KEPT_RUNS = 200, 20
"""Older measurements than so many of shards, and so many of aggregations, are forgotten."""


class ShardRun(NamedTuple):
    """A measured training of one shard.

    Attributes:
        interactions: about how many; see `of`.
        seconds: that it took.
    """

    interactions: int
    seconds: float

    @classmethod
    def of(cls, interactions: int, seconds: float) -> ShardRun:
        """Remember a training. Sizes are kept to within a tenth: exact ones from before an erasure would say how much went."""
        eighths = round(8 * math.log2(interactions)) if interactions else 0
        return cls(round(2 ** (eighths / 8)) if interactions else 0, seconds)


@dataclass(frozen=True)
class Run:
    """A measured run: the shards that were trained, and the aggregation."""

    shards: tuple[ShardRun, ...]
    aggregation_seconds: float


@dataclass(frozen=True)
class CostModel:
    """What recent runs took, and what they say about the next one.

    Attributes:
        shards: recent trainings of shards, the latest last.
        aggregations: seconds of recent aggregations, the latest last.
    """

    shards: tuple[ShardRun, ...] = ()
    aggregations: tuple[float, ...] = ()

    def observe(self, run: Run) -> CostModel:
        """The model with one more run; what is too old is forgotten."""
        return CostModel(
            (*self.shards, *run.shards)[-KEPT_SHARDS:],
            (*self.aggregations, run.aggregation_seconds)[-KEPT_RUNS:],
        )

    def predict(self, shard_interactions: Sequence[int], slots: int) -> Prediction:
        """See `Costs.predict`."""
        return self.costs().predict(shard_interactions, slots)

    def costs(self) -> Costs:
        """Least squares over the shards, the mean over the aggregations; `UNMEASURED` for what was never measured.

        Shards of one size only, or a single one, do not say what part of their seconds is fixed: all is put down to size.
        """
        shard, rate = _line(self.shards) if self.shards else (UNMEASURED.shard_seconds, UNMEASURED.seconds_per_interaction)
        known = self.aggregations
        return Costs(shard, rate, math.fsum(known) / len(known) if known else UNMEASURED.aggregation_seconds)

    def to_json(self) -> str:
        return json.dumps({"shards": self.shards, "aggregations": self.aggregations})

    @classmethod
    def from_json(cls, text: str) -> CostModel:
        fields = json.loads(text)
        return cls(tuple(ShardRun(*shard) for shard in fields["shards"]), tuple(fields["aggregations"]))


def makespan(seconds: Sequence[float], slots: int) -> float:
    """When the last of some jobs is done, the longest begun first, each in the slot that is free first (Graham 1969, LPT)."""
    ends = [0.0] * min(slots, max(1, len(seconds)))
    for job in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + job)
    return max(ends)


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope, neither below 0, with the least sum of squared errors; through 0 where a slope cannot be told."""
    mean_x = math.fsum(x for x, _ in points) / len(points)
    mean_y = math.fsum(y for _, y in points) / len(points)
    squares = math.fsum((x - mean_x) ** 2 for x, _ in points)
    if squares > 0:
        slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / squares
        if slope >= 0 and mean_y >= slope * mean_x:
            return mean_y - slope * mean_x, slope
    # The best line breaks a bound, so the best one that keeps both lies on a bound: flat, or through 0.
    flat = (mean_y, 0.0)
    length = math.fsum(x * x for x, _ in points)
    if length == 0:
        return flat
    through_zero = (0.0, math.fsum(x * y for x, y in points) / length)
    return through_zero if squares == 0 else min(through_zero, flat, key=lambda line: _error(line, points))


def _error(line: tuple[float, float], points: Sequence[tuple[float, float]]) -> float:
    return math.fsum((y - line[0] - line[1] * x) ** 2 for x, y in points)
