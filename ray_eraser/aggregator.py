"""The aggregation as a part of a deployment: reads submodels from the store, writes the aggregate to it.

A plain class like `Shard`; on Ray it is one actor. What it keeps in memory is a cache of the files of one generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ray_eraser.aggregation import aggregate, excise, needs_interactions
from ray_eraser.aggregation.grams import Grams
from ray_eraser.aggregation.spectral import gram_sides
from ray_eraser.config import EraserConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic, environment
from ray_eraser.embeddings import Embeddings
from ray_eraser.ids import ShardId
from ray_eraser.models.base import START_LENGTH
from ray_eraser.store import FileRef, ShardData, ShardRecord, Store, embeddings_bytes
from ray_eraser.training.submodel import item_start

_T = TypeVar("_T")


@dataclass(frozen=True)
class AggregationOrder:
    """Which shards' files to aggregate.

    Attributes:
        items: the items' vocabulary of the generation.
        shards: all shards' files, in order.
        erased: pairs that must not count although a shard's file still has them (excision only).
        excised: shards whose submodels must not count (excision only).
    """

    items: FileRef
    shards: tuple[ShardRecord, ...]
    erased: Interactions
    excised: frozenset[ShardId] = frozenset()


@dataclass(frozen=True)
class Aggregated:
    """The aggregate's file, what its bits depend on besides the data, and the seconds that it took."""

    aggregate: FileRef
    environment: dict[str, str | int]
    seconds: float


class Aggregator:
    """Combines the submodels of one generation."""

    def __init__(self, store_uri: str, config: EraserConfig) -> None:
        self.config = config
        self._store = Store(store_uri)
        self._submodels: dict[FileRef, Embeddings] = {}
        self._data: dict[FileRef, ShardData] = {}
        self._union: tuple[list[FileRef], Interactions] = [], Interactions.none()
        self._grams = Grams()

    def identity(self) -> tuple[str, str]:
        """(storage path, fingerprint of the settings): what whoever attaches to this actor must agree with."""
        return self._store.uri, self.config.fingerprint()

    def ready(self) -> None:
        """Answers once the process is up and has loaded, and compiled, what it computes with."""
        environment(self.config.runtime.threads)
        if self.config.aggregation.foldin:
            from ray_eraser.aggregation.foldin import sweep

            made_up = Interactions.of(np.array([0], np.int32), np.array([0], np.int32))
            sweep(np.array([0], np.int32), np.ones((1, self.config.model.width), np.float32), made_up, 1.0, 1.0, 1)

    def aggregate(self, order: AggregationOrder) -> Aggregated:
        """Write the model of a generation."""
        started = time.perf_counter()
        interactions = self._interactions(order) if needs_interactions(self.config) else Interactions.none()
        model = aggregate(self._all_submodels(order), interactions, self.config, self._grams)
        written = self._store.write_aggregate(model)
        return Aggregated(written, environment(self.config.runtime.threads), time.perf_counter() - started)

    def excise(self, order: AggregationOrder) -> Embeddings:
        """The model to serve while the excised shards are trained anew. Returned and never stored: it lives for seconds."""
        submodels = zip(order.shards, self._all_submodels(order), strict=True)
        kept = [submodel for record, submodel in submodels if record.shard not in order.excised]
        if any(len(submodel.user_rows) for submodel in kept):
            nobody = Embeddings.empty(self.config.model.width)
            return excise(kept, Interactions.none(), nobody, self.config, self._grams)
        interactions = self._interactions(order).without(order.erased)
        return excise([], interactions, self._start(order.items, interactions), self.config)

    def products(self, order: AggregationOrder) -> tuple[np.ndarray, np.ndarray]:
        """What the submodels of a generation multiply to, users and items, for `warm` of another process."""
        with deterministic(self.config.runtime.threads, self.config.runtime.cores):
            return gram_sides(self._known_submodels(order), self._grams)

    def warm(self, order: AggregationOrder, products: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """Read a generation's submodels and multiply them, so that the next excision need not wait for either.

        Args:
            order: as for `aggregate`.
            products: of the same order, where another process has multiplied them already.
        """
        if products is None:
            self.products(order)
        else:
            self._grams.give(self._known_submodels(order), products)

    def _known_submodels(self, order: AggregationOrder) -> list[Embeddings]:
        return [submodel for submodel in self._all_submodels(order) if len(submodel.user_rows)]

    def _all_submodels(self, order: AggregationOrder) -> list[Embeddings]:
        self._let_go(order)
        self._submodels = _cached(self._submodels, [record.submodel for record in order.shards], self._store.read_embeddings)
        self._grams.keep(self._submodels.values())
        return [self._submodels[record.submodel] for record in order.shards]

    def _let_go(self, order: AggregationOrder) -> None:
        """Forget the interactions of every other generation: who looks at none of this one would keep what is erased now."""
        files = [record.interactions for record in order.shards]
        self._data = {file: data for file, data in self._data.items() if file in files}
        if self._union[0] != files:
            self._union = [], Interactions.none()

    def _interactions(self, order: AggregationOrder) -> Interactions:
        files = [record.interactions for record in order.shards]
        self._data = _cached(self._data, files, self._store.read_shard_data)
        if self._union[0] != files:
            self._union = files, Interactions.union([self._data[file].train for file in files])
        return self._union[1]

    def _start(self, items: FileRef, interactions: Interactions) -> Embeddings:
        rows = interactions.item_rows()
        width = self.config.model.width
        vectors = item_start(self._store.read_item_keys(items)[rows], self.config) * np.float32(START_LENGTH / width**0.5)
        nobody = Embeddings.empty(width)
        return Embeddings(nobody.user_rows, nobody.users, rows, vectors)


def rebuild_aggregate(store_uri: str, shards: Sequence[ShardRecord], config: EraserConfig) -> bytes:
    """What the file of the aggregate should contain, computed anew from the stored submodels: for the audit."""
    store = Store(store_uri)
    parts = [store.read_shard_data(record.interactions).train for record in shards] if needs_interactions(config) else []
    submodels = [store.read_embeddings(record.submodel) for record in shards]
    return embeddings_bytes(aggregate(submodels, Interactions.union(parts), config))


def _cached(cache: dict[FileRef, _T], wanted: Sequence[FileRef], read: Callable[[FileRef], _T]) -> dict[FileRef, _T]:
    """A cache of exactly the wanted files: what is superseded leaves the memory at once."""
    return {ref: cache[ref] if ref in cache else read(ref) for ref in wanted}
