"""One shard: owns a part of the interactions and the submodel learned from it.

A plain class; on Ray it is an actor (runtime/actors.py). It is made from paths and settings only and reads what it owns from
the store, so that a restart cannot bring erased pairs back.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from ray_eraser.config import EraserConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.errors import StaleEpochError
from ray_eraser.ids import Epoch, ShardId
from ray_eraser.models import make_model
from ray_eraser.store import FileRef, ShardRecord, Store, embeddings_bytes
from ray_eraser.training.submodel import train_submodel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardOrder:
    """What a coordinator tells one shard to do: train on `interactions` without `erased`.

    Repeating an order gives the same files, so that a call which ran twice did no more than one that ran once.

    Attributes:
        epoch: of the coordinator that gives the order.
        users: the users' vocabulary of the generation.
        items: the items' vocabulary of the generation.
        interactions: the shard's data as they stand in the current generation.
        erased: the pairs to remove first; none for a first training.
    """

    epoch: Epoch
    users: FileRef
    items: FileRef
    interactions: FileRef
    erased: Interactions


@dataclass(frozen=True)
class Trained:
    """A shard's answer: its new files, and the seconds that they took."""

    record: ShardRecord
    seconds: float


class Shard:
    """Removes pairs from its interactions and trains its submodel anew, both in its own files only."""

    def __init__(self, shard_id: ShardId, store_uri: str, config: EraserConfig) -> None:
        self.shard_id = shard_id
        self.config = config
        self._store = Store(store_uri)
        self._epoch = Epoch(0)

    def identity(self) -> tuple[str, str]:
        """(storage path, fingerprint of the settings): what whoever attaches to this shard must agree with."""
        return self._store.uri, self.config.fingerprint()

    def ready(self) -> None:
        """Answers once the process is up and has loaded what it trains with."""
        make_model(self.config.model)

    def erase(self, order: ShardOrder) -> Trained:
        """Write the interactions without the erased pairs and a submodel trained on them from scratch.

        Raises:
            StaleEpochError: another coordinator with a higher epoch has given orders before.
        """
        self._obey(order.epoch)
        started = time.perf_counter()
        data = self._store.read_shard_data(order.interactions)
        interactions = order.interactions
        if len(order.erased):
            data = data.without(order.erased)
            interactions = self._store.write_shard_data(self.shard_id, data)
        # From scratch: the old weights would carry the erased pairs into the new ones.
        item_keys = self._store.read_item_keys(order.items)
        submodel = train_submodel(data.train, data.valid, item_keys, self.config, self.shard_id)
        files = self._store.write_submodel(self.shard_id, submodel)
        seconds = time.perf_counter() - started
        log.info("shard trained", extra={"shard": self.shard_id, "pairs": len(data.train), "seconds": round(seconds, 3)})
        return Trained(ShardRecord(self.shard_id, interactions, files, len(data.train), len(data.valid)), seconds)

    def _obey(self, epoch: Epoch) -> None:
        if epoch < self._epoch:
            raise StaleEpochError(f"shard {self.shard_id}", self._epoch, epoch)
        self._epoch = epoch


def rebuild_submodel(store_uri: str, record: ShardRecord, items: FileRef, config: EraserConfig) -> bytes:
    """What the file of a shard's submodel should contain, computed anew from its stored interactions: for the audit."""
    store = Store(store_uri)
    data = store.read_shard_data(record.interactions)
    return embeddings_bytes(train_submodel(data.train, data.valid, store.read_item_keys(items), config, record.shard))
