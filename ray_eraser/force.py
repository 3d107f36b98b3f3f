"""Whether a coordinator is in force: whether it may answer, write and delete.

A coordinator is in force while it holds the ledger's newest epoch and an unexpired lease. The ledger itself refuses the writes
of other coordinators. Reads depend on the lease alone: while it lasts, no other coordinator serves. The clocks of two machines
are never compared, only their rates (docs/decisions/0031).
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
"""The factor by which another machine's clock may run slower than this one's."""
_LOOK_SECONDS = 0.2


def since_boot() -> float:
    """Seconds on a clock that is never set and keeps running while the machine or the process is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class Holder:
    """The process that holds an epoch, described for people and for the check whether it is still alive.

    Attributes:
        deployment: name of the deployment.
        host: name of the machine.
        machine: identifies the boot of the machine and the PID namespace; empty if unknown.
        process, started: PID, and when the kernel started the process. The two together are never reused.
        token: tells the coordinators of one process apart.
        place: address of the Ray cluster that the holder runs on, if any.
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
        """Whether the process has certainly ended. False if this machine cannot tell."""
        if not self.machine or self.machine != _machine():
            return False
        started = _started(self.process)
        return started != self.started and not (started is None and _is_anothers(self.process))

    def __str__(self) -> str:
        where = f", Ray {self.place}" if self.place else ""
        return f"deployment {self.deployment!r} on {self.host} (process {self.process}{where})"


def _machine() -> str:
    """The boot id and the PID namespace; empty if `/proc` is not available."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + str(Path("/proc/self/ns/pid").readlink())
    return ""


def _started(process: int) -> str | None:
    """Start time of a process in clock ticks since boot; None if the process is absent or a zombie."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _is_anothers(process: int) -> bool:
    """Whether the PID belongs to another user's process, which `/proc` may hide."""
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
        take_over: take over even if another coordinator's lease has not run out. Serving starts only after it has.
        patience: how long to wait for another coordinator to end, in seconds.
        holder: the holder of the new epoch; None for this process.
        place: see `Holder`.
        clock: gives seconds, as `since_boot` does.
        sleep: waits for the given seconds.
    """

    take_over: bool = False
    patience: float = 0.0
    holder: Holder | None = None
    place: str = ""
    clock: Callable[[], float] = since_boot
    sleep: Callable[[float], None] = time.sleep


_here: weakref.WeakValueDictionary[str, Force] = weakref.WeakValueDictionary()
"""The `Force` objects of this process, by token. Within one process, a successor revokes the lease and need not wait for it."""


class Force:
    """The lease of one coordinator. It starts with the first renewal.

    Args:
        ledger: the deployment's; it begins the coordinator's epoch before the first renewal.
        holder: identifies the coordinator.
        lease_seconds: how long a renewal lasts.
        clock: gives seconds, as `since_boot` does.
    """

    def __init__(self, ledger: Epochs, holder: Holder, lease_seconds: float, clock: Callable[[], float]) -> None:
        self._ledger, self._lease, self._clock = ledger, lease_seconds, clock
        self._until, self._ended = float("-inf"), False
        self._renewing = threading.Lock()
        _here[holder.token] = self

    @classmethod
    def claimed(cls, ledger: Epochs, deployment: str, lease_seconds: float, at: float, claim: Claim) -> Force:
        """Begin an epoch as soon as no other coordinator can answer.

        Args:
            ledger: the deployment's.
            deployment: its name.
            lease_seconds: length of the lease.
            at: seconds since 1970.
            claim: what to do if another coordinator holds the deployment.

        Raises:
            HeldError: another coordinator holds it, and `claim` does not take over.
            StaleEpochError: another coordinator has begun a later epoch.
        """
        holder = claim.holder or Holder.here(deployment, claim.place)
        # Register it before its epoch exists: a successor in this process must be able to find and revoke it.
        force = cls(ledger, holder, lease_seconds, claim.clock)
        asked_at = claim.clock()
        while True:
            others = ledger.open_epochs()
            alive = [row for row in others if not _is_free(row)]
            if alive and not claim.take_over:
                others = _awaited_end(ledger, others, alive, claim, asked_at)
            if ledger.begin_epoch(at, holder.to_json(), lease_seconds, seen=others) is None:
                continue  # another coordinator has begun or renewed since the look: look again
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
                    force.end()  # otherwise others would wait for its lease
                raise
            return force

    def check(self) -> None:
        """Return only while in force. During the lease this is immediate; after it, the lease is renewed.

        Raises:
            StaleEpochError: another coordinator has taken over.
            LedgerError: the lease has run out, and the ledger does not answer.
        """
        if self._clock() >= self._until:
            self._renew()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Guard a block that records in the ledger. Raises as `check` on entry.

        A recorded change is answered even after a takeover, because the new coordinator finds the record. The ledger refuses
        to record for a coordinator that is out of force.
        """
        self.check()
        try:
            yield
        except RayEraserError:
            # A refusal is an answer too. Other errors may come from a takeover that closed this coordinator meanwhile. In that
            # case `check` raises, and the caller learns that it must ask the new coordinator.
            self.check()
            raise

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Guard a block that computes an answer: in force at its start and at its end. Raises as `check`."""
        with self.recording():
            yield
        self.check()

    def keep(self) -> None:
        """Renew the lease if a third of it has passed. Call this often. Raises as `check`."""
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
        """Stop answering, and record the end of the epoch in the ledger."""
        with self._renewing:  # a renewal between the two assignments would outlast the end
            self._until, self._ended = float("-inf"), True
        self._ledger.end_epochs([self._ledger.epoch])

    def revoke(self) -> None:
        """Expire the lease now. The next renewal fails, because the ledger renews no lease of an old epoch."""
        with self._renewing:
            self._until = float("-inf")


def _is_free(row: EpochRow) -> bool:
    """Whether nobody needs to wait for an epoch's holder: its process has ended, or it is this process."""
    holder = Holder.from_json(row.holder)
    is_own = holder.machine == _machine() and holder.process == os.getpid() and holder.started == _started(os.getpid())
    return bool(holder.machine) and (is_own or holder.is_gone())


def _awaited_end(
    ledger: Epochs, others: Sequence[EpochRow], alive: Sequence[EpochRow], claim: Claim, since: float
) -> list[EpochRow]:
    """Wait until every living holder has ended, or has not renewed its lease for the length of the lease.

    Args:
        ledger: has their epochs.
        others: the open epochs.
        alive: the epochs among `others` to wait for.
        claim: limits how long to wait for a holder that renews.
        since: start of the wait, by `claim.clock`.

    Returns:
        The epochs that are still open and have not changed since.

    Raises:
        HeldError: a holder renewed its lease, and `claim.patience` seconds have passed.
    """
    known = {row.epoch: row for row in others}
    quiet_since = {row.epoch: claim.clock() for row in alive}
    while True:
        still_open = {row.epoch: row for row in ledger.open_epochs() if row.epoch in known}
        now = claim.clock()  # read after the query, which may be slow: a renewal that the query finds came before `now`
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
