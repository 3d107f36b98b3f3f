from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_eraser.aggregation import spectral as module
from ray_eraser.aggregation.grams import Grams, _name, times
from ray_eraser.aggregation.grams import dense as whole
from ray_eraser.aggregation.mean import side_by_side
from ray_eraser.aggregation.spectral import bases, spectral
from ray_eraser.determinism import deterministic
from ray_eraser.embeddings import Embeddings

U, I = 30, 25


def submodel(seed, user_rows, item_rows, width=3, decay=1.0):
    """Random vectors; column d is decay^d times as long as the first."""
    rng = np.random.default_rng(seed)
    users, items = (
        (rng.normal(0, 0.5, (len(rows), width)) * decay ** np.arange(width)).astype(np.float32)
        for rows in (user_rows, item_rows)
    )
    return Embeddings(np.array(user_rows, np.int32), users, np.array(item_rows, np.int32), items)


def some_submodels(n=4, width=3, decay=1.0):
    """Submodels that each know a random part of the users and items. Some rows are in none of them."""
    rng = np.random.default_rng(n)
    rows = [(np.flatnonzero(rng.random(U) < 0.4), np.flatnonzero(rng.random(I) < 0.5)) for _ in range(n)]
    return [submodel(k, *rows_k, width, decay) for k, rows_k in enumerate(rows)]


def dense(model, factor=1.0):
    """(U, I) float64 scores; zero if the model lacks the user or the item."""
    scores = np.zeros((U, I))
    scores[np.ix_(model.user_rows, model.item_rows)] = factor * model.users.astype(np.float64) @ model.items.T
    return scores


def truncated(scores, rank):
    left, singular, right = np.linalg.svd(scores)
    return (left[:, :rank] * singular[:rank]) @ right[:rank], singular


def rows_known(submodels, side):
    return sorted(set().union(*(getattr(one, side).tolist() for one in submodels)))


def test_the_full_rank_reproduces_the_summed_scores():
    submodels = some_submodels()
    np.testing.assert_allclose(dense(spectral(submodels, 12, 0)), sum(map(dense, submodels)), atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 5, 11])
def test_a_lower_rank_gives_the_best_approximation(rank):
    submodels = some_submodels()
    summed = sum(map(dense, submodels))
    best, singular = truncated(summed, rank)
    model = spectral(submodels, rank, 0)
    assert model.width == rank
    np.testing.assert_allclose(dense(model), best, atol=1e-5)
    error = np.linalg.norm(dense(model) - summed)
    assert error == pytest.approx(np.linalg.norm(singular[rank:]), rel=1e-4)  # Eckart and Young 1936


@settings(max_examples=40, deadline=None)
@given(
    shards=st.lists(st.tuples(st.sets(st.integers(0, 7)), st.sets(st.integers(0, 6))), min_size=1, max_size=4),
    rank=st.integers(1, 9),
)
def test_every_pattern_of_absent_rows_gives_the_best_approximation(shards, rank):
    submodels = [submodel(k, sorted(users), sorted(items), 2) for k, (users, items) in enumerate(shards)]
    summed = sum(map(dense, submodels))
    model = spectral(submodels, rank, 0)
    _, singular = truncated(summed, 0)
    assert np.linalg.norm(dense(model) - summed) == pytest.approx(np.linalg.norm(singular[rank:]), abs=1e-4)
    assert model.user_rows.tolist() == rows_known(submodels, "user_rows")
    assert model.item_rows.tolist() == rows_known(submodels, "item_rows")


def test_one_submodel_no_wider_than_the_rank_is_reproduced():
    only = submodel(1, range(0, U, 2), range(5, I), 4)
    for rank in (4, 7):
        np.testing.assert_allclose(dense(spectral([only], rank, 0)), dense(only), atol=1e-5)


def test_a_rank_above_that_of_the_stack_gives_zero_columns():
    model = spectral([submodel(1, range(9), range(8), 2), submodel(2, range(9), range(8), 2)], 7, 0)
    assert (model.users.shape, model.items.shape) == ((9, 7), (8, 7))
    assert model.users[:, :4].any(0).all()
    assert not model.users[:, 4:].any()
    assert not model.items[:, 4:].any()


def test_identical_submodels_have_the_rank_of_one():
    only = submodel(1, range(9), range(8), 2)
    model = spectral([only, only, only], 5, 0)
    np.testing.assert_allclose(dense(model), 3 * dense(only), atol=1e-5)
    assert not model.users[:, 2:].any()


