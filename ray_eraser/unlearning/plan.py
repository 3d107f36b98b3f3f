"""When waiting requests are carried out, the predicted cost of a run, and the cost model learned from past runs.

Times are seconds since 1970. The caller passes the current time in.
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
"""The assumed largest factor by which a prediction is too low."""


@dataclass(frozen=True)
class Waiting:
    """The part of a waiting request that a plan needs. A priority above 0 does not wait."""

    received_at: float
    priority: int = 0


@dataclass(frozen=True)
class Plan:
    """Decides when the next run is due. A run carries out all waiting requests.

    Attributes:
        kind: `immediate`: as soon as a request waits. `every`: runs start at least `seconds` apart, and the first run starts
            `seconds` after its oldest request. `deadline`: as late as possible, but the run ends before the oldest request is
            `seconds` old.
        seconds: 0 for `immediate`.
        margin_seconds: for `deadline`, the run ends this long before the deadline, in case something goes wrong.
        safety: for `deadline`, the run gets this multiple of its predicted duration.
    """

    kind: PlanKind
    seconds: float = 0.0
    margin_seconds: float = 0.0
    safety: float = SAFETY

    def next_run(self, waiting: Sequence[Waiting], last_run_at: float | None, predicted_seconds: float) -> float | None:
        """The start time of the next run. A past time means now; None means that no request waits.

        Args:
            waiting: the requests, in any order.
            last_run_at: when the last run started; None if there was none.
            predicted_seconds: predicted duration of a run for all of `waiting`.
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
    """The plan that `unlearning.plan` names. `margin_seconds` applies to a plan with a deadline.

    Raises:
        ConfigError: the text names no plan.
    """
    kind, seconds = read_plan(text)
    return Plan(kind, seconds, margin_seconds if kind == "deadline" else 0.0)


def plan_of(config: UnlearningConfig) -> Plan:
    """The plan of a deployment, with its margin."""
    return parse_plan(config.plan, config.margin_days * DAY)


def overdue(waiting: Sequence[Waiting], deadline_seconds: float, now: float) -> int:
    """Number of requests that have waited longer than the legal deadline, whatever the plan."""
    return sum(now - request.received_at > deadline_seconds for request in waiting)


def oldest_pending_seconds(waiting: Sequence[Waiting], now: float) -> float:
    """Age of the oldest waiting request; 0 if there is none."""
    return max((now - request.received_at for request in waiting), default=0.0)


# ---- what a run costs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """The predicted cost of a run: `seconds` from start to end, and `machine_seconds` of busy slots."""

    seconds: float
    machine_seconds: float


@dataclass(frozen=True)
class Costs:
    """The cost parameters of a run.

    Each shard takes `shard_seconds`, plus `seconds_per_interaction` times its number of interactions.
    """

    shard_seconds: float
    seconds_per_interaction: float
    aggregation_seconds: float

    def predict(self, shard_interactions: Sequence[int], slots: int) -> Prediction:
        """Predict a run that trains shards of these sizes, `slots` (at least 1) at a time, and then aggregates."""
        seconds = [self.shard_seconds + self.seconds_per_interaction * size for size in shard_interactions]
        return Prediction(
            makespan(seconds, slots) + self.aggregation_seconds,
            sum(seconds) + self.aggregation_seconds,
        )


UNMEASURED = Costs(shard_seconds=5.0, seconds_per_interaction=2e-4, aggregation_seconds=60.0)
"""The assumed costs before the first run: 200 seconds for a million interactions. That is twice the time of LightGCN, the
slowest base model, with its defaults on MovieLens-1M. Too high a guess makes a `deadline` plan start early, too low a guess
late."""

KEPT_SHARDS, KEPT_RUNS = 200, 20
"""Numbers of recent shard trainings and aggregations that the cost model keeps."""


class ShardRun(NamedTuple):
    """A measured training of one shard.

    Attributes:
        interactions: approximate number of interactions; see `of`.
        seconds: duration.
    """

    interactions: int
    seconds: float

    @classmethod
    def of(cls, interactions: int, seconds: float) -> ShardRun:
        """Round the size to within a tenth. The exact size before an erasure would reveal how much was erased."""
        eighths = round(8 * math.log2(interactions)) if interactions else 0
        return cls(round(2 ** (eighths / 8)) if interactions else 0, seconds)


@dataclass(frozen=True)
class Run:
    """A measured run: the shards that were trained, and the aggregation."""

    shards: tuple[ShardRun, ...]
    aggregation_seconds: float


@dataclass(frozen=True)
class CostModel:
    """The measurements of recent runs, and the costs that they predict for the next run.

    Attributes:
        shards: recent trainings of shards, the latest last.
        aggregations: seconds of recent aggregations, the latest last.
    """

    shards: tuple[ShardRun, ...] = ()
    aggregations: tuple[float, ...] = ()

    def observe(self, run: Run) -> CostModel:
        """The model with one more run. The oldest measurements are dropped."""
        return CostModel(
            (*self.shards, *run.shards)[-KEPT_SHARDS:],
            (*self.aggregations, run.aggregation_seconds)[-KEPT_RUNS:],
        )

    def predict(self, shard_interactions: Sequence[int], slots: int) -> Prediction:
        """See `Costs.predict`."""
        return self.costs().predict(shard_interactions, slots)

    def costs(self) -> Costs:
        """Costs by least squares over the shards and the mean of the aggregations; `UNMEASURED` if nothing was measured.

        Shards of a single size do not reveal the fixed part of the duration, so the whole duration is attributed to size.
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
    """End time of the last job if the longest jobs start first, each in the slot that is free first (Graham 1969, LPT)."""
    ends = [0.0] * min(slots, max(1, len(seconds)))
    for job in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + job)
    return max(ends)


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Non-negative intercept and slope with the least squared error; a line through 0 if all sizes are equal."""
    mean_x = math.fsum(x for x, _ in points) / len(points)
    mean_y = math.fsum(y for _, y in points) / len(points)
    squares = math.fsum((x - mean_x) ** 2 for x, _ in points)
    if squares > 0:
        slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / squares
        if slope >= 0 and mean_y >= slope * mean_x:
            return mean_y - slope * mean_x, slope
    # The unconstrained optimum breaks a bound, so the constrained optimum is on a bound: a flat line, or a line through 0.
    flat = (mean_y, 0.0)
    length = math.fsum(x * x for x, _ in points)
    if length == 0:
        return flat
    through_zero = (0.0, math.fsum(x * y for x, y in points) / length)
    return through_zero if squares == 0 else min(through_zero, flat, key=lambda line: _error(line, points))


def _error(line: tuple[float, float], points: Sequence[tuple[float, float]]) -> float:
    return math.fsum((y - line[0] - line[1] * x) ** 2 for x, y in points)
