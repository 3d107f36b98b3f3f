"""Ranked lists from embeddings, and the snapshot that reads are answered from.

U users asked for, I' items that the model covers, N length of a list.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import InputError
from ray_eraser.ids import Generation, RawId


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


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything that a read needs, immutable: a reader keeps the one it began with while the next is made.

    Attributes:
        model: the aggregate, or its excision while shards are being trained anew.
        users, items: the vocabularies, without the ids that are being erased.
        seen: all remaining interactions, held-out ones too: nobody is recommended what they know.
        generation: that it was made from.
    """

    model: Embeddings
    users: Vocabulary
    items: Vocabulary
    seen: Interactions
    generation: Generation

    def has_seen(self, user_id: RawId, item_id: RawId) -> bool:
        """Whether the user has a remaining interaction with the item.

        Raises:
            UnknownIdError: one of them was never here or has been erased.
        """
        row, item = self.users.row(user_id), self.items.row(item_id)
        first, last = np.searchsorted(self.seen.users, [row, row + 1])
        return bool((self.seen.items[first:last] == item).any())

    def recommend(self, user_id: RawId, n: int) -> list[RawId]:
        """Raw ids of the best `n` items that the user has not seen, best first; fewer where fewer are left.

        A user without a remaining interaction has no vector and is given the items that most others have.

        Raises:
            UnknownIdError: the user was never here or has been erased.
            InputError: `n` is less than 1.
        """
        if n < 1:
            raise InputError(f"n is {n}: ask for at least one item")
        row = self.users.row(user_id)
        first, last = np.searchsorted(self.seen.users, [row, row + 1])
        position = self.model.position_of_user(row)
        if position is None:
            item_rows, scores = np.unique(self.seen.items, return_counts=True)
        else:
            item_rows, scores = self.model.item_rows, self.model.items @ self.model.users[position]
        unseen = ~np.isin(item_rows, self.seen.items[first:last])
        item_rows, scores = item_rows[unseen], scores[unseen]
        best = item_rows[top_items(scores[None], min(n, len(item_rows)))[0]] if len(item_rows) else item_rows
        return [raw for raw in self.items.raw(best) if raw is not None]
