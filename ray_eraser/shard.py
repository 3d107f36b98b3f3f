"""One shard: owns a part of the interactions and the submodel learned from it.

A plain class; on Ray it is an actor (runtime/actors.py). It is made from paths and settings only, and reads its data from the
store, so a restart cannot bring erased pairs back.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np

from ray_eraser.config import EraserConfig, TrainingConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.devices import by_torch, computing, described, peak_memory, torch_device
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.errors import StaleEpochError, StoreError
from ray_eraser.ids import Epoch, ShardId
from ray_eraser.models.base import UNTRAINED, TrainingState
from ray_eraser.store import FileRef, ShardRecord, Store, checkpoint_bytes, embeddings_bytes
from ray_eraser.training.slices import first_affected
from ray_eraser.training.submodel import train_submodel

if TYPE_CHECKING:
    from ray_eraser.kernels.resident import Resident

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardOrder:
    """A coordinator's order to one shard: train on `interactions` without `erased`.

    A repeated order gives the same files, so running it twice is harmless.

    Attributes:
        epoch: of the coordinator that gives the order.
        interactions: the shard's data in the current generation.
        erased: the pairs to remove first; none for a first training.
        learned: the pairs to add for training.
        held: the pairs to add for validation.
        checkpoints: the shard's checkpoints in the current generation; none for a first training.
    """

    epoch: Epoch
    interactions: FileRef
    erased: KeyedPairs = field(default_factory=KeyedPairs.none)
    learned: KeyedPairs = field(default_factory=KeyedPairs.none)
    held: KeyedPairs = field(default_factory=KeyedPairs.none)
    checkpoints: tuple[FileRef, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether the order changes the interactions."""
        return bool(len(self.erased) or len(self.learned) or len(self.held))

    @property
    def changed_users(self) -> np.ndarray:
        """Keys of the users whose interactions the order changes."""
        return np.concatenate([self.erased.users, self.learned.users, self.held.users])

    def repeats(self, other: ShardOrder) -> bool:
        """Whether two orders are equal."""
        return all(
            mine.same(theirs) if isinstance(mine, KeyedPairs) else mine == theirs
            for mine, theirs in ((getattr(self, one.name), getattr(other, one.name)) for one in fields(self))
        )


@dataclass(frozen=True)
class Trained:
    """A shard's answer to an order.

    Attributes:
        record: the shard's new files.
        seconds: duration of the training.
        device: see `devices.described`.
        gpu_bytes: peak GPU memory of the training; 0 on a CPU.
    """

    record: ShardRecord
    seconds: float
    device: dict[str, str] = field(default_factory=dict)
    gpu_bytes: int = 0


