"""Damaged files of a generation are made again, to the last bit."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ray_eraser.aggregator import AggregationOrder
from ray_eraser.config import EraserConfig, config_from
from ray_eraser.data.files import read_dataset
from ray_eraser.data.keyed import KeyedPairs
from ray_eraser.data.vocabulary import Part
from ray_eraser.devices import described
from ray_eraser.errors import DeviceError, PoolError, StaleEpochError, StoreError
from ray_eraser.generation import Loaded
from ray_eraser.healing import damaged, heal, named_files
from ray_eraser.ids import Epoch, Generation, ShardId
from ray_eraser.pool import LocalShardPool
from ray_eraser.prepare import prepare
from ray_eraser.shard import ShardOrder
from ray_eraser.store import FileRef, Manifest, Store
from ray_eraser.unlearning.ledger import GenerationRow

SMALL = {"synthetic_users": 30, "synthetic_items": 20, "synthetic_per_user": 6, "synthetic_communities": 2, "valid_share": 0.1}
MODELS = {
    "wmf": {"model": {"kind": "wmf", "width": 4, "epochs": 2, "alpha0": 0.3}},
    "slices": {"model": {"kind": "bpr", "width": 4, "epochs": 3, "batch": 16}, "training": {"slices": 3}},
    "linear": {"model": {"kind": "linear", "ridge": 3.0}},
}
KINDS = ("the manifest", "part", "interactions", "checkpoint", "submodel", "the aggregate")


@dataclass(eq=False)
class Deployed:
    """A generation in a folder and in memory, with a pool that counts its trainings."""

    folder: Path
    digest: str

    def __post_init__(self) -> None:
        self.store = Store(str(self.folder))
        self.loaded = Loaded.read(self.store, GenerationRow(Generation(1), self.digest, 0.0, ()))
        self.pool = CountingPool(str(self.folder), self.loaded.manifest.config)

    def heal(self, **how: object) -> tuple[str, ...]:
        return heal(self.store, self.loaded, self.pool, Epoch(1), **how)

    @property
    def names(self) -> dict[FileRef, str]:
        return named_files(self.loaded.manifest, self.digest)

    def file(self, name: str) -> Path:
        """The first file whose name begins so."""
        return self.folder / next(ref.path for ref, named in self.names.items() if name in named)

    def tree(self) -> dict[str, bytes]:
        return {path: (self.folder / path).read_bytes() for path in self.store.everything()}


class CountingPool(LocalShardPool):
    def __init__(self, store_uri: str, config: EraserConfig) -> None:
        super().__init__(store_uri, config)
        self.orders: dict[ShardId, ShardOrder] = {}

    def train(self, orders, on_done):
        self.orders |= orders
        return super().train(orders, on_done)


def fitted(folder: Path, config: EraserConfig) -> str:
    """The digest of a generation that was made there, without a coordinator."""
    store, compute = Store(str(folder)), LocalShardPool(str(folder), config)
    ready = prepare(read_dataset("synthetic", config.data, config.seed), config, compute)
    pool = LocalShardPool(str(folder), ready.config)
    files = [store.write_shard_data(ShardId(shard), data) for shard, data in enumerate(ready.shards)]
    trained = pool.train({ShardId(k): ShardOrder(Epoch(1), file) for k, file in enumerate(files)}, lambda _: None)
    records = tuple(trained[ShardId(k)].record for k in range(len(files)))
    aggregated = pool.aggregate(AggregationOrder(records, KeyedPairs.none()))
    vocabularies = [store.write_vocabulary(ids) for ids in (ready.log.users, ready.log.items)]
    manifest = Manifest(ready.config, aggregated.environment, (), (), *vocabularies, records, aggregated.aggregate)
    return store.write_manifest(manifest).digest


@pytest.fixture(scope="module")
def templates(tmp_path_factory) -> Callable[[str], tuple[Path, str]]:
    """Deployments by the names of `MODELS`, each made once."""
    made: dict[str, tuple[Path, str]] = {}

    def template(model: str) -> tuple[Path, str]:
        if model not in made:
            config = config_from({"data": SMALL, "partition": {"n_shards": 2}, **MODELS[model]})
            folder = tmp_path_factory.mktemp(model) / "template"
            made[model] = folder, fitted(folder, config)
        return made[model]

    return template


@pytest.fixture(params=MODELS)
def deployed(request, templates, tmp_path) -> Deployed:
    return of(request.param, templates, tmp_path)


@pytest.fixture
def sliced(templates, tmp_path) -> Deployed:
    return of("slices", templates, tmp_path)


def of(model: str, templates, tmp_path: Path) -> Deployed:
    folder, digest = templates(model)
    shutil.copytree(folder, tmp_path / model)
    return Deployed(tmp_path / model, digest)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES = {"flipped": flip, "truncated": truncate, "empty": lambda file: file.write_bytes(b""), "deleted": Path.unlink}


# ---- what can be healed -----------------------------------------------------------------------------------------------------


def test_a_generation_in_order_is_left_alone(deployed):
    before = {path: (deployed.folder / path).stat().st_mtime_ns for path in deployed.store.everything()}
    assert deployed.heal() == ()
    assert {path: (deployed.folder / path).stat().st_mtime_ns for path in deployed.store.everything()} == before
    assert not deployed.pool.orders


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_every_kind_of_file_is_healed_to_the_last_bit(deployed, damage):
    before = deployed.tree()
    for ref, name in deployed.names.items():
        damage(deployed.folder / ref.path)
        assert deployed.heal() == (name,)
        assert deployed.tree() == before


def test_a_storage_path_without_any_file_is_healed_as_a_whole(deployed):
    before = deployed.tree()
    shutil.rmtree(deployed.folder)
    assert deployed.heal() == tuple(deployed.names.values())
    assert deployed.tree() == before


def test_names_say_the_kind_and_the_shard_and_no_digest(sliced):
    names = list(sliced.names.values())
    assert len(set(names)) == len(names)
    assert {"the manifest", "the aggregate", "the interactions of shard 0", "checkpoint 2 of shard 1"} < set(names)
    assert all(any(kind in name for name in names) for kind in KINDS)
    assert not any(ref.digest[:6] in name for ref, name in sliced.names.items())


def test_only_shards_with_damaged_vectors_are_trained_again(deployed):
    flip(deployed.file("interactions of shard 0"))
    flip(deployed.file("submodel of shard 1"))
    assert deployed.heal() == ("the interactions of shard 0", "the submodel of shard 1")
    assert list(deployed.pool.orders) == [1]
    assert not deployed.pool.orders[ShardId(1)].changes


def test_training_goes_on_from_the_last_checkpoint_before_the_damage(sliced):
    before, record = sliced.tree(), sliced.loaded.manifest.shards[0]
    for damaged_file, expected in (
        ("submodel of shard 0", record.checkpoints),
        ("checkpoint 2 of shard 0", record.checkpoints[:1]),
        ("checkpoint 1 of shard 0", ()),
    ):
        flip(sliced.file(damaged_file))
        sliced.heal()
        assert sliced.pool.orders[ShardId(0)].checkpoints == expected
        assert sliced.tree() == before


def test_files_of_others_are_left_alone(sliced):
    (sliced.folder / "notes.txt").write_text("not ours")
    left_over = sliced.folder / f"shards/0/submodel-{'0' * 64}.safetensors"
    left_over.write_bytes(b"swept by others")
    before = sliced.tree()
    flip(sliced.file("submodel of shard 0"))
    sliced.heal()
    assert sliced.tree() == before


# ---- what cannot be healed --------------------------------------------------------------------------------------------------


def test_what_memory_has_otherwise_is_not_written(sliced):
    users = sliced.loaded.users
    parts = tuple(Part.empty() if len(part) else part for part in users.parts)
    sliced.loaded = replace(sliced.loaded, users=replace(users, parts=parts))
    flip(sliced.file("of the users"))
    flip(sliced.file("the aggregate"))
    before = sliced.tree()
    with pytest.raises(StoreError, match=r"part \d+ of the users .*\(the content in memory has another digest") as error:
        sliced.heal()
    assert error.value.path == str(sliced.file("of the users").relative_to(sliced.folder))
    assert "restore the storage path from a copy, or run ray-eraser repartition" in str(error.value)
    after = sliced.tree()
    changed = [path for path in before if before[path] != after[path]]
    assert changed == [sliced.loaded.manifest.aggregate.path], "all that can be healed is healed first"
    assert before.keys() == after.keys()


def test_what_training_gives_otherwise_is_refused_and_not_left_behind(sliced):
    other = sliced.loaded.manifest.config.model_copy(update={"seed": 99})
    sliced.pool = CountingPool(str(sliced.folder), other)
    flip(sliced.file("submodel of shard 0"))
    flip(sliced.file("checkpoint 1 of shard 0"))
    before = sliced.tree()
    with pytest.raises(StoreError, match=r"checkpoint 1 of shard 0 and 1 more .*\(training again gives another file"):
        sliced.heal()
    assert sliced.tree() == before


def test_vectors_wait_for_interactions_that_cannot_be_healed(sliced):
    shards = dict(sliced.loaded.shards) | {ShardId(0): sliced.loaded.shards[ShardId(1)]}
    sliced.loaded = replace(sliced.loaded, shards=shards)
    for name in ("interactions of shard 0", "submodel of shard 0", "submodel of shard 1"):
        sliced.file(name).unlink()
    with pytest.raises(StoreError, match="the interactions of shard 0 and 1 more cannot be healed"):
        sliced.heal()
    assert list(sliced.pool.orders) == [1]
    assert sliced.file("submodel of shard 1").exists()


def test_without_the_device_of_the_training_vectors_are_not_healed_and_all_else_is(sliced, monkeypatch):
    gpu = described("cpu") | {"device": "NVIDIA H100 80GB HBM3"}
    manifest = replace(sliced.loaded.manifest, environment=sliced.loaded.manifest.environment | gpu)
    sliced.digest = sliced.store.write_manifest(manifest).digest
    sliced.loaded = replace(sliced.loaded, manifest=manifest, digest=sliced.digest)
    flip(sliced.file("submodel of shard 1"))
    flip(sliced.file("the aggregate"))
    with pytest.raises(
        StoreError, match=r"submodel of shard 1 cannot be healed \(device NVIDIA H100.*this process has the CPU"
    ):
        sliced.heal()
    assert not sliced.pool.orders
    assert damaged(sliced.store, manifest, sliced.digest) == [manifest.shards[1].submodel]

    def fails(*_):
        raise DeviceError("cuda", "the GPU fell off the bus")

    monkeypatch.setattr(sliced.pool, "described", lambda: gpu)
    monkeypatch.setattr(sliced.pool, "train", fails)
    with pytest.raises(StoreError, match=r"the submodel of shard 1 cannot be healed .*fell off the bus"):
        sliced.heal()


def test_a_process_that_dies_is_none_of_the_file(sliced, monkeypatch):
    def dies(*_):
        raise PoolError("shard 0", "its process died")

    monkeypatch.setattr(sliced.pool, "train", dies)
    flip(sliced.file("submodel of shard 0"))
    with pytest.raises(PoolError):
        sliced.heal()


@pytest.mark.parametrize(("number", "way_out"), [(errno.EROFS, "mount the disk writable"), (errno.ENOSPC, "free some space")])
@pytest.mark.parametrize("name", ["the aggregate", "submodel of shard 0"])
def test_a_disk_that_takes_no_files_is_one_error_with_the_way_out(sliced, monkeypatch, name, number, way_out):
    file = sliced.file(name)
    flip(file)
    before, open_file = sliced.tree(), os.open

    def refuse(path, flags, *rest, **more):
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), str(path))
        return open_file(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match=f"cannot be written.*{way_out}") as error:
        sliced.heal()
    assert error.value.path.rpartition("/")[0] == str(file.parent.relative_to(sliced.folder))
    assert sliced.tree() == before


# ---- who may heal -----------------------------------------------------------------------------------------------------------


def test_a_superseded_generation_is_not_healed(sliced):
    def superseded():
        raise StaleEpochError("the ledger", 2, 1)

    for name in ("the manifest", "of the items", "interactions of shard 1", "the aggregate"):
        flip(sliced.file(name))
        before = sliced.tree()
        with pytest.raises(StaleEpochError):
            sliced.heal(in_force=superseded)
        assert sliced.tree() == before
        sliced.heal()
    flip(sliced.file("submodel of shard 0"))
    with pytest.raises(StaleEpochError):  # also where training had come to the right file
        sliced.heal(in_force=superseded)


def test_everything_written_here_is_written_in_force(sliced, monkeypatch):
    entered, put = [], Store._put

    @contextmanager
    def in_force():
        entered.append(True)
        yield
        entered.pop()

    def checked(self, path, content, **how):
        assert entered or path.startswith("shards/0/"), path  # a shard writes what it trains itself, under its epoch
        put(self, path, content, **how)

    monkeypatch.setattr(Store, "_put", checked)
    for name in ("the manifest", "of the users", "interactions of shard 1", "submodel of shard 0"):
        flip(sliced.file(name))
    assert len(sliced.heal(in_force=in_force)) == 4
    assert not entered
