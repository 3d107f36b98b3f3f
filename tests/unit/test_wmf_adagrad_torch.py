from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_devices import TORCH_DEVICES, on_gpu

from ray_eraser.config import WmfAdagradConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.devices import torch_device
from ray_eraser.kernels.buckets import Buckets
from ray_eraser.models import make_model
from ray_eraser.models import wmf_adagrad_torch as module
from ray_eraser.models.base import UNTRAINED, Start
from ray_eraser.models.wmf_adagrad import WmfAdagrad, non_sampling_loss
from ray_eraser.models.wmf_adagrad_torch import PairsByUser, WmfAdagradTorch, non_sampling_slopes
from ray_eraser.seeds import normal_rows
from ray_eraser.testing.model_contract import ModelContract, checkerboard, log_of

CONFIG = WmfAdagradConfig(width=4, epochs=40, batch=7)
W0 = 0.2


class TestWmfAdagradTorch(ModelContract):
    model = WmfAdagradTorch(CONFIG, torch.device("cpu"))
    device = "torch-cpu"


@on_gpu
class TestWmfAdagradOnAGpu(TestWmfAdagradTorch):
    model = WmfAdagradTorch(CONFIG, torch.device("cuda"))
    device = "cuda"


@pytest.fixture(params=TORCH_DEVICES)
def device(request):
    with deterministic(1):
        yield request.param


def random_pairs(n_users=40, n_items=30, share=0.2):
    """Random pairs, in which the last user and the last item have none."""
    generator = np.random.default_rng(2)
    users, items = np.nonzero(generator.random((n_users - 1, n_items - 1)) < share)
    return Interactions.of(users, items).matrix(n_users, n_items)


def start_of(interactions, config):
    return Start(3, normal_rows(interactions.item_rows().astype(np.uint64), 1, config.width))


def slopes_of(observed, batch, device, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    users, items = (
        torch.randn(n, 5, generator=generator, dtype=dtype).to(torch_device(device)) for n in (len(batch), observed.shape[1])
    )
    pairs = PairsByUser.of(Buckets.of_matrix(observed, torch_device(device)))
    slopes = non_sampling_slopes(users, items, pairs.of_users(torch.tensor(batch)), W0)
    expected = non_sampling_loss(users.cpu(), items.cpu(), observed[batch].astype(users.cpu().numpy().dtype), W0)[1:]
    return [slope.cpu() for slope in slopes], expected


def test_the_configuration_and_the_device_choose_the_model(device):
    assert isinstance(make_model(CONFIG, device), WmfAdagradTorch)


@pytest.mark.parametrize("batch", [[5], [7, 39, 3, 0], [39], list(range(39, -1, -1))])
def test_gradients_equal_those_of_the_cpu(device, batch):
    for slope, expected in zip(*slopes_of(random_pairs(), batch, device), strict=True):
        torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("pairs_at_once", [1, 7])
def test_pairs_gathered_in_parts_give_the_same_gradients(device, monkeypatch, pairs_at_once):
    monkeypatch.setattr(module, "_GATHERED", 5 * pairs_at_once)
    for slope, expected in zip(*slopes_of(random_pairs(), list(range(40)), device), strict=True):
        torch.testing.assert_close(slope, expected)


def test_the_pairs_of_a_batch_are_its_users_items_in_batch_order(device):
    observed = log_of([(0, 3), (0, 5), (2, 1), (3, 0), (3, 3), (3, 6)]).matrix(4, 7)
    places, items = PairsByUser.of(Buckets.of_matrix(observed, torch_device(device))).of_users(torch.tensor([1, 3, 0]))
    assert places.tolist() == [1, 1, 1, 2, 2]
    assert items.tolist() == [0, 3, 6, 3, 5]


@pytest.mark.parametrize("keep", [1, 0.7])
def test_steps_equal_those_of_the_cpu(device, keep):
    interactions, _ = checkerboard()
    config = WmfAdagradConfig(width=4, epochs=12, batch=7, keep=keep)
    here, there = (
        make_model(config, where).fit(interactions, Interactions.none(), start_of(interactions, config))
        for where in ("cpu", device)
    )
    # Adagrad divides by the root of the summed squares, so rounding grows if they are small, here by at most this factor.
    np.testing.assert_allclose(there.users, here.users, atol=1e-4)
    np.testing.assert_allclose(there.items, here.items, atol=1e-4)


def test_training_starts_with_the_bits_of_the_cpu_and_a_checkpoint_has_the_same_arrays(device):
    interactions, _ = checkerboard()
    cpu, torch_model = (make_model(CONFIG, where) for where in ("cpu", device))
    start, nothing = start_of(interactions, CONFIG), Interactions.none()
    here, there = (model.train(UNTRAINED, interactions, nothing, start, 0).arrays() for model in (cpu, torch_model))
    assert here.keys() == there.keys()
    assert all(there[name].dtype == array.dtype and np.array_equal(there[name], array) for name, array in here.items())


def test_early_stopping_returns_the_state_of_the_best_check(device):
    interactions, withheld = checkerboard()
    hidden = log_of(withheld.items())
    patient = CONFIG.model_copy(update={"epochs": 1000, "patience": 3, "check_every": 2})
    start = start_of(interactions, CONFIG)
    stopped = make_model(patient, device).fit(interactions, hidden, start)
    # The weights after an epoch of a long run equal those of a run that ends with this epoch.
    lengths = [CONFIG.model_copy(update={"epochs": epochs}) for epochs in range(2, 60, 2)]
    assert any(stopped.same_bits(make_model(one, device).fit(interactions, Interactions.none(), start)) for one in lengths)
    assert isinstance(make_model(patient, "cpu"), WmfAdagrad)
