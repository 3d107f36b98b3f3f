"""RecEraser's attentive aggregation: it learns how much to trust each submodel for each user and item (Chen et al. 2022,
eq. 5-8).

K submodels that are not empty, U users and I items that any of them knows, R rows of one side or of a batch, n vectors that the
submodels have for these rows (ordered by submodel, then by row), N such vectors for all rows, B users of a batch, D width, A
width of the scorer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from ray_eraser.aggregation.grams import Grams
from ray_eraser.aggregation.slopes import Slopes, slopes_of
from ray_eraser.config import AggregationConfig, LossName
from ray_eraser.data.interactions import Interactions
from ray_eraser.devices import Device, torch_device
from ray_eraser.embeddings import Embeddings
from ray_eraser.models.wmf_adagrad import dropout_mask

_CHUNK = 4096
"""Number of rows to aggregate at once after training."""


@dataclass(frozen=True, eq=False)
class Transfer:
    """The linear map of each submodel's vectors, of users and items alike, into the common space.

    Attributes:
        weight: (K, D, D), W_k.
        bias: (K, D), b_k.
    """

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class Scorer:
    """The attention network that scores a transferred vector. Users and items each have their own.

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
    """All learned parameters. The submodels stay unchanged."""

    transfer: Transfer
    users: Scorer
    items: Scorer

    def tensors(self) -> Iterator[Tensor]:
        for part in (self.transfer, self.users, self.items):
            yield from vars(part).values()

    def to(self, device: torch.device) -> Parameters:
        transfer, users, items = (
            [tensor.to(device) for tensor in vars(part).values()] for part in (self.transfer, self.users, self.items)
        )
        return Parameters(Transfer(*transfer), Scorer(*users), Scorer(*items))


@dataclass(frozen=True, eq=False)
class Present:
    """Which submodels know which rows.

    Attributes:
        shape: (K, R).
        counts: the number of rows that each submodel knows.
        place_n: (n,) int64 on the device, ascending; the position of each existing vector in a flattened (K, R) array.
        row_n: (n,) int64 on the device, the row of each existing vector.
    """

    shape: tuple[int, int]
    counts: list[int]
    place_n: Tensor
    row_n: Tensor

    @classmethod
    def of(cls, present_KR: Tensor, device: torch.device) -> Present:
        """Make it from a mask in host memory. With the mask on the device, the host would have to wait to learn n."""
        n_submodels, n_rows = present_KR.shape
        place_n = present_KR.flatten().nonzero().squeeze(1)
        return cls((n_submodels, n_rows), present_KR.sum(1).tolist(), place_n.to(device), (place_n % n_rows).to(device))


@dataclass(frozen=True, eq=False)
class Tables:
    """One side of all submodels.

    Attributes:
        rows: (R,) int32 rows that any submodel knows.
        vectors: (N, D) on the device, the submodels' tables stacked.
        position: (K, R) int64 in host memory, the position in `vectors` of each submodel's vector for each row; -1 for an
            absent row.
    """

    rows: np.ndarray
    vectors: Tensor
    position: Tensor

    def aggregated(self, transfer: Transfer, scorer: Scorer, chosen_R: Tensor | None = None) -> Tensor:
        """The aggregated vectors of all or the chosen rows, (R, D).

        Args:
            transfer: the map of all vectors into the common space.
            scorer: the scorer of this side.
            chosen_R: row numbers in host memory.
        """
        if chosen_R is None:
            vectors_nD, present = self.vectors, self._all_present
        else:
            position_KR = self.position.index_select(1, chosen_R)
            present_KR = position_KR >= 0
            vectors_nD = self.vectors.index_select(0, position_KR[present_KR].to(self.vectors.device))
            present = Present.of(present_KR, self.vectors.device)
        transferred_nD = transferred(vectors_nD, present, transfer)
        return weighted_sum(transferred_nD, attention_weights(transferred_nD, present, scorer), present)

    @cached_property
    def _all_present(self) -> Present:
        return Present.of(self.position >= 0, self.vectors.device)


def transferred(vectors_nD: Tensor, present: Present, transfer: Transfer) -> Tensor:
    """Every present vector in the common space, P_k W_k + b_k, (n, D). Eq. 5."""
    by_submodel = torch.split(vectors_nD, present.counts)
    parts = zip(by_submodel, transfer.weight.unbind(), transfer.bias.unbind(), strict=True)
    return torch.cat([torch.addmm(bias_D, vectors, weight_DD) for vectors, weight_DD, bias_D in parts])


def attention_weights(transferred_nD: Tensor, present: Present, scorer: Scorer) -> Tensor:
    """Weight of every present vector in its row, (n,): softmax over k of h' ReLU(W_A x + b_A). Eq. 6 and 7.

    The weights of a row sum to 1 over the submodels that know the row. In the authors' code they sum to 1 over all K submodels,
    where absent rows are random.
    """
    scores_n = torch.relu(transferred_nD @ scorer.weight + scorer.bias) @ scorer.out
    # Indices instead of masks, because their gradients are deterministic on a GPU too.
    nothing = scores_n.new_full((math.prod(present.shape),), float("-inf"))
    scores_KR = nothing.index_copy(0, present.place_n, scores_n).view(present.shape)
    return torch.softmax(scores_KR, dim=0).view(-1).index_select(0, present.place_n)


def weighted_sum(transferred_nD: Tensor, weights_n: Tensor, present: Present) -> Tensor:
    """The aggregated vectors, sum_k a_k (P_k W_k + b_k), (R, D). Eq. 7."""
    sums_RD = transferred_nD.new_zeros(present.shape[1], transferred_nD.shape[1])
    return sums_RD.index_add(0, present.row_n, weights_n[:, None] * transferred_nD)


