from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_eraser.config import EraserConfig
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.data.vocabulary import PARTS, Part, Vocabulary, part_of
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.errors import InputError, StoreError
from ray_eraser.ids import ShardId
from ray_eraser.models.base import UNTRAINED, Table, TrainingState
from ray_eraser.store import FileRef, Manifest, ShardRecord, Store, embeddings_bytes, manifest_ref, shard_data_bytes

KEYS = st.integers(0, 2**64 - 1)
PAIRS = st.sets(st.tuples(KEYS, KEYS), max_size=20)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip)
MANY = [f"user-{number}" for number in range(300)]


def data_of(train, valid=()):
    """A shard's interactions from pairs of keys."""
    return ShardData.none().with_learned(KeyedPairs.of(sorted(train)), KeyedPairs.of(sorted(valid)))


def some_embeddings():
    users = np.arange(6, dtype=np.float32).reshape(2, 3)
    items = -np.arange(9, dtype=np.float32).reshape(3, 3)
    return KeyedEmbeddings(np.array([1, 4], np.uint64), users, np.array([0, 2, 2**64 - 1], np.uint64), items)


SOME_DATA = data_of([(0, 1), (0, 3), (2**63, 1)], [(0, 2)])
USERS = Vocabulary.of("user", [1, 2])
ITEMS = Vocabulary.of("item", ["a", "ü"])


NOWHERE = FileRef("aggregate/x", "x")


def manifest_of(users=(), items=(), shards=(), aggregate=NOWHERE):
    return Manifest(EraserConfig(), {"threads": 1}, (), ("user",), users, items, shards, aggregate)


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def written(store):
    """One file of each kind that is read back by its own method, with that method."""
    users, items = store.write_vocabulary(USERS), store.write_vocabulary(ITEMS)
    data = store.write_shard_data(ShardId(0), SOME_DATA)
    submodel = store.write_submodel(ShardId(0), some_embeddings())
    checkpoint = store.write_checkpoint(ShardId(0), UNTRAINED)
    aggregate = store.write_aggregate(some_embeddings())
    record = ShardRecord(ShardId(0), data, submodel, 3, 1, (checkpoint,))
    manifest = store.write_manifest(manifest_of(users, items, (record,), aggregate))
    return {
        "users": (users[0], lambda ref: store.read_vocabulary([ref], "user", manifest_of())),
        "items": (items[-1], store.read_part),
        "interactions": (data, store.read_shard_data),
        "submodel": (submodel, store.read_embeddings),
        "checkpoint": (checkpoint, store.read_checkpoint),
        "aggregate": (aggregate, store.read_embeddings),
        "manifest": (manifest, lambda ref: store.read_manifest(ref.digest)),
    }


KINDS = ("users", "items", "interactions", "submodel", "checkpoint", "aggregate", "manifest")


@given(train=PAIRS, valid=PAIRS)
def test_interactions_come_back_as_they_were_written(tmp_path_factory, train, valid):
    data = data_of(train, valid - train)
    store = Store(str(tmp_path_factory.getbasetemp() / "round-trips"))
    back = store.read_shard_data(store.write_shard_data(ShardId(2), data))
    assert shard_data_bytes(back) == shard_data_bytes(data)
    for mine, theirs in ((data.user_keys, back.user_keys), (data.item_keys, back.item_keys)):
        assert (theirs.dtype, theirs.tolist()) == (np.uint64, mine.tolist())
    for mine, theirs in ((data.train, back.train), (data.valid, back.valid)):
        assert mine.codes().tolist() == theirs.codes().tolist()
        assert theirs.users.dtype == theirs.items.dtype == np.int32


