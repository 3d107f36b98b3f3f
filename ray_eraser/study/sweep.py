"""Sweeps: train many deployments, measure them with the same requests, and find those that no other beats.

Each trial is a `Coordinator` as in production. Quality is measured on the validation set; a sweep never reads the test set.
This module does not need Ray; runtime/tune.py runs it on Ray.

K shards, U users, I items.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from ray_eraser import seeds
from ray_eraser.config import EraserConfig, UnlearningConfig, WmfAlsConfig, changed, config_from
from ray_eraser.coordinator import Coordinator, MakePool
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.keyed import ShardData, all_keys
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import ConfigError, InputError
from ray_eraser.evaluation import evaluate
from ray_eraser.partition import Partition
from ray_eraser.prepare import divided, keyed, pretrained, settle
from ray_eraser.study.simulation import KINDS
from ray_eraser.unlearning.request import UnlearningRequest

_T = TypeVar("_T")

Row = dict[str, Any]

QUALITY = "ndcg@10"
"""The measure to maximise: NDCG@10 on the validation set."""
COSTS = ("restore_seconds", "touched")
"""The measures to minimise."""
LEVELS = ("exact", "exact-given-settings", "exact-given-partition")
"""The guarantees, strongest first."""

DEFAULT_OVER = (
    "partition.n_shards=5,10,20,50",
    "partition.kind=hashed,user_based,interaction_based",
    "aggregation.foldin=true,false",
)
"""The dimensions of a sweep by default."""

_SECTIONS = ("partition", "model", "training", "aggregation")
_MOST_TRIALS = 10_000

# ---- the space -------------------------------------------------------------------------------------------------------------

RangeKind = Literal["uniform", "log", "int", "logint"]
_RANGE = re.compile(r"(?P<kind>uniform|log|int|logint)\((?P<low>[^,()]+),(?P<high>[^,()]+)\)")


@dataclass(frozen=True)
class Values:
    """A setting that takes each of some values: one dimension of a grid."""

    key: str
    values: tuple[str, ...]

    def probes(self) -> tuple[str, ...]:
        """The values to check. If they are valid, the whole dimension is."""
        return self.values


@dataclass(frozen=True)
class Range:
    """A setting that is drawn between two inclusive bounds. `log` and `logint` draw on a logarithmic scale."""

    key: str
    kind: RangeKind
    low: float
    high: float

    def probes(self) -> tuple[str, ...]:
        """The values to check. If they are valid, the whole dimension is."""
        return (self.text(self.low), self.text(self.high))

    def text(self, value: float) -> str:
        """Format a value as in a setting."""
        return str(round(value)) if self.kind in ("int", "logint") else repr(float(value))


Axis = Values | Range


def parse_axis(text: str) -> Axis:
    """Parse a dimension such as `partition.n_shards=5,10,20` or `model.reg=log(0.001,0.1)`.

    Ranges are `uniform(a,b)`, `log(a,b)`, `int(a,b)` and `logint(a,b)`.

    Raises:
        ConfigError: the text is not a dimension, or trials cannot differ in this setting.
    """
    key, equals, wanted = (piece.strip() for piece in text.partition("="))
    if not equals or not wanted:
        raise ConfigError("--over", f"{text!r} varies nothing: write partition.n_shards=5,10,20 or model.reg=log(0.001,0.1)")
    if key.partition(".")[0] not in _SECTIONS:
        raise ConfigError(f"--over {key}", f"must be the same for all trials: vary {', '.join(_SECTIONS)}, and --set the rest")
    found = _RANGE.fullmatch(wanted)
    if found is None:
        values = tuple(value.strip() for value in wanted.split(","))
        if "" in values or "(" in wanted or len(set(values)) < len(values):
            raise ConfigError(
                f"--over {key}", f"{wanted!r} is not a list of distinct values or a range: write 5,10,20 or log(0.001,0.1)"
            )
        return Values(key, values)
    kind: RangeKind = found["kind"]  # type: ignore[assignment]  # the pattern allows no other kind
    try:
        low, high = float(found["low"]), float(found["high"])
    except ValueError:
        low = high = math.nan
    whole = kind in ("uniform", "log") or (low.is_integer() and high.is_integer())
    if not (math.isfinite(low) and math.isfinite(high) and low < high and whole) or ("log" in kind and low <= 0):
        raise ConfigError(f"--over {key}", f"{wanted!r} is not a range: give two numbers, the lower first, above 0 for log")
    return Range(key, kind, low, high)


@dataclass(frozen=True)
class Sweep:
    """The specification of a sweep.

    Attributes:
        base: the settings that trials start from.
        axes: the dimensions in which trials differ.
        mix: the shares of the kinds of requests.
        requests: the number of requests in every trial; there is at least one of each kind.
        samples: the number of draws at every point of the grid; with `optuna`, the number of trials.
        search: `grid` or `optuna`.
        stop_early: whether to stop a trial of a model with many epochs if others do better at the same cost.
        n_pairs: the number of training interactions, by which `model.kind=auto` chooses.

    Raises:
        ConfigError: a setting is unknown or out of range at some point, or the numbers do not fit together.
    """

    base: EraserConfig
    axes: tuple[Axis, ...]
    mix: Mapping[str, float]
    requests: int = 3
    samples: int = 1
    search: Literal["grid", "optuna"] = "grid"
    stop_early: bool = False
    n_pairs: int = 0

    def __post_init__(self) -> None:
        keys = [axis.key for axis in self.axes]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"--over {key}", "is given twice: give all its values in one --over")
        if self.search == "grid" and self.samples > 1 and not any(isinstance(axis, Range) for axis in self.axes):
            raise ConfigError("--samples", "there is nothing to draw, because every dimension is a list: leave out --samples")
        if self.search == "optuna" and self.stop_early:
            raise ConfigError("--stop-early", "looks at quality alone, --search optuna at several objectives: use one of them")
        if self.n_trials > _MOST_TRIALS:
            raise ConfigError("--over", f"gives {self.n_trials} trials, more than {_MOST_TRIALS}: leave out some values")
        self.corners()

    @property
    def n_trials(self) -> int:
        if self.search == "optuna":
            return self.samples
        return self.samples * math.prod(len(axis.values) for axis in self.axes if isinstance(axis, Values))

    def config_of(self, point: Mapping[str, Any]) -> EraserConfig:
        """The settings of one trial."""
        texts = [
            f"{axis.key}={axis.text(point[axis.key]) if isinstance(axis, Range) else point[axis.key]}" for axis in self.axes
        ]
        return changed(self.base, texts).resolved(self.n_pairs)

    def label(self, point: Mapping[str, Any]) -> str:
        """A label that identifies the trial, for people."""
        return " ".join(
            f"{axis.key}={format(point[axis.key], '.4g') if isinstance(axis, Range) else point[axis.key]}".replace(" ", "")
            for axis in self.axes
        )

    def corners(self) -> list[EraserConfig]:
        """The settings at every point of the grid, first with the lowest and then with the highest values of all ranges."""
        return [
            changed(self.base, [f"{axis.key}={value}" for axis, value in zip(self.axes, values, strict=True)])
            for end in (0, -1)
            for values in itertools.product(
                *(axis.values if isinstance(axis, Values) else (axis.probes()[end],) for axis in self.axes)
            )
        ]

    def identity(self, dataset: Dataset) -> dict[str, Any]:
        """The data and settings that must be unchanged for a sweep to be continued."""
        named = (dataset.users.keys, dataset.items.keys, dataset.train.codes(), dataset.valid.codes())
        data = hashlib.sha256(b"".join(array.tobytes() for array in named)).hexdigest()
        return {
            "data": data,
            "settings": self.base.model_dump(mode="json", exclude={"unlearning": True, "runtime": {"timeout_seconds"}}),
            "over": [json.loads(json.dumps(asdict(axis))) for axis in self.axes],
            "mix": dict(self.mix),
            "requests": self.requests,
            "samples": self.samples,
            "search": self.search,
            "stop_early": self.stop_early,
        }


def for_sweeping(dataset: Dataset) -> Dataset:
    """Remove the test set of a log, which trials must not see.

    Raises:
        InputError: the log has no validation set.
    """
    if not len(dataset.valid):
        raise InputError(f"{dataset.name}: no validation set to compare trials by: set data.valid_share=0.1")
    return dataset.learned()


# ---- what trials share -----------------------------------------------------------------------------------------------------


class _Here:
    """Run pure functions in this process."""

    def run(self, calls: Sequence[Callable[[], _T]]) -> list[_T]:
        return [call() for call in calls]


def alpha0_key(config: EraserConfig) -> str:
    """A key of everything besides the log that the choice of the open settings depends on."""
    linear = config.model.model_dump(mode="json") if "model.ridge" in config.open_settings else None
    return json.dumps([config.seed, config.model.width, config.runtime.threads, config.open_settings, linear], sort_keys=True)


def embeddings_key(config: EraserConfig) -> str:
    """A key of everything besides the log that the embeddings for a learned partition depend on."""
    als = config.als_settings.model_dump(mode="json", exclude={"epochs"})
    return json.dumps([config.seed, als, config.partition.pretrain_epochs, config.runtime.threads], sort_keys=True)


def partition_key(config: EraserConfig) -> str:
    """A key of everything besides the log that a partition depends on."""
    needs = embeddings_key(config) if config.partition.needs_embeddings else ""
    return json.dumps([config.seed, config.partition.model_dump(mode="json"), needs], sort_keys=True)


def shared_alpha0(dataset: Dataset, config: EraserConfig) -> dict[str, float]:
    """The values that `Coordinator.fit` would choose for the open settings, by name; see `EraserConfig.settled`."""
    log = keyed(dataset, config)
    settled, chosen = settle(config, log.train.of_users, len(log.train), log.users.keys, log.items.keys, _Here())
    values = settled.model_dump(mode="json")
    return {name: values[section][key] for name in chosen for section, _, key in [name.partition(".")]}


def shared_embeddings(dataset: Dataset, config: EraserConfig) -> Embeddings | None:
    """The embeddings from which `Coordinator.fit` would learn a partition; None if it needs none. The config is settled."""
    return pretrained(keyed(dataset, config), config, _Here())


def shared_partition(dataset: Dataset, config: EraserConfig, embeddings: Embeddings | None) -> Partition:
    """The partition that `Coordinator.fit` would make. The config is settled."""
    return divided(keyed(dataset, config), config, embeddings)


# ---- one trial -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """A request that every trial carries out, and its weight in the means."""

    request: UnlearningRequest
    weight: float


def draw_requests(dataset: Dataset, mix: Mapping[str, float], n: int, seed: int) -> list[Drawn]:
    """Draw the requests for all trials: for each kind its share of `n`, and at least one.

    The weights of a kind sum to its share, so that a rare kind counts correctly even with few requests. No request asks for
    data that an earlier one has erased.

    Raises:
        InputError: the log is too small for so many requests.
    """
    rng = np.random.default_rng(seeds.derive(seed, "sweep", "requests"))
    total = sum(mix.values())
    remaining, drawn = dataset.train, []
    for kind in KINDS:
        share = mix.get(kind, 0.0) / total
        count = max(1, round(n * share)) if share else 0
        for _ in range(count):
            if not len(remaining):
                raise InputError(f"{dataset.name} has too few interactions for {n} requests: ask for fewer with --requests")
            if kind == "user":
                row = int(rng.choice(remaining.user_rows()))
                request = UnlearningRequest(user_id=dataset.users.raw([row])[0])
                gone = remaining.of_users(np.array([row]))
            elif kind == "item":
                row = int(rng.choice(remaining.item_rows()))
                request = UnlearningRequest(item_id=dataset.items.raw([row])[0])
                gone = remaining.of_items(np.array([row]))
            else:
                gone = remaining.take(np.array([rng.integers(len(remaining))]))
                (user,), (item,) = dataset.users.raw(gone.users), dataset.items.raw(gone.items)
                request = UnlearningRequest(pairs=((user, item),))
            remaining = remaining.without(gone)
            drawn.append(Drawn(request, share / count))
    return drawn


def touched_per_request(shards: Sequence[ShardData], mix: Mapping[str, float]) -> float:
    """The mean number of shards that a request touches, over all users, items and interactions, weighted by their shares."""
    users, items = [shard.user_keys for shard in shards], [shard.item_keys for shard in shards]
    of_users, of_items = (sum(map(len, keys)) / max(1, len(all_keys(keys))) for keys in (users, items))
    per_kind = {"user": of_users, "item": of_items, "pairs": 1.0}
    return sum(mix.get(kind, 0.0) * per_kind[kind] for kind in KINDS) / sum(mix.values())


def epoch_budgets(config: EraserConfig, *, stop_early: bool) -> list[int]:
    """The numbers of epochs for which a trial trains, each time from scratch. The last one is the configured number.

    With early stopping, a trial first trains for a sixteenth and a quarter of the epochs, so a trial that is never stopped
    costs 31 % more. ALS has too few epochs for this.
    """
    epochs = config.model.epochs
    if not stop_early or isinstance(config.model, WmfAlsConfig):
        return [epochs]
    return sorted({math.ceil(epochs / 16), math.ceil(epochs / 4), epochs})


def measured(
    config: EraserConfig,
    dataset: Dataset,
    partition: Partition | None,
    drawn: Sequence[Drawn],
    mix: Mapping[str, float],
    budgets: Sequence[int],
    make_pool: Callable[[str, EraserConfig], MakePool],
    folder: str,
) -> Iterator[Row]:
    """Train a deployment for each budget of epochs and measure its quality. The last one also erases and is timed.

    Args:
        config: the trial's settings.
        dataset: the log without its test set; see `for_sweeping`.
        partition: the partition of `dataset.train`; None makes one.
        drawn: the requests to carry out one after the other.
        mix: the shares of the kinds of requests.
        budgets: numbers of epochs, ascending.
        make_pool: makes the pool for a storage path and settings.
        folder: the folder for the deployments' files.
    """
    # A trial must not use the ledger and the signing key of the real deployment.
    config = config.model_copy(update={"unlearning": UnlearningConfig()})
    cost = 0
    for epochs in budgets:
        last = epochs == budgets[-1]
        trained = config.model_copy(update={"model": config.model.model_copy(update={"epochs": epochs})})
        storage = f"{folder}/{epochs}"
        coordinator = Coordinator("trial", storage, make_pool(storage, trained), trained)
        try:
            coordinator.pool.warm()
            report = coordinator.fit(dataset, partition)
            model = coordinator.served_model().in_rows(dataset.users.keys, dataset.items.keys)
            quality = evaluate(model, dataset.train, dataset.valid, (10,))
            cost += len(dataset.train) * epochs
            row = {
                "state": "finished" if last else "running",
                "epochs": epochs,
                QUALITY: quality[QUALITY],
                "recall@10": quality["recall@10"],
                "touched": touched_per_request(list(coordinator.shard_data().values()), mix),
                "train_seconds": report.seconds["shards"] + report.seconds["aggregation"],
                "balance": report.balance,
                "shards_per_user": report.shards_per_user,
                "alpha0": report.alpha0,
                "cost": cost,
            }
            if last:
                row |= _erasures(coordinator, drawn)
            yield row
        finally:
            coordinator.close()


def _erasures(coordinator: Coordinator, drawn: Sequence[Drawn]) -> Row:
    """The mean seconds from a request until the served model is free of its data, and until the retrained model is served."""
    forget = restore = 0.0
    for each in drawn:
        coordinator.pool.warm()  # finish the work of the previous generation, which is not part of this request
        coordinator.submit(each.request)
        (receipt,) = coordinator.process_pending()
        forget += each.weight * (receipt.excised_at - receipt.received_at)
        restore += each.weight * (receipt.restored_at - receipt.received_at)
    return {"forget_seconds": forget, "restore_seconds": restore}


_FIGURES = ("touched", "forget_seconds", "train_seconds", "balance", "shards_per_user", "alpha0")


def empty_row(key: str, label: str, config: EraserConfig) -> Row:
    """A row of the results without measurements, which the rows of `measured` update.

    Args:
        key: the key of the trial in a file of results.
        label: the label of the trial for people.
        config: the settings as requested. Settings that are open stay open in `chosen.toml`, and affect the guarantee.
    """
    return {
        "key": key,
        "trial": label,
        "state": "running",
        "error": "",
        "n_shards": config.partition.n_shards,
        "partition": config.partition.kind,
        "model": config.model.kind,
        "aggregation": config.aggregation.kind,
        "level": config.guarantee,
        "epochs": config.model.epochs,
        QUALITY: math.nan,
        "recall@10": math.nan,
        "restore_seconds": math.nan,
        **dict.fromkeys(_FIGURES, math.nan),
        "cost": 0,
        "settings": config.model_dump_json(),
    }


# ---- choosing --------------------------------------------------------------------------------------------------------------

Choice = Literal["quality", "knee", "fastest"]


def finished(rows: Sequence[Row]) -> list[Row]:
    """The rows of trials that were measured completely."""
    return [row for row in rows if row["state"] == "finished"]


def at_least(rows: Sequence[Row], level: str) -> list[Row]:
    """The rows with this guarantee or a stronger one.

    Raises:
        InputError: no finished trial has it.
    """
    found = [row for row in rows if LEVELS.index(row["level"]) <= LEVELS.index(level)]
    if finished(rows) and not finished(found):
        claimed = " or ".join(sorted({row["level"] for row in finished(rows)}, key=LEVELS.index))
        raise InputError(
            f"no finished trial is {level}, they are {claimed}: choose a weaker --level, or sweep partitions that are not "
            "learned, with model.alpha0 (or aggregation.foldin_alpha0) set to a number"
        )
    return found


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """The finished rows that no other row beats, best quality first.

    A row beats another if it is at least as good in quality and both costs, and better in one of them.
    """
    candidates = finished(rows)
    front = [row for row in candidates if not any(_dominates(other, row) for other in candidates)]
    return sorted(front, key=lambda row: (-row[QUALITY], row["restore_seconds"], row["trial"]))


def _dominates(one: Row, other: Row) -> bool:
    mine, theirs = _losses(one), _losses(other)
    return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


def _losses(row: Row) -> tuple[float, ...]:
    return (-row[QUALITY], *(row[name] for name in COSTS))


def choose(rows: Sequence[Row], how: Choice) -> Row:
    """Choose one row of the front.

    `quality` chooses the best quality, and `fastest` the shortest time to restore. `knee` chooses the row nearest to the best
    values of all objectives, where each objective is scaled from 0 (best of the front) to 1 (worst) and costs are logarithmic.
    In a tie, the stronger guarantee wins.

    Raises:
        InputError: no trial was finished.
    """
    front = pareto_front(rows)
    if not front:
        raise InputError("no trial was finished, so there is nothing to choose from: look at the errors of the trials")
    losses = np.array([[-row[QUALITY], *(math.log(max(row[name], 1e-3)) for name in COSTS)] for row in front])
    span = losses.max(axis=0) - losses.min(axis=0)
    distances = np.linalg.norm((losses - losses.min(axis=0)) / np.where(span > 0, span, 1), axis=1)
    rank = {"quality": losses[:, 0], "fastest": losses[:, 1], "knee": distances}[how]
    order = sorted(range(len(front)), key=lambda n: (rank[n], LEVELS.index(front[n]["level"]), front[n]["trial"]))
    return front[order[0]]


def chosen_toml(row: Row, how: Choice, name: str) -> str:
    """The settings of a row as a TOML file for `ray-eraser train --config`."""
    config = config_from(json.loads(row["settings"]))
    held_out = config.data.test_share + config.data.valid_share > 0
    said = (
        f"# Chosen by {how} of the sweep {name}: validation NDCG@10 {row[QUALITY]:.4f}, restored in "
        f"{row['restore_seconds']:.2f} s, {row['touched']:.2f} shards touched, {row['level']}.\n"
    )
    if held_out:
        said += "# Holds out as much data as the sweep did. To learn from the whole log, set both shares in [data] to 0.\n"
    return said + config.to_toml()


# ---- for people ------------------------------------------------------------------------------------------------------------


def shown_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Format a table: the column names, then one line per trial, best quality first. `*` marks the front."""
    front = {row["key"] for row in pareto_front(rows)}
    varied = _short_names([setting.partition("=")[0] for setting in rows[0]["trial"].split()]) if rows else []
    measures = ["level", "NDCG@10", "Recall@10", "restore s", "forget s", "touched", "train s", "balance"]
    told = any(row["state"] != "finished" for row in rows)
    lines = [["", *varied, *measures, *(["state"] if told else [])]]
    for row in sorted(rows, key=lambda row: (row["state"] != "finished", -_number(row[QUALITY]), row["trial"])):
        figures = [
            (row[QUALITY], ".4f"),
            (row["recall@10"], ".4f"),
            (row["restore_seconds"], ".2f"),
            (row["forget_seconds"], ".3f"),
        ]
        figures += [(row["touched"], ".2f"), (row["train_seconds"], ".2f"), (row["balance"], ".2f")]
        shown = ["" if math.isnan(value) else format(value, form) for value, form in figures]
        values = [setting.partition("=")[2] for setting in row["trial"].split()]
        state = [f"{row['state']}: {row['error']}" if row["error"] else str(row["state"])] if told else []
        lines.append(["*" if row["key"] in front else "", *values, row["level"], *shown, *state])
    return lines


def _short_names(keys: Sequence[str]) -> list[str]:
    """Shorten `partition.kind` to `partition` and `model.reg` to `reg`, unless the short name is ambiguous."""
    short = [section if name == "kind" else name for section, _, name in (key.partition(".") for key in keys)]
    return [name if short.count(name) == 1 else key for name, key in zip(short, keys, strict=True)]


def _number(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def sweep_markdown(rows: Sequence[Row], chosen: Row | None, how: Choice, title: str) -> str:
    """Format the table, the front and the choice as a Markdown document."""
    names, *lines = shown_rows(rows)
    table = [names, ["---"] * len(names), *lines]
    text = f"# {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in table)
    text += (
        "\nQuality is measured on the validation set. `*`: the Pareto front of quality, time to restore and shards touched.\n"
    )
    if chosen is not None:
        text += f"\nChosen by `{how}`: {chosen['trial']} (`chosen.toml`).\n"
    return text
