from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_devices import TORCH_DEVICES

from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.devices import torch_device
from ray_eraser.kernels import sampling_torch
from ray_eraser.kernels.buckets import Buckets
from ray_eraser.kernels.sampling import draw_triplets
from ray_eraser.kernels.sampling_torch import Pairs, batches_of_triplets, draw_triplets_torch
from ray_eraser.testing.model_contract import log_of

RAGGED = log_of([(user, item) for user in range(40) if user != 7 for item in range(0, 90, user + 1)])  # user 0 has all
TRIANGLE = log_of([(user, item) for user in range(70) for item in range(user + 1)])  # every number of items; the last has all


@pytest.fixture(autouse=True)
def one_thread():
    with deterministic(1):
        yield


def pairs_of(matrix, device):
    return Pairs.of(Buckets.of_matrix(matrix, torch_device(device)))


@pytest.mark.parametrize("device", TORCH_DEVICES)
@pytest.mark.parametrize("seed", [0, 1, 2**62 + 12345, 2**63 - 1])
@pytest.mark.parametrize("first", [0, 77, 10**13])
def test_triplets_equal_those_of_the_cpu(device, seed, first):
    for log, shape in ((RAGGED, (41, 91)), (TRIANGLE, (70, 70)), (log_of([(0, 0)]), (1, 1))):
        matrix = log.matrix(*shape)
        drawn = draw_triplets_torch(pairs_of(matrix, device), 3000, seed, first)
        assert drawn.cpu().numpy().tobytes() == draw_triplets(matrix, 3000, seed, first).tobytes()


@settings(max_examples=60, deadline=None)
@given(pairs=st.sets(st.tuples(st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=42), seed=st.integers(0, 2**63 - 1))
def test_triplets_of_any_log_equal_those_of_the_cpu(pairs, seed):
    matrix = log_of(pairs).matrix(7, 6)
    drawn = draw_triplets_torch(pairs_of(matrix, "torch-cpu"), 50, seed)
    assert drawn.tolist() == draw_triplets(matrix, 50, seed).tolist()


@pytest.mark.parametrize("device", TORCH_DEVICES)
def test_the_number_of_triplets_drawn_at_once_changes_no_triplet(device, monkeypatch):
    matrix = RAGGED.matrix(41, 91)
    monkeypatch.setattr(sampling_torch, "_CHUNK", 64)
    drawn = draw_triplets_torch(pairs_of(matrix, device), 1000, 5, 3)
    assert drawn.tolist() == draw_triplets(matrix, 1000, 5, 3).tolist()


@pytest.mark.parametrize(("batch", "lengths"), [(10, [60, 60, 30]), (64, [64, 64, 22]), (100, [100, 50]), (1000, [150])])
def test_parts_are_whole_batches_except_for_the_last(batch, lengths, monkeypatch):
    monkeypatch.setattr(sampling_torch, "_CHUNK", 64)
    matrix = RAGGED.matrix(41, 91)
    parts = list(batches_of_triplets(pairs_of(matrix, "torch-cpu"), 150, batch, 5, first=20))
    assert [len(part) for part in parts] == lengths
    assert np.concatenate(parts).tolist() == draw_triplets(matrix, 150, 5, 20).tolist()


def test_without_pairs_no_triplet_is_drawn():
    pairs = pairs_of(Interactions.none().matrix(3, 4), "torch-cpu")
    assert draw_triplets_torch(pairs, 10, 0).shape == (0, 3)
