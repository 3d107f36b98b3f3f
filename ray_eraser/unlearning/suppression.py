"""The suppression list: erased users, items and pairs that must not be learned again (`unlearning.suppress_days`).

If a complete log is learned again, it still has the erased data. To leave that data out, the ledger keeps a keyed hash of it,
for as long as the operator says. The secret is stored where the secret of idempotency keys is. See docs/decisions/0031.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from ray_eraser.errors import ConfigError
from ray_eraser.unlearning.database import SUPPRESSED
from ray_eraser.unlearning.epochs import Epochs
from ray_eraser.unlearning.idempotency import KeyHash
from ray_eraser.unlearning.request import UnlearningRequest

_NOTE = "secret of the suppression list"
_AT_ONCE = 500
"""Values in one statement, because databases limit their number."""

Pair = tuple[str, str]
HashOf = Callable[..., str]
"""Hashes a kind of subject and its ids; see `KeyHash.subject`."""


@dataclass(frozen=True)
class Suppressed:
    """One user, item or pair that must not be learned again.

    Attributes:
        subject: its keyed hash.
        kind: `user`, `item` or `pair`.
        until: seconds since 1970.
    """

    subject: str
    kind: str
    until: float


class SuppressionList(Epochs):
    """The part of a ledger that lists subjects that must not be learned again."""

    def suppressed_kinds(self, at: float) -> set[str]:
        """The kinds of the subjects on the list at this time. Most lists are empty."""
        with self._transaction() as connection:
            return set(connection.execute(sa.select(SUPPRESSED.c.kind).where(SUPPRESSED.c.until > at).distinct()).scalars())

    def drop_expired(self, at: float) -> None:
        """Delete the expired subjects, so that the list remembers none longer than promised."""
        with self.in_force() as connection:
            dropped = drop_expired(connection, at)
        if dropped:
            self._wipe()

    def suppressed_among(self, subjects: Iterable[str], at: float) -> set[str]:
        """The keyed hashes among `subjects` that are on the list at this time."""
        found, asked = set[str](), list(subjects)
        with self._transaction() as connection:
            for first in range(0, len(asked), _AT_ONCE):
                named = SUPPRESSED.c.subject.in_(asked[first : first + _AT_ONCE])
                found |= set(
                    connection.execute(sa.select(SUPPRESSED.c.subject).where(named, SUPPRESSED.c.until > at)).scalars()
                )
        return found


def check_secret(ledger: SuppressionList, hash_of: KeyHash, at: float) -> None:
    """Refuse a secret other than the list's, with which no entry would be found.

    Raises:
        ConfigError: the list has entries, and another secret made them.
    """
    noted = ledger.noted(_NOTE, "")
    if noted and ledger.suppressed_kinds(at) and noted != hash_of.subject(_NOTE):
        raise ConfigError(
            "unlearning.key_folder",
            "does not have the secret of the suppression list, without which the list keeps nothing out: restore that secret's "
            "file",
        )


def note_secret(ledger: SuppressionList, hash_of: KeyHash) -> None:
    """Note in the ledger which secret makes the list."""
    ledger.note(_NOTE, hash_of.subject(_NOTE))


def subjects_of(requests: Iterable[UnlearningRequest], hash_of: HashOf, until: float) -> list[Suppressed]:
    """The entries that erasures put on the list."""
    named = dict.fromkeys(subject for request in requests for subject in _subjects(request))
    return [Suppressed(hash_of(*subject), subject[0], until) for subject in named]


def _subjects(request: UnlearningRequest) -> list[tuple[str, ...]]:
    if request.pairs is not None:
        return [("pair", *pair) for pair in request.named_pairs]
    return [(request.kind, str(request.user_id if request.user_id is not None else request.item_id))]


@dataclass(frozen=True)
class Sifted:
    """Pairs to learn, looked up on the list.

    Attributes:
        allowed: the pairs that are not on the list, in order.
        refused: the pairs that are.
        subjects: the keyed hashes that refuse pairs.
    """

    allowed: tuple[Pair, ...]
    refused: tuple[Pair, ...]
    subjects: tuple[str, ...]


def sifted(pairs: Sequence[Pair], ledger: SuppressionList, hash_of: HashOf, at: float) -> Sifted:
    """Divide pairs by whether the user, the item or the pair is on the list."""
    kinds = ledger.suppressed_kinds(at)
    if not kinds:
        return Sifted(tuple(pairs), (), ())
    subjects = {kind: {_named(kind, pair) for pair in pairs} for kind in kinds}
    hashes = {subject: hash_of(*subject) for of_kind in subjects.values() for subject in of_kind}
    found = ledger.suppressed_among(hashes.values(), at)
    listed = {subject for subject, hashed in hashes.items() if hashed in found}

    def is_refused(pair: Pair) -> bool:
        return any(_named(kind, pair) in listed for kind in kinds)

    refused = tuple(pair for pair in pairs if is_refused(pair))
    allowed = tuple(pair for pair in pairs if not is_refused(pair)) if refused else tuple(pairs)
    return Sifted(allowed, refused, tuple(sorted(found)))


def _named(kind: str, pair: Pair) -> tuple[str, ...]:
    """The subject of this kind in a pair: its user, its item, or the pair itself."""
    return (kind, pair[0]) if kind == "user" else (kind, pair[1]) if kind == "item" else (kind, *pair)


def suppress(connection: Connection, entries: Sequence[Suppressed], at: float) -> None:
    """Put subjects on the list, and delete expired ones, within a transaction."""
    drop_expired(connection, at)
    lift(connection, [entry.subject for entry in entries])
    for entry in entries:
        values = {"subject": entry.subject, "kind": entry.kind, "until": entry.until}
        connection.execute(SUPPRESSED.insert().values(**values))


def drop_expired(connection: Connection, at: float) -> int:
    """Delete the expired subjects, within a transaction, and return their number."""
    return int(connection.execute(SUPPRESSED.delete().where(SUPPRESSED.c.until <= at)).rowcount)


def prolong(connection: Connection, entries: Sequence[Suppressed]) -> None:
    """Keep subjects on the list for longer, within a transaction. Subjects that were taken off stay off."""
    for entry in entries:
        connection.execute(SUPPRESSED.update().where(SUPPRESSED.c.subject == entry.subject).values(until=entry.until))


def lift(connection: Connection, subjects: Sequence[str]) -> None:
    """Take subjects off the list, within a transaction."""
    for first in range(0, len(subjects), _AT_ONCE):
        connection.execute(SUPPRESSED.delete().where(SUPPRESSED.c.subject.in_(subjects[first : first + _AT_ONCE])))
