"""Looks at a deployment as an operator should now and then: who can read what, whether it lasts, and whether it is in time.

Every check is a function of what was looked at; nothing is changed, and nothing names a user or an item.
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
"""File systems in memory: the machine's power takes them along."""
_REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "beegfs", "fuse.sshfs", "afs"}
)
"""File systems over a network, where SQLite's log in shared memory does not work."""
_LEAST_FREE = 1 << 30
_SPARE = 2.0
"""A new partition writes everything once more before the old is deleted, and so does a copy."""
_CLOCK_SECONDS = 60.0
_EXCISION_SECONDS = 60.0
"""A request that takes longer than this to leave what is served is not merely waiting for its turn."""
_FEW = 3
"""So many of a kind are named in a warning."""

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
"""Names of Ray's processes, by a part of their command line; the first that fits counts."""
_LISTENS = "0A"
"""The state of a listening socket in /proc/net/tcp."""


class Outcome(StrEnum):
    """What came of one check."""

    OK = "OK"
    WARN = "WARN"
    UNCHECKED = "-"
    """It cannot be said from here; the detail says why."""


@dataclass(frozen=True)
class Advice:
    """One check: what was looked at, what came of it, what was seen, and the way out."""

    check: str
    outcome: Outcome
    detail: str
    way_out: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class RayFacts:
    """What was seen of a Ray that runs.

    Attributes:
        dashboard: host:port where its dashboard listens; empty where it has none.
        asks_for_token: whether who has no token is turned away; None where that could not be tried.
        sends_token: whether this process has a token and sends it.
        gpus: of all its nodes; None where that could not be asked.
    """

    dashboard: str
    asks_for_token: bool | None
    sends_token: bool
    gpus: float | None = None


def check_ray(facts: RayFacts | None) -> Iterator[Advice]:
    """Whether others can make Ray do what they want. None: no Ray runs here."""
    dashboard, token = "Ray's dashboard", "Ray's auth token"
    if facts is None:
        yield Advice(dashboard, Outcome.UNCHECKED, "no Ray answers: give --ray-address, and the token that it asks for")
        yield Advice(token, Outcome.UNCHECKED, "likewise")
        return
    if not facts.dashboard:
        yield Advice(dashboard, Outcome.OK, "there is none")
    elif _is_loopback(facts.dashboard.rpartition(":")[0]):
        yield Advice(dashboard, Outcome.OK, f"listens at {facts.dashboard}, for this machine alone")
    else:
        yield Advice(
            dashboard,
            Outcome.WARN,
            f"listens at {facts.dashboard}: whoever reaches it runs what they want",
            "ray start --dashboard-host 127.0.0.1, and reach it by an SSH tunnel",
        )
    asks = facts.sends_token if facts.asks_for_token is None else facts.asks_for_token
    if asks:
        yield Advice(
            token, Outcome.OK, "is asked for" if facts.asks_for_token else "is sent; there is no dashboard to try without"
        )
    else:
        yield Advice(
            token,
            Outcome.WARN,
            "is not asked for: whoever reaches Ray runs what they want",
            "ray get-auth-token --generate, RAY_AUTH_MODE=token on every node, and start Ray anew",
        )


@dataclass(frozen=True, order=True)
class Listener:
    """A port that a process of Ray listens at.

    Attributes:
        process: its name for people.
        host: the address that it is bound to.
        port: the number.
    """

    process: str
    host: str
    port: int

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach it, as far as this machine decides."""
        return not ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"{self.process} at {f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def listeners(proc: Path = PROC) -> list[Listener]:
    """The ports of Ray's processes on this machine, as far as this user can look at them."""
    sockets: dict[str, tuple[str, int]] = {}
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            sockets |= _listening((proc / "net" / table).read_text("utf-8"))
    found = set()
    for process in proc.glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if name := _ray_name((process / "cmdline").read_bytes()):
                targets = [str(link.readlink()) for link in (process / "fd").iterdir()]
                found |= {Listener(name, *sockets[target]) for target in targets if target in sockets}
    return sorted(found)


def _ray_name(command: bytes) -> str | None:
    text = command.replace(b"\0", b" ").decode("utf-8", "replace")
    return next((name for part, name in _RAY_PROCESSES.items() if part in text), None)


