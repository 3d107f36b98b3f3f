"""Many small ridge regressions. Alternating least squares and the fold-in of users spend their time here.

Row r of R has n_r columns of C; Q is C x D. Its vector p solves (base + Q_r'Q_r + ridge_r I) p = sum of the rows of Q_r, with
Q_r the rows of Q that r is paired with. Sixteen rows are factored together, one in each lane of the processor's widest
registers.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ray_eraser.determinism import in_parts
from ray_eraser.kernels.compiled import compiled

_LANES = 16
_GATHERED = 1 << 12
"""Count of numbers of Q_r to gather at once: half of the L1 cache, because the whole of Q_r'Q_r passes over them."""
_FEWEST = 16 * _LANES
"""Smallest number of rows that is worth a thread."""


class Ridge:
    """Many regressions on the same columns.

    Args:
        others_CD: Q, float32.
        base_DD: symmetric, float32; the part that all systems share.
    """

    def __init__(self, others_CD: np.ndarray, base_DD: np.ndarray) -> None:
        self._others_CD, self._base_DD = np.ascontiguousarray(others_CD), np.ascontiguousarray(base_DD)
        # The largest degree for `_solve_short`, measured at width 64, where limits from 24 to 48 make little difference.
        self._short = len(base_DD) * 5 // 8 if np.isfinite(base_DD).all() else 0

    @cached_property
    def _whole_lanes(self) -> np.ndarray:
        """Q, padded with columns of zeros to a multiple of the number of lanes."""
        lacking = -self._others_CD.shape[1] % _LANES
        return np.pad(self._others_CD, ((0, 0), (0, lacking))) if lacking else self._others_CD

    @cached_property
    def _turned(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Q in the base's eigenbasis, the eigenvalues (D,), and the eigenvectors as padded rows, (D, D or a few more)."""
        values_D, axes_DD = np.linalg.eigh(self._base_DD.astype(np.float64))
        axes_DD = axes_DD.astype(np.float32)
        by_axis = np.pad(np.ascontiguousarray(axes_DD.T), ((0, 0), (0, -len(axes_DD) % 4)))
        return self._others_CD @ axes_DD, np.maximum(values_D, 0).astype(np.float32), by_axis

    def solve(self, starts: np.ndarray, columns: np.ndarray, ridge_R: np.ndarray) -> np.ndarray:
        """Solve for the vector of every row, (R, D) float32; zeros for rows without a column.

        The bits of a row's vector depend only on its own columns, not on the other rows or their number.

        Args:
            starts: (R + 1,) where each row's columns begin in `columns`.
            columns: positions in Q.
            ridge_R: float32, positive.
        """
        solved_RD = np.zeros((len(ridge_R), self._others_CD.shape[1]), np.float32)
        degrees = np.diff(starts)
        by_degree = np.argsort(degrees, kind="stable")
        none, short = np.searchsorted(degrees, [0, self._short], side="right", sorter=by_degree)
        short_rows, long_rows = by_degree[none:short], np.sort(by_degree[max(none, short) :])

        def solve_short(first: int, last: int) -> None:
            _solve_short(short_rows[first:last], starts, columns, *self._turned, ridge_R, solved_RD)

        def solve_long(first: int, last: int) -> None:
            _solve_long(long_rows[first:last], starts, columns, self._whole_lanes, self._base_DD, ridge_R, solved_RD)

        if self._short:  # even without rows, because a call without rows is made to load the compiled code
            in_parts(len(short_rows), solve_short, _FEWEST)
        in_parts(len(long_rows), solve_long, _FEWEST)
        return solved_RD


def _lanewise(width: int, depth: int) -> Any:
    """Make an operation on vectors of sixteen numbers, stored one after the other in a flat array.

    out[a, b] -= sum over k < depth of left[a, k] * right[b, k], for a, b < width. Its arguments are the array, the positions of
    out, left and right in it, and the stride of a and b. The operation reads everything before it writes. In a loop, numba
    could not know that, and would check every vector for overlap. A product and its subtraction may be one fused instruction.
    """

    @intrinsic
    def subtract(_: Any, flat: Any, out: Any, left: Any, right: Any, stride: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            out, left, right, stride = arguments[1:]
            lanes, integer = ir.VectorType(ir.FloatType(), _LANES), ir.IntType(64)

            def at(first: Any, strides: int, vectors: int) -> Any:
                place = builder.add(first, builder.mul(stride, integer(strides)))
                place = builder.add(place, integer(vectors * _LANES))
                return builder.bitcast(builder.gep(data, [place]), lanes.as_pointer())

            def read(first: Any, strides: int, vectors: int) -> Any:
                return builder.load(at(first, strides, vectors), align=4)

            lefts = [[read(left, a, k) for k in range(depth)] for a in range(width)]
            rights = [[read(right, b, k) for k in range(depth)] for b in range(width)]
            results = []
            for a in range(width):
                for b in range(width):
                    total = read(out, a, b)
                    for k in range(depth):
                        product = builder.fmul(lefts[a][k], rights[b][k], flags=("contract",))
                        total = builder.fsub(total, product, flags=("contract",))
                    results.append((a, b, total))
            for a, b, total in results:
                builder.store(total, at(out, a, b), align=4)
            return context.get_dummy_value()

        return types.void(flat, out, left, right, stride), emit

    return subtract


def _outer(height: int) -> Any:
    """Make an operation on three row-major matrices of float32.

    out[row + a, column + b] += sum over c < depth of left[c, row + a] * right[c, column + b], for a < height and b < the lanes.
    The sums stay in registers for all c. Loops written in numba would load and store them at every c.
    """

    @intrinsic
    def add(_: Any, left: Any, right: Any, depth: Any, row: Any, column: Any, out: Any) -> Any:  # noqa: ARG001 - their types
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left, right, out = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 1, 5))
            depth, row, column = arguments[2:5]
            lanes, integer = ir.VectorType(ir.FloatType(), _LANES), ir.IntType(64)
            nothing, first = ir.Constant(lanes, ir.Undefined), ir.IntType(32)(0)
            to_all = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)

            def start_of(matrix: Any, place: Any) -> Any:
                return builder.gep(matrix.data, [builder.mul(place, builder.extract_value(matrix.shape, 1))])

            def vector(matrix: Any, place: Any) -> Any:
                return builder.bitcast(builder.gep(start_of(matrix, place), [column]), lanes.as_pointer())

            rows = [builder.add(row, integer(a)) for a in range(height)]
            totals = [cgutils.alloca_once(builder, lanes) for _ in rows]  # type: ignore[no-untyped-call]
            for place, total in zip(rows, totals, strict=True):
                builder.store(builder.load(vector(out, place), align=4), total)
            with cgutils.for_range(builder, depth) as loop:
                numbers, factor = start_of(left, loop.index), builder.load(vector(right, loop.index), align=4)
                for place, total in zip(rows, totals, strict=True):
                    number = builder.insert_element(nothing, builder.load(builder.gep(numbers, [place])), first)
                    product = builder.fmul(builder.shuffle_vector(number, nothing, to_all), factor, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
            for place, total in zip(rows, totals, strict=True):
                builder.store(builder.load(total), vector(out, place), align=4)
            return context.get_dummy_value()

        # An explicit signature, so that a matrix with another layout is refused.
        matrix = types.Array(types.float32, 2, "C")
        return types.void(matrix, matrix, types.int64, types.int64, types.int64, matrix), emit

    return add


_add_outer = _outer(4)
_subtract = _lanewise(1, 1)
_subtract_four = _lanewise(1, 4)
_subtract_block = _lanewise(2, 4)


@compiled
def _factor(flat: np.ndarray, size: int) -> None:
    """Compute the Cholesky factors of sixteen matrices (size, size) in their lower triangles, with inverted diagonals.

    `flat` is (size, size, lanes), flattened. `size` must be a multiple of four, because columns are processed in fours.
    """
    stride = size * _LANES
    for k in range(0, size, 4):
        for pivot in range(k, k + 4):
            diagonal = pivot * stride + pivot * _LANES
            for column in range(k, pivot):
                _subtract(flat, diagonal, pivot * stride + column * _LANES, pivot * stride + column * _LANES, stride)
            for lane in range(_LANES):
                flat[diagonal + lane] = np.float32(1) / np.sqrt(flat[diagonal + lane])
            for row in range(pivot + 1, size):
                place = row * stride + pivot * _LANES
                for column in range(k, pivot):
                    _subtract(flat, place, row * stride + column * _LANES, pivot * stride + column * _LANES, stride)
                for lane in range(_LANES):
                    flat[place + lane] *= flat[diagonal + lane]
        for row in range(k + 4, size, 2):
            for column in range(k + 4, row + 1, 2):
                # The last block of a row also changes a cell above the diagonal, which nothing reads.
                _subtract_block(
                    flat, row * stride + column * _LANES, row * stride + k * _LANES, column * stride + k * _LANES, stride
                )


@compiled
def _substitute(flat: np.ndarray, size: int) -> None:
    """Solve with the factors of `_factor`. The right sides follow the factors in `flat`, (size, lanes), and are overwritten."""
    stride, right = size * _LANES, size * size * _LANES
    for row in range(size):
        place = right + row * _LANES
        for k in range(0, row // 4 * 4, 4):
            _subtract_four(flat, place, row * stride + k * _LANES, right + k * _LANES, stride)
        for k in range(row // 4 * 4, row):
            _subtract(flat, place, row * stride + k * _LANES, right + k * _LANES, stride)
        for lane in range(_LANES):
            flat[place + lane] *= flat[row * stride + row * _LANES + lane]
    for row in range(size - 1, -1, -1):
        place = right + row * _LANES
        for lane in range(_LANES):
            flat[place + lane] *= flat[row * stride + row * _LANES + lane]
        for k in range(row):
            _subtract(flat, right + k * _LANES, row * stride + k * _LANES, place, stride)


@compiled
def _symmetric(gathered: np.ndarray, depth: int, size: int, out: np.ndarray) -> None:
    """Add G'G, (size, size), to the lower triangle of `out`, with G the first `depth` rows of `gathered`.

    The number of columns of both is a multiple of the lanes. Cells above the diagonal change too, but are never read.
    """
    for column in range(0, size, _LANES):
        for row in range(column, size, 4):
            _add_outer(gathered, gathered, depth, row, column, out)


@compiled
def _gather(
    first: int,
    last: int,
    columns: np.ndarray,
    others_CD: np.ndarray,
    gathered: np.ndarray,
    own_DD: np.ndarray,
    sum_D: np.ndarray,
) -> None:
    """Compute Q_r'Q_r and the sum of the rows of Q_r, for the row with columns `first` to `last` - 1."""
    width, most = others_CD.shape[1], len(gathered)
    sum_D[:] = 0
    own_DD[:] = 0
    for begin in range(first, last, most):
        n = min(most, last - begin)
        for c in range(n):
            other = columns[begin + c]
            for d in range(width):
                gathered[c, d] = others_CD[other, d]
                sum_D[d] += others_CD[other, d]
        _symmetric(gathered, n, width, own_DD)


@compiled
def _identities(flat: np.ndarray, size: int) -> None:
    """Write identity matrices and zero right sides, so that padding up to the size does not change a solution."""
    flat[: (size * size + size) * _LANES] = 0
    for i in range(size):
        flat[(i * size + i) * _LANES : (i * size + i + 1) * _LANES] = 1


@compiled
def _solve_long(
    rows: np.ndarray,
    starts: np.ndarray,
    columns: np.ndarray,
    others_CD: np.ndarray,
    base_DD: np.ndarray,
    ridge_R: np.ndarray,
    solved_RD: np.ndarray,
) -> None:
    """Solve the rows by their D x D systems. The columns of `others_CD` are padded with zeros to a multiple of the lanes."""
    width, padded = len(base_DD), others_CD.shape[1]
    size = (width + 3) // 4 * 4  # `_factor` needs a multiple of four
    flat = np.empty((size * size + size) * _LANES, np.float32)
    right = size * size * _LANES
    _identities(flat, size)
    gathered = np.empty((max(1, _GATHERED // padded), padded), np.float32)
    own_DD, sum_D = np.empty((padded, padded), np.float32), np.empty(padded, np.float32)
    for first in range(0, len(rows), _LANES):
        count = min(_LANES, len(rows) - first)
        for lane in range(_LANES):
            # A lane without a row repeats the last row, because all lanes compute in any case.
            row = rows[first + min(lane, count - 1)]
            _gather(starts[row], starts[row + 1], columns, others_CD, gathered, own_DD, sum_D)
            for i in range(width):
                for j in range(i + 1):
                    flat[(i * size + j) * _LANES + lane] = base_DD[i, j] + own_DD[i, j]
                flat[(i * size + i) * _LANES + lane] += ridge_R[row]
                flat[right + i * _LANES + lane] = sum_D[i]
        _factor(flat, size)
        _substitute(flat, size)
        for lane in range(count):
            for d in range(width):
                solved_RD[rows[first + lane], d] = flat[right + d * _LANES + lane]


@compiled
def _solve_short(
    rows: np.ndarray,
    starts: np.ndarray,
    columns: np.ndarray,
    turned_CD: np.ndarray,
    base_D: np.ndarray,
    axes_DD: np.ndarray,
    ridge_R: np.ndarray,
    solved_RD: np.ndarray,
) -> None:
    """Solve the rows by the matrix inversion lemma. `rows` ascend by degree, so sixteen neighbours have similar sizes.

    With W the diagonal 1 / (base + ridge_r) and Z = Q_r W^(1/2), both in the base's axes, p = W^(1/2) Z' (I + Z Z')^-1 1.
    """
    if len(rows) == 0:
        return
    width = turned_CD.shape[1]
    most = (starts[rows[-1] + 1] - starts[rows[-1]] + 3) // 4 * 4
    flat = np.empty((most * most + most) * _LANES, np.float32)
    scaled = np.empty((_LANES, most, width), np.float32)
    roots = np.empty((_LANES, width), np.float32)
    most = (most + _LANES - 1) // _LANES * _LANES
    across, products = np.zeros((width, most), np.float32), np.empty((most, most), np.float32)
    combined, turned_back = np.zeros((width, _LANES), np.float32), np.empty((axes_DD.shape[1], _LANES), np.float32)
    sum_D = np.empty(width, np.float32)
    for first in range(0, len(rows), _LANES):
        count = min(_LANES, len(rows) - first)
        longest = rows[first + count - 1]
        size = (starts[longest + 1] - starts[longest] + 3) // 4 * 4
        _identities(flat, size)
        for lane in range(count):
            row = rows[first + lane]
            n = starts[row + 1] - starts[row]
            _scale(columns[starts[row] : starts[row + 1]], turned_CD, base_D, ridge_R[row], roots[lane], scaled[lane], across)
            products[:n] = 0
            _symmetric(across, width, n, products)
            _into_lane(products, n, flat, size, lane)
        _factor(flat, size)
        _substitute(flat, size)
        for lane in range(count):
            row = rows[first + lane]
            weights = flat[size * size * _LANES + lane :: _LANES][: starts[row + 1] - starts[row]]
            _combine(weights, scaled[lane], roots[lane], sum_D, combined[:, lane])
        turned_back[:] = 0
        for axis in range(0, len(turned_back), 4):
            _add_outer(axes_DD, combined, width, axis, 0, turned_back)
        for lane in range(count):
            for d in range(width):
                solved_RD[rows[first + lane], d] = turned_back[d, lane]


@compiled
def _scale(
    columns: np.ndarray,
    turned_CD: np.ndarray,
    base_D: np.ndarray,
    ridge: float,
    roots_D: np.ndarray,
    scaled: np.ndarray,
    across: np.ndarray,
) -> None:
    """Compute W^(1/2), Z and the transpose of Z for one row."""
    width = len(base_D)
    for d in range(width):
        roots_D[d] = np.float32(1) / np.sqrt(base_D[d] + ridge)
    for c in range(len(columns)):
        other = columns[c]
        for d in range(width):
            scaled[c, d] = turned_CD[other, d] * roots_D[d]
    for d in range(width):
        for c in range(len(columns)):
            across[d, c] = scaled[c, d]


@compiled
def _into_lane(products: np.ndarray, n: int, flat: np.ndarray, size: int, lane: int) -> None:
    """Write I + Z Z' and the right side, which is 1 for each of the row's columns."""
    for i in range(n):
        for j in range(i + 1):
            flat[(i * size + j) * _LANES + lane] += products[i, j]
        flat[(size * size + i) * _LANES + lane] = 1


@compiled
def _combine(weights: np.ndarray, scaled: np.ndarray, roots_D: np.ndarray, sum_D: np.ndarray, combined_D: np.ndarray) -> None:
    """Compute W^(1/2) Z' times the weights."""
    sum_D[:] = 0
    for c in range(len(weights)):
        weight = weights[c]
        for d in range(len(sum_D)):
            sum_D[d] += weight * scaled[c, d]
    for d in range(len(sum_D)):
        combined_D[d] = sum_D[d] * roots_D[d]
