"""The snapshot that reads are answered from: ranked lists of what a user has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ray_eraser.data.keyed import KeyedPairs, ShardData, all_keys, places_of
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import InputError
from ray_eraser.ids import Generation, RawId, checked_id
from ray_eraser.ranking import top_items
from ray_eraser.served import Served


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything that a read needs, immutable: a reader keeps the one it began with while the next is made.

    Attributes:
        served: the model, or its excision while shards are being trained again.
        users, items: the vocabularies, without the ids that are being erased.
        shards: every shard's remaining interactions. Nobody is recommended what they know, be it held out.
        generation: that it was made from.
    """

    served: Served
    users: Vocabulary
    items: Vocabulary
    shards: Sequence[ShardData]
    generation: Generation

    def has(self, pairs: KeyedPairs) -> np.ndarray:
        """Mask (n,) of the pairs that are among the remaining interactions, held out or not."""
        found = np.zeros(len(pairs), bool)
        for data in self.shards:
            found |= data.has(pairs)
        return found

    def recommend(self, user_id: RawId, n: int) -> list[RawId]:
        """Raw ids of the best `n` items that the user has not seen, best first; fewer where fewer are left.

        A user with nothing but held-out interactions has no vector and is given the items that most others have.

        Raises:
            UnknownIdError: the user was never here or has been erased.
            InvalidIdError: the user id cannot be one.
            InputError: `n` is less than 1.
        """
        if n < 1:
            raise InputError(f"n is {n}: ask for at least one item")
        key = self.users.key(checked_id("user", user_id))
        known, of_users = self.served.scores(np.array([key], np.uint64))
        item_keys, scores = (self.served.item_keys, of_users[0]) if known[0] else self._popularity
        unseen = np.ones(len(item_keys), bool)
        seen = places_of(self._seen_by(key), item_keys)
        unseen[seen[seen >= 0]] = False
        item_keys, scores = item_keys[unseen], scores[unseen]
        best = item_keys[top_items(scores[None], min(n, len(item_keys)))[0]] if len(item_keys) else item_keys
        return self.items.raw_of(best)

    def _seen_by(self, user_key: int) -> np.ndarray:
        """Keys of the items that a user has, held out or not."""
        return np.concatenate([keys for data in self.shards for keys in data.items_of(user_key)])

    @cached_property
    def _popularity(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys of the items that have an interaction, ascending, and how many each has."""
        item_keys = all_keys([data.item_keys for data in self.shards])
        counts = np.zeros(len(item_keys), np.int64)
        for data in self.shards:
            places = np.searchsorted(item_keys, data.item_keys)
            for part in (data.train, data.valid):
                counts[places] += np.bincount(part.items, minlength=len(data.item_keys))
        return item_keys, counts
