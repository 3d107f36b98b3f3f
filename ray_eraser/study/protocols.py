"""Measure how erasures affect the remaining users: their quality, its spread, and the cost.

The protocols follow CURE4Rec (Chen et al. 2024). The most active, the least active, or random users are erased, at once or in a
sequence of small batches. Quality is compared between active and other users, and between shards.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ray_eraser import seeds
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.evaluation import Scorer, evaluate
from ray_eraser.study.cells import Cell, TimedPool
from ray_eraser.study.tables import cutoff
from ray_eraser.unlearning.request import UnlearningRequest

Who = Literal["most_active", "least_active", "random"]

_ACTIVE_SHARE = 0.2
"""The share of the remaining users that count as most active."""


@dataclass(frozen=True)
class Protocol:
    """The users to erase, and how to erase them.

    Attributes:
        cell: the method, base model and data set.
        who: the kind of users to erase.
        share: the share of all users to erase.
        batches: the number of batches of requests; 1 erases all users at once.
    """

    cell: Cell
    who: Who
    share: float = 0.05
    batches: int = 1

    @property
    def method(self) -> str:
        """The preset."""
        return self.cell.method

    def dataset(self) -> Dataset:
        """See `Cell.dataset`."""
        return self.cell.dataset()

    def key(self) -> str:
        """The key of the run in a file of results."""
        named = [self.cell.key(), self.who, self.share, self.batches]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]

    def label(self) -> str:
        """A label for progress messages."""
        return f"{self.cell.label()}, {self.who} {self.share:.0%} in {self.batches}"

    def within(self, epochs: int) -> Protocol:
        """The same protocol with at most this number of epochs."""
        return replace(self, cell=self.cell.within(epochs))

    def named(self) -> dict[str, str]:
        """The columns that identify the run."""
        return {"model": self.cell.model, "method": self.cell.method}

    def row(self) -> dict[str, Any]:
        """Run the protocol, and return one flat row."""
        return {"key": self.key(), **run_protocol(self)}


def run_protocol(protocol: Protocol) -> dict[str, Any]:
    """Train, erase and measure.

    The flat row has the quality on the remaining users before and after the erasure, its spread, the seconds, and the number of
    retrained shards.

    Raises:
        DataFileError: the log has no test set.
    """
    cell = protocol.cell
    config = cell.config()
    dataset = protocol.dataset()
    gone = chosen_users(dataset, protocol.who, protocol.share, config.seed)
    stay = dataset.test.take(~np.isin(dataset.test.users, gone))
    with tempfile.TemporaryDirectory() as folder:
        coordinator = Coordinator("protocol", folder, partial(TimedPool, folder), config)
        coordinator.fit(dataset)
        pool = coordinator.pool
        assert isinstance(pool, TimedPool)
        keys = dataset.users.keys, dataset.items.keys
        before = evaluate(coordinator.served_model().in_rows(*keys), dataset.train, stay)
        pool.shards, pool.aggregation, pool.touched = 0.0, 0.0, 0
        started = time.perf_counter()
        for batch in np.array_split(gone, protocol.batches):
            for raw in dataset.users.raw(batch):
                coordinator.submit(UnlearningRequest(user_id=raw))
            coordinator.process_pending()
        seconds = time.perf_counter() - started
        model = coordinator.served_model().in_rows(*keys)
        shards = [data.in_rows_of(*keys)[0] for _, data in sorted(coordinator.shard_data().items())]
        coordinator.close()
    n = cutoff(Path(cell.data).name)
    train = dataset.train.take(~np.isin(dataset.train.users, gone))
    return {
        "data": Path(cell.data).name,
        "model": cell.model,
        "method": cell.method,
        "who": protocol.who,
        "share": protocol.share,
        "batches": protocol.batches,
        "users_erased": len(gone),
        "seconds": seconds,
        "seconds_shards": pool.shards,
        "seconds_aggregation": pool.aggregation,
        "shards_retrained": pool.touched,
        f"recall@{n}_before": before[f"recall@{n}"],
        **{name: value for name, value in evaluate(model, train, stay).items() if "@" in name},
        **spread(model, train, stay, shards, n),
    }


def chosen_users(dataset: Dataset, who: Who, share: float, seed: int) -> np.ndarray:
    """Rows of the users to erase. A keyed hash breaks ties in activity and decides the order of erasures."""
    counts = np.bincount(dataset.train.users, minlength=len(dataset.users))
    rows = dataset.train.user_rows()
    drawn = seeds.mix(rows.astype(np.uint64), seeds.derive(seed, "study", "users"))
    activity = {"most_active": -counts[rows], "least_active": counts[rows], "random": np.zeros(len(rows))}[who]
    chosen = np.lexsort((drawn, activity))[: max(1, round(share * len(rows)))]
    return np.asarray(rows[chosen][np.argsort(drawn[chosen], kind="stable")])


def spread(model: Scorer, train: Interactions, test: Interactions, shards: Sequence[Interactions], n: int) -> dict[str, float]:
    """Recall of the most active fifth of the users and of the others, and the standard deviation of recall over shards."""
    users, counts = np.unique(train.users, return_counts=True)
    active = users[np.argsort(-counts, kind="stable")][: max(1, round(_ACTIVE_SHARE * len(users)))]
    recall = f"recall@{n}"
    by_shard = [evaluate(model, train, test.of_users(shard.user_rows()), (n,))[recall] for shard in shards if len(shard)]
    return {
        f"{recall}_active": evaluate(model, train, test.of_users(active), (n,))[recall],
        f"{recall}_others": evaluate(model, train, test.take(~np.isin(test.users, active)), (n,))[recall],
        f"{recall}_deviation_over_shards": float(np.std(by_shard)),
    }
