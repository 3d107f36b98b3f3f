"""Measure, don't test: seconds of every part, each alone in this process on one thread.

    python tests/benchmarks/bench.py --data ml-1m --data yelp2018 --models wmf-als,bpr --report tests/benchmarks/results

Reading the log, every partition, one epoch and a whole training of every base model on the whole log, every aggregator on the
submodels of ten hashed shards, recommendations, and one user's erasure with all that belongs to it. What takes long runs once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parent))

from measured import heading, write_report

from ray_eraser import seeds
from ray_eraser.aggregation import aggregate, folding
from ray_eraser.config import EraserConfig, PartitionConfig, load_config
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import ShardData
from ray_eraser.determinism import deterministic
from ray_eraser.embeddings import Embeddings
from ray_eraser.evaluation import evaluate
from ray_eraser.ids import Generation, RawId, ShardId
from ray_eraser.models import make_model
from ray_eraser.models.base import UNTRAINED, Start
from ray_eraser.partition import divide
from ray_eraser.pool import LocalShardPool
from ray_eraser.recommend import Snapshot
from ray_eraser.served import ServedVectors
from ray_eraser.study.cells import MODELS
from ray_eraser.study.settings import tuned
from ray_eraser.training.pretrain import pretrain
from ray_eraser.training.submodel import item_start, train_submodel
from ray_eraser.unlearning.request import UnlearningRequest

HELD_OUT = ("data.test_share=0.2", "data.valid_share=0.1")
"""Of a log that comes without a split."""

_ALPHA0 = 0.3  # where the study has found no other for a log
_LONG = ("wmf", "bpr", "lightgcn")  # whole trainings of half a minute and more on MovieLens-1M
_USERS_READ = 100

AGGREGATIONS = {
    "mean": ("aggregation.kind=mean", "aggregation.foldin=false"),
    "static": ("aggregation.kind=static", "aggregation.foldin=false"),
    "attention": ("aggregation.kind=attention", "aggregation.foldin=false"),
    "spectral": ("aggregation.kind=spectral", "aggregation.foldin=false"),
    "spectral, users folded in": ("aggregation.kind=spectral", "aggregation.sweeps=0"),
    "spectral, users, items, users": ("aggregation.kind=spectral", "aggregation.sweeps=1"),
}


@dataclass(frozen=True)
class Part:
    """Something to be timed.

    Attributes:
        name: what it is, for people.
        call: does it once.
        long: whether once is enough.
        warm: whether it is run once before it is timed, so that what is compiled or loaded once does not count.
    """

    name: str
    call: Callable[[], Any]
    long: bool = False
    warm: bool = True


@dataclass(frozen=True)
class Run:
    """Seconds of one run: by the clock, and of the processor, which what else the machine does changes less."""

    clock: float
    processor: float


def timed(part: Part, runs: int) -> list[Run]:
    """Every run that counts."""
    if part.warm:
        part.call()
    return [run_once(part.call) for _ in range(1 if part.long else runs)]


def run_once(call: Callable[[], Any]) -> Run:
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return Run(time.perf_counter() - clock, time.process_time() - processor)


def row(name: str, runs: Sequence[Run]) -> str:
    """A line of the table: four significant digits are more than a machine that is shared can promise."""
    clock, processor = [run.clock for run in runs], statistics.median(run.processor for run in runs)
    median, low, high = (f"{value:.4g}" for value in (statistics.median(clock), min(clock), max(clock)))
    return f"| {name} | {median} | {low} to {high} | {processor:.4g} | {len(runs)} |"


def settled(data: str, model: str, method: str, changes: Sequence[str] = ()) -> EraserConfig:
    """The study's settings for a log, a base model and a method."""
    changes = [*HELD_OUT, *MODELS[model], *tuned(Path(data).name, model, method), "runtime.threads=1", *changes]
    return load_config(None, changes, [method]).settled(_ALPHA0)


def partitions(data: str, dataset: Dataset) -> Iterator[Part]:
    config = settled(data, "wmf-als", "ours")
    user_keys, item_keys = dataset.users.keys, dataset.items.keys
    yield Part("embeddings that learned partitions are made from", lambda: pretrain(dataset.train, item_keys, config))
    embeddings = pretrain(dataset.train, item_keys, config)
    for kind in get_args(PartitionConfig.model_fields["kind"].annotation):
        settings = PartitionConfig(kind=kind, n_shards=config.partition.n_shards)
        call = partial(divide, dataset.train, user_keys, item_keys, settings, config.seed, embeddings)
        yield Part(f"partition {kind}", call, long=settings.is_learned, warm=False)


