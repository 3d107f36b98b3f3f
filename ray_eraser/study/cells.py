"""One measured cell of a table or a figure: a method, a base model and a data set, by the code that deployments run.

A cell is a function of its settings and can be computed anywhere; quality is read from the test set once, at the end.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ray_eraser import seeds
from ray_eraser.aggregator import Aggregated, AggregationOrder
from ray_eraser.config import EraserConfig, load_config
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.errors import DataFileError
from ray_eraser.evaluation import evaluate
from ray_eraser.ids import RawId, ShardId
from ray_eraser.pool import LocalShardPool, OnDone
from ray_eraser.shard import ShardOrder, Trained
from ray_eraser.unlearning.request import UnlearningRequest

MODELS: Mapping[str, Sequence[str]] = {
    "wmf": ("model.kind=wmf", "model.solver=adagrad"),
    "wmf-als": ("model.kind=wmf", "model.solver=als"),
    "bpr": ("model.kind=bpr",),
    "lightgcn": ("model.kind=lightgcn",),
    "linear": ("model.kind=linear",),
}
"""The base models by the names of the tables. `wmf` is trained as the papers train it, `wmf-als` is solved exactly. `linear` is
not trained: how it is divided and combined changes nothing."""

TRAINED = tuple(name for name in MODELS if name != "linear")
"""Those that the papers' tables compare."""


@dataclass(frozen=True)
class Cell:
    """What one cell measures.

    Attributes:
        data: where the interaction log is, or `synthetic`.
        model: a name of `MODELS`.
        method: a preset.
        changes: further settings, `section.key=value`.
        requests: how many random interactions are erased one after the other, to time them; 0 measures quality alone.
    """

    data: str
    model: str
    method: str
    changes: tuple[str, ...] = ()
    requests: int = 0

    def config(self) -> EraserConfig:
        """The settings: the preset's, the model's, then the cell's own."""
        return load_config(None, [*MODELS[self.model], *self.changes], [self.method])

    def dataset(self) -> Dataset:
        """The log, with the test set that quality is read from.

        Raises:
            DataFileError: it cannot be read, or has no test set.
        """
        return with_test_set(self.data, self.config())

    def within(self, epochs: int) -> Cell:
        """The same cell with no more epochs than a budget allows."""
        if self.config().model.epochs <= epochs:
            return self
        return replace(self, changes=(*self.changes, f"model.epochs={epochs}"))

    def key(self) -> str:
        """Names the cell in a file of results: another setting, another key."""
        named = [Path(self.data).name, self.model, self.method, self.config().fingerprint(), self.requests]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]

    def label(self) -> str:
        """For people who wait."""
        return " ".join((self.model, self.method, *self.changes))

    def named(self) -> dict[str, str]:
        """The columns that say what the cell is."""
        return {"model": self.model, "method": self.method, "changes": " ".join(self.changes)}

    def row(self) -> dict[str, Any]:
        """Measure it: one flat row."""
        return measure(self).to_row()


def with_test_set(data: str, config: EraserConfig) -> Dataset:
    """A log, with the test set that quality is read from. Raises as `Cell.dataset`."""
    dataset = read_dataset(data, config.data, config.seed)
    if not len(dataset.test):
        raise DataFileError(data, "no test set: set data.test_share=0.2, or give a log that comes with one")
    return dataset


@dataclass(frozen=True)
class Result:
    """A measured cell. Seconds are of one process with `runtime.threads` threads, shards one after the other.

    Attributes:
        key: of the cell.
        data, model, method, n_shards: what was measured.
        changes: the cell's further settings.
        quality: `recall@N` and `ndcg@N` on the test set.
        balance, shards_per_user: of the partition.
        seconds_shards, seconds_aggregation: of the first training.
        erase_shards, erase_aggregation: means over the erased interactions; 0 where none were.
        touched: shards that one of them touched, on average.
    """

    key: str
    data: str
    model: str
    method: str
    n_shards: int
    changes: str
    quality: dict[str, float]
    balance: float
    shards_per_user: float
    seconds_shards: float
    seconds_aggregation: float
    erase_shards: float
    erase_aggregation: float
    touched: float

    def to_row(self) -> dict[str, Any]:
        """One flat row of a table."""
        row = asdict(self)
        return {**row, **row.pop("quality")}


class TimedPool(LocalShardPool):
    """A local pool that adds up what training and aggregation take."""

    def __init__(self, store_uri: str, config: EraserConfig) -> None:
        super().__init__(store_uri, config)
        self.shards, self.aggregation, self.touched = 0.0, 0.0, 0

    def train(self, orders: Mapping[ShardId, ShardOrder], on_done: OnDone) -> dict[ShardId, Trained]:
        done = super().train(orders, on_done)
        self.shards += sum(trained.seconds for trained in done.values())
        self.touched += len(done)
        return done

    def aggregate(self, order: AggregationOrder) -> Aggregated:
        aggregated = super().aggregate(order)
        self.aggregation += aggregated.seconds
        return aggregated


def measure(cell: Cell) -> Result:
    """Train, evaluate on the test set, and erase the cell's number of random interactions one by one.

    Raises:
        DataFileError: see `Cell.dataset`.
    """
    config = cell.config()
    dataset = cell.dataset()
    with tempfile.TemporaryDirectory() as folder:
        coordinator = Coordinator("cell", folder, partial(TimedPool, folder), config)
        report = coordinator.fit(dataset)
        pool = coordinator.pool
        assert isinstance(pool, TimedPool)
        first = (pool.shards, pool.aggregation)
        model = coordinator.served_model().in_rows(dataset.users.keys, dataset.items.keys)
        quality = evaluate(model, dataset.train, dataset.test)
        pool.shards, pool.aggregation, pool.touched = 0.0, 0.0, 0
        for pair in _random_pairs(dataset, cell.requests, config.seed):
            coordinator.submit(UnlearningRequest(pairs=(pair,)))
            coordinator.process_pending()
        coordinator.close()
    share = 1 / max(1, cell.requests)
    return Result(
        cell.key(),
        Path(cell.data).name,
        cell.model,
        cell.method,
        config.partition.n_shards,
        " ".join(cell.changes),
        {name: value for name, value in quality.items() if "@" in name},
        report.balance,
        report.shards_per_user,
        *first,
        pool.shards * share,
        pool.aggregation * share,
        pool.touched * share,
    )


def _random_pairs(dataset: Dataset, n: int, seed: int) -> list[tuple[RawId, RawId]]:
    rng = np.random.default_rng(seeds.derive(seed, "study", "requests"))
    chosen = dataset.train.take(np.sort(rng.choice(len(dataset.train), n, replace=False)))
    return list(zip(dataset.users.raw(chosen.users), dataset.items.raw(chosen.items), strict=True))