# ---- vocabularies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [(3, 5, 2**62, 2**64 - 1), ("a", "é\n\t'\"", "z" * 500), ("7", "07"), (7, "guest-7"), (), tuple(MANY)],
    ids=["integers", "strings", "digits", "mixed", "nobody", "many"],
)
def test_a_vocabulary_comes_back_as_it_was_written(store, ids):
    vocabulary = Vocabulary.of("user", ids)
    refs = store.write_vocabulary(vocabulary)
    manifest = replace(manifest_of(), integers=("user",) if vocabulary.integers else ())
    back = store.read_vocabulary(refs, "user", manifest)
    assert (back.ids, back.keys.tolist(), back.secret) == (vocabulary.ids, vocabulary.keys.tolist(), vocabulary.secret)
    assert all(back.find(raw) == vocabulary.key(raw) for raw in ids)


@settings(max_examples=20)
@given(st.sets(TEXTS, max_size=8), st.sets(TEXTS, max_size=8), st.sets(TEXTS, max_size=8))
def test_the_files_of_a_vocabulary_are_those_of_its_ids_whatever_came_and_went(tmp_path_factory, first, later, gone):
    store = Store(str(tmp_path_factory.getbasetemp() / "round-trips"))
    vocabulary = Vocabulary.of("user", first).extended(later)
    vocabulary = vocabulary.without(np.array([vocabulary.key_of(text) for text in gone], np.uint64))
    assert store.write_vocabulary(vocabulary) == store.write_vocabulary(Vocabulary.of("user", (first | later) - gone))


def test_a_part_without_an_id_has_no_file(store):
    refs = store.write_vocabulary(USERS)
    assert sorted(ref.path.split("-")[1] for ref in refs) == sorted({f"{part_of(int(key)):02d}" for key in USERS.keys})
    assert store.write_vocabulary(Vocabulary.empty("user")) == ()


def test_of_a_changed_vocabulary_only_the_parts_are_written_that_changed(store, monkeypatch):
    before = Vocabulary.of("user", MANY)
    refs = store.write_vocabulary(before)
    assert len(refs) == PARTS
    monkeypatch.setattr(Store, "_put", lambda _, path, content, **how: puts.append(path))
    for after, changed in (
        (before, []),
        (before.without(np.array([before.key("user-7")], np.uint64)), ["user-7"]),
        (before.extended(["user-7", "new"]), ["new"]),
        (before.without(np.array([before.key("user-7")], np.uint64)).extended(["new"]), ["user-7", "new"]),
    ):
        puts = []
        again = store.write_vocabulary(after, before, refs)
        parts = {part_of(before.key_of(raw)) for raw in changed}
        assert {number for number in range(PARTS) if again[number] != refs[number]} == parts
        assert puts == [again[number].path for number in sorted(parts)]


def test_of_a_part_that_lost_its_last_id_no_file_is_named(store):
    refs = store.write_vocabulary(USERS)
    left = USERS.without(np.array([USERS.key(1)], np.uint64))
    assert store.write_vocabulary(left, USERS, refs) == (refs[USERS.row(2)],)
    assert store.write_vocabulary(left.extended(["1"]), left, (refs[USERS.row(2)],)) == refs


def test_parts_that_were_read_before_are_not_read_again(store):
    refs = store.write_vocabulary(USERS)
    known = Part(np.array([5], np.uint64), ITEMS.parts[0].ids)
    for path in store.files():
        store.delete(path)
    back = store.read_vocabulary(refs, "user", manifest_of(), dict.fromkeys(refs, known))
    assert [part for part in back.parts if part is known] == [known] * len(refs)


# ---- vectors, states and manifests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [some_embeddings(), KeyedEmbeddings.empty(3)], ids=["some", "nobody"])
def test_vectors_come_back_to_the_last_bit(store, model):
    assert store.read_embeddings(store.write_submodel(ShardId(0), model)).same_bits(model)


def test_a_state_of_training_comes_back_by_its_keys_to_the_last_bit(store):
    users = Table(np.array([1, 2**64 - 1], np.uint64), {"vectors": np.ones((2, 3), np.float32) / 3, "steps": np.arange(2)})
    state = TrainingState(users, Table(np.empty(0, np.uint64), {"vectors": np.empty((0, 3), np.float32)}), 2)
    back = store.read_checkpoint(store.write_checkpoint(ShardId(0), state))
    assert back.stages == 2
    for name, array in state.arrays().items():
        assert (back.arrays()[name].dtype, back.arrays()[name].tobytes()) == (array.dtype, array.tobytes())


