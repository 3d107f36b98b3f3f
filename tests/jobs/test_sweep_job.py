"""A sweep as a person runs it: finished, stopped and killed, on the tests' own Ray."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
from leftovers import left_since, living

from ray_eraser.config import load_config
from ray_eraser.study.tables import read_results

SMALL = """
[data]
synthetic_users = 60
synthetic_items = 40
synthetic_per_user = 8
synthetic_communities = 3
valid_share = 0.1
[model]
kind = "wmf"
width = 8
epochs = 3
alpha0 = 0.3
[runtime]
timeout_seconds = 100
"""
FOUR = ("--over", "partition.n_shards=2,3", "--over", "partition.kind=hashed,user_based")
SIX = ("--over", "partition.n_shards=2,3,4", "--over", "partition.kind=hashed,user_based")


def run(*arguments: str, folder: Path, address: str | None = None) -> subprocess.CompletedProcess[str]:
    return commands.run("sweep", "--config", "small.toml", *arguments, folder=folder, ray_address=address)


def start(*arguments: str, folder: Path, address: str) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        commands.words("sweep", "--config", "small.toml", *arguments),
        cwd=folder,
        env=commands.environment(address),
        stdout=quiet,
        stderr=quiet,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path


@pytest.fixture
def address(ray_session: None) -> Iterator[str]:
    """Of the tests' Ray, on which nothing may be left."""
    import ray

    before = living()
    yield ray.get_runtime_context().gcs_address
    assert left_since(before) == set()


def until(count: int, file: Path, process: subprocess.Popen[bytes]) -> dict[str, dict[str, Any]]:
    """The finished rows, once there are so many."""
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and process.poll() is None:
        rows = {row["key"]: row for row in read_results(file) if row["state"] == "finished"}
        if len(rows) >= count:
            return rows
        time.sleep(0.1)
    pytest.fail(f"fewer than {count} trials were finished")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--over", "partition.n_shards=5,zero"), "partition.n_shards"),
        (("--over", "model.color=1,2"), "config model.color: unknown key"),
        (("--over", "data.min_rating=1,2"), "must be the same for all trials"),
        (("--mix", "dog=1"), "is not a share of a kind"),
        (("--samples", "3"), "there is nothing to draw"),
        (("--set", "data.valid_share=0"), "no validation set to compare trials by: set data.valid_share=0.1"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_started(arguments: tuple[str, ...], said: str, folder: Path) -> None:
    assert said in commands.refusal(run(*arguments, folder=folder))
    assert [file.name for file in folder.iterdir()] == ["small.toml"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_gives_a_table_a_figure_and_settings_to_train_with(folder: Path, address: str) -> None:
    done = run(*FOUR, "--requests", "2", "--choose", "quality", "--level", "exact", "--json", folder=folder, address=address)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    trials = {trial["key"]: trial for trial in result["trials"]}
    assert len(trials) == 4
    assert {trial["state"] for trial in trials.values()} == {"finished"}
    assert all(trial["restore_seconds"] > trial["forget_seconds"] > 0 for trial in trials.values())
    assert {trial["level"] for trial in trials.values()} == {"exact", "exact-given-partition"}
    chosen = trials[result["chosen"]]
    assert chosen["level"] == "exact"
    exact = [trial for trial in trials.values() if trial["level"] == "exact"]
    assert chosen["ndcg@10"] == max(trial["ndcg@10"] for trial in exact)

    made = folder / "results" / "sweep"
    assert [Path(file).name for file in result["files"]] == [
        "sweep.parquet", "sweep.md", "chosen.toml", "sweep.png", "sweep.svg",
    ]  # fmt: skip
    assert all(Path(file).stat().st_size > 0 for file in result["files"])
    assert load_config(made / "chosen.toml").partition.n_shards == chosen["n_shards"]
    assert not (made / "scratch").exists()

    # The same command again has nothing to measure: what took time took the same.
    again = run(*FOUR, "--requests", "2", "--json", folder=folder, address=address)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["trials"] == result["trials"]
    other = run(*FOUR, "--requests", "3", folder=folder, address=address)
    assert other.returncode == 2
    assert "holds a sweep of other data or settings" in other.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_that_is_killed_or_interrupted_leaves_nothing_and_goes_on(folder: Path, address: str) -> None:
    file = folder / "out" / "cut" / "sweep.parquet"
    where = ("--out", "out", "--name", "cut", "--requests", "2")
    before = living()
    killed = start(*SIX, *where, folder=folder, address=address)
    first = until(1, file, killed)
    killed.kill()
    killed.wait(30)
    assert left_since(before) == set()

    interrupted = start(*SIX, *where, folder=folder, address=address)
    second = until(len(first) + 2, file, interrupted)
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(120) == 130
    assert left_since(before) == set()
    assert not (folder / "out" / "cut" / "scratch").exists()
    assert len(second) < 6

    done = run(*SIX, *where, "--json", folder=folder, address=address)
    assert done.returncode == 0, done.stderr
    rows = {row["key"]: row for row in read_results(file)}
    assert len(rows) == 6
    assert {row["state"] for row in rows.values()} == {"finished"}
    # What was finished was not done again: seconds that were measured twice would differ.
    assert {key: rows[key] for key in first} == first
    assert {key: rows[key] for key in second} == second
