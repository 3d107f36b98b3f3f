"""Read a big log into the shards without holding all of it in one process. For partitions that are not learned.

A `Compute` runs three passes of pure functions of files:

1. `list_ids` lists the distinct ids of a fragment and their keys. Merged, they give every id a row in the order of keys.
2. `scatter` reads a fragment again: ids become rows, test and validation sets are held out, and each pair goes to its shard.
3. `unite` turns a shard's pieces of all fragments into its file, as the store has it, in rows of its own.

The shard of a pair depends on the keyed hashes of its two ids alone, and so does its set, unless its time decides. So the
copies of a pair in several fragments meet in one shard. All files are the same, bit for bit, as if the log was read at once.

K shards, U users, I items, n pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_eraser import seeds
from ray_eraser.compute import Compute
from ray_eraser.config import DataConfig, EraserConfig
from ray_eraser.data.account import Account
from ray_eraser.data.columns import Log, check_something_left, check_trainable, rated
from ray_eraser.data.folders import found
from ray_eraser.data.fragments import Fragment, KeyedIds, fragments_of, keyed_ids, merged_ids, read_fragment, rows_of
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.data.splits import hold_out_set
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import ConfigError, RayEraserError
from ray_eraser.ids import ShardId
from ray_eraser.partition import divide
from ray_eraser.store import FileRef, Store

_T = TypeVar("_T")

_AT_A_TIME = 64
"""Shards whose users and items are held at a time, a bit for each."""


@dataclass(frozen=True, eq=False)
class Ingested:
    """The result of reading a log.

    Attributes:
        users, items: the vocabularies of the stored interactions.
        user_refs, item_refs: their files.
        shards: the file of every shard's interactions, in order.
        n_trained: number of training interactions.
        account: the rows of the log, counted.
    """

    users: Vocabulary
    items: Vocabulary
    user_refs: tuple[FileRef, ...]
    item_refs: tuple[FileRef, ...]
    shards: tuple[FileRef, ...]
    n_trained: int
    account: Account

    def of_users(self, rows: np.ndarray, store_uri: str, compute: Compute) -> Interactions:
        """The training interactions of a few users, gathered from all shards, in rows of the vocabularies."""
        keys = self.users.keys[rows]
        found = KeyedPairs.union(compute.run([partial(_of_users, store_uri, file, keys) for file in self.shards]))
        return found.in_rows(self.users.keys, self.items.keys)


def ingest(
    source: str,
    store: Store,
    config: EraserConfig,
    compute: Compute,
    on_pass: Callable[[int], None] = lambda _: None,
) -> Ingested:
    """Number, hold out and divide the log at `source`, and write its vocabularies and shards to the store.

    The test set is not kept. Meanwhile, pieces in the store hold all of the log. They are deleted when this function returns or
    raises.

    Args:
        source: see `fragments_of`; the path must be the same for every process of the compute.
        store: for the files.
        config: `data`, `partition` and `seed` count.
        compute: runs the passes.
        on_pass: called with the number of passes that are done, of three.

    Raises:
        DataFileError: as `read_dataset`.
        ConfigError: the partition is learned, which takes all interactions at once.
    """
    if config.partition.is_learned:
        raise ConfigError(
            "partition.kind",
            f"{config.partition.kind} is learned from all interactions at once, so that the log cannot be read in fragments: "
            "use hashed or random, or read the log with read_dataset",
        )
    fragments = fragments_of(source)
    try:
        counts = _all(compute, [partial(list_ids, part, n, store.uri, config) for n, part in enumerate(fragments)])
        account = _account(source, [count.account for count in counts])
        check_something_left(source, config.data, account, max(count.highest for count in counts))
        # Users first: the ids of one kind are gone before those of the other come.
        users = _numbered("user", len(fragments), store, config)
        items = _numbered("item", len(fragments), store, config)
        on_pass(1)
        _all(compute, [partial(scatter, part, n, store.uri, config) for n, part in enumerate(fragments)])
        on_pass(2)
        shards, present_users, present_items = _united(len(fragments), store, config, compute)
        check_trainable(source, sum(one.size for one in shards))
        on_pass(3)
    finally:
        store.drop_pieces()
    users, items = _present(users, present_users), _present(items, present_items)
    merged = account.rows_read - account.n_left_out - sum(one.size + one.held + one.test for one in shards)
    return Ingested(
        users,
        items,
        store.write_vocabulary(users),
        store.write_vocabulary(items),
        tuple(one.file for one in shards),
        sum(one.size for one in shards),
        replace(account, merged=merged, held_for_test=sum(one.test for one in shards)),
    )


def _present(vocabulary: Vocabulary, bits: np.ndarray) -> Vocabulary:
    """The ids whose bit is set. Ids that only the test set has are not stored."""
    return vocabulary.only(vocabulary.keys[np.unpackbits(bits, count=len(vocabulary)) > 0])


def _account(source: str, parts: Sequence[Account]) -> Account:
    """The account of all fragments, with the notices that `read_dataset` has."""
    return Account.together(parts).noting(*found(Path(source).expanduser(), DataConfig()).notices)


def _united(
    n_fragments: int, store: Store, config: EraserConfig, compute: Compute
) -> tuple[list[United], np.ndarray, np.ndarray]:
    """(every shard, without its bits; a bit for each user, and for each item, with an interaction)."""
    nobody = np.zeros(0, np.uint8)
    shards: list[United] = []
    users, items = nobody, nobody
    K = config.partition.n_shards
    for first in range(0, K, _AT_A_TIME):
        some = map(ShardId, range(first, min(K, first + _AT_A_TIME)))
        for one in _all(compute, [partial(unite, shard, n_fragments, store.uri) for shard in some]):
            users, items = _either(users, one.users), _either(items, one.items)
            shards.append(replace(one, users=nobody, items=nobody))
    return shards, users, items


def _all(compute: Compute, calls: Sequence[Callable[[], _T]]) -> list[_T]:
    """The results of all calls. The first error is raised after all have ended, so no call writes a piece later."""
    answers = compute.run([partial(_answer, call) for call in calls])
    for answer in answers:
        if isinstance(answer, RayEraserError):
            raise answer
    return cast(list[_T], answers)


def _answer(call: Callable[[], _T]) -> _T | RayEraserError:
    try:
        return call()
    except RayEraserError as error:
        return error


def _either(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The bits that are set in one of two arrays, which may differ in length."""
    longer, shorter = (some, others) if len(some) > len(others) else (others, some)
    both = longer.copy()
    both[: len(shorter)] |= shorter
    return both


