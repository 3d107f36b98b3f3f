"""Checks the operation of a deployment: access to its files and ports, durability, free space, deadlines.

Every check is a function of observed facts. No check changes anything, and no result names a user or an item.
"""

from __future__ import annotations

import ipaddress
import random
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from ray_eraser.devices import named
from ray_eraser.errors import StoreError
from ray_eraser.healing import named_files
from ray_eraser.store import FileRef, Manifest, Store

MOUNTS, PROC = Path("/proc/mounts"), Path("/proc")

_PASSES = frozenset({"tmpfs", "ramfs", "devtmpfs"})
"""File systems in memory, whose content is lost at a restart."""
_REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "beegfs", "fuse.sshfs", "afs"}
)
"""Network file systems, where SQLite's write-ahead log does not work because it needs shared memory."""
_LEAST_FREE = 1 << 30
_SPARE = 2.0
"""Free space wanted, as a multiple of the stored bytes: a repartition writes everything again before it deletes the old files,
and a copy needs as much."""
_CLOCK_SECONDS = 60.0
_EXCISION_SECONDS = 60.0
"""If a request's data is still served after this time, the request is stuck and not merely queued."""
_FEW = 3
"""The most items of one kind that a warning names."""

_RAY_PROCESSES = {
    "gcs_server": "GCS",
    "raylet/raylet": "raylet",
    "ray/dashboard/dashboard.py": "dashboard",
    "ray::DashboardAgent": "dashboard agent",
    "ray::RuntimeEnvAgent": "runtime environment agent",
    "ray/autoscaler/_private/monitor.py": "autoscaler",
    "ray.util.client.server": "Ray Client server",
    "ray::": "workers",
}
"""Names of Ray's processes by a part of their command line. The first match counts."""
_LISTENS = "0A"
"""The state of a listening socket in /proc/net/tcp."""


class Outcome(StrEnum):
    """The outcome of one check."""

    OK = "OK"
    WARN = "WARN"
    UNCHECKED = "-"
    """Not decidable from here; the detail says why."""


@dataclass(frozen=True)
class Advice:
    """The result of one check: its name, its outcome, what was found, and what to do."""

    check: str
    outcome: Outcome
    detail: str
    way_out: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class RayFacts:
    """Facts about a running Ray.

    Attributes:
        dashboard: host:port of its dashboard; empty if it has none.
        asks_for_token: whether it rejects requests without a token; None if this could not be tried.
        sends_token: whether this process has a token and sends it.
        gpus: number of GPUs of all its nodes; None if unknown.
    """

    dashboard: str
    asks_for_token: bool | None
    sends_token: bool
    gpus: float | None = None


def check_ray(facts: RayFacts | None) -> Iterator[Advice]:
    """Check whether other people can run code on Ray. `facts` is None if no Ray is running here."""
    dashboard, token = "Ray's dashboard", "Ray's auth token"
    if facts is None:
        yield Advice(dashboard, Outcome.UNCHECKED, "no Ray answers: give --ray-address, and Ray's token if it asks for one")
        yield Advice(token, Outcome.UNCHECKED, "no Ray answers")
        return
    if not facts.dashboard:
        yield Advice(dashboard, Outcome.OK, "there is none")
    elif _is_loopback(facts.dashboard.rpartition(":")[0]):
        yield Advice(dashboard, Outcome.OK, f"listens at {facts.dashboard}, reachable from this machine only")
    else:
        yield Advice(
            dashboard,
            Outcome.WARN,
            f"listens at {facts.dashboard}: anyone who can reach it can run any code",
            "start Ray with --dashboard-host 127.0.0.1, and use an SSH tunnel",
        )
    asks = facts.sends_token if facts.asks_for_token is None else facts.asks_for_token
    if asks:
        yield Advice(
            token,
            Outcome.OK,
            "is required" if facts.asks_for_token else "is sent; without a dashboard it is unknown whether Ray requires it",
        )
    else:
        yield Advice(
            token,
            Outcome.WARN,
            "is not required: anyone who can reach Ray can run any code",
            "run `ray get-auth-token --generate`, set RAY_AUTH_MODE=token on every node, and restart Ray",
        )


