"""Weighted matrix factorisation by exact alternating least squares over observed and unobserved pairs.

Hu, Koren, Volinsky 2008, with the regularisation of Rendle et al. 2021 ("Revisiting the performance of iALS"). The loss is
    alpha0 * sum over all (u, v) of (p_u . q_v)^2  +  sum over observed (u, v) of (p_u . q_v - 1)^2  +  ridge.

R rows are solved against C columns: users against items, or items against users. D width.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from ray_eraser.config import WmfAlsConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.kernels.ridge import Ridge
from ray_eraser.models.base import START_LENGTH, BaseModel, Start, Table, TrainingState


class WmfAls(BaseModel):
    """WMF by alternating least squares. Its state holds only the items' vectors; the users' vectors follow from them."""

    config: WmfAlsConfig

    def __init__(self, config: WmfAlsConfig) -> None:
        self.config = config

    def train(
        self,
        before: TrainingState,
        interactions: Interactions,
        valid: Interactions,  # noqa: ARG002 - no early stopping, because epochs are few and cheap
        start: Start,
        epochs: int,
    ) -> TrainingState:
        """Alternate exact solves, users then items."""
        compact = interactions.compact()
        by_user = compact.matrix()
        by_item = by_user.T.tocsr()
        first_ID = start.items * np.float32(START_LENGTH / self.config.width**0.5)
        state = TrainingState(items=Table(compact.item_rows, {"vectors": first_ID})).after(before)
        items_ID = state.items["vectors"]
        for _ in range(epochs):
            items_ID = self._half_sweep(by_item, self._half_sweep(by_user, items_ID))
        return TrainingState(items=Table(compact.item_rows, {"vectors": items_ID}))

    def embeddings(self, state: TrainingState, interactions: Interactions) -> Embeddings:
        """Solve the users on the final items."""
        compact, items_ID = interactions.compact(), state.items["vectors"]
        users_UD = self._half_sweep(compact.matrix(), items_ID)
        return Embeddings(compact.user_rows, users_UD, compact.item_rows, items_ID)

    def _half_sweep(self, matrix: sparse.csr_matrix, others_CD: np.ndarray) -> np.ndarray:
        return half_sweep(matrix, others_CD, self.config.known_alpha0, self.config.reg)


def half_sweep(matrix: sparse.csr_matrix, others_CD: np.ndarray, alpha0: float, reg: float) -> np.ndarray:
    """The best vector of every row while the other side is fixed, (R, D) float32; zeros for rows without a pair.

    Row r solves (alpha0 Q'Q + Q_r'Q_r + reg (n_r + alpha0 C) I) p = sum of the rows of Q_r. Q is the other side, Q_r are its
    rows that r is paired with, and n_r is their number.
    """
    ridge_R = ridge_of(np.diff(matrix.indptr), len(others_CD), alpha0, reg)
    return Ridge(others_CD, base_of(others_CD, alpha0)).solve(matrix.indptr, matrix.indices, ridge_R)


def base_of(others_CD: np.ndarray, alpha0: float) -> np.ndarray:
    """The part that the systems of all rows share, alpha0 Q'Q, (D, D) float32."""
    return np.asarray(np.float32(alpha0) * (others_CD.T @ others_CD), np.float32)


def ridge_of(degrees_R: np.ndarray, n_columns: int, alpha0: float, reg: float) -> np.ndarray:
    """The ridge of every row, reg (n_r + alpha0 C), (R,) float32."""
    return np.asarray(reg * (degrees_R + alpha0 * n_columns), np.float32)
