"""A big log on its way into the shards, with no process ever holding all of it. For partitions that are not learned.

Three passes of pure functions of files, which run wherever a `Compute` has them run:

1. `list_ids`, a fragment of the log: its distinct ids and their keys. Merged, they give every id a row in the order of keys.
2. `scatter`, a fragment: ids become rows, test and validation sets are held out, and each pair goes to its shard.
3. `unite`, a shard: its pieces of all fragments become its file, as the store has it, in rows of its own.

A pair's set and its shard depend on the keyed hashes of its two ids alone. So pairs that stand in several fragments meet in one
set of one shard, and all files are the same, bit for bit, as if the log had been read and divided at once.

K shards, U users, I items, n pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_eraser import seeds
from ray_eraser.compute import Compute
from ray_eraser.config import EraserConfig
from ray_eraser.data.columns import check_something_left, check_trainable, rated
from ray_eraser.data.fragments import Fragment, KeyedIds, fragments_of, keyed_ids, merged_ids, read_fragment, rows_of
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.data.splits import hold_out_set
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import ConfigError, RayEraserError
from ray_eraser.ids import ShardId
from ray_eraser.partition import divide, place
from ray_eraser.store import FileRef, Store

_T = TypeVar("_T")

_AT_A_TIME = 64
"""Shards whose users and items are held at a time, a bit for each."""


@dataclass(frozen=True, eq=False)
class Ingested:
    """What a log has become.

    Attributes:
        users, items: the vocabularies of all that is kept.
        user_refs, item_refs: their files.
        shards: the file of every shard's interactions, in order.
        n_trained: number of training interactions.
    """

    users: Vocabulary
    items: Vocabulary
    user_refs: tuple[FileRef, ...]
    item_refs: tuple[FileRef, ...]
    shards: tuple[FileRef, ...]
    n_trained: int

    def of_users(self, rows: np.ndarray, store_uri: str, compute: Compute) -> Interactions:
        """What is learned from of these users, in rows of the vocabularies, gathered from all shards; `rows` few."""
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

    What is held out for the test is not kept. On the way there are pieces in the store, which hold all of the log; they are
    gone when this returns or raises.

    Args:
        source: see `fragments_of`; a path that is the same wherever the compute runs.
        store: where everything goes.
        config: `data`, `partition` and `seed` count.
        compute: where the passes run.
        on_pass: hears how many of the three passes are done.

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
        n_rows, n_below = sum(count.rows for count in counts), sum(count.below for count in counts)
        check_something_left(source, config.data, n_rows, n_below, max(count.highest for count in counts))
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
    # Ids that only the test set has are not stored.
    users, items = (
        vocabulary.only(vocabulary.keys[np.unpackbits(bits, count=len(vocabulary)) > 0])
        for vocabulary, bits in zip((users, items), (present_users, present_items), strict=True)
    )
    return Ingested(
        users,
        items,
        store.write_vocabulary(users),
        store.write_vocabulary(items),
        tuple(one.file for one in shards),
        sum(one.size for one in shards),
    )


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
    """The results of all calls. The first error is raised when all have ended: none writes a piece after they were dropped."""
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
    """Bits that one of two has; what one of them is too short for, it has not."""
    longer, shorter = (some, others) if len(some) > len(others) else (others, some)
    both = longer.copy()
    both[: len(shorter)] |= shorter
    return both


# ---- first pass: who is there ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """Of a fragment: its rows, how many of them are rated too low, and the highest rating."""

    rows: int
    below: int
    highest: float


def list_ids(fragment: Fragment, number: int, store_uri: str, config: EraserConfig) -> Counts:
    """Write the distinct ids of a fragment as the pieces `user-<number>` and `item-<number>`."""
    store = Store(store_uri)
    log = read_fragment(fragment, config.data)
    kept, n_below = rated(log, config.data)
    secret = seeds.secret(config.seed, "ids")
    for kind, column in (("user", kept.users), ("item", kept.items)):
        _write_ids(store, f"{kind}-{number}", keyed_ids(column, secret))
    return Counts(len(log), n_below, 0.0 if log.ratings is None else float(log.ratings.max(initial=0.0)))


def _numbered(kind: str, n_fragments: int, store: Store, config: EraserConfig) -> Vocabulary:
    """The vocabulary, from the pieces `<kind>-<number>`; its keys also as the piece `<kind>s`, for the other passes."""
    secret = seeds.secret(config.seed, "ids")
    vocabulary = merged_ids(kind, secret, (_read_ids(store, f"{kind}-{number}") for number in range(n_fragments)))
    store.write_piece(f"{kind}s", vocabulary.keys.tobytes())
    return vocabulary


def _write_ids(store: Store, name: str, ids: KeyedIds) -> None:
    # Nearly every value is another: a dictionary of them only takes time.
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


# ---- second pass: where they belong ---------------------------------------------------------------------------------------


def scatter(fragment: Fragment, number: int, store_uri: str, config: EraserConfig) -> None:
    """Write a fragment's pairs as the piece `pairs-<number>`: for every shard what is learned from, then what is held out.

    An Arrow file, of which a shard can read its two batches alone. Each has the codes of `Interactions`, ascending.
    """
    store = Store(store_uri)
    kept, _ = rated(read_fragment(fragment, config.data), config.data)
    user_keys, item_keys, secret = _read_keys(store, "user"), _read_keys(store, "item"), seeds.secret(config.seed, "ids")
    pairs = Interactions.of(rows_of(kept.users, user_keys, secret, fragment), rows_of(kept.items, item_keys, secret, fragment))
    train, _ = hold_out_set("test", pairs, user_keys, item_keys, config.data, config.seed)
    train, valid = hold_out_set("valid", train, user_keys, item_keys, config.data, config.seed)
    partition = divide(train, user_keys, item_keys, config.partition, config.seed)
    held = place(valid, train, partition, user_keys, item_keys, config.partition, config.seed)
    K = config.partition.n_shards
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _PAIRS) as file:
        for batches in zip(_by_shard(train, partition.owners, K), _by_shard(valid, held, K), strict=True):
            for codes in batches:
                file.write_batch(pa.record_batch([codes], schema=_PAIRS))
    store.write_piece(f"pairs-{number}", sink.getvalue().to_pybytes())


_PAIRS = pa.schema([("code", pa.int64())])


def _by_shard(pairs: Interactions, owners: np.ndarray, n_shards: int) -> Iterable[np.ndarray]:
    """The codes of every shard's pairs, ascending."""
    codes = pairs.codes()[np.argsort(owners, kind="stable")]
    return np.split(codes, np.cumsum(np.bincount(owners, minlength=n_shards))[:-1])


