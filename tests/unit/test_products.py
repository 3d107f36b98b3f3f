from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from ray_eraser.kernels.products import Rows, add_at, along, deflate, descend, finish, turn, weigh

N_COLUMNS = 60
DEGREES = [0, 60, 1, 2, 9, 9, 10, 8, 30, 33, 59, 0, 1, 60, 12, 5, 5, 7, 44, 0]
"""Row lengths: rows without a column at both ends and in between, all remainders by four, and a row of all columns."""


def pattern(degrees=DEGREES, n_columns=N_COLUMNS, seed=1) -> sparse.csr_matrix:
    generator = np.random.default_rng(seed)
    columns = [np.sort(generator.permutation(n_columns)[:degree]) for degree in degrees]
    starts = np.concatenate([[0], np.cumsum(degrees)])
    numbers = np.concatenate([np.empty(0, np.int32), *columns]).astype(np.int32)
    return sparse.csr_matrix((np.ones(len(numbers), np.float32), numbers, starts), shape=(len(degrees), n_columns))


def rows_of(matrix) -> Rows:
    return Rows.of(matrix.indptr, matrix.indices)


def vectors(n, width, seed=2) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.5, (n, width)).astype(np.float32)


@pytest.mark.parametrize("width", [1, 2, 3, 8, 32, 33])
def test_sums_of_whole_numbers_are_exact(width):
    matrix = pattern()
    others = np.random.default_rng(1).integers(-9, 10, (N_COLUMNS, width)).astype(np.float32)
    assert rows_of(matrix).sums(others).tolist() == (matrix @ others).tolist()


@pytest.mark.parametrize("width", [2, 5, 31, 32, 64])
def test_a_column_has_the_same_sums_alone_and_with_others(width):
    rows, others = rows_of(pattern()), vectors(N_COLUMNS, width)
    together = rows.sums(others)
    for b in range(width):
        assert rows.sums(np.ascontiguousarray(others[:, b : b + 1])).tobytes() == together[:, b].tobytes()


def test_columns_are_added_in_fours():
    others = vectors(11, 2)
    a, b, c, d, e, f, g, h, i, j, k = others
    expected = ((((a + b) + (c + d)) + ((e + f) + (g + h))) + i) + j + k
    assert rows_of(pattern([11], 11)).sums(others).tobytes() == expected.tobytes()


@pytest.mark.parametrize("n_columns", [60, 70])
def test_the_transpose_has_the_rows_of_every_column(n_columns):
    matrix = pattern(n_columns=n_columns)
    turned = rows_of(matrix).transposed(n_columns)
    expected = matrix.T.tocsr()
    assert turned.starts.tolist() == expected.indptr.tolist()
    assert turned.columns.tolist() == expected.indices.tolist()
    assert turned.starts.dtype == np.int64
    assert turned.columns.dtype == np.int32


def test_spread_is_the_product_of_the_transpose_with_a_vector_that_is_zero_outside_the_asked_rows():
    matrix = pattern()
    weights = np.random.default_rng(3).integers(1, 9, len(DEGREES)).astype(np.float32)
    asked = [[1], [], [0, 1, 8, 13], list(range(len(DEGREES)))]
    starts = np.cumsum([0, *map(len, asked)])
    spread = rows_of(matrix).spread(Rows.of(starts, np.concatenate(asked)), weights, N_COLUMNS)
    chosen = np.zeros((len(DEGREES), len(asked)), np.float32)
    for b, rows in enumerate(asked):
        chosen[rows, b] = weights[rows]
    assert spread.tolist() == (matrix.T @ chosen).tolist()


def test_a_part_is_some_of_the_rows():
    rows = rows_of(pattern())
    others = vectors(N_COLUMNS, 3)
    part = rows.part(4, 9)
    assert len(part) == 5
    assert part.degrees().tolist() == DEGREES[4:9]
    assert part.sums(others).tobytes() == rows.sums(others)[4:9].tobytes()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_a_matrix_without_some_pairs_equals_one_made_from_the_rest(share):
    degrees = [degree for degree in DEGREES if degree]  # its rows without a column would be removed as well
    matrix = pattern(degrees).toarray().astype(bool)
    gone = matrix & (np.random.default_rng(2).random(matrix.shape) < share)
    gone[[3, 7]] = matrix[[3, 7]]
    gone[:, [0, 5, 59]] = matrix[:, [0, 5, 59]]
    is_left = (matrix & ~gone).any(0)
    expected = matrix & ~gone
    expected = rows_of(sparse.csr_matrix(expected[expected.any(1)][:, is_left]))
    left = rows_of(sparse.csr_matrix(matrix)).without(rows_of(sparse.csr_matrix(gone)), is_left)
    assert left.starts.tolist() == expected.starts.tolist()
    assert left.columns.tolist() == expected.columns.tolist()
    assert (left.starts.dtype, left.columns.dtype) == (np.int64, np.int32)


