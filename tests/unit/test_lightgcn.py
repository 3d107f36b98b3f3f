from __future__ import annotations

import numpy as np
import pytest
import torch

from ray_eraser.config import LightGcnConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.models import make_model
from ray_eraser.models.base import Start
from ray_eraser.models.lightgcn import Adam, Graph, LightGcn, neighbour_means, slopes
from ray_eraser.seeds import normal_rows
from ray_eraser.testing.model_contract import ModelContract, checkerboard, log_of

PAIRS = log_of([(0, 1), (0, 3), (1, 0), (2, 2), (3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2), (4, 3)])  # user 4 has all
TRIPLETS = np.array([(0, 1, 0), (0, 1, 2), (1, 0, 3), (3, 2, 3), (0, 3, 0), (4, 2, 4)], np.int32)  # 4: no item


@pytest.fixture(autouse=True)
def one_thread():
    with deterministic(1):
        yield


class TestLightGcn(ModelContract):
    model = LightGcn(LightGcnConfig(width=4, epochs=60, batch=16))


class TestLightGcnWithABatchLargerThanTheShardAndOneLayer(ModelContract):
    model = LightGcn(LightGcnConfig(width=6, layers=1, epochs=200))


def tables(n_users=5, n_items=4, dtype=np.float64):
    generator = np.random.default_rng(3)
    return generator.normal(size=(n_users, 3)).astype(dtype), generator.normal(size=(n_items, 3)).astype(dtype)


def naive_smoothed(users, items, pairs, layers):
    """Equations 3 and 4 of He et al. 2020, node by node; tensors."""
    of_user = {user: pairs.items[pairs.users == user].tolist() for user in range(len(users))}
    of_item = {item: pairs.users[pairs.items == item].tolist() for item in range(len(items))}
    steps = [(users, items)]
    for _ in range(layers):
        before_U, before_I = steps[-1]
        after_U = torch.stack(
            [sum(before_I[i] / (len(of_user[u]) * len(of_item[i])) ** 0.5 for i in of_user[u]) for u in range(len(users))]
        )
        after_I = torch.stack(
            [sum(before_U[u] / (len(of_user[u]) * len(of_item[i])) ** 0.5 for u in of_item[i]) for i in range(len(items))]
        )
        steps.append((after_U, after_I))
    return tuple(sum(side) / (layers + 1) for side in zip(*steps, strict=True))


def naive_loss(users, items, pairs, triplets, layers, reg):
    """The loss of every triplet with smoothed vectors, plus the ridge of the others. Item 4 scores 0 and has length 0."""
    smoothed_U, smoothed_I = naive_smoothed(users, items, pairs, layers)
    nothing = items.new_zeros(1, items.shape[1])
    smoothed_I, items = torch.cat([smoothed_I, nothing]), torch.cat([items, nothing])
    loss = torch.zeros((), dtype=torch.float64)
    for user, positive, negative in triplets.tolist():
        margin = smoothed_U[user] @ smoothed_I[positive] - smoothed_U[user] @ smoothed_I[negative]
        squares = sum(vector @ vector for vector in (users[user], items[positive], items[negative]))
        loss = loss + torch.log1p(torch.exp(-margin)) + reg / 2 * squares
    return loss


def test_the_configuration_chooses_the_model():
    assert isinstance(make_model(LightGcnConfig()), LightGcn)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_smoothing_is_the_mean_over_layers_of_the_normalised_sums_node_by_node(layers):
    users, items = tables()
    smoothed = Graph.of(PAIRS.matrix(5, 4), layers).smoothed(users, items)
    expected = naive_smoothed(torch.from_numpy(users), torch.from_numpy(items), PAIRS, layers)
    for side, expected_side in zip(smoothed, expected, strict=True):
        np.testing.assert_allclose(side, expected_side.numpy(), rtol=1e-12)


def test_smoothing_is_symmetric():
    graph = Graph.of(PAIRS.matrix(5, 4), 3)
    (one_U, one_I), (other_U, other_I) = tables(), [table[::-1].copy() for table in tables()]
    smooth_U, smooth_I = graph.smoothed(one_U, one_I)
    back_U, back_I = graph.smoothed(other_U, other_I)
    assert (smooth_U * other_U).sum() + (smooth_I * other_I).sum() == pytest.approx(
        (one_U * back_U).sum() + (one_I * back_I).sum()
    )


