from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_devices import TORCH_DEVICES, on_gpu

from ray_eraser.config import BprConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.devices import torch_device
from ray_eraser.kernels import sampling_torch
from ray_eraser.models import make_model
from ray_eraser.models.base import UNTRAINED, Start, Table
from ray_eraser.models.bpr import Bpr, _train_epoch
from ray_eraser.models.bpr_torch import AdagradTable, BprTorch, named_by_batch, train_on, triplet_slopes
from ray_eraser.seeds import normal_rows
from ray_eraser.testing.model_contract import ModelContract, checkerboard, log_of

TRIPLETS = np.array([(0, 1, 0), (0, 1, 2), (1, 0, 3), (3, 2, 3), (0, 3, 0), (4, 2, 4)], np.int32)  # 4: no item


@pytest.fixture(autouse=True)
def one_thread():
    with deterministic(1):
        yield


class TestBprTorch(ModelContract):
    model = BprTorch(BprConfig(width=8, epochs=50, batch=32, lr=0.2), torch.device("cpu"))  # the last batch is shorter
    device = "torch-cpu"


@on_gpu
class TestBprOnAGpu(TestBprTorch):
    model = BprTorch(TestBprTorch.model.config, torch.device("cuda"))
    device = "cuda"


def ragged(n_users=60, n_items=40):
    """A log in which some users have many items and some few; the last user has all."""
    generator = np.random.default_rng(4)
    some = [(user, item) for user in range(n_users) for item in np.flatnonzero(generator.random(n_items) < (user + 5) / 80)]
    return log_of([*some, *((n_users, item) for item in range(n_items))])


def assert_close(found, expected):
    """Compare up to rounding: within a ten-thousandth of a number, or a hundred-thousandth of the largest in the table."""
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def start_of(interactions, width, seed=3):
    return Start(seed, normal_rows(interactions.item_rows().astype(np.uint64), 5, width))


def tables():
    generator = np.random.default_rng(3)
    return generator.normal(size=(5, 3)).astype(np.float32), generator.normal(size=(4, 3)).astype(np.float32)


def moved_on(device, triplets, batch, reg):
    """The two tables, users first, after the batches of these triplets."""
    sides = [
        AdagradTable(
            Table(np.arange(len(vectors), dtype=np.int32), {"vectors": vectors, "squares": np.full_like(vectors, 0.5)}),
            0.1,
            torch_device(device),
        )
        for vectors in tables()
    ]
    train_on(torch.from_numpy(triplets).to(torch_device(device)), *sides, batch, reg)
    assert not sides[1].vectors_MD[-1].any()
    return [side.table() for side in sides]


def test_the_device_chooses_the_class():
    assert isinstance(make_model(BprConfig(), "torch-cpu"), BprTorch)


@pytest.mark.parametrize("device", TORCH_DEVICES)
@pytest.mark.parametrize("batch", [1, 4, 100])  # batches of 4: the last is shorter, and the one before has rows several times
def test_steps_equal_those_of_the_cpu(device, batch):
    expected = [*tables(), *(np.full_like(table, 0.5) for table in tables())]
    _train_epoch(TRIPLETS, *expected, batch, np.float32(0.1), np.float32(0.3))
    users, items = moved_on(device, TRIPLETS, batch, 0.3)
    found = (users["vectors"], items["vectors"], users["squares"], items["squares"])
    for array, like in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, like, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", TORCH_DEVICES)
def test_rows_outside_a_batch_keep_their_bits(device):
    users, items = moved_on(device, np.array([(3, 2, 0), (3, 2, 0)], np.int32), 10, 0.3)
    for table, before, named in ((users, tables()[0], [3]), (items, tables()[1], [0, 2])):
        stayed = np.setdiff1d(table.rows, named)
        assert table["vectors"][stayed].tobytes() == before[stayed].tobytes()
        assert (table["squares"][stayed] == 0.5).all()
        assert (table["squares"][named] > 0.5).all()


@pytest.mark.parametrize("device", TORCH_DEVICES)
def test_every_batch_has_its_distinct_rows_and_their_sums(device):
    generator = np.random.default_rng(1)
    named, slopes = generator.integers(0, 8, 95), generator.normal(size=(95, 3)).astype(np.float32)  # 7: no item
    named[20:30] = 7
    named[50:60] = 2
    found = list(named_by_batch(torch.from_numpy(named).to(torch_device(device)), 7, 10))
    assert len(found) == 10
    for number, of_batch in enumerate(found):
        part, slope = (array[10 * number : 10 * number + 10] for array in (named, slopes))
        rows = np.unique(part[part < 7])
        assert of_batch.rows.tolist() == rows.tolist()
        expected = np.array([slope[part == row].sum(0) for row in rows]).reshape(-1, 3)
        sums = of_batch.sums(torch.from_numpy(slope).to(torch_device(device))).cpu().numpy()
        np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1e3, -1e3])
def test_gradients_of_distant_scores_are_one_or_zero(size):
    users, items = torch.tensor([[size]]), torch.tensor([[1.0], [0.0]])
    of_users, of_items = triplet_slopes(torch.tensor([[0, 0, 1]], dtype=torch.int32), users, items, 0)
    assert of_users.item() == (0 if size > 0 else -1)
    assert of_items.flatten().tolist() == ([0, 0] if size > 0 else [-size, size])


@pytest.mark.parametrize("device", TORCH_DEVICES)
@pytest.mark.parametrize("batch", [64, 65536])  # the last batch of 64 is shorter; 65,536 are more than the log has
def test_several_epochs_give_the_cpus_result_up_to_rounding(device, batch):
    interactions, config = ragged(), BprConfig(width=6, epochs=5, batch=batch)
    arguments = (UNTRAINED, interactions, Interactions.none(), start_of(interactions, 6), 5)
    expected = Bpr(config).train(*arguments).arrays()
    found = BprTorch(config, torch_device(device)).train(*arguments).arrays()
    assert list(found) == list(expected)
    for name, array in found.items():
        assert_close(array, expected[name])


@pytest.mark.parametrize("device", TORCH_DEVICES)
def test_the_number_of_triplets_drawn_at_once_changes_no_bit(device, monkeypatch):
    interactions, model = ragged(), BprTorch(BprConfig(width=6, epochs=2, batch=64), torch_device(device))
    fit = (interactions, Interactions.none(), start_of(interactions, 6))
    at_once = model.fit(*fit)
    monkeypatch.setattr(sampling_torch, "_CHUNK", 130)
    assert model.fit(*fit).same_bits(at_once)


def test_training_ranks_a_users_own_items_above_the_others():
    interactions, _ = checkerboard()
    model = BprTorch(BprConfig(width=8, epochs=100, batch=32, reg=0), torch.device("cpu"))
    embeddings = model.fit(interactions, Interactions.none(), start_of(interactions, 8))
    scores_UI = embeddings.users @ embeddings.items.T
    own_UI = interactions.matrix(16, 12).toarray() > 0
    assert (np.where(own_UI, scores_UI, np.inf).min(1) > np.where(own_UI, -np.inf, scores_UI).max(1)).all()
