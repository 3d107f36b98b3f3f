"""Whether a coordinator is in force: whether it may answer, write and delete.

In force is who holds the newest epoch of the ledger and a lease that has not run out. The ledger refuses writes of others by
itself. Reads go by the lease alone: within it no other coordinator serves. Clocks of two machines are never compared, only the
rates at which they go (docs/decisions/0031).
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ray_eraser.errors import HeldError, LedgerError, RayEraserError, StaleEpochError
from ray_eraser.unlearning.epochs import EpochRow, Epochs

log = logging.getLogger(__name__)

_SLOWEST = 1.1
"""By how much the clock of another machine may go slower than ours, as a factor."""
_LOOK_SECONDS = 0.2


def since_boot() -> float:
    """Seconds on a clock that nobody sets, and that goes on while the machine or the process is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class Holder:
    """Who holds an epoch: for people, and to see whether it can still be alive.

    Attributes:
        deployment: its name.
        host: the machine's name.
        machine: this start of this machine, and the processes that it sees.
        process: number of the process; `started`: when the kernel started it. Together they are never used twice.
        token: tells coordinators of one process apart.
        place: where it can be asked; the address of a Ray, if it runs on one.
    """

    deployment: str
    host: str
    machine: str
    process: int
    started: str
    token: str
    place: str = ""

    @classmethod
    def here(cls, deployment: str, place: str = "") -> Holder:
        """Describe this process."""
        return cls(
            deployment,
            socket.gethostname(),
            _machine(),
            os.getpid(),
            _started(os.getpid()) or "",
            secrets.token_hex(8),
            place,
        )

    @classmethod
    def from_json(cls, text: str) -> Holder:
        return cls(**json.loads(text)) if text else cls("", "", "", 0, "", "")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def is_gone(self) -> bool:
        """Whether this is surely a process that has ended. False where nobody here can tell."""
        if not self.machine or self.machine != _machine():
            return False
        started = _started(self.process)
        return started != self.started and not (started is None and _is_anothers(self.process))

    def __str__(self) -> str:
        where = f", Ray {self.place}" if self.place else ""
        return f"deployment {self.deployment!r} on {self.host} (process {self.process}{where})"


