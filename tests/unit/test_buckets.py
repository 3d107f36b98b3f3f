from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.utils._python_dispatch import TorchDispatchMode
from torch_devices import TORCH_DEVICES

from ray_eraser.determinism import deterministic
from ray_eraser.devices import torch_device
from ray_eraser.kernels import buckets as module
from ray_eraser.kernels.buckets import Buckets, padded_lengths

DEGREES = [0, 60, 1, 2, 9, 9, 10, 8, 30, 33, 59, 0, 1, 60, 12, 5, 5, 7, 44, 0]
"""Row lengths: rows without a column at both ends and in between, and rows of up to all 60 columns."""


@pytest.fixture(params=TORCH_DEVICES)
def device(request):
    with deterministic(1):
        yield torch_device(request.param)


def pattern(degrees=DEGREES, n_columns=60, seed=1) -> sparse.csr_matrix:
    """Rows with these numbers of columns; the columns are random."""
    generator = np.random.default_rng(seed)
    columns = [np.sort(generator.permutation(n_columns)[:degree]) for degree in degrees]
    starts = np.concatenate([[0], np.cumsum(degrees)])
    ones = np.ones(starts[-1], np.float32)
    return sparse.csr_matrix((ones, np.concatenate(columns).astype(np.int32), starts), shape=(len(degrees), n_columns))


def vectors(n, width, seed=2) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.5, (n, width)).astype(np.float32)


def bucketed(matrix, device) -> Buckets:
    return Buckets.of(matrix.indptr, matrix.indices, matrix.shape[1], device)


def summed(matrix, others, device) -> np.ndarray:
    return bucketed(matrix, device).sums(torch.from_numpy(others).to(device)).cpu().numpy()


def problem(matrix, width, scale=0.3):
    """The vectors of the other side, the common part of the systems, and a ridge for each row."""
    others = vectors(matrix.shape[1], width)
    ridge = np.random.default_rng(3).uniform(0.1, 2, matrix.shape[0]).astype(np.float32)
    return others, np.float32(scale) * others.T @ others, ridge


def solved(matrix, parts, device) -> np.ndarray:
    return bucketed(matrix, device).solve(*(torch.from_numpy(part).to(device) for part in parts)).cpu().numpy()


def naive(matrix, others, base, ridge) -> np.ndarray:
    """Solve each row's normal equations in dense float64; zeros for a row without a column."""
    expected = np.zeros((matrix.shape[0], others.shape[1]))
    for row in range(matrix.shape[0]):
        own = others[matrix[row].indices].astype(np.float64)
        if len(own):
            system = base.astype(np.float64) + own.T @ own + ridge[row] * np.eye(others.shape[1])
            expected[row] = np.linalg.solve(system, own.sum(0))
    return expected


def assert_rows_agree(found, expected, within=2e-5):
    assert found.dtype == np.float32
    error_R = np.linalg.norm(found - expected, axis=1)
    assert (error_R <= within * np.linalg.norm(expected, axis=1)).all()


@pytest.mark.parametrize("width", [1, 3, 8, 33])
def test_sums_of_whole_numbers_are_exact(device, width):
    matrix = pattern()
    others = np.random.default_rng(1).integers(-9, 10, (60, width)).astype(np.float32)
    expected = [others[matrix[row].indices].sum(0).tolist() for row in range(len(DEGREES))]
    assert summed(matrix, others, device).tolist() == expected


def test_sums_of_rows_longer_than_a_piece_are_exact(device, monkeypatch):
    monkeypatch.setattr(module, "_BAG", 7)
    matrix = pattern()
    others = np.random.default_rng(1).integers(-9, 10, (60, 5)).astype(np.float32)
    assert summed(matrix, others, device).tolist() == (matrix @ others).tolist()


