"""A log of Parquet files, read a fragment at a time: what is in memory is one fragment, and the distinct ids of all.

Whatever is the log's as a whole comes out as `read_dataset` has it, which reads all files at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_eraser.config import DataConfig
from ray_eraser.data.columns import Ids, Log, concatenated, wanted_columns
from ray_eraser.data.files import parquet_parts, readable
from ray_eraser.data.keyed import places_of
from ray_eraser.data.parquet import parquet_columns, read_parquet, sound_parquet
from ray_eraser.data.vocabulary import Vocabulary, hash_texts
from ray_eraser.errors import DataFileError

_ROWS = 1 << 21
"""A fragment has about so many rows: some hundred megabytes while it is worked on."""


@dataclass(frozen=True)
class Stretch:
    """Consecutive row groups of one file; none of an empty file, whose columns are checked all the same."""

    path: Path
    row_groups: tuple[int, ...]


@dataclass(frozen=True)
class Fragment:
    """What is read at a time: stretches of one file or of several."""

    stretches: tuple[Stretch, ...]


def fragments_of(source: str, rows: int = _ROWS) -> list[Fragment]:
    """The fragments of a Parquet file, or of a folder with several, in the order of the files' names.

    Row groups are never divided, so a fragment is as large as the largest of them.

    Args:
        source: a Parquet file, or a folder whose only tables are Parquet files, which are parts of one log.
        rows: how many a fragment should have.

    Raises:
        DataFileError: there is nothing at `source`, it is of another kind, or a file is damaged.
    """
    with readable(source):
        parts = parquet_parts(source)
        if not parts:
            raise DataFileError(source, "is no log of Parquet files without a split of their own: read it with read_dataset")
        fragments: list[list[Stretch]] = [[]]
        n_rows = 0
        for path in parts:
            fragments[-1].append(Stretch(path, ()))
            for group, size in enumerate(_row_group_sizes(path)):
                if n_rows and n_rows + size > rows:
                    fragments.append([Stretch(path, ())])
                    n_rows = 0
                fragments[-1][-1] = Stretch(path, (*fragments[-1][-1].row_groups, group))
                n_rows += size
        return [Fragment(tuple(stretches)) for stretches in fragments]


def _row_group_sizes(path: Path) -> list[int]:
    with sound_parquet(path):
        metadata = pq.read_metadata(path)
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def read_fragment(fragment: Fragment, config: DataConfig) -> Log:
    """Its rows, checked as `read_dataset` checks them.

    Raises:
        DataFileError: names the file, the row where there is one, and what is wrong.
    """
    logs = []
    for part in fragment.stretches:
        with readable(str(part.path)):
            columns = wanted_columns(part.path, parquet_columns(part.path), config)
            logs.append(read_parquet(part.path, columns, part.row_groups))
    return concatenated(logs)


@dataclass(frozen=True, eq=False)
class KeyedIds:
    """Distinct ids in the order of their keys.

    Attributes:
        keys: (n,) uint64, ascending.
        ids: (n,) Arrow strings.
        integers: whether they are from columns of integers.
    """

    keys: np.ndarray
    ids: Any
    integers: bool


def keyed_ids(column: Ids, secret: bytes) -> KeyedIds:
    """The ids that a row has, each once; `secret` keys their hash."""
    ids = column.present()
    keys = hash_texts(ids, secret)
    order = np.argsort(keys)
    return KeyedIds(keys[order], ids.take(pa.array(order)), column.integers)


def merged_ids(kind: str, secret: bytes, fragments: Iterable[KeyedIds]) -> Vocabulary:
    """The vocabulary of the ids of all fragments.

    Raises:
        InputError: two different ids have the same key.
    """
    whole = Vocabulary.of_keys(kind, secret, np.empty(0, np.uint64), pa.array([], pa.string()), integers=True)
    waiting: list[KeyedIds] = []
    integers = True

    def together() -> Vocabulary:
        keys = np.concatenate([whole.keys, *(some.keys for some in waiting)])
        texts = pa.concat_arrays([whole.texts, *(some.ids for some in waiting)])
        return Vocabulary.of_keys(kind, secret, keys, texts, integers=integers)

    for some in fragments:
        waiting.append(some)
        integers = integers and some.integers
        # Seldom enough to cost little, often enough that ids which stand in every fragment take up no room for each.
        if sum(len(one.keys) for one in waiting) > max(_ROWS, len(whole)):
            whole, waiting = together(), []
    return together()


def rows_of(column: Ids, keys: np.ndarray, secret: bytes, fragment: Fragment) -> np.ndarray:
    """The row of every row's id, (n,) int32.

    Args:
        column: of the fragment.
        keys: ascending, of all fragments' ids.
        secret: keys the hash.
        fragment: for the error.

    Raises:
        DataFileError: an id has no such key, so the files are others than those that the keys were made from.
    """
    rows = places_of(hash_texts(column.present(), secret), keys)
    if (rows < 0).any():
        raise DataFileError(
            str(fragment.stretches[0].path), "was changed while the log was read: begin again when it is complete"
        )
    row_of_code = np.zeros(len(column.distinct), np.int32)
    row_of_code[column.used()] = rows
    return np.asarray(row_of_code[column.codes])


def in_fragments(source: str) -> bool:
    """Whether a log is one that should be read by fragments: Parquet, and several files or more than one fragment.

    Raises:
        DataFileError: as `fragments_of`.
    """
    if not Path(source).expanduser().exists():  # a word, or to be said by whoever reads it
        return False
    with readable(source):
        parts = parquet_parts(source)
    return len(parts) > 1 or (len(parts) == 1 and len(fragments_of(source)) > 1)
