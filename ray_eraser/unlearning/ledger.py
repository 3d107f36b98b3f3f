"""The record of everything that was promised: requests, generations, and who may write.

A database through SQLAlchemy Core: SQLite by default, written through to the disk at every commit; PostgreSQL by URL. Every
method is one transaction, and of all programs' transactions one runs at a time. What a finished request was about is no longer
in it.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, Connection, Float, Integer, MetaData, String, Table, Text, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ray_eraser.errors import (
    DeploymentError,
    IllegalTransitionError,
    InputError,
    LedgerError,
    QueueFullError,
    RequestError,
    StaleEpochError,
    UnknownRequestError,
)
from ray_eraser.ids import Epoch, Generation, RequestId
from ray_eraser.store import Store
from ray_eraser.unlearning.plan import Waiting
from ray_eraser.unlearning.receipt import START, Head, Receipt, Signer, chained
from ray_eraser.unlearning.request import RequestState, UnlearningRequest
from ray_eraser.unlearning.work import Learning, Work, work_from_json

log = logging.getLogger(__name__)

_FORMAT = "3"
"""Of the tables and of what is in them. A ledger of another format is refused."""
_OWN_FORMAT = f"format {_FORMAT}"

_metadata = MetaData()

_notes = Table(
    "notes",
    _metadata,
    Column("name", String(64), primary_key=True),
    Column("text", Text, nullable=False),
)

_epochs = Table(
    "epochs",
    _metadata,
    Column("epoch", Integer, primary_key=True, autoincrement=True),
    Column("started_at", Float, nullable=False),
)
_generations = Table(
    "generations",
    _metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    # Empty once the next one is finished: with the rest of the data at hand it would give away what was erased since.
    Column("digest", String(64), nullable=False),
    Column("published_at", Float, nullable=False),
    # Files of the generation before that this one superseded, until they are deleted.
    Column("to_purge", Text, nullable=False),
)
_requests = Table(
    "requests",
    _metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("request_id", String(64), nullable=False, unique=True),
    # Of the idempotency key, which may name a user, only a keyed hash.
    Column("key_hash", String(64), unique=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("priority", Integer, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("excised_at", Float),
    # How often its retraining failed, why the last time, and with which others it is tried again; null: with all new ones.
    Column("attempts", Integer, nullable=False),
    Column("reason", Text),
    Column("party", Integer),
    Column("generation", Integer),
    Column("receipt", Text),
    # The finished receipt's place in the chain.
    Column("number", Integer, unique=True),
)
# Raw ids stand here while they are needed and nowhere afterwards; the salt likewise. In a table of its own, that stays small:
# PostgreSQL can get rid of deleted rows only by writing a table anew.
_works = Table(
    "works",
    _metadata,
    Column("request_id", String(64), primary_key=True),
    Column("payload", Text, nullable=False),
    Column("salt", String(64)),
)
for _secret in (_works.c.payload, _works.c.salt, _generations.c.digest, _generations.c.to_purge):
    # PostgreSQL's statistics would quote values of the column, and keep them when the rows are gone.
    _uncounted: Any = sa.DDL(f"ALTER TABLE {_secret.table.name} ALTER COLUMN {_secret.name} SET STATISTICS 0")  # type: ignore[no-untyped-call]
    event.listen(_secret.table, "after_create", _uncounted.execute_if(dialect="postgresql"))

_rows = sa.select(_requests, _works.c.payload, _works.c.salt).outerjoin(_works, _works.c.request_id == _requests.c.request_id)


_FINAL = tuple(state for state in RequestState if state.is_final)

WAITING = (RequestState.RECEIVED, RequestState.EXCISED, RequestState.ROUTED)
"""The states of what is still to be carried out without anybody's doing."""

_WIPE_TRIES, _WIPE_SECONDS = 20, 0.05

_TURN = 0x72617965726173  # any number that no other program of the same database locks

# Who died or hangs in the middle of a transaction loses its turn before those who wait for theirs give up.
_POSTGRESQL_SETTINGS = {"lock_timeout": "30s", "idle_in_transaction_session_timeout": "15s"}

# For libpq, where the URL says nothing else: a server that is gone without a word is noticed in half a minute, not in hours.
_LIBPQ_SETTINGS = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "4",
    "tcp_user_timeout": "30000",
}


