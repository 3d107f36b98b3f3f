from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch_devices import TORCH_DEVICES, on_gpu

from ray_eraser.aggregation.foldin import sweep
from ray_eraser.config import WmfAlsConfig, load_config
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import ShardData
from ray_eraser.determinism import deterministic
from ray_eraser.devices import torch_device
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import TrainingError
from ray_eraser.ids import ShardId
from ray_eraser.kernels import buckets
from ray_eraser.models import make_model
from ray_eraser.models.base import UNTRAINED, Start
from ray_eraser.models.wmf_als import WmfAls, half_sweep
from ray_eraser.models.wmf_als_torch import Side, WmfAlsTorch, half_sweep_torch
from ray_eraser.seeds import normal_rows
from ray_eraser.testing.model_contract import ModelContract, checkerboard, log_of
from ray_eraser.training.submodel import train_submodel

ALPHA0, REG = 0.3, 0.01


class TestWmfAlsTorch(ModelContract):
    model = WmfAlsTorch(WmfAlsConfig(width=4, epochs=4, alpha0=ALPHA0), torch.device("cpu"))
    device = "torch-cpu"


class TestWmfAlsTorchWiderThanTheShardHasItems(ModelContract):
    model = WmfAlsTorch(WmfAlsConfig(width=24, epochs=4, alpha0=ALPHA0), torch.device("cpu"))
    device = "torch-cpu"


@on_gpu
class TestWmfAlsOnAGpu(TestWmfAlsTorch):
    model = WmfAlsTorch(WmfAlsConfig(width=4, epochs=4, alpha0=ALPHA0), torch.device("cuda"))
    device = "cuda"


@on_gpu
class TestWmfAlsOnAGpuWiderThanTheShardHasItems(TestWmfAlsTorchWiderThanTheShardHasItems):
    model = WmfAlsTorch(WmfAlsConfig(width=24, epochs=4, alpha0=ALPHA0), torch.device("cuda"))
    device = "cuda"


@pytest.fixture(params=TORCH_DEVICES)
def device(request):
    with deterministic(1):
        yield request.param


def skewed_log(n_users=300, n_items=150, n=6000) -> Interactions:
    """A log in which popular items have hundreds of users and some items have one."""
    generator = np.random.default_rng(1)
    items = (n_items * generator.random(n) ** 3).astype(np.int32)
    return Interactions.of(generator.integers(0, n_users, n, np.int32), items)


def start_of(interactions: Interactions, width: int) -> Start:
    return Start(3, normal_rows(interactions.item_rows().astype(np.uint64), 5, width))


def assert_rows_agree(found, expected, within):
    assert found.dtype == np.float32
    error_R = np.linalg.norm(found - expected, axis=1)
    assert (error_R <= within * np.linalg.norm(expected, axis=1)).all()


def assert_models_agree(found: Embeddings, expected: Embeddings, within=1e-4):
    assert found.user_rows.tolist() == expected.user_rows.tolist()
    assert found.item_rows.tolist() == expected.item_rows.tolist()
    assert_rows_agree(found.users, expected.users, within)
    assert_rows_agree(found.items, expected.items, within)


def fit(model, interactions: Interactions) -> Embeddings:
    return model.fit(interactions, Interactions.none(), start_of(interactions, model.config.width))


def test_the_device_chooses_the_class():
    config = WmfAlsConfig(alpha0=ALPHA0)
    assert isinstance(make_model(config, "torch-cpu"), WmfAlsTorch)
    assert isinstance(make_model(config), WmfAls)


@pytest.mark.parametrize("width", [3, 16, 70])
def test_after_all_epochs_vectors_equal_those_of_the_compiled_loops_up_to_rounding(device, width):
    interactions = skewed_log()
    config = WmfAlsConfig(width=width, epochs=8, alpha0=ALPHA0)
    assert_models_agree(fit(make_model(config, device), interactions), fit(WmfAls(config), interactions))


@pytest.mark.parametrize("width", [3, 64])
def test_a_half_sweep_equals_that_of_the_compiled_loops_up_to_rounding(device, width):
    generator, where = np.random.default_rng(2), torch_device(device)
    matrix = sparse.csr_matrix((generator.random((90, 70)) < generator.random((90, 1)) ** 2).astype(np.float32))
    items = generator.normal(0, 0.5, (70, width)).astype(np.float32)
    side = Side.of(matrix, ALPHA0, REG, where)
    users = half_sweep_torch(side, torch.from_numpy(items).to(where), ALPHA0).cpu().numpy()
    assert_rows_agree(users, half_sweep(matrix, items, ALPHA0, REG), within=1e-5)


