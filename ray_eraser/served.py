"""What a served model is: scores of items for a user, from the user's remaining interactions.

There are two kinds. Vectors: their inner products are the scores; users are stored, or folded in when somebody asks. The linear
model: it is never trained, and solved when somebody asks. A third kind needs one class here, and a line in `served_by`.

B users asked about, I' items that have a score, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Protocol

import numpy as np

from ray_eraser.aggregation import folding as folding_of
from ray_eraser.aggregation.foldin import FoldIn
from ray_eraser.config import EraserConfig, LinearConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import ShardData, all_keys, places_of, trained_pairs
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.evaluation import InRows, Scorer
from ray_eraser.kernels.products import Rows
from ray_eraser.models.linear import LinearModel, Slice

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
class ServedLinear:
    """The linear model over every shard's remaining interactions.

    Attributes:
        shards: the shards' interactions, in order.
        config: normalisation, ridge and steps.
    """

    shards: Sequence[ShardData]
    config: LinearConfig

    @cached_property
    def item_keys(self) -> np.ndarray:
        return all_keys([data.item_keys[data.train.item_rows()] for data in self.shards])

    @cached_property
    def solver(self) -> LinearModel:
        """One slice of all shards' pairs: in one process it is read two to three times as fast as a slice for each shard, and
        bits do not depend on how the pairs are divided.
        """
        user_keys = all_keys([data.user_keys for data in self.shards])
        pairs = trained_pairs(self.shards, user_keys, self.item_keys)
        whole = Slice.of(pairs, len(self.item_keys))
        return LinearModel.of([whole], len(user_keys), len(self.item_keys), self.config)

    def scores(self, user_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = [places_of_own(self.shards, int(key), self.item_keys) for key in user_keys]
        known = np.array([len(places) > 0 for places in own], bool)
        own = [places for places in own if len(places)]
        asked = Rows.of(np.cumsum([0, *map(len, own)]), np.concatenate([np.empty(0, np.int32), *own]))
        return known, self.solver.scores(asked)

    def same_bits(self, other: Served) -> bool:
        """A function of the interactions and the settings, so these are compared."""
        if not isinstance(other, ServedLinear) or self.config != other.config or len(self.shards) != len(other.shards):
            return False
        return all(mine.same(theirs) for mine, theirs in zip(self.shards, other.shards, strict=True))

    def in_rows(self, user_keys: np.ndarray, item_keys: np.ndarray) -> Scorer:
        return InRows(self, user_keys, item_keys)

    def vectors(self) -> None:
        return None


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
        linear = ServedLinear(shards, config.model)
        if isinstance(before, ServedLinear) and linear.same_bits(before):
            return before
        assert linear.solver is not None  # made now, so that the first read need not wait
        return linear
    is_folded = config.aggregation.foldin or excised
    folding = folding_of(model.in_rows(model.user_keys, model.item_keys), config) if is_folded else None
    if folding is not None:
        folding.users(Interactions.none())  # loads the compiled code now, so that the first read need not wait
    return ServedVectors(model, folding, shards)