def test_equal_singular_values_and_orthogonal_shards_are_handled():
    # Four shards without a common row, each scoring one pair 1: the singular values are 1, 1, 1, 1.
    rows = [np.array([k], np.int32) for k in range(4)]
    shards = [Embeddings(row, np.ones((1, 1), np.float32), row, np.ones((1, 1), np.float32)) for row in rows]
    np.testing.assert_allclose(dense(spectral(shards, 4, 0))[:4, :4], np.eye(4), atol=1e-6)
    assert np.linalg.norm(dense(spectral(shards, 2, 0))[:4, :4] - np.eye(4)) == pytest.approx(2**0.5, abs=1e-5)


def test_users_and_items_share_the_singular_values_equally():
    # P = U sqrt(S) and Q = V sqrt(S): both Gram matrices are diag(S).
    model = spectral(some_submodels(), 5, 0)
    _, singular = truncated(sum(map(dense, some_submodels())), 5)
    for vectors in (model.users.astype(np.float64), model.items.astype(np.float64)):
        np.testing.assert_allclose(vectors.T @ vectors, np.diag(singular[:5]), atol=1e-4)


def test_weights_scale_the_submodels_scores():
    submodels, weights = some_submodels(), [0.5, 2.0, 0.0, 1.0]
    summed = sum(dense(one, weight) for one, weight in zip(submodels, weights, strict=True))
    np.testing.assert_allclose(dense(spectral(submodels, 12, 0, weights)), summed, atol=1e-5)
    np.testing.assert_allclose(dense(spectral(submodels, 2, 0, weights)), truncated(summed, 2)[0], atol=1e-5)
    assert spectral(submodels, 3, 0, [1, 1, 1, 1]).same_bits(spectral(submodels, 3, 0))


@pytest.mark.parametrize("rank", [2, 12])
def test_empty_submodels_change_no_score(rank):
    submodels, empty = some_submodels(), Embeddings.empty(3)
    np.testing.assert_allclose(
        dense(spectral([empty, *submodels[:2], empty, *submodels[2:]], rank, 0)), dense(spectral(submodels, rank, 0)), atol=1e-5
    )


def test_without_a_submodel_with_rows_the_result_is_empty():
    assert spectral([], 3, 0).same_bits(Embeddings.empty(3))
    assert spectral([Embeddings.empty(2), Embeddings.empty(2)], 3, 0).same_bits(Embeddings.empty(3))


def test_submodels_of_zeros_score_zero():
    zeros = Embeddings(
        np.arange(3, dtype=np.int32), np.zeros((3, 2), np.float32), np.arange(4, dtype=np.int32), np.zeros((4, 2), np.float32)
    )
    model = spectral([zeros, zeros], 3, 0)
    assert (model.users.shape, model.items.shape) == ((3, 3), (4, 3))
    assert not model.users.any()
    assert not model.items.any()


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_very_small_and_very_large_vectors_keep_their_scores(scale):
    submodels = [Embeddings(one.user_rows, one.users * np.float32(scale), one.item_rows, one.items) for one in some_submodels()]
    summed = sum(map(dense, submodels))
    np.testing.assert_allclose(dense(spectral(submodels, 12, 0)), summed, atol=1e-5 * abs(summed).max())


@pytest.mark.parametrize("exact_up_to", [1024, 0])
def test_rows_with_gaps_between_them_give_the_same_vectors(monkeypatch, exact_up_to):
    monkeypatch.setattr(module, "_EXACT_UP_TO", exact_up_to)
    submodels = some_submodels()
    apart = [Embeddings(one.user_rows * 5 + 40, one.users, one.item_rows * 2 + 7, one.items) for one in submodels]
    here, there = spectral(submodels, 4, 1), spectral(apart, 4, 1)
    assert there.user_rows.tolist() == (here.user_rows * 5 + 40).tolist()
    assert there.item_rows.tolist() == (here.item_rows * 2 + 7).tolist()
    assert there.users.tobytes() == here.users.tobytes()
    assert there.items.tobytes() == here.items.tobytes()


def test_the_order_of_the_submodels_changes_no_score():
    submodels = some_submodels()
    np.testing.assert_allclose(dense(spectral(submodels[::-1], 4, 0)), dense(spectral(submodels, 4, 0)), atol=1e-5)


