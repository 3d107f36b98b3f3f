"""Simulate a plan without training: replay a stream of requests to predict its cost and the waiting times.

A virtual clock runs over the requests. A run takes the time that `Costs` predicts, and carries out all requests that wait when
it starts. The simulation ignores that erasures make the log smaller, so real later runs are slightly cheaper.

K shards, U users, I items.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, isfinite
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ray_eraser import seeds
from ray_eraser.config import DAY, PartitionSettings
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import ConfigError, DataFileError, InputError
from ray_eraser.partition import divide
from ray_eraser.unlearning.plan import Costs, Plan, Waiting

KINDS = ("user", "item", "pairs")
"""The kinds of requests; here `pairs` means a single interaction."""


_MOST_REQUESTS = 10_000_000


@dataclass(frozen=True)
class Arrival:
    """A request of a stream: the time when it is received, in seconds, and its kind."""

    at: float
    kind: str


@dataclass(frozen=True)
class Routed:
    """A request of a stream on a partition: the time when it is received, in seconds, and the shards that own its data."""

    at: float
    shards: frozenset[int]


class Division(Protocol):
    """A division of interactions into shards, from which requests can be drawn."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of interactions of every shard, (K,)."""
        ...

    def touched(self, kind: str, rng: np.random.Generator) -> frozenset[int]:
        """Draw a random request of a kind, and return the shards that it touches."""
        ...


# ---- streams ---------------------------------------------------------------------------------------------------------------


def parse_mix(text: str) -> dict[str, float]:
    """Parse the shares of the kinds from text such as `user=90,item=2,pairs=8`. The shares may have any sum.

    Raises:
        ConfigError: a kind is unknown or given twice, a share is not a number of at least 0, or all shares are 0.
    """
    mix: dict[str, float] = {}
    for part in text.split(","):
        kind, _, number = (piece.strip() for piece in part.partition("="))
        share = _number(number)
        if kind not in KINDS or kind in mix or share is None or share < 0:
            raise ConfigError("--mix", f"{part!r} is not a share of a kind: write user=90,item=2,pairs=8")
        mix[kind] = share
    if sum(mix.values()) <= 0:
        raise ConfigError("--mix", f"all shares are 0 in {text!r}: give at least one kind a positive share")
    return mix


def poisson_stream(per_day: float, days: float, mix: Mapping[str, float], seed: int) -> list[Arrival]:
    """Draw requests that arrive independently, `per_day` on average, with kinds drawn by their shares.

    Raises:
        InputError: there would be no requests, or too many to replay.
    """
    if not 0 < per_day * days <= _MOST_REQUESTS:
        raise InputError(
            f"{per_day:g} requests a day for {days:g} days cannot be replayed: ask for 1 to {_MOST_REQUESTS} of them"
        )
    rng = np.random.default_rng(seeds.derive(seed, "simulation", "arrivals"))
    times = np.sort(rng.uniform(0, days * DAY, rng.poisson(per_day * days)))
    shares = np.array([mix.get(kind, 0.0) for kind in KINDS])
    kinds = rng.choice(len(KINDS), len(times), p=shares / shares.sum())
    return [Arrival(float(at), KINDS[kind]) for at, kind in zip(times, kinds, strict=True)]


def read_stream(file: Path) -> list[Arrival]:
    """Read recorded requests from a CSV file without a header: `time,kind` per line.

    Times are in seconds, or dates in ISO 8601; a date without a time zone is in UTC.

    Raises:
        DataFileError: the file cannot be read, or a line is invalid. The error names the file and the line.
    """
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(str(file), f"cannot be read ({error}): give a UTF-8 CSV file") from error
    arrivals = []
    for line, row in enumerate(rows, 1):
        at = _time(row[0]) if len(row) == 2 else None
        if at is None or row[1].strip() not in KINDS:
            expected = f"expected 'time,kind' with a kind of {', '.join(KINDS)}"
            raise DataFileError(str(file), f"{expected}, got {','.join(row)!r}", line)
        arrivals.append(Arrival(at, row[1].strip()))
    return sorted(arrivals, key=lambda arrival: arrival.at)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def _time(text: str) -> float | None:
    number = _number(text)
    if number is not None:
        return number
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


