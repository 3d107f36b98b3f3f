"""Served models: they score items for a user from the user's remaining interactions.

There are two kinds. The scores of vectors are their inner products; user vectors are stored, or folded in on request. The
linear model is never trained; it is solved on request. Other packages can add kinds: see `Untrained` and docs/extend.md.

B users of a request, I' items that have a score, D width.
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
"""Maximum number of folded-in users whose vectors are cached; they take a few megabytes."""


class Served(Protocol):
    """A model that answers reads. It depends only on the remaining interactions, the config and the seed."""

    @property
    def item_keys(self) -> np.ndarray:
        """The keys of the items that have a score, (I',) uint64, ascending."""
        ...

    def scores(self, user_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score every item for some users. Higher is better.

        The bits of a user's scores do not depend on the other users of the call.

        Args:
            user_keys: (B,) uint64, in any order.

        Returns:
            Mask (B,) of the users that the model can score, and the scores of these users, (n, I') float32.
        """
        ...

    def scores_for(self, owned: Sequence[np.ndarray]) -> np.ndarray:
        """Score every item for users given by their items. The users need not exist. Higher is better.

        The bits of a user's scores do not depend on the other users of the call.

        Args:
            owned: for each user, the ascending positions of the user's items in `item_keys`; at least one.

        Returns:
            The scores, (n, I') float32.
        """
        ...

    def same_bits(self, other: Served) -> bool:
        """Whether both models give every user scores with the same bits."""
        ...

    def in_rows(self, user_keys: np.ndarray, item_keys: np.ndarray) -> Scorer:
        """The same model in the rows of these ascending keys, for evaluation. Other users and items are left out."""
        ...

    def vectors(self) -> KeyedEmbeddings | None:
        """The vectors of all users and items; None if the model has no vectors."""
        ...


@dataclass(frozen=True, eq=False)
class ServedVectors:
    """Vectors whose inner products are the scores.

    Attributes:
        model: the aggregate, or an excision.
        folding: folds users in on request; None if the model has user vectors.
        shards: every shard's remaining interactions.
        solver: solves the users of `scores_for`; `folding` by default.
    """

    model: KeyedEmbeddings
    folding: FoldIn | None
    shards: Sequence[ShardData]
    solver: FoldIn | None = None
    _folded: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def item_keys(self) -> np.ndarray:
        return self.model.item_keys

    def scores(self, user_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        vectors = [self.vector_of(int(key)) for key in user_keys]
        # One product per user, because a product for several users might add in another order.
        found = [self.model.items @ vector for vector in vectors if vector is not None]
        known = np.array([vector is not None for vector in vectors], bool)
        return known, np.stack(found) if found else np.empty((0, len(self.item_keys)), np.float32)

    def scores_for(self, owned: Sequence[np.ndarray]) -> np.ndarray:
        solver = self.folding or self.solver
        assert solver is not None, "served_by gives every model a solver"
        found = [self.model.items @ cast(np.ndarray, solver.user(places)) for places in owned]
        return np.stack(found) if found else np.empty((0, len(self.item_keys)), np.float32)

    def vector_of(self, user_key: int) -> np.ndarray | None:
        """The vector of a user, (D,); None if the user has none. Folded-in vectors are cached."""
        if self.folding is None:
            return self.model.vector_of_user(user_key)
        vector = self._folded.get(user_key)
        if vector is None:
            vector = self.folding.user(places_of_own(self.shards, user_key, self.item_keys))
            if vector is None:
                return None
            if len(self._folded) >= _MOST_FOLDED:
                self._folded.clear()  # safe while other threads read: each uses `get` and solves a missing vector again
            self._folded[user_key] = vector
        return vector

    def same_bits(self, other: Served) -> bool:
        mine, theirs = self.vectors(), other.vectors()
        return theirs is not None and mine.same_bits(theirs)

    def in_rows(self, user_keys: np.ndarray, item_keys: np.ndarray) -> Scorer:
        return self.vectors().in_rows(user_keys, item_keys)

    def vectors(self) -> KeyedEmbeddings:
        """The vectors of all users and items, with the same bits as `vector_of`. Solves all users if the model has none."""
        if self.folding is None:
            return self.model
        user_keys = all_keys([data.user_keys for data in self.shards])
        pairs = trained_pairs(self.shards, user_keys, self.item_keys)
        return self.folding.users(pairs).keyed(user_keys, self.item_keys)


@dataclass(frozen=True, eq=False)
class _Whole:
    """The training pairs of all shards in one slice.

    In one process, reads of one slice are two to three times as fast as reads of a slice per shard. The bits do not depend on
    how the pairs are divided.

    Attributes:
        user_keys, item_keys: uint64, ascending, the keys of the users and items that have a pair.
        pairs: the pairs, in rows of these keys.
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
        """The same result as `of` for shards without these pairs, in a tenth of the time."""
        if not len(lost):
            return self
        pairs, users_left, items_left = self.pairs.without(lost.in_rows(self.user_keys, self.item_keys))
        return _Whole(self.user_keys[users_left], self.item_keys[items_left], pairs)


def _lost(before: Sequence[ShardData], after: Sequence[ShardData]) -> KeyedPairs | None:
    """The training pairs that the shards lost; None if a shard gained pairs, or if the number of shards differs."""
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
            # Arrays from files are read-only, and numba would compile the loop again for them.
            is_part, places = lost_pairs(*(np.require(array, requirements="W") for array in arrays))
            if not is_part:
                return None
            lost.append(former.keyed(former.train.take(places)))
    return KeyedPairs.union(lost)


class Untrained(Protocol):
    """A model of another package that is never trained. It is made from its settings; see docs/extend.md."""

    def served(self, shards: Sequence[ShardData], seed: int) -> Served:
        """Make the served model from every shard's remaining interactions. It must depend only on arguments and settings.

        Args:
            shards: the shards' interactions, in order.
            seed: the seed for all random numbers.
        """
        ...


@dataclass(frozen=True, eq=False)
class OfInteractions(ABC):
    """The base class of models without vectors. They depend only on the remaining interactions and the settings.

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
    def scores_for(self, owned: Sequence[np.ndarray]) -> np.ndarray:
        """See `Served`."""

    def scores(self, user_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = [places_of_own(self.shards, int(key), self.item_keys) for key in user_keys]
        return np.array([len(places) > 0 for places in own], bool), self.scores_for([places for places in own if len(places)])

    def same_bits(self, other: Served) -> bool:
        return isinstance(other, type(self)) and self.is_of(other.shards, other.config)

    def is_of(self, shards: Sequence[ShardData], config: ModelSettings) -> bool:
        """Whether these interactions and settings would give the same model, bit for bit."""
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
        solver: the linear model of these pairs.
    """

    config: LinearConfig
    whole: _Whole
    solver: LinearModel

    @classmethod
    def of(cls, shards: Sequence[ShardData], config: LinearConfig, before: ServedLinear | None = None) -> ServedLinear:
        """Make the model from the shards.

        If `before` has all pairs of `shards`, the model is derived from it, which is faster and gives the same bits.
        """
        lost = None if before is None else _lost(before.shards, shards)
        whole = _Whole.of(shards) if before is None or lost is None else before.whole.without(lost)
        return cls(shards, config, whole, LinearModel.of([whole.pairs], len(whole.user_keys), len(whole.item_keys), config))

    @property
    def item_keys(self) -> np.ndarray:
        return self.whole.item_keys

    def scores_for(self, owned: Sequence[np.ndarray]) -> np.ndarray:
        asked = Rows.of(np.cumsum([0, *map(len, owned)]), np.concatenate([np.empty(0, np.int32), *owned]))
        return self.solver.scores(asked)


@cache
def _load(config: LinearConfig) -> None:
    """Compile or load the solver's code, so that the first read need not wait."""
    one = Interactions.of(np.array([0], np.int32), np.array([0], np.int32))
    LinearModel.of([Slice.of(one, 1)], 1, 1, config).scores(Rows.of(np.zeros(1, np.int64), np.empty(0, np.int32)))


def places_of_own(shards: Sequence[ShardData], user_key: int, item_keys: np.ndarray) -> np.ndarray:
    """Ascending positions in `item_keys` (ascending) of the items of a user's training pairs."""
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
    """Make the served model of a generation.

    Args:
        model: the aggregate of the generation, or an excision.
        shards: every shard's remaining interactions.
        config: the settings of the generation.
        excised: whether the model is an excision, which has no user vectors.
        before: the model served until now. It is returned if the new model would be the same.
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
    solver = folding_of(model.in_rows(model.user_keys, model.item_keys), config)
    if not (config.aggregation.foldin or excised):
        return ServedVectors(model, None, shards, solver)
    solver.users(Interactions.none())  # load the compiled code now, so that the first read need not wait
    return ServedVectors(model, solver, shards)
