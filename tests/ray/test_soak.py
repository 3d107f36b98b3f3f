"""The soak, small: what it checks is said in benchmarks/soak.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]

_SOAK = Path(__file__).parents[1] / "benchmarks" / "soak.py"


def test_forty_requests_and_two_kills_leave_every_promise_kept() -> None:
    """A command with a Ray of its own, because the session's processes are not to be killed."""
    small = {
        "requests": 40,
        "minutes": 0.2,
        "shards": 2,
        "clients": 2,
        "users": 40,
        "kills": 2,
        "pause": 1.5,
        "idle-seconds": 0,
        "plan": "every=1s",
    }
    options = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, str(_SOAK), *options], capture_output=True, text=True, check=False, timeout=230)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert "| kills | 2: " in done.stdout