@pytest.mark.parametrize("absent", [(0, 1), (0, 9), (2, 0), (2, 9)])
def test_a_pair_that_is_not_in_the_matrix_cannot_be_removed(absent):
    matrix, gone = np.zeros((3, 10), bool), np.zeros((3, 10), bool)
    matrix[0, [0, 4]] = matrix[1, 3] = matrix[2, [1, 8]] = True
    gone[absent] = True
    with pytest.raises(ValueError, match="a pair to remove is not in the matrix"):
        rows_of(sparse.csr_matrix(matrix)).without(rows_of(sparse.csr_matrix(gone)), np.ones(10, bool))


@pytest.mark.parametrize("width", [0, 1, 4])
def test_patterns_without_rows_columns_or_pairs_have_sums_of_zero(width):
    for n_rows, n_columns in ((0, 5), (4, 5), (4, 0), (0, 0)):
        rows = Rows.of(np.zeros(n_rows + 1, np.int64), np.empty(0, np.int32))
        assert rows.sums(np.ones((n_columns, width), np.float32)).tolist() == [[0] * width] * n_rows
        assert rows.transposed(n_columns).degrees().tolist() == [0] * n_columns


def test_read_only_arrays_of_any_integers_are_accepted():
    matrix = pattern()
    arrays = matrix.indptr.astype(np.int32), matrix.indices.astype(np.int64)
    for array in arrays:
        array.flags.writeable = False
    others = vectors(N_COLUMNS, 4)
    assert Rows.of(*arrays).sums(others).tobytes() == rows_of(matrix).sums(others).tobytes()


@pytest.mark.parametrize("width", [1, 4])
def test_rows_are_added_at_their_places(width):
    totals, parts = vectors(9, width), vectors(3, width, 3)
    expected = totals.copy()
    expected[[1, 4, 8]] += parts
    add_at(totals, np.array([1, 4, 8], np.int32), parts)
    assert totals.tobytes() == expected.tobytes()


def test_weigh_returns_the_squares_of_numbers_weighted_once_and_leaves_them_weighted_twice():
    numbers, weights = vectors(50, 3), np.random.default_rng(4).uniform(0.5, 2, 50).astype(np.float32)
    expected = (weights[:, None].astype(np.float64) * numbers) ** 2
    twice = weights[:, None] ** 2 * numbers
    np.testing.assert_allclose(weigh(numbers, weights), expected.sum(0), rtol=1e-6)
    np.testing.assert_allclose(numbers, twice, rtol=1e-6)


@pytest.mark.parametrize("width", [1, 5])
def test_the_vector_updates_are_those_of_conjugate_gradients(width):
    weights = np.random.default_rng(5).uniform(0.5, 2, 37).astype(np.float32)
    products, directions, solutions, residuals, weighted = (vectors(37, width, seed) for seed in range(5))
    z, r, p = (part.astype(np.float64) for part in (solutions, residuals, directions))
    steps, shares = vectors(2, width, 9)
    ridge = np.float32(0.7)

    z, r = z + steps * p, r - steps * (weights[:, None] * products.astype(np.float64) + ridge * p)
    descend(steps, ridge, weights, products, directions, solutions, residuals)
    np.testing.assert_allclose(solutions, z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(residuals, r, rtol=1e-5, atol=1e-6)

    known, image, parts = vectors(37, 1, 10)[:, 0].copy(), vectors(37, 1, 11)[:, 0].copy(), vectors(1, width, 12)[0]
    np.testing.assert_allclose(along(known, residuals), known.astype(np.float64) @ r, rtol=1e-4, atol=1e-6)
    z, r = z + parts * known[:, None].astype(np.float64), r - parts * image[:, None].astype(np.float64)
    left = deflate(parts, known, image, solutions, residuals)
    np.testing.assert_allclose(left, (r**2).sum(0), rtol=1e-5)
    np.testing.assert_allclose(solutions, z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(residuals, r, rtol=1e-5, atol=1e-6)

    p = r + shares * p - parts * known[:, None].astype(np.float64)
    lengths = turn(shares, parts, known, weights, residuals, directions, weighted)
    np.testing.assert_allclose(lengths, (p**2).sum(0), rtol=1e-5)
    np.testing.assert_allclose(directions, p, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weighted, weights[:, None] * p, rtol=1e-5, atol=1e-6)

    results = np.empty((width, 37), np.float32)
    finish(steps, weights, directions, solutions, results)
    np.testing.assert_allclose(results, (weights[:, None] * (z + steps * p)).T, rtol=1e-5, atol=1e-6)
