"""The linear model in PyTorch: the equations of models/linear.py on a GPU.

U users and I items in a numbering that all shards share, U' users of one shard, B users of one request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ray_eraser.config import LinearConfig
from ray_eraser.kernels.buckets import Buckets
from ray_eraser.kernels.products import Rows
from ray_eraser.models.linear import LinearModel, Normalisation, Slice, check_asked, mark_absent

_AT_ONCE = 64
"""Number of users to solve together."""


@dataclass(frozen=True, eq=False)
class SliceOnDevice:
    """A `Slice` on a device.

    Attributes:
        users: (U',) numbers of the users that have a pair here.
        by_user: (U', I) each user's items.
        by_item: (I, U') each item's users, as positions in `users`.
    """

    users: Tensor
    by_user: Buckets
    by_item: Buckets

    @classmethod
    def of(cls, own: Slice, device: torch.device) -> SliceOnDevice:
        by_user = Buckets.of(own.by_user.starts, own.by_user.columns, len(own.by_item), device)
        by_item = Buckets.of(own.by_item.starts, own.by_item.columns, len(own.by_user), device)
        return cls(_sent(own.users.astype(np.int64), device), by_user, by_item)


@dataclass(frozen=True, eq=False)
class LinearTorch:
    """The linear model of some slices on a torch device. Scores are returned in host memory, as by `LinearModel`.

    Each product takes two rounds, users and then items, even if no two slices have a user in common.

    Attributes:
        slices: at least one; sums, and so bits, follow this order.
        normalisation: the weights that follow from all slices together.
        config: ridge, exponents and steps.
        users: (U,) `normalisation.users` on the device.
        items: (I,) `normalisation.items` on the device.
        back: (I,) `normalisation.back` on the device.
        known, image: (I, 1) the vector and image of the popularity direction, on the device.
        length: the length of the popularity direction.
    """

    slices: tuple[SliceOnDevice, ...]
    normalisation: Normalisation
    config: LinearConfig
    users: Tensor
    items: Tensor
    back: Tensor
    known: Tensor
    image: Tensor
    length: float

    @classmethod
    def of(cls, slices: Sequence[Slice], n_users: int, n_items: int, config: LinearConfig, device: torch.device) -> LinearTorch:
        """Make the model as `LinearModel.of` does, and copy the slices to the device."""
        made = LinearModel.of(slices, n_users, n_items, config)
        norms, popularity = made.normalisation, made.popularity
        held = tuple(SliceOnDevice.of(own, device) for own in slices)
        users, items, back = (_sent(numbers, device) for numbers in (norms.users, norms.items, norms.back))
        known, image = (_sent(numbers[:, None], device) for numbers in (popularity.vector, popularity.image))
        return cls(held, norms, config, users, items, back, known, image, popularity.length)

    @torch.no_grad()
    def scores(self, asked: Rows) -> np.ndarray:
        """The scores of `LinearModel.scores`, up to rounding."""
        norms = self.normalisation
        check_asked(asked, len(norms.items))
        scores_BI = np.full((len(asked), len(norms.items)), -np.inf, np.float32)
        if norms.item_degrees.any():
            for first in range(0, len(asked), _AT_ONCE):
                part = asked.part(first, min(first + _AT_ONCE, len(asked)))
                scores_BI[first : first + _AT_ONCE] = self._solve(part).cpu().numpy()
        mark_absent(scores_BI, asked, norms)
        return scores_BI

    def _solve(self, asked: Rows) -> Tensor:
        """The scores, (B, I), as by `models.linear.solve`."""
        users_U1, items_I1, ridge = self.users[:, None], self.items[:, None], float(self.normalisation.ridge)
        first_UB = users_U1 * self._to_users(items_I1 * self._normalised(asked))
        residuals_IB = items_I1 * self._to_items(users_U1 * first_UB)
        solutions_IB, residuals_IB = self._without_popularity(torch.zeros_like(residuals_IB), residuals_IB)
        directions_IB = residuals_IB - self._share(self.image, residuals_IB) * self.known
        left_B, lengths_B = _squares(residuals_IB), _squares(directions_IB)
        for step in range(self.config.steps):
            weighted_UB = users_U1 * self._to_users(items_I1 * directions_IB)
            steps_B = _ratio(left_B, _squares(weighted_UB) + ridge * lengths_B)
            solutions_IB += steps_B * directions_IB
            if step + 1 < self.config.steps:
                products_IB = items_I1 * self._to_items(users_U1 * weighted_UB)
                residuals_IB = residuals_IB - steps_B * (products_IB + ridge * directions_IB)
                solutions_IB, residuals_IB = self._without_popularity(solutions_IB, residuals_IB)
                before_B, left_B = left_B, _squares(residuals_IB)
                directions_IB = residuals_IB + _ratio(left_B, before_B) * directions_IB
                directions_IB = directions_IB - self._share(self.image, residuals_IB) * self.known
                lengths_B = _squares(directions_IB)
        return (self.back[:, None] * solutions_IB).T

    def _without_popularity(self, solutions_IB: Tensor, residuals_IB: Tensor) -> tuple[Tensor, Tensor]:
        """The solutions and residuals after `Direction.remove`."""
        part_B = self._share(self.known, residuals_IB)
        return solutions_IB + part_B * self.known, residuals_IB - part_B * self.image

    def _share(self, vector_I1: Tensor, numbers_IB: Tensor) -> Tensor:
        """Inner products with a vector, divided by the length of the popularity direction, (B,) float32."""
        return (_added(vector_I1.double() * numbers_IB.double()) / self.length).float()

    def _normalised(self, asked: Rows) -> Tensor:
        """The normalised items x of every asked user, (I, B)."""
        device = self.items.device
        items = _sent(asked.columns[asked.starts[0] : asked.starts[-1]].astype(np.int64), device)
        lanes = _sent(np.repeat(np.arange(len(asked)), asked.degrees()), device)
        vectors_IB = self.items.new_zeros(len(self.items), len(asked))
        vectors_IB[items, lanes] = self.items[items]
        return vectors_IB

    def _to_users(self, vectors_IB: Tensor) -> Tensor:
        """R V, (U, B)."""
        sums_UB = vectors_IB.new_zeros(len(self.users), vectors_IB.shape[1])
        for own in self.slices:
            sums_UB[own.users] = sums_UB[own.users] + own.by_user.sums(vectors_IB)
        return sums_UB

    def _to_items(self, sums_UB: Tensor) -> Tensor:
        """R' T, (I, B)."""
        products_IB = sums_UB.new_zeros(len(self.items), sums_UB.shape[1])
        for own in self.slices:
            products_IB += own.by_item.sums(sums_UB[own.users])
        return products_IB


def _squares(numbers_RB: Tensor) -> Tensor:
    """Each column's sum of squares, (B,) float64."""
    return _added(numbers_RB.double().square_())


def _added(numbers_RB: Tensor) -> Tensor:
    """The sum of each column, (B,). The input is overwritten.

    The halves are added to each other repeatedly, because `sum` may add in an order that depends on the number of columns.
    """
    while len(numbers_RB) > 1:
        half = (len(numbers_RB) + 1) // 2
        numbers_RB[: len(numbers_RB) - half] += numbers_RB[half:]
        numbers_RB = numbers_RB[:half]
    return numbers_RB.sum(0)  # at most one row is left


def _ratio(above_B: Tensor, below_B: Tensor) -> Tensor:
    """The quotients, float32; 0 for a system that is solved or has a right side of 0."""
    return torch.where(below_B > 0, above_B / below_B, 0).float()


def _sent(numbers: np.ndarray, device: torch.device) -> Tensor:
    """Copy the numbers to the device, even if it is the CPU."""
    return torch.tensor(numbers, device=device)
