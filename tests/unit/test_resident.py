"""The data that a shard keeps on its device between requests. Nothing remains there of data that an erasure supersedes."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch_devices import TORCH_DEVICES

from ray_eraser.config import EraserConfig, config_from
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.devices import torch_device
from ray_eraser.ids import Epoch, ShardId
from ray_eraser.kernels import resident
from ray_eraser.kernels.resident import overwrite, release, slice_of
from ray_eraser.runtime.processes import SlotProcess
from ray_eraser.shard import Shard, ShardOrder
from ray_eraser.store import Store

PAIRS = [(user, item) for user in range(20) for item in range(12) if (user * 5 + item * 3) % 7 < 3]
MODELS = [
    {"width": 5, "epochs": 2, "alpha0": 0.3},
    {"solver": "adagrad", "width": 5, "epochs": 2},
    {"kind": "bpr", "width": 5, "epochs": 2},
    {"kind": "lightgcn", "width": 5, "epochs": 2},
]
KINDS = ["als", "adagrad", "bpr", "lightgcn"]


def config_on(device: str, model: dict[str, object]) -> EraserConfig:
    return config_from({"partition": {"n_shards": 1}, "model": model, "runtime": {"device": device}})


def slice_data() -> ShardData:
    return ShardData.none().with_learned(KeyedPairs.of(PAIRS), KeyedPairs.of([(3, 100)]))


def tensors_of(shard: Shard) -> list[torch.Tensor]:
    held = shard._resident
    return [*resident._tensors(held), *resident._tensors(resident._slices[held._data.train])]


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path))


def erasing(file, *users: int) -> ShardOrder:
    return ShardOrder(Epoch(1), file, KeyedPairs.of([pair for pair in PAIRS if pair[0] in users]))


@pytest.mark.parametrize("device", TORCH_DEVICES)
@pytest.mark.parametrize("model", MODELS, ids=KINDS)
def test_an_erasure_uses_the_resident_data_and_gives_the_bits_of_a_fresh_process(store, monkeypatch, model, device):
    first = store.write_shard_data(ShardId(0), slice_data())
    config = config_on(device, model)
    shard = Shard(ShardId(0), store.uri, config)
    shard.train(ShardOrder(Epoch(1), first))
    expected = Shard(ShardId(0), store.uri, config).train(erasing(first, 4, 7)).record
    monkeypatch.setattr(Store, "read_shard_data", lambda *_: pytest.fail("it is on the device"))
    assert shard.train(erasing(first, 4, 7)).record == expected


@pytest.mark.parametrize("device", TORCH_DEVICES)
@pytest.mark.parametrize("model", MODELS, ids=KINDS)
def test_data_superseded_by_an_erasure_is_overwritten_after_the_training(store, model, device):
    shard = Shard(ShardId(0), store.uri, config_on(device, model))
    first = store.write_shard_data(ShardId(0), slice_data())
    trained = shard.train(ShardOrder(Epoch(1), first))
    before = tensors_of(shard)
    assert any(tensor.any() for tensor in before)
    after = shard.train(erasing(first, 4)).record
    assert not any(tensor.any() for tensor in before)
    assert len(shard._resident._data.train) == after.n_train == trained.record.n_train - sum(user == 4 for user, _ in PAIRS)
    assert any(tensor.any() for tensor in tensors_of(shard))


@pytest.mark.parametrize("device", TORCH_DEVICES)
@pytest.mark.parametrize("model", MODELS, ids=KINDS)
def test_the_submodel_on_the_device_equals_the_one_in_the_store(store, model, device):
    shard = Shard(ShardId(0), store.uri, config_on(device, model))
    assert shard.embeddings() is None
    record = shard.train(ShardOrder(Epoch(1), store.write_shard_data(ShardId(0), slice_data()))).record
    assert shard.embeddings().same_bits(store.read_embeddings(record.submodel))


def test_no_data_is_kept_on_a_cpu(store):
    shard = Shard(ShardId(0), store.uri, config_on("cpu", MODELS[0]))
    shard.train(ShardOrder(Epoch(1), store.write_shard_data(ShardId(0), slice_data())))
    assert shard._resident is None
    assert shard.embeddings() is None


def test_a_file_that_is_not_resident_is_read_from_the_store(store):
    shard = Shard(ShardId(0), store.uri, config_on("torch-cpu", MODELS[0]))
    first = store.write_shard_data(ShardId(0), slice_data())
    shard.train(erasing(first, 4))  # of a generation that is never published
    again = shard.train(erasing(first, 9)).record
    assert again == Shard(ShardId(0), store.uri, config_on("torch-cpu", MODELS[0])).train(erasing(first, 9)).record


def test_a_shard_that_loses_its_last_pair_keeps_nothing(store):
    shard = Shard(ShardId(0), store.uri, config_on("torch-cpu", MODELS[0]))
    first = store.write_shard_data(ShardId(0), slice_data())
    shard.train(ShardOrder(Epoch(1), first))
    before = tensors_of(shard)
    shard.train(ShardOrder(Epoch(1), first, KeyedPairs.of([*PAIRS, (3, 100)])))
    assert not any(tensor.any() for tensor in before)
    assert len(shard.embeddings().user_keys) == 0
    assert shard._resident._data.train not in resident._slices


@pytest.mark.parametrize("device", TORCH_DEVICES)
def test_a_slice_is_uploaded_once_and_freed_with_its_interactions(device):
    where = torch_device(device)
    pairs = Interactions.of(*np.array(PAIRS, np.int32).T)
    held = slice_of(pairs, where)
    assert slice_of(pairs, where) is held
    assert held.by_user is slice_of(pairs, where).by_user
    gone = [weakref.ref(pairs), weakref.ref(held)]
    del pairs, held
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_released_interactions_are_overwritten_and_uploaded_again_on_request():
    pairs = Interactions.of(*np.array(PAIRS, np.int32).T)
    held = slice_of(pairs, torch.device("cpu"))
    columns = [held.by_user.columns, held.by_item.columns]
    assert all(column.any() for column in columns)
    release(pairs)
    assert not any(column.any() for column in columns)
    assert slice_of(pairs, torch.device("cpu")).by_user.columns.any()
    release(Interactions.none())  # none of this was uploaded


def test_every_tensor_in_a_value_is_overwritten_at_any_depth():
    tensors = [torch.ones(2) for _ in range(4)]
    overwrite({"a": tensors[0], "b": [tensors[1], (tensors[2], 3)], "c": slice_of, "d": None})
    assert [bool(tensor.any()) for tensor in tensors] == [False, False, False, True]


def test_resident_data_of_no_file_of_the_generation_is_dropped(store):
    shard = Shard(ShardId(0), store.uri, config_on("torch-cpu", MODELS[0]))
    first = store.write_shard_data(ShardId(0), slice_data())
    trained = shard.train(erasing(first, 4)).record  # of a batch that fails before it is published
    before = tensors_of(shard)
    shard.forget(trained.interactions)
    assert all(tensor.any() for tensor in before)
    shard.forget(first)
    assert not any(tensor.any() for tensor in before)
    assert shard.embeddings() is None
    assert [len(keys) for keys in shard._resident._keys] == [0, 0]


def test_a_process_that_serves_many_shards_keeps_no_data(store):
    slot = SlotProcess(store.uri, config_on("torch-cpu", MODELS[0]))
    first = store.write_shard_data(ShardId(0), slice_data())
    before = len(resident._slices)
    slot.train(ShardId(0), ShardOrder(Epoch(1), first))
    assert slot._shards[ShardId(0)]._resident is None
    gc.collect()
    assert len(resident._slices) <= before
