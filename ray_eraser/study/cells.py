"""Measure one cell of a table or figure: a method, a base model and a data set, with the code that deployments run.

The result of a cell depends only on its settings. The test set is read once, at the end.
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
"""The base models, by their names in the tables. `wmf` is trained as in the papers, and `wmf-als` is solved exactly. `linear`
is not trained, so its results do not depend on partition and aggregation."""

TRAINED = tuple(name for name in MODELS if name != "linear")
"""The models in the papers' tables."""


@dataclass(frozen=True)
class Cell:
    """The specification of one cell.

    Attributes:
        data: the path of the interaction log, or `synthetic`.
        model: a name in `MODELS`.
        method: a preset.
        changes: further settings, `section.key=value`.
        requests: the number of random interactions to erase one after the other, to time them; 0 measures only quality.
    """

    data: str
    model: str
    method: str
    changes: tuple[str, ...] = ()
    requests: int = 0

    def config(self) -> EraserConfig:
        """The settings: those of the preset, changed by the model's, then by the cell's."""
        return load_config(None, [*MODELS[self.model], *self.changes], [self.method])

    def dataset(self) -> Dataset:
        """Read the log with its test set.

        Raises:
            DataFileError: the log cannot be read, or has no test set.
        """
        return with_test_set(self.data, self.config())

    def within(self, epochs: int) -> Cell:
        """The same cell with at most this number of epochs."""
        if self.config().model.epochs <= epochs:
            return self
        return replace(self, changes=(*self.changes, f"model.epochs={epochs}"))

    def key(self) -> str:
        """The key of the cell in a file of results. It depends on every setting."""
        named = [Path(self.data).name, self.model, self.method, self.config().fingerprint(), self.requests]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]

    def label(self) -> str:
        """A label for progress messages."""
        return " ".join((self.model, self.method, *self.changes))

    def named(self) -> dict[str, str]:
        """The columns that identify the cell."""
        return {"model": self.model, "method": self.method, "changes": " ".join(self.changes)}

    def row(self) -> dict[str, Any]:
        """Measure the cell, and return one flat row."""
        return measure(self).to_row()


def with_test_set(data: str, config: EraserConfig) -> Dataset:
    """Read a log with its test set. It raises the same errors as `Cell.dataset`."""
    dataset = read_dataset(data, config.data, config.seed)
    if not len(dataset.test):
        raise DataFileError(data, "no test set: set data.test_share=0.2, or use a log that has one")
    return dataset


@dataclass(frozen=True)
class Result:
    """A measured cell. Times are in seconds, in one process with `runtime.threads` threads that trains shard after shard.

    Attributes:
        key: the key of the cell.
        data, model, method, n_shards: the cell.
        changes: the cell's further settings.
        quality: `recall@N` and `ndcg@N` on the test set.
        balance, shards_per_user: measures of the partition.
        seconds_shards, seconds_aggregation: the times of the first training.
        erase_shards, erase_aggregation: the mean times per erased interaction; 0 if none was erased.
        touched: the mean number of shards that an erased interaction touched.
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
        """The result as one flat row of a table."""
        row = asdict(self)
        return {**row, **row.pop("quality")}


class TimedPool(LocalShardPool):
    """A local pool that adds up the times of training and aggregation, in seconds."""

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