@dataclass(frozen=True, order=True)
class Listener:
    """A port that a process of Ray listens on.

    Attributes:
        process: readable name of the process.
        host: the address that the port is bound to.
        port: port number.
    """

    process: str
    host: str
    port: int

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach the port, unless a firewall stops them."""
        return not ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"{self.process} at {f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def listeners(proc: Path = PROC) -> list[Listener]:
    """The ports of Ray's processes on this machine. Other users' processes may be missing."""
    sockets: dict[str, tuple[str, int]] = {}
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            sockets |= _listening((proc / "net" / table).read_text("utf-8"))
    found = set()
    for process in proc.glob("[0-9]*"):
        with suppress(OSError):  # the process has ended, or belongs to another user
            if name := _ray_name((process / "cmdline").read_bytes()):
                targets = [str(link.readlink()) for link in (process / "fd").iterdir()]
                found |= {Listener(name, *sockets[target]) for target in targets if target in sockets}
    return sorted(found)


def _ray_name(command: bytes) -> str | None:
    text = command.replace(b"\0", b" ").decode("utf-8", "replace")
    return next((name for part, name in _RAY_PROCESSES.items() if part in text), None)


def _listening(table: str) -> dict[str, tuple[str, int]]:
    """Address and port of every listening socket in /proc/net/tcp or tcp6, by the link target of its file descriptor."""
    found = {}
    for line in table.splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTENS:
            host, port = fields[1].split(":")
            # The kernel prints an address as four-byte words, each a hexadecimal number in this machine's byte order.
            words = (int(host[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(host), 8))
            address = ipaddress.ip_address(b"".join(words))
            inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
            found[f"socket:[{fields[9]}]"] = str(inner or address), int(port, 16)
    return found


def check_ports(found: Sequence[Listener], *, behind_firewall: bool = False) -> Advice:
    """Check whether other machines can reach Ray's ports.

    Args:
        found: see `listeners`.
        behind_firewall: the operator states that only the cluster's nodes can reach the ports.
    """
    what, reachable = "Ray's ports", [listener for listener in found if listener.is_open]
    if not found:
        return Advice(what, Outcome.UNCHECKED, "this user sees no process of Ray that listens on this machine")
    if not reachable:
        return Advice(what, Outcome.OK, f"all {len(found)} are reachable from this machine only")
    others = f" and {len(reachable) - _FEW} more" if len(reachable) > _FEW else ""
    seen = f"other machines can connect: {', '.join(map(str, _telling(reachable)[:_FEW]))}{others}"
    if behind_firewall:
        return Advice(what, Outcome.OK, f"{seen}; a firewall protects them, as --behind-firewall states")
    return Advice(
        what,
        Outcome.WARN,
        seen,
        "let a firewall admit only the cluster's nodes, and give --behind-firewall; for a Ray of one node, set "
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 for Ray and for every program that uses it, so that all ports are at 127.0.0.1",
    )


def _telling(found: Iterable[Listener]) -> list[Listener]:
    """Sort one port of each process to the front, so that a warning names ports of different processes."""
    order = list(_RAY_PROCESSES.values())
    ranked = sorted(found, key=lambda listener: (order.index(listener.process), listener.port))
    first = list({listener.process: listener for listener in reversed(ranked)}.values())[::-1]
    return [*first, *(listener for listener in ranked if listener not in first)]


def check_files(files: Mapping[str, Path]) -> Iterator[Advice]:
    """Check whether only the owner can read secret files. The keys of `files` say what each file holds."""
    for what, file in files.items():
        if not file.exists():
            yield Advice(what, Outcome.UNCHECKED, f"{file} does not exist")
        elif file.stat().st_mode & 0o077:
            yield Advice(what, Outcome.WARN, f"others can read {file}", f"chmod 600 {file}, and replace the secret in it")
        else:
            yield Advice(what, Outcome.OK, f"only the owner can read {file}")


def check_storage_private(folder: Path) -> Advice:
    """Check whether other people can enter the folder with the users' interactions."""
    what = "storage path"
    if is_open_to_others(folder):
        return Advice(what, Outcome.WARN, f"others can read {folder}, which holds users' interactions", f"chmod 700 {folder}")
    return Advice(what, Outcome.OK, f"only the owner can read {folder}")


def check_private(what: str, files: Sequence[Path]) -> Advice:
    """Check whether only the owner can read files, by their own modes or because a folder above them is private.

    Args:
        what: readable name of the files.
        files: the existing files.
    """
    readable = [file for file in files if _is_open_if_there(file)]
    if not readable:
        return Advice(what, Outcome.OK, f"only the owner can read the {len(files)} files")
    seen = f"others can read or change {len(readable)} of {len(files)} files, such as {readable[0]}"
    folders = sorted({str(file.parent) for file in readable})
    return Advice(what, Outcome.WARN, seen, f"chmod go-rwx {' '.join(f'{folder}/*' for folder in folders[:_FEW])}")


