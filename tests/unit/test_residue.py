from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from ray_eraser.config import TrainingConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import InputError
from ray_eraser.ids import ShardId
from ray_eraser.store import Store
from ray_eraser.unlearning import residue
from ray_eraser.unlearning.erased import Erased
from ray_eraser.unlearning.request import UnlearningRequest
from ray_eraser.unlearning.residue import ResidueReport, ledger_files, scan
from ray_eraser.unlearning.sought_ids import is_distinctive

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


def places(report: ResidueReport) -> list[tuple[str, str, int | None, str, int]]:
    return [(found.file, found.kind, found.position, found.where, found.count) for found in report.findings]


def found_in(text: str | bytes, erased: Erased, store: Store, logs: Path) -> set[tuple[str, int]]:
    (logs / "worker.log").write_bytes(text.encode() if isinstance(text, str) else text)
    return {(found.kind, found.position) for found in scan(store, [], [logs], erased).findings}


# After an erasure.


def renamed(dataset: Dataset, user, item) -> Dataset:
    """The log with other names for the same users and items."""
    sets = []
    for part in (dataset.train, dataset.valid, dataset.test):
        users, items = dataset.users.raw(part.users), dataset.items.raw(part.items)
        sets.append([(user(one), item(other)) for one, other in zip(users, items, strict=True)])
    return Dataset.of_pairs(dataset.name, sets[0], valid=sets[1], test=sets[2])