def _machine() -> str:
    """Empty where processes of this machine cannot be looked at."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + str(Path("/proc/self/ns/pid").readlink())
    return ""


def _started(process: int) -> str | None:
    """When a process was started, in ticks since the boot; None if it is not there, or has ended and waits for its parent."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _is_anothers(process: int) -> bool:
    """Whether a process of another user is there, which `/proc` may hide."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


@dataclass(frozen=True)
class Claim:
    """How a coordinator comes into force.

    Attributes:
        take_over: also where another's lease has not run out. It is waited for before anything is served.
        patience: how long to wait for another one to end, in seconds.
        holder: who begins the epoch; None: this process.
        place: see `Holder`.
        clock: seconds, as `since_boot`.
        sleep: waits some seconds.
    """

    take_over: bool = False
    patience: float = 0.0
    holder: Holder | None = None
    place: str = ""
    clock: Callable[[], float] = since_boot
    sleep: Callable[[float], None] = time.sleep


_here: weakref.WeakValueDictionary[str, Force] = weakref.WeakValueDictionary()
"""By token, what is in force in this process: another object of the process needs no lease to run out."""


class Force:
    """The lease of one coordinator. Until the first renewal it does not hold.

    Args:
        ledger: begins the coordinator's epoch before the first renewal.
        holder: who it is.
        lease_seconds: how long a renewal lasts.
        clock: seconds, as `since_boot`.
    """

    def __init__(self, ledger: Epochs, holder: Holder, lease_seconds: float, clock: Callable[[], float]) -> None:
        self._ledger, self._lease, self._clock = ledger, lease_seconds, clock
        self._until, self._ended = float("-inf"), False
        self._renewing = threading.Lock()
        _here[holder.token] = self

    @classmethod
    def claimed(cls, ledger: Epochs, deployment: str, lease_seconds: float, at: float, claim: Claim) -> Force:
        """Begin an epoch, once no other coordinator can answer any more.

        Args:
            ledger: the deployment's.
            deployment: its name.
            lease_seconds: length of the lease.
            at: seconds since 1970.
            claim: what to do where another one holds the deployment.

        Raises:
            HeldError: another one does, and it was not to be taken over.
            StaleEpochError: another one has begun an epoch after this one.
        """
        holder = claim.holder or Holder.here(deployment, claim.place)
        # Known here before its epoch is: another object of this process that supersedes it must find it.
        force = cls(ledger, holder, lease_seconds, claim.clock)
        asked_at = claim.clock()
        while True:
            others = ledger.open_epochs()
            alive = [row for row in others if not _is_free(row)]
            if alive and not claim.take_over:
                others = _awaited_end(ledger, others, alive, claim, asked_at)
            if ledger.begin_epoch(at, holder.to_json(), lease_seconds, seen=others) is None:
                continue  # another one began or renewed: looked at again
            for row in others:
                if (former := _here.get(Holder.from_json(row.holder).token)) is not None:
                    former.revoke()
            try:
                if alive and claim.take_over:
                    _awaited_end(ledger, others, alive, replace(claim, patience=float("inf")), asked_at)
                ledger.end_epochs([row.epoch for row in others])
                force.check()
            except BaseException:
                with suppress(LedgerError):
                    force.end()  # so that nobody waits for its lease
                raise
            return force

    def check(self) -> None:
        """Return only while in force. Within the lease this takes no time; else it is renewed.

        Raises:
            StaleEpochError: another coordinator has taken over.
            LedgerError: the ledger does not answer, and the lease has run out.
        """
        if self._clock() >= self._until:
            self._renew()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around what records something in the ledger, which refuses a coordinator that is out of force. Raises as `check`.

        What was recorded is answered: a coordinator that takes over meanwhile finds it there.
        """
        self.check()
        try:
            yield
        except RayEraserError:
            # A refusal is for good, so this is an answer as well. What else failed may have failed because another coordinator
            # has taken over and this one was closed meanwhile: then whoever asked must ask that one.
            self.check()
            raise

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Around all that computes an answer: in force when it begins, and when it is given. Raises as `check`."""
        with self.recording():
            yield
        self.check()

    def keep(self) -> None:
        """Renew the lease where a third of it has gone. To be called often. Raises as `check`."""
        if self._clock() >= self._until - self._lease * 2 / 3:
            self._renew()

    def _renew(self) -> None:
        with self._renewing:
            if self._ended:
                raise StaleEpochError("the ledger", self._ledger.epoch, self._ledger.epoch)
            before = self._clock()
            self._ledger.renew()
            self._until = before + self._lease

    def end(self) -> None:
        """Answer no more, and say so in the ledger."""
        with self._renewing:  # a renewal between the two would outlast the end
            self._until, self._ended = float("-inf"), True
        self._ledger.end_epochs([self._ledger.epoch])

    def revoke(self) -> None:
        """Let the lease run out now. Who was taken over hears of it from the ledger, which renews no lease of an old epoch."""
        with self._renewing:
            self._until = float("-inf")


def _is_free(row: EpochRow) -> bool:
    """Whether the holder of an epoch needs no waiting for: its process has ended, or it is an object of this process."""
    holder = Holder.from_json(row.holder)
    is_own = holder.machine == _machine() and holder.process == os.getpid() and holder.started == _started(os.getpid())
    return bool(holder.machine) and (is_own or holder.is_gone())


def _awaited_end(
    ledger: Epochs, others: Sequence[EpochRow], alive: Sequence[EpochRow], claim: Claim, since: float
) -> list[EpochRow]:
    """Wait until the living holders have ended, or have not renewed their leases for as long as these are.

    Args:
        ledger: has their epochs.
        others: the open epochs.
        alive: those of them to wait for.
        claim: for how long, at most, one that renews is waited for.
        since: since when, by `claim.clock`.

    Returns:
        The epochs that are still open, as they were all this time.

    Raises:
        HeldError: one renews its lease, and `claim.patience` seconds have gone.
    """
    known = {row.epoch: row for row in others}
    quiet_since = {row.epoch: claim.clock() for row in alive}
    while True:
        still_open = {row.epoch: row for row in ledger.open_epochs() if row.epoch in known}
        now = claim.clock()  # after the look, which may take long: a renewal that it finds came before this
        for epoch in quiet_since.keys() & still_open.keys():
            row = still_open[epoch]
            if row.beats != known[epoch].beats:
                quiet_since[epoch] = now
                if now - since >= claim.patience:
                    holder = Holder.from_json(row.holder)
                    raise HeldError(holder.deployment, str(holder))
        known = still_open
        waited_for = [row for row in still_open.values() if row.epoch in quiet_since and not _is_free(row)]
        if all(now - quiet_since[row.epoch] > row.lease_seconds * _SLOWEST for row in waited_for):
            return list(known.values())
        claim.sleep(_LOOK_SECONDS)
