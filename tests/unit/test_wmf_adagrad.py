from __future__ import annotations

import numpy as np
import pytest
import torch

from ray_eraser.config import WmfAdagradConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.models.base import Start
from ray_eraser.models.wmf_adagrad import WmfAdagrad, adagrad_step, dropout_mask, non_sampling_loss
from ray_eraser.seeds import normal_rows

PAIRS = Interactions.of(np.array([0, 0, 1, 3, 3, 3, 4]), np.array([1, 3, 0, 0, 1, 2, 2]))  # user 2 has none
W0 = 0.2


@pytest.fixture(autouse=True)
def one_thread():
    with deterministic(1):
        yield


def start_of(interactions, width, seed=0):
    return Start(seed, normal_rows(interactions.item_rows().astype(np.uint64), 1, width))


def fit(interactions, valid=None, seed=0, **settings):
    config = WmfAdagradConfig(**{"width": 4, "epochs": 5, **settings})
    return WmfAdagrad(config).fit(interactions, valid or Interactions.none(), start_of(interactions, config.width, seed))


def checkerboard(n_users=24, n_items=16, left_out=2):
    """A log in which even users like even items and odd users odd ones. `left_out` pairs of every user are held out."""
    pairs = [(user, item) for user in range(n_users) for item in range(n_items) if (user + item) % 2 == 0]
    held_out = [(user, (user + 2 * j) % n_items) for user in range(n_users) for j in range(left_out)]
    everything, hidden = (Interactions.of(*np.array(rows).T) for rows in (pairs, held_out))
    return everything.without(hidden), hidden


def naive_loss(users, items, observed):
    """Weight 1 and target 1 on observed pairs, weight w0 and target 0 on the others, less the constant 1 per observed pair."""
    loss = torch.zeros((), dtype=torch.float64)
    for user in range(len(users)):
        for item in range(len(items)):
            score = users[user] @ items[item]
            loss = loss + ((score - 1) ** 2 - 1 if (user, item) in observed else W0 * score**2)
    return loss


def test_loss_and_gradients_equal_a_loop_over_all_pairs():
    generator = torch.Generator().manual_seed(3)
    users, items = (torch.randn(n, 3, generator=generator, dtype=torch.float64, requires_grad=True) for n in (5, 4))
    observed = set(zip(PAIRS.users.tolist(), PAIRS.items.tolist(), strict=True))
    expected = naive_loss(users, items, observed)
    expected.backward()
    loss, slope_users, slope_items = non_sampling_loss(
        users.detach(), items.detach(), PAIRS.matrix(5, 4).astype(np.float64), W0
    )
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(slope_users, users.grad)
    torch.testing.assert_close(slope_items, items.grad)


def test_the_losses_of_user_batches_add_up_to_the_loss_of_all_users():
    generator = torch.Generator().manual_seed(4)
    users, items = torch.randn(5, 3, generator=generator), torch.randn(4, 3, generator=generator)
    matrix = PAIRS.matrix(5, 4)
    whole, _, slope = non_sampling_loss(users, items, matrix, W0)
    parts = [non_sampling_loss(users[rows], items, matrix[rows], W0) for rows in ([4, 0, 2], [1, 3])]
    assert sum(part[0] for part in parts) == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(sum(part[2] for part in parts), slope)


def test_the_first_adagrad_step_of_a_coordinate_has_the_length_of_the_learning_rate():
    weights, slope = torch.zeros(2), torch.tensor([3.0, -0.5])
    squares = torch.full((2,), 1e-8)
    adagrad_step(weights, slope, squares, lr=0.05)
    torch.testing.assert_close(weights, torch.tensor([-0.05, 0.05]))
    adagrad_step(weights, slope, squares, lr=0.05)
    torch.testing.assert_close(weights, torch.tensor([-0.05, 0.05]) * (1 + 2**-0.5))


def test_dropout_keeps_the_mean():
    mask = dropout_mask(torch.empty(400, 100), 0.7, torch.Generator().manual_seed(5))
    assert mask.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert mask.mean().item() == pytest.approx(1, abs=0.02)


def test_users_of_the_last_short_batch_are_trained():
    interactions, _ = checkerboard()
    # 24 users in batches of 23: without the last batch, one user would keep its initial vector, whose length is about .02.
    users = fit(interactions, batch=23, epochs=1, keep=1).users
    assert (np.linalg.norm(users, axis=1) > 0.07).all()


def test_a_shard_smaller_than_one_batch_learns():
    interactions, _ = checkerboard()
    model = fit(interactions, batch=256, epochs=60, keep=1)
    scores = model.users @ model.items.T
    assert scores[interactions.users, interactions.items].min() > scores[0, 1::2].max() + 0.5


def test_held_out_pairs_of_a_checkerboard_score_above_all_other_pairs():
    interactions, hidden = checkerboard()
    model = fit(interactions, batch=8, epochs=100)
    scores = model.users @ model.items.T
    for user, item in zip(hidden.users, hidden.items, strict=True):
        assert scores[user, item] > scores[user, (user + 1) % 2 :: 2].max()


def test_only_users_and_items_of_the_shard_are_covered():
    interactions, _ = checkerboard()
    shifted = Interactions.of(interactions.users * 1000, interactions.items * 7 + 100)
    here = WmfAdagrad(WmfAdagradConfig(width=4, epochs=3)).fit(interactions, Interactions.none(), start_of(interactions, 4))
    there = WmfAdagrad(WmfAdagradConfig(width=4, epochs=3)).fit(shifted, Interactions.none(), start_of(interactions, 4))
    assert there.user_rows.tolist() == shifted.user_rows().tolist()
    assert there.item_rows.tolist() == shifted.item_rows().tolist()
    assert here.users.tobytes() == there.users.tobytes()
    assert here.items.tobytes() == there.items.tobytes()


def test_the_same_arguments_give_the_same_bits_and_another_seed_others():
    interactions, _ = checkerboard()
    assert fit(interactions, batch=7).same_bits(fit(interactions, batch=7))
    assert not fit(interactions, batch=7).same_bits(fit(interactions, batch=7, seed=1))


def test_no_interactions_give_an_empty_model():
    model = fit(Interactions.none())
    assert model.users.shape == (0, 4)
    assert model.items.shape == (0, 4)


def test_with_patience_the_weights_of_an_earlier_check_come_back():
    interactions, hidden = checkerboard()
    stopped = fit(interactions, hidden, epochs=1000, patience=3, check_every=2)
    # The weights after an epoch of a long run equal those of a run that ends with this epoch.
    assert any(stopped.same_bits(fit(interactions, epochs=epochs)) for epochs in range(2, 60, 2))


def test_without_patience_or_held_out_pairs_all_epochs_are_trained():
    interactions, hidden = checkerboard()
    all_epochs = fit(interactions, epochs=12)
    assert fit(interactions, hidden, epochs=12, patience=0, check_every=1).same_bits(all_epochs)
    assert fit(interactions, None, epochs=12, patience=1, check_every=1).same_bits(all_epochs)
