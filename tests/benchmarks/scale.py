"""Measure, don't test: a big log from its Parquet parts to receipts, in one run, with the memory of all processes.

    python tests/benchmarks/biglog.py --interactions 100000000 --output FOLDER
    python tests/benchmarks/scale.py --data FOLDER --set partition.n_shards=100 --requests 5 --report tests/benchmarks/results

Reads and divides the log in fragments, trains all shards, erases users one by one and compares the bits of every shard that
was touched with training it from scratch. `--full` also trains one shard with all the data, by the same code.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import pyarrow.parquet as pq
from measured import Erasures, heading, own_ray, percentiles, training_seconds, write_report

import ray_eraser
from ray_eraser.config import EraserConfig, load_config
from ray_eraser.runtime.client import Client
from ray_eraser.store import Store, embeddings_bytes
from ray_eraser.training.submodel import train_submodel

_EVERY_SECONDS = 0.5


class Memory:
    """The most that this process and all that it started held at a time, in bytes: proportional set sizes, so that what several
    share counts once.
    """

    def __init__(self) -> None:
        self.most = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._stop.wait(_EVERY_SECONDS):
            self.most = max(self.most, sum(map(_held, _descendants(os.getpid()))))

    @classmethod
    @contextmanager
    def watched(cls) -> Iterator[Memory]:
        memory = cls()
        memory._thread.start()
        try:
            yield memory
        finally:
            memory._stop.set()
            memory._thread.join()


def _descendants(root: int) -> list[int]:
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return list(found)


def _held(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it ended meanwhile
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _some_users(source: str, n: int) -> list[int]:
    """Raw ids of users of the first part, in an order that says nothing of them."""
    first = min(Path(source).glob("*.parquet"))
    ids = np.unique(pq.read_table(first, columns=["user_id"], use_threads=False)["user_id"].to_numpy())
    return [int(user) for user in np.random.default_rng(0).choice(ids, n, replace=False)]


def _same_bits(store: Store, digest: str, shards: set[int]) -> bool:
    """Whether the submodels of these shards are what training on their stored interactions gives, from scratch, here."""
    manifest = store.read_manifest(digest)
    for record in manifest.shards:
        if record.shard in shards:
            data = store.read_shard_data(record.interactions)
            submodel = train_submodel(data, manifest.config, record.shard)
            if embeddings_bytes(submodel) != store.read(record.submodel):
                return False
    return True


def _deployed(name: str, folder: str, config: EraserConfig) -> Client:
    client = ray_eraser.deploy(name, f"{folder}/{name}", config)
    client.warm()
    return client


def _full(folder: str, data: str, changes: list[str]) -> float:
    """Seconds of the training of one shard with all the data."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as path:
        client = _deployed(Path(path).name, folder, load_config(None, [*changes, "partition.n_shards=1"]))
        seconds = training_seconds(client, client.fit_log(data).n_interactions)
        client.shutdown()
    return seconds


def _say(what: str) -> None:
    """How far it is: some of these runs take an hour."""
    print(f"{datetime.now(UTC):%H:%M:%S} {what}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder of Parquet files, as biglog.py writes it")
    parser.add_argument("--requests", type=int, default=5)
    parser.add_argument("--set", dest="changes", action="append", default=["model.kind=wmf"])
    parser.add_argument("--full", action="store_true", help="also train one shard with all the data")
    parser.add_argument("--storage", help="a folder for what is stored; a temporary one without it")
    parser.add_argument("--report", type=Path)
    asked = parser.parse_args()
    config = load_config(None, asked.changes)
    rows: list[str] = []
    if asked.storage:
        Path(asked.storage).mkdir(parents=True, exist_ok=True)
    scratch = tempfile.TemporaryDirectory(dir=asked.storage, ignore_cleanup_errors=True)  # a process that ends may still write
    with own_ray(), scratch as folder, Memory.watched() as memory:
        client = _deployed("shards", folder, config)
        fit = client.fit_log(asked.data)
        _say(f"read, divided and trained: {fit.seconds}")
        reader, *users = _some_users(asked.data, 2 + asked.requests)
        erased = Erasures.measured(client, users, reader)
        digest = client.describe().digest  # the receipt's is under seal
        client.shutdown()
        _say(f"erased: to restore {erased.restore}; comparing the bits of shards {sorted(erased.touched)}")
        exact = _same_bits(Store(f"{folder}/shards"), digest, erased.touched)
        held = memory.most
        if asked.full:
            # A training has one core, as it has where shards train side by side; an aggregation has all.
            n_cores = os.cpu_count() or 1
            for name, cores, weight in (("one core", 1, "**"), (f"{n_cores} cores", n_cores, "")):
                seconds = _full(folder, asked.data, [*asked.changes, f"runtime.cores={cores}"])
                ratio = seconds / float(np.median(erased.restore))
                rows.append(f"| full retraining, one shard, same epochs, same code, {name} | {seconds:.1f} |")
                rows.append(f"| {weight}that over to restore (median){weight} | {weight}{ratio:.1f}{weight} |")
    forget, restore = float(np.median(erased.forget)), float(np.median(erased.restore))
    name = f"{Path(asked.data).name}-{config.partition.n_shards}"
    what = f"{fit.n_interactions:,} interactions to learn from, {fit.n_users:,} users, {fit.n_items:,} items"
    lines = [
        *heading(f"A big log, {config.partition.n_shards} {config.partition.kind} shards", config.runtime.threads),
        f"{what}; {len(erased.restore)} users erased one by one, after a first.",
        "",
        "| | seconds |",
        "|---|---|",
        f"| read and divide | {fit.seconds['partition']:.1f} |",
        f"| train all shards | {fit.seconds['shards']:.1f} |",
        f"| aggregate | {fit.seconds['aggregation']:.1f} |",
        f"| to forget, median / 99th percentile / most | {percentiles(erased.forget)} |",
        f"| to restore | {percentiles(erased.restore)} |",
        f"| a read meanwhile ({len(erased.reads)} reads) | {percentiles(erased.reads)} |",
        *rows,
        "",
        f"Most memory of all processes together: {held / 2**30:.1f} GiB.",
        f"Touched shards trained from scratch on what remains: {'the same bits' if exact else 'OTHER BITS'}.",
    ]
    figures = {
        "interactions": fit.n_interactions,
        "shards": config.partition.n_shards,
        "read and divide": fit.seconds["partition"],
        "train all shards": fit.seconds["shards"],
        "aggregate": fit.seconds["aggregation"],
        "to forget": forget,
        "to restore": restore,
        "GiB": held / 2**30,
    }
    write_report(lines, asked.report, f"scale-{name}", figures)
    if not exact:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
