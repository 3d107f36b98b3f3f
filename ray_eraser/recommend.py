"""The snapshot that answers reads: ranked lists of items that a user does not have."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ray_eraser.data.frames import ids_of
from ray_eraser.data.keyed import KeyedPairs, ShardData, all_keys, places_of
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import InputError, shortened
from ray_eraser.ids import Generation, RawId, checked_id
from ray_eraser.ranking import top_items
from ray_eraser.served import Served

_BATCH_USERS = 256
"""Users whose scores are in memory at a time."""


class Scored(NamedTuple):
    """An item of a list, with its score: the higher the better. `for item_id, score in ...` unpacks it."""

    item_id: RawId
    score: float


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything that a read needs. A snapshot never changes, so a reader keeps its own while the next one is made.

    Attributes:
        served: the model, or its excision while shards are being trained again.
        users, items: the vocabularies, without the ids that are being erased.
        shards: every shard's remaining interactions. No user is recommended an item of theirs, held out or not.
        generation: the generation that it was made from.
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
        """The ids of the `n` best items that the user does not have, best first; fewer if fewer are left.

        A user with nothing but held-out interactions has no scores and gets the items that most other users have.

        Raises:
            UnknownIdError: the user was never here or has been erased.
            InvalidIdError: the user id cannot be one.
            InputError: `n` is less than 1 or no integer.
        """
        return [item_id for item_id, _ in self.recommend_scored(user_id, n)]

    def recommend_scored(self, user_id: RawId, n: int) -> list[Scored]:
        """The same with the items' scores, which compare within one user's list only. Raises as `recommend`."""
        key = self.users.key(checked_id("user", user_id))
        return self._lists([key], _checked_count(n))[0]

    def recommend_many(self, user_ids: Sequence[RawId], n: int) -> list[list[Scored] | None]:
        """The lists that `recommend_scored` gives for many users, in their order; None for a user who is not here.

        Raises:
            InvalidIdError: a user id cannot be one.
            InputError: `n` is less than 1 or no integer.
        """
        keys = [self.users.find(checked_id("user", user_id)) for user_id in ids_of(user_ids)]
        lists = iter(self._lists([key for key in keys if key is not None], _checked_count(n)))
        return [None if key is None else next(lists) for key in keys]

    def similar_items(self, item_id: RawId, n: int) -> list[Scored]:
        """The `n` items that the model ranks highest for a user who has this item alone, best first.

        An item with nothing but held-out interactions has no score: nothing is known to be similar, and the list is empty.

        Raises:
            UnknownIdError: the item was never here or has been erased.
            InvalidIdError: the item id cannot be one.
            InputError: `n` is less than 1 or no integer.
        """
        n, key = _checked_count(n), np.array([self.items.key(checked_id("item", item_id))], np.uint64)
        item_keys = self.served.item_keys
        place = places_of(key, item_keys)
        return self._best(item_keys, self.served.scores_for([place])[0], key, n) if place[0] >= 0 else []

    def _lists(self, user_keys: Sequence[int], n: int) -> list[list[Scored]]:
        lists = []
        for first in range(0, len(user_keys), _BATCH_USERS):
            keys = user_keys[first : first + _BATCH_USERS]
            known, scores = self.served.scores(np.array(keys, np.uint64))
            rows = iter(scores)
            for key, is_known in zip(keys, known, strict=True):
                item_keys, of_user = (self.served.item_keys, next(rows)) if is_known else self._popularity
                lists.append(self._best(item_keys, of_user, self._seen_by(key), n))
        return lists

    def _best(self, item_keys: np.ndarray, scores: np.ndarray, left_out: np.ndarray, n: int) -> list[Scored]:
        """The best `n` of some scored items, ties by key, without the items of some keys. An erased item has no id any more."""
        listed = np.ones(len(item_keys), bool)
        out = places_of(left_out, item_keys)
        listed[out[out >= 0]] = False
        item_keys, scores = item_keys[listed], scores[listed]
        if not len(item_keys):
            return []
        best = top_items(scores[None], min(n, len(item_keys)))[0]
        ranked = zip(item_keys[best], scores[best].tolist(), strict=True)
        return [Scored(raw, score) for key, score in ranked for raw in self.items.raw_of(np.array([key]))]

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


def _checked_count(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, numbers.Integral):
        raise InputError(f"n is {shortened(n)}, a {type(n).__name__}: give a whole number")
    if n < 1:
        raise InputError(f"n is {shortened(n)}: ask for at least one item")
    return int(n)
