from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.data.dataset import Dataset
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import InputError
from ray_eraser.store import Store
from ray_eraser.unlearning import residue
from ray_eraser.unlearning.audit import Erased
from ray_eraser.unlearning.request import UnlearningRequest
from ray_eraser.unlearning.residue import ResidueReport, is_distinctive, ledger_files, scan

ANN = "ann@example.org"
"""A distinctive id; 42 is none."""


@pytest.fixture
def empty(tmp_path) -> Store:
    """A storage path with nothing in it."""
    (tmp_path / "empty").mkdir()
    return Store(str(tmp_path / "empty"))


@pytest.fixture
def logs(tmp_path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def places(report: ResidueReport) -> list[tuple[str, str, int, str, int]]:
    return [(found.file, found.kind, found.position, found.where, found.count) for found in report.findings]


def found_in(text: str | bytes, erased: Erased, store: Store, logs: Path) -> set[tuple[str, int]]:
    (logs / "worker.log").write_bytes(text.encode() if isinstance(text, str) else text)
    return {(found.kind, found.position) for found in scan(store, [], [logs], erased).findings}


# After an erasure.


def renamed(dataset: Dataset, user, item) -> Dataset:
    users = Vocabulary("user", tuple(user(raw) for raw in dataset.users.ids))
    items = Vocabulary("item", tuple(item(raw) for raw in dataset.items.ids))
    return Dataset(dataset.name, users, items, dataset.train, dataset.valid, dataset.test)


KINDS = {
    "small integers": (lambda raw: raw - 1000, lambda raw: raw),
    "long integers": (lambda raw: raw + 10**12, lambda raw: raw + 10**11),
    "short texts": (lambda raw: f"u{raw - 1000}", lambda raw: f"i{raw}"),
    "long texts": (lambda raw: f"user-{raw}@example.org", lambda raw: f"artículo:{raw}/«é»"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_erasure_leaves_nothing_on_disk(kind, tiny, tiny_config, deployments):
    dataset = renamed(tiny, *KINDS[kind])
    coordinator = deployments.fit("d", tiny_config, dataset)
    users, items = dataset.users.ids, dataset.items.ids
    of_last = dataset.train.of_users(np.array([len(users) - 1])).items
    pairs = tuple((users[-1], item) for item in dataset.items.raw(of_last) if item not in items[5:8])
    erased = Erased(users[3:30], items[5:8], pairs)
    everybody = {("user", n) for n in range(27)} | {("item", n) for n in range(3)}

    def found() -> set[tuple[str, int]]:
        report = scan(deployments.store("d"), [], [], erased)
        assert report.unreadable == ()
        return {(finding.kind, finding.position) for finding in report.findings}

    assert found() == everybody
    for request in (
        *(UnlearningRequest(user_id=raw) for raw in erased.user_ids),
        *(UnlearningRequest(item_id=raw) for raw in erased.item_ids),
        UnlearningRequest(pairs=erased.pairs),
    ):
        coordinator.submit(request)
    assert found() == everybody | {("pair", n) for n in range(len(pairs))}  # accepted, and not erased yet
    coordinator.process_pending()
    assert found() == set()
    coordinator.close()
    assert found() == set()


def test_what_fills_several_pages_of_the_ledger_leaves_it_too(tiny, tiny_config, deployments):
    dataset = renamed(tiny, lambda raw: f"user-{raw}-" + "x" * 900, lambda raw: f"item-{raw}-" + "y" * 500)
    coordinator = deployments.fit("d", tiny_config, dataset)
    row = np.array([7])
    user = dataset.users.ids[7]
    pairs = tuple((user, item) for item in dataset.items.raw(dataset.train.of_users(row).items))
    assert sum(len(item) + len(user) for _, item in pairs) > 2 * 4096
    coordinator.submit(UnlearningRequest(pairs=pairs))
    erased = Erased(pairs=pairs)
    assert scan(deployments.store("d"), [], [], erased).findings
    coordinator.process_pending()
    assert scan(deployments.store("d"), [], [], erased).clean


# Planted.


@pytest.fixture
def planted(trained, tmp_path) -> Path:
    """A deployment to plant something in; its users are 1000 to 1059, its items 1 to 40."""
    return shutil.copytree(trained, tmp_path / "planted")


def test_an_id_in_a_vocabulary_is_found_by_column_and_row(planted):
    report = scan(Store(str(planted)), [], [], Erased(user_ids=("1003", 1004, 42), item_ids=(7,)))
    users, items = (next((planted / "vocabulary").glob(f"{kind}s-*")) for kind in ("user", "item"))
    assert places(report) == [
        (f"vocabulary/{items.name}", "item", 0, "column id, row 6", 1),
        (f"vocabulary/{items.name}", "item", 0, "column key (the hash of its id), row 6", 1),
        (f"vocabulary/{users.name}", "user", 0, "column id, row 3", 1),
        (f"vocabulary/{users.name}", "user", 1, "column id, row 4", 1),
    ]
    assert not report.clean


def test_the_keyed_hash_of_an_erased_item_is_found_where_its_id_is_gone(planted):
    (path,) = (planted / "vocabulary").glob("items-*")
    table = pq.read_table(path)
    gone = pa.array([None if raw == 7 else raw for raw in table["id"].to_pylist()], table["id"].type)
    pq.write_table(table.set_column(0, "id", gone), path)
    (found,) = scan(Store(str(planted)), [], [], Erased(item_ids=(7,))).findings
    assert found.where == "column key (the hash of its id), row 6"


def test_row_numbers_are_no_ids(planted):
    report = scan(Store(str(planted)), [], [], Erased(tuple(range(60)), (0, *range(41, 60))))
    assert report.clean
    assert report.structured_only == 80


def test_an_id_in_a_vocabulary_that_a_crash_left_is_found(planted):
    table = pa.table({"id": pa.array([ANN, "bob"])})
    pq.write_table(table, planted / "vocabulary" / f"users-{'0' * 64}.parquet.partial-1", compression="zstd")
    (found,) = [found for found in scan(Store(str(planted)), [], [], Erased((ANN,))).findings if "row" in found.where]
    assert found.where == "column id, row 0"


def test_an_unfinished_vocabulary_is_named_as_one_that_could_not_be_searched(planted):
    path = planted / "vocabulary" / f"users-{'0' * 64}.parquet.partial-1"
    pq.write_table(pa.table({"id": pa.array([f"user-{n}@example.org" for n in range(5000)])}), path, compression="zstd")
    path.write_bytes(path.read_bytes()[:-100])
    report = scan(Store(str(planted)), [], [], Erased((ANN,)))
    assert report.findings == ()
    assert [line.partition(":")[2] for line in report.unreadable] == [
        " is damaged Parquet and could not be searched within: delete it, or read it with another tool"
    ]
    assert not report.clean


def test_an_id_in_any_other_file_of_a_store_is_found(planted):
    (planted / "shards" / "0" / "notes.txt.partial-3").write_text(f"about {ANN}\n")
    found = scan(Store(str(planted)), [], [], Erased((ANN,)))
    assert places(found) == [("shards/0/notes.txt.partial-3", "user", 0, "byte 6", 1)]


def test_an_id_that_is_part_of_another_one_in_a_vocabulary_is_not_found(tmp_path):
    store = Store(str(tmp_path / "s"))
    store.write_vocabulary(Vocabulary("user", ("ann-smith", "ann-smith-2", "joann-smith")))
    store.write_vocabulary(Vocabulary("item", ("thing-1", "the ann-smith thing")), np.arange(2, dtype=np.uint64))
    assert scan(store, [], [], Erased(("ann-smith-3", "ann-smit", "smith-2"), ("thing-", "ann-smith-2"))).clean
    assert len(scan(store, [], [], Erased(("ann-smith",))).findings) >= 1


def write_ledger(path: Path, payload: str | None, key: str | None = None, *, erase: bool = False) -> sqlite3.Connection:
    """A ledger's table with one row; an erased one stays in a freed page."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA secure_delete=OFF")
    connection.execute("CREATE TABLE requests (request_id TEXT, idempotency_key TEXT, kind TEXT, state TEXT, payload TEXT)")
    row = "5" * 32, key, "user", "received", payload
    connection.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", row)
    connection.commit()
    if erase:
        connection.execute("DELETE FROM requests")
        connection.commit()
    return connection


@pytest.mark.parametrize(("raw", "payload"), [(ANN, f'{{"user": "{ANN}"}}'), (42, '{"user": 42}'), ("42", '{"user": "42"}')])
def test_an_id_in_the_write_ahead_log_is_found(empty, tmp_path, raw, payload):
    with closing(write_ledger(tmp_path / "l.db", payload)):
        report = scan(empty, [tmp_path / "l.db"], [], Erased((raw,)))
    assert {found.file for found in report.findings} == {str(tmp_path / "l.db-wal")}
    assert report.findings[0].where.startswith("byte ")


@pytest.mark.parametrize(("raw", "payload"), [(ANN, f'{{"user": "{ANN}"}}'), (42, '{"user": 42}')])
def test_an_id_in_a_freed_page_is_found(empty, tmp_path, raw, payload):
    write_ledger(tmp_path / "l.db", payload, erase=True).close()
    with closing(sqlite3.connect(tmp_path / "l.db")) as connection:
        assert connection.execute("SELECT count(*) FROM requests").fetchone() == (0,)
    report = scan(empty, [tmp_path / "l.db"], [], Erased((raw,)))
    assert [(found.file, found.where.split()[0]) for found in report.findings] == [(str(tmp_path / "l.db"), "byte")]


@pytest.mark.parametrize("raw", [ANN, "ann", 42, "42"])
def test_an_id_that_joins_on_to_its_neighbours_in_a_page_is_found_in_its_row(empty, tmp_path, raw):
    """In the file stands 5555...42userreceived: 42 is no word there."""
    write_ledger(tmp_path / "l.db", None, key=str(raw)).close()
    report = scan(empty, [tmp_path / "l.db"], [], Erased((raw,)))
    assert [found.where for found in report.findings] == ["table requests, column idempotency_key, row 0"]


def test_a_search_changes_no_file_and_makes_none(planted):
    before = {path: path.read_bytes() for path in planted.rglob("*") if path.is_file()}
    scan(Store(str(planted)), [], [], Erased((ANN,)))
    assert {path: path.read_bytes() for path in planted.rglob("*") if path.is_file()} == before


def test_a_ledger_is_found_by_its_url(tmp_path):
    assert ledger_files("") == []
    assert ledger_files(f"sqlite:///{tmp_path}/l.db") == [tmp_path / "l.db"]
    assert ledger_files("postgresql://me:secret@host/db") == []
    with pytest.raises(InputError, match="cannot be understood") as caught:
        ledger_files("secret")
    assert "secret" not in str(caught.value)


# Logs: when some bytes stand for an id.


@pytest.mark.parametrize(
    ("raw", "distinctive"),
    [
        ("annika", True),
        ("annik", False),
        ("user-1", True),
        (123456789, True),
        (12345678, False),
        ("12345678", False),
        (-12345678, False),
    ],
)
def test_an_id_is_distinctive_from_a_length_on_that_depends_on_whether_it_is_a_number(raw, distinctive):
    assert is_distinctive(raw) is distinctive


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        (f"erasing {ANN}.", ANN),
        (f"GET /recommend/{ANN}?n=5", ANN),
        (f"\0\0\0{ANN}\0", ANN),
        (ANN, ANN),
        ('{"user": "na\\u00efve-\\"q\\""}', 'naïve-"q"'),
        ('{"user": "naïve-\\"q\\""}', 'naïve-"q"'),
        ("no user 'two\\nlines' here", "two\nlines"),
        ("=cmd|' /C calc'!A0", "=cmd|' /C calc'!A0"),
        ("id 1234567890, done", 1234567890),
        ("1234567890.", "1234567890"),
    ],
)
def test_a_distinctive_id_is_found_as_a_whole_word_wherever_it_stands(text, raw, empty, logs):
    assert found_in(text, Erased(item_ids=(raw,)), empty, logs) == {("item", 0)}


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("annikas", "annika"),
        ("joannika", "annika"),
        ("annika_2", "annika"),
        ("12:00:01.123456789", 123456789),
        ("3.123456789e5", 123456789),
        ("123456789.5", 123456789),
        ("deadbeef123456789", 123456789),
        ("ANNIKA", "annika"),
    ],
)
def test_a_part_of_a_word_or_of_a_fraction_is_no_id(text, raw, empty, logs):
    assert found_in(text, Erased((raw,)), empty, logs) == set()


NAMED = [
    '{"user": 42}',
    '{"user":42}',
    '{"user_id": 42, "x": 1}',
    '{"user": "42"}',
    "{'user_id': '42'}",
    "user=42 done",
    "user_id=42.",
    "--user-id 42",
    '["--user-id", "42"]',
    "'--user-id', '42'",
    "no user '42' here: it was never learned from",
    "UnknownIdError('user', '42')",
    "userId: 42",
    '[parameters: ("abc", None, "user", \'{"user": 42}\')]',
    '{"pairs": [[42, 7]]}',
    '{"pairs": [[1, 2], [42, 7]]}',
    '{"pairs":[[1,2],["42",7]]}',
    "pairs=((42, 7),)",
    "the first is (42, 7): leave them out",
    "the first is ('42', 'x'): leave them out",
]
ELSEWHERE = [
    "took 42 s",
    "[42, 7]",
    '"shards_touched": [42, 7]',
    "torch.Size([42, 7])",
    "user 42 of 100",
    "n_users=42",
    '"users": 42',
    "2042-01-01 00:42:42.42",
    "pid=42",
    '"42"',
    "superuser=42",
    '{"user": 421}',
    '{"user": -42}',
    '{"item": 42}',
    "[[7, 42]]",
    "the first is (7, 42)",
]


@pytest.mark.parametrize("text", NAMED)
def test_a_short_id_is_found_where_its_place_says_what_it_is(text, empty, logs):
    assert found_in(text, Erased((42,)), empty, logs) == {("user", 0)}
    assert found_in(text, Erased(("42",)), empty, logs) == {("user", 0)}
    assert found_in(text, Erased(item_ids=(42,)), empty, logs) == set()


@pytest.mark.parametrize("text", ELSEWHERE)
def test_the_same_digits_elsewhere_are_none(text, empty, logs):
    assert found_in(text, Erased((42,)), empty, logs) == set()


@pytest.mark.parametrize("text", ['{"item": "i7"}', "--item-id i7", "no item 'i7' here", '{"pairs": [["ann", "i7"]]}'])
def test_a_short_text_is_found_in_the_same_places(text, empty, logs):
    assert found_in(text, Erased(item_ids=("i7",)), empty, logs) == {("item", 0)}
    assert found_in(text.replace("i7", "i77"), Erased(item_ids=("i7",)), empty, logs) == set()


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ('{"pairs": [[42, 7]]}', (42, 7)),
        ('{"pairs": [[42, 7]]}', ("42", "7")),
        ('["ann", 7]', ("ann", 7)),
        ("('ann', 'thing')", ("ann", "thing")),
        (f"{ANN},7\n", (ANN, 7)),
        (f"{ANN}\t7\n", (ANN, 7)),
        ('the first is ("it\'s", 7)', ("it's", 7)),
    ],
)
def test_a_pair_is_found_where_both_its_ids_stand_together(text, pair, empty, logs):
    assert found_in(text, Erased(pairs=(pair,)), empty, logs) == {("pair", 0)}


@pytest.mark.parametrize("text", [ANN, "thing-1", f'{{"user": "{ANN}"}}', f'["{ANN}", "thing-2"]', f'["thing-1", "{ANN}"]'])
def test_one_id_of_a_pair_alone_is_no_trace_of_it(text, empty, logs):
    assert found_in(text, Erased(pairs=((ANN, "thing-1"),)), empty, logs) == set()


# Logs: which files, and how much of them.


def test_packed_logs_are_unpacked(empty, logs):
    (logs / "old").mkdir()
    (logs / "old" / "worker.log.1.gz").write_bytes(gzip.compress(b"x" * 5000 + b" " + ANN.encode()))
    report = scan(empty, [], [logs], Erased((ANN,)))
    assert places(report) == [(str(logs / "old" / "worker.log.1.gz"), "user", 0, "byte 5001, unpacked", 1)]


def test_a_damaged_packed_log_is_searched_as_far_as_it_goes_and_named(empty, logs):
    noise = np.random.default_rng(0).bytes(50_000).hex().encode()
    (logs / "a.gz").write_bytes(gzip.compress(ANN.encode() + b" " + noise)[:-2000])
    report = scan(empty, [], [logs], Erased((ANN,)))
    assert "is damaged gzip data" in report.unreadable[0]
    assert not report.clean


@pytest.mark.parametrize("offset", range(-20, 8))
def test_nothing_is_missed_or_counted_twice_between_two_blocks(offset, empty, logs):
    block = 1 << 20
    text = bytearray(b" " * (2 * block + 100))
    begin = block + offset
    text[begin : begin + len(ANN)] = ANN.encode()
    text[2 * block - 10 : 2 * block + 2] = b'{"user": 42}'
    (logs / "worker.log").write_bytes(text)
    report = scan(empty, [], [logs], Erased((ANN, 42)))
    name = str(logs / "worker.log")
    assert places(report) == [(name, "user", 0, f"byte {begin}", 1), (name, "user", 1, f"byte {2 * block - 8}", 1)]
    assert (report.searched_files, report.searched_bytes) == (1, len(text))


@given(
    blocks=st.lists(
        st.sampled_from([b"annika", b"user_id=42", b"annikas", b"=42 ", b" ", b"\n", b"xyz", b'"user": 42,']), max_size=60
    ),
    size=st.integers(900, 1400),
)
def test_how_a_file_is_cut_into_blocks_changes_nothing(tmp_path_factory, blocks, size):
    folder = tmp_path_factory.getbasetemp() / "cut"
    folder.mkdir(exist_ok=True)
    (folder / "a.log").write_bytes(b"".join(blocks) * 20)
    store, erased = Store(str(folder / "nothing")), Erased(("annika", 42))
    whole = scan(store, [], [folder], erased)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residue, "_BLOCK", size)
        assert scan(store, [], [folder], erased) == whole


def test_thousands_of_ids_are_found_at_once(empty, logs):
    ids = tuple(f"user-{number:05}@example.org" for number in range(5000))
    (logs / "a.log").write_text("\n".join(ids[::2]))
    report = scan(empty, [], [logs], Erased(ids))
    assert [found.position for found in report.findings] == list(range(0, 5000, 2))


def test_a_report_never_names_what_it_was_asked_about(empty, logs):
    (logs / f"of {ANN}.log").write_text(f"{ANN}, user=4242")
    report = scan(empty, [], [logs], Erased((ANN, 4242)))
    assert [found.where for found in report.findings] == ["file name", "byte 0", "byte 17"]
    assert ANN not in str(report.to_dict())
    assert "4242" not in str(report.to_dict())


def test_each_file_is_searched_once_and_single_files_may_be_given(planted):
    store = Store(str(planted))
    once = scan(store, [], [], Erased((ANN,)))
    again = scan(store, [planted / "ledger.db"], [planted, planted / "ledger.db"], Erased((ANN,)))
    assert (again.searched_files, again.searched_bytes) == (once.searched_files, once.searched_bytes)
    assert once.searched_files == len(store.everything())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(empty, logs):
    (logs / "a.log").write_text("x")
    (logs / "a.log").chmod(0)
    assert "cannot be read (Permission denied)" in scan(empty, [], [logs], Erased((ANN,))).unreadable[0]


def test_a_place_that_is_not_there_is_refused(empty, tmp_path):
    with pytest.raises(InputError, match="no folder of logs"):
        scan(empty, [], [tmp_path / "nowhere"], Erased((ANN,)))
    with pytest.raises(InputError, match="no ledger file"):
        scan(empty, [tmp_path / "nowhere.db"], [], Erased((ANN,)))


# Files of other makers.


def test_in_tables_of_others_columns_are_compared_by_what_they_can_hold(empty, logs):
    table = pa.table(
        {
            "user_id": [42, 1, 1],
            "item_id": [1, 42, 1],
            "count": [42, 42, 42],
            "order_id": [1, 1, 42],
            "note": pa.array(["for ann@example.org", "no", "ann@example.org"]).dictionary_encode(),
            "tags": [["x"], [ANN], []],
        }
    )
    pq.write_table(table, logs / "log.parquet", compression="zstd")
    found = [one[1:] for one in places(scan(empty, [], [logs], Erased((42, ANN), (7, 42)))) if not one[3].startswith("byte")]
    assert sorted(found) == [
        ("item", 1, "column item_id, row 1", 1),
        ("item", 1, "column order_id, row 2", 1),
        ("user", 0, "column order_id, row 2", 1),
        ("user", 0, "column user_id, row 0", 1),
        ("user", 1, "column note, row 2", 2),
        ("user", 1, "column tags, row 1", 1),
    ]


def test_a_pair_in_a_table_is_found_in_one_row_alone(empty, logs):
    pq.write_table(pa.table({"user_id": ["ann", "ann", "bob"], "item_id": [7, 8, 9]}), logs / "log.parquet")
    report = scan(empty, [], [logs], Erased(pairs=(("ann", 8), ("ann", 9))))
    assert [one[1:] for one in places(report)] == [("pair", 0, "row 1", 1)]
