"""Weighted matrix factorisation by exact alternating least squares in PyTorch: the equations of models/wmf_als.py on a GPU.

R rows are solved against C columns: users against items, or items against users. D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ray_eraser.config import WmfAlsConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.kernels.buckets import Buckets
from ray_eraser.kernels.resident import Slice, slice_of
from ray_eraser.models.base import START_LENGTH, BaseModel, Start, Table, TrainingState
from ray_eraser.models.wmf_als import ridge_of


class WmfAlsTorch(BaseModel):
    """WMF by alternating least squares on a torch device. State and results are in host memory, as with `WmfAls`."""

    config: WmfAlsConfig

    def __init__(self, config: WmfAlsConfig, device: torch.device) -> None:
        self.config, self._device = config, device

    def train(
        self,
        before: TrainingState,
        interactions: Interactions,
        valid: Interactions,  # noqa: ARG002 - as in WmfAls
        start: Start,
        epochs: int,
    ) -> TrainingState:
        """Alternate exact solves, users then items. The data is uploaded once, and the items are downloaded once."""
        held = slice_of(interactions, self._device)
        first_ID = start.items * np.float32(START_LENGTH / self.config.width**0.5)
        state = TrainingState(items=Table(held.compact.item_rows, {"vectors": first_ID})).after(before)
        items_ID = alternate(held, state.items["vectors"], self._alpha0, self.config.reg, epochs)
        return TrainingState(items=Table(held.compact.item_rows, {"vectors": items_ID}))

    def embeddings(self, state: TrainingState, interactions: Interactions) -> Embeddings:
        """Solve the users on the final items."""
        held, items_ID = slice_of(interactions, self._device), state.items["vectors"]
        side = Side.over(held.by_user, self._alpha0, self.config.reg)
        users_UD = half_sweep_torch(side, uploaded(items_ID, self._device), self._alpha0).cpu().numpy()
        return Embeddings(held.compact.user_rows, users_UD, held.compact.item_rows, items_ID)

    @property
    def _alpha0(self) -> float:
        return self.config.known_alpha0


@dataclass(frozen=True, eq=False)
class Side:
    """The rows that a half sweep solves, on a device. They stay the same in all epochs.

    Attributes:
        buckets: the columns of each row.
        ridge: (R,) see `ridge_of`.
    """

    buckets: Buckets
    ridge: Tensor

    @classmethod
    def of(cls, matrix: sparse.csr_matrix, alpha0: float, reg: float, device: torch.device) -> Side:
        return cls.over(Buckets.of_matrix(matrix, device), alpha0, reg)

    @classmethod
    def over(cls, buckets: Buckets, alpha0: float, reg: float) -> Side:
        ridge_R = ridge_of(buckets.degrees, buckets.n_columns, alpha0, reg)
        return cls(buckets, torch.from_numpy(ridge_R).to(buckets.columns.device))


def half_sweep_torch(side: Side, others_CD: Tensor, alpha0: float) -> Tensor:
    """The best vector of every row while the other side is fixed, (R, D) float32, as in `models.wmf_als.half_sweep`."""
    return side.buckets.solve(others_CD, alpha0 * (others_CD.T @ others_CD), side.ridge)


def alternate(held: Slice, items_ID: np.ndarray, alpha0: float, reg: float, sweeps: int) -> np.ndarray:
    """The items after `sweeps` rounds of users, then items, (I, D) float32. Nothing leaves the device between rounds.

    Args:
        held: the interactions, on the device that computes.
        items_ID: float32, the initial vectors; they are not changed.
        alpha0: the weight of an unobserved pair; an observed pair has weight 1.
        reg: the ridge, scaled by each row's degree.
        sweeps: the number of rounds.
    """
    users, items = (Side.over(buckets, alpha0, reg) for buckets in (held.by_user, held.by_item))
    vectors = uploaded(items_ID, held.device)
    for _ in range(sweeps):
        vectors = half_sweep_torch(items, half_sweep_torch(users, vectors, alpha0), alpha0)
    return vectors.cpu().numpy()


def uploaded(vectors: np.ndarray, device: torch.device) -> Tensor:
    """Copy the vectors to the device, even if it is the CPU."""
    return torch.tensor(vectors, device=device)
