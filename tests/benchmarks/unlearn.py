"""Measure, don't test: what one user's erasure costs on a running deployment, beside a full retraining by the same code.

    python tests/benchmarks/unlearn.py --data ml-1m --requests 20 --report tests/benchmarks/results

Everything is measured in one run on one local Ray, shards up: submit to excised (`to_forget`), submit to receipt
(`to_restore`), reads while shards retrain, and the training of one shard with all the data for as many epochs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from measured import heading, write_report

import ray_eraser
from ray_eraser.config import load_config
from ray_eraser.ids import RawId
from ray_eraser.runtime.client import Client
from ray_eraser.runtime.session import session
from ray_eraser.seeds import derive


def _spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return f"{ordered[0]:.3f} / {statistics.median(ordered):.3f} / {ordered[-1]:.3f}"


def _erase(client: Client, users: list[RawId], reader: RawId) -> tuple[list[float], list[float], list[float]]:
    """Seconds to forget and to restore of each user, and of every read by another user in between."""
    forget, restore, reads = [], [], []
    for user in users:
        ticket = client.unlearn(user_id=user)
        while (receipt := ticket.receipt()) is None:
            started = time.perf_counter()
            client.recommend(reader, 10)
            reads.append(time.perf_counter() - started)
            time.sleep(0.01)
        forget.append(receipt.seconds["to_forget"])
        restore.append(receipt.seconds["to_restore"])
    return forget, restore, reads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--report", type=Path, help="folder for the dated report")
    arguments = parser.parse_args()
    config = load_config(None, arguments.changes)
    full_config = load_config(None, [*arguments.changes, "partition.n_shards=1"])
    dataset = ray_eraser.read_dataset(arguments.data, config.data, config.seed)
    with session("local"), tempfile.TemporaryDirectory() as folder:
        full = ray_eraser.deploy("full", f"{folder}/full", full_config)
        full.warm()
        full_fit = full.fit(dataset)
        full.shutdown()
        client = ray_eraser.deploy("shards", f"{folder}/shards", config)
        client.warm()
        fit = client.fit(dataset)
        users = sorted(map(str, dataset.users.ids), key=lambda user: derive(0, "benchmark", user))
        _erase(client, users[:1], users[-1])  # the first request pays for what is loaded once
        forget, restore, reads = _erase(client, users[1 : 1 + arguments.requests], users[-1])
        client.shutdown()
    full_seconds = full_fit.seconds["shards"] + full_fit.seconds["aggregation"]
    name, n_shards = Path(arguments.data).name, config.partition.n_shards
    lines = [
        *heading(f"One user's erasure, {name}, {n_shards} {config.partition.kind} shards", config.runtime.threads),
        "| seconds | min / median / max |",
        "|---|---|",
        f"| to forget (submit to excised) | {_spread(forget)} |",
        f"| to restore (submit until the new generation is served) | {_spread(restore)} |",
        f"| a read while shards retrain ({len(reads)} reads) | {_spread(reads)} |",
        f"| full retraining, one shard, same epochs, same code | {full_seconds:.3f} |",
        f"| first training of all shards | {fit.seconds['shards'] + fit.seconds['aggregation']:.3f} |",
        f"| **full retraining over to restore** | **{full_seconds / statistics.median(restore):.2f}** |",
    ]
    write_report(lines, arguments.report, f"unlearn-{name}-{n_shards}")


if __name__ == "__main__":
    main()
