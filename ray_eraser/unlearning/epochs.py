"""Epochs: every start of a coordinator begins an epoch, and only the newest epoch may write.

An epoch has a lease. Its holder renews the lease, and others count the renewals, so the clocks of two machines are never
compared (docs/decisions/0031). force.py defines what a lease allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from ray_eraser.errors import StaleEpochError
from ray_eraser.ids import Epoch
from ray_eraser.unlearning.database import EPOCHS, Database


@dataclass(frozen=True)
class EpochRow:
    """An open epoch in the ledger.

    Attributes:
        epoch: its number.
        started_at: seconds since 1970.
        holder: the holder's description of itself.
        lease_seconds: how long the holder may answer after a renewal.
        beats: number of renewals.
    """

    epoch: Epoch
    started_at: float
    holder: str
    lease_seconds: float
    beats: int


class Epochs(Database):
    """The part of a ledger that decides which coordinator may write. An object writes in the epoch that it began last."""

    _epoch: Epoch | None = None

    @property
    def epoch(self) -> Epoch:
        """The epoch in which this object writes."""
        assert self._epoch is not None, "nobody writes before begin_epoch"
        return self._epoch

    def begin_epoch(
        self, at: float, holder: str = "", lease_seconds: float = 0.0, seen: Sequence[EpochRow] | None = None
    ) -> Epoch | None:
        """Begin an epoch. From now on, the holders of earlier epochs are refused.

        Args:
            at: seconds since 1970.
            holder: description of the holder.
            lease_seconds: length of its lease.
            seen: the open epochs that the caller has seen; None accepts any.

        Returns:
            The epoch; None if the open epochs have changed since the caller saw them.
        """
        with self._transaction() as connection:
            if seen is not None and self._open(connection) != list(seen):
                return None
            values = {"started_at": at, "holder": holder, "lease_seconds": lease_seconds, "beats": 0, "ended": False}
            inserted = connection.execute(EPOCHS.insert().values(**values).returning(EPOCHS.c.epoch))
            epoch = Epoch(inserted.scalar_one())
        self._epoch = epoch
        self._wipe()  # a crash may have prevented the wipe after the last finished request
        return epoch

    def open_epochs(self) -> list[EpochRow]:
        """The epochs that were not ended, newest last. Their holders may still answer."""
        with self._transaction() as connection:
            return self._open(connection)

    def renew(self) -> None:
        """Count one renewal of this epoch's lease.

        Raises:
            StaleEpochError: another coordinator has begun a later epoch, or this epoch was ended.
        """
        mine = EPOCHS.c.epoch == self.epoch
        with self.in_force() as connection:
            renewed = connection.execute(
                EPOCHS.update().where(mine, EPOCHS.c.ended.is_(False)).values(beats=EPOCHS.c.beats + 1)
            )
            if not renewed.rowcount:
                raise StaleEpochError("the ledger", self.epoch, self.epoch)

    def end_epochs(self, epochs: Sequence[Epoch]) -> None:
        """Mark epochs as ended. Only the holder calls this, or a coordinator that waited until the holder's lease ran out."""
        with self._transaction() as connection:
            connection.execute(EPOCHS.update().where(EPOCHS.c.epoch.in_(epochs)).values(ended=True))

    @contextmanager
    def in_force(self) -> Iterator[Connection]:
        """A transaction during which this epoch stays the newest: nobody else can begin an epoch or publish.

        Raises:
            StaleEpochError: another coordinator has begun a later epoch.
        """
        with self._transaction() as connection:
            newest = self._newest(connection)
            if newest != self.epoch:
                raise StaleEpochError("the ledger", newest, self.epoch)
            yield connection

    def note(self, name: str, text: str) -> None:
        """Write a note, replacing the note of that name. Raises as `in_force`."""
        with self.in_force() as connection:
            self._put_note(connection, name, text)

    @staticmethod
    def _newest(connection: Connection) -> Epoch:
        return Epoch(connection.execute(sa.select(sa.func.max(EPOCHS.c.epoch))).scalar_one())

    @staticmethod
    def _open(connection: Connection) -> list[EpochRow]:
        rows = connection.execute(sa.select(EPOCHS).where(EPOCHS.c.ended.is_(False)).order_by(EPOCHS.c.epoch)).all()
        return [EpochRow(Epoch(r.epoch), r.started_at, r.holder, r.lease_seconds, r.beats) for r in rows]
