from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from ray_eraser.errors import (
    DeploymentError,
    IllegalTransitionError,
    InputError,
    RequestError,
    StaleEpochError,
    UnknownRequestError,
)
from ray_eraser.ids import RequestId
from ray_eraser.store import Store
from ray_eraser.testing import ledger_contract
from ray_eraser.testing.ledger_contract import ANN, BOB, OTHERS, LedgerContract, advance, generation, receipt_of, receive
from ray_eraser.unlearning.ledger import Ledger, default_ledger
from ray_eraser.unlearning.request import RequestState, UnlearningRequest
from ray_eraser.unlearning.work import Work

LONG_ID = "a-user-id-that-stands-nowhere-else-" + "0123456789" * 3


@pytest.fixture
def open_ledger(tmp_path):
    opened = []

    def open_it():
        opened.append(Ledger(f"sqlite:///{tmp_path}/ledger.db"))
        return opened[-1]

    yield open_it
    for ledger in opened:
        ledger.close()


class TestSqlite(LedgerContract):
    pass


def bytes_under(folder):
    return b"".join(file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file())


def begun(open_ledger):
    """A ledger that writes."""
    ledger = open_ledger()
    ledger.begin_epoch(0.0)
    return ledger


def pragma(ledger, name):
    with ledger._engine.connect() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()


def test_sqlite_writes_ahead_and_waits_for_the_disk_and_zeroes_what_it_frees(open_ledger):
    ledger = open_ledger()
    assert pragma(ledger, "journal_mode") == "wal"
    assert pragma(ledger, "synchronous") == 2  # FULL
    assert pragma(ledger, "secure_delete") == 1
    assert pragma(ledger, "busy_timeout") == 30000


def test_every_connection_is_set_up_so(open_ledger):
    ledger = open_ledger()
    with closing(ledger._engine.raw_connection()) as one, closing(ledger._engine.raw_connection()) as other:
        assert [c.cursor().execute("PRAGMA synchronous").fetchone() for c in (one, other)] == [(2,), (2,)]


@pytest.mark.parametrize("n_pairs", [1, 400], ids=["in a row", "over several pages"])
def test_after_finishing_the_raw_id_is_in_no_byte_of_the_database(open_ledger, tmp_path, n_pairs):
    ledger = begun(open_ledger)
    request = UnlearningRequest(pairs=tuple((LONG_ID, f"item {n}") for n in range(n_pairs)))
    receive(ledger, "r", request)
    receive(ledger, "other", BOB)
    advance(ledger, "r", RequestState.ROUTED)
    assert LONG_ID.encode() in bytes_under(tmp_path)
    assert ledger_contract.SALT.encode() in bytes_under(tmp_path)
    ledger.finish([receipt_of("r")])
    ledger.request(RequestId("r"))
    assert LONG_ID.encode() not in bytes_under(tmp_path)
    assert b"bob" in bytes_under(tmp_path)


def test_the_raw_id_is_gone_also_where_another_program_has_the_ledger_open(open_ledger, tmp_path):
    ledger, other = begun(open_ledger), open_ledger()
    receive(ledger, "r", UnlearningRequest(user_id=LONG_ID))
    other.unfinished()
    advance(ledger, "r", RequestState.ROUTED)
    ledger.finish([receipt_of("r")])
    assert LONG_ID.encode() not in bytes_under(tmp_path)
    assert other.request(RequestId("r")).state is RequestState.ERASED


def test_a_crash_right_after_finishing_leaves_the_raw_id_no_longer_than_until_the_next_start(open_ledger, tmp_path):
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from ray_eraser.testing.ledger_contract import *;"
        "ledger = Ledger(sys.argv[2]); ledger.begin_epoch(0.0); receive(ledger, 'r', UnlearningRequest(user_id=sys.argv[3]));"
        "advance(ledger, 'r', RequestState.ROUTED);"
        "ledger._wipe = lambda: os._exit(9); ledger.finish([receipt_of('r')])"
    )
    url = f"sqlite:///{tmp_path}/ledger.db"
    command = [sys.executable, "-c", program, str(Path(__file__).parents[1]), url, LONG_ID]
    assert subprocess.run(command, check=False).returncode == 9
    assert LONG_ID.encode() in bytes_under(tmp_path)
    ledger = open_ledger()
    assert ledger.request(RequestId("r")).state is RequestState.ERASED
    ledger.begin_epoch(1.0)
    assert LONG_ID.encode() not in bytes_under(tmp_path)


