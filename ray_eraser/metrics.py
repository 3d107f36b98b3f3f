"""Recall and NDCG of ranked lists.

U users, N length of the lists.
"""

from __future__ import annotations

import numpy as np


def recall(hits_UN: np.ndarray, relevant_U: np.ndarray) -> np.ndarray:
    """Hits divided by the number of the user's test items, (U,), as the RecEraser authors define recall.

    Other authors divide by min(N, test items), which gives higher values for users with more than N test items.
    """
    return np.asarray(hits_UN.sum(1) / relevant_U)


def ndcg(hits_UN: np.ndarray, relevant_U: np.ndarray) -> np.ndarray:
    """The gain 1 / log2(rank + 1) of the hits, divided by the gain of the best list, (U,).

    The best list starts with min(N, test items) hits.
    """
    gains_N = 1 / np.log2(np.arange(2, hits_UN.shape[1] + 2))
    ideal = np.concatenate([[0], np.cumsum(gains_N)])[np.minimum(relevant_U, hits_UN.shape[1])]
    return np.asarray((hits_UN * gains_N).sum(1) / ideal)
