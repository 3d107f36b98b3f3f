"""RecEraser's attentive aggregation: which submodel to trust for which user and item, learned (Chen et al. 2022, eq. 5-8).

K submodels that are not empty, U users and I items that any of them knows, R rows of either side or a batch of it, n vectors
that the submodels have for these rows (by submodel, then by row), N for all rows, B users of a batch, D width, A width of the
scorer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg, sparse
from torch import Tensor

from ray_eraser.aggregation.grams import Grams
from ray_eraser.config import AggregationConfig, LossName
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.models.wmf_adagrad import dropout_mask, non_sampling_loss
from ray_eraser.seeds import derive

Slopes = Callable[[Tensor, Tensor, sparse.csr_matrix], tuple[Tensor, Tensor]]
"""From the vectors (B, D) and (I, D) and the pairs (B, I) of a batch of users to the gradients of a loss."""

_CHUNK = 4096
"""Rows aggregated at a time once training is over."""


@dataclass(frozen=True, eq=False)
class Transfer:
    """What takes a submodel's vectors, users' and items' alike, into the common space.

    Attributes:
        weight: (K, D, D), W_k.
        bias: (K, D), b_k.
    """

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class Scorer:
    """What scores a transferred vector; users have one and items have one.

    Attributes:
        weight: (D, A), W_A.
        bias: (A,), b_A.
        out: (A,), h.
    """

    weight: Tensor
    bias: Tensor
    out: Tensor


@dataclass(frozen=True, eq=False)
class Parameters:
    """All that is learned; the submodels are not touched."""

    transfer: Transfer
    users: Scorer
    items: Scorer

    def tensors(self) -> Iterator[Tensor]:
        for part in (self.transfer, self.users, self.items):
            yield from vars(part).values()


@dataclass(frozen=True, eq=False)
class Tables:
    """One side of all submodels.

    Attributes:
        rows: (R,) int32 rows that any submodel knows.
        vectors: (N, D), the submodels' tables below each other.
        position: (K, R) int64, where the vector of a submodel and row stands in `vectors`; -1 where the row is absent.
    """

    rows: np.ndarray
    vectors: Tensor
    position: Tensor

    def aggregated(self, transfer: Transfer, scorer: Scorer, chosen_R: Tensor | None = None) -> Tensor:
        """The aggregated vectors of all or the chosen rows, (R, D)."""
        position_KR = self.position if chosen_R is None else self.position.index_select(1, chosen_R)
        present_KR = position_KR >= 0
        vectors_nD = self.vectors.index_select(0, position_KR[present_KR])
        transferred_nD = transferred(vectors_nD, present_KR, transfer)
        return weighted_sum(transferred_nD, attention_weights(transferred_nD, present_KR, scorer), present_KR)


def transferred(vectors_nD: Tensor, present_KR: Tensor, transfer: Transfer) -> Tensor:
    """Every present vector in the common space, P_k W_k + b_k, (n, D). Eq. 5."""
    by_submodel = torch.split(vectors_nD, present_KR.sum(1).tolist())
    parts = zip(by_submodel, transfer.weight.unbind(), transfer.bias.unbind(), strict=True)
    return torch.cat([torch.addmm(bias_D, vectors, weight_DD) for vectors, weight_DD, bias_D in parts])


def attention_weights(transferred_nD: Tensor, present_KR: Tensor, scorer: Scorer) -> Tensor:
    """Weight of every present vector in its row, (n,): softmax over k of h' ReLU(W_A x + b_A). Eq. 6 and 7.

    Sums to 1 over the submodels that know the row. The authors' code spreads it over all K, whose absent rows are random there.
    """
    scores_n = torch.relu(transferred_nD @ scorer.weight + scorer.bias) @ scorer.out
    nothing_KR = scores_n.new_full(present_KR.shape, float("-inf"))
    scores_KR = nothing_KR.masked_scatter(present_KR, scores_n)
    return torch.softmax(scores_KR, dim=0).masked_select(present_KR)


def weighted_sum(transferred_nD: Tensor, weights_n: Tensor, present_KR: Tensor) -> Tensor:
    """The aggregated vectors, sum_k a_k (P_k W_k + b_k), (R, D). Eq. 7."""
    row_n = present_KR.nonzero()[:, 1]
    sums_RD = transferred_nD.new_zeros(present_KR.shape[1], transferred_nD.shape[1])
    return sums_RD.index_add(0, row_n, weights_n[:, None] * transferred_nD)


def attention(
    submodels: Sequence[Embeddings], interactions: Interactions, config: AggregationConfig, seed: int, loss: LossName = "wmf"
) -> Embeddings:
    """Embeddings of width D: the submodels' vectors transferred, weighted and summed, with what is learned on `interactions`.

    Trained from scratch on `loss`, the base model's, over all remaining interactions (eq. 8), the submodels frozen.
    """
    present = [submodel for submodel in submodels if len(submodel.user_rows)]
    if not present:
        return Embeddings.empty(submodels[0].width if submodels else 0)
    users = _tables([submodel.user_rows for submodel in present], [submodel.users for submodel in present])
    items = _tables([submodel.item_rows for submodel in present], [submodel.items for submodel in present])
    generator = torch.Generator().manual_seed(seed)
    start = _paper_start if config.init == "paper" else _spectral_start
    parameters = start(present, config.attention_width, generator)
    _train(parameters, users, items, interactions, config, generator, _slopes_of(loss, config.w0, seed))
    with torch.no_grad():
        chunks = torch.split(torch.arange(len(users.rows)), _CHUNK)
        users_UD = torch.cat([users.aggregated(parameters.transfer, parameters.users, chunk) for chunk in chunks])
        items_ID = items.aggregated(parameters.transfer, parameters.items)
    return Embeddings(users.rows, users_UD.numpy(), items.rows, items_ID.numpy())


def _train(
    parameters: Parameters,
    users: Tables,
    items: Tables,
    interactions: Interactions,
    config: AggregationConfig,
    generator: torch.Generator,
    slopes: Slopes,
) -> None:
    """Change the parameters in place so that the loss of the aggregated vectors falls. Eq. 8."""
    known = interactions.of_users(users.rows).of_items(items.rows)
    observed_UI = Interactions(
        np.searchsorted(users.rows, known.users).astype(np.int32), np.searchsorted(items.rows, known.items).astype(np.int32)
    ).matrix(len(users.rows), len(items.rows))
    tensors = [tensor.requires_grad_() for tensor in parameters.tensors()]
    # lambda |Theta|^2 has the gradient 2 lambda Theta. The paper has it, its code leaves it out.
    if config.init == "paper":
        optimizer: torch.optim.Optimizer = torch.optim.Adagrad(
            tensors, config.lr, initial_accumulator_value=1e-8, weight_decay=2 * config.reg
        )
    else:
        optimizer = torch.optim.Adam(tensors, config.lr, weight_decay=2 * config.reg)
    for _ in range(config.epochs):
        for batch_B in torch.split(torch.randperm(len(users.rows), generator=generator), config.batch):
            users_BD = users.aggregated(parameters.transfer, parameters.users, batch_B)
            users_BD = users_BD * dropout_mask(users_BD, config.keep, generator)
            items_ID = items.aggregated(parameters.transfer, parameters.items)
            slope_BD, slope_ID = slopes(users_BD.detach(), items_ID.detach(), observed_UI[batch_B.numpy()])
            optimizer.zero_grad()
            torch.autograd.backward([users_BD, items_ID], [slope_BD, slope_ID])
            optimizer.step()
    for tensor in tensors:
        tensor.requires_grad_(False)


def _slopes_of(loss: LossName, w0: float, seed: int) -> Slopes:
    """The gradients of a base model's loss; the losses themselves stand with the models."""
    if loss == "wmf":
        return lambda users_BD, items_ID, observed_BI: non_sampling_loss(users_BD, items_ID, observed_BI, w0)[1:]

    from ray_eraser.kernels.sampling import draw_triplets
    from ray_eraser.models.bpr import bpr_slopes

    drawn, sequence = 0, derive(seed, "triplets")

    def slopes(users_BD: Tensor, items_ID: Tensor, observed_BI: sparse.csr_matrix) -> tuple[Tensor, Tensor]:
        nonlocal drawn
        # As many triplets as the batch has pairs, as in an epoch of BPR itself, and others at every step.
        triplets_n3 = draw_triplets(observed_BI, observed_BI.nnz, sequence, first=drawn)
        drawn += observed_BI.nnz
        slope_BD, slope_ID = bpr_slopes(users_BD.numpy(), items_ID.numpy(), triplets_n3)
        return torch.from_numpy(slope_BD), torch.from_numpy(slope_ID)

    return slopes


