"""Products of a 0/1 matrix with vectors, and the vector updates of conjugate gradients, for several systems at once.

R rows and C columns of the matrix; B systems, one per column of every (R, B) and (C, B) array.

A system has the same bits alone and together with others, because the order of its additions depends only on the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ray_eraser.kernels.compiled import compiled

_TILE = 16
"""Number of items to transpose at once: their numbers fill a cache line."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The columns of every row of a 0/1 matrix.

    Attributes:
        starts: (R + 1,) int64, where each row's columns begin in `columns`.
        columns: (n,) int32, ascending within a row.
    """

    starts: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, starts: np.ndarray, columns: np.ndarray) -> Rows:
        """Make rows from any integers. Read-only arrays are copied, because numba would compile the loops again for them."""
        return cls(np.require(starts, np.int64, ["C", "W"]), np.require(columns, np.int32, ["C", "W"]))

    def transposed(self, n_columns: int) -> Rows:
        """The transpose, (C, R): the rows of every column."""
        ones = np.ones(len(self.columns), np.int8)
        matrix = sparse.csr_matrix((ones, self.columns, self.starts), shape=(len(self), n_columns))
        turned = matrix.T.tocsr()
        return Rows.of(turned.indptr, turned.indices)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def without(self, gone: Rows, is_left_C: np.ndarray) -> Rows:
        """Remove some pairs, and the rows and columns that are then empty.

        The arrays are the same as if made from the remaining pairs, and are made in a fraction of the time.

        Args:
            gone: (R, C) the pairs to remove; all of them must be in the matrix.
            is_left_C: mask of the columns that keep a pair.

        Raises:
            ValueError: a pair is not in the matrix.
        """
        degrees_R = self.degrees() - gone.degrees()
        starts = np.concatenate([[0], np.cumsum(degrees_R[degrees_R > 0])])
        columns = np.empty(len(self.columns) - len(gone.columns), np.int32)
        places_C = np.cumsum(is_left_C, dtype=np.int32) - np.int32(1)
        if not _without(self.starts, self.columns, gone.starts, gone.columns, places_C, columns):
            raise ValueError("a pair to remove is not in the matrix: name pairs that are")
        return Rows(starts, columns)

    def part(self, first: int, last: int) -> Rows:
        """Rows `first` to `last` - 1."""
        return Rows(self.starts[first : last + 1], self.columns)

    def degrees(self) -> np.ndarray:
        """(R,) int64, every row's number of columns."""
        return np.diff(self.starts)

    def sums(self, others_CB: np.ndarray) -> np.ndarray:
        """Sum the numbers of each row's columns, (R, B) float32; zeros for a row without a column.

        Args:
            others_CB: float32, C-contiguous, with C above every column.
        """
        sums_RB = np.empty((len(self), others_CB.shape[1]), np.float32)
        if others_CB.shape[1] == 1:  # three times as fast as the general loop with an inner loop over one system
            _sums_alone(self.starts, self.columns, others_CB.ravel(), sums_RB.ravel())
        else:
            _sums(self.starts, self.columns, others_CB, sums_RB)
        return sums_RB

    def spread(self, asked: Rows, weights_R: np.ndarray, n_columns: int) -> np.ndarray:
        """Sum, for each column, the weights of the asked rows that have the column, (C, B) float32.

        The result is the product of the transpose with vectors that are zero outside the asked rows. Only these rows are
        visited.

        Args:
            asked: the rows that each of the B systems asks for, stored as the columns of B rows.
            weights_R: float32.
            n_columns: C.
        """
        sums_CB = np.empty((n_columns, len(asked)), np.float32)
        _spread(self.starts, self.columns, asked.starts, asked.columns, weights_R, sums_CB)
        return sums_CB


