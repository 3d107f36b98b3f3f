"""BPR-MF on a torch device. Triplets, batches and steps are those of models/bpr.py, so only rounding differs.

U users and I items of the shard in its compact numbering, n triplets (user, own item, other item), B triplets of a batch with
C = 2 B items, N rows of a table, M = N + 1 with a row for "no item", R distinct rows of a batch, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ray_eraser.config import BprConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.kernels.resident import slice_of
from ray_eraser.kernels.sampling_torch import Pairs, batches_of_triplets
from ray_eraser.models.base import BaseModel, Start, Table, TrainingState
from ray_eraser.models.bpr import Bpr
from ray_eraser.seeds import derive


class BprTorch(BaseModel):
    """BPR-MF on a torch device."""

    config: BprConfig

    def __init__(self, config: BprConfig, device: torch.device) -> None:
        self.config = config
        self._device = device

    def train(
        self, before: TrainingState, interactions: Interactions, valid: Interactions, start: Start, epochs: int
    ) -> TrainingState:
        """Train for all epochs. An epoch draws as many triplets as there are interactions."""
        config, n, seed = self.config, len(interactions), derive(start.seed, "triplets")
        # Zero epochs on the CPU make the initial state, so that both devices start with the same numbers.
        state = Bpr(config).train(before, interactions, valid, start, 0)
        pairs = Pairs.of(slice_of(interactions, self._device).by_user)
        users, items = (AdagradTable(table, config.lr, self._device) for table in (state.users, state.items))
        for epoch in range(epochs):
            for triplets_n3 in batches_of_triplets(pairs, n, config.batch, seed, first=epoch * n):
                train_on(triplets_n3, users, items, config.batch, config.reg)
        return TrainingState(users.table(), items.table(), state.stages)

    def embeddings(self, state: TrainingState, interactions: Interactions) -> Embeddings:
        return Bpr(self.config).embeddings(state, interactions)


class AdagradTable:
    """The vectors and squared gradients of one side on a device. `step` changes them in place.

    Attributes:
        vectors_MD: the last row represents "no item" and stays zero. A table of users has this row as well.
    """

    def __init__(self, table: Table, lr: float, device: torch.device) -> None:
        n_rows, width = table["vectors"].shape
        self.vectors_MD = torch.zeros(n_rows + 1, width, device=device)
        self.vectors_MD[:-1] = torch.from_numpy(table["vectors"])
        self._squares_ND = torch.from_numpy(table["squares"]).to(device, copy=True)
        self._rows, self._lr = table.rows, lr

    def __len__(self) -> int:
        return len(self._squares_ND)

    def step(self, rows_R: Tensor, slopes_RD: Tensor) -> None:
        """Take one Adagrad step for these distinct rows: squares += slope^2, vectors -= lr * slope / sqrt(squares)."""
        squares_RD = self._squares_ND.index_select(0, rows_R).addcmul_(slopes_RD, slopes_RD)
        vectors_RD = self.vectors_MD.index_select(0, rows_R).addcdiv_(slopes_RD, squares_RD.sqrt(), value=-self._lr)
        self._squares_ND.index_copy_(0, rows_R, squares_RD)
        self.vectors_MD.index_copy_(0, rows_R, vectors_RD)

    def table(self) -> Table:
        """The table in host memory."""
        vectors_ND, squares_ND = self.vectors_MD[:-1].cpu().numpy(), self._squares_ND.cpu().numpy()
        return Table(self._rows, {"vectors": vectors_ND, "squares": squares_ND})


@dataclass(frozen=True, eq=False)
class Named:
    """The distinct rows of one batch.

    Attributes:
        rows: (R,) ascending, without the row of "no item".
        places: positions in the batch, grouped by row. The positions of "no item" come last.
        starts: the start of each row's group in `places`, including the group of "no item" if there is one, and the end of the
            last group.
    """

    rows: Tensor
    places: Tensor
    starts: Tensor

    def sums(self, slopes_nD: Tensor) -> Tensor:
        """Sum the gradients of each row in the order of its positions, (R, D)."""
        # The deterministic index_add_ would sort every batch again on a GPU.
        sums = embedding_bag(self.places, slopes_nD, self.starts, mode="sum", include_last_offset=True)
        return sums[: len(self.rows)]


def named_by_batch(named_n: Tensor, n_rows: int, batch: int) -> Iterator[Named]:
    """Find the distinct rows of every batch.

    All batches are sorted together. To sort them one by one, the host would wait for the device after each batch.

    Args:
        named_n: rows below n_rows, or n_rows for "no item"; rows may repeat.
        n_rows: N.
        batch: the number of entries of `named_n` in a batch; the last batch may be shorter.
    """
    numbers_n = torch.arange(len(named_n), device=named_n.device)
    keys_n, order_n = torch.sort(numbers_n // batch * (n_rows + 1) + named_n, stable=True)
    distinct, counts = torch.unique_consecutive(keys_n, return_counts=True)
    rows, places_n = distinct % (n_rows + 1), order_n % batch
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    batches = torch.arange(-(-len(named_n) // batch), device=named_n.device)[:, None]
    # For each batch: the start of its distinct keys, the place of the key of "no item", and the end.
    edges = batches * (n_rows + 1) + torch.tensor([0, n_rows, n_rows + 1], device=named_n.device)
    for number, (first, no_item, last) in enumerate(torch.searchsorted(distinct, edges).tolist()):
        begin = number * batch
        yield Named(rows[first:no_item], places_n[begin : begin + batch], starts[first : last + 1] - begin)


def train_on(triplets_n3: Tensor, users: AdagradTable, items: AdagradTable, batch: int, reg: float) -> None:
    """Take one Adagrad step for every batch of triplets, in place. A shorter last batch is kept.

    A batch updates only its own rows, as in models/bpr.py.
    """
    named_users = named_by_batch(triplets_n3[:, 0], len(users), batch)
    named_items = named_by_batch(triplets_n3[:, 1:].reshape(-1), len(items), 2 * batch)
    for batch_B3, of_users, of_items in zip(torch.split(triplets_n3, batch), named_users, named_items, strict=True):
        slopes_BD, slopes_CD = triplet_slopes(batch_B3, users.vectors_MD, items.vectors_MD, reg)
        users.step(of_users.rows, of_users.sums(slopes_BD))
        items.step(of_items.rows, of_items.sums(slopes_CD))


def triplet_slopes(triplets_B3: Tensor, users_UD: Tensor, items_MD: Tensor, reg: float) -> tuple[Tensor, Tensor]:
    """Every triplet's gradient of -log sigmoid(p.(q_i - q_j)) + reg / 2 (p^2 + q_i^2 + q_j^2). Rendle et al. 2009.

    Returns:
        (B, D) for the users, and (2 B, D) for the items, with q_i and q_j alternating.
    """
    users_BD = users_UD.index_select(0, triplets_B3[:, 0])
    items_B2D = items_MD.index_select(0, triplets_B3[:, 1:].reshape(-1)).view(-1, 2, items_MD.shape[1])
    differences_BD = items_B2D[:, 0] - items_B2D[:, 1]
    slopes_B1 = torch.sigmoid((users_BD * differences_BD).sum(1, keepdim=True).neg_()).neg_()
    slopes_BD = slopes_B1 * differences_BD + reg * users_BD
    towards_BD = slopes_B1 * users_BD
    slopes_B2D = torch.stack([towards_BD, -towards_BD], 1).add_(items_B2D, alpha=reg)
    return slopes_BD, slopes_B2D.view(-1, items_MD.shape[1])