def test_a_row_of_many_columns_is_summed_in_single_precision_without_drift(device):
    # Added one after the other, 100,000 numbers of about 1 would have a relative error of about 1e-5.
    others = np.random.default_rng(1).uniform(0.5, 1.5, (100_000, 2)).astype(np.float32)
    matrix = sparse.csr_matrix(np.ones((1, 100_000), np.float32))
    np.testing.assert_allclose(summed(matrix, others, device)[0], others.sum(0, dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize("width", [1, 3, 8, 33, 66])
@pytest.mark.parametrize("scale", [1e-4, 0.3, 10])
def test_every_row_solves_its_own_normal_equations(device, width, scale):
    matrix = pattern()
    parts = problem(matrix, width, scale)
    assert_rows_agree(solved(matrix, parts, device), naive(matrix, *parts), within=1e-4)


@pytest.mark.parametrize("width", [16, 64])  # narrower ones have no row that is short
def test_short_and_long_rows_solve_the_same_equations(device, width, monkeypatch):
    # At every length from one column to twice the width, by either system.
    matrix = pattern(range(1, 2 * width + 1), 2 * width)
    parts = problem(matrix, width)
    as_usual, expected = solved(matrix, parts, device), naive(matrix, *parts)
    monkeypatch.setattr(module._Bucket, "is_short", lambda *_: False)
    all_long = solved(matrix, parts, device)
    assert not np.array_equal(as_usual, all_long)
    for found in (as_usual, all_long):
        assert_rows_agree(found, expected)


@pytest.mark.parametrize(("name", "value"), [("_PIECE", 16), ("_PIECE", 13), ("_BAG", 7), ("_BATCH", 2)])
def test_long_rows_in_pieces_and_small_batches_have_nearly_the_same_solutions(device, monkeypatch, name, value):
    matrix = pattern()
    parts = problem(matrix, 6)
    whole = solved(matrix, parts, device)
    monkeypatch.setattr(module, name, value)
    pieces = solved(matrix, parts, device)
    assert_rows_agree(pieces, whole, within=1e-5)
    assert solved(matrix, parts, device).tobytes() == pieces.tobytes()


@pytest.mark.parametrize("width", [8, 64])
def test_workspaces_do_not_grow_with_the_rows_nor_with_the_longest(device, monkeypatch, width):
    matrix = pattern([3] * 700 + [40] * 300 + [2000], 2000)  # at width 64, the first rows are short
    parts = problem(matrix, width)
    at_once = solved(matrix, parts, device)
    bound = 1 << 14
    monkeypatch.setattr(module, "_PIECE", 64)
    monkeypatch.setattr(module, "_WORKSPACE", {"cpu": bound, "cuda": bound})
    buckets = bucketed(matrix, device)
    assert_rows_agree(solved(matrix, parts, device), at_once, within=1e-5)
    tensors = [torch.from_numpy(part).to(device) for part in parts]
    buckets.solve(*tensors)  # make the pattern's own tables first
    with Largest() as largest:
        buckets.solve(*tensors)
    assert largest.numbers <= max(bound, 2001 * width)


class Largest(TorchDispatchMode):
    """Record the size of the largest tensor that is computed inside."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple) else (results,):
            if isinstance(result, torch.Tensor):
                self.numbers = max(self.numbers, result.untyped_storage().nbytes() // result.element_size())
        return results


def test_the_same_pattern_and_vectors_always_give_the_same_bits(device):
    matrix = pattern()
    parts = problem(matrix, 16)
    first, sums = solved(matrix, parts, device), summed(matrix, parts[0], device)
    other = pattern(DEGREES[::-1], seed=9)
    solved(other, problem(other, 16), device)
    assert solved(matrix, parts, device).tobytes() == first.tobytes()
    assert summed(matrix, parts[0], device).tobytes() == sums.tobytes()


def test_a_row_has_nearly_the_same_solution_alone_and_with_others(device):
    matrix = pattern()
    others, base, ridge = problem(matrix, 16)
    together = solved(matrix, (others, base, ridge), device)
    for row in (1, 2, 8):
        alone = solved(matrix[row], (others, base, ridge[row : row + 1]), device)
        assert_rows_agree(alone, together[row : row + 1], within=1e-5)


def test_rows_without_a_column_are_zero(device):
    matrix = pattern()
    parts = problem(matrix, 3)
    for found in (summed(matrix, parts[0], device), solved(matrix, parts, device)):
        assert found.any(1).tolist() == [degree > 0 for degree in DEGREES]


@pytest.mark.parametrize("n_rows", [0, 4])
def test_a_pattern_without_any_pair_is_all_zeros(device, n_rows):
    matrix = pattern([0] * n_rows, 5) if n_rows else sparse.csr_matrix((0, 5), dtype=np.float32)
    parts = problem(matrix, 3)
    assert summed(matrix, parts[0], device).tolist() == [[0, 0, 0]] * n_rows
    assert solved(matrix, parts, device).tolist() == [[0, 0, 0]] * n_rows


def test_a_system_without_a_positive_pivot_gives_nan_only_in_its_own_row(device):
    matrix = pattern([3, 20, 40, 59])
    others, base, ridge = problem(matrix, 4)
    ridge[2] = -1000
    found = solved(matrix, (others, base, ridge), device)
    assert np.isnan(found).all(1).tolist() == [False, False, True, False]
    ridge[2] = 1
    assert_rows_agree(found[[0, 1, 3]], naive(matrix, others, base, ridge)[[0, 1, 3]])


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e30])
@pytest.mark.parametrize("width", [4, 40])
def test_a_side_that_is_not_finite_gives_rows_that_are_not_finite(device, value, width):
    matrix = pattern([1, 5, 30])
    others, _, ridge = problem(matrix, width)
    others[7, 3] = value
    with np.errstate(all="ignore"):
        base = others.T @ others
    assert not np.isfinite(solved(matrix, (others, base, ridge), device)).all(1).any()


def test_arguments_are_not_changed_and_may_be_read_only(device):
    matrix = pattern()
    parts = problem(matrix, 12)
    arrays = (matrix.indptr, matrix.indices)
    before = [array.copy() for array in (*arrays, *parts)]
    for array in arrays:
        array.flags.writeable = False
    tensors = [torch.from_numpy(part).to(device) for part in parts]
    bucketed(matrix, device).solve(*tensors)
    after = [*arrays, *(tensor.cpu().numpy() for tensor in tensors)]
    assert all(np.array_equal(now, then) for now, then in zip(after, before, strict=True))


def test_a_row_is_padded_by_less_than_a_third_and_to_few_lengths():
    degrees = np.arange(100_000)
    lengths = padded_lengths(degrees)
    assert lengths[:10].tolist() == [0, 8, 8, 8, 8, 8, 8, 8, 8, 12]
    assert (lengths >= degrees).all()
    assert (lengths[8:] - degrees[8:] <= lengths[8:] / 3).all()
    assert len(np.unique(lengths)) < 32
    assert all(before <= after for before, after in pairwise(lengths.tolist()))
