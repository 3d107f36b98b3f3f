from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.config import EraserConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import InputError, StoreError
from ray_eraser.ids import ShardId
from ray_eraser.models.base import UNTRAINED
from ray_eraser.store import FileRef, Manifest, ShardData, ShardRecord, Store, embeddings_bytes, manifest_ref, shard_data_bytes

ROWS = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)), max_size=20)


def pairs(*rows):
    return Interactions.of(*np.array(rows, np.int32).reshape(-1, 2).T)


def some_embeddings():
    users = np.arange(6, dtype=np.float32).reshape(2, 3)
    items = -np.arange(9, dtype=np.float32).reshape(3, 3)
    return Embeddings(np.array([1, 4], np.int32), users, np.array([0, 2, 9], np.int32), items)


SOME_DATA = ShardData(pairs((0, 1), (0, 3), (5, 1)), pairs((0, 2)))


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def written(store):
    """One file of each kind that is read back by its own method, with that method."""
    items = store.write_vocabulary(Vocabulary("item", ("a", None)), np.array([7, 0], np.uint64))
    users = store.write_vocabulary(Vocabulary("user", (1, 2, None)))
    data = store.write_shard_data(ShardId(0), SOME_DATA)
    submodel = store.write_submodel(ShardId(0), some_embeddings())
    aggregate = store.write_aggregate(some_embeddings())
    record = ShardRecord(ShardId(0), data, submodel, 3, 1)
    manifest = store.write_manifest(Manifest(EraserConfig(), {"threads": 1}, users, items, (record,), aggregate))
    return {
        "users": (users, lambda ref: store.read_vocabulary(ref, "user")),
        "items": (items, lambda ref: store.read_vocabulary(ref, "item")),
        "keys": (items, store.read_item_keys),
        "interactions": (data, store.read_shard_data),
        "submodel": (submodel, store.read_embeddings),
        "aggregate": (aggregate, store.read_embeddings),
        "manifest": (manifest, lambda ref: store.read_manifest(ref.digest)),
    }


KINDS = ("users", "items", "keys", "interactions", "submodel", "aggregate", "manifest")


@given(train=ROWS, valid=ROWS)
def test_interactions_come_back_as_they_were_written(tmp_path_factory, train, valid):
    data = ShardData(pairs(*train), pairs(*valid))
    store = Store(str(tmp_path_factory.getbasetemp() / "round-trips"))
    back = store.read_shard_data(store.write_shard_data(ShardId(2), data))
    for mine, theirs in ((data.train, back.train), (data.valid, back.valid)):
        assert mine.codes().tolist() == theirs.codes().tolist()
        assert theirs.users.dtype == theirs.items.dtype == np.int32


@pytest.mark.parametrize(
    "ids",
    [(3, 5, 2**62), (3, None, 5), ("a", "é\n\t'\"", "z" * 500), (None, "b"), (None, None), ()],
    ids=["integers", "integer erased", "strings", "string erased", "all erased", "nobody"],
)
def test_a_vocabulary_comes_back_with_its_tombstones(store, ids):
    assert store.read_vocabulary(store.write_vocabulary(Vocabulary("user", ids)), "user").ids == ids


def test_item_keys_come_back_to_the_last_bit(store):
    keys = np.array([0, 1, 2**64 - 1], np.uint64)
    back = store.read_item_keys(store.write_vocabulary(Vocabulary("item", (1, 2, 3)), keys))
    assert back.dtype == np.uint64
    assert back.tolist() == keys.tolist()


@pytest.mark.parametrize("model", [some_embeddings(), Embeddings.empty(3)], ids=["some", "nobody"])
def test_vectors_come_back_to_the_last_bit(store, model):
    assert store.read_embeddings(store.write_submodel(ShardId(0), model)).same_bits(model)


def test_a_manifest_comes_back_whole(store):
    ref, _ = written(store)["manifest"]
    manifest = store.read_manifest(ref.digest)
    assert manifest.config == EraserConfig()
    assert manifest.shards[0].n_train == 3
    assert manifest.n_interactions == 3
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
    assert len(listed) == len(set(first.values()))


def test_one_more_pair_gives_another_name(store):
    more = ShardData(SOME_DATA.train, Interactions.union([SOME_DATA.valid, pairs((9, 9))]))
    assert store.write_shard_data(ShardId(0), SOME_DATA) != store.write_shard_data(ShardId(0), more)


def test_a_pair_held_out_is_not_the_same_content_as_a_pair_learned_from():
    swapped = ShardData(SOME_DATA.valid, SOME_DATA.train)
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
    for path in ("generations/x", "shards/0/x", "vocabulary/x"):
        (store.local_folder / path).parent.mkdir(parents=True, exist_ok=True)
        (store.local_folder / path).write_bytes(content)
    (store.local_folder / manifest_ref(digest).path).write_bytes(content)
    with pytest.raises(StoreError, match="is not a manifest"):
        store.read_manifest(digest)
    with pytest.raises(StoreError, match=r"shards/0/x: is not a file of embeddings"):
        store.read_embeddings(FileRef("shards/0/x", digest))
    with pytest.raises(StoreError, match=r"vocabulary/x: is not the Parquet"):
        store.read_vocabulary(FileRef("vocabulary/x", digest), "user")


def altered_manifest(store, change):
    ref, _ = written(store)["manifest"]
    fields = json.loads(store.read(ref))
    change(fields)
    content = json.dumps(fields).encode()
    digest = hashlib.sha256(content).hexdigest()
    (store.local_folder / manifest_ref(digest).path).write_bytes(content)
    return digest


def test_a_manifest_of_another_format_is_refused(store):
    digest = altered_manifest(store, lambda fields: fields.update(format=2))
    with pytest.raises(StoreError, match=f"{digest}.*format 2, this version reads 1"):
        store.read_manifest(digest)


def test_a_manifest_from_before_there_were_checkpoints_has_none(store):
    def older(fields):
        del fields["config"]["training"], fields["shards"][0]["checkpoints"]

    manifest = store.read_manifest(altered_manifest(store, older))
    assert manifest.shards[0].checkpoints == ()
    assert manifest.config == EraserConfig()


def test_a_manifest_names_its_checkpoints(store):
    ref = store.write_checkpoint(ShardId(0), UNTRAINED)
    manifest = store.read_manifest(written(store)["manifest"][0].digest)
    manifest = replace(manifest, shards=(replace(manifest.shards[0], checkpoints=(ref, ref)),))
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
    return Store(folder).write_vocabulary(Vocabulary("item", ("a", None, "ü")), np.array([7, 0, 9], np.uint64)).digest