def _is_open_if_there(file: Path) -> bool:
    try:
        return is_open_to_others(file)
    except FileNotFoundError:  # a running deployment deletes superseded files
        return False


def is_open_to_others(path: Path) -> bool:
    """Whether the group or everyone can read or enter a folder, or read or change a file.

    They must also be able to enter every folder above it.
    """
    path = path.resolve()
    mode = path.stat().st_mode
    of_group, of_all = (0o050, 0o005) if stat.S_ISDIR(mode) else (0o060, 0o006)
    for wanted, enter in ((of_group, 0o010), (of_all, 0o001)):
        if mode & wanted and all(parent.stat().st_mode & enter for parent in path.parents):
            return True
    return False


@dataclass(frozen=True)
class FilesSeen:
    """Facts about the files of a generation.

    Attributes:
        n_files: number of files.
        n_read: number of files that were read completely.
        missing, damaged: names of the files that are missing, or do not match their digests.
    """

    n_files: int
    n_read: int
    missing: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


def look_at_files(
    store: Store, manifest: Manifest, digest: str, seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
) -> FilesSeen:
    """Check whether all files of a generation exist, and read some of them.

    Args:
        store: has them.
        manifest: the generation.
        digest: of the manifest.
        seconds: no further file is read after this time. The order is random, so every file gets its turn.
        clock: gives seconds.
    """
    names, there = named_files(manifest, digest), set(store.files())
    present = [ref for ref in names if ref.path in there]
    missing = tuple(name for ref, name in names.items() if ref.path not in there)
    damaged, n_read, until = [], 0, clock() + seconds
    for ref in random.sample(present, len(present)):
        if clock() >= until:
            break
        n_read += 1
        if _is_damaged(store, ref):
            damaged.append(names[ref])
    return FilesSeen(len(names), n_read, missing, tuple(sorted(damaged)))


def _is_damaged(store: Store, ref: FileRef) -> bool:
    try:
        store.verify(ref)
    except StoreError:
        return True
    return False


def check_generation(seen: FilesSeen | StoreError | None) -> Advice:
    """Check whether the files of the current generation exist and are undamaged.

    Args:
        seen: see `look_at_files`; an error if the manifest, which names all other files, cannot be used; None if nothing is
            published yet.
    """
    what = "files of the generation"
    if seen is None:
        return Advice(what, Outcome.UNCHECKED, "nothing is published yet")
    way_out = (
        "a running deployment makes damaged files again by itself; if it cannot, restore the storage path from a copy, or "
        "run ray-eraser repartition"
    )
    if isinstance(seen, StoreError):
        return Advice(what, Outcome.WARN, "the manifest is damaged, so no other file was checked", way_out)
    if seen.missing or seen.damaged:
        faults = [_named("missing", seen.missing), _named("damaged", seen.damaged)]
        found = f"of {seen.n_files} files {' and '.join(fault for fault in faults if fault)}"
        return Advice(what, Outcome.WARN, found, way_out)
    if not seen.n_read:
        return Advice(what, Outcome.OK, f"all {seen.n_files} exist; --verify SECONDS also reads them")
    read = "all were read" if seen.n_read == seen.n_files else f"{seen.n_read} of them were read in the time given"
    return Advice(what, Outcome.OK, f"all {seen.n_files} exist; {read} and are undamaged")


def _named(fault: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return f"{len(names)} {'is' if len(names) == 1 else 'are'} {fault} ({', '.join(names[:_FEW])}{more})"


def check_lasting(what: str, path: Path, mounts: str, *, database: bool) -> Advice:
    """Check whether a path's file system is durable, and whether SQLite can work on it.

    Args:
        what: readable name of the path's content.
        path: the path.
        mounts: the text of /proc/mounts.
        database: whether the content is a SQLite database.
    """
    kind = file_system(path.resolve(), mounts)
    if kind is None:
        return Advice(what, Outcome.UNCHECKED, f"the file system of {path} is unknown")
    if kind in _PASSES:
        way_out = "move it to a disk: stop the deployment, copy the storage path, start from the copy"
        return Advice(what, Outcome.WARN, f"{path} is on {kind}, in memory: a restart loses accepted requests", way_out)
    if database and kind in _REMOTE:
        way_out = "set unlearning.ledger to a PostgreSQL URL, or use a storage path on a local disk"
        return Advice(what, Outcome.WARN, f"{path} is SQLite on {kind}, where its locks are unreliable", way_out)
    return Advice(what, Outcome.OK, f"{path} is on {kind}")


def file_system(path: Path, mounts: str) -> str | None:
    """The kind of a path's file system, from the text of /proc/mounts. Of two mounts at one place, the later counts."""
    found, deepest = None, -1
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[1]))
        if path.is_relative_to(point) and len(point.parts) >= deepest:
            found, deepest = fields[2], len(point.parts)
    return found