@compiled
def _without(
    starts: np.ndarray,
    columns: np.ndarray,
    gone_starts: np.ndarray,
    gone: np.ndarray,
    places_C: np.ndarray,
    left: np.ndarray,
) -> bool:
    """Write the new numbers of the remaining columns, row after row. Return False if a removed pair is not in the matrix."""
    end = 0
    for row in range(len(starts) - 1):
        n, stop = starts[row], starts[row + 1]
        for place in range(gone_starts[row], gone_starts[row + 1]):
            while n < stop and end < len(left) and columns[n] != gone[place]:
                left[end] = places_C[columns[n]]
                n, end = n + 1, end + 1
            if n == stop or columns[n] != gone[place]:
                return False
            n += 1
        # Slices start at 0, so numba need not check every index for a negative value.
        source, target = columns[n:stop], left[end : end + stop - n]
        for k in range(len(source)):
            target[k] = places_C[np.uint32(source[k])]
        end += stop - n
    return True


@compiled
def _sums(starts: np.ndarray, columns: np.ndarray, others_CB: np.ndarray, sums_RB: np.ndarray) -> None:
    """Add columns in fours. `_sums_alone` is faster in fours, because fewer additions wait, and both must add in one order."""
    for row in range(len(sums_RB)):
        sum_B, start, stop = sums_RB[row], starts[row], starts[row + 1]
        fours = stop - (stop - start) % 4
        sum_B[:] = 0
        for n in range(start, fours, 4):
            # Unsigned indices, because numba checks signed ones for negative values, which takes half of the time.
            a_B, b_B = others_CB[np.uint32(columns[n])], others_CB[np.uint32(columns[n + 1])]
            c_B, d_B = others_CB[np.uint32(columns[n + 2])], others_CB[np.uint32(columns[n + 3])]
            for b in range(len(sum_B)):
                sum_B[b] += (a_B[b] + b_B[b]) + (c_B[b] + d_B[b])
        for n in range(fours, stop):
            a_B = others_CB[np.uint32(columns[n])]
            for b in range(len(sum_B)):
                sum_B[b] += a_B[b]


@compiled
def _sums_alone(starts: np.ndarray, columns: np.ndarray, others_C: np.ndarray, sums_R: np.ndarray) -> None:
    """`_sums` for one system, in the same order."""
    for row in range(len(sums_R)):
        start, stop = starts[row], starts[row + 1]
        fours = stop - (stop - start) % 4
        total = np.float32(0)
        for n in range(start, fours, 4):
            a, b = others_C[np.uint32(columns[n])], others_C[np.uint32(columns[n + 1])]
            c, d = others_C[np.uint32(columns[n + 2])], others_C[np.uint32(columns[n + 3])]
            total += (a + b) + (c + d)
        for n in range(fours, stop):
            total += others_C[np.uint32(columns[n])]
        sums_R[row] = total


@compiled
def _spread(
    starts: np.ndarray,
    columns: np.ndarray,
    asked_starts: np.ndarray,
    asked: np.ndarray,
    weights_R: np.ndarray,
    sums_CB: np.ndarray,
) -> None:
    sums_C = np.empty(len(sums_CB), np.float32)  # one system at a time, so that its sums stay in the L1 cache
    for b in range(sums_CB.shape[1]):
        sums_C[:] = 0
        for place in range(asked_starts[b], asked_starts[b + 1]):
            row = asked[place]
            weight = weights_R[row]
            for n in range(starts[row], starts[row + 1]):
                sums_C[np.uint32(columns[n])] += weight
        sums_CB[:, b] = sums_C


@compiled
def add_at(totals_RB: np.ndarray, places: np.ndarray, parts_PB: np.ndarray) -> None:
    """Add P rows to the rows at `places`, in place."""
    for part in range(len(places)):
        total_B, part_B = totals_RB[places[part]], parts_PB[part]
        for b in range(len(part_B)):
            total_B[b] += part_B[b]


@compiled
def weigh(numbers_RB: np.ndarray, weights_R: np.ndarray) -> np.ndarray:
    """Return the sums over rows of (w t)^2, (B,) float64, for numbers t and weights w. In place, t becomes w w t."""
    squares_B = np.zeros(numbers_RB.shape[1])
    for row in range(len(numbers_RB)):
        number_B, weight = numbers_RB[row], weights_R[row]
        for b in range(len(squares_B)):
            weighted = weight * number_B[b]
            squares_B[b] += np.float64(weighted) * np.float64(weighted)
            number_B[b] = weight * weighted
    return squares_B


