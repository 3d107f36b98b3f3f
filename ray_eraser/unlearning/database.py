"""The ledger's database: its tables, how it is opened, its transactions, and that nothing deleted lives on in its files.

Through SQLAlchemy Core: SQLite by default, written through to the disk at every commit; PostgreSQL by URL. Of all programs'
transactions one runs at a time.
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
"""Of the tables and of what is in them. A ledger of another format is refused."""
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
    # Who began it: deployment, machine, process. Names no user.
    Column("holder", Text, nullable=False),
    Column("lease_seconds", Float, nullable=False),
    Column("beats", Integer, nullable=False),
    Column("ended", Boolean, nullable=False),
)
GENERATIONS = Table(
    "generations",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    # Empty once the next one is finished: with the rest of the data at hand it would give away what was erased since.
    Column("digest", String(64), nullable=False),
    Column("published_at", Float, nullable=False),
    # Files of the generation before that this one superseded, until they are deleted.
    Column("to_purge", Text, nullable=False),
    # That it is current, and where the chain ends; signed. Gone with its digest, which it has in it.
    Column("standing", Text),
)
# Links of the chain that are no receipts.
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
    # Of the idempotency key, which may name a user, only a keyed hash.
    Column("key_hash", String(64), unique=True),
    # Of the key and what was asked under it: another request under the key is refused, also when the payload is gone.
    Column("work_hash", String(64)),
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
WORKS = Table(
    "works",
    METADATA,
    Column("request_id", String(64), primary_key=True),
    Column("payload", Text, nullable=False),
    Column("salt", String(64)),
)
# What must not be learned again, by keyed hash, where the operator asked for it (unlearning.suppress_days).
SUPPRESSED = Table(
    "suppressed",
    METADATA,
    Column("subject", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("until", Float, nullable=False),
)
for _secret in (WORKS.c.payload, WORKS.c.salt, GENERATIONS.c.digest, GENERATIONS.c.to_purge, GENERATIONS.c.standing):
    # PostgreSQL's statistics would quote values of the column, and keep them when the rows are gone.
    _uncounted: Any = sa.DDL(f"ALTER TABLE {_secret.table.name} ALTER COLUMN {_secret.name} SET STATISTICS 0")  # type: ignore[no-untyped-call]
    event.listen(_secret.table, "after_create", _uncounted.execute_if(dialect="postgresql"))

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


class Database:
    """An open database with the ledger's tables.

    Attributes:
        name: random, made with the tables: tells ledgers apart.
        is_closed: whether `close` was called. Nothing opens it again.

    Raises:
        InputError: it cannot be opened, or is of another format.
        LedgerError: from any method: it failed. Nothing was changed.
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
            if _is_locked(error):  # which passes, unlike a wrong URL
                raise LedgerError(_first_line(error)) from error
            raise InputError(
                f"ledger {_without_password(url)} cannot be opened ({_first_line(error)}): check unlearning.ledger"
            ) from error
        if found not in (None, _OWN_FORMAT):
            self.close()
            raise InputError(
                f"ledger {_without_password(url)} has {found}, this version reads format {_FORMAT}: "
                "use the version that made it, or another database"
            )
        self.name = self.noted("name", "")

    def close(self) -> None:
        self.is_closed = True
        self._engine.dispose()

    # ---- what is remembered beside them --------------------------------------------------------------------------------

    def noted(self, name: str, otherwise: str) -> str:
        """What stands under a name; `otherwise` where nothing does."""
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
            raise LedgerError("it was closed")
        try:
            with self._engine.begin() as connection:
                _take_turn(connection)
                yield connection
                committing = True
        except SQLAlchemyError as error:
            if committing and isinstance(error, DBAPIError) and error.connection_invalidated:
                raise LedgerError(_first_line(error), "whether it was recorded all the same is not known") from error
            raise LedgerError(_first_line(error)) from error

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
                    connection.exec_driver_sql(f"VACUUM (FULL) {WORKS.name}, {GENERATIONS.name}, {SUPPRESSED.name}")
                finally:
                    connection.exec_driver_sql(f"SET lock_timeout = '{_POSTGRESQL_SETTINGS['lock_timeout']}'")
        except SQLAlchemyError:
            return False
        return True


def _format_of(connection: Connection) -> str | None:
    """What the tables are that are there, for people; None where there are none yet."""
    inspector = sa.inspect(connection)
    there = [table.name for table in METADATA.tables.values() if inspector.has_table(table.name)]
    if not there:
        return None
    strange = f"tables of its own ({', '.join(sorted(there))}) and no format"  # an older version's, or another program's
    columns = {name: {column["name"] for column in inspector.get_columns(name)} for name in there}
    if not set(NOTES.columns.keys()) <= columns.get(NOTES.name, set()):
        return strange
    noted = connection.execute(sa.select(NOTES.c.text).where(NOTES.c.name == "format")).scalar_one_or_none()
    ours = all(columns.get(table.name) == set(table.columns.keys()) for table in METADATA.tables.values())
    return strange if noted is None or (noted == _FORMAT and not ours) else f"format {noted}"


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "postgresql":
        if url.database and not url.database.startswith((":memory:", "file:")):
            with suppress(OSError):  # it is there, or SQLite says why it cannot be; its other files get the mode of this one
                private_file(Path(url.database)).close()
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
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if _is_locked(error):
        text += "; a process that is stopped within a transaction locks it until the process continues or ends"
    return text


def _is_locked(error: Exception) -> bool:
    """Whether another process stays within a transaction of a SQLite file for longer than anybody waits."""
    return isinstance(error, OperationalError) and "database is locked" in str(error)
