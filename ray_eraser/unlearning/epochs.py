"""Who may write: every start of a coordinator begins an epoch, and all writing is the newest epoch's.

An epoch carries a lease. Its holder renews it, and others count renewals: the clocks of two machines are never compared
(docs/decisions/0031). What a lease allows is in force.py.
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
    """One epoch that was not ended, as the ledger has it.

    Attributes:
        epoch: its number.
        started_at: seconds since 1970.
        holder: who began it, as the holder describes itself.
        lease_seconds: how long the holder may answer after a renewal.
        beats: renewals so far.
    """

    epoch: Epoch
    started_at: float
    holder: str
    lease_seconds: float
    beats: int


class Epochs(Database):
    """The part of a ledger that says who may write. An object writes in the epoch that it began last."""

    _epoch: Epoch | None = None

    @property
    def epoch(self) -> Epoch:
        """The epoch in which this object writes."""
        assert self._epoch is not None, "nobody writes before begin_epoch"
        return self._epoch

    def begin_epoch(
        self, at: float, holder: str = "", lease_seconds: float = 0.0, seen: Sequence[EpochRow] | None = None
    ) -> Epoch | None:
        """Begin an epoch. From now on the holders of all earlier ones are refused.

        Args:
            at: seconds since 1970.
            holder: who begins it.
            lease_seconds: its lease.
            seen: the open epochs that the caller looked at; None: whatever there is.

        Returns:
            The epoch; None where the open epochs are not those any more: look again.
        """
        with self._transaction() as connection:
            if seen is not None and self._open(connection) != list(seen):
                return None
            values = {"started_at": at, "holder": holder, "lease_seconds": lease_seconds, "beats": 0, "ended": False}
            inserted = connection.execute(EPOCHS.insert().values(**values).returning(EPOCHS.c.epoch))
            epoch = Epoch(inserted.scalar_one())
        self._epoch = epoch
        self._wipe()  # a crash may have come between the end of a request and its wipe
        return epoch

    def open_epochs(self) -> list[EpochRow]:
        """The epochs whose holders may still answer, as far as the ledger knows; the newest is the last."""
        with self._transaction() as connection:
            return self._open(connection)

    def newest_epoch(self) -> Epoch:
        """The epoch that may write."""
        with self._transaction() as connection:
            return self._newest(connection)

    def renew(self) -> None:
        """Count one renewal of this epoch's lease.

        Raises:
            StaleEpochError: another coordinator has begun an epoch since, or this one was ended.
        """
        mine = EPOCHS.c.epoch == self.epoch
        with self.in_force() as connection:
            renewed = connection.execute(
                EPOCHS.update().where(mine, EPOCHS.c.ended.is_(False)).values(beats=EPOCHS.c.beats + 1)
            )
            if not renewed.rowcount:
                raise StaleEpochError("the ledger", self.epoch, self.epoch)

    def end_epochs(self, epochs: Sequence[Epoch]) -> None:
        """Their holders answer no more. An epoch may be ended by its holder, or by one who waited for its lease to run out."""
        with self._transaction() as connection:
            connection.execute(EPOCHS.update().where(EPOCHS.c.epoch.in_(epochs)).values(ended=True))

    @contextmanager
    def in_force(self) -> Iterator[Connection]:
        """A transaction within which this epoch is the newest: nobody begins another one, or publishes, before it ends.

        Raises:
            StaleEpochError: another coordinator has begun an epoch since.
        """
        with self._transaction() as connection:
            newest = self._newest(connection)
            if newest != self.epoch:
                raise StaleEpochError("the ledger", newest, self.epoch)
            yield connection

    def note(self, name: str, text: str) -> None:
        """Put something under a name, in place of what stands there. Raises as `in_force`."""
        with self.in_force() as connection:
            self._put_note(connection, name, text)

    @staticmethod
    def _newest(connection: Connection) -> Epoch:
        return Epoch(connection.execute(sa.select(sa.func.max(EPOCHS.c.epoch))).scalar_one())

    @staticmethod
    def _open(connection: Connection) -> list[EpochRow]:
        rows = connection.execute(sa.select(EPOCHS).where(EPOCHS.c.ended.is_(False)).order_by(EPOCHS.c.epoch)).all()
        return [EpochRow(Epoch(r.epoch), r.started_at, r.holder, r.lease_seconds, r.beats) for r in rows]
