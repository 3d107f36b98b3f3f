"""Two machines and the switch between them, as far as the network is concerned: three network namespaces of this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ADDRESSES = {"head": "10.77.0.1", "worker": "10.77.0.2"}
_SWITCH = "switch"


def why_not() -> str:
    """What is missing on this machine; empty where nothing is, as far as can be seen without trying."""
    if os.environ.get("RAY_ERASER_NETNS") != "1":
        return "makes network namespaces: set RAY_ERASER_NETNS=1 to run it"
    if sys.platform != "linux":
        return "network namespaces are Linux'"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if shutil.which("ip") is None:
        return "there is no program `ip`: install the package iproute2"
    return ""


class Network:
    """The machines `head` and `worker`, each in a namespace with an address of its own, and a bridge in a third one.

    A cut is made at the bridge: what is sent disappears, and no machine is told so, as when a switch fails or a firewall drops.
    """

    def __init__(self) -> None:
        self._names = {machine: f"re{os.getpid()}-{machine}" for machine in (_SWITCH, *ADDRESSES)}
        self._made: list[str] = []
        self._started: list[subprocess.Popen[str]] = []

    def open(self) -> None:
        """Make the namespaces and the links.

        Raises:
            subprocess.CalledProcessError: the kernel or a container forbids it; `stderr` says what.
        """
        for name in self._names.values():
            _ip("netns", "add", name)
            self._made.append(name)
            _ip("-n", name, "link", "set", "lo", "up")
        switch = self._names[_SWITCH]
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for machine, address in ADDRESSES.items():
            name = self._names[machine]
            _ip("-n", switch, "link", "add", machine, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", switch, "link", "set", machine, "master", "bridge", "up")

    def cut(self) -> None:
        _ip("-n", self._names[_SWITCH], "link", "set", "worker", "down")

    def mend(self) -> None:
        _ip("-n", self._names[_SWITCH], "link", "set", "worker", "up")

    def start(self, machine: str, command: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[str]:
        """Start a program on a machine, all that it prints in a file."""
        with log.open("w") as output:
            return self._start(machine, command, env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def start_talking(self, machine: str, command: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[str]:
        """Start a program on a machine that answers on stdout what it is asked on stdin, its errors in a file."""
        with log.open("w") as errors:
            return self._start(machine, command, env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)

    def _start(self, machine: str, command: Sequence[str], env: Mapping[str, str], **streams: Any) -> subprocess.Popen[str]:
        inside = ["ip", "netns", "exec", self._names[machine], *command]
        self._started.append(subprocess.Popen(inside, env=dict(env), text=True, start_new_session=True, **streams))
        return self._started[-1]

    def processes(self) -> list[int]:
        """All in the namespaces: what was started there, and what that has started."""
        return [int(pid) for name in self._made for pid in _ip("netns", "pids", name).split()]

    def close(self) -> None:
        """Kill what runs in the namespaces, and delete them."""
        deadline = time.monotonic() + 20
        while (left := self.processes()) and time.monotonic() < deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it has just ended
            time.sleep(0.1)
        for process in self._started:
            process.wait(timeout=20)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        for name in self._made:
            _ip("netns", "del", name)  # with the links in it
        self._made.clear()
        assert left == [], "some do not die"


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20, check=True).stdout
