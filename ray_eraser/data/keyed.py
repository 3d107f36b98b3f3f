"""Interactions by the keys of their ids, for files and for messages between processes.

A row is valid for one computation; the key of an id never changes. U' users and I' items of one shard, n pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ray_eraser.data.interactions import Interactions


@dataclass(frozen=True, eq=False)
class KeyedPairs:
    """Pairs of a user's and an item's key, in any order, each once.

    Attributes:
        users, items: (n,) uint64.
    """

    users: np.ndarray
    items: np.ndarray

    @classmethod
    def none(cls) -> KeyedPairs:
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64))

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, int]]) -> KeyedPairs:
        keys_n2 = np.array(pairs, np.uint64).reshape(-1, 2)
        return cls(keys_n2[:, 0].copy(), keys_n2[:, 1].copy())

    @classmethod
    def in_keys(cls, pairs: Interactions, user_keys: np.ndarray, item_keys: np.ndarray) -> KeyedPairs:
        """Pairs of rows, by the keys of these rows."""
        return cls(user_keys[pairs.users], item_keys[pairs.items])

    @classmethod
    def union(cls, parts: Sequence[KeyedPairs]) -> KeyedPairs:
        """The pairs of all parts. No two parts may have a pair in common."""
        return cls(
            np.concatenate([np.empty(0, np.uint64), *(part.users for part in parts)]),
            np.concatenate([np.empty(0, np.uint64), *(part.items for part in parts)]),
        )

    def __len__(self) -> int:
        return len(self.users)

    def take(self, chosen: np.ndarray) -> KeyedPairs:
        """The pairs at positions, or where a mask (n,) is true."""
        return KeyedPairs(self.users[chosen], self.items[chosen])

    def in_rows(self, user_keys: np.ndarray, item_keys: np.ndarray) -> Interactions:
        """The pairs in rows of ascending keys, without pairs of an id that has no row there."""
        users, items = places_of(self.users, user_keys), places_of(self.items, item_keys)
        known = (users >= 0) & (items >= 0)
        return Interactions.of(users[known], items[known])

    def compact(self) -> tuple[Interactions, np.ndarray, np.ndarray]:
        """(the pairs in rows of their own, the users' keys by row, the items' keys by row). The keys are ascending."""
        user_keys, item_keys = np.unique(self.users), np.unique(self.items)
        return self.in_rows(user_keys, item_keys), user_keys, item_keys

    def same(self, other: KeyedPairs) -> bool:
        """Whether both are the same pairs in the same order."""
        return np.array_equal(self.users, other.users) and np.array_equal(self.items, other.items)


@dataclass(frozen=True, eq=False)
class ShardData:
    """A shard's interactions in its own rows: pairs to train on, and pairs held out for early stopping.

    Exactly the users and items with a pair have a row, in the order of keys. So the same pairs give the same value, whatever
    the shard held before.

    Attributes:
        user_keys: (U',) uint64, ascending.
        item_keys: (I',) uint64, ascending.
        train: pairs to train on.
        valid: held-out pairs, none of them in `train`.
    """

    user_keys: np.ndarray
    item_keys: np.ndarray
    train: Interactions
    valid: Interactions

    @classmethod
    def none(cls) -> ShardData:
        nobody = np.empty(0, np.uint64)
        return cls(nobody, nobody, Interactions.none(), Interactions.none())

    @classmethod
    def of(cls, train: Interactions, valid: Interactions, user_keys: np.ndarray, item_keys: np.ndarray) -> ShardData:
        """Make the data of a shard from pairs in the rows of a larger numbering, given its ascending keys."""
        user_rows, place_of_user = _renumbered(train.users, valid.users)
        item_rows, place_of_item = _renumbered(train.items, valid.items)
        parts = [Interactions(place_of_user[part.users], place_of_item[part.items]) for part in (train, valid)]
        return cls(user_keys[user_rows], item_keys[item_rows], *parts)

    def __len__(self) -> int:
        return len(self.train) + len(self.valid)

    @cached_property
    def pairs(self) -> Interactions:
        """All pairs, held out or not."""
        return Interactions.union([self.train, self.valid]) if len(self.valid) else self.train

    def keyed(self, pairs: Interactions) -> KeyedPairs:
        """Some of the shard's pairs, by their keys."""
        return KeyedPairs.in_keys(pairs, self.user_keys, self.item_keys)

    def in_rows_of(self, user_keys: np.ndarray, item_keys: np.ndarray) -> tuple[Interactions, Interactions]:
        """(train, valid) in rows of ascending keys, which include all keys of the shard."""
        users = np.searchsorted(user_keys, self.user_keys).astype(np.int32)
        items = np.searchsorted(item_keys, self.item_keys).astype(np.int32)
        train, valid = (Interactions(users[part.users], items[part.items]) for part in (self.train, self.valid))
        return train, valid

    def without(self, erased: KeyedPairs) -> ShardData:
        """The remaining interactions. Unknown pairs are ignored."""
        gone = erased.in_rows(self.user_keys, self.item_keys)
        if not len(gone):
            return self
        return ShardData.of(self.train.without(gone), self.valid.without(gone), self.user_keys, self.item_keys)

    def with_learned(self, train: KeyedPairs, valid: KeyedPairs) -> ShardData:
        """Add pairs that the shard does not have yet."""
        if not len(train) and not len(valid):
            return self
        user_keys = np.unique(np.concatenate([self.user_keys, train.users, valid.users]))
        item_keys = np.unique(np.concatenate([self.item_keys, train.items, valid.items]))
        trained, held = self.in_rows_of(user_keys, item_keys)
        return ShardData(
            user_keys,
            item_keys,
            Interactions.union([trained, train.in_rows(user_keys, item_keys)]),
            Interactions.union([held, valid.in_rows(user_keys, item_keys)]),
        )

    def same(self, other: ShardData) -> bool:
        """Whether both have the same pairs to train on and the same held-out pairs."""
        # The pairs alone decide their rows, so the same pairs are the same arrays.
        return self is other or all(
            np.array_equal(mine, theirs)
            for mine, theirs in (
                (self.user_keys, other.user_keys),
                (self.item_keys, other.item_keys),
                (self.train.users, other.train.users),
                (self.train.items, other.train.items),
                (self.valid.users, other.valid.users),
                (self.valid.items, other.valid.items),
            )
        )

    def trained_items(self) -> np.ndarray:
        """The keys of all items with a pair to train on, ascending."""
        is_trained = np.zeros(len(self.item_keys), bool)
        is_trained[self.train.items] = True
        keys: np.ndarray = self.item_keys[is_trained]
        return keys

    def has(self, pairs: KeyedPairs) -> np.ndarray:
        """Mask (n,) of the pairs that the shard has, held out or not."""
        users, items = places_of(pairs.users, self.user_keys), places_of(pairs.items, self.item_keys)
        found = (users >= 0) & (items >= 0)
        known = np.flatnonzero(found)
        if len(known) <= _FEW:
            for place in known.tolist():
                found[place] = any(
                    at < len(own) and own[at] == items[place]
                    for own in (self.train.items_of(users[place]), self.valid.items_of(users[place]))
                    for at in (int(own.searchsorted(items[place])),)
                )
        else:
            codes = (users[known].astype(np.int64) << 32) | items[known]
            found[known] = np.isin(codes, self.train.codes()) | np.isin(codes, self.valid.codes())
        return found

    def items_of(self, user_key: int) -> tuple[np.ndarray, np.ndarray]:
        """(keys of a user's items to train on, keys of the user's held-out items), each ascending."""
        row = places_of(np.array([user_key], np.uint64), self.user_keys)[0]
        if row < 0:
            return np.empty(0, np.uint64), np.empty(0, np.uint64)
        return self.item_keys[self.train.items_of(row)], self.item_keys[self.valid.items_of(row)]


_FEW = 64
"""Up to this many pairs are looked up one by one. More are compared with all pairs of the shard at once."""


def places_of(keys: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """The position of each key among ascending ones, (n,) int32; -1 for a key that is not among them."""
    if not len(ascending):
        return np.full(len(keys), -1, np.int32)
    places = np.searchsorted(ascending, keys).astype(np.int32)
    return np.where(ascending.take(places, mode="clip") == keys, places, np.int32(-1))


def trained_pairs(shards: Sequence[ShardData], user_keys: np.ndarray, item_keys: np.ndarray) -> Interactions:
    """The training pairs of several shards in rows of ascending keys, without pairs of an id that has no row there."""
    parts = []
    for data in shards:
        users = places_of(data.user_keys, user_keys)[data.train.users]
        items = places_of(data.item_keys, item_keys)[data.train.items]
        known = (users >= 0) & (items >= 0)
        parts.append(Interactions(users, items) if known.all() else Interactions(users[known], items[known]))
    return _side_by_side(parts, len(user_keys)) or Interactions.union(parts)


def _side_by_side(parts: Sequence[Interactions], n_users: int) -> Interactions | None:
    """The pairs of all parts; None if two parts share a user. A sort takes six times as long."""
    degrees = [np.bincount(part.users, minlength=n_users) for part in parts]
    total, holders = np.zeros(n_users, np.int64), np.zeros(n_users, np.int32)
    for own in degrees:
        total += own
        holders += own > 0
    if holders.max(initial=0) > 1:
        return None
    starts = np.cumsum(total) - total
    items = np.empty(int(total.sum()), np.int32)
    for part, own in zip(parts, degrees, strict=True):
        shift = starts - (np.cumsum(own) - own)
        items[shift[part.users] + np.arange(len(part))] = part.items
    return Interactions(np.repeat(np.arange(n_users, dtype=np.int32), total), items)


def all_keys(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The distinct keys of several ascending arrays, ascending."""
    keys = np.concatenate([np.empty(0, np.uint64), *parts])
    keys.sort(kind="stable")  # merges runs that are in order
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    distinct: np.ndarray = keys[is_first]
    return distinct


def _renumbered(some: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the distinct rows, ascending; the place of each row among them, int32)."""
    present = np.zeros(1 + max(some.max(initial=-1), others.max(initial=-1)), bool)
    present[some] = present[others] = True
    return np.flatnonzero(present), np.cumsum(present, dtype=np.int32) - np.int32(1)
