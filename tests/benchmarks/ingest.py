"""Reading a big log in fragments and dividing it: seconds and memory of each pass, in one process or several.

python tests/benchmarks/ingest.py --data FOLDER [--processes 2] [--report FOLDER]
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from measured import heading, write_report

from ray_eraser.config import load_config
from ray_eraser.ingest import ingest
from ray_eraser.store import Store

MB = 1024


class Measured:
    """Calls in processes of their own, with the seconds and the highest memory of every batch of calls."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self.batches: list[tuple[str, int, float, int]] = []

    def run(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        started = time.perf_counter()
        # New processes for every batch: the memory of one is not that of the batch before.
        with ProcessPoolExecutor(self._processes, get_context("spawn")) as processes:
            answers = list(processes.map(_call, calls))
        function = getattr(calls[0].args[0], "func", None)  # type: ignore[attr-defined]
        name = getattr(function, "__name__", "?")
        highest = max(memory for _, memory in answers)
        self.batches.append((name, len(calls), time.perf_counter() - started, highest))
        return [answer for answer, _ in answers]


def _call(call: Callable[[], Any]) -> tuple[Any, int]:
    return call(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def own_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ingest-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder of Parquet files, as biglog.py writes it")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--report", type=Path)
    asked = parser.parse_args()
    config = load_config(None, asked.set)
    compute = Measured(asked.processes)
    with own_folder() as folder:
        started = time.perf_counter()
        got = ingest(asked.data, Store(str(folder)), config, compute)
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    coordinator = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = [f"| {name} | {n} | {took:.1f} | {memory / MB:.0f} |" for name, n, took, memory in compute.batches]
    rest = seconds - sum(took for _, _, took, _ in compute.batches)
    what = f"{int(got.sizes.sum())} interactions to learn from, {len(got.users)} users, {len(got.items)} items"
    write_report(
        [
            *heading("A big log read in fragments", 1),
            f"{what}, {len(got.sizes)} shards ({config.partition.kind}), {asked.processes} processes.",
            "",
            "| pass | calls | seconds | most MB of a process |",
            "|---|---|---|---|",
            *rows,
            f"| vocabularies and keys, in the caller | | {rest:.1f} | {coordinator / MB:.0f} |",
            f"| all | | {seconds:.1f} | |",
            "",
            f"Files of the shards and vocabularies: {size / 1e6:.0f} MB.",
        ],
        asked.report,
        f"ingest-{Path(asked.data).name}",
    )


if __name__ == "__main__":
    main()
