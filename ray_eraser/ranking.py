"""The best of many scores, in an order that ties cannot change.

U users asked for, I' items that are ranked, N length of a list.
"""

from __future__ import annotations

import numpy as np


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
