"""The ledger's database: its tables, how it is opened, its transactions, and the wiping of deleted data.

It uses SQLAlchemy Core. The default is SQLite, which writes every commit through to the disk; a URL selects PostgreSQL. Only
one transaction runs at a time, across all programs.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Boolean, Column, Connection, Float, Integer, MetaData, String, Table, Text, event
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from ray_eraser.errors import InputError, LedgerError
from ray_eraser.store import private_file

log = logging.getLogger(__name__)

_FORMAT = "4"
"""Format of the tables and their content. A ledger of another format is refused."""
_OWN_FORMAT = f"format {_FORMAT}"

METADATA = MetaData()

NOTES = Table(
    "notes",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("text", Text, nullable=False),
)

EPOCHS = Table(
    "epochs",
    METADATA,
    Column("epoch", Integer, primary_key=True, autoincrement=True),
    Column("started_at", Float, nullable=False),
    # The process that began the epoch: deployment, machine, PID. Names no user.
    Column("holder", Text, nullable=False),
    Column("lease_seconds", Float, nullable=False),
    Column("beats", Integer, nullable=False),
    Column("ended", Boolean, nullable=False),
)
GENERATIONS = Table(
    "generations",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    # Emptied when the next generation is finished. With the rest of the data, the digest would reveal later erasures.
    Column("digest", String(64), nullable=False),
    Column("published_at", Float, nullable=False),
    # Superseded files of the previous generation, until they are deleted.
    Column("to_purge", Text, nullable=False),
    # Signed statement that the generation is current, and where the chain ends. It has the digest, and is deleted with it.
    Column("standing", Text),
)
# Links of the chain that are not receipts: key changes.
ROTATIONS = Table(
    "rotations",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("rotation", Text, nullable=False),
)
REQUESTS = Table(
    "requests",
    METADATA,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("request_id", String(64), nullable=False, unique=True),
    # Keyed hash of the idempotency key, because the key itself may name a user.
    Column("key_hash", String(64), unique=True),
    # Hash of the key and the work. It refuses another request under the same key, even after the payload is deleted.
    Column("work_hash", String(64)),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("priority", Integer, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("excised_at", Float),
    # Failed retrainings, the reason of the last one, and the group that is retried together. A null party joins new requests.
    Column("attempts", Integer, nullable=False),
    Column("reason", Text),
    Column("party", Integer),
    Column("generation", Integer),
    Column("receipt", Text),
    # Place of the finished receipt in the chain.
    Column("number", Integer, unique=True),
)
# Raw ids and salts are stored only here, and only until the request is finished. A separate table stays small, and PostgreSQL
# removes deleted rows only by rewriting a whole table.
WORKS = Table(
    "works",
    METADATA,
    Column("request_id", String(64), primary_key=True),
    Column("payload", Text, nullable=False),
    Column("salt", String(64)),
)
# Keyed hashes of users, items and pairs that must not be learned again, if the operator asks for it (unlearning.suppress_days).
SUPPRESSED = Table(
    "suppressed",
    METADATA,
    Column("subject", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("until", Float, nullable=False),
)
for _secret in (WORKS.c.payload, WORKS.c.salt, GENERATIONS.c.digest, GENERATIONS.c.to_purge, GENERATIONS.c.standing):
    # PostgreSQL's statistics would quote values of the column, and keep them after the rows are deleted.
    _uncounted: Any = sa.DDL(f"ALTER TABLE {_secret.table.name} ALTER COLUMN {_secret.name} SET STATISTICS 0")  # type: ignore[no-untyped-call]
    event.listen(_secret.table, "after_create", _uncounted.execute_if(dialect="postgresql"))

_WIPE_TRIES, _WIPE_SECONDS = 20, 0.05

_TURN = 0x72617965726173  # any number that no other program of the same database locks

# A program that hangs in the middle of a transaction loses its turn before the waiting programs give up.
_POSTGRESQL_SETTINGS = {"lock_timeout": "30s", "idle_in_transaction_session_timeout": "15s"}

# Defaults for libpq; the URL takes precedence. They detect a silently lost server within half a minute instead of hours.
_LIBPQ_SETTINGS = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "4",
    "tcp_user_timeout": "30000",
}


class Database:
    """An open database with the ledger's tables.

    Attributes:
        name: random name, made with the tables, that tells ledgers apart.
        is_closed: whether `close` was called. A closed database stays closed.

    Raises:
        InputError: the database cannot be opened, or has another format.
        LedgerError: from any method, if the database failed. Nothing was changed.
    """

    def __init__(self, url: str | sa.URL) -> None:
        self.is_closed = False
        try:
            self._engine = _engine(sa.engine.make_url(url))
            with self._engine.begin() as connection:
                _take_turn(connection)
                found = _format_of(connection)
                if found is None:
                    METADATA.create_all(connection)
                    self._put_note(connection, "format", _FORMAT)
                    self._put_note(connection, "name", secrets.token_hex(16))
        except (SQLAlchemyError, ImportError) as error:
            if _is_locked(error):  # a lock passes, unlike a wrong URL
                raise LedgerError(_first_line(error)) from error
            raise InputError(
                f"ledger {_without_password(url)} cannot be opened ({_first_line(error)}): check unlearning.ledger"
            ) from error
        if found not in (None, _OWN_FORMAT):
            self.close()
            raise InputError(
                f"ledger {_without_password(url)} has {found}, and this version reads format {_FORMAT}: "
                "use the version that made it, or another database"
            )
        self.name = self.noted("name", "")

    def close(self) -> None:
        self.is_closed = True
        self._engine.dispose()

    # ---- notes ---------------------------------------------------------------------------------------------------------

    def noted(self, name: str, otherwise: str) -> str:
        """The note of this name; `otherwise` if there is none."""
        with self._transaction() as connection:
            found = connection.execute(sa.select(NOTES.c.text).where(NOTES.c.name == name)).scalar_one_or_none()
        return otherwise if found is None else str(found)

    @staticmethod
    def _put_note(connection: Connection, name: str, text: str) -> None:
        connection.execute(NOTES.delete().where(NOTES.c.name == name))
        connection.execute(NOTES.insert().values(name=name, text=text))

    # ---- transactions -------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        committing = False
        if self.is_closed:
            raise LedgerError("it is closed")
        try:
            with self._engine.begin() as connection:
                _take_turn(connection)
                yield connection
                committing = True
        except SQLAlchemyError as error:
            if committing and isinstance(error, DBAPIError) and error.connection_invalidated:
                raise LedgerError(_first_line(error), "it is unknown whether the change was recorded") from error
            raise LedgerError(_first_line(error)) from error

    def _wipe(self) -> None:
        """Remove deleted and overwritten data from the database's files.

        SQLite zeroes pages as it frees them, so this empties its write-ahead log. PostgreSQL keeps old rows until a table is
        rewritten. For PostgreSQL's write-ahead log and backups see docs/decisions/0011.
        """
        wiped = self._wiped_sqlite if self._engine.dialect.name == "sqlite" else self._wiped_postgresql
        if not wiped():
            log.warning("a program is reading the ledger, so deleted data is still in its files; the next wipe tries again")

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
                # A short timeout, because later transactions queue behind this lock.
                connection.exec_driver_sql(f"SET lock_timeout = '{_WIPE_TRIES * _WIPE_SECONDS}s'")
                try:
                    # A plain VACUUM leaves the bytes in the pages.
                    connection.exec_driver_sql(f"VACUUM (FULL) {WORKS.name}, {GENERATIONS.name}, {SUPPRESSED.name}")
                finally:
                    connection.exec_driver_sql(f"SET lock_timeout = '{_POSTGRESQL_SETTINGS['lock_timeout']}'")
        except SQLAlchemyError:
            return False
        return True


def _format_of(connection: Connection) -> str | None:
    """Describe the existing tables for people; None if there are none yet."""
    inspector = sa.inspect(connection)
    there = [table.name for table in METADATA.tables.values() if inspector.has_table(table.name)]
    if not there:
        return None
    # They come from an older version or another program.
    strange = f"tables of its own ({', '.join(sorted(there))}) and no format"
    columns = {name: {column["name"] for column in inspector.get_columns(name)} for name in there}
    if not set(NOTES.columns.keys()) <= columns.get(NOTES.name, set()):
        return strange
    noted = connection.execute(sa.select(NOTES.c.text).where(NOTES.c.name == "format")).scalar_one_or_none()
    ours = all(columns.get(table.name) == set(table.columns.keys()) for table in METADATA.tables.values())
    return strange if noted is None or (noted == _FORMAT and not ours) else f"format {noted}"


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "postgresql":
        if url.database and not url.database.startswith((":memory:", "file:")):
            with suppress(OSError):  # if this fails, SQLite opens the file or says why not; its other files copy the mode
                private_file(Path(url.database)).close()
        engine = sa.create_engine(url, hide_parameters=True)  # keeps users' ids out of errors
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _set_up_sqlite)
            event.listen(engine, "begin", _begin_immediate)
        return engine
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")  # SQLAlchemy's default driver depends on its version
    if url.get_driver_name().startswith("psycopg"):
        url = url.set(query={**_LIBPQ_SETTINGS, **url.query})
    # Read committed, whatever the server's default: each statement sees everything committed before it. A stricter level would
    # freeze the view before the transaction waits for its turn, and would miss the epoch that another coordinator began.
    # Pre-ping replaces connections that died with the server.
    engine = sa.create_engine(url, hide_parameters=True, isolation_level="READ COMMITTED", pool_pre_ping=True)
    event.listen(engine, "connect", _set_up_postgresql)
    return engine


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # `_begin_immediate` begins the transactions
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    # Otherwise a transaction that reads before it writes would fail instead of waiting for another writer.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _set_up_postgresql(connection: Any, _record: Any) -> None:
    with closing(connection.cursor()) as cursor:
        for name, value in _POSTGRESQL_SETTINGS.items():
            cursor.execute(f"SET {name} = '{value}'")
        # `off` is the only setting under which a commit does not wait for the disk. A promise needs the disk.
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
    connection.commit()


def _take_turn(connection: Connection) -> None:
    """Allow one transaction at a time, from first statement to commit. PostgreSQL's counterpart to BEGIN IMMEDIATE."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_TURN)))


def _without_password(url: str | sa.URL) -> str:
    try:
        return sa.engine.make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        scheme, _, rest = str(url).partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}" if rest else scheme


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if _is_locked(error):
        text += "; a process suspended within a transaction locks it until the process continues or ends"
    return text


def _is_locked(error: Exception) -> bool:
    """Whether another process has kept a SQLite file locked for longer than the busy timeout."""
    return isinstance(error, OperationalError) and "database is locked" in str(error)