KINDS = {
    "small integers": (lambda raw: raw - 1000, lambda raw: raw),
    "long integers": (lambda raw: raw + 10**12, lambda raw: raw + 10**11),
    "short texts": (lambda raw: f"u{raw - 1000}", lambda raw: f"i{raw}"),
    "long texts": (lambda raw: f"user-{raw}@example.org", lambda raw: f"artículo:{raw}/«é»"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_erasure_leaves_nothing_on_disk(kind, tiny, tiny_config, deployments):
    dataset = renamed(tiny, *KINDS[kind]).learned()
    coordinator = deployments.fit("d", tiny_config, dataset)
    users, items = dataset.users.ids, dataset.items.ids
    of_last = dataset.train.items_of(len(users) - 1)
    pairs = tuple((users[-1], item) for item in dataset.items.raw(of_last) if item not in items[5:8])
    erased = Erased(users[3:30], items[5:8], pairs)
    everything = {("user", n) for n in range(27)} | {("item", n) for n in range(3)} | {("pair", n) for n in range(len(pairs))}

    def found() -> set[tuple[str, int]]:
        report = scan(deployments.store("d"), [], [], erased)
        assert report.unreadable == ()
        return {(finding.kind, finding.position) for finding in report.findings}

    assert found() == everything
    for request in (
        *(UnlearningRequest(user_id=raw) for raw in erased.user_ids),
        *(UnlearningRequest(item_id=raw) for raw in erased.item_ids),
        UnlearningRequest(pairs=erased.pairs),
    ):
        coordinator.submit(request)
    assert found() == everything  # accepted, and not erased yet
    coordinator.process_pending()
    assert found() == set()
    coordinator.close()
    assert found() == set()


def traces(folder: Path, texts: list[str], keys: np.ndarray) -> dict[str, set[str]]:
    """Files under a folder that have an id or a key in any of their bytes, or in packed cells; by a simple search."""
    found: dict[str, set[str]] = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        contents = [path.read_bytes()]
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            contents += [str(table["id"].to_pylist()).encode(), table["key"].to_numpy().astype("<u8").tobytes()]
        is_there = {
            "id": any(text.encode() in content for content in contents for text in texts),
            "key": any(int(key).to_bytes(8, "little") in content for content in contents for key in keys),
        }
        if whats := {what for what, there in is_there.items() if there}:
            found[str(path.relative_to(folder)).partition("-")[0]] = whats
    return found


@pytest.mark.parametrize("slices", [1, 2])
def test_no_byte_of_any_file_has_an_erased_id_or_its_key(tiny, tiny_config, deployments, slices):
    """Not by the search of the product. Users and items have no name in common, so that a key is one id's alone."""
    dataset = renamed(tiny, *KINDS["long texts"]).learned()
    config = tiny_config.model_copy(update={"training": TrainingConfig(slices=slices)})
    coordinator = deployments.fit("d", config, dataset)
    users, items = dataset.users.ids[3:9], dataset.items.ids[5:8]
    keys = np.concatenate([dataset.users.keys[3:9], dataset.items.keys[5:8]])
    folder = deployments.folder / "d"
    before = traces(folder, [*users, *items], keys)
    assert {path.partition("/")[0] for path in before} == {"vocabulary", "shards", "aggregate"}
    assert {what for path, whats in before.items() if "/submodel" in path for what in whats} == {"key"}
    for request in (
        *(UnlearningRequest(user_id=raw) for raw in users),
        *(UnlearningRequest(item_id=raw) for raw in items),
    ):
        coordinator.submit(request)
    coordinator.process_pending()
    assert traces(folder, [*users, *items], keys) == {}
    coordinator.close()
    assert traces(folder, [*users, *items], keys) == {}


def test_no_file_has_a_gap_where_somebody_was(tiny, tiny_config, deployments):
    dataset = renamed(tiny, *KINDS["short texts"])
    coordinator = deployments.fit("d", tiny_config, dataset)
    for raw in dataset.users.ids[::7]:
        coordinator.submit(UnlearningRequest(user_id=raw))
    coordinator.process_pending()
    folder = deployments.folder / "d"
    named: dict[str, list[int]] = {"users": [], "items": []}
    for path in sorted((folder / "vocabulary").iterdir()):
        table = pq.read_table(path)
        assert table["id"].null_count == table["key"].null_count == 0
        named[path.name.partition("-")[0]] += table["key"].to_pylist()
    present: dict[str, set[int]] = {"users": set(), "items": set()}
    for path in folder.rglob("interactions-*"):
        arrays = load_file(path)
        per_user = arrays["train"] + arrays["valid"]
        of_items = np.concatenate([arrays["train_items"], arrays["valid_items"]])
        assert per_user.all()
        assert np.array_equal(np.unique(of_items), np.arange(len(arrays["item_keys"])))
        present["users"] |= set(arrays["user_keys"].tolist())
        present["items"] |= set(arrays["item_keys"].tolist())
    for kind, keys in named.items():
        assert keys == sorted(keys)
        assert set(keys) == present[kind]


def test_what_fills_several_pages_of_the_ledger_leaves_it_too(tiny, tiny_config, deployments):
    dataset = renamed(tiny, lambda raw: f"user-{raw}-" + "x" * 900, lambda raw: f"item-{raw}-" + "y" * 500)
    coordinator = deployments.fit("d", tiny_config, dataset)
    row = int(np.bincount(dataset.train.users).argmax())
    user = dataset.users.ids[row]
    pairs = tuple((user, item) for item in dataset.items.raw(dataset.train.items_of(row)))
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


def part_with(planted: Path, kind: str, raw: object) -> tuple[str, int]:
    """The file of a vocabulary that has an id, and the id's row in it."""
    for path in (planted / "vocabulary").glob(f"{kind}s-*"):
        ids = pq.read_table(path)["id"].to_pylist()
        if str(raw) in ids:
            return f"vocabulary/{path.name}", ids.index(str(raw))
    raise AssertionError(raw)


def test_an_id_in_a_vocabulary_is_found_by_column_and_row(planted):
    report = scan(Store(str(planted)), [], [], Erased(user_ids=("1003", 1004, 42), item_ids=(7,)))
    expected = []
    for kind, position, raw in (("item", 0, 7), ("user", 0, 1003), ("user", 1, 1004)):
        path, row = part_with(planted, kind, raw)
        expected += [
            (path, kind, position, f"column id, row {row}", 1),
            (path, kind, position, f"column key (the hash of its id), row {row}", 1),
        ]
    assert sorted(one for one in places(report) if one[0].startswith("vocabulary")) == sorted(expected)
    assert not report.clean


def test_the_key_of_an_erased_id_is_found_in_every_kind_of_file(tiny, tiny_config, deployments):
    config = tiny_config.model_copy(update={"training": TrainingConfig(slices=2)})
    coordinator = deployments.fit("d", config, tiny)
    report = scan(deployments.store("d"), [], [], Erased((1003,), (7,)))
    loaded = coordinator._serving.loaded
    manifest = loaded.manifest
    home = next(k for k, data in loaded.shards.items() if tiny.users.key(1003) in data.user_keys)
    of_user = {found.file for found in report.findings if found.kind == "user" and found.where.startswith("key")}
    of_item = {found.file for found in report.findings if found.kind == "item" and found.where.startswith("key")}
    record = manifest.shards[home]
    wanted = {record.interactions.path, record.submodel.path}
    assert wanted <= of_user <= wanted | {record.checkpoints[0].path}  # by the user's slice
    having = [k for k, data in loaded.shards.items() if tiny.items.key(7) in data.item_keys]
    assert {manifest.aggregate.path} | {manifest.shards[k].interactions.path for k in having} <= of_item
    assert any("checkpoint" in path for path in of_item)
    assert all(found.count == 1 for found in report.findings)
    interactions = next(found for found in report.findings if found.file == record.interactions.path and found.kind == "user")
    place = loaded.shards[home].user_keys.tolist().index(tiny.users.key(1003))
    assert interactions.where == f"key (the hash of its id) in user_keys, place {place}"


def test_the_key_of_a_user_is_no_trace_of_the_item_of_that_name(planted):
    """Both have one key: its place says whose it is."""
    store = Store(str(planted))
    users = {found.kind for found in scan(store, [], [], Erased(user_ids=(7,), item_ids=(1003,))).findings}
    assert users == set()


@pytest.mark.parametrize("kind", ["user", "item"])
def test_the_key_of_an_erased_id_is_found_where_its_id_is_gone(planted, kind):
    raw = 1003 if kind == "user" else 7
    name, row = part_with(planted, kind, raw)
    table = pq.read_table(planted / name)
    gone = pa.array([None if one == str(raw) else one for one in table["id"].to_pylist()], pa.string())
    pq.write_table(table.set_column(table.schema.get_field_index("id"), "id", gone), planted / name)
    erased = Erased((raw,)) if kind == "user" else Erased(item_ids=(raw,))
    found = [one.where for one in scan(Store(str(planted)), [], [], erased).findings if one.file == name]
    assert found == [f"column key (the hash of its id), row {row}"]


def test_keys_are_looked_for_under_the_seed_of_the_generation(tiny, tiny_config, deployments):
    deployments.fit("d", tiny_config.model_copy(update={"seed": 77}), tiny)
    report = scan(deployments.store("d"), [], [], Erased((1003,)))
    assert any("submodel" in found.file for found in report.findings)


def test_a_pair_is_found_in_the_interactions_that_have_it(planted, tiny):
    user, item = tiny.users.ids[3], tiny.items.raw(tiny.train.items_of(3)[:1])[0]
    other = next(raw for raw in tiny.items.ids if raw not in tiny.items.raw(tiny.train.items_of(3)))
    report = scan(Store(str(planted)), [], [], Erased(pairs=((user, other), (user, item))))
    (found,) = report.findings
    assert (found.kind, found.position, found.count) == ("pair", 1, 1)
    assert found.where.startswith("keys (the hashes of both ids) in train, place ")
    assert "/interactions-" in found.file


def test_a_held_out_pair_is_found_too(planted, tiny):
    user, item = tiny.users.raw(tiny.valid.users[:1])[0], tiny.items.raw(tiny.valid.items[:1])[0]
    (found,) = scan(Store(str(planted)), [], [], Erased(pairs=((user, item),))).findings
    assert "in valid, place" in found.where


def test_row_numbers_are_no_ids(planted):
    report = scan(Store(str(planted)), [], [], Erased(tuple(range(60)), (0, *range(41, 60))))
    assert report.clean
    assert report.structured_only == 80


def test_an_id_in_a_vocabulary_that_a_crash_left_is_found(planted):
    table = pa.table({"key": pa.array([1, 2], pa.uint64()), "id": pa.array([ANN, "bob"])})
    name = f"vocabulary/users-00-{'0' * 64}.parquet.partial-1"
    pq.write_table(table, planted / name, compression="zstd")
    found = [one.where for one in scan(Store(str(planted)), [], [], Erased((ANN,))).findings if one.file == name]
    assert "column id, row 0" in found


def test_ids_and_keys_of_a_log_that_was_being_divided_are_found(planted, tiny):
    (planted / "pieces").mkdir()
    part = next(part for part in tiny.users.parts if len(part) > 1)
    pq.write_table(pa.table({"key": part.keys, "id": part.ids}), planted / "pieces" / "user-0")
    (planted / "pieces" / "users").write_bytes(tiny.users.keys.tobytes())
    raw = part.ids[1].as_py()
    report = scan(Store(str(planted)), [], [], Erased((raw,), (raw,)))
    assert {(one.file, one.kind, one.where) for one in report.findings if one.file.startswith("pieces")} == {
        ("pieces/user-0", "user", "column id, row 1"),
        ("pieces/user-0", "user", "column key (the hash of its id), row 1"),
        ("pieces/users", "user", f"key (the hash of its id) in the file, place {tiny.users.row(raw)}"),
    }


def test_keys_in_an_unfinished_submodel_are_found_as_far_as_it_goes(planted, tiny):
    keys = tiny.users.keys
    whole = save({"user_keys": keys, "users": np.zeros((len(keys), 8), np.float32)})
    name = f"shards/0/submodel-{'0' * 64}.safetensors.partial-1"
    for content, is_there in ((whole[:-9], True), (whole[: len(whole) // 8], False)):
        (planted / name).write_bytes(content)
        report = scan(Store(str(planted)), [], [], Erased((tiny.users.ids[-1],)))
        found = [one.where for one in report.findings if one.file == name]
        assert found == ([f"key (the hash of its id) in user_keys, place {len(keys) - 1}"] if is_there else [])
        if not is_there:
            assert any(line.startswith(f"{name}: is damaged safetensors data") for line in report.unreadable)


# Orphans.


def test_a_deployment_has_no_orphans(planted):
    report = scan(Store(str(planted)), [], [], Erased())
    assert report.clean
    assert (report.structured_only, report.searched_files) == (0, len(Store(str(planted)).everything()))


def with_manifest(planted: Path, **files: object) -> None:
    """Change the only generation so that it is whole."""
    store = Store(str(planted))
    (path,) = (planted / "generations").iterdir()
    manifest = store.read_manifest(path.stem)
    path.unlink()
    store.write_manifest(replace(manifest, **files))


@pytest.mark.parametrize("kind", ["user", "item"])
def test_an_id_that_nobody_has_any_more_is_counted_and_not_named(planted, tiny, kind):
    store = Store(str(planted))
    vocabulary = {"user": tiny.learned().users, "item": tiny.learned().items}[kind].extended(["orphan@example.org"])
    for path in (planted / "vocabulary").glob(f"{kind}s-*"):
        path.unlink()
    refs = store.write_vocabulary(vocabulary)
    with_manifest(planted, **{f"{kind}s": refs})
    report = scan(store, [], [], Erased())
    name, _ = part_with(planted, kind, "orphan@example.org")
    assert places(report) == [(name, "orphan", None, f"{kind}s without an interaction, in column key", 1)]
    assert not report.clean
    assert "orphan@" not in str(report)


@pytest.mark.parametrize("what", ["aggregate", "submodel", "interactions"])
def test_a_key_that_nobody_has_any_more_is_found_in_what_was_learned(planted, what):
    store = Store(str(planted))
    (path,) = (planted / "generations").iterdir()
    manifest = store.read_manifest(path.stem)
    record = manifest.shards[1]
    ghost = np.array([2**64 - 1], np.uint64)
    if what == "interactions":
        data = store.read_shard_data(record.interactions)
        ref = store.write_shard_data(ShardId(1), replace(data, item_keys=np.append(data.item_keys, ghost)))
        shards = (manifest.shards[0], replace(record, interactions=ref), manifest.shards[2])
        with_manifest(planted, shards=shards)
    else:
        model = store.read_embeddings(manifest.aggregate if what == "aggregate" else record.submodel)
        model = replace(
            model,
            item_keys=np.append(model.item_keys, ghost),
            items=np.concatenate([model.items, np.zeros((1, model.width), np.float32)]),
        )
        ref = store.write_aggregate(model) if what == "aggregate" else store.write_submodel(ShardId(1), model)
        shards = (manifest.shards[0], replace(record, submodel=ref), manifest.shards[2])
        with_manifest(planted, **({"aggregate": ref} if what == "aggregate" else {"shards": shards}))
    assert places(scan(store, [], [], Erased())) == [
        (ref.path, "orphan", None, "items without an interaction, in item_keys", 1)
    ]


def test_all_ids_are_orphans_where_a_crash_left_no_interactions(tmp_path):
    store = Store(str(tmp_path / "s"))
    store.write_vocabulary(Vocabulary.of("user", range(100)))
    report = scan(store, [], [], Erased())
    assert {found.kind for found in report.findings} == {"orphan"}
    assert sum(found.count for found in report.findings) == 100


def test_where_interactions_cannot_be_read_nobody_is_called_an_orphan(planted):
    path = next((planted / "shards" / "1").glob("interactions-*"))
    path.write_bytes(path.read_bytes()[:40])
    report = scan(Store(str(planted)), [], [], Erased())
    assert report.findings == ()
    name = str(path.relative_to(planted))
    assert sorted(line.partition(":")[0] for line in report.unreadable) == [name, name]
    path.unlink()
    assert [line.partition(":")[0] for line in scan(Store(str(planted)), [], [], Erased()).unreadable] == [name]


def test_an_unfinished_vocabulary_is_named_as_one_that_could_not_be_searched(planted):
    path = planted / "vocabulary" / f"users-00-{'0' * 64}.parquet.partial-1"
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
    users, items = ("ann-smith", "ann-smith-2", "joann-smith"), ("thing-1", "the ann-smith thing")
    for vocabulary in (Vocabulary.of("user", users), Vocabulary.of("item", items)):
        store.write_vocabulary(vocabulary)

    def found(*asked) -> list[str]:
        return [one.kind for one in scan(store, [], [], Erased(*asked)).findings if one.kind != "orphan"]

    assert found(("ann-smith-3", "ann-smit", "smith-2"), ("thing-", "ann-smith-2")) == []
    assert set(found(("ann-smith",))) == {"user"}


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


# Ids that are not here.


def test_an_id_of_which_another_spelling_is_here_is_not_clean(deployments, tiny_config):
    log = Dataset.of_pairs("orders", [(f"2000{u}.0", f"0{i}") for u in range(8) for i in range(10, 16)], tiny_config.seed)
    coordinator = deployments.fit("floats", tiny_config, log)
    report = scan(coordinator._store, [], [], Erased(user_ids=("anna", 20007), pairs=((20003, "10"),)))
    assert (report.findings, report.not_here) == ((), 3)
    assert [(entry.kind, entry.position, entry.here) for entry in report.spelled_otherwise] == [
        ("user", 1, ("20007.0",)),
        ("pair", 0, ("20003.0", "010")),
    ]
    assert not report.clean
    assert "20007" not in str(report.to_dict())
    known = scan(coordinator._store, [], [], Erased(user_ids=("anna",)))
    assert (known.clean, known.not_here, known.spelled_otherwise) == (True, 1, ())
