"""Finds damaged or missing files of a generation, and makes them again.

Ids, interactions, the aggregate and the manifest are written again from memory. Submodels and checkpoints are trained again on
the stored interactions, as an audit does. Every file must match the digest that the generation records, so healing cannot
change the stored content. Logs and results name files without their digests. Anyone with the rest of the data could use the
digest of an older file to find out which data was erased since.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import takewhile

from ray_eraser.devices import same_as
from ray_eraser.errors import DeviceError, StoreError
from ray_eraser.generation import Loaded
from ray_eraser.ids import Epoch, ShardId
from ray_eraser.pool import ShardPool
from ray_eraser.shard import ShardOrder
from ray_eraser.store import (
    FileRef,
    Manifest,
    ShardRecord,
    Store,
    embeddings_bytes,
    manifest_ref,
    part_bytes,
    shard_data_bytes,
)

log = logging.getLogger(__name__)

_WAY_OUT = "restore the storage path from a copy, or run ray-eraser repartition, which makes every file again"


def named_files(manifest: Manifest, digest: str) -> dict[FileRef, str]:
    """Every file of a generation with a readable name: its kind, and its shard or part.

    Args:
        manifest: the generation.
        digest: of the manifest.
    """
    names = {manifest_ref(digest): "the manifest"}
    for kind, refs in (("users", manifest.users), ("items", manifest.items)):
        names |= {ref: f"part {_part_number(ref)} of the {kind}" for ref in refs}
    for record in manifest.shards:
        names[record.interactions] = f"the interactions of shard {record.shard}"
        names |= {ref: f"checkpoint {number} of shard {record.shard}" for number, ref in enumerate(record.checkpoints, 1)}
        names[record.submodel] = f"the submodel of shard {record.shard}"
    return names | {manifest.aggregate: "the aggregate"}


def damaged(store: Store, manifest: Manifest, digest: str) -> list[FileRef]:
    """The files of a generation that are missing, cannot be read, or do not match their digests.

    Args:
        store: has them.
        manifest: the generation.
        digest: of the manifest.
    """
    found = []
    for ref, name in named_files(manifest, digest).items():
        try:
            store.verify(ref)
        except StoreError as error:
            log.warning("a stored file is damaged", extra={"file": name, "problem": error.problem})
            found.append(ref)
    return found


def heal(
    store: Store,
    loaded: Loaded,
    pool: ShardPool,
    epoch: Epoch,
    in_force: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[str, ...]:
    """Verify every file of a generation, and make damaged files again. Heals as many files as it can before it raises.

    Never heal a superseded generation, because its files hold erased data. The caller keeps the generation current meanwhile.

    Args:
        store: has the files.
        loaded: the current generation.
        pool: has the generation's settings; trains again if vectors are damaged.
        epoch: of the coordinator.
        in_force: entered around every write and delete. It raises unless the generation is current, and keeps it current until
            it exits.

    Returns:
        The names of the healed files; see `named_files`.

    Raises:
        StoreError: a file cannot be healed; names the first such file.
        PoolError, StaleEpochError: as `ShardPool.train`.
    """
    names = named_files(loaded.manifest, loaded.digest)
    broken = damaged(store, loaded.manifest, loaded.digest)
    problems = _healed_from_memory(store, loaded, broken, in_force)
    problems |= _trained_again(store, loaded.manifest, pool, epoch, set(broken), problems, in_force)
    healed = tuple(names[ref] for ref in broken if ref not in problems)
    if problems:
        (first, problem), *others = problems.items()
        log.error("stored files cannot be healed", extra={"files": [names[ref] for ref in problems], "healed": list(healed)})
        also = f" and {len(others)} more" if others else ""
        raise StoreError(first.path, f"{names[first]}{also} cannot be healed ({problem}): {_WAY_OUT}")
    return healed


def _in_memory(loaded: Loaded) -> dict[FileRef, Callable[[], bytes]]:
    """The files whose content a generation has in memory. A file's bytes are made when its function is called."""
    manifest = loaded.manifest
    contents: dict[FileRef, Callable[[], bytes]] = {manifest_ref(loaded.digest): manifest.to_json}
    for refs, vocabulary in ((manifest.users, loaded.users), (manifest.items, loaded.items)):
        for ref in refs:
            contents[ref] = partial(part_bytes, vocabulary.parts[_part_number(ref)])
    for record in manifest.shards:
        contents[record.interactions] = partial(shard_data_bytes, loaded.shards[record.shard])
    contents[manifest.aggregate] = partial(embeddings_bytes, loaded.model)
    return contents


def _part_number(ref: FileRef) -> int:
    """The number of the vocabulary part that a file holds."""
    return int(ref.path.split("-")[1])


def _healed_from_memory(
    store: Store, loaded: Loaded, broken: Collection[FileRef], in_force: Callable[[], AbstractContextManager[object]]
) -> dict[FileRef, str]:
    """Write the files whose content is in memory. Returns the reason for every file that could not be healed."""
    contents, problems = _in_memory(loaded), {}
    for ref in broken:
        if ref not in contents:
            continue
        content = contents[ref]()
        if hashlib.sha256(content).hexdigest() != ref.digest:
            problems[ref] = "the content in memory has another digest, as after an upgrade"
            continue
        with in_force():
            store.restore(ref, content)
    return problems


def _trained_again(
    store: Store,
    manifest: Manifest,
    pool: ShardPool,
    epoch: Epoch,
    broken: Collection[FileRef],
    problems: Mapping[FileRef, str],
    in_force: Callable[[], AbstractContextManager[object]],
) -> dict[FileRef, str]:
    """Train the shards whose vectors are damaged. Returns the reason for every file that could not be healed.

    `broken` are all damaged files; `problems` are the files among them that could not be healed from memory.
    """
    wanted = {record.shard: [ref for ref in _vectors_of(record) if ref in broken] for record in manifest.shards}
    records = [record for record in manifest.shards if wanted[record.shard]]
    found = {
        ref: "its shard's interactions are damaged too"
        for record in records
        if record.interactions in problems
        for ref in wanted[record.shard]
    }
    orders = {
        record.shard: ShardOrder(epoch, record.interactions, checkpoints=_intact(record, broken))
        for record in records
        if record.interactions not in problems
    }
    if not orders:
        return found
    try:
        same_as(manifest.environment, pool.described)
        answers = pool.train(orders, lambda _: None)
    except DeviceError as error:
        return found | {ref: str(error) for shard in orders for ref in wanted[shard]}
    written = {shard: _vectors_of(answer.record) for shard, answer in answers.items()}
    _drop_strays(store, manifest, written, in_force)
    another = "training again gives another file, as on another processor or with other library versions"
    return found | {ref: another for shard, refs in written.items() for ref in wanted[shard] if ref not in refs}


def _vectors_of(record: ShardRecord) -> tuple[FileRef, ...]:
    return (*record.checkpoints, record.submodel)


def _intact(record: ShardRecord, broken: Collection[FileRef]) -> tuple[FileRef, ...]:
    """The checkpoints that training can resume from: all before the first damaged one."""
    return tuple(takewhile(lambda ref: ref not in broken, record.checkpoints))


def _drop_strays(
    store: Store,
    manifest: Manifest,
    written: Mapping[ShardId, Collection[FileRef]],
    in_force: Callable[[], AbstractContextManager[object]],
) -> None:
    """Delete the files that training wrote and the generation does not name."""
    known = set(manifest.files())
    with in_force():  # even without strays: files trained for a superseded generation must not count as healed
        for ref in (ref for refs in written.values() for ref in refs if ref not in known):
            store.delete(ref.path)
