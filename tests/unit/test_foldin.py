from __future__ import annotations

import numpy as np
import pytest

from ray_eraser.aggregation.foldin import FoldIn, sweep
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.embeddings import Embeddings

ALPHA0, REG = 0.2, 0.02
ITEM_ROWS = np.array([1, 2, 4, 7, 8, 11], np.int32)


@pytest.fixture(autouse=True)
def one_thread():
    with deterministic(1):
        yield


def log_of(*pairs) -> Interactions:
    users, items = np.array(pairs, np.int32).reshape(-1, 2).T
    return Interactions.of(users, items)


# Users 3 and 6 have pairs, and no user between them has; item 5 has no vector; no user has item 7.
REMAINING = log_of((3, 1), (3, 2), (3, 8), (6, 2), (6, 4), (6, 11), (6, 5), (9, 11))


def item_vectors(width=3, seed=1):
    return np.random.default_rng(seed).normal(0, 0.5, (len(ITEM_ROWS), width)).astype(np.float32)


def fold_in(item_rows, items, interactions, sweeps):
    swept = sweep(item_rows, items, interactions, ALPHA0, REG, sweeps)
    return FoldIn(swept.item_rows, swept.items, ALPHA0, REG).users(interactions)


def fold(interactions=REMAINING, width=3, sweeps=0):
    return fold_in(ITEM_ROWS, item_vectors(width), interactions, sweeps)


def ridge(vectors: dict[int, np.ndarray], partners: dict[int, list[int]]) -> dict[int, np.ndarray]:
    """Solve each row by dense normal equations in float64 over the vectors of the other side, all by row number."""
    table = np.array(list(vectors.values()), np.float64)
    solved = {}
    for row, own_rows in partners.items():
        own = np.array([vectors[other] for other in own_rows], np.float64)
        penalty = REG * (len(own) + ALPHA0 * len(table)) * np.eye(table.shape[1])
        solved[row] = np.linalg.solve(ALPHA0 * table.T @ table + own.T @ own + penalty, own.sum(0))
    return solved


def naive(width, sweeps):
    vectors = dict(zip(ITEM_ROWS.tolist(), item_vectors(width), strict=True))
    items = {row: vectors[row] for row in (1, 2, 4, 8, 11)} if sweeps else vectors
    of_user = {3: [1, 2, 8], 6: [2, 4, 11], 9: [11]}
    of_item = {1: [3], 2: [3, 6], 4: [6], 8: [3], 11: [6, 9]}
    users = ridge(items, of_user)
    for _ in range(sweeps):
        items = ridge(users, of_item)
        users = ridge(items, of_user)
    return users, items


@pytest.mark.parametrize("width", [2, 3, 7])
@pytest.mark.parametrize("sweeps", [0, 1, 2])
def test_users_and_after_sweeps_items_solve_their_ridge_regressions(width, sweeps):
    model = fold(width=width, sweeps=sweeps)
    users, items = naive(width, sweeps)
    assert model.user_rows.tolist() == list(users)
    assert model.item_rows.tolist() == list(items)
    # After several sweeps, the rounding error of float32 has passed through several systems.
    np.testing.assert_allclose(model.users, list(users.values()), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.items, list(items.values()), rtol=1e-3, atol=1e-4)


def test_without_sweeps_items_keep_their_vectors():
    assert fold().items.tolist() == item_vectors().tolist()


def test_a_sweep_leaves_no_item_without_a_remaining_pair():
    assert 7 not in fold(sweeps=1).item_rows
    assert 4 not in fold(REMAINING.without(log_of((6, 4))), sweeps=1).item_rows


def test_users_without_a_remaining_pair_are_absent():
    assert fold(REMAINING.without(log_of((9, 11)))).user_rows.tolist() == [3, 6]


def test_users_whose_items_all_lack_a_vector_are_absent():
    assert fold(Interactions.union([REMAINING, log_of((12, 5), (12, 6))])).same_bits(fold())


@pytest.mark.parametrize("sweeps", [0, 1])
def test_the_result_does_not_depend_on_an_erased_pair(sweeps):
    erased = log_of((3, 8), (6, 2), (9, 11))
    remaining = log_of((3, 1), (3, 2), (6, 4), (6, 11), (6, 5))
    assert fold(REMAINING.without(erased), sweeps=sweeps).same_bits(fold(remaining, sweeps=sweeps))
    assert not fold(sweeps=sweeps).same_bits(fold(remaining, sweeps=sweeps))


def test_the_vector_of_an_item_without_a_remaining_pair_does_not_matter():
    other = item_vectors()
    other[3] = 1000
    assert fold_in(ITEM_ROWS, other, REMAINING, 1).same_bits(fold(sweeps=1))


def test_other_users_pairs_do_not_change_a_user_while_the_items_are_fixed():
    alone = fold(log_of((3, 1), (3, 2), (3, 8), (6, 1), (6, 4), (6, 11), (9, 2)))
    np.testing.assert_allclose(alone.users[0], fold().users[0], rtol=1e-5)


@pytest.mark.parametrize("width", [3, 64])
def test_a_user_has_the_same_bits_alone_and_with_others(width):
    items = np.random.default_rng(3).normal(0, 0.5, (400, width)).astype(np.float32)
    rng = np.random.default_rng(4)
    everybody = Interactions.of(rng.integers(0, 40, 4000, np.int32), rng.integers(0, 400, 4000, np.int32))
    folding = FoldIn(np.arange(400, dtype=np.int32), items, ALPHA0, REG)
    together = folding.users(everybody)
    for position, row in enumerate(together.user_rows.tolist()):
        alone = folding.users(everybody.of_users(np.array([row])))
        assert (alone.user_rows.tolist(), alone.users.tobytes()) == ([row], together.users[position].tobytes())


def test_a_user_with_every_item_is_solved():
    everything = log_of(*((user, int(item)) for user in (0, 1) for item in ITEM_ROWS))
    model = fold(everything, sweeps=1)
    assert model.users[0].tolist() == model.users[1].tolist()
    assert (model.users @ model.items.T > 0.5).all()


def test_rows_with_gaps_between_them_give_the_same_vectors():
    apart = Interactions.of(REMAINING.users * 9 + 1, REMAINING.items * 4)
    there = fold_in(ITEM_ROWS * 4, item_vectors(), apart, 1)
    assert there.user_rows.tolist() == (fold(sweeps=1).user_rows * 9 + 1).tolist()
    assert there.users.tobytes() == fold(sweeps=1).users.tobytes()
    assert there.items.tobytes() == fold(sweeps=1).items.tobytes()


def test_the_same_arguments_give_the_same_bits_and_are_not_changed():
    items = item_vectors()
    first = fold_in(ITEM_ROWS, items, REMAINING, 1)
    assert fold_in(ITEM_ROWS, items, REMAINING, 1).same_bits(first)
    assert items.tobytes() == item_vectors().tobytes()


@pytest.mark.parametrize("interactions", [Interactions.none(), log_of((3, 5), (4, 6))])
def test_without_a_remaining_pair_of_a_known_item_the_result_is_empty(interactions):
    assert fold(interactions, sweeps=1).same_bits(Embeddings.empty(3))


def test_without_item_vectors_the_result_has_no_users():
    assert fold_in(ITEM_ROWS[:0], item_vectors()[:0], REMAINING, 1).same_bits(Embeddings.empty(3))
