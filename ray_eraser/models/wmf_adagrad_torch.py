"""WMF by non-sampling gradient steps on a torch device. Only rounding differs from models/wmf_adagrad.py.

U' users and I' items of the shard in its compact numbering, B users of a batch, n observed pairs of the batch, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ray_eraser.config import WmfAdagradConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.evaluation import evaluate
from ray_eraser.kernels.buckets import Buckets
from ray_eraser.kernels.resident import slice_of
from ray_eraser.models.base import BaseModel, Start, Table, TrainingState
from ray_eraser.models.stopping import EarlyStopping
from ray_eraser.models.wmf_adagrad import WmfAdagrad, adagrad_step, dropout_mask

_GATHERED = 1 << 24
"""Count of numbers to gather at once for one side of observed pairs. A step holds about four arrays of this size."""


class WmfAdagradTorch(BaseModel):
    """WMF by non-sampling gradient steps on a torch device."""

    config: WmfAdagradConfig

    def __init__(self, config: WmfAdagradConfig, device: torch.device) -> None:
        self.config = config
        self._device = device

    @torch.no_grad()
    def train(
        self, before: TrainingState, interactions: Interactions, valid: Interactions, start: Start, epochs: int
    ) -> TrainingState:
        """Train for all epochs. With `patience`, stop when Recall@10 on `valid` stops rising, and return the best state."""
        config = self.config
        # Zero epochs on the CPU make the initial state, so that both devices start with the same numbers.
        state = WmfAdagrad(config).train(before, interactions, valid, start, 0)
        users, items = _OnDevice.of(state.users, self._device), _OnDevice.of(state.items, self._device)
        n_users = len(state.users.rows)
        generator = torch.Generator().manual_seed(start.seed)
        torch.randn(n_users, config.width, generator=generator)  # skip the users' initial vectors, drawn first on the CPU
        pairs = PairsByUser.of(slice_of(interactions, self._device).by_user)
        stopping: EarlyStopping[TrainingState] = EarlyStopping(config.patience)
        for epoch in range(1, epochs + 1):
            for batch_B in torch.split(torch.randperm(n_users, generator=generator), config.batch):
                here_B = batch_B.to(self._device)
                before_BD = users.vectors.index_select(0, here_B)
                dropped_BD = dropout_mask(before_BD, config.keep, generator).to(self._device)
                slope_BD, slope_ID = non_sampling_slopes(
                    before_BD * dropped_BD, items.vectors, pairs.of_users(batch_B), config.w0
                )
                squares_BD = users.squares.index_select(0, here_B)
                adagrad_step(before_BD, slope_BD.mul_(dropped_BD), squares_BD, config.lr)
                # A user is in only one batch of an epoch, so the rows are distinct.
                users.vectors.index_copy_(0, here_B, before_BD)
                users.squares.index_copy_(0, here_B, squares_BD)
                adagrad_step(items.vectors, slope_ID, items.squares, config.lr)
            if config.patience and len(valid) and (epoch % config.check_every == 0 or epoch == epochs):
                reached = TrainingState(users.table(), items.table(), state.stages)
                score = evaluate(self.embeddings(reached, interactions), interactions, valid, (10,))["recall@10"]
                stopping = stopping.after(score, reached)
                if stopping.exhausted:
                    break
        return stopping.best or TrainingState(users.table(), items.table(), state.stages)

    def embeddings(self, state: TrainingState, interactions: Interactions) -> Embeddings:
        return WmfAdagrad(self.config).embeddings(state, interactions)


@dataclass(frozen=True, eq=False)
class _OnDevice:
    """The vectors and squared gradients of one side on a device, both (R, D). Training changes them in place."""

    rows: np.ndarray
    vectors: Tensor
    squares: Tensor

    @classmethod
    def of(cls, table: Table, device: torch.device) -> _OnDevice:
        vectors, squares = (torch.from_numpy(table[name]).to(device, copy=True) for name in ("vectors", "squares"))
        return cls(table.rows, vectors, squares)

    def table(self) -> Table:
        """A copy of the table in host memory."""
        vectors, squares = (tensor.to("cpu", copy=True).numpy() for tensor in (self.vectors, self.squares))
        return Table(self.rows, {"vectors": vectors, "squares": squares})


@dataclass(frozen=True, eq=False)
class PairsByUser:
    """Observed pairs on a device, grouped by user, so that the pairs of a batch can be looked up.

    Attributes:
        starts: (U' + 1,) int64 in host memory, where each user's items begin.
        items: (pairs,) on the device, user after user.
    """

    starts: np.ndarray
    items: Tensor

    @classmethod
    def of(cls, by_user: Buckets) -> PairsByUser:
        return cls(by_user.starts, by_user.columns)

    def of_users(self, batch_B: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs of a batch, (n,) int64 each: the user's position in the batch, ascending, and the item.

        Args:
            batch_B: user numbers in host memory, so that n is known without waiting for the device.
        """
        users_B = batch_B.numpy()
        begins_B, sizes_B = self.starts[users_B], self.starts[users_B + 1] - self.starts[users_B]
        ends_B = np.cumsum(sizes_B)
        device, total = self.items.device, int(ends_B[-1])
        pair_n = torch.arange(total, device=device)
        place_n = torch.searchsorted(torch.from_numpy(ends_B).to(device), pair_n, right=True)
        shift_B = torch.from_numpy(begins_B - (ends_B - sizes_B)).to(device)
        return place_n, self.items.index_select(0, pair_n + shift_B.index_select(0, place_n)).long()


def non_sampling_slopes(users_BD: Tensor, items_ID: Tensor, pairs: tuple[Tensor, Tensor], w0: float) -> tuple[Tensor, Tensor]:
    """The gradients (B, D) and (I, D) of the loss of `wmf_adagrad.non_sampling_loss`.

    Args:
        users_BD: vectors of the batch's users.
        items_ID: vectors of all items.
        pairs: the result of `PairsByUser.of_users`.
        w0: the weight of an unobserved pair.
    """
    slope_BD = (users_BD @ (items_ID.T @ items_ID)).mul_(2 * w0)
    slope_ID = (items_ID @ (users_BD.T @ users_BD)).mul_(2 * w0)
    size = max(1, _GATHERED // users_BD.shape[1])
    for place_n, item_n in zip(*(torch.split(side_n, size) for side_n in pairs), strict=True):
        users_nD, items_nD = users_BD.index_select(0, place_n), items_ID.index_select(0, item_n)
        slope_n1 = (users_nD * items_nD).sum(1, keepdim=True).mul_(2 * (1 - w0)).sub_(2)
        slope_BD.index_add_(0, place_n, slope_n1 * items_nD)
        slope_ID.index_add_(0, item_n, slope_n1 * users_nD)
    return slope_BD, slope_ID
