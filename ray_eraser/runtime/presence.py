"""Whether Ray may be running on this machine. Does not import Ray, which takes seconds."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def may_run_here(processes: Path = Path("/proc")) -> bool:
    """False if Ray would certainly find no cluster here: no raylet is running, and Ray has noted no started cluster."""
    if not sys.platform.startswith("linux"):
        return True
    temporary = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    return (temporary / "ray" / "ray_current_cluster").exists() or any(map(_is_raylet, processes.glob("[0-9]*/cmdline")))


def _is_raylet(command: Path) -> bool:
    try:
        return b"raylet" in command.read_bytes().partition(b"\0")[0]
    except OSError:
        return False  # it has ended, or belongs to another user, and then Ray cannot see it either
