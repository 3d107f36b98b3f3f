"""The proof: train everything again from what remains, and compare.

An audit needs the store, the ledger's word on which generation is current, and a place to compute. It trusts neither the
coordinator nor any file: what is stored must be what the remaining interactions, the recorded config and the seed give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from ray_eraser import seeds
from ray_eraser.aggregator import rebuild_aggregate
from ray_eraser.compute import Compute
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.determinism import environment
from ray_eraser.errors import StoreError
from ray_eraser.ids import Generation, RawId, ShardId
from ray_eraser.partition import divide
from ray_eraser.shard import rebuild_shard
from ray_eraser.store import FileRef, Manifest, ShardData, ShardRecord, Store, manifest_ref, shard_data_bytes
from ray_eraser.unlearning.ledger import GenerationRow


@dataclass(frozen=True)
class Erased:
    """Raw ids and pairs that an audit is asked to look for."""

    user_ids: tuple[RawId, ...] = ()
    item_ids: tuple[RawId, ...] = ()
    pairs: tuple[tuple[RawId, RawId], ...] = ()


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes:
        exact: nothing differs, nothing is left over, nothing erased was found.
        generation, digest: what was audited.
        guarantee: the level that the generation claims.
        compared: files whose content was computed anew.
        mismatches: one line for each file that is not what it must be.
        found_erased_pairs: interactions of erased users, of erased items, or asked for by name, that are in some file.
    """

    exact: bool
    generation: Generation
    digest: str
    guarantee: str
    compared: int
    mismatches: tuple[str, ...]
    found_erased_pairs: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def audit(
    store: Store,
    published: GenerationRow,
    compute: Compute,
    erased: Erased = Erased(),
    on_done: Callable[[str], None] = lambda _: None,
) -> AuditReport:
    """Compare every file of the current generation with one computed anew, and look for what must not be there.

    Args:
        store: the deployment's.
        published: the current generation, from the ledger.
        compute: where to train again: a pool (its shards are not asked), or `RayTasks`.
        erased: ids and pairs to look for besides the tombstones.
        on_done: hears what was compared.
    """
    manifest = store.read_manifest(published.digest)
    try:
        users = store.read_vocabulary(manifest.users, "user")
        items = store.read_vocabulary(manifest.items, "item")
        shards = {record.shard: store.read_shard_data(record.interactions) for record in manifest.shards}
    except StoreError as error:
        # Without these nothing else can be computed.
        return AuditReport(False, published.number, published.digest, manifest.config.guarantee, 0, (str(error),), 0)

    mismatches = [
        *_left_over(store, manifest, published.digest),
        *_misplaced(manifest, shards, users, items),
        *_miscounted(manifest, shards),
        *_foreign_keys(store, manifest, items),
    ]
    compared, differing = _rebuilt(store, manifest, compute, on_done)
    for record in manifest.shards:
        compared += 1
        if hashlib.sha256(shard_data_bytes(shards[record.shard])).hexdigest() != record.interactions.digest:
            differing.append(f"{record.interactions.path}: interactions are not sorted and distinct")
    mismatches += differing
    if differing and (here := environment(manifest.config.runtime.threads)) != manifest.environment:
        mismatches.append(f"made under {manifest.environment}, audited under {here}: audit where it was trained")

    found = _found_tombstones(shards, users, items) + _found_by_name(store, users, items, erased)
    on_done("erased pairs")
    return AuditReport(
        not mismatches and not found,
        published.number,
        published.digest,
        manifest.config.guarantee,
        compared,
        tuple(mismatches),
        found,
    )


def _left_over(store: Store, manifest: Manifest, digest: str) -> list[str]:
    """Files of other generations: everything that a generation superseded must be gone."""
    wanted = {ref.path for ref in manifest.files()} | {manifest_ref(digest).path}
    return [f"{path}: left over, no part of the current generation" for path in store.files() if path not in wanted]


def _misplaced(manifest: Manifest, shards: dict[ShardId, ShardData], users: Vocabulary, items: Vocabulary) -> list[str]:
    """Shards that hold interactions which belong elsewhere, where the place can be computed from the ids."""
    config = manifest.config
    if config.partition.is_learned:
        return []
    key = seeds.secret(config.seed, "ids")
    user_keys, item_keys = users.keys(key), items.keys(key)
    return [
        f"shard {shard}: holds interactions of another shard"
        for shard, data in shards.items()
        for part in (data.train, data.valid)
        if (divide(part, user_keys, item_keys, config.partition, config.seed).owners != shard).any()
    ]


