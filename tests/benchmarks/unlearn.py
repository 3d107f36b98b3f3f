"""Measure, don't test: what one user's erasure costs on a running deployment, beside a full retraining by the same code.

    python tests/benchmarks/unlearn.py --data ml-1m --requests 20 --equal-quality --report tests/benchmarks/results

Everything is measured in one run on one local Ray, shards up: submit to excised (`to_forget`), submit to receipt
(`to_restore`), reads while shards retrain, and the training of one shard with all the data for as many epochs, twice before and
twice after, since the speed of a machine changes. A training has one core, as it has where shards train side by side; an
aggregation has all, so that the training is also measured with all. With `--equal-quality` also for as few epochs as reach the
quality of the shards, on the test set of up to 5,000 users. Of a log without a split a fifth is held out as the test set.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from measured import Erasures, heading, training_seconds, write_report

import ray_eraser
from ray_eraser.config import load_config
from ray_eraser.data.dataset import Dataset
from ray_eraser.evaluation import evaluate
from ray_eraser.runtime.session import session
from ray_eraser.seeds import derive
from ray_eraser.served import served_by
from ray_eraser.store import Store

_HELD_OUT = ("data.test_share=0.2", "data.valid_share=0.1")
_RANKED_USERS = 5_000
_TIMES = 2


def _spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return f"{ordered[0]:.3f} / {statistics.median(ordered):.3f} / {ordered[-1]:.3f}"


def _quality(storage_path: str, digest: str, dataset: Dataset) -> float:
    """NDCG@10 of a generation on the test set, of the first so many users in an order that says nothing of them."""
    store = Store(storage_path)
    manifest = store.read_manifest(digest)
    users = dataset.test.user_rows()
    if len(users) > _RANKED_USERS:
        users = np.sort(np.random.default_rng(0).choice(users, _RANKED_USERS, replace=False))
    train, test = dataset.train.of_users(users), dataset.test.of_users(users)
    shards = [store.read_shard_data(record.interactions) for record in manifest.shards]
    served = served_by(store.read_embeddings(manifest.aggregate), shards, manifest.config)
    return evaluate(served.in_rows(dataset.users.keys, dataset.items.keys), train, test, (10,))["ndcg@10"]


def _full(folder: str, dataset: Dataset, changes: list[str]) -> tuple[float, float]:
    """(seconds, NDCG@10) of one shard with all the data."""
    with tempfile.TemporaryDirectory(dir=folder) as path:
        client = ray_eraser.deploy(Path(path).name, path, load_config(None, [*changes, "partition.n_shards=1"]))
        client.warm()
        fit = client.fit(dataset)
        seconds = training_seconds(client, fit.n_interactions)
        client.shutdown()
        return seconds, _quality(path, fit.digest, dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--full", action="append", default=[], help="settings of the full retraining besides, as --set")
    parser.add_argument("--equal-quality", action="store_true", help="also a full retraining stopped at the shards' quality")
    parser.add_argument("--report", type=Path, help="folder for the dated report")
    arguments = parser.parse_args()
    changes = [*_HELD_OUT, "model.kind=wmf", *arguments.changes]
    config = load_config(None, changes)
    dataset = ray_eraser.read_dataset(arguments.data, config.data, config.seed)
    with session("local"), tempfile.TemporaryDirectory() as folder:
        everything = [*changes, "aggregation.sweeps=0", *arguments.full]
        full = [_full(folder, dataset, everything) for _ in range(_TIMES)]
        client = ray_eraser.deploy("shards", f"{folder}/shards", config)
        client.warm()
        fit = client.fit(dataset)
        quality = _quality(f"{folder}/shards", fit.digest, dataset)
        users = sorted(map(str, dataset.users.raw(dataset.train.user_rows())), key=lambda user: derive(0, "benchmark", user))
        erased = Erasures.measured(client, users[: 1 + arguments.requests], users[-1])
        client.shutdown()
        full += [_full(folder, dataset, everything) for _ in range(_TIMES)]
        n_cores = os.cpu_count() or 1
        wide = [_full(folder, dataset, [*everything, f"runtime.cores={n_cores}"])[0] for _ in range(_TIMES)]
        equal = None
        if arguments.equal_quality:
            for epochs in range(1, config.model.epochs + 1):
                seconds, reached = _full(folder, dataset, [*everything, f"model.epochs={epochs}"])
                if reached >= quality or epochs == config.model.epochs:
                    equal = epochs, seconds, reached
                    break
    median, whole = statistics.median(erased.restore), [seconds for seconds, _ in full]
    full_seconds, full_quality = statistics.median(whole), full[0][1]
    name, n_shards = Path(arguments.data).name, config.partition.n_shards
    lines = [
        *heading(f"One user's erasure, {name}, {n_shards} {config.partition.kind} shards", config.runtime.threads),
        f"{fit.n_interactions:,} interactions of {fit.n_users:,} users; {arguments.requests} users erased.",
        "",
        "| seconds | min / median / max |",
        "|---|---|",
        f"| to forget (submit to excised) | {_spread(erased.forget)} |",
        f"| to restore (submit until the new generation is served) | {_spread(erased.restore)} |",
        f"| a read while shards retrain ({len(erased.reads)} reads) | {_spread(erased.reads)} |",
        f"| full retraining, one shard, same epochs, same code, one core | {_spread(whole)} |",
        f"| the same on {n_cores} cores | {_spread(wide)} |",
        f"| first training of all shards | {fit.seconds['shards'] + fit.seconds['aggregation']:.3f} |",
        f"| **full retraining over to restore** | **{full_seconds / median:.2f}** |",
    ]
    if equal is not None:
        epochs, seconds, reached = equal
        lines += [
            f"| full retraining of {epochs} epochs, NDCG@10 {reached:.4f} | {seconds:.3f} |",
            f"| **that over to restore** | **{seconds / median:.2f}** |",
        ]
    lines += [f"| on {n_cores} cores over to restore | {statistics.median(wide) / median:.2f} |"]
    lines += ["", f"NDCG@10 on the test set: shards {quality:.4f}, full retraining {full_quality:.4f}."]
    write_report(lines, arguments.report, f"unlearn-{name}-{n_shards}")


if __name__ == "__main__":
    main()
