"""Ray nodes of the tests' own, outside this process: which Ray this process uses is other tests' business."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "cluster" / "local-nodes.sh"


@dataclass(frozen=True)
class LocalNodes:
    """Nodes that `local-nodes.sh` has started."""

    folder: Path
    port: int

    @property
    def token(self) -> str:
        return (self.folder / "token").read_text()

    @property
    def jobs_url(self) -> str:
        return f"http://127.0.0.1:{self.port + 1}"

    @property
    def settings(self) -> dict[str, str]:
        """The script's, in the environment."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return clean | {"PATH": path, "LOCAL_NODES_DIR": str(self.folder), "LOCAL_NODES_PORT": str(self.port)}

    @property
    def environment(self) -> dict[str, str]:
        """Of a program that uses these nodes."""
        ray = {"RAY_ADDRESS": f"127.0.0.1:{self.port}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return self.settings | ray | {"PYTHONPATH": str(REPOSITORY)}

    def run(self, *arguments: str) -> str:
        command = ["bash", str(SCRIPT), *arguments]
        done = subprocess.run(command, env=self.settings, capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def processes(self) -> list[int]:
        """Those of Ray that name the folder."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if f"{self.folder}/ray-".encode() in entry.read_bytes():
                    found.append(int(entry.parent.name))
            except OSError:
                continue  # it has just ended
        return found


@pytest.fixture(scope="session")
def local_nodes() -> Iterator[Callable[[int], LocalNodes]]:
    """Starts that many nodes in a folder of their own; all are stopped at the end."""
    started: list[LocalNodes] = []

    def start(n_nodes: int) -> LocalNodes:
        # A short path, because sockets lie in it and theirs are limited.
        nodes = LocalNodes(Path(tempfile.mkdtemp(prefix="rn", dir="/tmp")), _free_ports(4))
        started.append(nodes)
        nodes.run("start", str(n_nodes))
        return nodes

    yield start
    for nodes in started:
        nodes.run("stop")
        deadline = time.monotonic() + 5
        while nodes.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert nodes.processes() == []
        shutil.rmtree(nodes.folder)


def _free_ports(n: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(20000 + os.getpid() % 10000, 32000, n):
        sockets = [socket.socket() for _ in range(n)]
        try:
            for offset, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + offset))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return first
    raise OSError("no free ports")