@pytest.mark.parametrize("exact_up_to", [1024, 0])
def test_the_same_arguments_give_the_same_bits_and_do_not_change_the_submodels(monkeypatch, exact_up_to):
    monkeypatch.setattr(module, "_EXACT_UP_TO", exact_up_to)
    submodels = some_submodels()
    first = spectral(submodels, 4, 1)
    np.random.seed(5)  # noqa: NPY002 - the global state, which must not matter
    assert spectral(submodels, 4, 1).same_bits(first)
    assert all(now.same_bits(then) for now, then in zip(submodels, some_submodels(), strict=True))


@pytest.mark.parametrize("exact_up_to", [256, 8])
def test_any_number_of_cores_gives_the_same_bits(monkeypatch, exact_up_to):
    monkeypatch.setattr(module, "_EXACT_UP_TO", exact_up_to)
    monkeypatch.setattr(module, "_SUMMED", 4)  # so that there are several blocks of rows
    submodels = some_submodels()
    alone = spectral(submodels, 5, seed=1)
    for cores in (2, 3):
        with deterministic(1, cores):
            assert spectral(submodels, 5, seed=1).same_bits(alone)


def test_vectors_are_contiguous_float32():
    model = spectral(some_submodels(), 4, 0)
    assert all(vectors.dtype == np.float32 and vectors.flags.c_contiguous for vectors in (model.users, model.items))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shares_users", [True, False])
def test_a_krylov_space_gives_nearly_the_scores_of_the_eigensolver(seed, shares_users):
    # The space has 256 of 600 columns. The 64 best directions leave out a thirtieth of the squared scores or more.
    rng = np.random.default_rng(8)
    taste = rng.standard_normal((300, 150)) * 0.97 ** np.arange(150)
    tables = []
    for k in range(12):
        turned = rng.standard_normal((150, 50))
        users = rng.standard_normal((200, 50)).astype(np.float32)
        items = (taste @ turned + rng.standard_normal((300, 50))).astype(np.float32)
        rows = np.arange(200, dtype=np.int32) + (0 if shares_users else 200 * k)
        tables.append(Embeddings(rows, users, np.arange(300, dtype=np.int32), items))
    with deterministic(1):
        best, found = module.exact(*Grams().of(tables), 64), module._iterated(*Grams().sides(tables, np.float32), 64, seed)
    stack = side_by_side(tables)
    scores = stack.users.astype(float) @ stack.items.T.astype(float)
    left_out = [
        np.linalg.norm(scores - (stack.users @ users) @ (stack.items @ items).T) ** 2 / np.linalg.norm(scores) ** 2
        for users, items in (best, found)
    ]
    assert 0.03 < left_out[0] < left_out[1] < left_out[0] + 0.003


def test_without_shared_users_blocks_multiply_like_the_full_matrix():
    tables = [
        Embeddings(one.user_rows + 100 * k, one.users, one.item_rows, one.items) for k, one in enumerate(some_submodels(3, 4))
    ]
    grams = Grams()
    matrix = np.random.default_rng(2).standard_normal((12, 5))
    assert [side.ndim for side in grams.sides(tables)] == [3, 2]
    for side, gram in zip(grams.sides(tables), grams.of(tables), strict=True):
        np.testing.assert_allclose(times(side, matrix), gram @ matrix, atol=1e-12)
        assert np.array_equal(whole(side), gram)


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_a_krylov_space_gives_the_same_scores_without_shared_users(monkeypatch, weights):
    tables = [
        Embeddings(one.user_rows % 10 + 10 * k, one.users, one.item_rows, one.items)
        for k, one in enumerate(submodel(k, range(10), range(I), 20, 0.8) for k in range(3))
    ]
    expected = spectral(tables, 4, 0, weights)
    monkeypatch.setattr(module, "_EXACT_UP_TO", 0)
    np.testing.assert_allclose(dense(spectral(tables, 4, 0, weights)), dense(expected), atol=1e-5)


def test_a_krylov_space_is_used_above_the_width_limit_of_the_eigensolver(monkeypatch):
    tables, asked = some_submodels(4, 20, decay=0.8), []
    for name in ("exact", "_iterated"):
        solve = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, solve=solve, name=name: asked.append(name) or solve(*args))
    for exact_up_to in (80, 79):
        monkeypatch.setattr(module, "_EXACT_UP_TO", exact_up_to)
        np.testing.assert_allclose(dense(spectral(tables, 4, 0)), truncated(sum(map(dense, tables)), 4)[0], atol=1e-5)
    assert asked == ["exact", "_iterated"]


def test_a_krylov_space_of_a_stack_of_lower_rank_leaves_zero_columns(monkeypatch):
    monkeypatch.setattr(module, "_EXACT_UP_TO", 0)
    only = submodel(1, range(9), range(8), 2)
    model = spectral([only, only, only], 5, 0)
    np.testing.assert_allclose(dense(model), 3 * dense(only), atol=1e-5)
    assert not model.users[:, 2:].any()


