from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_eraser.aggregation.attention import attention
from ray_eraser.aggregation.static import ranking_loss, ranking_weights, static
from ray_eraser.config import AggregationConfig, BprConfig, EraserConfig, LightGcnConfig, WmfAdagradConfig, WmfAlsConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.embeddings import Embeddings
from ray_eraser.kernels.sampling import draw_triplets
from ray_eraser.models import make_model
from ray_eraser.models.base import Start
from ray_eraser.models.bpr import Bpr, _train_epoch, bpr_slopes
from ray_eraser.seeds import normal_rows
from ray_eraser.testing.model_contract import ModelContract, checkerboard, log_of

PAIRS = log_of([(0, 1), (0, 3), (1, 0), (3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2), (4, 3)])  # user 2 has none, 4 has all
TRIPLETS = np.array([(0, 1, 0), (0, 1, 2), (1, 0, 3), (3, 2, 3), (0, 3, 0), (4, 2, 4)], np.int32)  # 4: no item


@pytest.fixture(autouse=True)
def one_thread():
    with deterministic(1):
        yield


class TestBpr(ModelContract):
    model = Bpr(BprConfig(width=8, epochs=200, batch=8))


class TestBprWithABatchLargerThanTheShard(ModelContract):
    model = Bpr(BprConfig(width=12, epochs=300, batch=4096))


def tables(dtype=np.float64):
    generator = np.random.default_rng(3)
    return generator.normal(size=(5, 3)).astype(dtype), generator.normal(size=(4, 3)).astype(dtype)


def naive_loss(users, items, triplets, reg=0.0):
    """The loss of every user and pair of items, counted as often as a triplet has them. Item 4 scores 0 and has length 0."""
    loss = torch.zeros((), dtype=torch.float64)
    items = torch.cat([items, items.new_zeros(1, items.shape[1])])
    for user in range(len(users)):
        for one in range(4):
            for other in range(5):
                times = sum(triplet == [user, one, other] for triplet in triplets.tolist())
                p, q_i, q_j = users[user], items[one], items[other]
                ridge = reg / 2 * (p @ p + q_i @ q_i + q_j @ q_j)
                loss = loss + times * (torch.log1p(torch.exp(-(p @ q_i - p @ q_j))) + ridge)
    return loss


def naive_slopes(users, items, triplets, reg=0.0):
    users, items = (torch.from_numpy(table.astype(np.float64)).requires_grad_() for table in (users, items))
    naive_loss(users, items, triplets, reg).backward()
    return users.grad.numpy(), items.grad.numpy()


def test_the_configuration_chooses_the_model():
    assert isinstance(make_model(BprConfig()), Bpr)


def test_gradients_equal_those_of_a_loop_over_all_triplets():
    users, items = tables()
    for slope, expected in zip(bpr_slopes(users, items, TRIPLETS), naive_slopes(users, items, TRIPLETS), strict=True):
        np.testing.assert_allclose(slope, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1e3, -1e3])
def test_gradients_of_distant_scores_are_one_or_zero(size):
    users, items = np.full((1, 1), size, np.float32), np.array([[1.0], [0.0]], np.float32)
    slope_users, slope_items = bpr_slopes(users, items, np.array([[0, 0, 1]], np.int32))
    assert slope_users.item() == (0 if size > 0 else -1)
    assert slope_items.ravel().tolist() == ([0, 0] if size > 0 else [-size, size])


def test_a_step_is_an_adagrad_step_on_the_summed_gradient_of_the_batch():
    users, items = tables(np.float32)
    slopes = naive_slopes(users, items, TRIPLETS, reg=0.3)
    moved = [users.copy(), items.copy()]
    squares = [np.full_like(table, 0.5) for table in moved]
    _train_epoch(TRIPLETS, *moved, *squares, 100, np.float32(0.1), np.float32(0.3))
    for before, after, square, slope in zip((users, items), moved, squares, slopes, strict=True):
        np.testing.assert_allclose(square, 0.5 + slope**2, rtol=1e-5)
        np.testing.assert_allclose(after, before - 0.1 * slope / np.sqrt(0.5 + slope**2), rtol=1e-4, atol=1e-6)


