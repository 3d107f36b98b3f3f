"""Measure, don't test: milliseconds of a read from the linear model, alone and in batches, and of what forgetting takes.

    python tests/benchmarks/linear.py --data ml-1m --data yelp2018 --report tests/benchmarks/results

Everything is computed in this process on one thread, or on a GPU with --device cuda. Users are drawn at random from those with
training pairs. Scores are computed, and no lists are made of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from measured import heading, write_report

from ray_eraser.config import EraserConfig, LinearConfig, PartitionConfig, load_config
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.devices import Device, by_torch, torch_device
from ray_eraser.kernels.products import Rows
from ray_eraser.models.linear import LinearModel, Slice
from ray_eraser.models.linear_torch import LinearTorch
from ray_eraser.partition import divide

HELD_OUT = ("data.test_share=0.2", "data.valid_share=0.1")
"""Of a log that comes without a split."""
TIMES = 20
"""How often the rest is measured."""


@dataclass(frozen=True)
class Reads:
    """Milliseconds for each user, of many reads: by the clock, and of the processor, which other work changes less."""

    clock: Sequence[float]
    processor: Sequence[float]

    def row(self, name: str) -> str:
        median, high, low = np.percentile(self.clock, [50, 99, 0])
        return f"| {name} | {median:.2f} | {high:.2f} | {low:.2f} | {np.median(self.processor):.2f} | {len(self.clock)} |"


def measured(calls: Sequence[Callable[[], object]], n_users: int = 1) -> Reads:
    """The calls, each for so many users. The first pays for what is loaded once, so it is made twice."""
    calls[0]()
    clock, processor = [], []
    for call in calls:
        began = time.perf_counter(), time.process_time()
        call()
        clock.append(1000 * (time.perf_counter() - began[0]) / n_users)
        processor.append(1000 * (time.process_time() - began[1]) / n_users)
    return Reads(clock, processor)


def divided(dataset: Dataset, kind: str, n_shards: int, seed: int) -> list[Interactions]:
    """Every shard's training pairs."""
    settings = PartitionConfig.model_validate({"kind": kind, "n_shards": n_shards})
    owners = divide(dataset.train, dataset.users.keys, dataset.items.keys, settings, seed).owners
    return [dataset.train.take(owners == shard) for shard in range(n_shards)]


def made(slices: Sequence[Slice], dataset: Dataset, config: LinearConfig, device: Device) -> LinearModel | LinearTorch:
    shape = len(dataset.users.keys), len(dataset.items.keys)
    if by_torch(device):
        return LinearTorch.of(slices, *shape, config, torch_device(device))
    return LinearModel.of(slices, *shape, config)


def asked_of(train: Interactions, users: np.ndarray) -> Rows:
    own = [train.items_of(user) for user in users]
    return Rows.of(np.cumsum([0, *map(len, own)]), np.concatenate(own))


def reads(model: LinearModel | LinearTorch, dataset: Dataset, users: np.ndarray, at_once: Sequence[int]) -> Iterator[str]:
    for n_users in at_once:
        batches = [users[first : first + n_users] for first in range(0, len(users) - n_users + 1, n_users)]
        calls = [partial(model.scores, asked_of(dataset.train, batch)) for batch in batches]
        yield measured(calls, n_users).row("a read of one user" if n_users == 1 else f"a read of {n_users} users, each of them")


def forgetting(parts: list[Interactions], dataset: Dataset, users: np.ndarray, config: LinearConfig, device: Device) -> str:
    """One user's pairs are dropped, the slices that had some are made again, and then the model."""
    n_items = len(dataset.items.keys)
    slices = [Slice.of(part, n_items) for part in parts]

    def forget(user: int) -> None:
        gone = dataset.train.of_users(np.array([user]))
        remaining = [part.without(gone) for part in parts]
        remade = [
            own if len(left) == len(part) else Slice.of(left, n_items)
            for own, left, part in zip(slices, remaining, parts, strict=True)
        ]
        made(remade, dataset, config, device)

    return measured([partial(forget, user) for user in users[:TIMES]]).row("drop a user's pairs and make the model again")


def measured_rows(data: str, config: EraserConfig, arguments: argparse.Namespace) -> Iterator[str]:
    dataset = read_dataset(data, config.data, config.seed)
    linear, n_items = LinearConfig(steps=arguments.steps), len(dataset.items.keys)
    parts = [dataset.train]
    if arguments.shards > 1:
        parts = divided(dataset, arguments.partition, arguments.shards, config.seed)
    users = np.random.default_rng(config.seed).permutation(dataset.train.user_rows())[: arguments.users]
    yield f"## {dataset.name}, {len(dataset.train):,} pairs, {len(dataset.users.keys):,} users, {n_items:,} items"
    yield ""
    yield "| milliseconds | median | 99 % | shortest | of the processor, median | measured |"
    yield "|---|---|---|---|---|---|"
    with deterministic(1):
        making = [lambda: made([Slice.of(part, n_items) for part in parts], dataset, linear, arguments.device)] * TIMES
        yield measured(making).row("make the model from the pairs")
        yield forgetting(parts, dataset, users, linear, arguments.device)
        model = made([Slice.of(part, n_items) for part in parts], dataset, linear, arguments.device)
        yield from reads(model, dataset, users, arguments.at_once)
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="a log, or 'synthetic'; may be repeated")
    parser.add_argument("--users", type=int, default=1280, help="who are asked about")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8, 64], help="users of a read")
    parser.add_argument("--steps", type=int, default=LinearConfig().steps, help="of conjugate gradients")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--partition", default="hashed", help="how pairs are divided among shards, without learning")
    parser.add_argument("--device", choices=["cpu", "torch-cpu", "cuda"], default="cpu")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="how a log is read or generated")
    parser.add_argument("--report", type=Path, help="folder for the dated report")
    arguments = parser.parse_args()
    config = load_config(None, [*HELD_OUT, *arguments.changes])
    shards = "one slice" if arguments.shards == 1 else f"{arguments.shards} {arguments.partition} slices in one process"
    lines = heading(f"Reads from the linear model, {arguments.steps} steps, {shards}, {arguments.device}", 1)
    for data in arguments.data:
        for line in measured_rows(data, config, arguments):
            print(line, file=sys.stderr, flush=True)
            lines.append(line)
    names = "-".join(Path(data).name for data in arguments.data)
    kept = names if arguments.shards == 1 else f"{names}-{arguments.partition}-{arguments.shards}"
    write_report(lines, arguments.report, f"linear-{kept}" + ("" if arguments.device == "cpu" else f"-{arguments.device}"))


if __name__ == "__main__":
    main()