def attention(
    submodels: Sequence[Embeddings],
    interactions: Interactions,
    config: AggregationConfig,
    seed: int,
    loss: LossName = "wmf",
    device: Device = "cpu",
) -> Embeddings:
    """Embeddings of width D: the submodels' vectors are transferred, weighted and summed with parameters learned here.

    The parameters are trained from scratch on `loss` over all remaining interactions (eq. 8); the submodels are frozen. The
    initial values and all random numbers are made on the CPU, so that training starts with the same numbers on every device.

    Raises:
        DeviceError: the device is a GPU, and this process sees none.
    """
    present = [submodel for submodel in submodels if len(submodel.user_rows)]
    if not present:
        return Embeddings.empty(submodels[0].width if submodels else 0)
    where = torch_device(device)
    users = _tables([submodel.user_rows for submodel in present], [submodel.users for submodel in present], where)
    items = _tables([submodel.item_rows for submodel in present], [submodel.items for submodel in present], where)
    generator = torch.Generator().manual_seed(seed)
    start = _paper_start if config.init == "paper" else _spectral_start
    parameters = start(present, config.attention_width, generator).to(where)
    known = interactions.of_users(users.rows).of_items(items.rows)
    observed_UI = Interactions(
        np.searchsorted(users.rows, known.users).astype(np.int32), np.searchsorted(items.rows, known.items).astype(np.int32)
    ).matrix(len(users.rows), len(items.rows))
    _train(parameters, users, items, config, generator, slopes_of(loss, config.w0, seed, observed_UI, device))
    with torch.no_grad():
        chunks = torch.split(torch.arange(len(users.rows)), _CHUNK)
        users_UD = torch.cat([users.aggregated(parameters.transfer, parameters.users, chunk).cpu() for chunk in chunks])
        items_ID = items.aggregated(parameters.transfer, parameters.items).cpu()
    return Embeddings(users.rows, users_UD.numpy(), items.rows, items_ID.numpy())


def _train(
    parameters: Parameters,
    users: Tables,
    items: Tables,
    config: AggregationConfig,
    generator: torch.Generator,
    slopes: Slopes,
) -> None:
    """Train the parameters in place to minimise the loss of the aggregated vectors. Eq. 8."""
    tensors = [tensor.requires_grad_() for tensor in parameters.tensors()]
    # lambda |Theta|^2 has the gradient 2 lambda Theta. The paper has this term; its code omits it.
    if config.init == "paper":
        optimizer: torch.optim.Optimizer = torch.optim.Adagrad(
            tensors, config.lr, initial_accumulator_value=1e-8, weight_decay=2 * config.reg
        )
    else:
        optimizer = torch.optim.Adam(tensors, config.lr, weight_decay=2 * config.reg)
    for _ in range(config.epochs):
        for batch_B in torch.split(torch.randperm(len(users.rows), generator=generator), config.batch):
            users_BD = users.aggregated(parameters.transfer, parameters.users, batch_B)
            users_BD = users_BD * dropout_mask(users_BD, config.keep, generator).to(users_BD.device)
            items_ID = items.aggregated(parameters.transfer, parameters.items)
            slope_BD, slope_ID = slopes(users_BD.detach(), items_ID.detach(), batch_B)
            optimizer.zero_grad()
            torch.autograd.backward([users_BD, items_ID], [slope_BD, slope_ID])
            optimizer.step()
    for tensor in tensors:
        tensor.requires_grad_(False)


def _paper_start(submodels: Sequence[Embeddings], width_A: int, generator: torch.Generator) -> Parameters:
    """Random initial values with the standard deviation of Glorot and Bengio 2010, and biases of zero."""
    n_submodels, width_D = len(submodels), submodels[0].width

    def normal(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator)
        return drawn * math.sqrt(2 / (shape[-2] + shape[-1]))

    transfer = Transfer(normal(n_submodels, width_D, width_D), torch.zeros(n_submodels, width_D))
    users, items = (Scorer(normal(width_D, width_A), torch.zeros(width_A), normal(width_A, 1).squeeze(1)) for _ in range(2))
    return Parameters(transfer, users, items)


def _spectral_start(submodels: Sequence[Embeddings], width_A: int, generator: torch.Generator) -> Parameters:
    """Start the transfers at the common basis that loses least of the stacked tables, and h at 0 for equal weights.

    Two bases as in spectral.py would be even better, but eq. 5 has one basis for users and items.
    """
    n_submodels, width_D = len(submodels), submodels[0].width
    paper = _paper_start(submodels, width_A, generator)
    users_gram, items_gram = Grams().of(submodels)
    # Normalise the traces, because only the product of the users' and items' scales has a meaning.
    _, vectors = linalg.eigh(users_gram / np.trace(users_gram) + items_gram / np.trace(items_gram), driver="evd")
    basis_KDD = vectors[:, ::-1][:, :width_D].reshape(n_submodels, width_D, width_D)
    # The basis is made for a sum, but attention averages over the submodels that know a row. Scale by their mean number.
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


def _tables(rows: list[np.ndarray], vectors: list[np.ndarray], device: torch.device) -> Tables:
    union = np.unique(np.concatenate(rows))
    position_KR = np.full((len(rows), len(union)), -1, np.int64)
    first = 0
    for k, rows_k in enumerate(rows):
        position_KR[k, np.searchsorted(union, rows_k)] = np.arange(first, first + len(rows_k))
        first += len(rows_k)
    return Tables(union, torch.from_numpy(np.concatenate(vectors)).to(device), torch.from_numpy(position_KR))