# ---- partitions ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvenDivision:
    """A log of which only the size is known, in equal shards.

    The units that a partition keeps whole are in one shard; everything else is spread at random. Learned partitions also keep
    similar units together, so they touch at most as many shards as predicted here. The number of interactions of a user or item
    is drawn from a geometric distribution, because it is skewed in real logs. (MovieLens-1M, K = 50, `random`: a user is in 35
    shards on average, and here also in 35; an item is in 34, and here in 40.)

    Attributes:
        kind: the kind of partition, as in `PartitionConfig`.
        n_shards: K.
        n_interactions, n_users, n_items: the size of the log.
    """

    kind: str
    n_shards: int
    n_interactions: int
    n_users: int
    n_items: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of interactions of every shard, (K,)."""
        return (round(self.n_interactions / self.n_shards),) * self.n_shards

    def touched(self, kind: str, rng: np.random.Generator) -> frozenset[int]:
        whole = {"random": "", "interaction_based": "", "item_based": "item"}.get(self.kind, "user")
        if kind in ("pairs", whole):
            return frozenset([int(rng.integers(self.n_shards))])
        owners = {"user": self.n_users, "item": self.n_items}[kind]
        interactions = rng.geometric(min(1.0, owners / self.n_interactions))
        in_shard = rng.multinomial(interactions, np.full(self.n_shards, 1 / self.n_shards))
        return frozenset(np.flatnonzero(in_shard).tolist())


class LogDivision:
    """A real log, divided by keyed hashes as in a deployment with these settings.

    The users, items and interactions of requests are drawn uniformly. Held-out interactions are left out.

    Raises:
        ConfigError: the partition is learned.
    """

    def __init__(self, dataset: Dataset, config: PartitionSettings, seed: int) -> None:
        if config.is_learned:
            raise ConfigError(
                "partition.kind", f"{config.kind} is learned: the simulation divides a log by hashed or random only"
            )
        log = dataset.under(seed)
        train = log.train
        partition = divide(train, log.users.keys, log.items.keys, config, seed)
        self.sizes = tuple(partition.sizes().tolist())
        self._pair_owners = partition.owners
        self._by_user = _shards_of(train.users, partition.owners, config.n_shards)
        self._by_item = _shards_of(train.items, partition.owners, config.n_shards)

    def touched(self, kind: str, rng: np.random.Generator) -> frozenset[int]:
        if kind == "pairs":
            return frozenset([int(self._pair_owners[rng.integers(len(self._pair_owners))])])
        starts, shards = self._by_user if kind == "user" else self._by_item
        drawn = int(rng.integers(len(starts) - 1))
        return frozenset(shards[starts[drawn] : starts[drawn + 1]].tolist())


def _shards_of(rows: np.ndarray, owners: np.ndarray, n_shards: int) -> tuple[np.ndarray, np.ndarray]:
    """The shards of each user (or item) that has interactions: where each user's shards begin, (U + 1,), and the shards."""
    owned_rows, shards = np.divmod(np.unique(rows.astype(np.int64) * n_shards + owners), n_shards)
    _, starts = np.unique(owned_rows, return_index=True)
    return np.append(starts, len(shards)), shards


def route(stream: Sequence[Arrival], division: Division, seed: int) -> list[Routed]:
    """Draw the user, item or pair of every request, and so the shards that it touches."""
    rng = np.random.default_rng(seeds.derive(seed, "simulation", "requests"))
    return [Routed(arrival.at, division.touched(arrival.kind, rng)) for arrival in stream]