def test_an_epoch_equals_the_steps_of_its_batches():
    whole, parts = ([*tables(np.float32), *(np.full_like(table, 0.5) for table in tables(np.float32))] for _ in range(2))
    _train_epoch(TRIPLETS, *whole, 4, np.float32(0.1), np.float32(0.3))
    for part in (TRIPLETS[:4], TRIPLETS[4:]):  # the last batch is shorter
        _train_epoch(part, *parts, 4, np.float32(0.1), np.float32(0.3))
    assert all((one == other).all() for one, other in zip(whole, parts, strict=True))


@settings(max_examples=60, deadline=None)
@given(pairs=st.sets(st.tuples(st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=42), seed=st.integers(0, 2**63 - 1))
def test_a_triplet_has_a_user_an_item_of_the_user_and_an_item_that_the_user_lacks(pairs, seed):
    drawn = draw_triplets(log_of(pairs).matrix(7, 6), 50, seed)
    assert drawn.shape == (50, 3)
    for user, positive, negative in drawn.tolist():
        own = {item for one, item in pairs if one == user}
        assert positive in own
        assert negative not in own
        assert negative < 6 or (negative == 6 and len(own) == 6)


def test_users_and_their_own_and_other_items_are_drawn_uniformly():
    drawn = draw_triplets(PAIRS.matrix(5, 4), 40_000, 7)
    cells, counts = np.unique(drawn, axis=0, return_counts=True)
    expected = {}
    for user in (0, 1, 3, 4):
        own = PAIRS.items[PAIRS.users == user].tolist()
        others = [item for item in range(4) if item not in own] or [4]
        expected |= {(user, one, other): 40_000 / 4 / len(own) / len(others) for one in own for other in others}
    assert {tuple(cell) for cell in cells.tolist()} == set(expected)
    for cell, count in zip(cells.tolist(), counts.tolist(), strict=True):
        assert count == pytest.approx(expected[tuple(cell)], abs=5 * expected[tuple(cell)] ** 0.5)


def test_a_triplet_depends_on_its_number_and_not_on_how_many_are_drawn_at_once():
    matrix = PAIRS.matrix(5, 4)
    together = draw_triplets(matrix, 90, 5)  # more triplets than are searched together
    assert np.concatenate([draw_triplets(matrix, 10, 5, first) for first in range(0, 90, 10)]).tolist() == together.tolist()
    assert draw_triplets(matrix, 90, 6).tolist() != together.tolist()


def test_without_pairs_no_triplet_is_drawn():
    assert draw_triplets(Interactions.none().matrix(3, 4), 10, 0).shape == (0, 3)


def test_positives_of_another_shard_may_be_negatives_of_this_one():
    # The user has items 0 to 3, but this shard holds only item 0, so the others may be negatives here.
    shard = log_of([(0, 0), (1, 1), (1, 2), (1, 3)])
    drawn = draw_triplets(shard.matrix(2, 4), 200, 1)
    assert set(drawn[drawn[:, 0] == 0, 2].tolist()) == {1, 2, 3}


def test_training_ranks_a_users_own_items_above_the_others():
    interactions, _ = checkerboard()
    start = Start(1, normal_rows(interactions.item_rows().astype(np.uint64), 1, 8))
    model = Bpr(BprConfig(width=8, epochs=200, batch=16, reg=0)).fit(interactions, Interactions.none(), start)
    scores_UI = model.users @ model.items.T
    own_UI = interactions.matrix(16, 12).toarray() > 0
    assert (np.where(own_UI, scores_UI, np.inf).min(1) > np.where(own_UI, -np.inf, scores_UI).max(1)).all()


def test_training_depends_on_the_seed_and_not_on_held_out_pairs():
    interactions, withheld = checkerboard()
    model, items = Bpr(BprConfig(width=4, epochs=2)), normal_rows(np.arange(12, dtype=np.uint64), 1, 4)
    plain = model.fit(interactions, Interactions.none(), Start(0, items))
    assert model.fit(interactions, log_of(withheld.items()), Start(0, items)).same_bits(plain)
    assert not model.fit(interactions, Interactions.none(), Start(1, items)).same_bits(plain)


def halves():
    """Pairs in which even users like even items and odd users odd ones, and two submodels that know one kind each."""
    pairs = log_of([(user, item) for user in range(20) for item in range(12) if (user + item) % 2 == 0])
    submodels = []
    for kind in range(2):
        users, items = (np.zeros((n, 4), np.float32) for n in (20, 12))
        users[kind::2, 1] = items[kind::2, 1] = 0.5
        submodels.append(Embeddings(np.arange(20, dtype=np.int32), users, np.arange(12, dtype=np.int32), items))
    return pairs, submodels


def share_in_order(model, pairs):
    """The share of pairs of an own and another item of a user that the model ranks correctly; ties count as wrong."""
    scores_UI = model.users @ model.items.T
    own_UI = pairs.matrix(*scores_UI.shape).toarray() > 0
    return np.mean([(scores[own][:, None] > scores[~own]).mean() for scores, own in zip(scores_UI, own_UI, strict=True)])


@pytest.mark.parametrize(
    ("model", "own", "expected"),
    [
        (WmfAlsConfig(), "base", "wmf"),
        (WmfAdagradConfig(), "base", "wmf"),
        (BprConfig(), "base", "bpr"),
        (LightGcnConfig(), "base", "bpr"),
        (BprConfig(), "wmf", "wmf"),
        (WmfAlsConfig(), "bpr", "bpr"),
    ],
)
def test_a_learned_aggregation_uses_the_loss_of_its_base_model_by_default(model, own, expected):
    assert EraserConfig(model=model, aggregation=AggregationConfig(loss=own)).aggregation_loss == expected


@pytest.mark.parametrize("init", ["paper", "spectral"])
def test_attention_with_the_bpr_loss_ranks_a_users_own_items_first(init):
    pairs, submodels = halves()
    config = AggregationConfig(kind="attention", init=init, attention_width=3, epochs=40, batch=8, lr=0.05, reg=0, keep=1)
    assert share_in_order(attention(submodels, pairs, config, 0, "bpr"), pairs) > 0.99


def test_attention_with_the_bpr_loss_is_reproducible_and_differs_from_the_wmf_loss():
    pairs, submodels = halves()
    config = AggregationConfig(kind="attention", attention_width=3, epochs=3, batch=8)
    first = attention(submodels, pairs, config, 0, "bpr")
    assert attention(submodels, pairs, config, 0, "bpr").same_bits(first)
    assert not attention(submodels, pairs, config, 0, "wmf").same_bits(first)


def test_the_loss_of_shard_weights_and_its_gradient_equal_a_loop_over_triplets():
    margins = np.random.default_rng(2).normal(size=(7, 3))
    weights = torch.tensor([0.2, 1.5, 0.0], dtype=torch.float64, requires_grad=True)
    expected = sum(torch.log1p(torch.exp(-(torch.from_numpy(row) @ weights))) for row in margins) / 7
    expected.backward()
    loss, slope = ranking_loss(margins, weights.detach().numpy())
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(slope, weights.grad.numpy(), rtol=1e-10)


def test_a_good_submodel_weighs_more_than_noise_and_an_always_wrong_one_weighs_nothing():
    pairs, submodels = halves()
    good = Embeddings(
        submodels[0].user_rows,
        np.eye(4, dtype=np.float32)[np.arange(20) % 2],
        submodels[0].item_rows,
        np.eye(4, dtype=np.float32)[np.arange(12) % 2],
    )
    wrong = Embeddings(good.user_rows, -good.users, good.item_rows, good.items)
    generator = np.random.default_rng(1)
    noise = Embeddings(
        good.user_rows,
        generator.normal(size=(20, 4)).astype(np.float32),
        good.item_rows,
        generator.normal(size=(12, 4)).astype(np.float32),
    )
    weights = ranking_weights([wrong, noise, good, Embeddings.empty(4)], pairs, 3)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] == weights[3] == 0
    assert 0 <= weights[1] < 0.1
    assert weights[2] > 0.9


def test_without_informative_triplets_all_submodels_weigh_the_same():
    pairs, submodels = halves()
    everything = log_of([(user, item) for user in range(3) for item in range(2)])
    for log in (everything, Interactions.none()):
        assert ranking_weights([submodels[0], Embeddings.empty(4), submodels[1]], log, 3).tolist() == [0.5, 0, 0.5]
    assert static(submodels, pairs, AggregationConfig(kind="static"), 0, "bpr").width == 8
