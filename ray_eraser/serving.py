"""The served model: the published generation without the data of accepted requests. It is replaced as a whole."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from ray_eraser.aggregator import AggregationOrder
from ray_eraser.config import EraserConfig
from ray_eraser.data.keyed import KeyedPairs
from ray_eraser.devices import by_torch
from ray_eraser.errors import DeploymentError, InputError, StoreError
from ray_eraser.generation import Change, Loaded
from ray_eraser.pool import ShardPool
from ray_eraser.recommend import Snapshot
from ray_eraser.served import served_by
from ray_eraser.store import Store
from ray_eraser.unlearning.ledger import GenerationRow, RequestRow
from ray_eraser.vectors import Vectors

log = logging.getLogger(__name__)


class Serving:
    """Holds the published generation, the pending change to it, and the snapshot that answers reads.

    Args:
        deployment: its name, for errors.
        store: the deployment's.
        pool: the processes that serve.
        config: the settings of the pool.
    """

    def __init__(self, deployment: str, store: Store, pool: ShardPool, config: EraserConfig) -> None:
        # Held while the served model is replaced. Shards train under it only to make a damaged submodel again.
        self.lock = threading.RLock()
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
        """The published generation and the pending change to it.

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
        """The snapshot that answers reads. Raises as `change`."""
        if self._snapshot is None:
            raise DeploymentError(self._deployment, "nothing has been trained yet: call fit first")
        return self._snapshot

    def read(self, published: GenerationRow) -> Loaded:
        """Load a published generation, reusing the parts that it shares with the generation in memory."""
        loaded = self._change.before if self._change is not None else None
        if loaded is None or loaded.number != published.number:
            try:
                return Loaded.read(self._store, published, loaded)
            except StoreError as error:
                manifest = self._store.read_manifest(published.digest)
                if error.path != manifest.aggregate.path:
                    raise
                log.error("the aggregate is damaged and is made again", extra={"deployment": self._deployment})  # noqa: TRY400 - a traceback names users
                self.pool.aggregate(AggregationOrder(manifest.shards, KeyedPairs.none()))  # the same bytes, or refused again
                return Loaded.read(self._store, published, loaded)
        return loaded

    def replace(self, loaded: Loaded, waiting: Iterable[RequestRow], pool: ShardPool, config: EraserConfig) -> None:
        """Serve a generation without the data of waiting requests, from a pool with the generation's settings."""
        with self.lock:
            if pool is not self.pool:
                former, self.pool = self.pool, pool
                former.close()
            self.config = config
            # Before the receipt, which says that no data is left. On the CPU, a model without training leaves none behind.
            if config.model.is_trained or by_torch(config.runtime.known_device):
                pool.forget(AggregationOrder(loaded.manifest.shards, KeyedPairs.none()))
            self.leave_out(Change.of(loaded, waiting))

    def drop(self) -> None:
        """Stop holding a generation."""
        with self.lock:
            self._change = self._snapshot = None

    def mask(self, change: Change) -> None:
        """Keep the served model, but hide the users and items that a change erases. `leave_out` follows, and may fail."""
        with self.lock:
            served, shards = self.snapshot.served, list(change.rest.values())
            self._snapshot = Snapshot(served, change.left_users, change.left_items, shards, change.before.number)

    def leave_out(self, change: Change) -> None:
        """Serve a generation without the data that a change erases.

        The aggregate excludes the submodels of shards that own erased data. Users are folded in on the remaining interactions.
        A model without training consists of the remaining interactions.
        """
        with self.lock:
            before = change.before
            erased = KeyedPairs.union(list(change.erased.values()))
            order = AggregationOrder(before.manifest.shards, erased, frozenset(change.erased))
            is_trained, shards = self.config.model.is_trained, list(change.rest.values())
            model = self.pool.excise(order) if change.erased and is_trained else before.model
            so_far = self._snapshot.served if self._snapshot is not None else None
            served = served_by(model, shards, self.config, excised=bool(change.erased), before=so_far)
            self._change = change
            self._snapshot = Snapshot(served, change.left_users, change.left_items, shards, before.number)
            if is_trained and not change.erased:
                self.pool.prepare_excision(order)

    def vectors(self) -> Vectors:
        """The served vectors, for use in another system; see `Vectors`.

        Raises:
            InputError: the model has no vectors.
        """
        with self.lock:
            change, snapshot = self.change, self.snapshot
        return vectors_of(change, snapshot, self.config.model.kind)


def vectors_of(change: Change, snapshot: Snapshot, kind: str) -> Vectors:
    """The vectors of a snapshot, for use in another system.

    Args:
        change: the generation and the pending change of the snapshot.
        snapshot: the served snapshot.
        kind: kind of its model.

    Raises:
        InputError: the model has no vectors.
    """
    vectors = snapshot.served.vectors()
    if vectors is None:
        way_out = "ask for recommendations, or repartition with a model that has vectors, such as model.kind=wmf"
        raise InputError(f"a {kind} model has no vectors: {way_out}")
    serving = "excision" if change.erased else "generation"
    return Vectors.of(vectors, snapshot.users, snapshot.items, change.before.number, change.before.digest, serving)
