"""Runs commands as a person or a script does: real processes, their output and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

JOBS = Path(__file__).parents[2] / "jobs"


def words(command: str, *arguments: str) -> list[str]:
    """The words that run a command in a process of its own."""
    return [sys.executable, "-m", "ray_eraser", command, *arguments]


def environment(ray_address: str | None = None, **more: str) -> dict[str, str]:
    """The environment of this process, with another Ray or none, and with `more`."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | more
    return kept if ray_address is None else {**kept, "RAY_ADDRESS": ray_address}


def without_ray(**more: str) -> dict[str, str]:
    """The environment of this process with nothing about Ray in it, no token either, and with `more`."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | more


def run(
    command: str,
    *arguments: str,
    folder: Path,
    ray_address: str | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, in the environment that `environment` gives, or in another one."""
    env = env or environment(ray_address)
    called = words(command, *arguments)
    return subprocess.run(called, cwd=folder, env=env, capture_output=True, text=True, timeout=250, check=False)


def result(command: str, *arguments: str, folder: Path, ray_address: str | None = None) -> dict[str, Any]:
    """The JSON object that a command prints last."""
    done = run(command, *arguments, "--json", folder=folder, ray_address=ray_address)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The line in which a command refuses bad input: its last one, and the only error. Nothing is on stdout."""
    *before, last = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert last.startswith("error: "), done.stderr
    assert not [line for line in before if line.startswith(("error", "Traceback"))], done.stderr
    return last