def test_a_manifest_comes_back_whole(store):
    ref, _ = written(store)["manifest"]
    manifest = store.read_manifest(ref.digest)
    assert manifest.config == EraserConfig()
    assert manifest.shards[0].n_train == 3
    assert manifest.n_interactions == 3
    assert (manifest.chosen, manifest.integers) == ((), ("user",))
    assert manifest.to_json() == store.read(ref)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_named_by_the_digest_of_its_content(store, kind):
    ref, _ = written(store)[kind]
    content = (store.local_folder / ref.path).read_bytes()
    assert ref.digest == hashlib.sha256(content).hexdigest()
    assert ref.digest in ref.path


def test_the_same_content_has_the_same_name_and_is_there_once(store):
    first = {kind: ref for kind, (ref, _) in written(store).items()}
    listed = store.files()
    assert {kind: ref for kind, (ref, _) in written(store).items()} == first
    assert store.files() == listed
    assert len(listed) == len(set(first.values()) | {*store.write_vocabulary(USERS), *store.write_vocabulary(ITEMS)})


def test_one_more_pair_gives_another_name(store):
    more = SOME_DATA.with_learned(KeyedPairs.none(), KeyedPairs.of([(9, 9)]))
    assert store.write_shard_data(ShardId(0), SOME_DATA) != store.write_shard_data(ShardId(0), more)


def test_a_pair_held_out_is_not_the_same_content_as_a_pair_learned_from():
    swapped = ShardData(SOME_DATA.user_keys, SOME_DATA.item_keys, SOME_DATA.valid, SOME_DATA.train)
    assert shard_data_bytes(swapped) != shard_data_bytes(SOME_DATA)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["truncated", "one bit flipped", "emptied", "missing"])
def test_a_damaged_file_is_refused_by_name(store, kind, damage):
    ref, read = written(store)[kind]
    file = store.local_folder / ref.path
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        flipped = bytes([content[0] ^ 1]) + content[1:]
        file.write_bytes({"truncated": content[:-1], "one bit flipped": flipped, "emptied": b""}[damage])
    with pytest.raises(StoreError, match="is missing" if damage == "missing" else "digest differs") as caught:
        read(ref)
    assert caught.value.path == ref.path


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"nonsense", b"\xff"])
def test_content_of_another_kind_is_refused_by_name_even_under_its_right_digest(store, content):
    digest = hashlib.sha256(content).hexdigest()
    for path in ("generations/x", "shards/0/x", "vocabulary/users-00-x"):
        (store.local_folder / path).parent.mkdir(parents=True, exist_ok=True)
        (store.local_folder / path).write_bytes(content)
    (store.local_folder / manifest_ref(digest).path).write_bytes(content)
    with pytest.raises(StoreError, match="is not a manifest"):
        store.read_manifest(digest)
    with pytest.raises(StoreError, match=r"shards/0/x: is not a file of embeddings"):
        store.read_embeddings(FileRef("shards/0/x", digest))
    with pytest.raises(StoreError, match=r"shards/0/x: is not a file of interactions"):
        store.read_shard_data(FileRef("shards/0/x", digest))
    with pytest.raises(StoreError, match=r"shards/0/x: is not a checkpoint"):
        store.read_checkpoint(FileRef("shards/0/x", digest))
    with pytest.raises(StoreError, match=r"vocabulary/users-00-x: is not the expected Parquet file"):
        store.read_vocabulary([FileRef("vocabulary/users-00-x", digest)], "user", manifest_of())


