"""Ranked lists from embeddings.

U users asked for, I' items that the model covers, N length of a list.
"""

from __future__ import annotations

import numpy as np

from ray_eraser.embeddings import Embeddings


def top_items(scores_UI: np.ndarray, n: int) -> np.ndarray:
    """Positions of the best N scores, best first, ties by position, (U, N) int64; needs N <= I'."""
    n_items = scores_UI.shape[1]
    if n < n_items:
        # The N-th best score bounds the list; everything above it is in, of those that tie with it the first ones.
        bound_U = -np.partition(-scores_UI, n - 1, axis=1)[:, n - 1 : n]
        above = scores_UI > bound_U
        tied = scores_UI == bound_U
        chosen = above | (tied & (np.cumsum(tied, axis=1) <= n - above.sum(1, keepdims=True)))
        best_UN = np.nonzero(chosen)[1].reshape(len(scores_UI), n)
    else:
        best_UN = np.tile(np.arange(n_items), (len(scores_UI), 1))
    order_UN = np.argsort(-np.take_along_axis(scores_UI, best_UN, 1), axis=1, kind="stable")
    return np.take_along_axis(best_UN, order_UN, 1)


def recommend(model: Embeddings, user_row: int, seen_items: np.ndarray, n: int) -> np.ndarray | None:
    """Rows of the best N items that the user has not seen, best first, at most N; None where the model lacks the user."""
    position = model.position_of_user(user_row)
    if position is None:
        return None
    unseen = ~np.isin(model.item_rows, seen_items)
    item_rows, items = model.item_rows[unseen], model.items[unseen]
    if not len(item_rows):
        return item_rows
    return np.asarray(item_rows[top_items((items @ model.users[position])[None], min(n, len(item_rows)))[0]])