@pytest.mark.parametrize("request_id", ["nothing", "\0"])
def test_a_retry_of_an_unknown_request_is_refused_by_its_id(open_ledger, request_id):
    ledger = begun(open_ledger)
    with pytest.raises(UnknownRequestError) as refused:
        ledger.retry(RequestId(request_id))
    assert refused.value.request_id == request_id


def test_a_killed_program_loses_nothing_that_it_was_told(open_ledger, tmp_path):
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from ray_eraser.testing.ledger_contract import *;"
        "ledger = Ledger(sys.argv[2]); ledger.begin_epoch(0.0); receive(ledger, 'r', ANN, 'k'); os._exit(9)"
    )
    url = f"sqlite:///{tmp_path}/ledger.db"
    command = [sys.executable, "-c", program, str(Path(__file__).parents[1]), url]
    assert subprocess.run(command, check=False).returncode == 9
    assert [row.work for row in open_ledger().unfinished()] == [ANN]


EARLIER = (
    "CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, started_at FLOAT)",
    "CREATE TABLE generations (number INTEGER PRIMARY KEY, digest VARCHAR(64), published_at FLOAT, to_purge TEXT)",
    "CREATE TABLE requests (sequence INTEGER PRIMARY KEY, request_id VARCHAR(64), state VARCHAR(16), payload TEXT, salt TEXT)",
    "INSERT INTO requests VALUES (1, 'r', 'received', '{\"user\": 1}', '00')",
)
NOTES = "CREATE TABLE notes (name VARCHAR(64) PRIMARY KEY, text TEXT)"


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (EARLIER, "tables of its own (epochs, generations, requests) and no format"),
        ((*EARLIER, NOTES), "no format"),
        ((*EARLIER, NOTES, "INSERT INTO notes VALUES ('format', '3')"), "has format 3, and this version reads format 4"),
        ((*EARLIER, NOTES, "INSERT INTO notes VALUES ('format', '4')"), "no format"),
        (("CREATE TABLE notes (id INTEGER, body TEXT)", "INSERT INTO notes VALUES (1, 'milk')"), "(notes) and no format"),
        (("CREATE TABLE requests (url TEXT)",), "(requests) and no format"),
    ],
    ids=["earlier", "notes without a format", "another format", "a format that is not kept to", "foreign notes", "foreign"],
)
def test_a_database_with_other_tables_of_these_names_is_refused_and_left_as_it_was(tmp_path, statements, said):
    file = tmp_path / "ledger.db"
    with closing(sqlite3.connect(file)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        before = list(connection.iterdump())
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        Ledger(f"sqlite:///{file}")
    assert str(caught.value).endswith("use the version that made it, or another database")
    with closing(sqlite3.connect(file)) as connection:
        assert list(connection.iterdump()) == before


def test_a_database_that_holds_other_tables_as_well_is_no_other_ledger(open_ledger, tmp_path):
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
    receive(begun(open_ledger), "r")
    assert [row.request_id for row in open_ledger().unfinished()] == ["r"]


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "ledger.db").write_text("nothing of the kind " * 100)
    with pytest.raises(InputError, match=r"ledger sqlite:///.*cannot be opened"):
        Ledger(f"sqlite:///{tmp_path}/ledger.db")


@pytest.mark.parametrize("url", ["nonsense", "oracle-of-delphi://x", "sqlite:////no/such/folder/ledger.db"])
def test_a_url_that_leads_nowhere_is_refused_in_one_line(url):
    with pytest.raises(InputError, match=r"check unlearning\.ledger") as caught:
        Ledger(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql+nodriver", "no-scheme-at-all"])
def test_a_password_is_not_shown(scheme):
    with pytest.raises(InputError, match="host/db") as caught:
        Ledger(f"{scheme}://me:hunter2@host/db")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["plain", "with space", "per%20cent", "question?mark", "hash#tag", "ümlaut", "plus+and&"])
