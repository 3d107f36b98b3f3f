"""The aggregation in a deployment: reads submodels from the store, and writes the aggregate to it.

A plain class like `Shard`; on Ray it is one actor. Its memory is a cache of the files of one generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from ray_eraser.aggregation import GramBlocks, aggregate, excise, make_grams, needs_interactions, products, with_users
from ray_eraser.aggregation.grams import Grams
from ray_eraser.config import EraserConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData, all_keys, places_of, trained_pairs
from ray_eraser.determinism import environment
from ray_eraser.devices import by_torch, computing, described
from ray_eraser.embeddings import Embeddings, KeyedEmbeddings
from ray_eraser.ids import ShardId
from ray_eraser.models.base import START_LENGTH
from ray_eraser.store import FileRef, ShardRecord, Store, embeddings_bytes
from ray_eraser.training.submodel import item_start

_T = TypeVar("_T")


@dataclass(frozen=True)
class AggregationOrder:
    """Which shards' files to aggregate.

    Attributes:
        shards: the files of all shards, in order.
        erased: pairs to ignore although a shard's file still has them (excision only).
        excised: shards whose submodels to ignore (excision only).
    """

    shards: tuple[ShardRecord, ...]
    erased: KeyedPairs
    excised: frozenset[ShardId] = frozenset()


@dataclass(frozen=True)
class Aggregated:
    """The aggregate's file, the environment that its bits depend on, and the duration in seconds."""

    aggregate: FileRef
    environment: dict[str, str | int]
    seconds: float


