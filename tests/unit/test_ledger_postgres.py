"""The ledger on a PostgreSQL server of this test run's own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from conftest import Deployments, audited, digest_of

from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import HeldError, InputError, LedgerError, RayEraserError, StaleEpochError, UnknownIdError
from ray_eraser.force import Holder
from ray_eraser.ids import RawId, RequestId
from ray_eraser.pool import LocalShardPool
from ray_eraser.runtime import actors, operating
from ray_eraser.runtime.actors import Failed
from ray_eraser.testing import ledger_contract
from ray_eraser.testing.ledger_contract import (
    BOB,
    NEW_EPOCH,
    LedgerContract,
    OpenLedger,
    advance,
    generation,
    receipt_of,
    receive,
)
from ray_eraser.unlearning import database
from ray_eraser.unlearning.audit import Erased
from ray_eraser.unlearning.ledger import Ledger
from ray_eraser.unlearning.request import RequestState, UnlearningRequest

pytestmark = pytest.mark.postgres

LONG_ID = "a-user-id-that-stands-nowhere-else-" + "0123456789" * 3
STEPS = ("received", "excised", "routed", "retrained", "aggregated", "written", "published", "purged", "finished")


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server that listens on a socket in its own folder and nowhere else."""

    folder: Path
    binaries: Path
    user: str | None

    def run(self, program: str, *arguments: str) -> None:
        # Its output goes to a file: the server would hold a pipe open for as long as it lives.
        with (self.folder / f"{program}.out").open("w+") as output:
            done = subprocess.run(
                [self.binaries / program, "-D", self.folder / "data", *arguments],
                user=self.user,
                group=None if self.user is None else pwd.getpwnam(self.user).pw_gid,
                extra_groups=None if self.user is None else [],
                cwd=self.folder,
                env={"PATH": os.defpath, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=60,
                check=False,
            )
            output.seek(0)
            assert done.returncode == 0, output.read()

    def start(self) -> None:
        # No power is cut here: what was written need not reach the disk.
        settings = {"listen_addresses": "", "unix_socket_directories": self.folder, "autovacuum": "off", "fsync": "off"}
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        self.run("pg_ctl", "start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def stop(self, mode: str) -> None:
        self.run("pg_ctl", "stop", "-w", "-m", mode)

    def url(self, schema: str = "public", *settings: str) -> str:
        options = " ".join(f"-c {setting}" for setting in (f"search_path={schema}", *settings))
        query = {"host": str(self.folder), "options": options}
        return sa.URL.create("postgresql", "tester", database="postgres", query=query).render_as_string()

    def execute(self, statement: str) -> None:
        engine = sa.create_engine(self.url().replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    def bytes_under(self, name: str) -> bytes:
        """Of all files of a folder, as a thief of the disk would see them."""
        self.execute("CHECKPOINT")
        return b"".join(file.read_bytes() for file in sorted((self.folder / "data" / name).rglob("*")) if file.is_file())


def _binaries() -> Path | None:
    """Where the newest server's programs are."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
    if found := shutil.which("initdb"):
        folders.append(Path(found).resolve().parent)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'ray-eraser[postgres]'", exc_type=ImportError)
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server here: install Debian's postgresql, or put initdb and pg_ctl on PATH")
    user = None
    if os.geteuid() == 0:  # whom the server refuses
        user = "postgres"
        try:
            owner = pwd.getpwnam(user)
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    # A short path, because a socket lies in it and theirs are limited.
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    if user is not None:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    server = Server(folder, binaries, user)
    try:
        server.run("initdb", "--username=tester", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")
        server.start()
        yield server
        server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def schema(server: Server) -> Iterator[str]:
    """A place for one test's tables."""
    name = f"s{uuid.uuid4().hex}"
    server.execute(f"CREATE SCHEMA {name}")
    yield name
    server.execute(f"DROP SCHEMA {name} CASCADE")


@pytest.fixture
def open_ledger(server: Server, schema: str) -> Iterator[OpenLedger]:
    opened = []

    def open_it(*settings: str) -> Ledger:
        opened.append(Ledger(server.url(schema, *settings)))
        return opened[-1]

    yield open_it
    for ledger in opened:
        ledger.close()


class TestPostgresql(LedgerContract):
    pass


def shown(ledger: Ledger, setting: str) -> str:
    with ledger._engine.connect() as connection:
        return connection.exec_driver_sql(f"SHOW {setting}").scalar_one()


def begun(open_ledger: OpenLedger) -> Ledger:
    """A ledger that writes."""
    ledger = open_ledger()
    ledger.begin_epoch(0.0)
    return ledger


def begin_two_epochs(ledger: Ledger, in_between: Callable[[], None]) -> None:
    """In one transaction."""
    with ledger._transaction() as connection:
        connection.execute(database.EPOCHS.insert().values(**NEW_EPOCH))
        in_between()
        connection.execute(database.EPOCHS.insert().values(**NEW_EPOCH))


# ---- taking turns


def test_several_programs_that_open_a_new_ledger_at_once_open_the_same(open_ledger):
    with ThreadPoolExecutor(4) as threads:
        ledgers = list(threads.map(lambda _: open_ledger(), range(4)))
    assert len({ledger.name for ledger in ledgers}) == 1


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_server_with_a_stricter_default_does_not_hide_who_has_taken_over(open_ledger, level):
    setting = f"default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"
    first, second = open_ledger(setting), open_ledger(setting)
    assert shown(first, "transaction_isolation") == "read committed"
    first.begin_epoch(1.0)
    with ThreadPoolExecutor(1) as threads:
        with second._transaction() as connection:
            connection.execute(database.EPOCHS.insert().values(**NEW_EPOCH))
            publishing = threads.submit(first.publish, generation(1), {}, [])
            time.sleep(0.2)
        with pytest.raises(StaleEpochError):
            publishing.result(10)


def test_who_hangs_in_the_middle_loses_its_turn(open_ledger, monkeypatch):
    monkeypatch.setitem(database._POSTGRESQL_SETTINGS, "idle_in_transaction_session_timeout", "300ms")
    hanging, other = open_ledger(), open_ledger()
    begun = []
    with pytest.raises(LedgerError):
        begin_two_epochs(hanging, lambda: begun.append(other.begin_epoch(2.0)))  # which waits until the server gives it up
    assert hanging.open_epochs()[-1].epoch == begun[0]


def test_a_turn_that_does_not_come_is_said_to(open_ledger, monkeypatch):
    monkeypatch.setitem(database._POSTGRESQL_SETTINGS, "lock_timeout", "300ms")
    first, second = open_ledger(), open_ledger()
    with first._transaction(), pytest.raises(LedgerError, match=r"lock timeout.*nothing was recorded"):
        second.begin_epoch(1.0)
    second.begin_epoch(1.0)


# ---- durability


@pytest.mark.parametrize(("given", "used"), [("off", "on"), ("on", "on"), ("remote_apply", "remote_apply")])
def test_a_commit_waits_for_the_disk(open_ledger, given, used):
    assert shown(open_ledger(f"synchronous_commit={given}"), "synchronous_commit") == used


def test_a_server_that_goes_away_is_said_to_and_used_again_when_it_is_back(server, open_ledger):
    ledger = open_ledger()
    epoch = ledger.begin_epoch(1.0)
    receive(ledger, "r", key="k")
    server.stop("immediate")
    try:
        for call in (lambda: receive(ledger, "s"), ledger.unfinished, lambda: ledger.begin_epoch(2.0)):
            with pytest.raises(LedgerError, match="nothing was recorded: check its disk or server") as caught:
                call()
            assert "\n" not in str(caught.value)
    finally:
        server.start()
    assert [row.request_id for row in ledger.unfinished()] == ["r"]
    assert ledger.open_epochs()[-1].epoch == epoch
    assert receive(ledger, "again", key="k").request_id == "r"


def test_a_server_that_was_started_anew_is_not_noticed(server, open_ledger):
    ledger = begun(open_ledger)
    receive(ledger, "r")
    server.stop("fast")
    server.start()
    assert [row.request_id for row in ledger.unfinished()] == ["r"]


def test_a_server_that_stops_within_a_transaction_has_recorded_nothing(server, open_ledger):
    ledger = open_ledger()
    ledger.begin_epoch(1.0)
    try:
        with pytest.raises(LedgerError, match="nothing was recorded"):
            begin_two_epochs(ledger, lambda: server.stop("immediate"))
    finally:
        server.start()
    assert ledger.open_epochs()[-1].epoch == 1


def test_a_commit_without_an_answer_is_not_said_to_have_recorded_nothing(server, open_ledger):
    ledger = open_ledger()
    sa.event.listen(ledger._engine, "commit", lambda _: server.stop("immediate"), once=True)
    try:
        with pytest.raises(LedgerError, match="it is unknown whether the change was recorded"):
            ledger.begin_epoch(1.0)
    finally:
        server.start()
    assert ledger.begin_epoch(2.0) >= 1


# ---- what is left behind


@pytest.mark.parametrize("n_pairs", [1, 4000], ids=["in a row", "out of line"])
def test_after_finishing_the_raw_id_is_in_no_byte_of_the_tables(server, open_ledger, n_pairs):
    ledger = begun(open_ledger)
    # Pairs that differ, or they would be compressed to where nobody finds them.
    request = UnlearningRequest(pairs=tuple((LONG_ID if n == 0 else uuid.uuid4().hex, "item") for n in range(n_pairs)))
    receive(ledger, "other", BOB)
    receive(ledger, "r", request)  # last: what comes after a deleted row may be moved over it
    advance(ledger, "r", RequestState.ROUTED)
    if n_pairs == 1:  # else it is compressed
        assert LONG_ID.encode() in server.bytes_under("base")
    ledger.finish([receipt_of("r")])
    left = server.bytes_under("base")
    assert LONG_ID.encode() not in left
    assert request.pairs[-1][0].encode() not in left
    assert b"bob" in left
    assert ledger.request(RequestId("other")).salt == ledger_contract.SALT


def test_the_servers_statistics_quote_no_raw_id(server, schema, open_ledger):
    ledger = begun(open_ledger)
    for n in range(50):
        receive(ledger, f"r{n}", UnlearningRequest(user_id=LONG_ID if n % 2 else f"{LONG_ID}{n}"))
    server.execute(f"ANALYZE {schema}.works")
    for n in range(50):
        advance(ledger, f"r{n}", RequestState.ROUTED)
    ledger.finish([receipt_of(f"r{n}") for n in range(50)])
    assert LONG_ID.encode() not in server.bytes_under("base")


def test_after_finishing_the_digest_of_a_superseded_generation_is_in_no_byte_of_the_tables(server, schema, open_ledger):
    ledger = open_ledger()
    ledger.begin_epoch(1.0)
    old, new = (replace(generation(number), digest=uuid.uuid4().hex * 2) for number in (1, 2))
    ledger.publish(old, {}, [])
    receive(ledger, "r")
    advance(ledger, "r", RequestState.ROUTED)
    ledger.publish(new, {RequestId("r"): receipt_of("r")}, [RequestId("r")])
    server.execute(f"ANALYZE {schema}.generations")
    assert old.digest.encode() in server.bytes_under("base")
    ledger.finish([receipt_of("r")])
    assert old.digest.encode() not in server.bytes_under("base")
    assert new.digest.encode() in server.bytes_under("base")


def test_the_servers_write_ahead_log_is_not_the_ledgers_to_wipe(server, open_ledger):
    """As docs/decisions/0011 says. If this fails, more is forgotten than promised."""
    ledger = begun(open_ledger)
    receive(ledger, "r", UnlearningRequest(user_id=f"{LONG_ID}-in-the-log"))
    advance(ledger, "r", RequestState.ERASED)
    assert f"{LONG_ID}-in-the-log".encode() in server.bytes_under("pg_wal")


def test_a_reader_in_the_way_holds_up_no_request_and_the_next_start_wipes(server, schema, open_ledger, caplog):
    ledger = begun(open_ledger)
    receive(ledger, "r", UnlearningRequest(user_id=LONG_ID))
    advance(ledger, "r", RequestState.ROUTED)
    engine = sa.create_engine(server.url(schema).replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as reader:  # a backup, say
        reader.exec_driver_sql("SELECT count(*) FROM works")
        ledger.finish([receipt_of("r")])
        assert ledger.request(RequestId("r")).state is RequestState.ERASED
        assert "deleted data is still in its files" in caplog.text
    engine.dispose()
    assert LONG_ID.encode() in server.bytes_under("base")
    ledger.begin_epoch(1.0)
    assert LONG_ID.encode() not in server.bytes_under("base")
    assert shown(ledger, "lock_timeout") == "30s"


# ---- opening


def test_a_server_that_is_not_there_is_said_to_without_the_password(server):
    with pytest.raises(InputError, match=r"check unlearning\.ledger") as caught:
        Ledger(f"postgresql://me:hunter2@/db?host={server.folder}/nowhere")
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- a whole deployment


class Killed(BaseException):
    """Not an Exception: nothing in the way may catch it."""


def at(step: str, act: Callable[[], None]) -> Callable[[str], None]:
    def on_step(name: str) -> None:
        if name == step:
            act()

    return on_step


def die() -> None:
    raise Killed


def carried_out(coordinator: Coordinator, user: RawId) -> None:
    coordinator.submit(UnlearningRequest(user_id=user), "key")
    coordinator.process_pending()


@pytest.mark.parametrize("step", STEPS)
def test_a_deployment_with_its_ledger_there_is_killed_after_any_step_and_ends_where_it_would_have(
    server: Server, schema: str, deployments: Deployments, trained: Path, tiny: Dataset, tiny_config: EraserConfig, step: str
) -> None:
    user = tiny.users.ids[8]
    undisturbed = deployments.copy(trained, "undisturbed")
    carried_out(undisturbed, user)

    url = server.url(schema)
    first = deployments.fit("killed", tiny_config, tiny, ledger_url=url)
    first._on_step = at(step, die)
    with pytest.raises(Killed):
        carried_out(first, user)
    second = deployments.open("killed", ledger_url=url)
    again = second.submit(UnlearningRequest(user_id=user), "key")
    second.process_pending()

    assert digest_of(second) == digest_of(undisturbed)
    assert second.describe().requests == undisturbed.describe().requests
    assert second.receipt(again.request_id) is not None
    assert audited(second, Erased(user_ids=(user,))).exact
    assert not (Path(deployments.path("killed")) / "ledger.db").exists()


@pytest.mark.parametrize("step", ["routed", "aggregated", "written", "published", "purged"])
def test_a_deployment_whose_server_goes_away_goes_on_when_it_is_back(
    server: Server, schema: str, deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig, step: str
) -> None:
    user = tiny.users.ids[8]
    stopping = at(step, lambda: server.stop("immediate"))
    coordinator = deployments.fit("away", tiny_config, tiny, ledger_url=server.url(schema))
    coordinator._on_step = stopping
    asked = coordinator.submit(UnlearningRequest(user_id=user))
    try:
        with pytest.raises(LedgerError):
            coordinator.process_pending()
        with pytest.raises(LedgerError):
            coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[9]))
        with pytest.raises(UnknownIdError):
            coordinator.recommend(user)
        assert coordinator.recommend(tiny.users.ids[9])
    finally:
        server.start()
    coordinator._on_step = lambda _: None
    coordinator.process_pending()
    receipt = coordinator.receipt(asked.request_id)
    assert receipt is not None
    assert receipt.generation == 2
    assert coordinator.describe().requests["erased"] == 1
    assert audited(coordinator, Erased(user_ids=(user,))).exact


def test_two_coordinators_that_start_at_once_leave_one_that_may_receive(
    server: Server, schema: str, deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig
) -> None:
    url = server.url(schema)
    deployments.fit("shared", tiny_config, tiny, ledger_url=url)
    both = threading.Barrier(2)

    def start(user: RawId) -> bool:
        both.wait(60)
        try:
            coordinator = deployments.open("shared", ledger_url=url)
        except StaleEpochError:
            return False
        finally:
            both.wait(60)
        try:
            coordinator.submit(UnlearningRequest(user_id=user))
        except StaleEpochError:
            return False
        coordinator.process_pending()
        return True

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(start, tiny.users.ids[8:10])) == [False, True]
    third = deployments.open("shared", ledger_url=url)
    assert third.describe().requests["erased"] == 1
    assert audited(third).exact


def error_of(answer: Any) -> RayEraserError:
    """The error that a service gave as a value."""
    assert isinstance(answer, Failed), answer
    return answer.error


def until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_so()


def test_a_coordinators_process_waits_for_the_server_and_stands_by_while_another_is_in_force(
    server: Server, schema: str, deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig, monkeypatch
) -> None:
    def local_pool(_deployment: str, place: str, *_actors: Any, **_hooks: Any) -> LocalShardPool:
        return LocalShardPool(place, tiny_config)

    monkeypatch.setattr(actors, "RayShardPool", local_pool)
    monkeypatch.setattr(operating, "_ray_address", lambda: "")  # other tests of this process may have a Ray
    monkeypatch.setattr(operating, "_RETRY_SECONDS", 0.1)
    monkeypatch.setattr(actors.logs, "write_json", lambda **_: None)  # this process has other tests to log for
    url, user = server.url(schema), tiny.users.ids[8]
    deployments.fit("early", tiny_config, tiny, ledger_url=url).submit(UnlearningRequest(user_id=user))
    server.stop("immediate")
    try:
        service = actors.CoordinatorService("early", deployments.path("early"), None, url)
        assert "cannot be opened" in str(error_of(service.identity()))
    finally:
        server.start()
    ledger = Ledger(url)
    until(lambda: ledger.counts()["erased"])
    assert ledger.counts()["erased"] == 1
    assert isinstance(error_of(service.recommend(user, 5)), UnknownIdError)

    former = service._opened()
    epoch = ledger.begin_epoch(1.0, Holder("early", "afar", "another", 7, "1", "a token").to_json(), 3600.0)
    assert epoch is not None
    assert isinstance(error_of(service.submit(UnlearningRequest(user_id=tiny.users.ids[9]), None, 0)), StaleEpochError)
    until(lambda: service._operation._coordinator is None)
    assert isinstance(error_of(service.recommend(tiny.users.ids[9], 5)), StaleEpochError)
    until(lambda: ledger.renew() or isinstance(error_of(service.identity()), HeldError))
    assert "deployment 'early' on afar (process 7)" in str(error_of(service.identity()))

    ledger.end_epochs([epoch])
    ledger.close()
    until(lambda: service._operation._coordinator is not None)
    assert service.recommend(tiny.users.ids[9], 5)
    present = service._opened()
    service.close()
    until(lambda: not any(thread.name == "process-pending" for thread in threading.enumerate()))
    for coordinator in (former, present):  # its threads may have asked the ledger once more
        coordinator.close()
