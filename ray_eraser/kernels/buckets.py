"""The rows of a sparse pattern on a torch device: sums of their columns' vectors, and ridge regressions for every row.

The regressions are those of kernels/ridge.py. Row r of R has n_r columns of C; Q is C x D. Rows are padded to a few lengths, so
that a few large batched kernels replace many small ones. A batch has B rows of P pieces, each of L columns.

No kernel adds with atomics, and all sizes depend only on the data's shape, so the same data gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import embedding_bag

_PIECE = 1024
"""Maximum number of columns of a row in one matrix product. The products of several pieces are added afterwards."""
_BAG = 256
"""Maximum number of columns of a row that one GPU thread adds."""
_WORKSPACE = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Count of numbers in a workspace, by kind of device: 4 MiB to fit a CPU's caches, 64 MiB for large kernels on a GPU."""
_BATCH = 1 << 15
"""Maximum number of matrices in a batch, because cuBLAS and cuSOLVER number them in 16 bits on some paths."""


@dataclass(frozen=True, eq=False)
class Buckets:
    """Rows of a sparse pattern grouped by padded length, on a device.

    `sums` and `solve` have no gradient. The backward pass would need the transposed pattern, which is another `Buckets`.

    Attributes:
        degrees: (R,) int64 in host memory, every row's number of columns.
        n_columns: C.
        columns: (n,) int32 or int64 on the device, row after row.
    """

    degrees: np.ndarray
    n_columns: int
    columns: Tensor

    @classmethod
    def of(cls, starts: np.ndarray, columns: np.ndarray, n_columns: int, device: torch.device) -> Buckets:
        """Copy a pattern in CSR form to a device.

        Args:
            starts: (R + 1,) where each row's columns begin in `columns`.
            columns: (n,) column numbers, all less than C.
            n_columns: C.
            device: the device for the columns; the vectors must be on it too.
        """
        small = max(len(columns) + 1, n_columns + 1) < 1 << 31
        numbers = np.array(columns, np.int32 if small else np.int64)  # a copy, because torch warns about read-only arrays
        return cls(np.diff(starts).astype(np.int64), n_columns, torch.from_numpy(numbers).to(device))

    @classmethod
    def of_matrix(cls, matrix: sparse.csr_matrix, device: torch.device) -> Buckets:
        """Copy the pattern of a matrix to a device."""
        return cls.of(matrix.indptr, matrix.indices, matrix.shape[1], device)

    @torch.no_grad()
    def sums(self, others_CD: Tensor) -> Tensor:
        """Sum the vectors of each row's columns, (R, D); zeros for rows without a column."""
        if not len(self.columns):
            return others_CD.new_zeros(len(self.degrees), others_CD.shape[1])
        starts, first_pieces = self._bags
        sums = embedding_bag(self.columns, others_CD, starts, mode="sum", include_last_offset=True)
        if first_pieces is None:
            return sums
        pieces = torch.arange(len(sums), dtype=starts.dtype, device=starts.device)
        return embedding_bag(pieces, sums, first_pieces, mode="sum", include_last_offset=True)

    @torch.no_grad()
    def solve(self, others_CD: Tensor, base_DD: Tensor, ridge_R: Tensor) -> Tensor:
        """Solve for the vector of every row, (R, D).

        Row r solves (base + Q_r'Q_r + ridge_r I) p = sum of the rows of Q_r, with Q_r the rows of Q that r is paired with. Rows
        without a column get zeros. Rows whose system has a non-positive pivot in single precision get NaN.

        Args:
            others_CD: Q, float32.
            base_DD: symmetric, float32; the part that all systems share.
            ridge_R: float32, positive.
        """
        if not self._padded:
            return others_CD.new_zeros(len(self.degrees), others_CD.shape[1])
        by_degree, places = self._order
        against = _Against.of(others_CD, base_DD, self._padded[0].length)
        ridges = ridge_R.index_select(0, by_degree)
        solved_RD = self.sums(others_CD).index_select(0, by_degree)  # the right sides; solutions overwrite them
        for bucket in self._padded:
            work = _solve_short if bucket.is_short(against) else _solve_long
            for first, last in bucket.chunks(against):
                rows = slice(bucket.first + first, bucket.first + last)
                solved_RD[rows] = work(bucket, first, last, against, ridges[rows, None], solved_RD[rows])
        return solved_RD.index_select(0, places)

    @cached_property
    def starts(self) -> np.ndarray:
        """(R + 1,) int64 in host memory, where each row's columns begin."""
        return np.concatenate([[0], np.cumsum(self.degrees)])

    @cached_property
    def _bags(self) -> tuple[Tensor, Tensor | None]:
        """The start of each piece, at least one per row; and each row's first piece, or None if no row has several."""
        pieces_R = np.maximum(1, -(-self.degrees // _BAG))
        first_pieces = np.concatenate([[0], np.cumsum(pieces_R)])
        within = np.arange(first_pieces[-1]) - np.repeat(first_pieces[:-1], pieces_R)
        starts = np.append(np.repeat(self.starts[:-1], pieces_R) + _BAG * within, len(self.columns))
        return self._sent(starts), self._sent(first_pieces) if (pieces_R > 1).any() else None

    @cached_property
    def _by_degree(self) -> np.ndarray:
        return np.argsort(self.degrees, kind="stable")

    @cached_property
    def _order(self) -> tuple[Tensor, Tensor]:
        """The rows ordered by degree, and the position of each row in this order, both (R,)."""
        places = np.empty_like(self._by_degree)
        places[self._by_degree] = np.arange(len(places))
        return self._sent(self._by_degree), self._sent(places)

    @cached_property
    def _padded(self) -> list[_Bucket]:
        """The rows that have a column, in buckets of ascending length."""
        ascending = self.degrees[self._by_degree]
        lengths = padded_lengths(ascending)
        firsts = np.flatnonzero(np.diff(lengths, prepend=0))  # skips rows without a column, which come first
        lasts = np.append(firsts[1:], len(lengths))[: len(firsts)]
        return [self._bucket(int(first), int(last), int(lengths[first])) for first, last in zip(firsts, lasts, strict=True)]

    def _bucket(self, first: int, last: int, length: int) -> _Bucket:
        """Make a bucket of the rows at these positions by degree. Rows are padded to `length` columns with column C."""
        pieces = -(-length // _PIECE)
        length = -(-length // pieces)
        rows = self._by_degree[first:last]
        starts, degrees = self._sent(self.starts[rows]), self._sent(self.degrees[rows])
        within = torch.arange(pieces * length, device=self.columns.device)
        index = self.columns.new_full((last - first, pieces * length), self.n_columns)
        step = max(1, _WORKSPACE[self.columns.device.type] // len(within))
        for begin in range(0, last - first, step):
            part = slice(begin, begin + step)
            places = (starts[part, None] + within).clamp_(max=len(self.columns) - 1)
            index[part] = torch.where(within < degrees[part, None], self.columns[places], index[part])
        return _Bucket(first, pieces, length, index)

    def _sent(self, numbers: np.ndarray) -> Tensor:
        """Copy integers to the device in the dtype of the columns."""
        return torch.from_numpy(numbers).to(self.columns.device, self.columns.dtype)


@dataclass(frozen=True, eq=False)
class _Against:
    """The other side of the regressions, which all rows share.

    Attributes:
        vectors: (C + 1, D) Q, and a row of zeros for the padding.
        base: (D, D) as in `Buckets.solve`.
        short: the largest length of a row that `_solve_short` solves.
        turned: (C + 1, D) the vectors in the eigenbasis of the base.
        diagonal: (D,) the eigenvalues of the base.
        axes: (D, D) the eigenvectors of the base, one per column.
    """

    vectors: Tensor
    base: Tensor
    short: int
    turned: Tensor
    diagonal: Tensor
    axes: Tensor

    @classmethod
    def of(cls, others_CD: Tensor, base_DD: Tensor, shortest: int) -> _Against:
        """Prepare the other side. `shortest` is the length of the shortest row, padding included."""
        vectors, short = torch.cat([others_CD, others_CD.new_zeros(1, len(base_DD))]), len(base_DD) * 5 // 8
        # The CPU decomposes a small matrix faster than a GPU. The host waits only for a copy of it.
        on_host = base_DD.double().cpu() if shortest <= short else None
        if on_host is None or not on_host.isfinite().all():
            return cls(vectors, base_DD, 0, vectors, base_DD[0], base_DD)
        diagonal, axes = (part.to(base_DD.device, torch.float32) for part in torch.linalg.eigh(on_host))
        return cls(vectors, base_DD, short, vectors @ axes, diagonal.clamp_(min=0), axes)


@dataclass(frozen=True, eq=False)
class _Bucket:
    """Rows that are padded to the same length.

    Attributes:
        first: the position of its first row among all rows by degree.
        pieces: P.
        length: L.
        index: (rows, P * L) column numbers, padded with C, which stands for a vector of zeros.
    """

    first: int
    pieces: int
    length: int
    index: Tensor

    def chunks(self, against: _Against) -> Iterator[tuple[int, int]]:
        """The first row of each batch, and the row after its last."""
        step = max(1, self.at_once(against) // self.pieces)
        return ((first, min(first + step, len(self.index))) for first in range(0, len(self.index), step))

    def is_short(self, against: _Against) -> bool:
        return self.pieces == 1 and self.length <= against.short

    def at_once(self, against: _Against) -> int:
        """The number of pieces to gather and multiply at once."""
        width = len(against.base)
        largest = width * (self.length if self.is_short(against) else max(width, self.length))
        return min(_BATCH, max(1, _WORKSPACE[self.index.device.type] // largest))

    def gathered(self, rows: slice, columns: slice, from_CD: Tensor) -> Tensor:
        """The vectors of columns, (B * P, L, D)."""
        return from_CD.index_select(0, self.index[rows, columns].flatten()).view(-1, self.length, from_CD.shape[1])


def _solve_long(bucket: _Bucket, first: int, last: int, against: _Against, ridge_B1: Tensor, right_BD: Tensor) -> Tensor:
    """Solve rows `first` to `last` of a bucket by their D x D systems, (B, D)."""
    base_DD, rows, width = against.base, slice(first, last), len(against.base)
    if bucket.pieces == 1:
        gathered_BLD = bucket.gathered(rows, slice(None), against.vectors)
        systems_BDD = torch.baddbmm(base_DD, gathered_BLD.mT, gathered_BLD)
    else:
        systems_BDD = base_DD.repeat(last - first, 1, 1)
        step = bucket.length * min(bucket.pieces, bucket.at_once(against))
        for begin in range(0, bucket.pieces * bucket.length, step):
            gathered_BLD = bucket.gathered(rows, slice(begin, begin + step), against.vectors)
            products = torch.bmm(gathered_BLD.mT, gathered_BLD)
            systems_BDD += products.view(last - first, -1, width, width).sum(1)
    systems_BDD.diagonal(dim1=1, dim2=2).add_(ridge_B1)
    return _solved(systems_BDD, right_BD)


def _solve_short(bucket: _Bucket, first: int, last: int, against: _Against, ridge_B1: Tensor, _: Tensor) -> Tensor:
    """Solve rows `first` to `last` of a bucket by the matrix inversion lemma, (B, D). Each row is one piece.

    With W the diagonal 1 / (base + ridge_r) and Z = Q_r W^(1/2), both in the base's axes, p = W^(1/2) Z' (I + Z Z')^-1 1.
    """
    roots_BD = (against.diagonal + ridge_B1).rsqrt_()
    scaled_BLD = bucket.gathered(slice(first, last), slice(None), against.turned).mul_(roots_BD.unsqueeze(1))
    identity = torch.eye(bucket.length, device=roots_BD.device)
    systems_BLL = torch.baddbmm(identity, scaled_BLD, scaled_BLD.mT)
    weights_BL = _solved(systems_BLL, roots_BD.new_ones(last - first, bucket.length))  # padding weights multiply zeros below
    combined_BD = torch.bmm(weights_BL.unsqueeze(1), scaled_BLD).squeeze(1)
    return combined_BD.mul_(roots_BD) @ against.axes.T


def _solved(systems_BDD: Tensor, right_BD: Tensor) -> Tensor:
    """The solutions, (B, D); NaN for systems that are not positive definite. The host does not wait for the device."""
    factors_BDD, failed_B = torch.linalg.cholesky_ex(systems_BDD)
    solved_BD = torch.cholesky_solve(right_BD.unsqueeze(2), factors_BDD).squeeze(2)
    return solved_BD.masked_fill_((failed_B != 0).unsqueeze(1), torch.nan)


def padded_lengths(degrees: np.ndarray) -> np.ndarray:
    """Round each degree up to the next of 8, 12, 16, 24, 32, 48, ..., so that padding is at most a third of the work.

    Rows shorter than 8 may have more padding. Rows without a column have length 0.
    """
    powers = 1 << np.arange(3, 63, dtype=np.int64)
    ladder = np.sort(np.concatenate([[0], powers, powers // 2 * 3]))
    return ladder[np.searchsorted(ladder, degrees)]
