"""What the benchmarks share: a Ray of their own, and dated reports that say what was measured where."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ray_eraser.ids import RawId
    from ray_eraser.runtime.client import Client

_LOAD = os.getloadavg()[0]  # what others did meanwhile is in every figure
_NUMERALS = {1: "one core", 2: "two cores", 4: "four cores", 8: "eight cores"}


@contextmanager
def own_ray(num_cpus: int | None = None) -> Iterator[tuple[str, Path]]:
    """A local Ray of this process alone: its address, for processes that this one starts, and the folder of its logs."""
    import ray

    assert not ray.is_initialized(), "this process is connected to a Ray already"
    # A short path, because sockets lie in it and theirs are limited.
    folder = tempfile.mkdtemp(prefix="re", dir="/tmp")
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    ray.init(
        address="local",
        namespace="ray_eraser",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=folder,
    )
    try:
        yield ray.get_runtime_context().gcs_address, (Path(folder) / "session_latest" / "logs").resolve()
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


class Journal:
    """A file with a line of JSON for everything that a process did."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, **fields: Any) -> None:
        self._file.write(json.dumps(fields) + "\n")
        self._file.flush()

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def training_seconds(client: Client, n_interactions: int) -> float:
    """What the training of a deployment with one shard took in the shard's process, from reading its interactions to writing
    its vectors: without what is only done once when a deployment is made.
    """
    return client.describe().costs.seconds_per_interaction * n_interactions


@dataclass
class Erasures:
    """Seconds of users' erasures, one after the other, of another user's reads meanwhile, and the shards that were touched."""

    forget: list[float] = field(default_factory=list)
    restore: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)

    @classmethod
    def measured(cls, client: Client, users: Sequence[RawId], reader: RawId) -> Erasures:
        """Erase them. The first pays for what is loaded once, and is not counted."""
        all_of_them = cls()
        for number, user in enumerate(users):
            ticket = client.unlearn(user_id=user)
            while (receipt := ticket.receipt()) is None:
                started = time.perf_counter()
                client.recommend(reader, 10)
                if number:
                    all_of_them.reads.append(time.perf_counter() - started)
                time.sleep(0.01)
            all_of_them.touched |= set(receipt.shards_touched)
            if number:
                all_of_them.forget.append(receipt.seconds["to_forget"])
                all_of_them.restore.append(receipt.seconds["to_restore"])
        return all_of_them


def percentiles(seconds: Sequence[float]) -> str:
    """Median, 99th percentile and maximum."""
    if not seconds:
        return "- / - / -"
    median, high, highest = np.percentile(seconds, [50, 99, 100])
    return f"{median:.3f} / {high:.3f} / {highest:.3f}"


def heading(title: str, threads: int) -> list[str]:
    """The first lines of a report: when, of which commit, on what machine, by which command."""
    cores = os.cpu_count() or 1
    machine = f"{_NUMERALS.get(cores, f'{cores} cores')} ({platform.machine().replace('_', '-')})"
    return [
        f"# {title}",
        "",
        f"{_today()}, {_commit()}, {machine}, Python {platform.python_version()}, {threads} thread(s) a process.",
        f"Load of the machine before the start: {_LOAD:.1f}.",
        "",
        f"Command: `{_command()}`",
        "",
    ]


def write_report(lines: Sequence[str], folder: Path | None, name: str, figures: Mapping[str, Any] | None = None) -> None:
    """Print a report and, where a folder is given, keep it there under its date, with figures for programs beside it."""
    print("\n".join(lines))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{_today()}-{name}.md").write_text("\n".join([*lines, ""]), "utf-8")
        if figures is not None:
            (folder / f"{_today()}-{name}.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def _today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/ray_eraser")
    return f"commit {git('rev-parse', '--short', 'HEAD').strip()}" + (" and changes on top of it" if changed else "")


def _command() -> str:
    """As it was typed, but with data sets by name instead of by folder, and without where the report goes."""
    words = [Path(word).name if Path(word).is_dir() else word for word in sys.argv[1:]]
    if "--report" in words:
        place = words.index("--report")
        del words[place : place + 2]
    return " ".join(["python", f"tests/benchmarks/{Path(sys.argv[0]).name}", *words])
