from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_devices import TORCH_DEVICES

from ray_eraser.aggregation import slopes
from ray_eraser.aggregation.attention import (
    Present,
    Scorer,
    Transfer,
    _tables,
    attention,
    attention_weights,
    transferred,
    weighted_sum,
)
from ray_eraser.aggregation.slopes import bpr_slopes_torch
from ray_eraser.aggregation.spectral import spectral
from ray_eraser.config import AggregationConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.devices import torch_device
from ray_eraser.embeddings import Embeddings
from ray_eraser.models.bpr import bpr_slopes
from ray_eraser.models.wmf_adagrad import non_sampling_loss

STARTS = ["paper", "spectral"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    with deterministic(1):
        yield


def config(**settings):
    return AggregationConfig(**{"kind": "attention", "attention_width": 3, "epochs": 4, "batch": 8, **settings})


def untrained(**settings):
    """A learning rate so small that steps vanish in float32."""
    return config(epochs=1, lr=1e-30, **settings)


def submodel(seed, user_rows, item_rows, width=4):
    rng = np.random.default_rng(seed)
    users, items = (rng.normal(0, 0.5, (len(rows), width)).astype(np.float32) for rows in (user_rows, item_rows))
    return Embeddings(np.array(user_rows, np.int32), users, np.array(item_rows, np.int32), items)


def taste(n_users=20, n_items=12):
    """Pairs in which even users like even items and odd users odd ones, and two submodels that know half of them each."""
    pairs = Interactions.of(*np.array([(u, i) for u in range(n_users) for i in range(n_items) if (u + i) % 2 == 0]).T)
    halves = []
    for parity in range(2):
        users, items = (np.zeros((n, 4), np.float32) for n in (n_users, n_items))
        users[parity::2, 1] = items[parity::2, 1] = 0.5
        halves.append(Embeddings(np.arange(n_users, dtype=np.int32), users, np.arange(n_items, dtype=np.int32), items))
    return pairs, halves


def parts(seed=0, n_submodels=3, n_rows=6):
    """Vectors (K, R, D), their presence (K, R), a transfer and a scorer; D = 4, A = 2. Absent vectors must not count."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731 - three words, used eight times
    transfer = Transfer(draw(n_submodels, 4, 4), draw(n_submodels, 4))
    present = draw(n_submodels, n_rows) > 0
    present[0] |= ~present.any(0)
    return draw(n_submodels, n_rows, 4), present, transfer, Scorer(draw(4, 2), draw(2), draw(2))


def two_tables():
    """Two tables of unit vectors. Both know row 0, one knows row 1 and the other row 2."""
    vectors = np.eye(4, dtype=np.float32)
    return _tables([np.array([0, 2]), np.array([0, 1])], [vectors[:2], vectors[2:]], CPU)


def loss_of(model, pairs, w0=0.2):
    users, items = torch.from_numpy(model.users), torch.from_numpy(model.items)
    return non_sampling_loss(users, items, pairs.matrix(len(users), len(items)), w0)[0]


def test_transfer_weights_and_sum_equal_equations_5_to_7_row_by_row():
    vectors, present, transfer, scorer = parts()
    there = Present.of(present, CPU)
    moved = transferred(vectors[present], there, transfer)
    aggregated = weighted_sum(moved, attention_weights(moved, there, scorer), there)
    for row in range(6):
        known = [k for k in range(3) if present[k, row]]
        moved_k = {k: vectors[k, row] @ transfer.weight[k] + transfer.bias[k] for k in known}
        score_k = {k: scorer.out @ torch.clamp(moved_k[k] @ scorer.weight + scorer.bias, min=0) for k in known}
        total = sum(torch.exp(score) for score in score_k.values())
        expected = sum(torch.exp(score_k[k]) / total * moved_k[k] for k in known)
        torch.testing.assert_close(aggregated[row], expected)


def test_weights_are_positive_and_sum_to_one_over_the_submodels_that_know_the_row():
    vectors, present, transfer, scorer = parts(seed=1)
    there = Present.of(present, CPU)
    weights = attention_weights(transferred(vectors[present], there, transfer), there, scorer)
    sums = torch.zeros(6).index_add(0, present.nonzero()[:, 1], weights)
    torch.testing.assert_close(sums, torch.ones(6))
    assert (weights > 0).all()


def test_a_row_that_only_one_submodel_knows_is_its_transferred_vector():
    tables = two_tables()
    _, _, transfer, scorer = parts(n_submodels=2)
    aggregated = tables.aggregated(transfer, scorer)
    torch.testing.assert_close(aggregated[2], transfer.weight[0][1] + transfer.bias[0])
    torch.testing.assert_close(aggregated[1], transfer.weight[1][3] + transfer.bias[1])


def test_a_batch_of_rows_is_aggregated_like_all_rows():
    tables = two_tables()
    _, _, transfer, scorer = parts(n_submodels=2)
    chosen = torch.tensor([2, 0])
    torch.testing.assert_close(tables.aggregated(transfer, scorer, chosen), tables.aggregated(transfer, scorer)[chosen])


def test_the_spectral_start_of_one_submodel_scores_like_the_submodel():
    only = submodel(2, range(9), range(7))
    pairs = Interactions.of(np.array([0, 3, 8]), np.array([1, 2, 6]))
    model = attention([only], pairs, untrained(init="spectral"), 0)
    np.testing.assert_allclose(model.users @ model.items.T, only.users @ only.items.T, atol=1e-5)


def test_the_spectral_start_of_equal_submodels_scores_like_their_sum():
    # All K submodels know every row, so each side is an average over K. The start compensates K on both sides together.
    only = submodel(2, range(9), range(7))
    pairs = Interactions.of(np.array([0, 3, 8]), np.array([1, 2, 6]))
    model = attention([only] * 3, pairs, untrained(init="spectral"), 0)
    np.testing.assert_allclose(model.users @ model.items.T, 3 * only.users @ only.items.T, atol=1e-5)


def test_the_spectral_start_equals_the_spectral_aggregate_if_user_and_item_tables_are_equal():
    # With P = Q, the two bases of the best rank-D factors are equal, so the shared basis of eq. 5 loses nothing.
    tables = [submodel(seed, range(8), range(8)) for seed in (3, 4)]
    same = [Embeddings(t.user_rows, t.users, t.user_rows, t.users) for t in tables]
    model = attention(same, Interactions.of(np.arange(8), np.arange(8)), untrained(init="spectral"), 0)
    best = spectral(same, 4, 0)
    np.testing.assert_allclose(model.users @ model.items.T, best.users @ best.items.T, atol=1e-5)


@pytest.mark.parametrize("init", STARTS)
def test_training_lowers_the_loss(init):
    pairs, halves = taste()
    before = attention(halves, pairs, untrained(init=init), 0)
    after = attention(halves, pairs, config(init=init, epochs=80, lr=0.05, keep=1), 0)
    assert loss_of(after, pairs) < loss_of(before, pairs) - 5


@pytest.mark.parametrize("init", STARTS)
def test_training_does_not_change_the_submodels(init):
    pairs, halves = taste()
    before = [array.copy() for half in halves for array in half.arrays().values()]
    attention(halves, pairs, config(init=init), 0)
    after = [array for half in halves for array in half.arrays().values()]
    assert all((x == y).all() for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("init", STARTS)
def test_the_same_arguments_give_the_same_bits_and_another_seed_others(init):
    pairs, halves = taste()
    assert attention(halves, pairs, config(init=init), 0).same_bits(attention(halves, pairs, config(init=init), 0))
    assert not attention(halves, pairs, config(init=init), 0).same_bits(attention(halves, pairs, config(init=init), 1))


@pytest.mark.parametrize("init", STARTS)
def test_an_empty_submodel_changes_nothing(init):
    pairs, (left, right) = taste()
    with_empty = attention([left, Embeddings.empty(4), right], pairs, config(init=init), 0)
    assert with_empty.same_bits(attention([left, right], pairs, config(init=init), 0))


def test_without_a_submodel_the_result_is_empty():
    model = attention([Embeddings.empty(4)], Interactions.none(), config(), 0)
    assert (len(model.user_rows), model.width) == (0, 4)


def test_pairs_that_no_submodel_knows_are_ignored():
    pairs, halves = taste()
    more = Interactions.union([pairs, Interactions.of(np.array([3, 90]), np.array([77, 0]))])
    assert attention(halves, more, config(), 0).same_bits(attention(halves, pairs, config(), 0))


@pytest.mark.parametrize("device", TORCH_DEVICES)
@pytest.mark.parametrize("init", STARTS)
@pytest.mark.parametrize("loss", ["wmf", "bpr"])
def test_a_torch_device_takes_the_steps_of_the_cpu(device, init, loss):
    pairs, halves = taste()
    submodels = [*halves, submodel(3, range(0, 20, 3), range(2, 9))]
    settings = config(init=init, epochs=8)
    here, there = (attention(submodels, pairs, settings, 0, loss, where) for where in ("cpu", device))
    assert there.same_bits(attention(submodels, pairs, settings, 0, loss, device))
    assert there.user_rows.tolist() == here.user_rows.tolist()
    scores_UI = here.users @ here.items.T
    np.testing.assert_allclose(there.users @ there.items.T, scores_UI, atol=1e-4 * abs(scores_UI).max())


@pytest.mark.parametrize("device", TORCH_DEVICES)
@pytest.mark.parametrize("triplets_at_once", [1, 7, 1000])
def test_the_gradients_of_triplets_equal_those_of_bpr(device, monkeypatch, triplets_at_once):
    rng = np.random.default_rng(3)
    users, items = rng.normal(0, 1, (6, 4)), rng.normal(0, 1, (5, 4))
    triplets = np.stack([rng.integers(0, n, 40) for n in (6, 5, 6)], 1).astype(np.int32)  # item 5 means "no item"
    monkeypatch.setattr(slopes, "_GATHERED", 4 * triplets_at_once)
    on_device = (torch.from_numpy(array).to(torch_device(device)) for array in (users, items, triplets))
    for slope, expected in zip(bpr_slopes_torch(*on_device), bpr_slopes(users, items, triplets), strict=True):
        np.testing.assert_allclose(slope.cpu().numpy(), expected, atol=1e-12)
