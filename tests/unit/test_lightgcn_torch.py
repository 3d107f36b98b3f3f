from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_devices import TORCH_DEVICES, on_gpu

from ray_eraser.config import LightGcnConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.devices import torch_device
from ray_eraser.kernels.resident import Slice, slice_of
from ray_eraser.models import make_model
from ray_eraser.models.base import UNTRAINED, Start
from ray_eraser.models.lightgcn import Adam, Graph, LightGcn
from ray_eraser.models.lightgcn import slopes as slopes_on_cpu
from ray_eraser.models.lightgcn_torch import AdamTorch, GraphTorch, LightGcnTorch, slopes
from ray_eraser.seeds import normal_rows
from ray_eraser.testing.model_contract import ModelContract, checkerboard, log_of

PAIRS = log_of([(0, 1), (0, 3), (1, 0), (2, 2), (3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2), (4, 3)])  # user 4 has all
TRIPLETS = np.array([(0, 1, 0), (0, 1, 2), (1, 0, 3), (3, 2, 3), (0, 3, 0), (4, 2, 4)], np.int32)  # 4: no item


@pytest.fixture(autouse=True)
def one_thread():
    with deterministic(1):
        yield


class TestLightGcnTorch(ModelContract):
    model = LightGcnTorch(LightGcnConfig(width=4, epochs=40, batch=128, lr=0.1), torch.device("cpu"))
    device = "torch-cpu"


@on_gpu
class TestLightGcnOnAGpu(TestLightGcnTorch):
    model = LightGcnTorch(TestLightGcnTorch.model.config, torch.device("cuda"))
    device = "cuda"


def on(device, *arrays):
    return [torch.from_numpy(array).to(torch_device(device)) for array in arrays]


def tables(n_users=5, n_items=4):
    generator = np.random.default_rng(3)
    return generator.normal(size=(n_users, 3)).astype(np.float32), generator.normal(size=(n_items, 3)).astype(np.float32)


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


def test_the_device_chooses_the_class():
    assert isinstance(make_model(LightGcnConfig(), "torch-cpu"), LightGcnTorch)


@pytest.mark.parametrize("device", TORCH_DEVICES)
@pytest.mark.parametrize("layers", [1, 3])
def test_smoothing_equals_the_cpus_up_to_rounding(device, layers):
    log = ragged().compact()
    users, items = tables(len(log.user_rows), len(log.item_rows))
    expected = Graph.of(log.matrix(), layers).smoothed(users, items)
    found = GraphTorch.of(Slice(log, torch_device(device)), layers).smoothed(*on(device, users, items))
    for side, expected_side in zip(found, expected, strict=True):
        np.testing.assert_allclose(side.cpu().numpy(), expected_side, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", TORCH_DEVICES)
def test_gradients_equal_the_cpus_up_to_rounding(device):
    users, items = tables()
    expected = slopes_on_cpu(Graph.of(PAIRS.matrix(5, 4), 3), users, items, TRIPLETS, 0.3)
    graph = GraphTorch.of(slice_of(PAIRS, torch_device(device)), 3)
    found = slopes(graph, *on(device, users, items, TRIPLETS), 0.3)
    for side, expected_side in zip(found, expected, strict=True):
        np.testing.assert_allclose(side.cpu().numpy(), expected_side, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", TORCH_DEVICES)
def test_rows_of_several_ages_step_as_on_the_cpu(device):
    generator = np.random.default_rng(1)
    vectors, slopes_of_steps = (generator.normal(size=shape).astype(np.float32) for shape in ((4, 3), (5, 4, 3)))
    table = Adam.table(np.arange(4), vectors)
    table["steps"][:] = [3, 0, 700, 0]
    on_device, on_cpu = AdamTorch(table.copy(), 0.03, torch_device(device)), Adam(expected := table.copy(), 0.03)
    for slope in slopes_of_steps:
        on_device.step(*on(device, slope))
        on_cpu.step(slope)
    found = on_device.table()
    assert found["steps"].tolist() == expected["steps"].tolist() == [8, 5, 705, 5]
    for name in ("vectors", "means", "squares"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", TORCH_DEVICES)
@pytest.mark.parametrize("batch", [300, 65536])  # the last batch of 300 is shorter
def test_several_epochs_give_the_cpus_result_up_to_rounding(device, batch):
    interactions, config = ragged(), LightGcnConfig(width=6, epochs=5, batch=batch)
    cpu, gpu = LightGcn(config), LightGcnTorch(config, torch_device(device))
    arguments = (UNTRAINED, interactions, Interactions.none(), start_of(interactions, 6), 5)
    expected, found = cpu.train(*arguments), gpu.train(*arguments)
    assert list(found.arrays()) == list(expected.arrays())
    for name, array in found.arrays().items():
        assert_close(array, expected.arrays()[name])
    one, other = gpu.embeddings(found, interactions), cpu.embeddings(expected, interactions)
    assert_close(one.users, other.users)
    assert_close(one.items, other.items)


@pytest.mark.parametrize("device", TORCH_DEVICES)
def test_a_training_that_starts_on_the_cpu_continues_on_the_device(device):
    interactions, config = ragged(), LightGcnConfig(width=6, epochs=5, batch=300)
    cpu, gpu = LightGcn(config), LightGcnTorch(config, torch_device(device))
    first = interactions.take(interactions.users < 30)
    state = cpu.train(UNTRAINED, first, Interactions.none(), start_of(first, 6), 3)
    arguments = (state, interactions, Interactions.none(), start_of(interactions, 6, 4), 3)
    expected, found = cpu.train(*arguments), gpu.train(*arguments)
    assert len(set(found.users["steps"].tolist())) == 2
    for name, array in found.arrays().items():
        assert_close(array, expected.arrays()[name])


def test_training_ranks_a_users_own_items_above_the_others():
    interactions, _ = checkerboard()
    model = LightGcnTorch(LightGcnConfig(width=8, layers=1, epochs=120, batch=32, reg=0), torch.device("cpu"))
    embeddings = model.fit(interactions, Interactions.none(), start_of(interactions, 8))
    scores_UI = embeddings.users @ embeddings.items.T
    own_UI = interactions.matrix(16, 12).toarray() > 0
    assert (np.where(own_UI, scores_UI, np.inf).min(1) > np.where(own_UI, -np.inf, scores_UI).max(1)).all()
