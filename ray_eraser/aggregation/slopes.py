"""The gradients of the base models' losses, for aggregations that are trained by gradient steps on any device.

B users of a batch, I items, J = I + 1 with a row for "no item", n triplets (user, own item, other item), D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy import sparse
from torch import Tensor

from ray_eraser.config import LossName
from ray_eraser.devices import Device, by_torch, torch_device
from ray_eraser.models.wmf_adagrad import non_sampling_loss
from ray_eraser.seeds import derive

Slopes = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""A function that returns the gradients of a loss. Its arguments are the vectors of a batch's users (B, D), the vectors of all
items (I, D), and the numbers of these users (B,) in host memory."""

_GATHERED = 1 << 23
"""Count of numbers to gather at once for one column of the triplets. A step holds about seven arrays of this size."""


def slopes_of(loss: LossName, w0: float, seed: int, observed_UI: sparse.csr_matrix, device: Device) -> Slopes:
    """Make the gradient function of a base model's loss on these pairs. The losses are defined with the models.

    Args:
        loss: the loss.
        w0: `wmf`: the weight of an unobserved pair.
        seed: `bpr`: the seed of the triplets.
        observed_UI: all training pairs.
        device: the device of the vectors.
    """
    if loss == "bpr":
        return _of_triplets(observed_UI, derive(seed, "triplets"), device)
    if not by_torch(device):
        return lambda users_BD, items_ID, batch_B: non_sampling_loss(users_BD, items_ID, observed_UI[batch_B.numpy()], w0)[1:]

    from ray_eraser.kernels.buckets import Buckets
    from ray_eraser.models.wmf_adagrad_torch import PairsByUser, non_sampling_slopes

    pairs = PairsByUser.of(Buckets.of_matrix(observed_UI, torch_device(device)))
    return lambda users_BD, items_ID, batch_B: non_sampling_slopes(users_BD, items_ID, pairs.of_users(batch_B), w0)


def _of_triplets(observed_UI: sparse.csr_matrix, seed: int, device: Device) -> Slopes:
    from ray_eraser.kernels.sampling import draw_triplets
    from ray_eraser.models.bpr import bpr_slopes

    drawn = 0

    def slopes(users_BD: Tensor, items_ID: Tensor, batch_B: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal drawn
        observed_BI = observed_UI[batch_B.numpy()]
        # As many triplets as the batch has pairs, as in an epoch of BPR. Every step draws new ones.
        triplets_n3 = draw_triplets(observed_BI, observed_BI.nnz, seed, first=drawn)
        drawn += observed_BI.nnz
        if by_torch(device):
            return bpr_slopes_torch(users_BD, items_ID, torch.from_numpy(triplets_n3).to(users_BD.device))
        slope_BD, slope_ID = bpr_slopes(users_BD.numpy(), items_ID.numpy(), triplets_n3)
        return torch.from_numpy(slope_BD), torch.from_numpy(slope_ID)

    return slopes


def bpr_slopes_torch(users_BD: Tensor, items_ID: Tensor, triplets_n3: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients (B, D) and (I, D) of `models.bpr.bpr_slopes`. Item number I means "no item", with a vector of zeros."""
    items_JD = torch.cat([items_ID, items_ID.new_zeros(1, items_ID.shape[1])])
    slope_BD, slope_JD = torch.zeros_like(users_BD), torch.zeros_like(items_JD)
    for part_n3 in torch.split(triplets_n3.long(), max(1, _GATHERED // users_BD.shape[1])):
        user_n, own_n, other_n = part_n3.unbind(1)
        users_nD = users_BD.index_select(0, user_n)
        margins_nD = items_JD.index_select(0, own_n) - items_JD.index_select(0, other_n)
        slope_n1 = -torch.sigmoid(-(users_nD * margins_nD).sum(1, keepdim=True))
        slope_BD.index_add_(0, user_n, slope_n1 * margins_nD)
        users_nD *= slope_n1
        slope_JD.index_add_(0, own_n, users_nD)
        slope_JD.index_add_(0, other_n, users_nD.neg_())
    return slope_BD, slope_JD[:-1]