class Aggregator:
    """Combines the submodels of one generation."""

    def __init__(self, store_uri: str, config: EraserConfig) -> None:
        self.config = config
        self._store = Store(store_uri)
        self._submodels: dict[FileRef, KeyedEmbeddings] = {}
        self._users, self._items = _Numbering(), _Numbering()
        self._in_rows: dict[FileRef, Embeddings] = {}
        self._data: dict[FileRef, ShardData] = {}
        # An excision runs on the CPU, because a GPU may be missing, full or broken. Its bits are stored nowhere.
        self._excising = config.with_device("cpu")
        self._grams_on_host = Grams()

    def identity(self) -> tuple[str, str]:
        """(storage path, fingerprint of the settings). A pool that attaches to this actor must have the same."""
        return self._store.uri, self.config.fingerprint()

    def described(self) -> dict[str, str]:
        """The device of the aggregation; see `devices.described`."""
        return described(self.config.runtime.known_device)

    @cached_property
    def _grams(self) -> GramBlocks:
        """The products on the device. Made on first use, because there may be no GPU."""
        return make_grams(self.config)

    def ready(self) -> None:
        """Return when the process is up and has loaded and compiled its code.

        Raises:
            DeviceError: it needs a GPU, and finds none.
        """
        runtime, width = self.config.runtime, self.config.model.width
        environment(runtime.threads, runtime.known_device)
        if not self.config.model.is_trained:
            return
        row = np.array([0], np.int32)
        nobody, made_up = Embeddings.empty(width), Interactions.of(row, row)
        start = Embeddings(nobody.user_rows, nobody.users, row, np.ones((1, width), np.float32))
        settled = self.config.settled(1.0)  # a stand-in, because no alpha0 has been chosen from a log yet
        with computing(runtime.known_device, runtime.memory_share, "the aggregator"):
            if by_torch(runtime.known_device):
                excise([Embeddings(row, start.items, row, start.items)], made_up, nobody, settled)
            if self.config.aggregation.foldin:
                excise([], made_up, start, settled)

    def aggregate(self, order: AggregationOrder) -> Aggregated:
        """Aggregate the submodels of a generation and write the result."""
        started = time.perf_counter()
        runtime = self.config.runtime
        with computing(runtime.known_device, runtime.memory_share, "the aggregation"):
            submodels = self._all_submodels(order)
            interactions = self._interactions(order) if needs_interactions(self.config) else Interactions.none()
            model = aggregate(submodels, interactions, self.config, self._grams)
        written = self._store.write_aggregate(model.keyed(self._users.keys, self._items.keys))
        return Aggregated(written, environment(runtime.threads, runtime.known_device), time.perf_counter() - started)

    def excise(self, order: AggregationOrder) -> KeyedEmbeddings:
        """The model to serve while the excised shards train again. It is returned, and never stored: it lives for seconds."""
        submodels = zip(order.shards, self._all_submodels(order), strict=True)
        kept = [submodel for record, submodel in submodels if record.shard not in order.excised]
        nobody = Embeddings.empty(self.config.model.width)
        if any(len(submodel.user_rows) for submodel in kept):
            model = excise(kept, Interactions.none(), nobody, self._excising, self._grams_on_host)
            return model.keyed(self._users.keys, self._items.keys)
        shards = [data.without(order.erased) for data in self._shards(order)]
        user_keys, item_keys = all_keys([data.user_keys for data in shards]), all_keys([data.item_keys for data in shards])
        interactions = trained_pairs(shards, user_keys, item_keys)
        rows = interactions.item_rows()
        vectors = item_start(item_keys[rows], self.config) * np.float32(START_LENGTH / self.config.model.width**0.5)
        start = Embeddings(nobody.user_rows, nobody.users, rows, vectors)
        return excise([], interactions, start, self._excising).keyed(user_keys, item_keys)

    def products(self, order: AggregationOrder) -> tuple[np.ndarray, np.ndarray]:
        """The products of a generation's submodels, users' and items', for `warm` in another process."""
        runtime = self.config.runtime
        with computing(runtime.known_device, runtime.memory_share, "the products of the submodels"):
            return products(self._all_submodels(order), self.config, self._grams)

    def warm(self, order: AggregationOrder, products: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """Read and multiply a generation's submodels, so that the next excision waits for neither.

        Args:
            order: as for `aggregate`.
            products: the products for the same order, if another process has computed them.
        """
        known = [submodel for submodel in self._all_submodels(order) if len(submodel.user_rows)]
        self._grams_on_host.give(known, self.products(order) if products is None else products)

    def forget(self, order: AggregationOrder) -> None:
        """Drop all data in memory that does not belong to a generation. Reads no file."""
        self._drop_superseded(order)
        wanted = {record.submodel for record in order.shards}
        if not wanted >= self._submodels.keys():
            self._hold({ref: submodel for ref, submodel in self._submodels.items() if ref in wanted})

    def _hold(self, submodels: dict[FileRef, KeyedEmbeddings]) -> None:
        """Keep these submodels, their rows and their products. Keys that none of them has are dropped."""
        self._submodels = submodels
        users = self._users.rows_of({ref: submodel.user_keys for ref, submodel in submodels.items()})
        items = self._items.rows_of({ref: submodel.item_keys for ref, submodel in submodels.items()})
        self._in_rows = {
            ref: Embeddings(users[ref], submodel.users, items[ref], submodel.items) for ref, submodel in submodels.items()
        }
        self._grams_on_host.keep(self._in_rows.values())
        if "_grams" in vars(self):
            self._grams.keep(self._in_rows.values())

    def _all_submodels(self, order: AggregationOrder) -> list[Embeddings]:
        """The submodels in this process's rows, which number the keys of `_users` and `_items`."""
        self._drop_superseded(order)
        wanted = [record.submodel for record in order.shards]
        if wanted != list(self._submodels):
            self._hold(_cached(self._submodels, wanted, self._store.read_embeddings))
        return [self._in_rows[ref] for ref in wanted]

    def _drop_superseded(self, order: AggregationOrder) -> None:
        """Drop cached interactions of other generations.

        An aggregation that reads no interactions would otherwise keep erased pairs in memory.
        """
        files = {record.interactions for record in order.shards}
        self._data = {file: data for file, data in self._data.items() if file in files}

    def _shards(self, order: AggregationOrder) -> list[ShardData]:
        files = [record.interactions for record in order.shards]
        self._data = _cached(self._data, files, self._store.read_shard_data)
        return [self._data[file] for file in files]

    def _interactions(self, order: AggregationOrder) -> Interactions:
        """All training interactions, in the rows of `_all_submodels`. A submodel has every id that it learned from."""
        return trained_pairs(self._shards(order), self._users.keys, self._items.keys)


class _Numbering:
    """Row numbers for the ids of one kind in some models, in the order of keys and without gaps.

    A new generation changes few models. The rows of the other models are shifted instead of looked up again.
    """

    def __init__(self) -> None:
        self.keys = np.empty(0, np.uint64)
        self._rows: dict[FileRef, np.ndarray] = {}

    def rows_of(self, keys_of: Mapping[FileRef, np.ndarray]) -> dict[FileRef, np.ndarray]:
        """(n,) int32 rows of every model's ids, given their ascending keys. Afterwards `keys` has the keys of these models."""
        rows = {ref: self._rows[ref] for ref in keys_of if ref in self._rows}
        new = {ref: keys for ref, keys in keys_of.items() if ref not in rows}
        places = {ref: places_of(keys, self.keys) for ref, keys in new.items()}
        missing = [keys[places[ref] < 0] for ref, keys in new.items()]
        if any(map(len, missing)):
            wider = all_keys([self.keys, *missing])
            moved = np.searchsorted(wider, self.keys).astype(np.int32)
            rows = {ref: moved[old] for ref, old in rows.items()}
            places = {ref: np.searchsorted(wider, keys).astype(np.int32) for ref, keys in new.items()}
            self.keys = wider
        rows |= places
        present = np.zeros(len(self.keys), bool)
        for known in rows.values():
            present[known] = True
        if not present.all():
            moved = np.cumsum(present, dtype=np.int32) - np.int32(1)
            rows = {ref: moved[old] for ref, old in rows.items()}
            self.keys = self.keys[present]
        self._rows = rows
        return rows


def aggregate_of(submodels: Sequence[KeyedEmbeddings], shards: Sequence[ShardData], config: EraserConfig) -> KeyedEmbeddings:
    """The aggregate of all shards' submodels, as a deployment stores it.

    Args:
        submodels: one for each shard, in order.
        shards: their interactions; used only if `needs_interactions`.
        config: as for `aggregation.aggregate`.
    """
    user_keys = all_keys([submodel.user_keys for submodel in submodels])
    item_keys = all_keys([submodel.item_keys for submodel in submodels])
    interactions = trained_pairs(shards, user_keys, item_keys) if needs_interactions(config) else Interactions.none()
    rows = [submodel.in_rows(user_keys, item_keys) for submodel in submodels]
    return aggregate(rows, interactions, config).keyed(user_keys, item_keys)


def folded_in(model: KeyedEmbeddings, shards: Sequence[ShardData], config: EraserConfig) -> KeyedEmbeddings:
    """A stored aggregate as it is served: with the shards' users folded in, if the settings ask for it."""
    if not config.aggregation.foldin:
        return model
    user_keys, item_keys = all_keys([data.user_keys for data in shards]), all_keys([data.item_keys for data in shards])
    rows = model.in_rows(user_keys, item_keys)
    return with_users(rows, trained_pairs(shards, user_keys, item_keys), config).keyed(user_keys, item_keys)


def rebuild_aggregate(store_uri: str, shards: Sequence[ShardRecord], config: EraserConfig) -> bytes:
    """Compute, for the audit, the expected content of the aggregate's file from the stored submodels."""
    store = Store(store_uri)
    data = [store.read_shard_data(record.interactions) for record in shards] if needs_interactions(config) else []
    submodels = [store.read_embeddings(record.submodel) for record in shards]
    with computing(config.runtime.known_device, config.runtime.memory_share, "the aggregation"):
        return embeddings_bytes(aggregate_of(submodels, data, config))


def _cached(cache: dict[FileRef, _T], wanted: Sequence[FileRef], read: Callable[[FileRef], _T]) -> dict[FileRef, _T]:
    """A cache of exactly the wanted files, so that superseded data leaves the memory at once."""
    return {ref: cache[ref] if ref in cache else read(ref) for ref in wanted}
