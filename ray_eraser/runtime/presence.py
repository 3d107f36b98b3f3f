"""Whether a Ray can be on this machine, found out without importing Ray, which takes a process seconds."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def may_run_here(processes: Path = Path("/proc")) -> bool:
    """False where Ray itself would surely find none: no raylet runs, and none was noted as the last one that was started."""
    if not sys.platform.startswith("linux"):
        return True
    temporary = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    return (temporary / "ray" / "ray_current_cluster").exists() or any(map(_is_raylet, processes.glob("[0-9]*/cmdline")))


def _is_raylet(command: Path) -> bool:
    try:
        return b"raylet" in command.read_bytes().partition(b"\0")[0]
    except OSError:
        return False  # it has ended, or is another user's, whom Ray cannot look at either