def _listening(table: str) -> dict[str, tuple[str, int]]:
    """Address and port of every listening socket, by the name that its file descriptor links to, from /proc/net/tcp or tcp6."""
    found = {}
    for line in table.splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTENS:
            host, port = fields[1].split(":")
            # The kernel prints an address in words of four bytes, each as a number of this machine.
            words = (int(host[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(host), 8))
            address = ipaddress.ip_address(b"".join(words))
            inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
            found[f"socket:[{fields[9]}]"] = str(inner or address), int(port, 16)
    return found


def check_ports(found: Sequence[Listener], *, behind_firewall: bool = False) -> Advice:
    """Whether other machines can reach the ports of Ray.

    Args:
        found: see `listeners`.
        behind_firewall: the operator says that only the cluster's nodes reach them.
    """
    what, reachable = "Ray's ports", [listener for listener in found if listener.is_open]
    if not found:
        return Advice(what, Outcome.UNCHECKED, "no process of Ray that this user can look at listens on this machine")
    if not reachable:
        return Advice(what, Outcome.OK, f"all {len(found)} listen for this machine alone")
    others = f" and {len(reachable) - _FEW} more" if len(reachable) > _FEW else ""
    seen = f"listen for other machines: {', '.join(map(str, _telling(reachable)[:_FEW]))}{others}"
    if behind_firewall:
        return Advice(what, Outcome.OK, f"{seen}; a firewall closes them, as --behind-firewall says")
    return Advice(
        what,
        Outcome.WARN,
        seen,
        "let a firewall close them to all but the cluster's nodes, and give --behind-firewall; or, for a Ray of one node, set "
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 for it and for every program that uses it, and all listen at 127.0.0.1",
    )


def _telling(found: Iterable[Listener]) -> list[Listener]:
    """One port of each process first, so that a warning that names few names different ones."""
    order = list(_RAY_PROCESSES.values())
    ranked = sorted(found, key=lambda listener: (order.index(listener.process), listener.port))
    first = list({listener.process: listener for listener in reversed(ranked)}.values())[::-1]
    return [*first, *(listener for listener in ranked if listener not in first)]


def check_files(files: Mapping[str, Path]) -> Iterator[Advice]:
    """Whether secrets are their owner's alone; files by what they are."""
    for what, file in files.items():
        if not file.exists():
            yield Advice(what, Outcome.UNCHECKED, f"{file} is not here")
        elif file.stat().st_mode & 0o077:
            yield Advice(what, Outcome.WARN, f"{file} can be read by others", f"chmod 600 {file}, and replace what it holds")
        else:
            yield Advice(what, Outcome.OK, f"{file} is its owner's alone")


def check_storage_private(folder: Path) -> Advice:
    """Whether others can enter the folder of what users did."""
    what = "storage path"
    if is_open_to_others(folder):
        return Advice(what, Outcome.WARN, f"{folder} can be read by others: it says who did what", f"chmod 700 {folder}")
    return Advice(what, Outcome.OK, f"{folder} is its owner's alone")


def check_private(what: str, files: Sequence[Path]) -> Advice:
    """Whether files are their owner's alone: each by its own mode, or because a folder above it is closed to others.

    Args:
        what: they are, for people.
        files: those that exist.
    """
    readable = [file for file in files if _is_open_if_there(file)]
    if not readable:
        return Advice(what, Outcome.OK, f"nobody but the owner reads any of the {len(files)} files")
    seen = f"others can read or change {len(readable)} of {len(files)} files, such as {readable[0]}"
    folders = sorted({str(file.parent) for file in readable})
    return Advice(what, Outcome.WARN, seen, f"chmod go-rwx {' '.join(f'{folder}/*' for folder in folders[:_FEW])}")


def _is_open_if_there(file: Path) -> bool:
    try:
        return is_open_to_others(file)
    except FileNotFoundError:  # a deployment that runs deletes superseded files
        return False


def is_open_to_others(path: Path) -> bool:
    """Whether the group or everybody can read, enter or change what is at a path.

    A folder counts if they can read or enter it, a file if they can read or change it. It also takes that they can enter all
    folders above.
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
    """What was seen of the files of a generation.

    Attributes:
        n_files: how many it has.
        n_read: how many were read as a whole.
        missing, damaged: names of those that are not there, or are not what was written.
    """

    n_files: int
    n_read: int
    missing: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


def look_at_files(
    store: Store, manifest: Manifest, digest: str, seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
) -> FilesSeen:
    """Look whether all files of a generation are there, and read some.

    Args:
        store: has them.
        manifest: the generation.
        digest: of the manifest.
        seconds: after how many no other file is read. The order is another one each time, so that all have their turn.
        clock: seconds.
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
    """Whether the files that the deployment stands on are there, and are what was written.

    Args:
        seen: see `look_at_files`; an error where the manifest, which names all others, cannot be used; None where nothing is
            published yet.
    """
    what = "files of the generation"
    if seen is None:
        return Advice(what, Outcome.UNCHECKED, "nothing is published yet")
    way_out = (
        "a deployment that runs makes damaged files again by itself; if it cannot, restore the storage path from a copy, or "
        "run repartition.py"
    )
    if isinstance(seen, StoreError):
        return Advice(what, Outcome.WARN, "the manifest is damaged, and no other file was looked at", way_out)
    if seen.missing or seen.damaged:
        faults = [_named("missing", seen.missing), _named("damaged", seen.damaged)]
        found = f"of {seen.n_files} files {' and '.join(fault for fault in faults if fault)}"
        return Advice(what, Outcome.WARN, found, way_out)
    if not seen.n_read:
        return Advice(what, Outcome.OK, f"all {seen.n_files} are there; --verify SECONDS reads them too")
    read = "all were read" if seen.n_read == seen.n_files else f"{seen.n_read} of them were read in the time given"
    return Advice(what, Outcome.OK, f"all {seen.n_files} are there; {read}, and are what was written")


def _named(fault: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return f"{len(names)} {'is' if len(names) == 1 else 'are'} {fault} ({', '.join(names[:_FEW])}{more})"


def check_lasting(what: str, path: Path, mounts: str, *, database: bool) -> Advice:
    """Whether what is at a path is there tomorrow, and whether a SQLite database can be there at all.

    Args:
        what: is at the path, for people.
        path: its place.
        mounts: the text of /proc/mounts.
        database: whether it is SQLite.
    """
    kind = file_system(path.resolve(), mounts)
    if kind is None:
        return Advice(what, Outcome.UNCHECKED, f"it is not known which file system {path} is on")
    if kind in _PASSES:
        way_out = "move it to a disk: stop the deployment, copy the storage path, start from the copy"
        return Advice(what, Outcome.WARN, f"{path} is on {kind}, in memory: a restart loses what was promised", way_out)
    if database and kind in _REMOTE:
        way_out = "unlearning.ledger = a PostgreSQL URL, or a storage path on a local disk"
        return Advice(what, Outcome.WARN, f"{path} is SQLite on {kind}, where its locks cannot be relied on", way_out)
    return Advice(what, Outcome.OK, f"{path} is on {kind}")


def file_system(path: Path, mounts: str) -> str | None:
    """The kind of file system that a path is on, from the text of /proc/mounts; of two at one place the later counts."""
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
    """Whether there is room to write all that is stored once more.

    Args:
        folder: where it is.
        used: bytes that are stored.
        free: bytes that are free; None looks.
    """
    free = shutil.disk_usage(folder).free if free is None else free
    wanted = max(_LEAST_FREE, int(_SPARE * used))
    if free < wanted:
        seen = f"{_size(free)} free, {_size(used)} stored: an erasure or a new partition may not find room"
        return Advice("disk space", Outcome.WARN, seen, f"have {_size(wanted)} free")
    return Advice("disk space", Outcome.OK, f"{_size(free)} free, {_size(used)} stored")


def check_clock(now: float, newest: float | None) -> Advice:
    """Whether the clock is behind the newest time that the ledger has: deadlines are counted with it."""
    if newest is None:
        return Advice("clock", Outcome.UNCHECKED, "the ledger has no times yet")
    if newest > now + _CLOCK_SECONDS:
        seen = f"is {newest - now:.0f} s behind the ledger's newest time"
        return Advice("clock", Outcome.WARN, seen, "have it set by NTP: deadlines and receipts are counted with it")
    return Advice("clock", Outcome.OK, "is not behind the ledger's newest time")


def check_device(trained_on: Mapping[str, str | int] | None, gpus: float | None) -> Advice:
    """Whether the device that the deployment was trained on is there.

    Args:
        trained_on: the environment that the generation records; None where nothing is published.
        gpus: GPUs of the Ray that answers; None where none does.
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
        way_out = "add a node with such a GPU, or repartition.py --set runtime.device=cpu"
        return Advice(what, Outcome.WARN, f"{seen}, and Ray has no GPU: no erasure can be completed", way_out)
    return Advice(what, Outcome.OK, f"{seen}; Ray has {gpus:g} GPUs")


def check_requests(overdue: int, set_aside: Sequence[str], deadline_days: float) -> Iterator[Advice]:
    """Whether every request is being carried out in the time that the law gives."""
    if overdue:
        seen = f"{overdue} requests wait longer than unlearning.deadline_days={deadline_days:g}"
        yield Advice("deadlines", Outcome.WARN, seen, "start the deployment; Client.process_now() carries out all that waits")
    else:
        yield Advice("deadlines", Outcome.OK, f"no request waits longer than {deadline_days:g} days")
    if set_aside:
        seen = f"{len(set_aside)} requests were set aside, their training failed: {', '.join(set_aside[:3])}"
        yield Advice("set aside", Outcome.WARN, seen, "see Client.reason(id), mend it, then Client.retry(id)")
    else:
        yield Advice("set aside", Outcome.OK, "no request was set aside")


def check_excisions(received_at: Sequence[float], now: float) -> Advice:
    """Whether accepted erasures have left what is served.

    Args:
        received_at: when each erasure came that is recorded, and is not known to have left what is served.
        now: the time.
    """
    late = [at for at in received_at if now - at > _EXCISION_SECONDS]
    if not late:
        return Advice("excisions", Outcome.OK, "no accepted erasure waits to leave what is served")
    seen = f"{len(late)} accepted erasures have not left what is served, the oldest for {now - min(late):.0f} s"
    way_out = "start the deployment; if it runs, see in the coordinator's log why it cannot leave the data out"
    return Advice("excisions", Outcome.WARN, seen, way_out)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "[::1]", "::1") or host.startswith("127.")


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"
