"""Looks at a deployment as an operator should now and then: who can read what, whether it lasts, and whether it is in time.

Every check is a function of what was looked at; nothing is changed, and nothing names a user or an item.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from ray_eraser.devices import named

MOUNTS = Path("/proc/mounts")

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
    """Whether others can read what users did."""
    what = "storage path"
    if is_open_to_others(folder):
        return Advice(what, Outcome.WARN, f"{folder} can be read by others: it says who did what", f"chmod 700 {folder}")
    return Advice(what, Outcome.OK, f"{folder} is its owner's alone")


def is_open_to_others(folder: Path) -> bool:
    """Whether the group or everybody can read or enter a folder, which takes that they can enter all folders above it."""
    folder = folder.resolve()
    for read_or_enter, enter in ((0o050, 0o010), (0o005, 0o001)):
        reachable = all(parent.stat().st_mode & enter for parent in folder.parents)
        if reachable and folder.stat().st_mode & read_or_enter:
            return True
    return False


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


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "[::1]", "::1") or host.startswith("127.")


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"