def test_gram_equals_that_of_the_tables_side_by_side_with_zeros_for_absent_rows():
    tables = some_submodels(3, 2)
    stacked = np.zeros((U, 6))
    for k, one in enumerate(tables):
        stacked[one.user_rows, 2 * k : 2 * k + 2] = one.users
    np.testing.assert_allclose(Grams().of(tables)[0], stacked.T @ stacked, atol=1e-12)


def test_kept_blocks_equal_new_ones_and_are_dropped_with_their_submodels():
    one, two, three, four = some_submodels(4, 2)
    grams = Grams()
    grams.of([one, two, three])
    for submodels in ([one, three], [two, four, three], [four]):
        for precision in (np.float64, np.float32):
            kept, anew = grams.sides(submodels, precision), Grams().sides(submodels, precision)
            assert all(np.array_equal(mine, theirs) for mine, theirs in zip(kept, anew, strict=True))
    grams.keep([one, four])
    assert {key[:2] for key in grams._blocks} == {(name, name) for name in (_name(one), _name(four))}


def test_blocks_stay_valid_when_all_rows_are_renumbered():
    tables, grams = some_submodels(3, 2), Grams()
    first = grams.sides(tables)
    held = dict(grams._blocks)
    moved = [Embeddings(one.user_rows * 2 + 5, one.users, one.item_rows * 3, one.items) for one in tables]
    assert all(np.array_equal(now, then) for now, then in zip(grams.sides(moved), first, strict=True))
    assert grams._blocks == held
    louder = [Embeddings(one.user_rows, one.users * 2, one.item_rows, one.items) for one in tables]
    assert np.array_equal(grams.sides(louder)[0], 4 * first[0])


@pytest.mark.parametrize("shares_users", [True, False])
def test_blocks_taken_over_equal_blocks_computed_here(shares_users):
    tables = [
        Embeddings(one.user_rows + (0 if shares_users else 100 * k), one.users, one.item_rows, one.items)
        for k, one in enumerate(some_submodels(4, 3))
    ]
    tables.append(Embeddings.empty(3))
    for precision in (np.float32, np.float64):
        given, here = Grams(), Grams()
        given.give(tables, here.sides(tables, precision))
        for submodels in (tables, tables[1:], [tables[0], tables[3]]):
            for mine, theirs in zip(given.sides(submodels, precision), here.sides(submodels, precision), strict=True):
                assert mine.dtype == theirs.dtype
                assert np.array_equal(mine, theirs)
        assert given._blocks.keys() == here._blocks.keys()


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_gram_of_either_precision_equals_that_of_the_tables_side_by_side(share):
    # With a fifth of the rows, few rows are common; with nine tenths, most are.
    rng = np.random.default_rng(4)
    rows = [np.flatnonzero(rng.random(400) < share) for _ in range(3)]
    tables = [submodel(k, rows_k, rows_k[: 20 + 9 * k], 5) for k, rows_k in enumerate(rows)]
    stacked = np.zeros((400, 15))
    for k, one in enumerate(tables):
        stacked[one.user_rows, 5 * k : 5 * k + 5] = one.users
    for precision, tolerance in ((np.float64, 1e-12), (np.float32, 1e-4)):
        users, _ = Grams().sides(tables, precision)
        assert users.dtype == precision
        np.testing.assert_allclose(users, stacked.T @ stacked, atol=tolerance)


def test_items_are_the_same_with_and_without_users():
    both, alone = spectral(some_submodels(), 4, 0), spectral(some_submodels(), 4, 0, with_users=False)
    assert alone.same_bits(Embeddings(both.user_rows[:0], both.users[:0], both.item_rows, both.items))


def test_the_result_is_the_sum_of_each_submodels_vectors_times_its_basis():
    submodels = some_submodels()
    users_basis, items_basis = bases(submodels, 4, 0)
    model = spectral(submodels, 4, 0)
    users, items = np.zeros((U, 4)), np.zeros((I, 4))
    for k, one in enumerate(submodels):
        users[one.user_rows] += one.users @ users_basis[3 * k : 3 * k + 3]
        items[one.item_rows] += one.items @ items_basis[3 * k : 3 * k + 3]
    np.testing.assert_allclose(model.users, users[model.user_rows], atol=1e-6)
    np.testing.assert_allclose(model.items, items[model.item_rows], atol=1e-6)