def test_long_rows_in_pieces_give_nearly_the_same_vectors_and_reproducible_bits(device, monkeypatch):
    interactions, model = skewed_log(), make_model(WmfAlsConfig(width=8, epochs=4, alpha0=ALPHA0), device)
    whole = fit(model, interactions)
    for name, value in (("_PIECE", 32), ("_BAG", 16), ("_WORKSPACE", {"cpu": 1 << 12, "cuda": 1 << 12})):
        monkeypatch.setattr(buckets, name, value)
    pieces = fit(model, interactions)
    assert_models_agree(pieces, whole)
    assert fit(model, interactions).same_bits(pieces)


def test_each_class_continues_from_a_checkpoint_of_the_other(device):
    interactions, config = skewed_log(), WmfAlsConfig(width=8, epochs=3, alpha0=ALPHA0)
    on_torch, compiled = make_model(config, device), WmfAls(config)
    start, none = start_of(interactions, 8), Interactions.none()
    ends = []
    for first, second in ((on_torch, compiled), (compiled, on_torch)):
        before = first.train(UNTRAINED, interactions, none, start, 2)
        ends.append(second.embeddings(second.train(before, interactions, none, start, 1), interactions))
    assert_models_agree(*ends)


def test_training_depends_neither_on_the_seed_nor_on_held_out_pairs(device):
    interactions, withheld = checkerboard()
    model = make_model(WmfAlsConfig(width=4, epochs=2, alpha0=ALPHA0), device)
    items = start_of(interactions, 4).items
    plain = model.fit(interactions, Interactions.none(), Start(0, items))
    assert model.fit(interactions, log_of(withheld.items()), Start(1, items)).same_bits(plain)


def test_a_ridge_too_small_for_single_precision_is_the_same_error_as_on_the_cpu(device):
    generator = np.random.default_rng(0)
    train = Interactions.of(generator.integers(0, 50, 300), generator.integers(0, 40, 300))
    keys = np.arange(50, dtype=np.uint64)
    changes = [f"runtime.device={device}", "model.alpha0=1e-12", "model.width=4"]
    config = load_config(changes=[*changes, "model.reg=1e-5"])
    with pytest.raises(TrainingError, match=r"training of shard 2: vectors are not finite.*: raise model\.reg$"):
        train_submodel(ShardData.of(train, Interactions.none(), keys, keys), config, ShardId(2))
    calmer = load_config(changes=[*changes, "model.reg=0.007"])
    train_submodel(ShardData.of(train, Interactions.none(), keys, keys), calmer, ShardId(2))


class TestSweepsOfAnAggregate:
    """`aggregation.foldin.sweep` on a torch device."""

    def swept(self, sweeps: int, device, interactions=None, items=None) -> Embeddings:
        interactions = skewed_log() if interactions is None else interactions
        rows = np.arange(0, 150, 2, dtype=np.int32)  # half of the items have no vector
        items = normal_rows(rows.astype(np.uint64), 7, 6) if items is None else items
        return sweep(rows, items, interactions, ALPHA0, REG, sweeps, device=device)

    @pytest.mark.parametrize("sweeps", [1, 3])
    def test_items_equal_those_of_the_compiled_loops_up_to_rounding(self, device, sweeps):
        assert_models_agree(self.swept(sweeps, device), self.swept(sweeps, "cpu"))

    def test_the_same_arguments_give_the_same_bits_and_are_not_changed(self, device):
        items = normal_rows(np.arange(75, dtype=np.uint64), 7, 6)
        before = items.copy()
        first = self.swept(2, device, items=items)
        assert self.swept(2, device, items=items).same_bits(first)
        assert np.array_equal(items, before)
        assert not np.shares_memory(first.items, items)

    def test_without_sweeps_or_pairs_the_result_is_that_of_the_cpu(self, device):
        assert self.swept(0, device).same_bits(self.swept(0, "cpu"))
        for interactions in (Interactions.none(), log_of([(3, 5), (4, 7)])):
            assert self.swept(1, device, interactions).same_bits(Embeddings.empty(6))
