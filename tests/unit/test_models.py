from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ray_eraser.config import WmfAdagradConfig, WmfAlsConfig, load_config
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import ShardData
from ray_eraser.determinism import deterministic
from ray_eraser.errors import TrainingError
from ray_eraser.ids import ShardId
from ray_eraser.kernels.ridge import Ridge
from ray_eraser.models import make_model
from ray_eraser.models.base import Start
from ray_eraser.models.wmf_adagrad import WmfAdagrad
from ray_eraser.models.wmf_als import WmfAls, base_of, half_sweep, ridge_of
from ray_eraser.seeds import normal_rows
from ray_eraser.testing.model_contract import ModelContract, checkerboard, log_of
from ray_eraser.training.submodel import train_submodel

ALPHA0, REG = 0.3, 0.01


class TestWmfAls(ModelContract):
    model = WmfAls(WmfAlsConfig(width=4, epochs=4, alpha0=ALPHA0))


class TestWmfAlsWiderThanTheShardHasItems(ModelContract):
    model = WmfAls(WmfAlsConfig(width=24, epochs=4, alpha0=ALPHA0))


class TestWmfAdagrad(ModelContract):
    model = WmfAdagrad(WmfAdagradConfig(width=4, epochs=40, batch=7))


@pytest.fixture(autouse=True)
def one_thread():
    with deterministic(1):
        yield


def random_matrix(generator, n_rows, n_columns, density) -> sparse.csr_matrix:
    return sparse.csr_matrix((generator.random((n_rows, n_columns)) < density).astype(np.float32))


def vectors(generator, n, width) -> np.ndarray:
    return generator.normal(0, 0.5, (n, width)).astype(np.float32)


def double(vectors) -> torch.Tensor:
    return torch.from_numpy(vectors).double()


def naive_half_sweep(matrix, others, alpha0, reg):
    """Solve each row's normal equations in dense float64; zeros for a row without a pair."""
    others = others.astype(np.float64)
    solved = np.zeros((matrix.shape[0], others.shape[1]))
    for row in range(matrix.shape[0]):
        own = others[matrix[row].indices]
        ridge = reg * (len(own) + alpha0 * len(others))
        system = alpha0 * others.T @ others + own.T @ own + ridge * np.eye(others.shape[1])
        if len(own):
            solved[row] = np.linalg.solve(system, own.sum(0))
    return solved


def naive_loss(matrix, users, items, alpha0, reg):
    """The squared error of every pair, plus the ridge of every row; float64 tensors."""
    loss = torch.zeros((), dtype=torch.float64)
    observed = matrix.toarray() > 0
    for user in range(len(users)):
        for item in range(len(items)):
            score = users[user] @ items[item]
            loss = loss + alpha0 * score**2 + ((score - 1) ** 2 if observed[user, item] else 0)
    for rows, n_others, degrees in ((users, len(items), observed.sum(1)), (items, len(users), observed.sum(0))):
        for row, degree in enumerate(degrees):
            loss = loss + reg * (int(degree) + alpha0 * n_others) * (rows[row] @ rows[row])
    return loss


def assert_rows_agree(solved, expected, within=1e-4):
    assert solved.dtype == np.float32
    error_R = np.linalg.norm(solved - expected, axis=1)
    assert (error_R <= within * np.linalg.norm(expected, axis=1)).all()


def test_the_configuration_chooses_the_model():
    assert isinstance(make_model(WmfAlsConfig()), WmfAls)
    assert isinstance(make_model(WmfAdagradConfig()), WmfAdagrad)


@pytest.mark.parametrize(
    ("width", "density"),
    [
        pytest.param(3, 0.6, id="every degree at or above the width"),
        pytest.param(16, 0.2, id="every degree below the width"),
        pytest.param(9, 0.3, id="both"),
        pytest.param(1, 0.3, id="width one"),
        pytest.param(4, 1.0, id="everybody has everything"),
    ],
)
def test_a_half_sweep_solves_the_normal_equations_of_every_row(width, density):
    generator = np.random.default_rng(width)
    matrix, items = random_matrix(generator, 40, 30, density), vectors(generator, 30, width)
    assert_rows_agree(half_sweep(matrix, items, ALPHA0, REG), naive_half_sweep(matrix, items, ALPHA0, REG))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_rows=st.integers(1, 8),
    n_columns=st.integers(1, 12),
    width=st.integers(1, 8),
    density=st.sampled_from([0.1, 0.5, 1.0]),
    alpha0=st.sampled_from([0.02, 0.3, 1.0]),
)
def test_a_half_sweep_of_any_shape_solves_the_normal_equations(seed, n_rows, n_columns, width, density, alpha0):
    generator = np.random.default_rng(seed)
    matrix, items = random_matrix(generator, n_rows, n_columns, density), vectors(generator, n_columns, width)
    # Directions with less than width * eps of the spectrum are lost in rounding. They may hold the square root of this of a
    # vector.
    left_out = np.sqrt(width * np.finfo(np.float32).eps)
    expected = naive_half_sweep(matrix, items, alpha0, 0.1)
    assert_rows_agree(half_sweep(matrix, items, alpha0, 0.1), expected, within=1e-4 + 10 * left_out)


