"""LightGCN on a torch device. Triplets, batches and steps are those of models/lightgcn.py, so only rounding differs.

U users and I items of the shard in its compact numbering, R rows of a table, A ages of its rows, B triplets (user, own item,
other item) of a batch with C = 2 B items, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ray_eraser.config import LightGcnConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.kernels.buckets import Buckets
from ray_eraser.kernels.resident import Slice, slice_of
from ray_eraser.kernels.sampling_torch import Pairs, batches_of_triplets
from ray_eraser.models.base import BaseModel, Start, Table, TrainingState
from ray_eraser.models.bpr_torch import triplet_slopes
from ray_eraser.models.lightgcn import DECAY_1, DECAY_2, EPSILON, LightGcn
from ray_eraser.seeds import derive


class LightGcnTorch(BaseModel):
    """LightGCN on a torch device. Its training state holds the vectors before smoothing."""

    config: LightGcnConfig

    def __init__(self, config: LightGcnConfig, device: torch.device) -> None:
        self.config = config
        self._device = device

    def train(
        self, before: TrainingState, interactions: Interactions, valid: Interactions, start: Start, epochs: int
    ) -> TrainingState:
        """Train for all epochs. An epoch draws as many triplets as there are interactions."""
        config, n, seed = self.config, len(interactions), derive(start.seed, "triplets")
        # Zero epochs on the CPU make the initial state, so that both devices start with the same numbers.
        state = LightGcn(config).train(before, interactions, valid, start, 0)
        held = slice_of(interactions, self._device)
        graph, pairs = GraphTorch.of(held, config.layers), Pairs.of(held.by_user)
        users, items = (AdamTorch(table, config.lr, self._device) for table in (state.users, state.items))
        for epoch in range(epochs):
            for triplets_n3 in batches_of_triplets(pairs, n, config.batch, seed, first=epoch * n):
                # A shorter last batch is kept, because a small shard has only this one.
                for batch_B3 in torch.split(triplets_n3, config.batch):
                    slope_UD, slope_ID = slopes(graph, users.vectors_RD, items.vectors_RD, batch_B3, config.reg)
                    users.step(slope_UD)
                    items.step(slope_ID)
        return TrainingState(users.table(), items.table(), state.stages)

    def embeddings(self, state: TrainingState, interactions: Interactions) -> Embeddings:
        graph = GraphTorch.of(slice_of(interactions, self._device), self.config.layers)
        vectors = (torch.from_numpy(table["vectors"]).to(self._device) for table in (state.users, state.items))
        users_UD, items_ID = graph.smoothed(*vectors)
        return Embeddings(state.users.rows, users_UD.cpu().numpy(), state.items.rows, items_ID.cpu().numpy())


@dataclass(frozen=True, eq=False)
class GraphTorch:
    """The shard's interactions as edges between users and items. Every user and every item has an edge.

    Attributes:
        by_user: every user's items.
        by_item: every item's users.
        user_degrees: (U, 1) float32, the number of edges of each user.
        item_degrees: (I, 1) float32, the number of edges of each item.
        layers: the number of steps along the edges that `smoothed` takes.
    """

    by_user: Buckets
    by_item: Buckets
    user_degrees: Tensor
    item_degrees: Tensor
    layers: int

    @classmethod
    def of(cls, held: Slice, layers: int) -> GraphTorch:
        user_degrees, item_degrees = (
            torch.from_numpy(edges.degrees.astype(np.float32)[:, None]).to(held.device)
            for edges in (held.by_user, held.by_item)
        )
        return cls(held.by_user, held.by_item, user_degrees, item_degrees, layers)

    def smoothed(self, users_UD: Tensor, items_ID: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over l = 0 .. layers of A^l x, (U, D) and (I, D): see `Graph.smoothed`. He et al. 2020, eq. 7 and 8."""
        roots_U1, roots_I1 = self.user_degrees.sqrt(), self.item_degrees.sqrt()
        layer_UD, layer_ID = users_UD / roots_U1, items_ID / roots_I1
        sum_UD, sum_ID = layer_UD.clone(), layer_ID.clone()
        for _ in range(self.layers):
            layer_UD, layer_ID = (
                self.by_user.sums(layer_ID).div_(self.user_degrees),
                self.by_item.sums(layer_UD).div_(self.item_degrees),
            )
            sum_UD += layer_UD
            sum_ID += layer_ID
        return sum_UD.mul_(roots_U1 / (self.layers + 1)), sum_ID.mul_(roots_I1 / (self.layers + 1))