def trainings(data: str, dataset: Dataset, model_name: str) -> Iterator[Part]:
    config = settled(data, model_name, "retrain")
    model, train = make_model(config.model), dataset.train
    start = Start(3, item_start(dataset.items.keys[train.item_rows()], config))
    epoch = partial(model.train, UNTRAINED, train, Interactions.none(), start, 1)
    yield Part(f"{model_name}, a training of one epoch", epoch)
    whole = partial(model.fit, train, Interactions.none(), start)
    yield Part(f"{model_name}, a whole training, {config.model.epochs} epochs", whole, long=model_name in _LONG, warm=False)


def submodels_of(data: str, dataset: Dataset) -> list[Embeddings]:
    """Of ten hashed shards, in the rows of the log."""
    config = settled(data, "wmf-als", "ours")
    keys = dataset.users.keys, dataset.items.keys
    partition = divide(dataset.train, *keys, config.partition, config.seed)
    owned = [dataset.train.take(partition.owners == k) for k in range(partition.n_shards)]
    shards = [ShardData.of(train, Interactions.none(), *keys) for train in owned]
    return [train_submodel(shard, config, ShardId(k)).in_rows(*keys) for k, shard in enumerate(shards)]


def aggregations(data: str, dataset: Dataset) -> Iterator[Part]:
    submodels = submodels_of(data, dataset)
    for name, changes in AGGREGATIONS.items():
        config = settled(data, "wmf-als", "ours", changes)
        is_long = name in ("static", "attention")
        yield Part(f"aggregation: {name}", partial(aggregate, submodels, dataset.train, config), is_long, warm=not is_long)


def reads(data: str, dataset: Dataset) -> Iterator[Part]:
    config = settled(data, "wmf-als", "ours")
    keys = dataset.users.keys, dataset.items.keys
    model = aggregate(submodels_of(data, dataset), dataset.train, config).keyed(*keys)
    folded = folding(model.in_rows(model.user_keys, model.item_keys), config)
    shards = [ShardData.of(dataset.train, dataset.valid, *keys)]
    snapshot = Snapshot(ServedVectors(model, folded, shards), dataset.users, dataset.items, shards, Generation(1))
    users = dataset.users.raw(dataset.train.user_rows()[:_USERS_READ])

    def read_all() -> None:
        for user in users:
            snapshot.recommend(user, 10)

    yield Part(f"recommend ten items, {len(users)} users one by one", read_all)
    n_tested = len(dataset.test.user_rows())
    served = snapshot.served.in_rows(*keys)
    yield Part(f"evaluate {n_tested} users in batches", partial(evaluate, served, dataset.train, dataset.test))


def erasures(data: str, dataset: Dataset, runs: int) -> list[Run]:
    """One user's erasure each: from the request to the new generation, files and ledger with it."""
    config = settled(data, "wmf-als", "ours")
    with tempfile.TemporaryDirectory() as folder:
        coordinator = Coordinator("bench", folder, lambda settings: LocalShardPool(folder, settings), config)
        coordinator.fit(dataset)

        def erase(user: RawId) -> None:
            coordinator.submit(UnlearningRequest(user_id=user))
            coordinator.process_pending()

        users = sorted(dataset.users.raw(dataset.train.user_rows()), key=lambda user: seeds.derive(0, "bench", user))
        erase(users[0])  # pays for what is loaded once
        done = [run_once(partial(erase, user)) for user in users[1 : runs + 1]]
        coordinator.close()
    return done


def measured_rows(data: str, models: Sequence[str], runs: int) -> Iterator[str]:
    config = settled(data, "wmf-als", "ours")
    reading = Part("read the log", partial(read_dataset, data, config.data, config.seed), warm=False)
    yield row(reading.name, timed(reading, runs))
    dataset = read_dataset(data, config.data, config.seed)
    with deterministic(1):
        parts = [partitions(data, dataset), *(trainings(data, dataset, model) for model in models)]
        for part in (part for some in (*parts, aggregations(data, dataset), reads(data, dataset)) for part in some):
            yield row(part.name, timed(part, runs))
        yield row("one user's erasure, ten shards, all of it", erasures(data, dataset, runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="a log, or 'synthetic'; may be repeated")
    parser.add_argument("--models", default=",".join(MODELS), help=f"some of {','.join(MODELS)}")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--report", type=Path, help="folder for the dated report")
    arguments = parser.parse_args()
    models = arguments.models.split(",")
    if unknown := [model for model in models if model not in MODELS]:
        parser.error(f"--models {', '.join(unknown)}: choose from {', '.join(MODELS)}")
    lines = heading("Seconds of every part, one process", 1)
    for data in arguments.data:
        lines += [
            f"## {Path(data).name}",
            "",
            "| seconds | median | range | of the processor, median | runs |",
            "|---|---|---|---|---|",
        ]
        for line in measured_rows(data, models, arguments.runs):
            print(line, file=sys.stderr, flush=True)
            lines.append(line)
        lines.append("")
    write_report(lines, arguments.report, "bench-" + "-".join(Path(data).name for data in arguments.data))


if __name__ == "__main__":
    main()