def altered_manifest(store, change):
    ref, _ = written(store)["manifest"]
    fields = json.loads(store.read(ref))
    change(fields)
    content = json.dumps(fields).encode()
    digest = hashlib.sha256(content).hexdigest()
    (store.local_folder / manifest_ref(digest).path).write_bytes(content)
    return digest


@pytest.mark.parametrize("number", [1, 3])
def test_a_manifest_of_another_format_is_refused_with_the_way_out(store, number):
    digest = altered_manifest(store, lambda fields: fields.update(format=number))
    problem = f"{digest}.*format {number}, this version reads 2: train again with another storage path"
    with pytest.raises(StoreError, match=problem):
        store.read_manifest(digest)


def test_a_storage_path_of_format_1_is_refused_with_the_way_out_and_nothing_of_it_swept(deployments, tiny_config, store):
    folder = deployments.folder / "old"
    (folder / "vocabulary").mkdir(parents=True)
    (folder / "deployment.json").write_text('{"ledger": "an older one"}')
    (folder / "vocabulary" / f"users-{'0' * 64}.parquet").write_bytes(b"of format 1")
    with pytest.raises(StoreError, match=r"deployment\.json: this storage path has format 1, and this version reads format 2"):
        deployments.store("old").owner()
    with pytest.raises(StoreError, match="train again from the log with another storage path, and delete this one"):
        deployments.open("old", tiny_config)
    assert (folder / "vocabulary" / f"users-{'0' * 64}.parquet").exists()
    assert (folder / "deployment.json").exists()


def test_a_storage_path_belongs_to_the_ledger_that_claimed_it(store):
    assert store.owner() is None
    store.claim("this one")
    assert store.owner() == "this one"
    assert store.files() == []
    (store.local_folder / "ledger.json").write_text("{}")
    with pytest.raises(StoreError, match=r"ledger\.json: cannot be read"):
        store.owner()


def test_a_manifest_names_its_checkpoints(store):
    ref = store.write_checkpoint(ShardId(0), UNTRAINED)
    manifest = store.read_manifest(written(store)["manifest"][0].digest)
    manifest = replace(manifest, shards=(replace(manifest.shards[0], checkpoints=(ref, ref)),), chosen=("model.alpha0",))
    back = store.read_manifest(store.write_manifest(manifest).digest)
    assert back == manifest
    assert back.files().count(ref) == 2


def test_a_manifest_with_a_setting_that_this_version_does_not_know_is_refused_by_name(store):
    digest = altered_manifest(store, lambda fields: fields["config"]["partition"].update(colour="red"))
    with pytest.raises(StoreError, match=f"{digest}.*colour"):
        store.read_manifest(digest)


def test_unfinished_files_are_listed_and_what_others_put_there_is_not(store):
    ref = store.write_shard_data(ShardId(12), SOME_DATA)
    half = f"{ref.path}.partial-0123abcd"
    (store.local_folder / half).write_bytes(b"half")
    for other in ("notes.txt", "shards/12/notes.parquet", "ledger.db"):
        (store.local_folder / other).write_bytes(b"not ours")
    assert store.files() == sorted([ref.path, half])
    assert {"notes.txt", "ledger.db", "shards/12/notes.parquet"} < set(store.everything())


def test_a_write_that_fails_leaves_nothing_behind(store, monkeypatch):
    store.write_shard_data(ShardId(0), SOME_DATA)
    before = store.everything()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"shards/1/interactions-.*cannot be written.*No space left"):
        store.write_shard_data(ShardId(1), SOME_DATA)
    assert store.everything() == before


