"""The record of everything that was promised: requests, generations, and who may write.

A database through SQLAlchemy Core: SQLite by default, written through to the disk at every commit; PostgreSQL by URL. Every
method is one transaction. What a finished request was about is no longer in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, Connection, Float, Integer, MetaData, String, Table, Text, event
from sqlalchemy.exc import SQLAlchemyError

from ray_eraser.errors import DeploymentError, InputError, RequestError, StaleEpochError, UnknownRequestError
from ray_eraser.ids import Epoch, Generation, RequestId
from ray_eraser.store import Store
from ray_eraser.unlearning.receipt import Receipt
from ray_eraser.unlearning.request import RequestState, UnlearningRequest

_metadata = MetaData()

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
    Column("idempotency_key", String(200), unique=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    # Raw ids stand here while they are needed and nowhere afterwards; the salt likewise.
    Column("payload", Text),
    Column("salt", String(64)),
    Column("received_at", Float, nullable=False),
    Column("excised_at", Float),
    Column("generation", Integer),
    Column("receipt", Text),
)


@dataclass(frozen=True)
class RequestRow:
    """A request as the ledger has it; `request` and `salt` are None once it is finished."""

    request_id: RequestId
    state: RequestState
    kind: str
    request: UnlearningRequest | None
    salt: str | None
    received_at: float
    excised_at: float | None
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
        InputError: the database cannot be opened.
    """

    def __init__(self, url: str | sa.URL) -> None:
        try:
            self._engine = sa.create_engine(url)
            if self._engine.dialect.name == "sqlite":
                event.listen(self._engine, "connect", _set_up_sqlite)
                event.listen(self._engine, "begin", _begin_immediate)
            _metadata.create_all(self._engine)
        except (SQLAlchemyError, ImportError) as error:
            raise InputError(
                f"ledger {_without_password(url)} cannot be opened ({_first_line(error)}): check unlearning.ledger"
            ) from error

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
        """Within the transaction that writes, so that nobody can take over in between."""
        newest = self._newest_epoch(connection)
        if newest != epoch:
            raise StaleEpochError("the ledger", newest, epoch)

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
    ) -> None:
        """Make a generation current, with the unfinished receipts of the requests that it carries out; all or nothing.

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
            for request_id, receipt in receipts.items():
                connection.execute(
                    _requests.update()
                    .where(_requests.c.request_id == request_id)
                    .values(generation=generation.number, receipt=json.dumps(receipt.to_dict()))
                )

    # ---- requests ------------------------------------------------------------------------------------------------------

    def receive(
        self,
        epoch: Epoch,
        request_id: RequestId,
        request: UnlearningRequest,
        salt: str,
        idempotency_key: str | None,
        at: float,
    ) -> RequestRow:
        """Record a request; from here on it cannot be lost. A known idempotency key gives the request recorded under it.

        Raises:
            RequestError: the key belongs to another request.
            StaleEpochError: another coordinator has started since. It would go on serving what this request is about.
        """
        with self._transaction() as connection:
            self._refuse_stale(connection, epoch)
            known = self._recorded(connection, idempotency_key, request)
            if known is not None:
                return known
            values = {
                "request_id": request_id,
                "idempotency_key": idempotency_key,
                "kind": request.kind,
                "state": RequestState.RECEIVED,
                "payload": request.to_json(),
                "salt": salt,
                "received_at": at,
            }
            connection.execute(_requests.insert().values(**values))
            return _request_row(connection.execute(sa.select(_requests).where(_requests.c.request_id == request_id)).one())

    def recorded(self, idempotency_key: str | None, request: UnlearningRequest) -> RequestRow | None:
        """The request that was submitted with this key before, finished or not; None where the key is new or not given.

        Raises:
            RequestError: the key belongs to another request.
        """
        with self._transaction() as connection:
            return self._recorded(connection, idempotency_key, request)

    @staticmethod
    def _recorded(connection: Connection, key: str | None, request: UnlearningRequest) -> RequestRow | None:
        if key is None:
            return None
        found = connection.execute(sa.select(_requests).where(_requests.c.idempotency_key == key)).one_or_none()
        if found is None:
            return None
        row = _request_row(found)
        # What a finished request was about is gone from the ledger; its kind is all that can still be compared.
        if row.kind != request.kind or (row.request is not None and row.request != request):
            raise RequestError(f"idempotency key {key!r} belongs to another request: choose a new key")
        return row

    def request(self, request_id: RequestId) -> RequestRow:
        """One request.

        Raises:
            UnknownRequestError: there is none of this id.
        """
        with self._transaction() as connection:
            row = connection.execute(sa.select(_requests).where(_requests.c.request_id == request_id)).one_or_none()
        if row is None:
            raise UnknownRequestError(request_id)
        return _request_row(row)

    def unfinished(self) -> list[RequestRow]:
        """All requests that are not erased yet, in the order in which they came."""
        with self._transaction() as connection:
            rows = connection.execute(
                sa.select(_requests).where(_requests.c.state != RequestState.ERASED).order_by(_requests.c.sequence)
            ).all()
        return [_request_row(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """Requests by state, every state named."""
        with self._transaction() as connection:
            rows = connection.execute(
                sa.select(_requests.c.state, sa.func.count().label("n")).group_by(_requests.c.state)
            ).all()
        return {str(state): 0 for state in RequestState} | {row.state: row.n for row in rows}

    def excised(self, requests: Sequence[RequestId], at: float) -> None:
        """Nothing that is served depends on these any more."""
        self._move(requests, RequestState.EXCISED, excised_at=at)

    def routed(self, requests: Sequence[RequestId]) -> None:
        """These make up the batch that the shards now work on."""
        self._move(requests, RequestState.ROUTED)

    def finish(self, receipts: Sequence[Receipt]) -> None:
        """Close the requests of a published and purged generation; what they were about leaves the ledger."""
        with self._transaction() as connection:
            for receipt in receipts:
                done = {"receipt": json.dumps(receipt.to_dict()), "payload": None, "salt": None}
                self._move_one(connection, receipt.request_id, RequestState.ERASED, **done)
            newest = sa.select(sa.func.max(_generations.c.number)).scalar_subquery()
            connection.execute(_generations.update().where(_generations.c.number == newest).values(to_purge="[]"))
        self._wipe()

    def _move(self, requests: Sequence[RequestId], state: RequestState, **values: Any) -> None:
        with self._transaction() as connection:
            for request_id in requests:
                self._move_one(connection, request_id, state, **values)

    @staticmethod
    def _move_one(connection: Connection, request_id: RequestId, state: RequestState, **values: Any) -> None:
        present = connection.execute(sa.select(_requests.c.state).where(_requests.c.request_id == request_id)).scalar_one()
        RequestState(present).check(request_id, state)
        connection.execute(_requests.update().where(_requests.c.request_id == request_id).values(state=state, **values))

    def _wipe(self) -> None:
        """Rows that were overwritten must not live on in SQLite's write-ahead log; freed pages are zeroed as they are freed."""
        if self._engine.dialect.name == "sqlite":
            with closing(self._engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._engine.begin() as connection:
            yield connection


def _request_row(row: Any) -> RequestRow:
    return RequestRow(
        RequestId(row.request_id),
        RequestState(row.state),
        row.kind,
        None if row.payload is None else UnlearningRequest.from_json(row.payload),
        row.salt,
        row.received_at,
        row.excised_at,
        None if row.generation is None else Generation(row.generation),
        None if row.receipt is None else Receipt.from_dict(json.loads(row.receipt)),
    )


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_immediate` says so
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail, instead of waiting, where two writers meet.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


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
