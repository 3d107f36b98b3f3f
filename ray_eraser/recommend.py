"""Ranked lists from embeddings, and the snapshot that reads are answered from.

U users asked for, I' items that the model covers, N length of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ray_eraser.aggregation.foldin import FoldIn
from ray_eraser.data.keyed import KeyedPairs, ShardData, all_keys, places_of, trained_pairs
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.errors import InputError
from ray_eraser.ids import Generation, RawId, checked_id
from ray_eraser.ranking import top_items

_MOST_FOLDED = 10_000
"""Users whose vectors are kept: some megabytes."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything that a read needs, immutable: a reader keeps the one it began with while the next is made.

    Attributes:
        model: the aggregate, or its excision while shards are being trained again.
        folding: solves users on the model's items when they are asked for; None where the model has the users.
        users, items: the vocabularies, without the ids that are being erased.
        shards: every shard's remaining interactions. Nobody is recommended what they know, be it held out.
        generation: that it was made from.
    """

    model: KeyedEmbeddings
    folding: FoldIn | None
    users: Vocabulary
    items: Vocabulary
    shards: Sequence[ShardData]
    generation: Generation
    _folded: dict[int, np.ndarray] = field(default_factory=dict)

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
        vector = self.vector_of(key)
        if vector is None:
            item_keys, scores = self._popularity
        else:
            item_keys, scores = self.model.item_keys, self.model.items @ vector
        unseen = np.ones(len(item_keys), bool)
        seen = places_of(self._seen_by(key), item_keys)
        unseen[seen[seen >= 0]] = False
        item_keys, scores = item_keys[unseen], scores[unseen]
        best = item_keys[top_items(scores[None], min(n, len(item_keys)))[0]] if len(item_keys) else item_keys
        return self.items.raw_of(best)

    def _seen_by(self, user_key: int) -> np.ndarray:
        """Keys of the items that a user has, held out or not."""
        return np.concatenate([keys for data in self.shards for keys in data.items_of(user_key)])

    def vector_of(self, user_key: int) -> np.ndarray | None:
        """A user's vector, (D,); None where the user has none. One that was solved is kept for the next time."""
        if self.folding is None:
            return self.model.vector_of_user(user_key)
        vector = self._folded.get(user_key)
        if vector is None:
            own = np.concatenate([data.items_of(user_key)[0] for data in self.shards])
            places = places_of(own, self.model.item_keys)
            vector = self.folding.user(np.sort(places[places >= 0]))
            if vector is None:
                return None
            if len(self._folded) >= _MOST_FOLDED:
                self._folded.clear()  # others may be reading: nobody looks for what was there a moment ago
            self._folded[user_key] = vector
        return vector

    def embeddings(self) -> KeyedEmbeddings:
        """The vectors of everybody, as `vector_of` has them to the last bit. Solves all users where the model has none."""
        if self.folding is None:
            return self.model
        user_keys = all_keys([data.user_keys for data in self.shards])
        item_keys = self.model.item_keys
        pairs = trained_pairs(self.shards, user_keys, item_keys)
        return self.folding.users(pairs).keyed(user_keys, item_keys)

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