FAILING = {
    "making a folder": (Path, "mkdir"),
    "making the file": (os, "open"),
    "setting its mode": (os, "fchmod"),
    "syncing it": (os, "fsync"),
    "giving it its name": (Path, "replace"),
}


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "free some space on it"),
        (errno.EDQUOT, "raise the quota"),
        (errno.EROFS, "mount the disk writable"),
        (errno.EIO, "check space and permissions"),
    ],
)
@pytest.mark.parametrize("step", FAILING)
def test_a_disk_that_fails_at_any_step_is_one_clear_error_and_leaves_nothing_behind(store, monkeypatch, step, number, way_out):
    store.write_aggregate(some_embeddings())
    before = sorted(store.local_folder.rglob("*"))
    monkeypatch.setattr(*FAILING[step], failing(number))
    with pytest.raises(StoreError, match=r"^store file shards/1/interactions-\w+\.safetensors: cannot be written") as error:
        store.write_shard_data(ShardId(1), SOME_DATA)
    monkeypatch.undo()
    assert f"cannot be written ({os.strerror(number)}): {way_out}" in str(error.value)
    assert sorted(store.local_folder.rglob("*")) == before


def failing(number):
    def fail(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    return fail


def test_a_file_that_is_written_half_when_the_disk_is_full_is_not_left_behind(store, monkeypatch):
    opened = os.fdopen

    def full_after_four_bytes(*arguments):
        stream = opened(*arguments)

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                stream.close()

            def write(self, content):
                stream.write(content[:4])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return Full()

    monkeypatch.setattr(os, "fdopen", full_after_four_bytes)
    with pytest.raises(StoreError, match="No space left on device"):
        store.write_piece("users-3", b"more than four bytes")
    assert store.everything() == []


# ---- who can read -----------------------------------------------------------------------------------------------------------


def modes(folder):
    """Of everything under a folder and of itself, by whether it is a folder."""
    found = {True: set(), False: set()}
    for path in (folder, *folder.rglob("*")):
        found[path.is_dir()].add(stat.S_IMODE(path.stat().st_mode))
    return found


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277, 0o777])
def test_whatever_the_umask_all_that_is_made_is_its_owners_alone(tmp_path, umask):
    store, before = Store(str(tmp_path / "above" / "store")), os.umask(umask)
    try:
        written(store)
        store.claim("a ledger")
        store.write_result("training", {"seconds": 1})
        store.write_piece("users-3", b"some")
    finally:
        os.umask(before)
    assert modes(tmp_path / "above") == {True: {0o700}, False: {0o600}}


def test_a_folder_that_was_there_keeps_its_mode(tmp_path):
    root = tmp_path / "store"
    (root / "aggregate").mkdir(parents=True)
    root.chmod(0o755)
    (root / "aggregate").chmod(0o750)
    written(Store(str(root)))
    folders = root, root / "aggregate", root / "shards"
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o755, 0o750, 0o700]


def test_a_file_that_is_written_again_is_its_owners_alone_from_then_on(store):
    ref = store.write_aggregate(some_embeddings())
    (store.local_folder / ref.path).chmod(0o644)
    store.write_aggregate(some_embeddings())
    assert modes(store.local_folder / "aggregate")[False] == {0o600}


def test_a_file_system_without_modes_is_written_to_all_the_same(store, monkeypatch):
    monkeypatch.setattr(os, "fchmod", failing(errno.EPERM))
    monkeypatch.setattr(Path, "chmod", failing(errno.ENOTSUP))
    ref = store.write_aggregate(some_embeddings())
    assert store.read_embeddings(ref).same_bits(some_embeddings())


# ---- deleting and restoring -------------------------------------------------------------------------------------------------


STRANGE = [
    "../victim.txt",
    "/etc/victim.txt",
    "",
    ".",
    "ledger.db",
    "ledger.json",
    "results/training.json",
    "notes.txt",
    f"shards/../../{'0' * 64}.json",
    f"../store/shards/0/submodel-{'0' * 64}.safetensors",
    f"shards/0/submodel-{'0' * 64}.safetensors\n",
    f"shards/0/submodel-{'0' * 64}.safetensors/../../../../victim.txt",
    f"shards/0/submodel-{'0' * 64}.safetensors.partial-/../../../../victim.txt",
    f"shards/../submodel-{'0' * 64}.safetensors",
    "pieces/../../victim.txt",
    "pieces",
]