# ---- first pass: all ids --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """The rows of a fragment, counted, and their highest rating."""

    account: Account
    highest: float


def list_ids(fragment: Fragment, number: int, store_uri: str, config: EraserConfig) -> Counts:
    """Write the distinct ids of a fragment as the pieces `user-<number>` and `item-<number>`."""
    store = Store(store_uri)
    log = read_fragment(fragment, config.data)
    kept = rated(log, config.data)
    secret = seeds.secret(config.seed, "ids")
    for kind, column in (("user", kept.users), ("item", kept.items)):
        _write_ids(store, f"{kind}-{number}", keyed_ids(column, secret))
    return Counts(kept.account(), 0.0 if log.ratings is None else float(log.ratings.max(initial=0.0)))


def _numbered(kind: str, n_fragments: int, store: Store, config: EraserConfig) -> Vocabulary:
    """The vocabulary, from the pieces `<kind>-<number>`; its keys also as the piece `<kind>s`, for the other passes."""
    secret = seeds.secret(config.seed, "ids")
    vocabulary = merged_ids(kind, secret, (_read_ids(store, f"{kind}-{number}") for number in range(n_fragments)))
    store.write_piece(f"{kind}s", vocabulary.keys.tobytes())
    return vocabulary


def _write_ids(store: Store, name: str, ids: KeyedIds) -> None:
    # Nearly every value is different, so a dictionary would only take time.
    sink = pa.BufferOutputStream()
    table = pa.table({"key": ids.keys, "id": ids.ids}, metadata={"integers": str(ids.integers)})
    pq.write_table(table, sink, use_dictionary=False, compression="zstd")
    store.write_piece(name, sink.getvalue().to_pybytes())


def _read_ids(store: Store, name: str) -> KeyedIds:
    with store.open_piece(name) as piece, pq.ParquetFile(piece) as file:
        table = file.read(use_threads=False)
    integers = table.schema.metadata[b"integers"] == b"True"
    return KeyedIds(table["key"].to_numpy(), table["id"].combine_chunks(), integers)


