"""A model, a partition and an aggregator from outside of ray_eraser, as small as they can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field
from scipy import sparse

from ray_eraser.aggregation.mean import side_by_side
from ray_eraser.config import AggregationSettings, LossName, ModelSettings, PartitionSettings
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.models.base import BaseModel, Start, Table, TrainingState
from ray_eraser.partition import Partition


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
