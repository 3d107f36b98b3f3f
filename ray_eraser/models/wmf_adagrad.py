"""Weighted matrix factorisation by gradient steps over all pairs, without sampling, as RecEraser trains it.

The loss is from Chen et al. 2020 ("Efficient Neural Matrix Factorization without Sampling"), the optimiser is Adagrad (Duchi et
al. 2011), and the settings are those of the RecEraser authors (Chen et al. 2022).

U' users and I' items of the shard in its compact numbering, B users of a batch, D width.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ray_eraser.config import WmfAdagradConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.evaluation import evaluate
from ray_eraser.models.base import BaseModel, Start, Table, TrainingState
from ray_eraser.models.stopping import EarlyStopping

_START_SCALE = 0.01
"""Standard deviation of the initial coordinates, as in the authors' code."""

_ACCUMULATOR_START = 1e-8
"""Initial value of Adagrad's accumulator, as in the authors' code. It is so small that a row's first step has length `lr`."""


class WmfAdagrad(BaseModel):
    """WMF by non-sampling gradient steps."""

    config: WmfAdagradConfig

    def __init__(self, config: WmfAdagradConfig) -> None:
        self.config = config

    def train(
        self, before: TrainingState, interactions: Interactions, valid: Interactions, start: Start, epochs: int
    ) -> TrainingState:
        """Train for all epochs. With `patience`, stop when Recall@10 on `valid` stops rising, and return the best state."""
        config = self.config
        compact = interactions.compact()
        observed_UI = compact.matrix()
        generator = torch.Generator().manual_seed(start.seed)
        users_UD = torch.randn(len(compact.user_rows), config.width, generator=generator) * _START_SCALE
        fresh = TrainingState(
            _fresh(compact.user_rows, users_UD.numpy()), _fresh(compact.item_rows, start.items * np.float32(_START_SCALE))
        )
        state = fresh.after(before)
        users_UD, users_squares_UD = (torch.from_numpy(state.users[name]) for name in ("vectors", "squares"))
        items_ID, items_squares_ID = (torch.from_numpy(state.items[name]) for name in ("vectors", "squares"))
        stopping: EarlyStopping[TrainingState] = EarlyStopping(config.patience)
        for epoch in range(1, epochs + 1):
            # `split` keeps a shorter last batch. The authors drop it, so a shard with fewer users than a batch never trains.
            for batch_B in torch.split(torch.randperm(len(users_UD), generator=generator), config.batch):
                before_BD = users_UD.index_select(0, batch_B)
                dropped_BD = dropout_mask(before_BD, config.keep, generator)
                _, slope_BD, slope_ID = non_sampling_loss(
                    before_BD * dropped_BD, items_ID, observed_UI[batch_B.numpy()], config.w0
                )
                squares_BD = users_squares_UD.index_select(0, batch_B)
                adagrad_step(before_BD, slope_BD.mul_(dropped_BD), squares_BD, config.lr)
                # A user is in only one batch of an epoch, so rows are written once and no order of additions affects the bits.
                users_UD.index_copy_(0, batch_B, before_BD)
                users_squares_UD.index_copy_(0, batch_B, squares_BD)
                adagrad_step(items_ID, slope_ID, items_squares_ID, config.lr)
            if config.patience and len(valid) and (epoch % config.check_every == 0 or epoch == epochs):
                score = evaluate(self.embeddings(state, interactions), interactions, valid, (10,))["recall@10"]
                stopping = stopping.after(score, state.copy())
                if stopping.exhausted:
                    break
        return stopping.best or state

    def embeddings(self, state: TrainingState, interactions: Interactions) -> Embeddings:  # noqa: ARG002 - all in the state
        return Embeddings(state.users.rows, state.users["vectors"], state.items.rows, state.items["vectors"])


def non_sampling_loss(
    users_BD: Tensor, items_ID: Tensor, observed_BI: sparse.csr_matrix, w0: float
) -> tuple[float, Tensor, Tensor]:
    """The loss over all pairs of these users and items, and its gradients (B, D) and (I, D). Chen et al. 2022, eq. 8.

    loss = w0 * sum over all pairs of (p.q)^2  +  sum over observed pairs of (1 - w0) (p.q)^2 - 2 p.q,
    which is the squared error with weight 1 on observed pairs (p.q - 1)^2 and w0 on the others (p.q)^2, less a constant. The
    sum over all pairs equals the sum of the entries of P'P * Q'Q, so no loop visits all pairs.
    """
    users_gram_DD, items_gram_DD = users_BD.T @ users_BD, items_ID.T @ items_ID
    scores_n = _observed_scores(users_BD, items_ID, observed_BI)
    loss = w0 * float((users_gram_DD * items_gram_DD).sum()) + float(((1 - w0) * scores_n * scores_n - 2 * scores_n).sum())
    # SciPy's products add in storage order, so they give the same bits with any number of threads.
    slopes_BI = sparse.csr_matrix(
        ((2 * (1 - w0) * scores_n - 2).numpy(), observed_BI.indices, observed_BI.indptr), shape=observed_BI.shape
    )
    slope_BD = torch.from_numpy(slopes_BI @ items_ID.numpy()).addmm_(users_BD, items_gram_DD, alpha=2 * w0)
    slope_ID = torch.from_numpy(slopes_BI.T @ users_BD.numpy()).addmm_(items_ID, users_gram_DD, alpha=2 * w0)
    return loss, slope_BD, slope_ID


def adagrad_step(weights: Tensor, slope: Tensor, squares: Tensor, lr: float) -> None:
    """Take one Adagrad step in place: squares += slope^2, weights -= lr * slope / sqrt(squares)."""
    squares.addcmul_(slope, slope)
    weights.addcdiv_(slope, squares.sqrt(), value=-lr)


def dropout_mask(like: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    """A mask in the shape of `like`: 1 / keep with probability `keep`, else 0. Multiplying by it preserves the mean."""
    return (torch.rand(like.shape, dtype=like.dtype, generator=generator) < keep).to(like.dtype) / keep


def _observed_scores(users_BD: Tensor, items_ID: Tensor, observed_BI: sparse.csr_matrix) -> Tensor:
    """The scores p.q of the observed pairs in storage order, (n,)."""
    with warnings.catch_warnings():
        # torch warns once per process that this layout is in beta. A test checks the kernel used here against a naive loop.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        pattern_BI = torch.sparse_csr_tensor(
            torch.from_numpy(observed_BI.indptr),
            torch.from_numpy(observed_BI.indices),
            users_BD.new_zeros(observed_BI.nnz),
            size=observed_BI.shape,
            check_invariants=False,
        )
        scores_BI: Tensor = torch.sparse.sampled_addmm(pattern_BI, users_BD, items_ID.T)
        return scores_BI.values()


def _fresh(rows: np.ndarray, vectors_RD: np.ndarray) -> Table:
    return Table(rows, {"vectors": vectors_RD, "squares": np.full_like(vectors_RD, _ACCUMULATOR_START)})
