"""The proof from outside: train on the log that the caller holds, and compare with all files under the storage path.

An audit asks whether the stored interactions give the stored files. This module asks whether they are the right interactions.
After any history, a deployment must have exactly the files that a first training on the same log writes, byte by byte and name
by name (docs/decisions/0028). Nothing is written: the comparison keeps only names and digests of the trained files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from ray_eraser.aggregator import aggregate_of
from ray_eraser.compute import Compute
from ray_eraser.config import EraserConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.keyed import ShardData
from ray_eraser.determinism import environment
from ray_eraser.devices import computing
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.errors import ConfigError, StoreError
from ray_eraser.ids import Generation, ShardId
from ray_eraser.models.base import TrainingState
from ray_eraser.prepare import prepare
from ray_eraser.store import FileRef, Manifest, ShardRecord, Store
from ray_eraser.training.submodel import train_submodel
from ray_eraser.unlearning.audit import environment_in
from ray_eraser.unlearning.ledger import GenerationRow

_NOT_COMPARED = re.compile(r"ledger\.db.*|ledger\.json|(results|logs)/.*|[^/]*\.log")
"""Files that are no function of the interactions: the ledger, its mark, reports of submitted jobs, and logs."""


@dataclass(frozen=True)
class AgainstReport:
    """The comparison of a storage path with a training on a log.

    Attributes:
        equal: whether both have the same files with the same content.
        generation, digest: of the compared generation.
        guarantee, chosen: the level that the generation claims, and the settings that were chosen from a log. They are taken as
            recorded, not chosen again from the log that is given.
        compared: number of files, under the storage path or of the training.
        mismatches: one line for each file that only one side has, or whose content its name contradicts. No line names a user
            or an item.
    """

    equal: bool
    generation: Generation
    digest: str
    guarantee: str
    chosen: tuple[str, ...]
    compared: int
    mismatches: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def audit_against(
    store: Store,
    published: GenerationRow,
    dataset: Dataset,
    compute: Compute,
    on_done: Callable[[str], None] = lambda _: None,
) -> AgainstReport:
    """Train on a log as the deployment was trained, and compare every file with those under the storage path.

    Settings are those that the generation records. So are those that were chosen from a log, and whether ids are given back as
    integers: a log in another kind of file is the same log. The test set of the log is left out, as a first training leaves it.

    Args:
        store: the deployment's.
        published: the current generation, from the ledger.
        dataset: the log, read with the recorded settings and seed.
        compute: where to train: a pool (its shards are not asked), or `RayTasks`.
        on_done: hears what was computed.

    Raises:
        ConfigError: the partition is learned; see `refuse_learned`.
        DeviceError: the generation was trained on another device than there is here.
    """
    manifest = store.read_manifest(published.digest)
    refuse_learned(manifest.config)
    environment_in(compute, manifest)
    fresh, made_under = _trained_on(dataset, manifest, compute, on_done)
    stored = [path for path in store.everything() if not _NOT_COMPARED.fullmatch(path)]
    mismatches = sorted(_differences(store, stored, fresh))
    if mismatches and made_under != manifest.environment:
        mismatches.append(f"made under {manifest.environment}, compared under {made_under}: audit where it was trained")
    return AgainstReport(
        not mismatches,
        published.number,
        published.digest,
        manifest.guarantee,
        manifest.chosen,
        len({*stored, *fresh}),
        tuple(mismatches),
    )


def _differences(store: Store, stored: Sequence[str], fresh: Mapping[str, str]) -> Iterator[str]:
    """A line for each path that is on one side only, and for each file whose content does not match the digest in its name."""
    for path in stored:
        if path not in fresh:
            yield f"{path}: is stored, and training on the log does not give it"
            continue
        try:
            store.read(FileRef(path, fresh[path]))
        except StoreError as error:
            yield str(error)
    yield from (f"{path}: training on the log gives it, and it is not stored" for path in {*fresh}.difference(stored))


def refuse_learned(config: EraserConfig) -> None:
    """Raise for a partition that is learned: where a pair is then follows from what was there before.

    Raises:
        ConfigError: names the setting, and the way to a deployment that owes nothing to its history.
    """
    if config.partition.is_learned:
        raise ConfigError(
            "partition.kind",
            f"a {config.partition.kind} partition is learned from all that was there when it was made, and the log of what "
            "remains does not give it: audit without --against, or drop that history with ray-eraser repartition --set "
            "partition.kind=hashed",
        )


def _trained_on(
    dataset: Dataset, manifest: Manifest, compute: Compute, on_done: Callable[[str], None]
) -> tuple[dict[str, str], dict[str, str | int]]:
    """(digests by path of the files that a first training on a log stores, the computing environment of its bits)."""
    names = _Names()
    ready = prepare(dataset, manifest.config, compute)
    users, items = names.write_vocabulary(ready.log.users), names.write_vocabulary(ready.log.items)
    calls = [partial(_trained, ShardId(shard), data, ready.config) for shard, data in enumerate(ready.shards)]
    trained = compute.run(calls)
    records = tuple(record for record, _ in trained)
    on_done("shards")
    submodels = [submodel for _, submodel in trained]
    ((aggregate, made_under),) = compute.run([partial(_aggregated, submodels, ready.shards, ready.config)])
    on_done("aggregate")
    fresh = Manifest(manifest.config, made_under, manifest.chosen, manifest.integers, users, items, records, aggregate)
    written = [*fresh.files(), names.write_manifest(fresh)]
    return {ref.path: ref.digest for ref in written}, made_under


def _trained(shard: ShardId, data: ShardData, config: EraserConfig) -> tuple[ShardRecord, KeyedEmbeddings]:
    """What a shard's files are named once it has been trained, and its submodel."""
    names = _Names()
    checkpoints: list[FileRef] = []

    def keep(state: TrainingState) -> None:
        checkpoints.append(names.write_checkpoint(shard, state.renamed(data.user_keys, data.item_keys)))

    with computing(config.runtime.known_device, config.runtime.memory_share, f"training of shard {shard}"):
        submodel = train_submodel(data, config, shard, keep=keep)
    files = names.write_shard_data(shard, data), names.write_submodel(shard, submodel)
    return ShardRecord(shard, *files, len(data.train), len(data.valid), tuple(checkpoints)), submodel


def _aggregated(
    submodels: Sequence[KeyedEmbeddings], shards: Sequence[ShardData], config: EraserConfig
) -> tuple[FileRef, dict[str, str | int]]:
    """What the aggregate's file is named, and what its bits depend on besides the data, where it is computed."""
    with computing(config.runtime.known_device, config.runtime.memory_share, "the aggregation"):
        aggregate = _Names().write_aggregate(aggregate_of(submodels, shards, config))
    return aggregate, environment(config.runtime.threads, config.runtime.known_device)


class _Names(Store):
    """Gives files the names that a store gives them, and keeps nothing of them."""

    def __init__(self) -> None:
        super().__init__(".")

    def _put(self, path: str, content: bytes, *, durable: bool = True) -> None:  # noqa: ARG002 - that is all
        return
