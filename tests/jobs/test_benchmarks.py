"""The benchmarks that need no Ray run on the generated log and keep a dated report; what they measure is not looked at."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.slow


def run(script: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), "--data", "synthetic", *arguments, "--report", str(folder)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250, check=False)


def test_every_part_is_in_the_report(tmp_path: Path) -> None:
    done = run("bench.py", "--runs", "1", "--models", "wmf-als,bpr", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (report,) = tmp_path.glob("*-bench-synthetic.md")
    text = report.read_text("utf-8")
    for part in ("read the log", "partition hashed", "wmf-als, a whole", "bpr, a whole", "aggregation: spectral", "erasure"):
        assert part in text
    assert "lightgcn" not in text


def test_an_unknown_model_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    done = run("bench.py", "--models", "svd", folder=tmp_path)
    assert done.returncode == 2
    assert "choose from wmf,wmf-als,bpr,lightgcn" in done.stderr.replace(", ", ",")


def test_both_half_sweeps_are_counted(tmp_path: Path) -> None:
    done = run("roofline.py", "--runs", "1", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "synthetic, users" in done.stdout
    assert "synthetic, items" in done.stdout


def test_the_comparison_runs_or_says_how_to_get_what_it_compares_with(tmp_path: Path) -> None:
    done = run("against_implicit.py", "--runs", "1", folder=tmp_path)
    if importlib.util.find_spec("implicit") is None:
        assert done.returncode == 1
        assert "pip install --constraint constraints.txt --editable '.[bench]'" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "### ALS" in done.stdout
        assert "### BPR" in done.stdout
