"""Weighted matrix factorisation, solved exactly: alternating least squares over observed and unobserved pairs.

Hu, Koren, Volinsky 2008; the regularisation of Rendle et al. 2021 ("Revisiting the performance of iALS"). The loss is
    alpha0 * sum over all (u, v) of (p_u . q_v)^2  +  sum over observed (u, v) of (p_u . q_v - 1)^2  +  ridge.

R rows are solved against C columns: users against items or items against users. D width, B rows of a batch, L the longest of
them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ray_eraser.config import WmfAlsConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.models.base import START_LENGTH, BaseModel, Start, Table, TrainingState

_BATCH_CELLS = 1 << 14
"""Gathered vectors of a batch: 4 MB at width 64, so that a batch stays in the cache."""


class WmfAls(BaseModel):
    """WMF by alternating least squares. Its state is the items' vectors: the users' follow from them."""

    config: WmfAlsConfig

    def __init__(self, config: WmfAlsConfig) -> None:
        self.config = config

    def train(
        self,
        before: TrainingState,
        interactions: Interactions,
        valid: Interactions,  # noqa: ARG002 - no early stopping: few epochs, all of them cheap
        start: Start,
        epochs: int,
    ) -> TrainingState:
        """Alternate exact solves, users then items."""
        compact = interactions.compact()
        by_user = compact.matrix()
        by_item = by_user.T.tocsr()
        first_ID = start.items * np.float32(START_LENGTH / self.config.width**0.5)
        state = TrainingState(items=Table(compact.item_rows, {"vectors": first_ID})).after(before)
        items_ID = torch.from_numpy(state.items["vectors"])
        for _ in range(epochs):
            items_ID = self._half_sweep(by_item, self._half_sweep(by_user, items_ID))
        return TrainingState(items=Table(compact.item_rows, {"vectors": items_ID.numpy()}))

    def embeddings(self, state: TrainingState, interactions: Interactions) -> Embeddings:
        """End with the users."""
        compact, items_ID = interactions.compact(), state.items["vectors"]
        users_UD = self._half_sweep(compact.matrix(), torch.from_numpy(items_ID))
        return Embeddings(compact.user_rows, users_UD.numpy(), compact.item_rows, items_ID)

    def _half_sweep(self, matrix: sparse.csr_matrix, others_CD: Tensor) -> Tensor:
        return half_sweep(matrix, others_CD, self.config.known_alpha0, self.config.reg)


def half_sweep(matrix: sparse.csr_matrix, others_CD: Tensor, alpha0: float, reg: float) -> Tensor:
    """Every row's best vector while the other side stands still, (R, D) float32; rows without a pair get zeros.

    Row r solves (alpha0 Q'Q + Q_r'Q_r + reg (n_r + alpha0 C) I) p = sum of the q of its columns, with Q the other side, Q_r its
    rows that r is paired with and n_r their number.

    Rows with fewer columns than D are solved in the dual, in the eigenbasis of Q'Q where all but the row's own part of the
    system is diagonal: an L x L system instead of a D x D one.
    """
    n_columns, width = others_CD.shape
    degrees = np.diff(matrix.indptr)
    gram_DD = others_CD.T @ others_CD
    # One more row of zeros, so that short rows of a batch can be padded with it.
    padded_CD = torch.cat([others_CD, others_CD.new_zeros(1, width)])
    spectrum_D, basis_DD = torch.linalg.eigh(gram_DD)
    # Where there are fewer columns than D, or alike ones, the other directions hold nothing but rounding.
    real_D = spectrum_D > spectrum_D[-1] * width * torch.finfo(spectrum_D.dtype).eps
    rotated_CD = padded_CD @ basis_DD * real_D
    base_DD = alpha0 * gram_DD
    solved_RD = others_CD.new_zeros(len(degrees), width)
    for rows, columns_BL in _batches(matrix, degrees, n_columns):
        ridge_B = torch.from_numpy((reg * (degrees[rows] + alpha0 * n_columns)).astype(np.float32))
        if columns_BL.shape[1] < width:
            diagonal_BD = alpha0 * spectrum_D.clamp(min=0) + ridge_B[:, None]
            vectors = _solve_dual(_gathered(rotated_CD, columns_BL), diagonal_BD) @ basis_DD.T
        else:
            vectors = _solve_primal(_gathered(padded_CD, columns_BL), base_DD, ridge_B)
        solved_RD[torch.from_numpy(rows)] = vectors
    return solved_RD


def _gathered(vectors_CD: Tensor, columns_BL: Tensor) -> Tensor:
    """`vectors_CD[columns_BL]`, in half the time."""
    return vectors_CD.index_select(0, columns_BL.reshape(-1)).view(*columns_BL.shape, -1)


def _solve_primal(own_BLD: Tensor, base_DD: Tensor, ridge_B: Tensor) -> Tensor:
    """(B, D): the D x D system of every row."""
    system_BDD = torch.baddbmm(base_DD.expand(len(own_BLD), -1, -1), own_BLD.transpose(1, 2), own_BLD)
    system_BDD.diagonal(dim1=1, dim2=2).add_(ridge_B[:, None])
    factor_BDD = torch.linalg.cholesky(system_BDD)
    return torch.cholesky_solve(own_BLD.sum(1, keepdim=True).transpose(1, 2), factor_BDD).squeeze(2)


def _solve_dual(own_BLD: Tensor, diagonal_BD: Tensor) -> Tensor:
    """(B, D): with M diagonal, (M + G'G)^-1 G'1 = M^-1 G' (I + G M^-1 G')^-1 1 (push-through identity)."""
    scaled_BLD = own_BLD / diagonal_BD[:, None, :]
    system_BLL = torch.bmm(scaled_BLD, own_BLD.transpose(1, 2))
    system_BLL.diagonal(dim1=1, dim2=2).add_(1.0)
    factor_BLL = torch.linalg.cholesky(system_BLL)
    ones_BL1 = own_BLD.new_ones(*own_BLD.shape[:2], 1)
    # Padding has zero vectors: its entries of the solution meet a zero and leave no trace.
    return torch.bmm(torch.cholesky_solve(ones_BL1, factor_BLL).transpose(1, 2), scaled_BLD).squeeze(1)


def _batches(matrix: sparse.csr_matrix, degrees: np.ndarray, padding: int) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Rows of similar degree together, with their columns (B, L) padded to the longest; rows without columns are left out."""
    order = np.argsort(degrees, kind="stable")
    order = order[degrees[order] > 0]
    ordered = degrees[order]
    first = 0
    while first < len(order):
        shortest = ordered[first]
        # A batch ends where a row is more than an eighth longer than its first, or where the cache is full.
        longer = np.searchsorted(ordered, shortest + max(1, shortest // 8), side="right")
        last = min(int(longer), first + max(1, _BATCH_CELLS // int(shortest + max(1, shortest // 8))))
        rows = order[first:last]
        longest = int(degrees[rows[-1]])
        offsets = np.arange(longest)
        filled = offsets < degrees[rows][:, None]
        cells = np.minimum(matrix.indptr[rows][:, None] + offsets, matrix.nnz - 1)
        columns = np.where(filled, matrix.indices[cells], padding)
        yield rows, torch.from_numpy(columns.astype(np.int64))
        first = last