def _paper_start(submodels: Sequence[Embeddings], width_A: int, generator: torch.Generator) -> Parameters:
    """Random numbers of the spread that keeps the size of what passes through (Glorot and Bengio 2010), biases zero."""
    n_submodels, width_D = len(submodels), submodels[0].width

    def normal(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator)
        return drawn * math.sqrt(2 / (shape[-2] + shape[-1]))

    transfer = Transfer(normal(n_submodels, width_D, width_D), torch.zeros(n_submodels, width_D))
    users, items = (Scorer(normal(width_D, width_A), torch.zeros(width_A), normal(width_A, 1).squeeze(1)) for _ in range(2))
    return Parameters(transfer, users, items)


def _spectral_start(submodels: Sequence[Embeddings], width_A: int, generator: torch.Generator) -> Parameters:
    """Transfers at the common basis that loses least of the stacked tables; h = 0, so that all weights begin equal.

    Two bases as in spectral.py would be better still, but eq. 5 has one for users and items.
    """
    n_submodels, width_D = len(submodels), submodels[0].width
    paper = _paper_start(submodels, width_A, generator)
    users_gram, items_gram = Grams().of(submodels)
    # Traces made equal: only the products of users' and items' sizes mean something.
    _, vectors = linalg.eigh(users_gram / np.trace(users_gram) + items_gram / np.trace(items_gram), driver="evd")
    basis_KDD = vectors[:, ::-1][:, :width_D].reshape(n_submodels, width_D, width_D)
    # The weights average where the basis is made for a sum, over as many submodels as know a row.
    known_users, known_items = (
        sum(map(len, rows)) / len(np.unique(np.concatenate(rows)))
        for rows in (
            [submodel.user_rows for submodel in submodels],
            [submodel.item_rows for submodel in submodels],
        )
    )
    scaled_KDD = torch.from_numpy((basis_KDD * math.sqrt(known_users * known_items)).astype(np.float32))
    users, items = (Scorer(s.weight, s.bias, torch.zeros_like(s.out)) for s in (paper.users, paper.items))
    return Parameters(Transfer(scaled_KDD, paper.transfer.bias), users, items)


def _tables(rows: list[np.ndarray], vectors: list[np.ndarray]) -> Tables:
    union = np.unique(np.concatenate(rows))
    position_KR = np.full((len(rows), len(union)), -1, np.int64)
    first = 0
    for k, rows_k in enumerate(rows):
        position_KR[k, np.searchsorted(union, rows_k)] = np.arange(first, first + len(rows_k))
        first += len(rows_k)
    return Tables(union, torch.from_numpy(np.concatenate(vectors)), torch.from_numpy(position_KR))
