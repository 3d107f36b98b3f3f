"""The average of the submodels' scores: SISA (Bourtoule et al. 2021) applied to recommendation.

K submodels of width D.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ray_eraser.embeddings import Embeddings


def mean(submodels: Sequence[Embeddings]) -> Embeddings:
    """Embeddings of width K * D whose inner products are the average score over the submodels that know the user.

    A submodel that knows the user but not the item contributes a score of 0, the same as for an item without interactions.
    """
    everyone = side_by_side(submodels)
    known_by_U = sum(np.isin(everyone.user_rows, submodel.user_rows).astype(np.float32) for submodel in submodels)
    return Embeddings(everyone.user_rows, everyone.users / np.reshape(known_by_U, (-1, 1)), everyone.item_rows, everyone.items)


def side_by_side(submodels: Sequence[Embeddings]) -> Embeddings:
    """Concatenate the submodels' tables to width K * D, with zeros for absent rows. Inner products sum over the submodels."""
    user_rows = _union([submodel.user_rows for submodel in submodels])
    item_rows = _union([submodel.item_rows for submodel in submodels])
    width = sum(submodel.width for submodel in submodels)
    users = np.zeros((len(user_rows), width), np.float32)
    items = np.zeros((len(item_rows), width), np.float32)
    first = 0
    for submodel in submodels:
        last = first + submodel.width
        users[np.searchsorted(user_rows, submodel.user_rows), first:last] = submodel.users
        items[np.searchsorted(item_rows, submodel.item_rows), first:last] = submodel.items
        first = last
    return Embeddings(user_rows, users, item_rows, items)


def _union(rows: list[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.empty(0, np.int32), *rows]))