def check_space(folder: Path, used: int, free: int | None = None) -> Advice:
    """Check whether there is room to write all stored files again.

    Args:
        folder: the storage path.
        used: stored bytes.
        free: free bytes; None asks the file system.
    """
    free = shutil.disk_usage(folder).free if free is None else free
    wanted = max(_LEAST_FREE, int(_SPARE * used))
    if free < wanted:
        seen = f"{_size(free)} free, {_size(used)} stored: an erasure or a repartition may run out of space"
        return Advice("disk space", Outcome.WARN, seen, f"keep {_size(wanted)} free")
    return Advice("disk space", Outcome.OK, f"{_size(free)} free, {_size(used)} stored")


def check_clock(now: float, newest: float | None) -> Advice:
    """Check whether the clock is behind the newest time in the ledger. Deadlines are counted with this clock."""
    if newest is None:
        return Advice("clock", Outcome.UNCHECKED, "the ledger has no times yet")
    if newest > now + _CLOCK_SECONDS:
        seen = f"is {newest - now:.0f} s behind the ledger's newest time"
        return Advice("clock", Outcome.WARN, seen, "set it by NTP: deadlines and the times in receipts depend on it")
    return Advice("clock", Outcome.OK, "is not behind the ledger's newest time")


def check_device(trained_on: Mapping[str, str | int] | None, gpus: float | None) -> Advice:
    """Check whether the device that the deployment was trained on is available.

    Args:
        trained_on: the environment that the generation records; None if nothing is published.
        gpus: number of GPUs of the Ray that answers; None if none answers.
    """
    what = "device"
    if trained_on is None:
        return Advice(what, Outcome.UNCHECKED, "nothing is published yet")
    seen = f"trained on {named(trained_on)}"
    if "cuda" not in trained_on:
        return Advice(what, Outcome.OK, seen)
    if gpus is None:
        return Advice(what, Outcome.UNCHECKED, f"{seen}, and no Ray answers")
    if not gpus:
        way_out = "add a node with such a GPU, or ray-eraser repartition --set runtime.device=cpu"
        return Advice(what, Outcome.WARN, f"{seen}, and Ray has no GPU: no erasure can be completed", way_out)
    return Advice(what, Outcome.OK, f"{seen}; Ray has {gpus:g} GPUs")


def check_requests(overdue: int, set_aside: Sequence[str], deadline_days: float) -> Iterator[Advice]:
    """Check whether every request meets its legal deadline, and whether any was set aside."""
    if overdue:
        seen = f"{overdue} requests wait longer than unlearning.deadline_days={deadline_days:g}"
        yield Advice("deadlines", Outcome.WARN, seen, "start the deployment; Client.process_now() runs all waiting requests")
    else:
        yield Advice("deadlines", Outcome.OK, f"no request waits longer than {deadline_days:g} days")
    if set_aside:
        seen = f"{len(set_aside)} requests were set aside because their training failed: {', '.join(set_aside[:3])}"
        yield Advice("set aside", Outcome.WARN, seen, "fix the cause in Client.reason(id), then call Client.retry(id)")
    else:
        yield Advice("set aside", Outcome.OK, "no request was set aside")


def check_excisions(received_at: Sequence[float], now: float) -> Advice:
    """Check whether the data of accepted erasures is no longer served.

    Args:
        received_at: when each recorded erasure came whose data may still be served.
        now: the current time.
    """
    late = [at for at in received_at if now - at > _EXCISION_SECONDS]
    if not late:
        return Advice("excisions", Outcome.OK, "the data of no accepted erasure is still served")
    seen = f"the data of {len(late)} accepted erasures is still served, the oldest for {now - min(late):.0f} s"
    way_out = "start the deployment; if it is running, the coordinator's log says why the data is still served"
    return Advice("excisions", Outcome.WARN, seen, way_out)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "[::1]", "::1") or host.startswith("127.")


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"
