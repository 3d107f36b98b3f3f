"""Columns of ids as a file has them, whatever kind of file it is.

What is costly per value (checking, parsing, numbering) is done once for each distinct value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_eraser.config import DataConfig
from ray_eraser.errors import DataFileError

_LONGEST_ID = 1000  # a longer one is a broken quote or a wrong column
_CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]{0,18})$"

Fail = Callable[[int, str], DataFileError]
"""(row, problem) -> the error that names the row's line."""


@dataclass(frozen=True, eq=False)
class Ids:
    """A column of ids: the distinct ones, int64 or string, and for every row the position of its own among them."""

    distinct: Any
    codes: np.ndarray

    def take(self, chosen: np.ndarray) -> Ids:
        return Ids(self.distinct, self.codes[chosen])

    def used(self) -> np.ndarray:
        """Ascending positions of the ids that a row has."""
        return np.flatnonzero(np.bincount(self.codes, minlength=len(self.distinct)))


@dataclass(frozen=True, eq=False)
class Log:
    """The rows of one file."""

    users: Ids
    items: Ids
    ratings: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users.codes)


@dataclass(frozen=True)
class Columns:
    """The names of the columns to take; a rating column that the file does not have is None."""

    user: str
    item: str
    rating: str | None

    @property
    def names(self) -> list[str]:
        return [self.user, self.item] + ([] if self.rating is None else [self.rating])


def wanted_columns(path: Path, header: Sequence[str], config: DataConfig) -> Columns:
    for key, column in (("user_column", config.user_column), ("item_column", config.item_column)):
        if column not in header:
            raise DataFileError(str(path), f"has no column {column!r} but {_listed(header)}: set data.{key}")
    if config.user_column == config.item_column:
        raise DataFileError(str(path), f"{config.user_column!r} cannot hold users and items: set data.item_column")
    rating = config.rating_column if config.rating_column in header else None
    if rating is None and config.min_rating is not None:
        raise DataFileError(
            str(path),
            f"has no column {config.rating_column!r} but {_listed(header)}: set data.rating_column, or no data.min_rating",
        )
    columns = Columns(config.user_column, config.item_column, rating)
    for column in columns.names:
        if header.count(column) > 1:
            raise DataFileError(str(path), f"has {header.count(column)} columns {column!r}: rename all but one")
    return columns


def _listed(header: Sequence[str]) -> str:
    """Column names for one line of an error; a file without a header can seem to have thousands, of any characters."""
    shown = [name if name.isprintable() else repr(name) for name in header[:20]]
    return ", ".join(shown) + (f" and {len(header) - 20} more" if len(header) > 20 else "")


def rated(log: Log, config: DataConfig) -> tuple[Log, int]:
    """(the rows that are rated high enough, how many are not)."""
    if config.min_rating is None or log.ratings is None:
        return log, 0
    kept = log.ratings >= config.min_rating
    return Log(log.users.take(kept), log.items.take(kept)), int(len(kept) - kept.sum())


def check_something_left(source: str, config: DataConfig, n_rows: int, n_below: int, highest: float) -> None:
    """Refuse a log that has no row, or none that is rated high enough.

    Args:
        source: for the error.
        config: the lowest rating to keep.
        n_rows: rows of the whole log.
        n_below: how many of them `rated` left out.
        highest: rating that a row has.
    """
    if not n_rows:
        raise DataFileError(source, "holds no interaction")
    if n_rows == n_below:
        assert config.min_rating is not None, "without a lowest rating no row is left out"
        raise DataFileError(source, f"no rating reaches data.min_rating {config.min_rating:g}; the highest is {highest:g}")


def check_trainable(source: str, n_train: int) -> None:
    """Refuse a log of which nothing is left to learn from once the other sets are held out."""
    if not n_train:
        raise DataFileError(source, "no pair is left to train on: give more data or lower data.test_share and data.valid_share")


def concatenated(logs: Sequence[Log]) -> Log:
    """The rows of several files, one after the other. Integers become strings where another file has strings."""
    ratings = [log.ratings for log in logs if log.ratings is not None]
    return Log(
        _concatenated([log.users for log in logs]),
        _concatenated([log.items for log in logs]),
        np.concatenate(ratings) if len(ratings) == len(logs) else None,
    )


def _concatenated(columns: Sequence[Ids]) -> Ids:
    whole = in_one_array([column.distinct for column in columns]).dictionary_encode()
    starts = np.cumsum([0, *(len(column.distinct) for column in columns[:-1])])
    places = np.concatenate([column.codes + start for column, start in zip(columns, starts, strict=True)])
    return Ids(whole.dictionary, whole.indices.to_numpy()[places])


def in_one_array(arrays: Sequence[Any]) -> Any:
    """Arrays of ids one after the other: integers if all are, else strings."""
    integers = all(pa.types.is_int64(array.type) for array in arrays)
    return pa.concat_arrays([array if integers else array.cast(pa.string()) for array in arrays])


def checked_ids(column: Any, kind: str, fail: Fail) -> Ids:
    encoded = column.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    ids = Ids(encoded.dictionary, encoded.indices.to_numpy())
    if pa.types.is_string(ids.distinct.type):
        problems = {code: problem for code, raw in enumerate(ids.distinct.to_pylist()) if (problem := _problem(raw))}
        if problems:
            row = int(np.flatnonzero(np.isin(ids.codes, list(problems)))[0])
            raise fail(row, f"the {kind} id {problems[int(ids.codes[row])]}")
    return ids


def _problem(raw: str) -> str | None:
    if not raw.strip():
        return "is empty"
    if "\0" in raw:
        return "holds a NUL byte"
    if len(raw) > _LONGEST_ID:
        return f"has {len(raw)} characters, more than {_LONGEST_ID}: is the column or a quote wrong?"
    return None


def canonical_integers(ids: Any) -> bool:
    if not pc.all(pc.match_substring_regex(ids, _CANONICAL_INTEGER), min_count=0).as_py():
        return False
    try:
        ids.cast(pa.int64())
    except pa.ArrowInvalid:  # nineteen digits may be beyond 64 bits
        return False
    return True