def test_the_ledger_lies_in_the_storage_folder_whatever_the_folder_is_called(tmp_path, name):
    folder = tmp_path / name
    ledger = Ledger(default_ledger(Store(str(folder)), "shop", must_exist=False))
    ledger.begin_epoch(1.0)
    assert (folder / "ledger.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    ledger.close()


def test_a_ledger_that_must_be_there_is_not_made(tmp_path):
    with pytest.raises(DeploymentError, match="nothing is deployed at"):
        default_ledger(Store(str(tmp_path / "none")), "shop", must_exist=True)
    assert list(tmp_path.iterdir()) == []


class AnyHistory(RuleBasedStateMachine):
    """Any order of calls, reopening and being replaced in between, against a plain dictionary."""

    names = Bundle("names")

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory(prefix="ledger")
        self.url = f"sqlite:///{self.folder.name}/ledger.db"
        self.ledger = Ledger(self.url)
        self.ledger.begin_epoch(0.0)
        self.replaced = Ledger(self.url)
        self.states: dict[str, RequestState] = {}
        self.payloads: dict[str, Work] = {}
        self.keys: dict[str, str] = {}
        self.current = 0

    @rule(target=names, work=st.sampled_from([ANN, *OTHERS]), key=st.sampled_from([None, "k", "l"]))
    def receive(self, work, key):
        name = f"r{len(self.states)}"
        owner = self.keys.get(key)
        if owner is None:
            receive(self.ledger, name, work, key)
            self.states[name], self.payloads[name] = RequestState.RECEIVED, work
            if key is not None:
                self.keys[key] = name
            return name
        if self.payloads[owner] == work:
            assert receive(self.ledger, name, work, key).request_id == owner
        else:
            with pytest.raises(RequestError):
                receive(self.ledger, name, work, key)
        return multiple()

    @rule(name=names, wanted=st.sampled_from(list(ledger_contract.MOVES)))
    def move(self, name, wanted):
        move = ledger_contract.MOVES[wanted]
        if (self.states[name], wanted) in ledger_contract.LEGAL:
            move(self.ledger, name)
            self.states[name] = wanted
        else:
            with pytest.raises(IllegalTransitionError):
                move(self.ledger, name)

    @rule(name=names)
    def retry(self, name):
        if self.states[name] is RequestState.SET_ASIDE:
            self.ledger.retry(RequestId(name))
            self.states[name] = RequestState.EXCISED
        else:
            with pytest.raises(IllegalTransitionError):
                self.ledger.retry(RequestId(name))

    @rule()
    def publish(self):
        self.current += 1
        self.ledger.publish(generation(self.current), {}, [])

    @rule()
    def be_replaced(self):
        self.replaced.close()
        self.replaced, self.ledger = self.ledger, Ledger(self.url)
        self.ledger.begin_epoch(0.0)

    @precondition(lambda self: self.replaced._epoch is not None)
    @rule(name=names, wanted=st.sampled_from(list(ledger_contract.MOVES)))
    def move_replaced(self, name, wanted):
        with pytest.raises(StaleEpochError):
            ledger_contract.MOVES[wanted](self.replaced, name)

    @precondition(lambda self: self.replaced._epoch is not None)
    @rule(write=st.sampled_from(["receive", "publish", "note", "renew", "in_force"]))
    def write_replaced(self, write):
        with pytest.raises(StaleEpochError):
            ledger_contract.WRITES[write](self.replaced)

    @rule()
    def reopen(self):
        self.ledger.close()
        self.ledger = Ledger(self.url)
        self.ledger.begin_epoch(0.0)

    @invariant()
    def the_ledger_says_what_happened(self):
        pending = {name: self.payloads[name] for name, state in self.states.items() if not state.is_final}
        assert {row.request_id: row.work for row in self.ledger.unfinished()} == pending
        assert {name: self.ledger.request(RequestId(name)).state for name in self.states} == self.states
        current = self.ledger.current()
        assert (0 if current is None else current.number) == self.current

    def teardown(self):
        self.ledger.close()
        self.replaced.close()
        self.folder.cleanup()


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=40, stateful_step_count=30)
