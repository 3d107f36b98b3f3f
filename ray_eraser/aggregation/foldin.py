"""Fold-in: solve users on the aggregated items by exact ridge regressions on the remaining interactions.

Fold-in can follow any aggregator. A half sweep is the one of alternating least squares (models/wmf_als.py). The last half
sweep, over the users, can wait until a read, because a user's vector depends only on the items and the user's own interactions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ray_eraser.data.interactions import Interactions
from ray_eraser.devices import Device, by_torch, torch_device
from ray_eraser.embeddings import Embeddings
from ray_eraser.kernels.ridge import Ridge
from ray_eraser.models.wmf_als import base_of, half_sweep, ridge_of


@dataclass(frozen=True, eq=False)
class FoldIn:
    """Solve users on fixed items.

    Attributes:
        item_rows: (I',) int32, ascending rows of the items that have a vector.
        items: (I', D) float32.
        alpha0: the weight of an unobserved pair; an observed pair has weight 1.
        reg: the ridge, scaled by each user's degree.
    """

    item_rows: np.ndarray
    items: np.ndarray
    alpha0: float
    reg: float

    @cached_property
    def _ridge(self) -> Ridge:
        return Ridge(self.items, base_of(self.items, self.alpha0))

    def users(self, interactions: Interactions) -> Embeddings:
        """Solve all users of these interactions, and return them with the items.

        The bits of a user's vector do not depend on the other users of the call. A user without a pair whose item has a vector
        gets no vector.

        Args:
            interactions: all remaining interactions of the users. Pairs whose item has no vector are ignored.
        """
        places = np.searchsorted(self.item_rows, interactions.items)
        known = self.item_rows.take(places, mode="clip") == interactions.items if len(self.item_rows) else places < 0
        user_rows, degrees = np.unique(interactions.users[known], return_counts=True)
        starts = np.concatenate([[0], np.cumsum(degrees)])
        users = self._solve(starts, places[known])
        return Embeddings(user_rows.astype(np.int32), users, self.item_rows, self.items)

    def user(self, places: np.ndarray) -> np.ndarray | None:
        """Solve one user, (D,), with the same result as `users`; None without an item.

        Args:
            places: ascending positions of the user's items in `items`.
        """
        if not len(places):
            return None
        # The same dtype as in `users`, because numba would compile the regressions again for another.
        return np.asarray(self._solve(np.array([0, len(places)]), places.astype(np.int64))[0])

    def _solve(self, starts: np.ndarray, places: np.ndarray) -> np.ndarray:
        return self._ridge.solve(starts, places, ridge_of(np.diff(starts), len(self.items), self.alpha0, self.reg))


def sweep(
    item_rows: np.ndarray,
    items: np.ndarray,
    interactions: Interactions,
    alpha0: float,
    reg: float,
    sweeps: int,
    *,
    device: Device = "cpu",
) -> Embeddings:
    """Solve the users on the items and then the items on the users, `sweeps` times. Only the items are returned.

    Args:
        item_rows: (I',) rows of the items that have a vector.
        items: (I', D) float32, the initial vectors.
        interactions: all remaining interactions. Pairs whose item has no vector are ignored.
        alpha0: the weight of an unobserved pair; an observed pair has weight 1.
        reg: the ridge, scaled by each row's degree.
        sweeps: the number of sweeps; 0 leaves the items unchanged.
        device: the device that solves the rows. Vectors stay on it between half sweeps.

    Raises:
        DeviceError: the device is a GPU, and this process sees none.
    """
    empty = Embeddings.empty(items.shape[1])
    if not sweeps:
        return Embeddings(empty.user_rows, empty.users, item_rows, items)
    compact = interactions.take(np.isin(interactions.items, item_rows)).compact()
    if not len(compact.interactions):
        return empty
    # Items whose last interaction was erased are dropped.
    present = items[np.searchsorted(item_rows, compact.item_rows)]
    if by_torch(device):
        from ray_eraser.kernels.resident import Slice, overwrite
        from ray_eraser.models.wmf_als_torch import alternate

        held = Slice(compact, torch_device(device))
        present = alternate(held, present, alpha0, reg, sweeps)
        overwrite(held)
    else:
        by_user = compact.matrix()
        by_item = by_user.T.tocsr()
        for _ in range(sweeps):
            present = half_sweep(by_item, half_sweep(by_user, present, alpha0, reg), alpha0, reg)
    return Embeddings(empty.user_rows, empty.users, compact.item_rows, present)
