"""The proof of an erasure: train everything again from the remaining interactions, and compare.

An audit needs the store, the ledger's entry for the current generation, and a place to compute. It trusts neither the
coordinator nor any file: the remaining interactions, the recorded config and the seed must reproduce every stored byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from ray_eraser import seeds
from ray_eraser.aggregator import rebuild_aggregate
from ray_eraser.compute import Compute
from ray_eraser.data.keyed import KeyedPairs, ShardData, all_keys, places_of
from ray_eraser.data.vocabulary import Part, hash_texts, part_of
from ray_eraser.determinism import environment
from ray_eraser.devices import same_as
from ray_eraser.errors import StoreError
from ray_eraser.ids import Generation, ShardId
from ray_eraser.partition import divide
from ray_eraser.shard import rebuild_shard
from ray_eraser.store import FileRef, Manifest, ShardRecord, Store, manifest_ref, part_bytes, shard_data_bytes
from ray_eraser.unlearning.erased import NOTHING, UNSOUND, Erased, Lookup, SpelledOtherwise, keyed_pairs, keys_of, ref_of
from ray_eraser.unlearning.ledger import GenerationRow

__all__ = ["AuditReport", "Erased", "audit"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit.

    Attributes:
        exact: whether nothing differs, nothing is left over, and nothing erased was found.
        generation, digest: of the audited generation.
        guarantee, chosen: the level that the generation claims, and the settings that were chosen from the log.
        compared: number of files whose content was computed again.
        mismatches: one line for each file that is not as it must be. No line names a user or an item.
        found_erased_pairs: number of interactions asked for by name that some file has, and of such ids that are still here.
        not_here: number of the given ids and pairs that name a user or an item which is not here. Erased ids are not here, nor
            are mistyped ones.
        spelled_otherwise: those of them whose user or item is here under another spelling. See `Lookup`.
    """

    exact: bool
    generation: Generation
    digest: str
    guarantee: str
    chosen: tuple[str, ...]
    compared: int
    mismatches: tuple[str, ...]
    found_erased_pairs: int
    not_here: int = 0
    spelled_otherwise: tuple[SpelledOtherwise, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the generation is exact, and no id that was asked for is here under another spelling."""
        return self.exact and not self.spelled_otherwise

    def to_dict(self) -> dict[str, Any]:
        spelled = [entry.to_dict() for entry in self.spelled_otherwise]
        return asdict(self) | {"spelled_otherwise": spelled, "passed": self.passed}


def audit(
    store: Store,
    published: GenerationRow,
    compute: Compute,
    erased: Erased = NOTHING,
    on_done: Callable[[str], None] = lambda _: None,
) -> AuditReport:
    """Compute every file of the current generation again and compare; look for erased data by name.

    Args:
        store: the deployment's files.
        published: the current generation, from the ledger.
        compute: where to train again: a pool (it does not ask its shards), or `RayTasks`.
        erased: ids and pairs to look for by name.
        on_done: called with the name of each part that was compared.

    Raises:
        DeviceError: the generation was trained on a device that is not here.
    """
    manifest = store.read_manifest(published.digest)
    here = environment_in(compute, manifest)
    stored = _Stored.read(store, manifest)
    mismatches = [*_left_over(store, manifest, published.digest), *_misnamed(manifest, published.digest)]
    if stored.is_whole(manifest):
        mismatches += [*_misplaced(manifest, stored.shards), *_miscounted(manifest, stored.shards)]
        for kind in ("user", "item"):
            mismatches += _unmatched(manifest, stored, kind)
    compared, differing = stored.compared, list(stored.problems.values())
    if stored.can_be_trained(manifest):
        n_rebuilt, of_vectors = _rebuilt(store, manifest, compute, on_done)
        compared += n_rebuilt
        differing += of_vectors
    else:
        mismatches.append("no submodel was trained again: the interactions are not what a deployment stores")
    mismatches += differing
    if differing and here != manifest.environment:
        mismatches.append(f"made under {manifest.environment}, audited under {here}: audit where it was trained")

    found = _found_by_name(store, manifest, stored, erased) if erased else 0
    lookup = Lookup()
    with suppress(*UNSOUND):  # of ids that are no text, a mismatch says so
        lookup = Lookup.of(erased, stored.ids("user"), stored.ids("item"))
    on_done("erased pairs")
    return AuditReport(
        not mismatches and not found,
        published.number,
        published.digest,
        manifest.guarantee,
        manifest.chosen,
        compared,
        tuple(mismatches),
        found,
        lookup.not_here,
        lookup.spelled_otherwise,
    )


def environment_in(compute: Compute, manifest: Manifest) -> dict[str, str | int]:
    """The environment of the audit's computations, on which bits depend.

    Raises:
        DeviceError: the generation was trained on a device that is not here. Names both.
    """
    runtime = manifest.config.runtime
    ask = partial(environment, runtime.threads, runtime.known_device)
    return same_as(manifest.environment, lambda: compute.run([ask])[0])


# ---- ids and interactions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Stored:
    """The ids and interactions of a generation, as far as they can be read.

    Attributes:
        parts: the parts of each kind's vocabulary, by file.
        shards: every shard's interactions.
        problems: by file, why it cannot be read, or that writing its content again gives another file.
    """

    parts: Mapping[str, Mapping[FileRef, Part]]
    shards: Mapping[ShardId, ShardData]
    problems: Mapping[FileRef, str]

    @classmethod
    def read(cls, store: Store, manifest: Manifest) -> _Stored:
        secret = seeds.secret(manifest.config.seed, "ids")
        problems: dict[FileRef, str] = {}

        def checked(ref: FileRef, read: Callable[[FileRef], _T], again: Callable[[_T], bytes]) -> dict[FileRef, _T]:
            value, problem = _checked(ref, read, again)
            if problem:
                problems[ref] = problem
            return {} if value is None else {ref: value}

        parts: dict[str, dict[FileRef, Part]] = {"user": {}, "item": {}}
        for kind, refs in (("user", manifest.users), ("item", manifest.items)):
            for ref in refs:
                parts[kind] |= checked(ref, store.read_part, lambda part: part_bytes(_canonical_part(part, secret)))
        found: dict[FileRef, ShardData] = {}
        for record in manifest.shards:
            found |= checked(record.interactions, store.read_shard_data, lambda data: shard_data_bytes(_canonical(data)))
        shards = {record.shard: found[record.interactions] for record in manifest.shards if record.interactions in found}
        return cls(parts, shards, problems)

    def ids(self, kind: str) -> Any:
        """All ids of a kind that could be read, as Arrow strings."""
        return pa.concat_arrays([pa.array([], pa.string()), *(part.ids for part in self.parts[kind].values())])

    @property
    def compared(self) -> int:
        """Number of files that could be read and were written again."""
        return len(self.parts["user"]) + len(self.parts["item"]) + len(self.shards)

    def is_whole(self, manifest: Manifest) -> bool:
        """Whether every file could be read."""
        return self.compared == len(manifest.users) + len(manifest.items) + len(manifest.shards)

    def can_be_trained(self, manifest: Manifest) -> bool:
        """Whether all interactions are stored as a deployment stores them. Training on others could fail."""
        sound = [record.shard in self.shards and record.interactions not in self.problems for record in manifest.shards]
        return all(sound)


def _checked(ref: FileRef, read: Callable[[FileRef], _T], again: Callable[[_T], bytes]) -> tuple[_T, str] | tuple[None, str]:
    """(content of a file, its problem). The content is None if it cannot be read; the problem is empty if there is none.

    Args:
        ref: the file.
        read: reads it.
        again: writes the ids or pairs of the content as a deployment writes them.
    """
    try:
        value = read(ref)
        content = again(value)
    except StoreError as error:
        return None, str(error)
    except UNSOUND:
        return None, f"{ref.path}: is no file that a deployment writes"
    problem = "writing its content again gives another file: it is not sorted and distinct, its keys are others, or it has more"
    return value, "" if _has(ref, content) else f"{ref.path}: {problem}"


def _canonical_part(part: Part, secret: bytes) -> Part:
    """A part with the same ids as a deployment writes it: each id once, in the order of keys."""
    keys, first = np.unique(hash_texts(part.ids, secret), return_index=True)
    return Part(keys, part.ids.take(pa.array(first)))


def _canonical(data: ShardData) -> ShardData:
    """The same pairs as a deployment writes them: exactly their users and items have a row, in the order of keys."""
    if len(data.train.common(data.valid)):
        raise ValueError("a pair is learned from and held out")
    train, valid = (data.keyed(part) for part in (data.train, data.valid))
    as_keys = [KeyedPairs(part.users.astype(np.uint64), part.items.astype(np.uint64)) for part in (train, valid)]
    return ShardData.none().with_learned(*as_keys)


def _has(ref: FileRef, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == ref.digest


def _unmatched(manifest: Manifest, stored: _Stored, kind: str) -> list[str]:
    """Lines for ids without an interaction, for keys without an id, and for ids in a wrong part."""
    problems = []
    numbers = [_part_number(ref) for ref in stored.parts[kind]]
    if numbers != sorted(set(numbers)):
        problems.append(f"the manifest names the parts of the {kind}s' vocabulary twice or out of order")
    keys_of = {record.interactions: getattr(stored.shards[record.shard], f"{kind}_keys") for record in manifest.shards}
    present = all_keys(list(keys_of.values()))
    for (ref, part), number in zip(stored.parts[kind].items(), numbers, strict=True):
        keys = part.keys.astype(np.uint64)
        if not len(keys):
            problems.append(f"{ref.path}: has no id, so that there should be no such file")
        elif {part_of(keys.min()), part_of(keys.max())} != {number}:
            problems.append(f"{ref.path}: holds ids of another part")
        if n_orphans := int((places_of(keys, present) < 0).sum()):
            problems.append(f"{ref.path}: holds {_count(n_orphans, kind)} without any interaction")
    named = all_keys([part.keys.astype(np.uint64) for part in stored.parts[kind].values()])
    for ref, keys in keys_of.items():
        if n_nameless := int((places_of(keys, named) < 0).sum()):
            problems.append(f"{ref.path}: holds {_count(n_nameless, kind)} of whom no vocabulary has the id")
    return problems


def _part_number(ref: FileRef) -> int:
    """The number in the name of a vocabulary's file; -1 if there is none."""
    number = ref.path.rpartition("/")[2].split("-")[1:2]
    return int(number[0]) if number and number[0].isascii() and number[0].isdigit() else -1


def _count(n: int, kind: str) -> str:
    return f"{n} {kind}{'' if n == 1 else 's'}"


def _left_over(store: Store, manifest: Manifest, digest: str) -> list[str]:
    """Lines for files of other generations. A generation must leave none of the files that it superseded."""
    wanted = {ref.path for ref in manifest.files()} | {manifest_ref(digest).path}
    return [f"{path}: left over, no part of the current generation" for path in store.files() if path not in wanted]


def _misnamed(manifest: Manifest, digest: str) -> list[str]:
    """Lines for files under a wrong name, and for a manifest that no deployment would write."""
    named = [(ref, f"vocabulary/users-{_part_number(ref):02d}", "parquet") for ref in manifest.users]
    named += [(ref, f"vocabulary/items-{_part_number(ref):02d}", "parquet") for ref in manifest.items]
    for number, record in enumerate(manifest.shards):
        folder = f"shards/{number}"
        named += [(record.interactions, f"{folder}/interactions", "safetensors")]
        named += [(record.submodel, f"{folder}/submodel", "safetensors")]
        named += [(ref, f"{folder}/checkpoint", "safetensors") for ref in record.checkpoints]
    named.append((manifest.aggregate, "aggregate/aggregate", "safetensors"))
    problems = [
        f"{ref.path}: is not where such a file belongs"
        for ref, stem, suffix in named
        if ref.path != f"{stem}-{ref.digest}.{suffix}"
    ]
    if [record.shard for record in manifest.shards] != list(range(manifest.config.partition.n_shards)):
        problems.append("the manifest does not name the shards that its settings ask for, in order")
    if not _has(manifest_ref(digest), manifest.to_json()):
        problems.append(f"{manifest_ref(digest).path}: is not written as a manifest is, or it has more")
    return problems


def _misplaced(manifest: Manifest, shards: Mapping[ShardId, ShardData]) -> list[str]:
    """Lines for shards with interactions of other shards. Learned partitions are not checked: ids do not give the place."""
    config = manifest.config
    if config.partition.is_learned:
        return []
    return [
        f"shard {shard}: holds interactions of another shard"
        for shard, data in shards.items()
        if (divide(data.pairs, data.user_keys, data.item_keys, config.partition, config.seed).owners != shard).any()
    ]


def _miscounted(manifest: Manifest, shards: Mapping[ShardId, ShardData]) -> list[str]:
    """Lines for shards whose numbers in the manifest contradict their interactions or the settings."""
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


# ---- vectors ---------------------------------------------------------------------------------------------------------------


def _rebuilt(store: Store, manifest: Manifest, compute: Compute, on_done: Callable[[str], None]) -> tuple[int, list[str]]:
    """(number of files of vectors that were computed again, a line for each that differs)."""
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
    if differing:
        return len(pairs), differing
    # Aggregated from the stored submodels, which are now known to be right.
    (digest,) = compute.run([partial(_aggregate_digest, store.uri, manifest)])
    on_done(manifest.aggregate.path)
    return len(pairs) + 1, _compared(store, manifest.aggregate, digest)


def _shard_digests(uri: str, record: ShardRecord, manifest: Manifest) -> list[str]:
    return [hashlib.sha256(content).hexdigest() for content in rebuild_shard(uri, record, manifest.config)]


def _aggregate_digest(uri: str, manifest: Manifest) -> str:
    return hashlib.sha256(rebuild_aggregate(uri, manifest.shards, manifest.config)).hexdigest()


def _compared(store: Store, ref: FileRef, digest: str) -> list[str]:
    try:
        store.read(ref)
    except StoreError as error:
        return [str(error)]
    return [] if digest == ref.digest else [f"{ref.path}: training again gives {digest}"]


# ---- looking for erased data by name --------------------------------------------------------------------------------------


def _found_by_name(store: Store, manifest: Manifest, stored: _Stored, erased: Erased) -> int:
    """Count the interactions of given ids and pairs in all files of interactions under the storage path, current or not.

    An id that is still in the vocabulary counts too: it was not erased, even if its interactions are gone.
    """
    secret = seeds.secret(manifest.config.seed, "ids")
    users, items = keys_of(erased.user_ids, secret), keys_of(erased.item_ids, secret)
    pairs = keyed_pairs(erased.pairs, secret)
    found = 0
    for kind, sought in (("user", users), ("item", items)):
        found += sum(int(np.isin(part.keys, sought).sum()) for part in stored.parts[kind].values())
    for data in _every_file(store):
        with suppress(*UNSOUND):  # left over, and named as such
            found += len(data.pairs.of_users(np.flatnonzero(np.isin(data.user_keys, users))))
            found += len(data.pairs.of_items(np.flatnonzero(np.isin(data.item_keys, items))))
            found += int(data.has(pairs).sum())
    return found


def _every_file(store: Store) -> Iterator[ShardData]:
    for path in store.files():
        if "/interactions-" in path and path.endswith(".safetensors"):
            # All current files were read before. An unreadable one here is left over, and a mismatch names it.
            with suppress(StoreError):
                yield store.read_shard_data(ref_of(path))
