"""Two models, a partition and an aggregator from outside of ray_eraser, as small as they can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import Field
from scipy import sparse

from ray_eraser.aggregation.mean import side_by_side
from ray_eraser.config import AggregationSettings, LossName, ModelSettings, PartitionSettings
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import ShardData, all_keys, trained_pairs
from ray_eraser.embeddings import Embeddings
from ray_eraser.models.base import BaseModel, Start, Table, TrainingState
from ray_eraser.partition import Partition
from ray_eraser.served import OfInteractions


class AveragesConfig(ModelSettings):
    """What is popular among those who share items with a user."""

    kind: Literal["averages"] = "averages"
    epochs: int = Field(3, ge=1)
    """Rounds in which users become the mean of their items, and items the mean of their users."""
    keep: float = Field(0.1, ge=0, lt=1)
    """Share of an item's vector that stays what it was in a round."""


class Averages(BaseModel):
    """Vectors that are means of means. Its state is the items' vectors: the users' follow from them."""

    Settings = AveragesConfig
    config: AveragesConfig

    def __init__(self, config: AveragesConfig) -> None:
        self.config = config

    def train(
        self, before: TrainingState, interactions: Interactions, valid: Interactions, start: Start, epochs: int
    ) -> TrainingState:
        compact = interactions.compact()
        by_user = compact.matrix()
        fresh = start.items / np.float32(self.config.width**0.5)
        state = TrainingState(items=Table(compact.item_rows, {"vectors": fresh})).after(before)
        items, keep = state.items["vectors"], np.float32(self.config.keep)
        for _ in range(epochs):
            items = keep * items + (1 - keep) * _means(by_user.T.tocsr(), _means(by_user, items))
        return TrainingState(items=Table(compact.item_rows, {"vectors": items}))

    def embeddings(self, state: TrainingState, interactions: Interactions) -> Embeddings:
        compact, items = interactions.compact(), state.items["vectors"]
        return Embeddings(compact.user_rows, _means(compact.matrix(), items), compact.item_rows, items)


def _means(matrix: sparse.csr_matrix, vectors: np.ndarray) -> np.ndarray:
    """Of every row, the mean of its columns' vectors."""
    sums = np.asarray(matrix @ vectors, np.float32)
    return sums / np.diff(matrix.indptr).astype(np.float32)[:, None]


class NeighboursConfig(ModelSettings):
    """What those who share items with a user have. Nothing is trained: it counts when somebody asks."""

    is_trained = False

    kind: Literal["neighbours"] = "neighbours"
    epochs: Literal[1] = 1
    shrink: int = Field(10, ge=0)
    """An item's count is divided by the root of its interactions and so many more: popular items alone would win otherwise."""


class Neighbours:
    """Item to item: an item scores what its users share with the user who asks."""

    Settings = NeighboursConfig

    def __init__(self, config: NeighboursConfig) -> None:
        self.config = config

    def served(self, shards: Sequence[ShardData], seed: int) -> ServedNeighbours:
        return ServedNeighbours(shards, self.config)


@dataclass(frozen=True, eq=False)
class ServedNeighbours(OfInteractions):
    """Counts are whole numbers, so no order of additions changes a bit."""

    config: NeighboursConfig

    @cached_property
    def item_keys(self) -> np.ndarray:
        return all_keys([data.item_keys[data.train.item_rows()] for data in self.shards])

    @cached_property
    def _by_user(self) -> sparse.csr_matrix:
        user_keys = all_keys([data.user_keys for data in self.shards])
        pairs = trained_pairs(self.shards, user_keys, self.item_keys)
        return pairs.matrix(len(user_keys), len(self.item_keys)).astype(np.int64)

    @cached_property
    def _usual(self) -> np.ndarray:
        return np.sqrt(np.asarray(self._by_user.sum(0)).ravel() + self.config.shrink)

    def scores_for(self, owned: Sequence[np.ndarray]) -> np.ndarray:
        scores = np.empty((len(owned), len(self.item_keys)), np.float32)
        for row, places in zip(scores, owned, strict=True):
            row[:] = self._row(places)
        return scores

    def _row(self, places: np.ndarray) -> np.ndarray:
        asked = np.zeros(len(self.item_keys), np.int64)
        asked[places] = 1
        return (self._by_user.T @ (self._by_user @ asked)) / self._usual


class ItemHashedConfig(PartitionSettings):
    """By keyed hash of the item: an item's erasure touches one shard, a user's many."""

    kind: Literal["item_hashed"] = "item_hashed"

    @property
    def is_learned(self) -> bool:
        return False  # a pair's place depends on its own item's key alone


class ItemHashed:
    Settings = ItemHashedConfig

    def __init__(self, config: ItemHashedConfig) -> None:
        self.config = config

    def divide(
        self,
        interactions: Interactions,
        user_keys: np.ndarray,
        item_keys: np.ndarray,
        seed: int,
        embeddings: Embeddings | None,
    ) -> Partition:
        shards = item_keys[interactions.items] % np.uint64(self.config.n_shards)
        return Partition(self.config.n_shards, shards.astype(np.int16))


class BySizeConfig(AggregationSettings):
    """Scores added up, each submodel's weighted by how many users it knows."""

    kind: Literal["by_size"] = "by_size"
    power: float = Field(0.5, ge=0, le=2)
    """Of the number of users; 0 weighs all alike."""


class BySize:
    Settings = BySizeConfig

    def __init__(self, config: BySizeConfig) -> None:
        self.config = config

    def combine(self, submodels: Sequence[Embeddings], interactions: Interactions, seed: int, loss: LossName) -> Embeddings:
        weights = np.array([len(submodel.user_rows) for submodel in submodels], np.float64) ** self.config.power
        weights /= weights.sum()
        weighed = [
            Embeddings(submodel.user_rows, submodel.users * np.float32(weight), submodel.item_rows, submodel.items)
            for submodel, weight in zip(submodels, weights, strict=True)
        ]
        return side_by_side(weighed)
