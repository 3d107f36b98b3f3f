"""What a served model is: scores of items for a user, from the user's remaining interactions.

There are two kinds. Vectors: their inner products are the scores; users are stored, or folded in when somebody asks. The linear
model: it is never trained, and solved when somebody asks. A package can bring a third kind: see `Untrained` and docs/extend.md.

B users asked about, I' items that have a score, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol, cast

import numpy as np

from ray_eraser.aggregation import folding as folding_of
from ray_eraser.aggregation.foldin import FoldIn
from ray_eraser.config import EraserConfig, LinearConfig, ModelSettings, extension
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData, all_keys, places_of, trained_pairs
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.evaluation import InRows, Scorer
from ray_eraser.kernels.keys import lost_pairs
from ray_eraser.kernels.products import Rows
from ray_eraser.models.linear import LinearModel, Slice
from ray_eraser.seeds import derive

_MOST_FOLDED = 10_000
"""Users whose vectors are kept: some megabytes."""


class Served(Protocol):
    """A model as it answers reads: a function of the remaining interactions, the config and the seed."""

    @property
    def item_keys(self) -> np.ndarray:
        """(I',) uint64, ascending: the items that have a score."""
        ...

    def scores(self, user_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score of every item for some users; the higher the better.

        A user's scores do not depend, in any bit, on the other users of the call.

        Args:
            user_keys: (B,) uint64, in any order.

        Returns:
            Mask (B,) of the users that the model can score, and their scores, (their number, I') float32.
        """
        ...

    def same_bits(self, other: Served) -> bool:
        """Whether both give every user the same bits."""
        ...

    def in_rows(self, user_keys: np.ndarray, item_keys: np.ndarray) -> Scorer:
        """The same in rows of ascending keys, to be evaluated; users and items that are not among them are left out."""
        ...

    def vectors(self) -> KeyedEmbeddings | None:
        """Everybody's vectors; None where the model has none."""
        ...


@dataclass(frozen=True, eq=False)
class ServedVectors:
    """Vectors whose inner products are the scores.

    Attributes:
        model: the aggregate, or an excision.
        folding: solves users on the model's items when they are asked for; None where the model has the users.
        shards: every shard's remaining interactions.
    """

    model: KeyedEmbeddings
    folding: FoldIn | None
    shards: Sequence[ShardData]
    _folded: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def item_keys(self) -> np.ndarray:
        return self.model.item_keys

    def scores(self, user_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        vectors = [self.vector_of(int(key)) for key in user_keys]
        # One product for each user: a matrix of several might be added up otherwise.
        found = [self.model.items @ vector for vector in vectors if vector is not None]
        known = np.array([vector is not None for vector in vectors], bool)
        return known, np.stack(found) if found else np.empty((0, len(self.item_keys)), np.float32)

    def vector_of(self, user_key: int) -> np.ndarray | None:
        """A user's vector, (D,); None where the user has none. One that was solved is kept for the next time."""
        if self.folding is None:
            return self.model.vector_of_user(user_key)
        vector = self._folded.get(user_key)
        if vector is None:
            vector = self.folding.user(places_of_own(self.shards, user_key, self.item_keys))
            if vector is None:
                return None
            if len(self._folded) >= _MOST_FOLDED:
                self._folded.clear()  # others may be reading: nobody looks for what was there a moment ago
            self._folded[user_key] = vector
        return vector

    def same_bits(self, other: Served) -> bool:
        mine, theirs = self.vectors(), other.vectors()
        return theirs is not None and mine.same_bits(theirs)

    def in_rows(self, user_keys: np.ndarray, item_keys: np.ndarray) -> Scorer:
        return self.vectors().in_rows(user_keys, item_keys)

    def vectors(self) -> KeyedEmbeddings:
        """The vectors of everybody, as `vector_of` has them to the last bit. Solves all users where the model has none."""
        if self.folding is None:
            return self.model
        user_keys = all_keys([data.user_keys for data in self.shards])
        pairs = trained_pairs(self.shards, user_keys, self.item_keys)
        return self.folding.users(pairs).keyed(user_keys, self.item_keys)


@dataclass(frozen=True, eq=False)
class _Whole:
    """The training pairs of all shards in one slice: in one process it is read two to three times as fast as a slice for each
    shard, and bits do not depend on how the pairs are divided.

    Attributes:
        user_keys, item_keys: uint64, ascending, of the users and items that have a pair.
        pairs: in rows of these keys.
    """

    user_keys: np.ndarray
    item_keys: np.ndarray
    pairs: Slice

    @classmethod
    def of(cls, shards: Sequence[ShardData]) -> _Whole:
        user_keys = all_keys([data.user_keys for data in shards])
        item_keys = all_keys([data.trained_items() for data in shards])
        whole = Slice.of(trained_pairs(shards, user_keys, item_keys), len(item_keys))
        return cls(user_keys[whole.users], item_keys, replace(whole, users=np.arange(len(whole.users), dtype=np.int32)))

    def without(self, lost: KeyedPairs) -> _Whole:
        """The arrays that `of` makes of shards without these pairs, in a tenth of the time."""
        if not len(lost):
            return self
        pairs, users_left, items_left = self.pairs.without(lost.in_rows(self.user_keys, self.item_keys))
        return _Whole(self.user_keys[users_left], self.item_keys[items_left], pairs)


def _lost(before: Sequence[ShardData], after: Sequence[ShardData]) -> KeyedPairs | None:
    """The training pairs that shards lost; None if one gained any, or if they are others."""
    if len(before) != len(after):
        return None
    lost = []
    for former, data in zip(before, after, strict=True):
        if former is not data:
            arrays = [
                array
                for each in (former, data)
                for array in (each.train.users, each.train.items, each.user_keys, each.item_keys)
            ]
            # Files give read-only arrays, for which the loop would be compiled again.
            is_part, places = lost_pairs(*(np.require(array, requirements="W") for array in arrays))
            if not is_part:
                return None
            lost.append(former.keyed(former.train.take(places)))
    return KeyedPairs.union(lost)


class Untrained(Protocol):
    """A model of another package that is never trained, made from its settings; see docs/extend.md."""

    def served(self, shards: Sequence[ShardData], seed: int) -> Served:
        """The model of every shard's remaining interactions. It depends on the arguments and the settings alone.

        Args:
            shards: the shards' interactions, in order.
            seed: for all that is drawn.
        """
        ...


@dataclass(frozen=True, eq=False)
class OfInteractions(ABC):
    """What models without vectors have in common: a function of the remaining interactions and the settings, and nothing else.

    Attributes:
        shards: every shard's remaining interactions, in order.
        config: the model's settings.
    """

    shards: Sequence[ShardData]
    config: ModelSettings

    @property
    @abstractmethod
    def item_keys(self) -> np.ndarray:
        """See `Served`."""

    @abstractmethod
    def scores(self, user_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Served`."""

    def same_bits(self, other: Served) -> bool:
        return isinstance(other, type(self)) and self.is_of(other.shards, other.config)

    def is_of(self, shards: Sequence[ShardData], config: ModelSettings) -> bool:
        """Whether it would be made of these: bits are a function of the interactions and the settings."""
        if self.config != config or len(self.shards) != len(shards):
            return False
        return all(mine.same(theirs) for mine, theirs in zip(self.shards, shards, strict=True))

    def in_rows(self, user_keys: np.ndarray, item_keys: np.ndarray) -> Scorer:
        return InRows(self, user_keys, item_keys)

    def vectors(self) -> None:
        return None


@dataclass(frozen=True, eq=False)
class ServedLinear(OfInteractions):
    """The linear model over every shard's remaining interactions.

    Attributes:
        config: normalisation, ridge and steps.
        whole: all training pairs of the shards.
        solver: the model of these.
    """

    config: LinearConfig
    whole: _Whole
    solver: LinearModel

    @classmethod
    def of(cls, shards: Sequence[ShardData], config: LinearConfig, before: ServedLinear | None = None) -> ServedLinear:
        """Make it from the shards; from `before` where these have all pairs of `shards`, which is faster. Bits are the same."""
        lost = None if before is None else _lost(before.shards, shards)
        whole = _Whole.of(shards) if before is None or lost is None else before.whole.without(lost)
        return cls(shards, config, whole, LinearModel.of([whole.pairs], len(whole.user_keys), len(whole.item_keys), config))

    @property
    def item_keys(self) -> np.ndarray:
        return self.whole.item_keys

    def scores(self, user_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = [places_of_own(self.shards, int(key), self.item_keys) for key in user_keys]
        known = np.array([len(places) > 0 for places in own], bool)
        own = [places for places in own if len(places)]
        asked = Rows.of(np.cumsum([0, *map(len, own)]), np.concatenate([np.empty(0, np.int32), *own]))
        return known, self.solver.scores(asked)


@cache
def _load(config: LinearConfig) -> None:
    """Compile, or load, the code that solves, so that the first read need not wait."""
    one = Interactions.of(np.array([0], np.int32), np.array([0], np.int32))
    LinearModel.of([Slice.of(one, 1)], 1, 1, config).scores(Rows.of(np.zeros(1, np.int64), np.empty(0, np.int32)))


def places_of_own(shards: Sequence[ShardData], user_key: int, item_keys: np.ndarray) -> np.ndarray:
    """Ascending places, among some ascending keys, of the items that a user learns from."""
    places = places_of(np.concatenate([data.items_of(user_key)[0] for data in shards]), item_keys)
    return np.sort(places[places >= 0])


def served_by(
    model: KeyedEmbeddings,
    shards: Sequence[ShardData],
    config: EraserConfig,
    *,
    excised: bool = False,
    before: Served | None = None,
) -> Served:
    """A generation as it is served.

    Args:
        model: its aggregate, or the excision of one.
        shards: every shard's remaining interactions.
        config: its settings.
        excised: whether the model is an excision, which has no users.
        before: what was served until now; it is served on if it is the same.
    """
    if isinstance(config.model, LinearConfig):
        _load(config.model)
        former = before if isinstance(before, ServedLinear) else None
        if former is not None and former.is_of(shards, config.model):
            return former
        return ServedLinear.of(shards, config.model, former)
    if not config.model.is_trained:
        maker = cast(Untrained, extension(config.model)(config.model))
        made = maker.served(shards, derive(config.seed, "served"))
        return before if before is not None and made.same_bits(before) else made
    is_folded = config.aggregation.foldin or excised
    folding = folding_of(model.in_rows(model.user_keys, model.item_keys), config) if is_folded else None
    if folding is not None:
        folding.users(Interactions.none())  # loads the compiled code now, so that the first read need not wait
    return ServedVectors(model, folding, shards)
