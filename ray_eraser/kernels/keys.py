"""Compare two sets of pairs with different numberings by the keys of their ids."""

from __future__ import annotations

import numpy as np

from ray_eraser.kernels.compiled import compiled


@compiled
def lost_pairs(
    users: np.ndarray,
    items: np.ndarray,
    user_keys: np.ndarray,
    item_keys: np.ndarray,
    left_users: np.ndarray,
    left_items: np.ndarray,
    left_user_keys: np.ndarray,
    left_item_keys: np.ndarray,
) -> tuple[bool, np.ndarray]:
    """Find the pairs that are not among the remaining pairs.

    Both sets are ascending by user and then by item. The function walks along both at once, because a search for every pair
    takes ten times as long.

    Args:
        users: (n,) int32 rows.
        items: (n,) int32 rows.
        user_keys: uint64, ascending, the key of each user row.
        item_keys: uint64, ascending, the key of each item row.
        left_users: user rows of the remaining pairs, in their own numbering.
        left_items: item rows of the remaining pairs, in their own numbering.
        left_user_keys: uint64, ascending, the key of each user row in the numbering of `left_users`.
        left_item_keys: uint64, ascending, the key of each item row in the numbering of `left_items`.

    Returns:
        Whether every remaining pair is in the first set, and the positions of the lost pairs. If not, the positions have no
        meaning.
    """
    lost = np.empty(max(len(users) - len(left_users), 0), np.int64)
    n_lost, n_left = 0, 0
    for n in range(len(users)):
        if (
            n_left < len(left_users)
            and item_keys[np.uint32(items[n])] == left_item_keys[np.uint32(left_items[n_left])]
            and user_keys[np.uint32(users[n])] == left_user_keys[np.uint32(left_users[n_left])]
        ):
            n_left += 1
        elif n_lost == len(lost):
            return False, lost
        else:
            lost[n_lost] = n
            n_lost += 1
    return n_left == len(left_users), lost
