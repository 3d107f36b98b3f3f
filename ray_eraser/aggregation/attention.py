"""RecEraser's attentive aggregation: which submodel to trust for which user and item, learned (Chen et al. 2022, eq. 5-8).

K submodels that are not empty, U users and I items that any of them knows, R rows of either side, B users of a batch, D width,
A width of the scorer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from ray_eraser.aggregation.spectral import gram
from ray_eraser.config import AggregationConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.models.wmf_adagrad import dropout_mask, non_sampling_loss

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
    """One side of all submodels, for common rows.

    Attributes:
        rows: (R,) int32 vocabulary rows.
        vectors: (K, R, D), zero where absent.
        present: (K, R) booleans, which submodel knows which row.
    """

    rows: np.ndarray
    vectors: Tensor
    present: Tensor

    def aggregated(self, transfer: Transfer, scorer: Scorer, chosen_R: Tensor | None = None) -> Tensor:
        """The aggregated vectors of all or the chosen rows, (R, D)."""
        vectors_KRD, present_KR = self.vectors, self.present
        if chosen_R is not None:
            vectors_KRD, present_KR = vectors_KRD.index_select(1, chosen_R), present_KR.index_select(1, chosen_R)
        transferred_KRD = transferred(vectors_KRD, transfer)
        return weighted_sum(transferred_KRD, attention_weights(transferred_KRD, present_KR, scorer))


def transferred(vectors_KRD: Tensor, transfer: Transfer) -> Tensor:
    """Every submodel's vectors in the common space, P_k W_k + b_k, (K, R, D). Eq. 5."""
    return torch.baddbmm(transfer.bias[:, None, :], vectors_KRD, transfer.weight)


def attention_weights(transferred_KRD: Tensor, present_KR: Tensor, scorer: Scorer) -> Tensor:
    """Weight of every submodel for every row, (K, R): softmax over k of h' ReLU(W_A x + b_A). Eq. 6 and 7.

    Sums to 1 over the submodels that know the row. The authors' code spreads it over all K, whose absent rows are random there.
    """
    scores_KR = torch.relu(transferred_KRD @ scorer.weight + scorer.bias) @ scorer.out
    weights_KR: Tensor = torch.softmax(scores_KR.masked_fill(~present_KR, float("-inf")), dim=0)
    return weights_KR


def weighted_sum(transferred_KRD: Tensor, weights_KR: Tensor) -> Tensor:
    """The aggregated vectors, sum_k a_k (P_k W_k + b_k), (R, D). Eq. 7."""
    return torch.einsum("kr,krd->rd", weights_KR, transferred_KRD)


def attention(submodels: Sequence[Embeddings], interactions: Interactions, config: AggregationConfig, seed: int) -> Embeddings:
    """Embeddings of width D: the submodels' vectors transferred, weighted and summed, with what is learned on `interactions`.

    Trained from scratch on the base model's loss over all remaining interactions (eq. 8), the submodels frozen.
    """
    present = [submodel for submodel in submodels if len(submodel.user_rows)]
    if not present:
        return Embeddings.empty(submodels[0].width if submodels else 0)
    users = _tables([submodel.user_rows for submodel in present], [submodel.users for submodel in present])
    items = _tables([submodel.item_rows for submodel in present], [submodel.items for submodel in present])
    generator = torch.Generator().manual_seed(seed)
    start = _paper_start if config.init == "paper" else _spectral_start
    parameters = start(present, config.attention_width, generator)
    _train(parameters, users, items, interactions, config, generator)
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
) -> None:
    """Change the parameters in place so that the non-sampling loss of the aggregated vectors falls. Eq. 8."""
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
            _, slope_BD, slope_ID = non_sampling_loss(
                users_BD.detach(), items_ID.detach(), observed_UI[batch_B.numpy()], config.w0
            )
            optimizer.zero_grad()
            torch.autograd.backward([users_BD, items_ID], [slope_BD, slope_ID])
            optimizer.step()
    for tensor in tensors:
        tensor.requires_grad_(False)


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
    users_gram = gram([(submodel.user_rows, submodel.users) for submodel in submodels])
    items_gram = gram([(submodel.item_rows, submodel.items) for submodel in submodels])
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
    vectors_KRD = np.zeros((len(rows), len(union), vectors[0].shape[1]), np.float32)
    present_KR = np.zeros((len(rows), len(union)), bool)
    for k, (rows_k, vectors_k) in enumerate(zip(rows, vectors, strict=True)):
        positions = np.searchsorted(union, rows_k)
        vectors_KRD[k, positions] = vectors_k
        present_KR[k, positions] = True
    return Tables(union, torch.from_numpy(vectors_KRD), torch.from_numpy(present_KR))