def _miscounted(manifest: Manifest, shards: dict[ShardId, ShardData]) -> list[str]:
    """Shards whose numbers in the manifest are not those of their interactions, or of the settings."""
    n_checkpoints = manifest.config.training.slices - 1
    return [
        f"shard {record.shard}: has {len(record.checkpoints)} checkpoints, its settings ask for {n_checkpoints}"
        for record in manifest.shards
        if len(record.checkpoints) != n_checkpoints
    ] + [
        f"shard {record.shard}: holds {len(data.train)} and {len(data.valid)} held out, "
        f"the manifest says {record.n_train} and {record.n_valid}"
        for record, data in ((record, shards[record.shard]) for record in manifest.shards)
        if (len(data.train), len(data.valid)) != (record.n_train, record.n_valid)
    ]


def _foreign_keys(store: Store, manifest: Manifest, items: Vocabulary) -> list[str]:
    """The items' keys, which all starts are drawn from, where they are not those of the ids: an erased id has none."""
    keys = items.keys(seeds.secret(manifest.config.seed, "ids"))
    same = np.array_equal(store.read_item_keys(manifest.items), keys)
    return [] if same else [f"{manifest.items.path}: holds keys that its ids do not give"]


def _rebuilt(store: Store, manifest: Manifest, compute: Compute, on_done: Callable[[str], None]) -> tuple[int, list[str]]:
    """How many files of vectors were computed anew, and a line for each whose stored content differs."""
    rebuilt = compute.run([partial(_shard_digests, store.uri, record, manifest) for record in manifest.shards])
    pairs = [
        (ref, digest)
        for record, digests in zip(manifest.shards, rebuilt, strict=True)
        for ref, digest in zip((record.submodel, *record.checkpoints), digests, strict=False)
    ]
    differing = []
    for ref, digest in pairs:
        on_done(ref.path)
        differing += _compared(store, ref, digest)
    if not differing:
        # Aggregated from the stored submodels, which are now known to be right.
        (digest,) = compute.run([partial(_aggregate_digest, store.uri, manifest)])
        on_done(manifest.aggregate.path)
        differing += _compared(store, manifest.aggregate, digest)
    return len(pairs) + 1, differing


def _shard_digests(uri: str, record: ShardRecord, manifest: Manifest) -> list[str]:
    contents = rebuild_shard(uri, record, manifest.users, manifest.items, manifest.config)
    return [hashlib.sha256(content).hexdigest() for content in contents]


def _aggregate_digest(uri: str, manifest: Manifest) -> str:
    return hashlib.sha256(rebuild_aggregate(uri, manifest.shards, manifest.config)).hexdigest()


def _compared(store: Store, ref: FileRef, digest: str) -> list[str]:
    try:
        store.read(ref)
    except StoreError as error:
        return [str(error)]
    return [] if digest == ref.digest else [f"{ref.path}: training again gives {digest}"]


def _found_tombstones(shards: dict[ShardId, ShardData], users: Vocabulary, items: Vocabulary) -> int:
    """Interactions that name an erased user or item."""
    parts = [part for data in shards.values() for part in (data.train, data.valid)]
    gone_users, gone_items = users.tombstones(), items.tombstones()
    return sum(int((np.isin(part.users, gone_users) | np.isin(part.items, gone_items)).sum()) for part in parts)


def _found_by_name(store: Store, users: Vocabulary, items: Vocabulary, erased: Erased) -> int:
    """Interactions asked for by raw id, in any file of interactions under the storage path, current or not."""
    user_rows = [users.row(raw) for raw in erased.user_ids if raw in users]
    item_rows = [items.row(raw) for raw in erased.item_ids if raw in items]
    pairs = [(users.row(user), items.row(item)) for user, item in erased.pairs if user in users and item in items]
    found = 0
    for data in _every_file(store):
        for part in (data.train, data.valid):
            found += len(part.of_users(np.array(user_rows))) + len(part.of_items(np.array(item_rows)))
            if pairs:
                rows = np.array(pairs, np.int32)
                found += len(part.common(Interactions.of(rows[:, 0], rows[:, 1])))
    # An id that is still in the vocabulary was not erased, even if its interactions are gone.
    return found + len(user_rows) + len(item_rows)


def _every_file(store: Store) -> Iterator[ShardData]:
    for path in store.files():
        if "/interactions-" in path and path.endswith(".parquet"):
            # The current ones were read before: one that cannot be read is left over, and named as such.
            with suppress(StoreError):
                yield store.read_shard_data(FileRef(path, path.rpartition("-")[2].removesuffix(".parquet")))