def test_rows_of_very_different_degrees_are_solved_over_their_own_pairs():
    # Degrees from 0 to 60, and more rows than are solved together.
    degrees = [0, 60, 1, 2, 9, 9, 10, 8, 30, 33, 59, 0, 1, 60, 12, 5, 5, 7, 44]
    matrix = sparse.csr_matrix(np.array([[column < degree for column in range(60)] for degree in degrees], np.float32))
    items = vectors(np.random.default_rng(2), 60, 10)
    assert_rows_agree(half_sweep(matrix, items, ALPHA0, REG), naive_half_sweep(matrix, items, ALPHA0, REG))


@pytest.mark.parametrize("width", [3, 64, 66])
@pytest.mark.parametrize("density", [0.9, 0.05, 0.01])
def test_a_row_has_the_same_bits_alone_and_with_others(width, density):
    generator = np.random.default_rng(7)
    matrix, items = random_matrix(generator, 37, 700, density), vectors(generator, 700, width)
    together = half_sweep(matrix, items, ALPHA0, REG)
    for row in (0, 15, 16, 36):
        assert np.array_equal(half_sweep(matrix[row], items, ALPHA0, REG)[0], together[row])


@pytest.mark.parametrize("width", [3, 64])
def test_a_half_sweep_gives_the_same_bits_on_any_number_of_cores(width):
    generator = np.random.default_rng(8)
    # Rows with a tenth and with nine tenths of the columns, so short and long ones, more of each than one thread gets.
    densities = np.where(np.arange(1100) % 2, 0.9, 0.1)
    matrix = sparse.csr_matrix((generator.random((1100, 60)) < densities[:, None]).astype(np.float32))
    items = vectors(generator, 60, width)
    alone = half_sweep(matrix, items, ALPHA0, REG)
    for cores in (2, 3):
        with deterministic(1, cores):
            assert np.array_equal(half_sweep(matrix, items, ALPHA0, REG), alone)


@pytest.mark.parametrize("alpha0", [1e-4, 0.3, 10.0])
@pytest.mark.parametrize("width", [8, 64, 130])
def test_short_and_long_rows_solve_the_same_equations(width, alpha0):
    # At every length from one column to twice the width, by either system.
    generator = np.random.default_rng(3)
    n_columns = 2 * width
    matrix = sparse.csr_matrix(np.tri(n_columns, dtype=np.float32)[:, generator.permutation(n_columns)])
    items = vectors(generator, n_columns, width)
    expected = naive_half_sweep(matrix, items, alpha0, REG)
    assert_rows_agree(half_sweep(matrix, items, alpha0, REG), expected, within=1e-3)
    ridge, lengths = Ridge(items, base_of(items, alpha0)), np.diff(matrix.indptr)
    ridges = ridge_of(lengths, n_columns, alpha0, REG)
    by_either = []
    for ridge._short in (0, width):
        by_either.append(ridge.solve(matrix.indptr, matrix.indices, ridges)[:width])
    assert not np.array_equal(*by_either)
    for solved in by_either:
        assert_rows_agree(solved, expected[:width], within=1e-3)


def test_a_side_that_is_not_finite_gives_rows_that_are_not_finite():
    items = vectors(np.random.default_rng(1), 4, 8)
    items[2, 3] = np.inf
    with np.errstate(all="ignore"):
        solved = half_sweep(log_of([(0, 0), (0, 1), (1, 2)]).matrix(2, 4), items, ALPHA0, REG)
    assert not np.isfinite(solved).any()


@pytest.mark.parametrize("width", [2, 20])
def test_rows_without_a_pair_are_zero(width):
    matrix = log_of([(1, 0), (1, 3), (3, 2)]).matrix(5, 4)
    solved = half_sweep(matrix, vectors(np.random.default_rng(1), 4, width), ALPHA0, REG)
    assert solved.any(1).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("width", [2, 12])
def test_identical_columns_are_solved_as_one_direction(width):
    # With q in every column, p = t q and t (alpha0 C + n) |q|^2 + t ridge = n.
    column = np.linspace(0.3, 0.8, width).astype(np.float32)
    matrix = log_of([(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 2)]).matrix(2, 5)
    scores = half_sweep(matrix, np.tile(column, (5, 1)), ALPHA0, REG) @ column
    square = float(column @ column)
    expected = [n * square / ((ALPHA0 * 5 + n) * square + REG * (n + ALPHA0 * 5)) for n in (5, 1)]
    assert scores.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("width", [3, 8])