# ---- third pass: together -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class United:
    """Of a shard: its file, and how many interactions it learns from.

    Attributes:
        file: of its interactions.
        size: how many it learns from.
        users, items: a bit for each row, whether the shard has an interaction of it.
    """

    file: FileRef
    size: int
    users: np.ndarray
    items: np.ndarray


def unite(shard: ShardId, n_fragments: int, store_uri: str) -> United:
    """Write a shard's interactions from its pieces; pairs that several fragments have are merged."""
    store = Store(store_uri)
    parts: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for number in range(n_fragments):
        with store.open_piece(f"pairs-{number}") as piece:
            file = pa.ipc.open_file(piece)
            for codes, batch in zip(parts, (2 * shard, 2 * shard + 1), strict=True):
                codes.append(file.get_batch(batch).column("code").to_numpy())
    train, valid = (Interactions.of_codes(np.concatenate(codes)) for codes in parts)
    written = store.write_shard_data(shard, ShardData.of(train, valid, _read_keys(store, "user"), _read_keys(store, "item")))
    users, items = (np.concatenate([getattr(part, side) for part in (train, valid)]) for side in ("users", "items"))
    return United(written, len(train), _bits(users), _bits(items))


def _bits(rows: np.ndarray) -> np.ndarray:
    """A bit for each row up to the highest, whether it is among these."""
    present = np.zeros(int(rows.max(initial=-1)) + 1, bool)
    present[rows] = True
    return np.packbits(present)


def _of_users(store_uri: str, file: FileRef, keys: np.ndarray) -> KeyedPairs:
    data = Store(store_uri).read_shard_data(file)
    rows = np.flatnonzero(np.isin(data.user_keys, keys))
    return data.keyed(data.train.of_users(rows))