def slopes(graph: GraphTorch, users_UD: Tensor, items_ID: Tensor, triplets_B3: Tensor, reg: float) -> tuple[Tensor, Tensor]:
    """The gradients (U, D) and (I, D) of `models.lightgcn.slopes`. He et al. 2020, eq. 15."""
    smooth_UD, smooth_ID = graph.smoothed(users_UD, items_ID)
    # Item number I means "no item".
    smooth_ID = torch.cat([smooth_ID, smooth_ID.new_zeros(1, smooth_ID.shape[1])])
    slopes_BD, slopes_CD = triplet_slopes(triplets_B3, smooth_UD, smooth_ID, 0)
    named_B, named_C = triplets_B3[:, 0].long(), triplets_B3[:, 1:].reshape(-1).long()
    slope_UD = torch.zeros_like(smooth_UD).index_add_(0, named_B, slopes_BD)
    slope_ID = torch.zeros_like(smooth_ID).index_add_(0, named_C, slopes_CD)[:-1]
    slope_UD, slope_ID = graph.smoothed(slope_UD, slope_ID)
    slope_UD.addcmul_(_times(named_B, len(users_UD)), users_UD, value=reg)
    slope_ID.addcmul_(_times(named_C, len(items_ID) + 1)[:-1], items_ID, value=reg)
    return slope_UD, slope_ID


def _times(named_n: Tensor, n_rows: int) -> Tensor:
    """How often each row occurs, (n_rows, 1) float32. The counts are exact because they are integers."""
    # bincount would make the host wait for the device.
    times_R = named_n.new_zeros(n_rows).index_add_(0, named_n, torch.ones_like(named_n))
    return times_R.to(torch.float32).unsqueeze(1)


class AdamTorch:
    """One table on a device, updated as by `models.lightgcn.Adam`."""

    def __init__(self, table: Table, lr: float, device: torch.device) -> None:
        self.vectors_RD, self._means_RD, self._squares_RD = (
            torch.from_numpy(table[name]).to(device, copy=True) for name in ("vectors", "means", "squares")
        )
        self._before, self._lr, self._taken = table, lr, 0
        # Double precision, because powers in single precision are too coarse for rows with many steps.
        ages_A, age_of_R = np.unique(table["steps"], return_inverse=True)
        self._ages_A, self._age_of_R = torch.from_numpy(ages_A).to(device, torch.float64), torch.from_numpy(age_of_R).to(device)

    def step(self, slope_RD: Tensor) -> None:
        """Move every coordinate by about `lr` against the running mean of its gradient (Kingma and Ba 2015)."""
        decay_1, decay_2 = float(DECAY_1), float(DECAY_2)
        self._taken += 1
        self._ages_A += 1
        lr_R1, unbias_R1 = (
            (scale / (1 - decay**self._ages_A)).to(torch.float32).index_select(0, self._age_of_R).unsqueeze(1)
            for scale, decay in ((self._lr, decay_1), (1, decay_2))
        )
        self._means_RD.mul_(decay_1).add_(slope_RD, alpha=1 - decay_1)
        self._squares_RD.mul_(decay_2).addcmul_(slope_RD, slope_RD, value=1 - decay_2)
        lengths_RD = (self._squares_RD * unbias_R1).sqrt_().add_(float(EPSILON))
        self.vectors_RD -= (lr_R1 * self._means_RD).div_(lengths_RD)

    def table(self) -> Table:
        """The table in host memory."""
        columns = {"vectors": self.vectors_RD, "means": self._means_RD, "squares": self._squares_RD}
        steps_R = self._before["steps"] + self._taken
        return Table(self._before.rows, {name: column.cpu().numpy() for name, column in columns.items()} | {"steps": steps_R})
