"""Triplets (user, an item the user has, an item the user has not) for losses that compare pairs.

n triplets of U users and I items, all of one shard: what the user did in another shard does not count, or training that shard
again would not be enough to forget it.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from ray_eraser.training.kernels import compiled


def draw_triplets(observed_UI: sparse.csr_matrix, n: int, seed: int, first: int = 0) -> np.ndarray:
    """Triplets number `first` to `first + n` of the sequence of this seed, (n, 3) int32.

    Each has a user drawn uniformly from those with a pair (Rendle et al. 2009 draw pairs; drawing users ranks better),
    one of the user's items and one of the others, both uniformly. A user who has every item is compared with no item, number I,
    whose score is 0: what the shard lacks is absent, and absent counts as 0 where submodels are summed.

    Args:
        observed_UI: the pairs, indices ascending in every row.
        n: how many.
        seed: of the sequence. Triplet s depends on the seed, s and the pairs alone.
        first: where to begin.
    """
    drawn_n3 = np.empty((n, 3), np.int32)
    users = np.flatnonzero(np.diff(observed_UI.indptr)).astype(np.int32)
    if len(users):
        _draw(users, observed_UI.indptr, observed_UI.indices, observed_UI.shape[1], np.uint64(seed), first, drawn_n3)
    return drawn_n3 if len(users) else drawn_n3[:0]


@compiled
def _below(bound: int, seed: np.uint64, number: int) -> np.int64:
    """A number of the sequence of this seed, in 0 .. bound - 1: splitmix64 (Steele et al. 2014), its upper half scaled."""
    z = seed + np.uint64(number + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.int64(((z >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@compiled
def _draw(
    users_U: np.ndarray, starts: np.ndarray, items: np.ndarray, n_items: int, seed: np.uint64, first: int, drawn_n3: np.ndarray
) -> None:
    for s in range(len(drawn_n3)):
        number = 3 * (first + s)
        user = users_U[_below(len(users_U), seed, number)]
        start, stop = starts[user], starts[user + 1]
        positive = items[start + _below(stop - start, seed, number + 1)]
        # The negative of rank r among the user's others, found by bisection: no rejection, so no end of it to wait for.
        rank = _below(max(1, n_items - (stop - start)), seed, number + 2)
        low, high = start, stop
        while low < high:
            middle = (low + high) // 2
            if items[middle] - (middle - start) <= rank:
                low = middle + 1
            else:
                high = middle
        drawn_n3[s, 0], drawn_n3[s, 1], drawn_n3[s, 2] = user, positive, rank + (low - start)
