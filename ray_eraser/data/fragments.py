"""A log of Parquet files, read a fragment at a time. Memory holds one fragment, and the distinct ids of all.

The result is the same as that of `read_dataset`, which reads all files at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_eraser.config import DataConfig
from ray_eraser.data.columns import Ids, Log, concatenated
from ray_eraser.data.files import parquet_parts, readable
from ray_eraser.data.keyed import places_of
from ray_eraser.data.parquet import read_parquet, row_group_sizes
from ray_eraser.data.problems import unusable
from ray_eraser.data.vocabulary import Vocabulary, hash_texts

_ROWS = 1 << 21
"""The usual number of rows in a fragment. It takes some hundred megabytes while it is worked on."""


@dataclass(frozen=True)
class Stretch:
    """Consecutive row groups of one file; none of an empty file."""

    path: Path
    row_groups: tuple[int, ...]


@dataclass(frozen=True)
class Fragment:
    """The rows that are read at a time: stretches of one file or of several."""

    stretches: tuple[Stretch, ...]


def fragments_of(source: str, rows: int = _ROWS) -> list[Fragment]:
    """The fragments of a Parquet file, or of a folder with several, in the order of the files' names.

    Row groups are never divided, so a fragment is as large as the largest of them.

    Args:
        source: a Parquet file, or a folder whose only tables are Parquet files, which are parts of one log.
        rows: number of rows that a fragment should have.

    Raises:
        DataFileError: there is nothing at `source`, it is of another kind, or a file is damaged.
    """
    with readable(source):
        parts = parquet_parts(source)
        if not parts:
            raise unusable(source, "is no log of Parquet files without a split of their own: read it with read_dataset")
        fragments: list[list[Stretch]] = [[]]
        n_rows = 0
        for path in parts:
            fragments[-1].append(Stretch(path, ()))
            for group, size in enumerate(row_group_sizes(path)):
                if n_rows and n_rows + size > rows:
                    fragments.append([Stretch(path, ())])
                    n_rows = 0
                fragments[-1][-1] = Stretch(path, (*fragments[-1][-1].row_groups, group))
                n_rows += size
        return [Fragment(tuple(stretches)) for stretches in fragments]


def read_fragment(fragment: Fragment, config: DataConfig) -> Log:
    """Read the rows of a fragment, and check them as `read_dataset` does.

    Raises:
        DataFileError: names the file, the row where there is one, and what is wrong.
    """
    logs = []
    for part in fragment.stretches:
        with readable(str(part.path)):
            logs.append(read_parquet(part.path, config, part.row_groups))
    return concatenated(logs)


@dataclass(frozen=True, eq=False)
class KeyedIds:
    """Distinct ids in the order of their keys.

    Attributes:
        keys: (n,) uint64, ascending.
        ids: (n,) Arrow strings.
        integers: whether they are from columns of whole numbers.
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
        # Rarely enough to cost little; often enough that an id of every fragment does not take up room for each of them.
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
        DataFileError: an id has no such key, so the files have changed since the keys were made.
    """
    rows = places_of(hash_texts(column.present(), secret), keys)
    if (rows < 0).any():
        raise unusable(str(fragment.stretches[0].path), "was changed while the log was read: begin again when it is complete")
    row_of_code = np.zeros(len(column.distinct), np.int32)
    row_of_code[column.used()] = rows
    return np.asarray(row_of_code[column.codes])


def in_fragments(source: str) -> bool:
    """Whether a log should be read by fragments: it is of Parquet files, several or with more than one fragment.

    Raises:
        DataFileError: as `fragments_of`.
    """
    if not Path(source).expanduser().exists():  # a word, or an error that its reader raises
        return False
    with readable(source):
        parts = parquet_parts(source)
    return len(parts) > 1 or (len(parts) == 1 and len(fragments_of(source)) > 1)
