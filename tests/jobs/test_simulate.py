"""The simulation as a person runs it: no Ray, no training."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import commands


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return commands.run(
        "simulate", *arguments, folder=folder, env=commands.environment(MPLCONFIGDIR=str(folder / "matplotlib"))
    )


def test_plans_and_shard_counts_are_compared_in_one_call(tmp_path: Path) -> None:
    wanted = ("--plan", "immediate", "--plan", "deadline=30d", "--shards", "4", "--shards", "16", "--days", "60")
    done = run(*wanted, "--output", "out", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    named = [(row["plan"], row["shards"]) for row in result["outcomes"]]
    assert named == [("immediate", 4), ("immediate", 16), ("deadline=30d", 4), ("deadline=30d", 16)]
    for at_once, late in zip(result["outcomes"][:2], result["outcomes"][2:], strict=True):
        assert at_once["requests"] == late["requests"] > 5000
        assert at_once["p95"] < 60 < 20 * 86_400 < late["p95"]
        assert at_once["machine_hours"] > 10 * late["machine_hours"]
        assert at_once["missed"] == late["missed"] == 0
    assert [Path(file).name for file in result["files"]] == [f"simulate.{kind}" for kind in ("md", "json", "png", "svg")]
    assert all((tmp_path / file).stat().st_size > 0 for file in result["files"])
    assert json.loads((tmp_path / "out" / "simulate.json").read_text()) == result["outcomes"]


def test_a_log_and_a_stream_of_ones_own_give_a_table(tmp_path: Path) -> None:
    (tmp_path / "stream.csv").write_text("2026-01-01,user\n2026-01-02T12:00,item\n2026-01-03,pairs\n")
    done = run(
        "--data", "synthetic", "--stream", "stream.csv", "--shards", "3", "--set", "partition.kind=random", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "3 requests, partition random" in done.stdout
    table = (tmp_path / "results" / "simulate.md").read_text().splitlines()
    assert len(table) == 2 + 3  # the usual plans
    assert table[0].startswith("| plan | K | p50 |")


def test_a_plan_that_is_none_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = run("--plan", "sometimes", folder=tmp_path)
    assert commands.refusal(done).startswith(
        "error: config unlearning.plan: 'sometimes' is not a plan: write immediate, every=6h"
    )
    assert not (tmp_path / "results").exists()


def test_help_gives_an_example_and_says_what_was_measured(tmp_path: Path) -> None:
    done = run("--help", folder=tmp_path)
    assert done.returncode == 0
    assert "ray-eraser simulate" in done.stdout
    assert "MovieLens-1M" in done.stdout
