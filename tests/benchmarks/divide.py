"""Measure, don't test: the learned partition of a big log, in one process of one thread, and whether blocks change it.

    python tests/benchmarks/divide.py --data FOLDER --kind interaction_based --report tests/benchmarks/results

`--data` is a folder of Parquet files, as biglog.py writes it. The embeddings that it is learned from are trained here.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from measured import heading, write_report

from ray_eraser.config import EraserConfig, load_config
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import ShardData
from ray_eraser.determinism import deterministic
from ray_eraser.embeddings import Embeddings
from ray_eraser.ids import ShardId
from ray_eraser.partition import balanced
from ray_eraser.training.submodel import train_submodel

MB = 1024


def read_log(folder: str) -> Interactions:
    """All pairs of a folder of Parquet files, numbered as they sort."""
    table = pq.read_table(folder, columns=["user_id", "item_id"], use_threads=False)
    users, items = (np.unique(table[name].to_numpy(), return_inverse=True)[1] for name in ("user_id", "item_id"))
    return Interactions.of(users.astype(np.int32), items.astype(np.int32))


def forget_peak() -> None:
    """Let the kernel count the highest memory from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def memory(field: str) -> int:
    """MB of this process: `VmRSS`, what it holds; `VmHWM`, the most that it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) // MB


def divided(log: Interactions, embeddings: Embeddings, config: EraserConfig, block: int) -> np.ndarray:
    """The shard of every interaction, with so many costs held at a time."""
    usual, balanced._BLOCK = balanced._BLOCK, block
    try:
        return balanced.balanced(log, embeddings, config.partition, config.seed).owners
    finally:
        balanced._BLOCK = usual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--kind", default="interaction_based", choices=["interaction_based", "user_based", "item_based"])
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--report", type=Path)
    asked = parser.parse_args()
    divide = [f"partition.kind={asked.kind}", f"partition.max_iterations={asked.iterations}"]
    config = load_config(None, [*divide, "model.epochs=2", "model.alpha0=0.1", *asked.changes])
    log = read_log(asked.data)
    keys = [np.arange(int(rows.max()) + 1, dtype=np.uint64) for rows in (log.users, log.items)]
    with deterministic(1):
        embeddings = train_submodel(ShardData(*keys, log, Interactions.none()), config, ShardId(0)).in_rows(*keys)
        forget_peak()
        before = memory("VmRSS")
        started = time.perf_counter()
        owners = divided(log, embeddings, config, balanced._BLOCK)
        seconds = time.perf_counter() - started
        peak = memory("VmHWM")
        at_once = divided(log, embeddings, config, len(log) * config.partition.n_shards)
        peak_at_once = memory("VmHWM")
    sizes = np.bincount(owners, minlength=config.partition.n_shards)
    lines = [
        *heading(f"{asked.kind}, K = {config.partition.n_shards}", 1),
        f"{len(log):,} interactions; {asked.iterations} iterations of assignment and new anchors.",
        "",
        "| | |",
        "|---|---|",
        f"| seconds an iteration | {seconds / asked.iterations:.1f} |",
        f"| memory before, with the log and its embeddings | {before:,} MB |",
        f"| the most memory of the process | {peak:,} MB |",
        f"| ... with all costs at once | {peak_at_once:,} MB |",
        f"| the same division as with all costs at once | {'yes' if np.array_equal(owners, at_once) else 'NO'} |",
        f"| interactions of the largest shard over the mean | {sizes.max() / sizes.mean():.3f} |",
    ]
    write_report(lines, asked.report, f"divide-{asked.kind.replace('_', '-')}-{Path(asked.data).name}")


if __name__ == "__main__":
    main()