@pytest.mark.parametrize("layers", [1, 3])
def test_gradients_equal_those_of_a_loop_over_nodes_and_triplets(layers):
    users, items = tables()
    found = slopes(Graph.of(PAIRS.matrix(5, 4), layers), users, items, TRIPLETS, reg=0.3)
    users, items = (torch.from_numpy(table).requires_grad_() for table in (users, items))
    naive_loss(users, items, PAIRS, TRIPLETS, layers, 0.3).backward()
    np.testing.assert_allclose(found[0], users.grad.numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[1], items.grad.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n_columns", [1, 3, 4, 5, 11])
def test_means_are_over_any_number_of_neighbours(n_columns):
    edges = log_of([(row, column) for row in range(n_columns) for column in range(row + 1)]).matrix(n_columns, n_columns)
    others = np.random.default_rng(1).normal(size=(n_columns, 2)).astype(np.float32)
    expected = [others[: row + 1].mean(0) for row in range(n_columns)]
    np.testing.assert_allclose(neighbour_means(edges, others), expected, rtol=1e-5, atol=1e-6)


def test_steps_equal_those_of_torchs_adam():
    generator = np.random.default_rng(1)
    weights = generator.normal(size=(4, 3)).astype(np.float32)
    reference = torch.from_numpy(weights.copy()).requires_grad_()
    optimizer, adam = torch.optim.Adam([reference], lr=0.03), Adam(Adam.table(np.arange(4), weights), 0.03)
    for _ in range(5):
        slope = generator.normal(size=(4, 3)).astype(np.float32)
        reference.grad = torch.from_numpy(slope.copy())
        optimizer.step()
        adam.step(slope)
    np.testing.assert_allclose(adam.weights, reference.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_old_rows_continue_their_steps_and_new_rows_start_theirs():
    generator = np.random.default_rng(2)
    start, slopes_of_steps = (generator.normal(size=shape).astype(np.float32) for shape in ((4, 3), (5, 4, 3)))
    without_a_stop = Adam.table(np.arange(4), start.copy())
    stopped = Adam.table(np.array([0, 2]), start[[0, 2]])
    adam = Adam(without_a_stop, 0.03)
    for slope in slopes_of_steps:
        adam.step(slope)
    adam = Adam(stopped, 0.03)
    for slope in slopes_of_steps[:3]:
        adam.step(slope[[0, 2]])
    grown = Adam.table(np.arange(4), start.copy()).after(stopped)
    adam = Adam(grown, 0.03)
    for slope in slopes_of_steps[3:]:
        adam.step(slope)
    assert grown["steps"].tolist() == [5, 2, 5, 2]
    assert grown["vectors"][[0, 2]].tobytes() == without_a_stop["vectors"][[0, 2]].tobytes()
    fresh = Adam.table(np.array([1, 3]), start[[1, 3]])
    adam = Adam(fresh, 0.03)
    for slope in slopes_of_steps[3:]:
        adam.step(slope[[1, 3]])
    assert grown["vectors"][[1, 3]].tobytes() == fresh["vectors"].tobytes()


def test_training_ranks_a_users_own_items_above_the_others():
    # One layer and no ridge, because three layers make all items of a kind alike, withheld ones included, as they should.
    interactions, _ = checkerboard()
    start = Start(1, normal_rows(interactions.item_rows().astype(np.uint64), 1, 8))
    config = LightGcnConfig(width=8, layers=1, epochs=300, batch=16, reg=0)
    model = LightGcn(config).fit(interactions, Interactions.none(), start)
    scores_UI = model.users @ model.items.T
    own_UI = interactions.matrix(16, 12).toarray() > 0
    assert (np.where(own_UI, scores_UI, np.inf).min(1) > np.where(own_UI, -np.inf, scores_UI).max(1)).all()


def test_training_depends_on_the_seed_and_not_on_held_out_pairs():
    interactions, withheld = checkerboard()
    model, items = LightGcn(LightGcnConfig(width=4, epochs=2)), normal_rows(np.arange(12, dtype=np.uint64), 1, 4)
    plain = model.fit(interactions, Interactions.none(), Start(0, items))
    assert model.fit(interactions, log_of(withheld.items()), Start(0, items)).same_bits(plain)
    assert not model.fit(interactions, Interactions.none(), Start(1, items)).same_bits(plain)