class Shard:
    """Removes pairs from its interactions and trains its submodel from scratch. Writes only its own files.

    If the shard has a process of its own and computes on a GPU, its interactions and submodel stay in GPU memory between
    requests.

    Args:
        shard_id: its number.
        store_uri, config: the deployment's.
        stays: whether the process belongs to this shard alone.
    """

    def __init__(self, shard_id: ShardId, store_uri: str, config: EraserConfig, *, stays: bool = True) -> None:
        self.shard_id = shard_id
        self.config = config
        self._store = Store(store_uri)
        self._epoch = Epoch(0)
        self._stays = stays
        self._resident: Resident | None = None

    def identity(self) -> tuple[str, str]:
        """(storage path, fingerprint of the settings). A pool that attaches to this shard must have the same."""
        return self._store.uri, self.config.fingerprint()

    def ready(self) -> None:
        """Return when the process is up and has loaded and compiled its training code."""
        made_up = Interactions.of(np.array([0, 0, 1], np.int32), np.array([0, 1, 1], np.int32))
        two = np.arange(2, dtype=np.uint64)
        settled = self.config.settled(1.0)  # a stand-in, because no alpha0 has been chosen from a log yet
        brief = settled.model_copy(
            update={"model": settled.model.model_copy(update={"epochs": 1}), "training": TrainingConfig()}
        )
        runtime = self.config.runtime
        with computing(runtime.known_device, runtime.memory_share, f"shard {self.shard_id}"):
            train_submodel(ShardData(two, two, made_up, Interactions.none()), brief, self.shard_id)

    def train(self, order: ShardOrder) -> Trained:
        """Write the interactions without the erased pairs and with the learned ones, and a submodel trained on them.

        Training starts from scratch. With slices, it starts from the last checkpoint that none of these pairs affects.

        Raises:
            StaleEpochError: a coordinator with a higher epoch has already given orders.
        """
        self._obey(order.epoch)
        started = time.perf_counter()
        resident = self._on_device()
        known = None if resident is None else resident.data(order.interactions.digest)
        data = self._store.read_shard_data(order.interactions) if known is None else known
        interactions = order.interactions
        if order.changes:
            data = data.without(order.erased).with_learned(order.learned, order.held)
            interactions = self._store.write_shard_data(self.shard_id, data)
        kept, reached = self._reached(order, data)
        written: list[FileRef] = []

        def keep(state: TrainingState) -> None:
            written.append(self._store.write_checkpoint(self.shard_id, state.renamed(data.user_keys, data.item_keys)))

        # Never start from the old submodel: its weights would carry the erased pairs into the new ones.
        runtime = self.config.runtime
        with computing(runtime.known_device, runtime.memory_share, f"training of shard {self.shard_id}"):
            submodel = train_submodel(data, self.config, self.shard_id, reached, keep)
            if resident is not None:  # overwrites the superseded data before the receipt is written
                resident.keep(interactions.digest, data, submodel)
            gpu_bytes = peak_memory(runtime.known_device)
        files = self._store.write_submodel(self.shard_id, submodel)
        seconds = time.perf_counter() - started
        said = {"shard": self.shard_id, "pairs": len(data.train), "after_stage": len(kept), "seconds": round(seconds, 3)}
        log.info("shard trained", extra=said)
        checkpoints = (*kept, *written)
        record = ShardRecord(self.shard_id, interactions, files, len(data.train), len(data.valid), checkpoints)
        return Trained(record, seconds, described(runtime.known_device), gpu_bytes)

    def embeddings(self) -> KeyedEmbeddings | None:
        """The submodel in GPU memory; None on a CPU, and before the first training."""
        return None if self._resident is None else self._resident.submodel()

    def forget(self, current: FileRef) -> None:
        """Drop the interactions in memory unless they are the content of the current file."""
        if self._resident is not None and self._resident.data(current.digest) is None:
            self._resident.drop()

    def _on_device(self) -> Resident | None:
        """The data that stays in GPU memory. None on a CPU, where reading the store is fast enough, and in a shared process."""
        device = self.config.runtime.known_device
        if self._resident is None and self._stays and by_torch(device):
            from ray_eraser.kernels.resident import Resident

            self._resident = Resident(torch_device(device))
        return self._resident

    def _reached(self, order: ShardOrder, data: ShardData) -> tuple[tuple[FileRef, ...], TrainingState]:
        """The checkpoints that the order leaves valid, and the state in the last of them."""
        kept = order.checkpoints[: first_affected(order.changed_users, self.config)] if order.checkpoints else ()
        if not kept:
            return (), UNTRAINED
        try:
            return kept, self._store.read_checkpoint(kept[-1]).in_rows(data.user_keys, data.item_keys)
        except (StoreError, KeyError) as error:
            # An erasure must not fail because of a file that training from scratch writes again.
            log.warning("checkpoint cannot be used", extra={"shard": self.shard_id, "problem": str(error)})
            return (), UNTRAINED

    def _obey(self, epoch: Epoch) -> None:
        if epoch < self._epoch:
            raise StaleEpochError(f"shard {self.shard_id}", self._epoch, epoch)
        self._epoch = epoch


def rebuild_shard(store_uri: str, record: ShardRecord, config: EraserConfig) -> list[bytes]:
    """Compute, for the audit, the expected contents of a shard's vector files from its stored interactions.

    Returns:
        The content of the submodel's file, then of each checkpoint's, in order.
    """
    data = Store(store_uri).read_shard_data(record.interactions)
    checkpoints: list[bytes] = []

    def keep(state: TrainingState) -> None:
        checkpoints.append(checkpoint_bytes(state.renamed(data.user_keys, data.item_keys)))

    with computing(config.runtime.known_device, config.runtime.memory_share, f"training of shard {record.shard}"):
        submodel = train_submodel(data, config, record.shard, keep=keep)
    return [embeddings_bytes(submodel), *checkpoints]
