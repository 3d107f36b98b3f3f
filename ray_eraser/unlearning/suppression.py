"""What must not be learned again after its erasure, where the operator asked for it (`unlearning.suppress_days`).

A log that comes again as a whole still has what was erased. To leave that out, something of it must be remembered: a keyed
hash, for as long as the operator says. The secret is where that of idempotency keys is. See docs/decisions/0031.
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
"""Values in one statement: databases limit them."""

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
    """The part of a ledger that says what must not be learned again."""

    def suppressed_kinds(self, at: float) -> set[str]:
        """The kinds of subjects that the list has at this time; most lists are empty."""
        with self._transaction() as connection:
            return set(connection.execute(sa.select(SUPPRESSED.c.kind).where(SUPPRESSED.c.until > at).distinct()).scalars())

    def drop_expired(self, at: float) -> None:
        """Remember what is on the list for no longer than was said."""
        with self.in_force() as connection:
            dropped = drop_expired(connection, at)
        if dropped:
            self._wipe()

    def suppressed_among(self, subjects: Iterable[str], at: float) -> set[str]:
        """Those of some keyed hashes that are on the list at this time."""
        found, asked = set[str](), list(subjects)
        with self._transaction() as connection:
            for first in range(0, len(asked), _AT_ONCE):
                named = SUPPRESSED.c.subject.in_(asked[first : first + _AT_ONCE])
                found |= set(
                    connection.execute(sa.select(SUPPRESSED.c.subject).where(named, SUPPRESSED.c.until > at)).scalars()
                )
        return found


def check_secret(ledger: SuppressionList, hash_of: KeyHash, at: float) -> None:
    """Refuse to go on with another secret than that of the list, by which nothing of it would be found.

    Raises:
        ConfigError: the list has entries, and was made with another secret.
    """
    noted = ledger.noted(_NOTE, "")
    if noted and ledger.suppressed_kinds(at) and noted != hash_of.subject(_NOTE):
        raise ConfigError(
            "unlearning.key_folder",
            "has another secret than the list of what must not be learned again was made with: put that file back, or the list "
            "keeps nothing out",
        )


def note_secret(ledger: SuppressionList, hash_of: KeyHash) -> None:
    """Note in the ledger by which secret the list is made."""
    ledger.note(_NOTE, hash_of.subject(_NOTE))


def subjects_of(requests: Iterable[UnlearningRequest], hash_of: HashOf, until: float) -> list[Suppressed]:
    """What erasures put on the list."""
    named = dict.fromkeys(subject for request in requests for subject in _subjects(request))
    return [Suppressed(hash_of(*subject), subject[0], until) for subject in named]


def _subjects(request: UnlearningRequest) -> list[tuple[str, ...]]:
    if request.pairs is not None:
        return [("pair", *pair) for pair in request.named_pairs]
    return [(request.kind, str(request.user_id if request.user_id is not None else request.item_id))]


@dataclass(frozen=True)
class Sifted:
    """Pairs that somebody wants learned, looked up on the list.

    Attributes:
        allowed: those that are not on it, in order.
        refused: the others.
        subjects: the keyed hashes that refuse them.
    """

    allowed: tuple[Pair, ...]
    refused: tuple[Pair, ...]
    subjects: tuple[str, ...]


def sifted(pairs: Sequence[Pair], ledger: SuppressionList, hash_of: HashOf, at: float) -> Sifted:
    """Divide pairs by whether their user, their item or they themselves are on the list."""
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
    """What of a pair is looked up: its user, its item, or itself."""
    return (kind, pair[0]) if kind == "user" else (kind, pair[1]) if kind == "item" else (kind, *pair)


def suppress(connection: Connection, entries: Sequence[Suppressed], at: float) -> None:
    """Put subjects on the list, within a transaction, and drop those whose time is over."""
    drop_expired(connection, at)
    lift(connection, [entry.subject for entry in entries])
    for entry in entries:
        values = {"subject": entry.subject, "kind": entry.kind, "until": entry.until}
        connection.execute(SUPPRESSED.insert().values(**values))


def drop_expired(connection: Connection, at: float) -> int:
    """Delete the subjects whose time is over, within a transaction: they are remembered no longer than promised."""
    return int(connection.execute(SUPPRESSED.delete().where(SUPPRESSED.c.until <= at)).rowcount)


def prolong(connection: Connection, entries: Sequence[Suppressed]) -> None:
    """Keep subjects on the list for longer, within a transaction; those that were taken off it stay off."""
    for entry in entries:
        connection.execute(SUPPRESSED.update().where(SUPPRESSED.c.subject == entry.subject).values(until=entry.until))


def lift(connection: Connection, subjects: Sequence[str]) -> None:
    """Take subjects off the list, within a transaction."""
    for first in range(0, len(subjects), _AT_ONCE):
        connection.execute(SUPPRESSED.delete().where(SUPPRESSED.c.subject.in_(subjects[first : first + _AT_ONCE])))
