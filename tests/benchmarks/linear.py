"""Measure, don't test: milliseconds of a read from the linear model, alone and in batches, and of what forgetting takes.

    python tests/benchmarks/linear.py --data ml-1m --data yelp2018 --report tests/benchmarks/results
    python tests/benchmarks/linear.py --interactions 10000000 --cores 1 2 --report tests/benchmarks/results

Everything is computed in this process, on one thread unless --cores says more, or on a GPU with --device cuda. Users are drawn
at random from those with training pairs. Scores are computed, and no lists are made of them. A generated log is that of
biglog.py; all of it is learned from.
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
from ray_eraser.data.files import read_dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.synthetic import FIRST_ITEM, FIRST_USER, BigLog
from ray_eraser.determinism import deterministic
from ray_eraser.devices import Device, by_torch, torch_device
from ray_eraser.kernels.products import Rows
from ray_eraser.models.linear import LinearModel, Slice
from ray_eraser.models.linear_torch import LinearTorch
from ray_eraser.partition import divide

HELD_OUT = ("data.test_share=0.2", "data.valid_share=0.1")
"""Of a log that comes without a split."""
PER_USER = 100
"""Interactions of an average user of a generated log, as in biglog.py."""


@dataclass(frozen=True, eq=False)
class Log:
    """What is measured on: training pairs, and the keys by which they can be divided."""

    name: str
    train: Interactions
    user_keys: np.ndarray
    item_keys: np.ndarray

    @classmethod
    def read(cls, data: str, config: EraserConfig) -> Log:
        dataset = read_dataset(data, config.data, config.seed)
        return cls(dataset.name, dataset.train, dataset.users.keys, dataset.items.keys)

    @classmethod
    def generated(cls, n_interactions: int, n_items: int | None) -> Log:
        log = BigLog.of(n_interactions, PER_USER, 1, n_items)
        parts = []
        for number in range(len(log)):
            users, items = log.fragment(number)
            parts.append(Interactions.of(users - FIRST_USER, items - FIRST_ITEM))
        # Fragments are of whole users in their order, so nothing is left to sort.
        train = Interactions(*(np.concatenate([getattr(part, side) for part in parts]) for side in ("users", "items")))
        return cls("a generated log", train, np.arange(log.n_users, dtype=np.uint64), np.arange(log.n_items, dtype=np.uint64))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.user_keys), len(self.item_keys)


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


def divided(log: Log, kind: str, n_shards: int, seed: int) -> list[Interactions]:
    """Every shard's training pairs."""
    if n_shards == 1:
        return [log.train]
    settings = PartitionConfig.model_validate({"kind": kind, "n_shards": n_shards})
    owners = divide(log.train, log.user_keys, log.item_keys, settings, seed).owners
    return [log.train.take(owners == shard) for shard in range(n_shards)]


def made(slices: Sequence[Slice], shape: tuple[int, int], config: LinearConfig, device: Device) -> LinearModel | LinearTorch:
    if by_torch(device):
        return LinearTorch.of(slices, *shape, config, torch_device(device))
    return LinearModel.of(slices, *shape, config)


def asked_of(train: Interactions, users: np.ndarray) -> Rows:
    own = [train.items_of(user) for user in users]
    return Rows.of(np.cumsum([0, *map(len, own)]), np.concatenate(own))


def reads(model: LinearModel | LinearTorch, log: Log, users: np.ndarray, at_once: Sequence[int], cores: int) -> Iterator[str]:
    where = "" if cores == 1 else f", {cores} threads"
    for n_users in at_once:
        batches = [users[first : first + n_users] for first in range(0, len(users) - n_users + 1, n_users)]
        calls = [partial(model.scores, asked_of(log.train, batch)) for batch in batches]
        name = "a read of one user" if n_users == 1 else f"a read of {n_users} users, each of them"
        yield measured(calls, n_users).row(name + where)


