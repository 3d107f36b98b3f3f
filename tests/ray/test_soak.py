"""The soak, small: what it checks is said in benchmarks/soak.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

_SOAK = Path(__file__).parents[1] / "benchmarks" / "soak.py"
_SMALL = {
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


def _soaked(**more: float) -> str:
    """What the command says, with a Ray of its own, because the session's processes are not to be killed."""
    settings = _SMALL | {name.replace("_", "-"): value for name, value in more.items()}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, str(_SOAK), *options], capture_output=True, text=True, check=False, timeout=390)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_forty_requests_and_two_kills_leave_every_promise_kept() -> None:
    assert "| kills | 2: " in _soaked()


def test_three_rivals_for_the_coordinators_place_leave_every_promise_kept() -> None:
    assert "| rivals | 3: 2 after the process on Ray was stopped, 1 took over; " in _soaked(rivals=3, rival_pause=1)