def _read_keys(store: Store, kind: str) -> np.ndarray:
    """The keys of all ids of one kind, by row."""
    with store.open_piece(f"{kind}s") as piece:
        return np.frombuffer(piece.read(), np.uint64)


# ---- second pass: pairs to shards -----------------------------------------------------------------------------------------


def scatter(fragment: Fragment, number: int, store_uri: str, config: EraserConfig) -> None:
    """Write a fragment's pairs as the piece `pairs-<number>`: for every shard its training, validation and test pairs.

    The piece is an Arrow file, so a shard can read its own three batches alone. Each has ascending codes of `Interactions`. The
    test pairs are only counted.
    """
    store = Store(store_uri)
    kept = rated(read_fragment(fragment, config.data), config.data)
    user_keys, item_keys, secret = _read_keys(store, "user"), _read_keys(store, "item"), seeds.secret(config.seed, "ids")

    def in_rows(log: Log) -> Interactions:
        return Interactions.of(rows_of(log.users, user_keys, secret, fragment), rows_of(log.items, item_keys, secret, fragment))

    if config.data.test_from is None or kept.times is None:
        train, test = hold_out_set("test", in_rows(kept), user_keys, item_keys, config.data, config.seed)
    else:
        is_test = kept.times.from_(config.data.test_from)
        train, test = in_rows(kept.where(~is_test)), in_rows(kept.where(is_test))
    train, valid = hold_out_set("valid", train, user_keys, item_keys, config.data, config.seed)
    # A kind of partition that is not learned places every pair by its keys alone.
    sets = [(part, divide(part, user_keys, item_keys, config.partition, config.seed).owners) for part in (train, valid, test)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _PAIRS) as file:
        by_shard = [_by_shard(part, owners, config.partition.n_shards) for part, owners in sets]
        for batches in zip(*by_shard, strict=True):
            for codes in batches:
                file.write_batch(pa.record_batch([codes], schema=_PAIRS))
    store.write_piece(f"pairs-{number}", sink.getvalue().to_pybytes())


_PAIRS = pa.schema([("code", pa.int64())])


def _by_shard(pairs: Interactions, owners: np.ndarray, n_shards: int) -> Iterable[np.ndarray]:
    """The codes of every shard's pairs, ascending."""
    codes = pairs.codes()[np.argsort(owners, kind="stable")]
    return np.split(codes, np.cumsum(np.bincount(owners, minlength=n_shards))[:-1])


# ---- third pass: shards ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class United:
    """A shard's file, and the number of interactions of each set.

    Attributes:
        file: of its interactions.
        size: number of training interactions.
        held: number of validation interactions.
        test: number of test interactions that would be the shard's; they are stored nowhere.
        users, items: a bit for each row, whether the shard has an interaction of it.
    """

    file: FileRef
    size: int
    held: int
    test: int
    users: np.ndarray
    items: np.ndarray


def unite(shard: ShardId, n_fragments: int, store_uri: str) -> United:
    """Write a shard's interactions from its pieces; pairs that several fragments have are merged."""
    store = Store(store_uri)
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for number in range(n_fragments):
        with store.open_piece(f"pairs-{number}") as piece:
            file = pa.ipc.open_file(piece)
            for codes, batch in zip(parts, range(3 * shard, 3 * shard + 3), strict=True):
                codes.append(file.get_batch(batch).column("code").to_numpy())
    train, valid, test = (Interactions.of_codes(np.concatenate(codes)) for codes in parts)
    test = test.without(train).without(valid)  # by time, a pair can be in several sets; it stays in the first
    written = store.write_shard_data(shard, ShardData.of(train, valid, _read_keys(store, "user"), _read_keys(store, "item")))
    users, items = (np.concatenate([getattr(part, side) for part in (train, valid)]) for side in ("users", "items"))
    return United(written, len(train), len(valid), len(test), _bits(users), _bits(items))


def _bits(rows: np.ndarray) -> np.ndarray:
    """A bit for each row up to the highest of these, set for these rows."""
    present = np.zeros(int(rows.max(initial=-1)) + 1, bool)
    present[rows] = True
    return np.packbits(present)


def _of_users(store_uri: str, file: FileRef, keys: np.ndarray) -> KeyedPairs:
    data = Store(store_uri).read_shard_data(file)
    rows = np.flatnonzero(np.isin(data.user_keys, keys))
    return data.keyed(data.train.of_users(rows))
