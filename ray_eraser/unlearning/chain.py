"""The chain in the ledger: receipts, key changes, and the deployment's last statement about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

import sqlalchemy as sa
from sqlalchemy import Connection

from ray_eraser.ids import Generation
from ray_eraser.unlearning.database import GENERATIONS, REQUESTS, ROTATIONS
from ray_eraser.unlearning.receipt import Head, Link, Receipt, Rotation, Signer, Standing, head_of, rotation
from ray_eraser.unlearning.suppression import SuppressionList


class Chain(SuppressionList):
    """The part of a ledger that holds the chain."""

    def rotate(self, former: Signer, successor: Signer, at: float, notes: Mapping[str, str] = MappingProxyType({})) -> Rotation:
        """Change the signing key, and record the change as the next link.

        Args:
            former: the current key; the successor if the current key is lost.
            successor: the next key.
            at: seconds since 1970.
            notes: by name; each replaces the note of that name.
        """
        with self.in_force() as connection:
            link = rotation(former, successor, self._head(connection), self.name, at)
            connection.execute(ROTATIONS.insert().values(number=link.number, rotation=json.dumps(link.to_dict())))
            for name, text in notes.items():
                self._put_note(connection, name, text)
            self._attest(connection, successor)
        return link

    def links(self) -> list[Link]:
        """The chain: the receipts of all finished requests, and the key changes."""
        with self._transaction() as connection:
            return self._links(connection)

    def receipts(self) -> list[Receipt]:
        """The receipts of all finished requests, in the order of the chain."""
        return [link for link in self.links() if isinstance(link, Receipt)]

    def key_in_force(self) -> str | None:
        """Id of the key that signs the next link; None if no link is signed yet."""
        return next((link.next_key for link in reversed(self.links()) if link.next_key is not None), None)

    @staticmethod
    def _links(connection: Connection, last: int | None = None) -> list[Link]:
        """All links, or only the last ones."""
        receipts = sa.select(REQUESTS.c.receipt).where(REQUESTS.c.number.is_not(None)).order_by(REQUESTS.c.number.desc())
        rotations = sa.select(ROTATIONS.c.rotation).order_by(ROTATIONS.c.number.desc())
        found: list[Link] = [Receipt.from_dict(json.loads(text)) for text in connection.execute(receipts.limit(last)).scalars()]
        found += [Rotation.from_dict(json.loads(text)) for text in connection.execute(rotations.limit(last)).scalars()]
        found.sort(key=lambda link: link.number)
        return found if last is None else found[-last:]

    def _head(self, connection: Connection) -> Head:
        return head_of(self._links(connection, last=1))

    def _attest(self, connection: Connection, signer: Signer | None) -> None:
        """Record which generation is current and where the chain ends. Every transaction that changes either ends with this."""
        newest = sa.select(GENERATIONS.c.number, GENERATIONS.c.digest).order_by(GENERATIONS.c.number.desc()).limit(1)
        row = connection.execute(newest).one_or_none()
        if row is not None:
            standing = Standing.of(self.name, Generation(row.number), row.digest, self._head(connection), signer)
            named = GENERATIONS.c.number == row.number
            connection.execute(GENERATIONS.update().where(named).values(standing=standing.to_json()))
