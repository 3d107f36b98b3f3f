"""Ranked lists from embeddings, and the snapshot that reads are answered from.

U users asked for, I' items that the model covers, N length of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ray_eraser.aggregation.foldin import FoldIn
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import InputError
from ray_eraser.ids import Generation, RawId

_MOST_FOLDED = 10_000
"""Users whose vectors are kept: some megabytes."""


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
        folding: solves users on the model's items when they are asked for; None where the model has the users.
        users, items: the vocabularies, without the ids that are being erased.
        trained: by shard, the remaining interactions that are learned from.
        held_out: by shard, those that are not. Nobody is recommended what they know, be it held out.
        generation: that it was made from.
    """

    model: Embeddings
    folding: FoldIn | None
    users: Vocabulary
    items: Vocabulary
    trained: Sequence[Interactions]
    held_out: Sequence[Interactions]
    generation: Generation
    _folded: dict[int, np.ndarray] = field(default_factory=dict)

    def has_seen(self, user_id: RawId, item_id: RawId) -> bool:
        """Whether the user has a remaining interaction with the item.

        Raises:
            UnknownIdError: one of them was never here or has been erased.
        """
        row, item = self.users.row(user_id), self.items.row(item_id)
        return any(bool((part.items_of(row) == item).any()) for part in (*self.trained, *self.held_out))

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
        vector = self.vector_of(row)
        if vector is None:
            item_rows, scores = self._popularity
        else:
            item_rows, scores = self.model.item_rows, self.model.items @ vector
        seen = np.concatenate([part.items_of(row) for part in (*self.trained, *self.held_out)])
        unseen = ~np.isin(item_rows, seen)
        item_rows, scores = item_rows[unseen], scores[unseen]
        best = item_rows[top_items(scores[None], min(n, len(item_rows)))[0]] if len(item_rows) else item_rows
        return [raw for raw in self.items.raw(best) if raw is not None]

    def vector_of(self, row: int) -> np.ndarray | None:
        """The vector of a user's row, (D,); None where the user has none. One that was solved is kept for the next time."""
        if self.folding is None:
            position = self.model.position_of_user(row)
            return None if position is None else self.model.users[position]
        vector = self._folded.get(row)
        if vector is None:
            own = np.sort(np.concatenate([part.items_of(row) for part in self.trained]))
            users = self.folding.users(Interactions(np.full(len(own), row, np.int32), own)).users
            if not len(users):
                return None
            if len(self._folded) >= _MOST_FOLDED:
                self._folded.clear()  # others may be reading: nobody looks for what was there a moment ago
            vector = self._folded[row] = users[0]
        return vector

    def embeddings(self) -> Embeddings:
        """The vectors of everybody, as `vector_of` has them to the last bit. Solves all users where the model has none."""
        return self.model if self.folding is None else self.folding.users(Interactions.union(list(self.trained)))

    @cached_property
    def _popularity(self) -> tuple[np.ndarray, np.ndarray]:
        """The items that have an interaction, and how many each."""
        counts = sum(
            (np.bincount(part.items, minlength=len(self.items)) for part in (*self.trained, *self.held_out)),
            np.zeros(len(self.items), np.int64),
        )
        item_rows = np.flatnonzero(counts)
        return item_rows, counts[item_rows]
