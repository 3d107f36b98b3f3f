"""What is served: the published generation, without what accepted requests are about. It changes as a whole."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from ray_eraser.aggregation import folding as folding_of
from ray_eraser.aggregator import AggregationOrder
from ray_eraser.config import EraserConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs
from ray_eraser.errors import DeploymentError
from ray_eraser.generation import Change, Loaded
from ray_eraser.pool import ShardPool
from ray_eraser.recommend import Snapshot
from ray_eraser.store import Store
from ray_eraser.unlearning.ledger import GenerationRow, RequestRow
from ray_eraser.vectors import Vectors


class Serving:
    """The generation in memory, what is being forgotten of it, and the snapshot that reads are answered from.

    Args:
        deployment: its name, for errors.
        store: its files.
        pool: its processes.
        config: the settings that these have.
    """

    def __init__(self, deployment: str, store: Store, pool: ShardPool, config: EraserConfig) -> None:
        self.lock = threading.RLock()  # what is served changes as a whole; never held while shards train
        self.pool, self.config = pool, config
        self._deployment, self._store = deployment, store
        self._change: Change | None = None
        self._snapshot: Snapshot | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been trained yet."""
        return self._change is None

    @property
    def change(self) -> Change:
        """The published generation, and what is being forgotten of it.

        Raises:
            DeploymentError: nothing has been trained yet.
        """
        if self._change is None:
            raise DeploymentError(self._deployment, "nothing has been trained yet: call fit first")
        return self._change

    @property
    def loaded(self) -> Loaded:
        """The published generation. Raises as `change`."""
        return self.change.before

    @property
    def snapshot(self) -> Snapshot:
        """What reads are answered from. Raises as `change`."""
        if self._snapshot is None:
            raise DeploymentError(self._deployment, "nothing has been trained yet: call fit first")
        return self._snapshot

    def read(self, published: GenerationRow) -> Loaded:
        """A published generation; what it shares with the one in memory is not read again."""
        loaded = self._change.before if self._change is not None else None
        if loaded is None or loaded.number != published.number:
            loaded = Loaded.read(self._store, published, loaded)
        return loaded

    def replace(self, loaded: Loaded, waiting: Iterable[RequestRow], pool: ShardPool, config: EraserConfig) -> None:
        """Serve a generation without what waiting requests are about, with the processes that have its settings."""
        with self.lock:
            if pool is not self.pool:
                former, self.pool = self.pool, pool
                former.close()
            self.config = config
            self.leave_out(Change.of(loaded, waiting))

    def leave_out(self, change: Change) -> None:
        """Serve a generation without what is being forgotten of it.

        The submodels of shards that own any of it are left out of the aggregate; the users are folded in on what remains.
        """
        with self.lock:
            before = change.before
            erased = KeyedPairs.union(list(change.erased.values()))
            order = AggregationOrder(before.manifest.shards, erased, frozenset(change.erased))
            model = self.pool.excise(order) if change.erased else before.model
            is_folded = self.config.aggregation.foldin or bool(change.erased)
            folding = folding_of(model.in_rows(model.user_keys, model.item_keys), self.config) if is_folded else None
            if folding is not None:
                folding.users(Interactions.none())  # loads what it computes with: the first read should not wait for that
            self._change = change
            self._snapshot = Snapshot(
                model, folding, change.left_users, change.left_items, list(change.rest.values()), before.number
            )
            if not change.erased:
                self.pool.prepare_excision(order)

    def vectors(self) -> Vectors:
        """What is served now, for whoever serves it elsewhere; see `Vectors`."""
        with self.lock:
            change, snapshot = self.change, self.snapshot
        serving = "excision" if change.erased else "generation"
        return Vectors.of(
            snapshot.embeddings(), snapshot.users, snapshot.items, change.before.number, change.before.digest, serving
        )