@compiled
def descend(
    steps_B: np.ndarray,
    ridge: np.float32,
    weights_R: np.ndarray,
    products_RB: np.ndarray,
    directions_RB: np.ndarray,
    solutions_RB: np.ndarray,
    residuals_RB: np.ndarray,
) -> None:
    """Update in place: z += s p and r -= s (W q + lambda p).

    Args:
        steps_B: s, float32.
        ridge: lambda.
        weights_R: the diagonal of W.
        products_RB: q.
        directions_RB: p.
        solutions_RB: z.
        residuals_RB: r.
    """
    for row in range(len(weights_R)):
        weight, product_B, direction_B = weights_R[row], products_RB[row], directions_RB[row]
        solution_B, residual_B = solutions_RB[row], residuals_RB[row]
        for b in range(len(steps_B)):
            solution_B[b] += steps_B[b] * direction_B[b]
            residual_B[b] -= steps_B[b] * (weight * product_B[b] + ridge * direction_B[b])


@compiled
def along(vector_R: np.ndarray, numbers_RB: np.ndarray) -> np.ndarray:
    """Inner product of a vector with every column, (B,) float64."""
    products_B = np.zeros(numbers_RB.shape[1])
    for row in range(len(vector_R)):
        factor, number_B = np.float64(vector_R[row]), numbers_RB[row]
        for b in range(len(products_B)):
            products_B[b] += factor * np.float64(number_B[b])
    return products_B


@compiled
def deflate(
    parts_B: np.ndarray, known_R: np.ndarray, image_R: np.ndarray, solutions_RB: np.ndarray, residuals_RB: np.ndarray
) -> np.ndarray:
    """Update in place: z += t q and r -= t A q. Return the sums over rows of r^2, (B,) float64.

    Args:
        parts_B: t, float32.
        known_R: q.
        image_R: A q.
        solutions_RB: z.
        residuals_RB: r.
    """
    squares_B = np.zeros(len(parts_B))
    for row in range(len(known_R)):
        known, image, solution_B, residual_B = known_R[row], image_R[row], solutions_RB[row], residuals_RB[row]
        for b in range(len(squares_B)):
            solution_B[b] += parts_B[b] * known
            residual = residual_B[b] - parts_B[b] * image
            residual_B[b] = residual
            squares_B[b] += np.float64(residual) * np.float64(residual)
    return squares_B


@compiled
def turn(
    shares_B: np.ndarray,
    parts_B: np.ndarray,
    known_R: np.ndarray,
    weights_R: np.ndarray,
    residuals_RB: np.ndarray,
    directions_RB: np.ndarray,
    weighted_RB: np.ndarray,
) -> np.ndarray:
    """Update in place: p = r + s p - c q; write W p to `weighted_RB`. Return the sums over rows of p^2, (B,) float64.

    Args:
        shares_B: s, float32.
        parts_B: c, float32.
        known_R: q.
        weights_R: the diagonal of W.
        residuals_RB: r.
        directions_RB: p.
        weighted_RB: overwritten.
    """
    squares_B = np.zeros(len(shares_B))
    for row in range(len(weights_R)):
        weight, known = weights_R[row], known_R[row]
        residual_B, direction_B, weighted_B = residuals_RB[row], directions_RB[row], weighted_RB[row]
        for b in range(len(squares_B)):
            direction = residual_B[b] + shares_B[b] * direction_B[b] - parts_B[b] * known
            direction_B[b] = direction
            weighted_B[b] = weight * direction
            squares_B[b] += np.float64(direction) * np.float64(direction)
    return squares_B


@compiled
def finish(
    steps_B: np.ndarray, weights_R: np.ndarray, directions_RB: np.ndarray, solutions_RB: np.ndarray, results_BR: np.ndarray
) -> None:
    """Write W (z + s p) to `results_BR`, one system per row. The arguments are as in `descend`."""
    for first in range(0, len(weights_R), _TILE):
        for b in range(len(steps_B)):
            for row in range(first, min(first + _TILE, len(weights_R))):
                results_BR[b, row] = weights_R[row] * (solutions_RB[row, b] + steps_B[b] * directions_RB[row, b])
