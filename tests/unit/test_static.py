from __future__ import annotations

import numpy as np
import pytest

from ray_eraser.aggregation.static import static, static_loss, static_weights
from ray_eraser.config import AggregationConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings

CONFIG = AggregationConfig(kind="static")


def submodel(seed, user_rows, item_rows, width=3):
    rng = np.random.default_rng(seed)
    users, items = (rng.normal(0, 0.5, (len(rows), width)).astype(np.float32) for rows in (user_rows, item_rows))
    return Embeddings(np.array(user_rows, np.int32), users, np.array(item_rows, np.int32), items)


def taste(n_users=20, n_items=12):
    """Pairs in which even users like even items and odd users odd ones, and a submodel that scores them 1 and others 0."""
    pairs = Interactions.of(*np.array([(u, i) for u in range(n_users) for i in range(n_items) if (u + i) % 2 == 0]).T)
    users, items = (np.eye(3, dtype=np.float32)[np.arange(n) % 2] for n in (n_users, n_items))
    return pairs, Embeddings(np.arange(n_users, dtype=np.int32), users, np.arange(n_items, dtype=np.int32), items)


def score(model, user, item):
    if user not in model.user_rows or item not in model.item_rows:
        return 0.0
    return float(model.users[list(model.user_rows).index(user)] @ model.items[list(model.item_rows).index(item)])


def test_the_loss_equals_a_loop_over_all_pairs():
    submodels = [submodel(1, [0, 2, 3], [1, 2]), submodel(2, [1, 2], [0, 1, 3]), submodel(3, [0, 1, 2, 3], [0, 1, 2, 3])]
    pairs = Interactions.of(np.array([0, 1, 2, 3, 3]), np.array([1, 3, 0, 2, 3]))
    observed = set(zip(pairs.users.tolist(), pairs.items.tolist(), strict=True))
    loss_KK, gain_K = static_loss(submodels, pairs, 0.2)
    for weights in ([1, 0, 0], [0, 1, 0], [0.2, 0.3, 0.5], [2, -1, 0.5]):
        expected = 0.0
        for user in range(4):
            for item in range(4):
                summed = sum(w * score(model, user, item) for w, model in zip(weights, submodels, strict=True))
                expected += (summed - 1) ** 2 - 1 if (user, item) in observed else 0.2 * summed**2
        assert weights @ loss_KK @ weights - 2 * gain_K @ weights == pytest.approx(expected, rel=1e-5)


def test_no_other_proportion_of_weights_has_a_lower_loss():
    submodels = [submodel(seed, range(6), range(5)) for seed in range(4)]
    pairs = Interactions.of(np.array([0, 1, 2, 3, 4, 5, 5]), np.array([1, 3, 0, 2, 3, 0, 4]))
    loss_KK, gain_K = static_loss(submodels, pairs, 0.2)

    def best_loss_along(direction):
        """The best loss over all scales, which do not change the ranking."""
        gain = max(0.0, gain_K @ direction)
        return -(gain**2) / (direction @ loss_KK @ direction)

    best = best_loss_along(static_weights(submodels, pairs, 0.2))
    others = np.random.default_rng(0).dirichlet(np.full(4, 0.5), 2000)
    assert best <= min(map(best_loss_along, others)) + 1e-9


def test_weights_are_not_negative_and_sum_to_one():
    pairs, good = taste()
    weights = static_weights([good, *(submodel(seed, range(20), range(12)) for seed in range(3))], pairs, 0.2)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)


def test_a_useless_submodel_weighs_less_than_a_good_one():
    pairs, good = taste()
    weights = static_weights([submodel(1, range(20), range(12)), good], pairs, 0.2)
    assert weights[0] < 0.05
    assert weights[1] > 0.95


def test_a_submodel_that_is_always_wrong_gets_no_weight():
    pairs, good = taste()
    wrong = Embeddings(good.user_rows, -good.users, good.item_rows, good.items)
    assert static_weights([wrong, good], pairs, 0.2) == pytest.approx([0, 1])


def test_an_empty_submodel_gets_no_weight_and_no_columns():
    pairs, good = taste()
    empty = Embeddings.empty(3)
    assert static_weights([empty, good], pairs, 0.2) == pytest.approx([0, 1])
    assert static([empty, good], pairs, CONFIG, 0).same_bits(static([good], pairs, CONFIG, 0))


def test_scores_are_the_weighted_sum_of_the_submodels_scores_and_absent_scores_count_zero():
    pairs, good = taste()
    submodels = [good, submodel(5, [0, 3, 25], [1, 2, 14])]
    weights = static_weights(submodels, pairs, CONFIG.w0)
    model = static(submodels, pairs, CONFIG, 0)
    assert model.width == 6
    for user, item in ((0, 0), (0, 1), (3, 2), (25, 14), (25, 0), (7, 14), (0, 14)):
        expected = sum(w * score(submodel, user, item) for w, submodel in zip(weights, submodels, strict=True))
        assert score(model, user, item) == pytest.approx(expected, abs=1e-6)


def test_without_a_remaining_pair_all_submodels_weigh_the_same():
    submodels = [submodel(1, range(4), range(4)), Embeddings.empty(3), submodel(2, range(4), range(4))]
    assert static_weights(submodels, Interactions.none(), 0.2).tolist() == [0.5, 0, 0.5]


def test_without_a_submodel_the_result_is_empty():
    assert len(static([Embeddings.empty(3)], Interactions.none(), CONFIG, 0).user_rows) == 0


def test_the_same_arguments_give_the_same_bits():
    pairs, good = taste()
    submodels = [good, submodel(1, range(20), range(12))]
    assert static(submodels, pairs, CONFIG, 0).same_bits(static(submodels, pairs, CONFIG, 0))