@dataclass(frozen=True)
class Entry:
    """What is to be recorded.

    Attributes:
        request_id: its name.
        work: what it asks for.
        salt: keys what its receipt says of the data; None where there will be no receipt.
        key_hash: of the idempotency key; None where none was given.
        priority: above 0: is not to wait for others.
    """

    request_id: RequestId
    work: Work
    salt: str | None = None
    key_hash: str | None = None
    priority: int = 0


@dataclass(frozen=True)
class RequestRow:
    """A request as the ledger has it; `work` and `salt` are None once it is finished."""

    request_id: RequestId
    state: RequestState
    kind: str
    work: Work | None
    salt: str | None
    priority: int
    received_at: float
    excised_at: float | None
    attempts: int
    reason: str | None
    party: int | None
    generation: Generation | None
    receipt: Receipt | None


@dataclass(frozen=True)
class GenerationRow:
    """A published generation."""

    number: Generation
    digest: str
    published_at: float
    to_purge: tuple[str, ...]


class Ledger:
    """One deployment's ledger.

    Raises:
        InputError: the database cannot be opened, or is of another format.
        LedgerError: from any method: the database failed. Nothing was changed.
    """

    def __init__(self, url: str | sa.URL) -> None:
        try:
            self._engine = _engine(sa.engine.make_url(url))
            with self._engine.begin() as connection:
                _take_turn(connection)
                found = _format_of(connection)
                if found is None:
                    _metadata.create_all(connection)
                    self._put_note(connection, "format", _FORMAT)
        except (SQLAlchemyError, ImportError) as error:
            raise InputError(
                f"ledger {_without_password(url)} cannot be opened ({_first_line(error)}): check unlearning.ledger"
            ) from error
        if found not in (None, _OWN_FORMAT):
            self.close()
            raise InputError(
                f"ledger {_without_password(url)} has {found}, this version reads format {_FORMAT}: "
                "use the version that made it, or another database"
            )
        self.name = self.noted("name", secrets.token_hex(16))

    def close(self) -> None:
        self._engine.dispose()

    # ---- who may write -------------------------------------------------------------------------------------------------

    def begin_epoch(self, at: float) -> Epoch:
        """A new coordinator starts; all earlier ones may no longer publish."""
        with self._transaction() as connection:
            inserted = connection.execute(_epochs.insert().values(started_at=at).returning(_epochs.c.epoch))
            epoch = Epoch(inserted.scalar_one())
        self._wipe()  # a crash may have come between the end of a request and its wipe
        return epoch

    def newest_epoch(self) -> Epoch:
        """The epoch of the coordinator that may write."""
        with self._transaction() as connection:
            return self._newest_epoch(connection)

    @staticmethod
    def _newest_epoch(connection: Connection) -> Epoch:
        return Epoch(connection.execute(sa.select(sa.func.max(_epochs.c.epoch))).scalar_one())

    def _refuse_stale(self, connection: Connection, epoch: Epoch) -> None:
        """Within the transaction that writes: nobody can take over before it ends, as transactions take turns."""
        newest = self._newest_epoch(connection)
        if newest != epoch:
            raise StaleEpochError("the ledger", newest, epoch)

    # ---- what is remembered beside them --------------------------------------------------------------------------------

    def noted(self, name: str, first: str) -> str:
        """What stands under a name; where nothing does, `first` is noted."""
        with self._transaction() as connection:
            found = connection.execute(sa.select(_notes.c.text).where(_notes.c.name == name)).scalar_one_or_none()
            if found is None:
                connection.execute(_notes.insert().values(name=name, text=first))
            return first if found is None else str(found)

    def note(self, name: str, text: str) -> None:
        """Put something under a name, in place of what stands there."""
        with self._transaction() as connection:
            self._put_note(connection, name, text)

    @staticmethod
    def _put_note(connection: Connection, name: str, text: str) -> None:
        connection.execute(_notes.delete().where(_notes.c.name == name))
        connection.execute(_notes.insert().values(name=name, text=text))

    # ---- generations ---------------------------------------------------------------------------------------------------

    def current(self) -> GenerationRow | None:
        """The generation that is served; None before the first fit."""
        with self._transaction() as connection:
            row = connection.execute(sa.select(_generations).order_by(_generations.c.number.desc()).limit(1)).one_or_none()
        if row is None:
            return None
        return GenerationRow(Generation(row.number), row.digest, row.published_at, tuple(json.loads(row.to_purge)))

    def publish(
        self,
        epoch: Epoch,
        generation: GenerationRow,
        receipts: Mapping[RequestId, Receipt],
        requests: Sequence[RequestId],
        notes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Make a generation current, with the unfinished receipts of the requests that it carries out; all or nothing.

        Args:
            epoch: of the coordinator.
            generation: the generation.
            receipts: of those of the requests that get one.
            requests: all that it carries out.
            notes: by name, in place of what stands there; see `note`.

        Raises:
            StaleEpochError: another coordinator has started since.
        """
        with self._transaction() as connection:
            self._refuse_stale(connection, epoch)
            values = {
                "number": generation.number,
                "digest": generation.digest,
                "published_at": generation.published_at,
                "to_purge": json.dumps(generation.to_purge),
            }
            connection.execute(_generations.insert().values(**values))
            for request_id in requests:
                receipt = json.dumps(receipts[request_id].to_dict()) if request_id in receipts else None
                named = _requests.c.request_id == request_id
                connection.execute(_requests.update().where(named).values(generation=generation.number, receipt=receipt))
            for name, text in notes.items():
                self._put_note(connection, name, text)

    # ---- requests ------------------------------------------------------------------------------------------------------

    def receive(
        self,
        epoch: Epoch,
        entries: Sequence[Entry],
        at: float,
        max_pending: int,
        amended: Mapping[RequestId, Learning] = MappingProxyType({}),
    ) -> list[RequestRow]:
        """Record requests, all or none; from here on they cannot be lost. A known key gives the request recorded under it.

        Args:
            epoch: of the coordinator.
            entries: the requests.
            at: the time.
            max_pending: how many may wait at a time.
            amended: learnings that wait, as they are without what these requests are about.

        Raises:
            RequestError: a key belongs to another request.
            QueueFullError: too many would wait.
            StaleEpochError: another coordinator has started since. It would go on serving what these requests are about.
        """
        with self._transaction() as connection:
            self._refuse_stale(connection, epoch)
            waiting = connection.execute(sa.select(sa.func.count()).where(_requests.c.state.not_in(_FINAL))).scalar_one()
            rows, n_new = [], 0
            for entry in entries:
                known = self._recorded(connection, entry.key_hash, entry.work)
                rows.append(entry.request_id if known is None else known.request_id)
                if known is not None:
                    continue
                n_new += 1
                values = {
                    "request_id": entry.request_id,
                    "key_hash": entry.key_hash,
                    "kind": entry.work.kind,
                    "state": RequestState.RECEIVED,
                    "priority": entry.priority,
                    "received_at": at,
                    "attempts": 0,
                }
                connection.execute(_requests.insert().values(**values))
                secret = {"request_id": entry.request_id, "payload": entry.work.to_json(), "salt": entry.salt}
                connection.execute(_works.insert().values(**secret))
            if n_new and waiting + n_new > max_pending:
                raise QueueFullError(waiting, n_new, max_pending)
            self._amend(connection, amended)
            return [self._request(connection, request_id) for request_id in rows]

    @staticmethod
    def _amend(connection: Connection, amended: Mapping[RequestId, Learning]) -> None:
        for request_id, learning in amended.items():
            named = _works.c.request_id == request_id
            connection.execute(_works.update().where(named).values(payload=learning.to_json()))

    def recorded(self, key_hash: str | None, work: Work) -> RequestRow | None:
        """The request that was submitted with this key before, finished or not; None where the key is new or not given.

        Raises:
            RequestError: the key belongs to another request.
        """
        with self._transaction() as connection:
            return self._recorded(connection, key_hash, work)

    @staticmethod
    def _recorded(connection: Connection, key_hash: str | None, work: Work) -> RequestRow | None:
        if key_hash is None:
            return None
        found = connection.execute(_rows.where(_requests.c.key_hash == key_hash)).one_or_none()
        if found is None:
            return None
        row = _request_row(found)
        # What a finished request was about is gone from the ledger, and a learning may have lost some of it since: the kind is
        # all that can still be compared.
        changed = isinstance(work, UnlearningRequest) and row.work is not None and row.work != work
        if row.kind != work.kind or changed:
            raise RequestError("the idempotency key belongs to another request: choose a new key")
        return row

    def request(self, request_id: RequestId) -> RequestRow:
        """One request.

        Raises:
            UnknownRequestError: there is none of this id.
        """
        with self._transaction() as connection:
            return self._request(connection, request_id)

    @staticmethod
    def _request(connection: Connection, request_id: RequestId) -> RequestRow:
        if not request_id.isprintable():  # not every database takes such text
            raise UnknownRequestError(request_id)
        row = connection.execute(_rows.where(_requests.c.request_id == request_id)).one_or_none()
        if row is None:
            raise UnknownRequestError(request_id)
        return _request_row(row)

    def unfinished(self, *states: RequestState, kind: str | None = None) -> list[RequestRow]:
        """All requests in these states, or in any that is not final, in the order in which they came; of one kind or of all."""
        in_state = _requests.c.state.in_(states) if states else _requests.c.state.not_in(_FINAL)
        chosen = (in_state,) if kind is None else (in_state, _requests.c.kind == kind)
        with self._transaction() as connection:
            rows = connection.execute(_rows.where(*chosen).order_by(_requests.c.sequence)).all()
        return [_request_row(row) for row in rows]

    def waiting(self) -> list[Waiting]:
        """When each request came that is to be carried out, and how urgent it is; without what it is about."""
        columns = _requests.c.received_at, _requests.c.priority
        chosen = _requests.c.state.in_(WAITING)
        with self._transaction() as connection:
            rows = connection.execute(sa.select(*columns).where(chosen).order_by(_requests.c.sequence)).all()
        return [Waiting(row.received_at, row.priority) for row in rows]

    def counts(self) -> dict[str, int]:
        """Requests by state, every state named."""
        with self._transaction() as connection:
            rows = connection.execute(
                sa.select(_requests.c.state, sa.func.count().label("n")).group_by(_requests.c.state)
            ).all()
        return {str(state): 0 for state in RequestState} | {row.state: row.n for row in rows}

    def erasures(self, limit: int, *, finished: bool) -> list[RequestRow]:
        """Finished erasures, the newest first, or unfinished ones, the oldest first; without what they are about."""
        untold = [sa.null().label(name) for name in ("payload", "salt")]
        state, kind, sequence = _requests.c.state, _requests.c.kind, _requests.c.sequence
        chosen = kind.in_(("user", "item", "pairs")) & (state.in_(_FINAL) if finished else state.not_in(_FINAL))
        query = sa.select(_requests, *untold).where(chosen).order_by(sequence.desc() if finished else sequence).limit(limit)
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return [_request_row(row) for row in rows]

    def newest_time(self) -> float | None:
        """The newest time of anything that was recorded; None where nothing was."""
        columns = _epochs.c.started_at, _generations.c.published_at, _requests.c.received_at, _requests.c.excised_at
        with self._transaction() as connection:
            newest = [connection.execute(sa.select(sa.func.max(column))).scalar_one() for column in columns]
        return max((float(at) for at in newest if at is not None), default=None)

    def excised(self, requests: Sequence[RequestId], at: float) -> None:
        """Nothing that is served depends on these any more."""
        self._move(requests, RequestState.RECEIVED, RequestState.EXCISED, excised_at=at)

    def routed(self, requests: Sequence[RequestId]) -> None:
        """These make up the batch that the shards now work on."""
        self._move(requests, RequestState.EXCISED, RequestState.ROUTED)

    def failed(
        self,
        requests: Sequence[RequestId],
        reason: str,
        max_attempts: int,
        amended: Mapping[RequestId, Learning] = MappingProxyType({}),
    ) -> None:
        """Their retraining failed. Several are tried again in two halves, so that those go on that it was not the fault of.

        One alone is tried again, and set aside the `max_attempts`-th time.

        Args:
            requests: the batch.
            reason: for an operator; names no user and no item.
            max_attempts: how often one alone is tried; 0: without end.
            amended: those of them that are learnings, as they are without what was asked to be forgotten since.
        """
        with self._transaction() as connection:
            self._amend(connection, amended)
            last = connection.execute(sa.select(sa.func.max(_requests.c.party))).scalar_one() or 0
            halves = [requests[: len(requests) // 2], requests[len(requests) // 2 :]]
            for party, half in enumerate(halves, last + 1):
                for request_id in half:
                    attempts = self._request(connection, request_id).attempts + 1 if len(requests) == 1 else 0
                    given_up = len(requests) == 1 and 0 < max_attempts <= attempts
                    state = RequestState.SET_ASIDE if given_up else RequestState.EXCISED
                    self._move_one(
                        connection, request_id, RequestState.ROUTED, state, attempts=attempts, reason=reason, party=party
                    )

    def retry(self, request_id: RequestId) -> None:
        """Have a request that was set aside tried again.

        Raises:
            IllegalTransitionError: it was not set aside.
        """
        self._move([request_id], RequestState.SET_ASIDE, RequestState.EXCISED, attempts=0)

    def finish(
        self, receipts: Sequence[Receipt], signer: Signer | None = None, done: Sequence[RequestId] = ()
    ) -> list[Receipt]:
        """Close the requests of a published and purged generation; what they were about leaves the ledger, and the digests of
        the generations before.

        Gives the receipts as they are recorded: the next of the chain, signed where there is a signer. `done` are the requests
        that get none.
        """
        with self._transaction() as connection:
            links = chained(receipts, self._head(connection), signer)
            for receipt in links:
                left = {"receipt": json.dumps(receipt.to_dict()), "number": receipt.number}
                self._move_one(connection, receipt.request_id, RequestState.ROUTED, RequestState.ERASED, **left)
            for request_id in done:
                self._move_one(connection, request_id, RequestState.ROUTED, RequestState.DONE)
            for request_id in [*(receipt.request_id for receipt in links), *done]:
                connection.execute(_works.delete().where(_works.c.request_id == request_id))
            newest = sa.select(sa.func.max(_generations.c.number)).scalar_subquery()
            connection.execute(_generations.update().values(to_purge="[]"))
            connection.execute(_generations.update().where(_generations.c.number < newest).values(digest=""))
        self._wipe()
        return links

    @staticmethod
    def _head(connection: Connection) -> Head:
        """The newest receipt of the chain."""
        finished = sa.select(_requests.c.receipt).where(_requests.c.number.is_not(None))
        text = connection.execute(finished.order_by(_requests.c.number.desc()).limit(1)).scalar_one_or_none()
        if text is None:
            return START
        receipt = Receipt.from_dict(json.loads(text))
        return Head(receipt.number, receipt.digest())

    def receipts(self) -> list[Receipt]:
        """The receipts of all finished requests, in the order of their chain."""
        with self._transaction() as connection:
            chosen = sa.select(_requests.c.receipt).where(_requests.c.number.is_not(None)).order_by(_requests.c.number)
            return [Receipt.from_dict(json.loads(text)) for text in connection.execute(chosen).scalars()]

    def record(self, since: float, until: float) -> list[RequestRow]:
        """All requests received in [since, until), finished or not, as they came; without what they are about."""
        untold = [sa.null().label(name) for name in ("payload", "salt")]
        within = (_requests.c.received_at >= since) & (_requests.c.received_at < until)
        with self._transaction() as connection:
            rows = connection.execute(sa.select(_requests, *untold).where(within).order_by(_requests.c.sequence)).all()
        return [_request_row(row) for row in rows]

    def _move(self, requests: Sequence[RequestId], source: RequestState, state: RequestState, **values: Any) -> None:
        with self._transaction() as connection:
            for request_id in requests:
                self._move_one(connection, request_id, source, state, **values)

    @staticmethod
    def _move_one(
        connection: Connection, request_id: RequestId, source: RequestState, state: RequestState, **values: Any
    ) -> None:
        """From the one state that this step starts at: several lead to some, and each has a step of its own."""
        named = _requests.c.request_id == request_id
        present = RequestState(connection.execute(sa.select(_requests.c.state).where(named)).scalar_one())
        if present is not source:
            raise IllegalTransitionError(request_id, present, state)
        present.check(request_id, state)
        connection.execute(_requests.update().where(named).values(state=state, **values))

    def _wipe(self) -> None:
        """What was deleted or overwritten must not live on in the database's files.

        SQLite zeroes pages as it frees them, and its write-ahead log is emptied. PostgreSQL keeps old rows until a table is
        written anew; of its own write-ahead log and of backups see docs/decisions/0011.
        """
        wiped = self._wiped_sqlite if self._engine.dialect.name == "sqlite" else self._wiped_postgresql
        if not wiped():
            log.warning("the ledger could not be wiped yet, somebody reads it: the next request's end tries again")

    def _wiped_sqlite(self) -> bool:
        for _ in range(_WIPE_TRIES):
            with closing(self._engine.raw_connection()) as connection:
                busy, *_ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return True
            time.sleep(_WIPE_SECONDS)
        return False

    def _wiped_postgresql(self) -> bool:
        try:
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                # Not for long: whoever comes after waits behind it.
                connection.exec_driver_sql(f"SET lock_timeout = '{_WIPE_TRIES * _WIPE_SECONDS}s'")
                try:
                    # A plain one leaves the bytes in the pages.
                    connection.exec_driver_sql(f"VACUUM (FULL) {_works.name}, {_generations.name}")
                finally:
                    connection.exec_driver_sql(f"SET lock_timeout = '{_POSTGRESQL_SETTINGS['lock_timeout']}'")
        except SQLAlchemyError:
            return False
        return True

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        committing = False
        try:
            with self._engine.begin() as connection:
                _take_turn(connection)
                yield connection
                committing = True
        except SQLAlchemyError as error:
            if committing and isinstance(error, DBAPIError) and error.connection_invalidated:
                raise LedgerError(_first_line(error), "whether it was recorded all the same is not known") from error
            raise LedgerError(_first_line(error)) from error


def _request_row(row: Any) -> RequestRow:
    return RequestRow(
        RequestId(row.request_id),
        RequestState(row.state),
        row.kind,
        None if row.payload is None else work_from_json(row.payload),
        row.salt,
        row.priority,
        row.received_at,
        row.excised_at,
        row.attempts,
        row.reason,
        row.party,
        None if row.generation is None else Generation(row.generation),
        None if row.receipt is None else Receipt.from_dict(json.loads(row.receipt)),
    )


def _format_of(connection: Connection) -> str | None:
    """What the tables are that are there, for people; None where there are none yet."""
    inspector = sa.inspect(connection)
    there = [table.name for table in _metadata.tables.values() if inspector.has_table(table.name)]
    if not there:
        return None
    strange = f"tables of its own ({', '.join(sorted(there))}) and no format"  # an older version's, or another program's
    columns = {name: {column["name"] for column in inspector.get_columns(name)} for name in there}
    if not set(_notes.columns.keys()) <= columns.get(_notes.name, set()):
        return strange
    noted = connection.execute(sa.select(_notes.c.text).where(_notes.c.name == "format")).scalar_one_or_none()
    ours = all(columns.get(table.name) == set(table.columns.keys()) for table in _metadata.tables.values())
    return strange if noted is None or (noted == _FORMAT and not ours) else f"format {noted}"


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "postgresql":
        engine = sa.create_engine(url, hide_parameters=True)  # an error's text must not name users
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _set_up_sqlite)
            event.listen(engine, "begin", _begin_immediate)
        return engine
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")  # what SQLAlchemy takes by itself depends on its version
    if url.get_driver_name().startswith("psycopg"):
        url = url.set(query={**_LIBPQ_SETTINGS, **url.query})
    # Read committed, whatever the server's default: each statement sees what was committed when it began. In a stricter level
    # all would see what was committed when the transaction began to wait for its turn, and not another coordinator's epoch.
    # Pre-ping: connections that died with the server are replaced when they are needed next.
    engine = sa.create_engine(url, hide_parameters=True, isolation_level="READ COMMITTED", pool_pre_ping=True)
    event.listen(engine, "connect", _set_up_postgresql)
    return engine


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_immediate` says so
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail, instead of waiting, where two writers meet.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _set_up_postgresql(connection: Any, _record: Any) -> None:
    with closing(connection.cursor()) as cursor:
        for name, value in _POSTGRESQL_SETTINGS.items():
            cursor.execute(f"SET {name} = '{value}'")
        # A commit that does not wait for the disk is no promise; all other settings do, some for a standby's disk as well.
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
    connection.commit()


def _take_turn(connection: Connection) -> None:
    """One transaction at a time, from its first statement to its commit: on PostgreSQL what BEGIN IMMEDIATE is on SQLite."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_TURN)))


def _without_password(url: str | sa.URL) -> str:
    try:
        return sa.engine.make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        scheme, _, rest = str(url).partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}" if rest else scheme


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def default_ledger(store: Store, deployment: str, *, must_exist: bool) -> sa.URL:
    """The URL of the SQLite ledger under a local storage path.

    Raises:
        DeploymentError: the storage path is no local folder, or nothing is there although it must be.
    """
    folder = store.local_folder
    if folder is None:
        raise DeploymentError(deployment, f"{store.uri} is not a local folder: say where the ledger is in unlearning.ledger")
    file = folder / "ledger.db"
    if not file.exists():
        if must_exist:
            raise DeploymentError(deployment, f"nothing is deployed at {store.uri}: train first, or check the path")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeploymentError(deployment, f"{store.uri} cannot be made a folder ({error}): choose another path") from error
    return sa.URL.create("sqlite", database=str(file))  # not text: the folder's name may hold what a URL escapes
