"""Recall and NDCG of ranked lists.

U users, N length of the lists.
"""

from __future__ import annotations

import numpy as np


def recall(hits_UN: np.ndarray, relevant_U: np.ndarray) -> np.ndarray:
    """Hits over the number of the user's test items, (U,); the RecEraser authors' definition.

    Others divide by min(N, test items), which is larger for users with more test items than N.
    """
    return np.asarray(hits_UN.sum(1) / relevant_U)


def ndcg(hits_UN: np.ndarray, relevant_U: np.ndarray) -> np.ndarray:
    """Gain 1 / log2(rank + 1) of the hits over that of the best list, which has min(N, test items) hits in front, (U,)."""
    gains_N = 1 / np.log2(np.arange(2, hits_UN.shape[1] + 2))
    ideal = np.concatenate([[0], np.cumsum(gains_N)])[np.minimum(relevant_U, hits_UN.shape[1])]
    return np.asarray((hits_UN * gains_N).sum(1) / ideal)
