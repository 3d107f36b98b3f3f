"""One shard: owns a part of the interactions and the submodel learned from it.

A plain class; on Ray it is an actor (runtime/actors.py). It is made from paths and settings only and reads what it owns from
the store, so that a restart cannot bring erased pairs back.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, fields

import numpy as np

from ray_eraser.config import EraserConfig, TrainingConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.errors import StaleEpochError, StoreError
from ray_eraser.ids import Epoch, ShardId
from ray_eraser.models.base import UNTRAINED, TrainingState
from ray_eraser.store import FileRef, ShardData, ShardRecord, Store, checkpoint_bytes, embeddings_bytes
from ray_eraser.training.slices import first_affected, slices_of_users
from ray_eraser.training.submodel import train_submodel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardOrder:
    """What a coordinator tells one shard to do: train on `interactions` without `erased`.

    Repeating an order gives the same files, so that a call which ran twice did no more than one that ran once.

    Attributes:
        epoch: of the coordinator that gives the order.
        users: the users' vocabulary of the generation in the making; None without slices, where nobody need be looked up.
        items: the items' vocabulary of the generation in the making.
        interactions: the shard's data as they stand in the current generation.
        erased: the pairs to remove first; none for a first training.
        learned: the pairs to add then.
        users_before: the users' vocabulary of the current generation, where there is one and slices need it.
        checkpoints: the shard's as they stand in the current generation; none for a first training.
    """

    epoch: Epoch
    users: FileRef | None
    items: FileRef
    interactions: FileRef
    erased: Interactions
    learned: Interactions = field(default_factory=Interactions.none)
    users_before: FileRef | None = None
    checkpoints: tuple[FileRef, ...] = ()

    def repeats(self, other: ShardOrder) -> bool:
        """Whether it says the same in everything."""
        return all(
            mine.codes().tobytes() == theirs.codes().tobytes() if isinstance(mine, Interactions) else mine == theirs
            for mine, theirs in ((getattr(self, one.name), getattr(other, one.name)) for one in fields(self))
        )


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
        """Answers once the process is up and has loaded, and compiled, what it trains with."""
        made_up = Interactions.of(np.array([0, 0, 1], np.int32), np.array([0, 1, 1], np.int32))
        settled = self.config.settled(1.0)  # where nothing has been chosen from a log yet
        brief = settled.model_copy(
            update={"model": settled.model.model_copy(update={"epochs": 1}), "training": TrainingConfig()}
        )
        train_submodel(made_up, Interactions.none(), np.arange(2, dtype=np.uint64), brief, self.shard_id)

    def erase(self, order: ShardOrder) -> Trained:
        """Write the interactions without the erased pairs and with the learned ones, and a submodel trained on them.

        From scratch, or with slices from the last checkpoint that is the same without and with these pairs.

        Raises:
            StaleEpochError: another coordinator with a higher epoch has given orders before.
        """
        self._obey(order.epoch)
        started = time.perf_counter()
        data = self._store.read_shard_data(order.interactions)
        interactions = order.interactions
        if len(order.erased) or len(order.learned):
            data = data.without(order.erased).with_learned(order.learned)
            interactions = self._store.write_shard_data(self.shard_id, data)
        slices_U = _slices(self._store, order.users, data, self.config)
        kept, reached = self._reached(order)
        written: list[FileRef] = []

        def keep(state: TrainingState) -> None:
            written.append(self._store.write_checkpoint(self.shard_id, state))

        # Never from the old submodel: its weights would carry the erased pairs into the new ones.
        item_keys = self._store.read_item_keys(order.items)
        submodel = train_submodel(data.train, data.valid, item_keys, self.config, self.shard_id, slices_U, reached, keep)
        files = self._store.write_submodel(self.shard_id, submodel)
        seconds = time.perf_counter() - started
        said = {"shard": self.shard_id, "pairs": len(data.train), "after_stage": len(kept), "seconds": round(seconds, 3)}
        log.info("shard trained", extra=said)
        checkpoints = (*kept, *written)
        return Trained(ShardRecord(self.shard_id, interactions, files, len(data.train), len(data.valid), checkpoints), seconds)

    def _reached(self, order: ShardOrder) -> tuple[tuple[FileRef, ...], TrainingState]:
        """The checkpoints that what is erased and learned leaves valid, and the state in the last of them."""
        if order.users is None or order.users_before is None or not order.checkpoints:
            return (), UNTRAINED
        # Who goes has no id in the vocabulary to come, who comes none in the one that was.
        changes = (order.erased, order.users_before), (order.learned, order.users)
        first = min(
            first_affected(pairs, _slices_of(self._store, users, pairs.user_rows(), self.config), self.config)
            for pairs, users in changes
        )
        kept = order.checkpoints[:first]
        try:
            return kept, self._store.read_checkpoint(kept[-1]) if kept else UNTRAINED
        except StoreError as error:
            # An erasure must not fail for a file that training from scratch writes again.
            log.warning("checkpoint cannot be used", extra={"shard": self.shard_id, "problem": str(error)})
            return (), UNTRAINED

    def _obey(self, epoch: Epoch) -> None:
        if epoch < self._epoch:
            raise StaleEpochError(f"shard {self.shard_id}", self._epoch, epoch)
        self._epoch = epoch


def rebuild_shard(store_uri: str, record: ShardRecord, users: FileRef, items: FileRef, config: EraserConfig) -> list[bytes]:
    """What a shard's files of vectors should contain, computed anew from its stored interactions: for the audit.

    The submodel's first, then each checkpoint's in order.
    """
    store = Store(store_uri)
    data = store.read_shard_data(record.interactions)
    slices_U, item_keys = _slices(store, users, data, config), store.read_item_keys(items)
    checkpoints: list[bytes] = []

    def keep(state: TrainingState) -> None:
        checkpoints.append(checkpoint_bytes(state))

    submodel = train_submodel(data.train, data.valid, item_keys, config, record.shard, slices_U, keep=keep)
    return [embeddings_bytes(submodel), *checkpoints]


def _slices(store: Store, users: FileRef | None, data: ShardData, config: EraserConfig) -> np.ndarray | None:
    """(U,) the slice of every user of a shard; None without slices, where nobody need be looked up."""
    if config.training.slices == 1 or users is None:
        return None
    return _slices_of(store, users, np.union1d(data.train.users, data.valid.users), config)


def _slices_of(store: Store, users: FileRef, rows: np.ndarray, config: EraserConfig) -> np.ndarray:
    return slices_of_users(store.read_vocabulary(users, "user"), rows, config)