def forgetting(parts: list[Interactions], log: Log, users: np.ndarray, config: LinearConfig, device: Device) -> str:
    """One user's pairs are dropped: from the only slice, as it is served; of several, those that had some are made again.

    Then the model is made.
    """
    n_items = len(log.item_keys)
    slices = [Slice.of(part, n_items) for part in parts]

    def forget(user: int) -> None:
        gone = log.train.of_users(np.array([user]))
        if len(slices) == 1:
            places = np.searchsorted(slices[0].users, gone.users).astype(np.int32)
            left, _, _ = slices[0].without(Interactions(places, gone.items))
            made([left], (len(left.by_user), len(left.by_item)), config, device)
            return
        remaining = [part.without(gone) for part in parts]
        remade = [
            own if len(kept) == len(part) else Slice.of(kept, n_items)
            for own, kept, part in zip(slices, remaining, parts, strict=True)
        ]
        made(remade, log.shape, config, device)

    return measured([partial(forget, user) for user in users]).row("drop a user's pairs and make the model again")


def measured_rows(log: Log, seed: int, arguments: argparse.Namespace) -> Iterator[str]:
    linear, n_items = LinearConfig(steps=arguments.steps), len(log.item_keys)
    parts = divided(log, arguments.partition, arguments.shards, seed)
    users = np.random.default_rng(seed).permutation(log.train.user_rows())[: arguments.users]
    yield f"## {log.name}, {len(log.train):,} pairs, {len(log.user_keys):,} users, {n_items:,} items"
    yield ""
    yield "| milliseconds | median | 99 % | shortest | of the processor, median | measured |"
    yield "|---|---|---|---|---|---|"
    with deterministic(1):
        making = [
            lambda: made([Slice.of(part, n_items) for part in parts], log.shape, linear, arguments.device)
        ] * arguments.times
        yield measured(making).row("make the model from the pairs")
        yield forgetting(parts, log, users[: arguments.times], linear, arguments.device)
        model = made([Slice.of(part, n_items) for part in parts], log.shape, linear, arguments.device)
    for cores in arguments.cores:
        with deterministic(1, cores):
            yield from reads(model, log, users, arguments.at_once, cores)
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[], help="a log, or 'synthetic'; may be repeated")
    parser.add_argument("--interactions", type=int, action="append", default=[], help="of a generated log; may be repeated")
    parser.add_argument("--items", type=int, help="of generated logs; a tenth of the users without it")
    parser.add_argument("--users", type=int, default=1280, help="who are asked about")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8, 64], help="users of a read")
    parser.add_argument("--cores", type=int, nargs="+", default=[1], help="threads of a read; reads are measured with each")
    parser.add_argument("--times", type=int, default=20, help="how often a model is made")
    parser.add_argument("--steps", type=int, default=LinearConfig().steps, help="of conjugate gradients")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--partition", default="hashed", help="how pairs are divided among shards, without learning")
    parser.add_argument("--device", choices=["cpu", "torch-cpu", "cuda"], default="cpu")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="how a log is read or generated")
    parser.add_argument("--report", type=Path, help="folder for the dated report")
    arguments = parser.parse_args()
    if not arguments.data and not arguments.interactions:
        parser.error("there is nothing to measure: name a log with --data, or a size with --interactions")
    config = load_config(None, [*HELD_OUT, *arguments.changes])
    shards = "one slice" if arguments.shards == 1 else f"{arguments.shards} {arguments.partition} slices in one process"
    lines = heading(f"Reads from the linear model, {arguments.steps} steps, {shards}, {arguments.device}", 1)
    logs = [partial(Log.read, data, config) for data in arguments.data]
    logs += [partial(Log.generated, size, arguments.items) for size in arguments.interactions]
    for read in logs:  # one at a time, because a large one fills the memory
        for line in measured_rows(read(), config.seed, arguments):
            print(line, file=sys.stderr, flush=True)
            lines.append(line)
    names = "-".join(
        [
            *(Path(data).name for data in arguments.data),
            *(f"{size:,}".replace(",000,000", "m").replace(",000", "k") for size in arguments.interactions),
        ]
    )
    kept = names if arguments.shards == 1 else f"{names}-{arguments.partition}-{arguments.shards}"
    write_report(lines, arguments.report, f"linear-{kept}" + ("" if arguments.device == "cpu" else f"-{arguments.device}"))


if __name__ == "__main__":
    main()
