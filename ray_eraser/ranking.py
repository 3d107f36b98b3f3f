"""Select the best of many scores, with a fixed order for ties.

U users of a request, I' ranked items, N length of a list.
"""

from __future__ import annotations

import numpy as np


def top_items(scores_UI: np.ndarray, n: int) -> np.ndarray:
    """Positions of the N best scores, best first, ties by position, (U, N) int64. N must be at most I'."""
    n_items = scores_UI.shape[1]
    if n < n_items:
        # The N-th best score bounds the list. All higher scores are in it, and the first of the scores equal to it.
        bound_U = -np.partition(-scores_UI, n - 1, axis=1)[:, n - 1 : n]
        above = scores_UI > bound_U
        tied = scores_UI == bound_U
        chosen = above | (tied & (np.cumsum(tied, axis=1) <= n - above.sum(1, keepdims=True)))
        best_UN = np.nonzero(chosen)[1].reshape(len(scores_UI), n)
    else:
        best_UN = np.tile(np.arange(n_items), (len(scores_UI), 1))
    order_UN = np.argsort(-np.take_along_axis(scores_UI, best_UN, 1), axis=1, kind="stable")
    return np.take_along_axis(best_UN, order_UN, 1)
