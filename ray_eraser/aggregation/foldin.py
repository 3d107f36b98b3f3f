"""Users solved anew on aggregated items: exact ridge regressions on the remaining interactions.

After any aggregator. Each half sweep is one of alternating least squares (models/wmf_als.py).
"""

from __future__ import annotations

import numpy as np

from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.models.wmf_als import half_sweep


def fold_in(
    item_rows: np.ndarray, items: np.ndarray, interactions: Interactions, alpha0: float, reg: float, sweeps: int
) -> Embeddings:
    """Solve the users on the items; then, `sweeps` times, the items on the users and the users again.

    Args:
        item_rows: (I',) rows of the items that have a vector.
        items: (I', D) float32 vectors to begin with.
        interactions: all that remain; pairs with an item that has no vector take no part.
        alpha0: weight of an unobserved pair against 1 for an observed one.
        reg: ridge, scaled by each row's degree.
        sweeps: 0 leaves the items as they are; 1 lets them see all remaining data once.
    """
    compact = interactions.take(np.isin(interactions.items, item_rows)).compact()
    if not len(compact.interactions):
        return Embeddings.empty(items.shape[1])
    # Items whose last interaction was erased have nothing left to rest on.
    present = items[np.searchsorted(item_rows, compact.item_rows)]
    by_user = compact.matrix()
    users = half_sweep(by_user, present, alpha0, reg)
    by_item = by_user.T.tocsr() if sweeps else None
    for _ in range(sweeps):
        present = half_sweep(by_item, users, alpha0, reg)
        users = half_sweep(by_user, present, alpha0, reg)
    return Embeddings(compact.user_rows, users, compact.item_rows, present)
