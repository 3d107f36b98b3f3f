"""Users solved anew on aggregated items: exact ridge regressions on the remaining interactions.

After any aggregator. A half sweep is one of alternating least squares (models/wmf_als.py). The last one, of the users, need not
be made before somebody asks: what a user gets depends on the items and on the user's own interactions alone.
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
    """Items on which users are solved.

    Attributes:
        item_rows: (I',) int32, ascending rows of the items that have a vector.
        items: (I', D) float32.
        alpha0: weight of an unobserved pair against 1 for an observed one.
        reg: ridge, scaled by each user's degree.
    """

    item_rows: np.ndarray
    items: np.ndarray
    alpha0: float
    reg: float

    @cached_property
    def _ridge(self) -> Ridge:
        return Ridge(self.items, base_of(self.items, self.alpha0))

    def users(self, interactions: Interactions) -> Embeddings:
        """The users of these interactions, beside the items.

        A user's vector is the same to the last bit whoever else is asked for. Who has no pair with an item that has a vector
        gets none.

        Args:
            interactions: all that the users have to be learned from; pairs with an item that has no vector take no part.
        """
        places = np.searchsorted(self.item_rows, interactions.items)
        known = self.item_rows.take(places, mode="clip") == interactions.items if len(self.item_rows) else places < 0
        user_rows, degrees = np.unique(interactions.users[known], return_counts=True)
        starts = np.concatenate([[0], np.cumsum(degrees)])
        users = self._solve(starts, places[known])
        return Embeddings(user_rows.astype(np.int32), users, self.item_rows, self.items)

    def user(self, places: np.ndarray) -> np.ndarray | None:
        """The vector of one user, (D,), the same as `users` gives; None without an item.

        Args:
            places: ascending places of the user's items among those that have a vector.
        """
        if not len(places):
            return None
        # Of the kind that `users` has: for another, the regressions would be compiled again.
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
    """Solve the users on the items and the items on the users, `sweeps` times. The items alone are given back.

    Args:
        item_rows: (I',) rows of the items that have a vector.
        items: (I', D) float32 vectors to begin with.
        interactions: all that remain; pairs with an item that has no vector take no part.
        alpha0: weight of an unobserved pair against 1 for an observed one.
        reg: ridge, scaled by each row's degree.
        sweeps: 0 leaves the items as they are; 1 lets them see all remaining data once.
        device: where the rows are solved. Vectors stay there from the first half sweep to the last.

    Raises:
        DeviceError: this process sees no GPU, and needs one.
    """
    nobody = Embeddings.empty(items.shape[1])
    if not sweeps:
        return Embeddings(nobody.user_rows, nobody.users, item_rows, items)
    compact = interactions.take(np.isin(interactions.items, item_rows)).compact()
    if not len(compact.interactions):
        return nobody
    # Items whose last interaction was erased have nothing left to rest on.
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
    return Embeddings(nobody.user_rows, nobody.users, compact.item_rows, present)
