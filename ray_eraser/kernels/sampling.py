"""Sample triplets (user, an item of the user, an item that the user does not have) for losses that compare pairs.

n triplets of U users and I items, all of one shard. The user's interactions in other shards must not count: if they did,
retraining those shards would not be enough to forget them.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from ray_eraser.kernels.compiled import compiled

_LANES = 32
"""Number of triplets whose negatives are searched together, so that the processor has other work while it waits for memory."""


def draw_triplets(observed_UI: sparse.csr_matrix, n: int, seed: int, first: int = 0) -> np.ndarray:
    """Draw triplets `first` to `first + n - 1` of the sequence of this seed, (n, 3) int32.

    A triplet has a user drawn uniformly from the users with a pair, one of the user's items, and one of the other items, both
    drawn uniformly. (Rendle et al. 2009 draw pairs; drawing users ranks better.) A user who has every item is compared with "no
    item", number I, whose score is 0. An item that the shard lacks also scores 0 when submodels are summed.

    Args:
        observed_UI: the pairs, with ascending indices in every row.
        n: the number of triplets.
        seed: the seed of the sequence. Triplet s depends only on the seed, s and the pairs.
        first: the number of the first triplet.
    """
    drawn_n3 = np.empty((n, 3), np.int32)
    users = np.flatnonzero(np.diff(observed_UI.indptr)).astype(np.int32)
    if len(users):
        _draw(users, observed_UI.indptr, observed_UI.indices, observed_UI.shape[1], np.uint64(seed), first, drawn_n3)
    return drawn_n3 if len(users) else drawn_n3[:0]


@compiled
def _below(bound: int, seed: np.uint64, number: int) -> np.int64:
    """One number of the sequence of this seed, in 0 .. bound - 1: the scaled upper half of splitmix64 (Steele et al. 2014)."""
    z = seed + np.uint64(number + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.int64(((z >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@compiled
def _draw(
    users_U: np.ndarray, starts: np.ndarray, items: np.ndarray, n_items: int, seed: np.uint64, first: int, drawn_n3: np.ndarray
) -> None:
    """Draw the triplets. The negative of rank r among the items that the user lacks is found by bisection, without rejection.

    Several triplets are bisected together, because each step of one bisection waits for its previous step.
    """
    firsts_L, sizes_L, ranks_L = np.empty(_LANES, np.int64), np.empty(_LANES, np.int64), np.empty(_LANES, np.int64)
    below_L = np.empty(_LANES, np.int64)  # the number of the user's items known to come before the negative
    for begin in range(0, len(drawn_n3), _LANES):
        lanes, largest = min(_LANES, len(drawn_n3) - begin), 0
        for lane in range(lanes):
            number = 3 * (first + begin + lane)
            user = users_U[_below(len(users_U), seed, number)]
            start, size = starts[user], starts[user + 1] - starts[user]
            drawn_n3[begin + lane, 0] = user
            drawn_n3[begin + lane, 1] = items[start + _below(size, seed, number + 1)]
            ranks_L[lane] = _below(max(1, n_items - size), seed, number + 2)
            firsts_L[lane], sizes_L[lane], below_L[lane] = start, size, 0
            largest = max(largest, size)
        while largest > 0:
            for lane in range(lanes):
                half = (sizes_L[lane] + 1) >> 1
                middle = below_L[lane] + half - 1
                # In a finished lane, half is 0 and nothing changes; `max` only keeps its index inside the array.
                comes_before = items[max(firsts_L[lane] + middle, 0)] - middle <= ranks_L[lane]
                below_L[lane] += half * np.int64(comes_before)
                sizes_L[lane] -= half
            largest -= (largest + 1) >> 1
        for lane in range(lanes):
            drawn_n3[begin + lane, 2] = ranks_L[lane] + below_L[lane]