# ---- replay ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """The result of replaying a stream.

    Attributes:
        latencies: the seconds from receiving each request to the end of the run that carried it out (time to restore).
        batches: the number of requests in every run.
        retrainings: the number of shards trained in all runs.
        machine_seconds: the seconds during which slots worked, summed over slots.
        busy: the share of time during which a run was in progress, between the first request and the end of the last run.
    """

    latencies: tuple[float, ...]
    batches: tuple[int, ...]
    retrainings: int
    machine_seconds: float
    busy: float

    def to_row(self, deadline_seconds: float) -> dict[str, Any]:
        """The outcome as one flat row of a table. Percentiles are latencies of actual requests (nearest rank)."""
        ordered = sorted(self.latencies)
        shown = {f"p{share}": ordered[ceil(share / 100 * len(ordered)) - 1] for share in (50, 95, 99)}
        return {
            "requests": len(ordered),
            **shown,
            "max": ordered[-1],
            "missed": sum(latency > deadline_seconds for latency in ordered),
            "runs": len(self.batches),
            "batch_mean": len(ordered) / len(self.batches),
            "batch_max": max(self.batches),
            "retrainings": self.retrainings,
            "machine_hours": self.machine_seconds / 3600,
            "busy": self.busy,
        }


def replay(requests: Sequence[Routed], plan: Plan, sizes: Sequence[int], costs: Costs, slots: int) -> Outcome:
    """Carry out a stream of requests under a plan, one run at a time.

    Args:
        requests: the requests, in the order in which they are received.
        plan: decides when runs start.
        sizes: the number of interactions of every shard, (K,).
        costs: predicts the time of a run. The simulation takes the prediction as exact.
        slots: the number of shards that train at the same time.

    Raises:
        InputError: there is no request.
    """
    if not requests:
        raise InputError("the stream has no request: give more days, or more requests a day")
    latencies: list[float] = []
    batches: list[int] = []
    retrainings, machine_seconds, busy_seconds = 0, 0.0, 0.0
    free_at, last_run_at = requests[0].at, None
    done = 0
    while done < len(requests):
        first, n_taken = requests[done], 0
        shards: set[int] = set()
        start, prediction = first.at, costs.predict((), slots)
        # Requests received before the run starts join it. They may make it longer, and so make it start earlier.
        while done + n_taken < len(requests) and requests[done + n_taken].at <= start:
            request = requests[done + n_taken]
            n_taken += 1
            if not request.shards <= shards:
                shards |= request.shards
                prediction = costs.predict([sizes[shard] for shard in sorted(shards)], slots)
            # No request is urgent, so only the oldest one matters.
            due = plan.next_run([Waiting(first.at)], last_run_at, prediction.seconds)
            assert due is not None, "a request is waiting"
            start = max(due, free_at, request.at)
        free_at, last_run_at = start + prediction.seconds, start
        latencies += [free_at - request.at for request in requests[done : done + n_taken]]
        batches.append(n_taken)
        retrainings += len(shards)
        machine_seconds += prediction.machine_seconds
        busy_seconds += prediction.seconds
        done += n_taken
    span = free_at - requests[0].at
    return Outcome(tuple(latencies), tuple(batches), retrainings, machine_seconds, busy_seconds / span if span else 0.0)


# ---- for people ------------------------------------------------------------------------------------------------------------


def shown_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Format outcomes with `plan` and `shards` as a table: the column names, then one line per row."""
    lines = [["plan", "K", "p50", "p95", "p99", "max", "missed", "runs", "batch", "trained", "machine h", "busy"]]
    for row in rows:
        waited = [duration(row[name]) for name in ("p50", "p95", "p99", "max")]
        counts = [str(row["missed"]), str(row["runs"]), f"{row['batch_mean']:.1f}", str(row["retrainings"])]
        lines.append([row["plan"], str(row["shards"]), *waited, *counts, f"{row['machine_hours']:.4g}", f"{row['busy']:.1%}"])
    return lines


def duration(seconds: float) -> str:
    """Format a duration with three digits and a suitable unit: `1.25 s`, `3.4 min`, `17.2 h`, `29 d`."""
    for unit, length in (("d", DAY), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
