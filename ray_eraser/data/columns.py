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

from ray_eraser.config import DataConfig
from ray_eraser.errors import DataFileError
from ray_eraser.ids import id_problem

Fail = Callable[[int, str], DataFileError]
"""(row, problem) -> the error that names the row's line."""


@dataclass(frozen=True, eq=False)
class Ids:
    """A column of ids: the distinct ones, and for every row the position of its own among them.

    Attributes:
        distinct: Arrow strings.
        codes: (n,) int32.
        integers: whether the column's type is one of integers, whatever its values look like.
    """

    distinct: Any
    codes: np.ndarray
    integers: bool = False

    def take(self, chosen: np.ndarray) -> Ids:
        return Ids(self.distinct, self.codes[chosen], self.integers)

    def used(self) -> np.ndarray:
        """Ascending positions of the ids that a row has."""
        return np.flatnonzero(np.bincount(self.codes, minlength=len(self.distinct)))

    def present(self) -> Any:
        """The ids that a row has, each once, as Arrow strings."""
        return self.distinct.take(pa.array(self.used()))


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
    """The rows of several files, one after the other."""
    ratings = [log.ratings for log in logs if log.ratings is not None]
    return Log(
        _concatenated([log.users for log in logs]),
        _concatenated([log.items for log in logs]),
        np.concatenate(ratings) if len(ratings) == len(logs) else None,
    )


def _concatenated(columns: Sequence[Ids]) -> Ids:
    whole = pa.concat_arrays([column.distinct for column in columns]).dictionary_encode()
    starts = np.cumsum([0, *(len(column.distinct) for column in columns[:-1])])
    places = np.concatenate([column.codes + start for column, start in zip(columns, starts, strict=True)])
    return Ids(whole.dictionary, whole.indices.to_numpy()[places], all(column.integers for column in columns))


def checked_ids(column: Any, kind: str, fail: Fail) -> Ids:
    """A column of strings or of integers as ids, which are text."""
    encoded = column.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    integers = pa.types.is_integer(encoded.dictionary.type)
    ids = Ids(encoded.dictionary.cast(pa.string()), encoded.indices.to_numpy(), bool(integers))
    if not integers:
        problems = {code: problem for code, raw in enumerate(ids.distinct.to_pylist()) if (problem := id_problem(raw))}
        if problems:
            row = int(np.flatnonzero(np.isin(ids.codes, list(problems)))[0])
            raise fail(row, f"the {kind} id {problems[int(ids.codes[row])]}")
    return ids