def test_no_half_sweep_raises_the_loss(width):
    generator = np.random.default_rng(4)
    matrix = random_matrix(generator, 9, 7, 0.4)
    transposed = matrix.T.tocsr()
    users, items = vectors(generator, 9, width), vectors(generator, 7, width)
    losses = [naive_loss(matrix, double(users), double(items), ALPHA0, REG).item()]
    for _ in range(4):
        users = half_sweep(matrix, items, ALPHA0, REG)
        losses.append(naive_loss(matrix, double(users), double(items), ALPHA0, REG).item())
        items = half_sweep(transposed, users, ALPHA0, REG)
        losses.append(naive_loss(matrix, double(users), double(items), ALPHA0, REG).item())
    assert losses[1] < 0.9 * losses[0]
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(losses))


@pytest.mark.parametrize("width", [3, 8])
def test_the_loss_is_flat_at_solved_rows(width):
    generator = np.random.default_rng(5)
    matrix, items = random_matrix(generator, 9, 7, 0.5), vectors(generator, 7, width)
    slopes = []
    for solved in (np.zeros((9, width)), half_sweep(matrix, items, ALPHA0, REG)):
        users = double(solved).requires_grad_()
        naive_loss(matrix, users, double(items), ALPHA0, REG).backward()
        slopes.append(users.grad.norm().item())
    assert slopes[1] < 1e-5 * slopes[0]


def test_als_returns_users_that_are_solved_on_its_items():
    interactions, _ = checkerboard()
    model = WmfAls(WmfAlsConfig(width=4, epochs=2, alpha0=ALPHA0, reg=REG)).fit(
        interactions, Interactions.none(), Start(0, normal_rows(interactions.item_rows().astype(np.uint64), 1, 4))
    )
    matrix = interactions.matrix(16, 12)
    assert_rows_agree(model.users, naive_half_sweep(matrix, model.items, ALPHA0, REG))


def test_als_depends_neither_on_the_seed_nor_on_held_out_pairs():
    interactions, withheld = checkerboard()
    model, items = (
        WmfAls(WmfAlsConfig(width=4, epochs=2, alpha0=ALPHA0)),
        normal_rows(interactions.item_rows().astype(np.uint64), 1, 4),
    )
    plain = model.fit(interactions, Interactions.none(), Start(0, items))
    assert model.fit(interactions, log_of(withheld.items()), Start(1, items)).same_bits(plain)


def test_adagrad_draws_its_users_from_the_seed():
    interactions, _ = checkerboard()
    model, items = WmfAdagrad(WmfAdagradConfig(width=4, epochs=2)), normal_rows(np.arange(12, dtype=np.uint64), 1, 4)
    one, other = (model.fit(interactions, Interactions.none(), Start(seed, items)) for seed in (0, 1))
    assert not one.same_bits(other)


@pytest.mark.parametrize("model", ["wmf", "bpr", "lightgcn"])
def test_a_training_that_diverges_is_an_error_and_is_not_stored(model):
    changes = ["model.lr=1e30", "model.epochs=3", "model.width=4", f"model.kind={model}"]
    config = load_config(changes=[*changes, "model.solver=adagrad"] if model == "wmf" else changes)
    train = Interactions.of(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2]))
    three = np.arange(3, dtype=np.uint64)
    with pytest.raises(TrainingError, match=r"training of shard 1: vectors are not finite.*lower model\.lr") as caught:
        train_submodel(ShardData.of(train, Interactions.none(), three, three), config, ShardId(1))
    assert all(hasattr(config.model, name) for name in re.findall(r"model\.(\w+)", str(caught.value)))


def test_als_says_to_raise_a_ridge_that_is_too_small_for_single_precision():
    rng = np.random.default_rng(0)
    train = Interactions.of(rng.integers(0, 50, 300), rng.integers(0, 40, 300))
    keys = np.arange(50, dtype=np.uint64)
    config = load_config(changes=["model.reg=1e-5", "model.alpha0=1e-12", "model.width=4"])
    with pytest.raises(TrainingError, match=r"training of shard 2: vectors are not finite.*: raise model\.reg$"):
        train_submodel(ShardData.of(train, Interactions.none(), keys, keys), config, ShardId(2))
    calmer = load_config(changes=["model.reg=0.007", "model.alpha0=1e-12", "model.width=4"])
    train_submodel(ShardData.of(train, Interactions.none(), keys, keys), calmer, ShardId(2))