@pytest.mark.parametrize("path", STRANGE)
def test_nothing_but_a_deployments_own_files_can_be_deleted_or_restored(store, path):
    written(store)
    store.claim("a ledger")
    for place in ("victim.txt", "store/ledger.db", "store/notes.txt"):
        (store.local_folder.parent / place).write_text("mine")
    before = sorted(store.local_folder.parent.rglob("*"))
    with pytest.raises(StoreError, match="is not a file of a deployment and was not deleted: the ledger was altered"):
        store.delete(path)
    with pytest.raises(StoreError, match="is not a file of a deployment and was not written"):
        store.restore(FileRef(path, hashlib.sha256(b"x").hexdigest()), b"x")
    assert sorted(store.local_folder.parent.rglob("*")) == before


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_a_store_lists_it_can_delete(store, kind):
    ref, _ = written(store)[kind]
    store.write_piece("users-3", b"some")
    assert ref.path in store.files()
    for path in store.files():
        store.delete(path)
    assert store.everything() == []


def test_what_is_verified_is_what_is_read(store):
    ref, _ = written(store)["submodel"]
    file = store.local_folder / ref.path
    content = file.read_bytes()
    store.verify(ref)
    for damage, problem in ((content[:-1], "its digest differs"), (b"", "its digest differs"), (None, "is missing")):
        file.unlink() if damage is None else file.write_bytes(damage)
        for look in (store.verify, store.read):
            with pytest.raises(StoreError, match=problem):
                look(ref)
        store.restore(ref, content)
        assert file.read_bytes() == content
    with pytest.raises(StoreError, match="its digest differs"):
        store.restore(ref, content + b"more")
    assert file.read_bytes() == content


def test_a_large_file_is_verified_block_by_block(store, monkeypatch):
    monkeypatch.setattr("ray_eraser.store._BLOCK", 7)
    ref, _ = written(store)["aggregate"]
    store.verify(ref)
    file = store.local_folder / ref.path
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(StoreError, match="its digest differs"):
        store.verify(ref)


def test_deleting_twice_is_deleting_once(store):
    ref = store.write_aggregate(some_embeddings())
    store.delete(ref.path)
    assert store.files() == []
    store.delete(ref.path)


def test_a_store_that_nothing_was_written_to_has_no_files_and_makes_no_folder(store):
    assert store.files() == []
    assert not store.local_folder.exists()


def test_a_file_in_the_place_of_the_folder_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("here first")
    with pytest.raises(StoreError, match=r"aggregate/aggregate-.*cannot be written"):
        Store(str(tmp_path / "file")).write_aggregate(some_embeddings())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused_by_name(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written"):
        Store(str(tmp_path / "store")).write_aggregate(some_embeddings())


def test_a_storage_path_of_an_unknown_scheme_is_refused():
    with pytest.raises(InputError, match="nonsense://bucket"):
        Store("nonsense://bucket/path")


def test_a_file_uri_and_a_path_are_the_same_store(tmp_path):
    ref = Store(str(tmp_path / "one")).write_aggregate(some_embeddings())
    by_uri = Store((tmp_path / "one").as_uri())
    assert by_uri.files() == [ref.path]
    assert by_uri.local_folder == tmp_path / "one"


def test_another_process_writes_the_same_bytes(store):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import hashlib, test_store as t; from ray_eraser.store import *;"
        "print(hashlib.sha256(shard_data_bytes(t.SOME_DATA)).hexdigest(),"
        "hashlib.sha256(embeddings_bytes(t.some_embeddings())).hexdigest(), t.vocabulary_digest(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(store.local_folder / "other")]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    here = [shard_data_bytes(SOME_DATA), embeddings_bytes(some_embeddings())]
    assert other == [*(hashlib.sha256(content).hexdigest() for content in here), vocabulary_digest(str(store.local_folder))]


def vocabulary_digest(folder):
    return ",".join(ref.digest for ref in Store(folder).write_vocabulary(Vocabulary.of("item", [*MANY, "ü"])))
