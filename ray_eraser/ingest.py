"""A big log on its way into the shards, with no process ever holding all of it. For partitions that are not learned.

Three passes of pure functions of files, which run wherever a `Compute` has them run:

1. `list_ids`, a fragment of the log: its distinct ids. Merged, they are the vocabularies, whose keyed hashes are taken once.
2. `scatter`, a fragment: ids become rows, test and validation sets are held out, and each pair goes to its shard.
3. `unite`, a shard: its pieces of all fragments become its file, as the store has it.

A pair's set and its shard depend on the keyed hashes of its two ids alone. So pairs that stand in several fragments meet in one
set of one shard, and all files are the same, bit for bit, as if the log had been read and divided at once.

K shards, U users, I items, n pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_eraser import seeds
from ray_eraser.compute import Compute
from ray_eraser.config import EraserConfig
from ray_eraser.data.columns import check_something_left, check_trainable, rated
from ray_eraser.data.fragments import Fragment, distinct_ids, fragments_of, merged_ids, read_fragment, rows_of
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.splits import hold_out_set
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import ConfigError, RayEraserError
from ray_eraser.ids import ShardId
from ray_eraser.partition import divide, place
from ray_eraser.store import FileRef, ShardData, Store

_T = TypeVar("_T")

_AT_A_TIME = 64
"""Shards whose users are held at a time, a bit for every user."""


@dataclass(frozen=True, eq=False)
class Ingested:
    """What a log has become.

    Attributes:
        users, items: the vocabularies' files.
        user_keys, item_keys: (U,) and (I,) uint64, keyed hashes of the ids.
        shards: the file of every shard's interactions, in order.
        sizes: (K,) interactions of each shard that are learned from.
        shards_per_user: see `Partition.shards_per_user`.
    """

    users: FileRef
    items: FileRef
    user_keys: np.ndarray
    item_keys: np.ndarray
    shards: tuple[FileRef, ...]
    sizes: np.ndarray
    shards_per_user: float

    def of_users(self, rows: np.ndarray, store_uri: str, compute: Compute) -> Interactions:
        """What is learned from of these users, gathered from all shards; `rows` ascending and few."""
        calls = [partial(_of_users, store_uri, file, rows) for file in self.shards]
        return Interactions.union(compute.run(calls))


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
        users, user_keys = _numbered("user", len(fragments), store, config)
        items, item_keys = _numbered("item", len(fragments), store, config)
        on_pass(1)
        _all(compute, [partial(scatter, part, n, store.uri, config) for n, part in enumerate(fragments)])
        on_pass(2)
        shards: list[FileRef] = []
        sizes: list[int] = []
        n_places, present = 0, np.zeros(0, np.uint8)
        K = config.partition.n_shards
        for first in range(0, K, _AT_A_TIME):
            some = map(ShardId, range(first, min(K, first + _AT_A_TIME)))
            for united in _all(compute, [partial(unite, shard, len(fragments), store.uri) for shard in some]):
                shards.append(united.file)
                sizes.append(united.size)
                n_places += int(np.bitwise_count(united.users).sum())
                present = _either(present, united.users)
        check_trainable(source, sum(sizes))
        on_pass(3)
    finally:
        store.drop_pieces()
    per_user = n_places / max(1, int(np.bitwise_count(present).sum()))
    return Ingested(users, items, user_keys, item_keys, tuple(shards), np.array(sizes), per_user)


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
    for kind, column in (("user", kept.users), ("item", kept.items)):
        _write_ids(store, f"{kind}-{number}", {f"{kind}_id": distinct_ids(column)})
    return Counts(len(log), n_below, 0.0 if log.ratings is None else float(log.ratings.max(initial=0.0)))


def _numbered(kind: str, n_fragments: int, store: Store, config: EraserConfig) -> tuple[FileRef, np.ndarray]:
    """(the vocabulary's file, the keys), from the pieces `<kind>-<number>`; both also as the piece `<kind>s`, for `scatter`."""
    ids = merged_ids(_read_ids(store, f"{kind}-{number}")[f"{kind}_id"] for number in range(n_fragments))
    vocabulary = Vocabulary(kind, tuple(ids.to_pylist()))
    keys = vocabulary.keys(seeds.secret(config.seed, "ids"))
    _write_ids(store, f"{kind}s", {f"{kind}_id": ids, "key": pa.array(keys, pa.uint64())})
    return store.write_vocabulary(vocabulary, keys if kind == "item" else None), keys


def _write_ids(store: Store, name: str, columns: dict[str, Any]) -> None:
    # Nearly every value is another: a dictionary of them only takes time.
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, use_dictionary=False, compression="zstd")
    store.write_piece(name, sink.getvalue().to_pybytes())


def _read_ids(store: Store, name: str) -> dict[str, Any]:
    with store.open_piece(name) as piece, pq.ParquetFile(piece) as file:
        table = file.read(use_threads=False)
    return {column: table[column].combine_chunks() for column in table.column_names}


# ---- second pass: where they belong ---------------------------------------------------------------------------------------


def scatter(fragment: Fragment, number: int, store_uri: str, config: EraserConfig) -> None:
    """Write a fragment's pairs as the piece `pairs-<number>`: for every shard what is learned from, then what is held out.

    An Arrow file, of which a shard can read its two batches alone. Each has the codes of `Interactions`, ascending.
    """
    store = Store(store_uri)
    kept, _ = rated(read_fragment(fragment, config.data), config.data)
    users, items = _read_ids(store, "users"), _read_ids(store, "items")
    pairs = Interactions.of(rows_of(kept.users, users["user_id"], fragment), rows_of(kept.items, items["item_id"], fragment))
    user_keys, item_keys = users["key"].to_numpy(), items["key"].to_numpy()
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
    """Of a shard: its file, how many interactions it learns from, and the users who have one of them, a bit for each row."""

    file: FileRef
    size: int
    users: np.ndarray


def unite(shard: ShardId, n_fragments: int, store_uri: str) -> United:
    """Write a shard's interactions from its pieces; pairs that several fragments have are merged."""
    store = Store(store_uri)
    train: list[np.ndarray] = []
    valid: list[np.ndarray] = []
    for number in range(n_fragments):
        with store.open_piece(f"pairs-{number}") as piece:
            file = pa.ipc.open_file(piece)
            for codes, batch in ((train, 2 * shard), (valid, 2 * shard + 1)):
                codes.append(file.get_batch(batch).column("code").to_numpy())
    data = ShardData(Interactions.of_codes(np.concatenate(train)), Interactions.of_codes(np.concatenate(valid)))
    written = store.write_shard_data(shard, data)
    return United(written, len(data.train), np.packbits(np.bincount(data.train.users) > 0))


def _of_users(store_uri: str, file: FileRef, rows: np.ndarray) -> Interactions:
    return Store(store_uri).read_shard_data(file).train.of_users(rows)
