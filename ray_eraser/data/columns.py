"""Columns of ids, ratings and times as a file has them, whatever the kind of file.

Checking, parsing and numbering a value is costly, so each distinct value goes through it once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_eraser.config import DataConfig
from ray_eraser.data.account import BELOW_RATING, Account, listed
from ray_eraser.data.problems import some_of, unnamed, unusable
from ray_eraser.data.times import Times
from ray_eraser.errors import DataFileError


@dataclass(frozen=True, eq=False)
class Ids:
    """A column of ids: the distinct ones, and for every row the position of its own among them.

    Attributes:
        distinct: Arrow strings.
        codes: (n,) int32.
        integers: whether the column's type is one of whole numbers, whatever its values look like.
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
    """The rows of one file, or of several.

    Attributes:
        users, items: the ids of every row.
        ratings: (n,) float64; None if the settings ask for no rating.
        times: None if the settings ask for no time.
        left_out: number of further rows that the file has, by the reason why they are not here.
        notices: remarks for people; they name no id.
    """

    users: Ids
    items: Ids
    ratings: np.ndarray | None = None
    times: Times | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @classmethod
    def nothing(cls, *notices: str) -> Log:
        """The rows of an empty file. It says nothing about the type of ids."""
        nobody = Ids(pa.array([], pa.string()), np.zeros(0, np.int32), integers=True)
        return cls(nobody, nobody, notices=notices)

    def __len__(self) -> int:
        return len(self.users.codes)

    def where(self, chosen: np.ndarray) -> Log:
        """The rows at positions, or where a mask (n,) is true."""
        return replace(
            self,
            users=self.users.take(chosen),
            items=self.items.take(chosen),
            ratings=None if self.ratings is None else self.ratings[chosen],
            times=None if self.times is None else self.times.take(chosen),
        )

    def account(self) -> Account:
        """The number of rows in the file, and of those that were left out."""
        return Account(len(self) + sum(self.left_out.values()), left_out=self.left_out, notices=self.notices)


@dataclass(frozen=True)
class Columns:
    """The names of the columns to read; None for a column that the settings do not ask for."""

    user: str
    item: str
    rating: str | None = None
    time: str | None = None

    @property
    def names(self) -> list[str]:
        wanted = (self.user, self.item, self.rating, self.time)
        return list(dict.fromkeys(name for name in wanted if name is not None))


def has_ids(header: Sequence[str], config: DataConfig, aliases: Mapping[str, str] | None = None) -> bool:
    """Whether a header names both columns of ids."""
    return all(_named(column, header, aliases) is not None for column in (config.user_column, config.item_column))


def _named(column: str, header: Sequence[str], aliases: Mapping[str, str] | None) -> str | None:
    """The name of a column in a header; an alias serves only a setting that is at its default."""
    return next((name for name in (column, (aliases or {}).get(column)) if name in header), None)


def wanted_columns(
    path: Path,
    header: Sequence[str],
    config: DataConfig,
    *,
    times: bool = False,
    aliases: Mapping[str, str] | None = None,
    otherwise: str = "",
    declared: bool = False,
) -> Columns:
    """The columns that the settings ask for.

    Args:
        path: for the error.
        header: all columns of the file.
        config: names the columns. Ratings are read only for `min_rating`, times only for `test_from`.
        times: read the times in any case.
        aliases: the names that a known kind of file has for columns whose settings are at their defaults.
        otherwise: another way out for an error about a missing column of ids.
        declared: whether the file declares its columns, so that no name of a column is an id.

    Raises:
        DataFileError: a column is missing, or the file has it twice.
    """
    # A first line that is no header may have ids, and so may the keys of JSON objects: such an error is not safe to log.
    is_sure = declared or has_ids(header, config, aliases)

    def found(key: str, way_out: str) -> str:
        column = getattr(config, key)
        name = _named(column, header, aliases)
        if name is None:
            error = DataFileError(str(path), f"has no column {column!r} but {_listed(header)}: set data.{key}{way_out}")
            raise unnamed(error) if is_sure else error
        return name

    user, item = found("user_column", otherwise), found("item_column", otherwise)
    rating = None if config.min_rating is None else found("rating_column", ", or leave data.min_rating out")
    is_timed = times or config.test_from is not None
    time = found("time_column", ", or leave data.test_from out") if is_timed else None
    if user == item:
        raise unusable(path, f"{user!r} cannot hold users and items: set data.item_column")
    columns = Columns(user, item, rating, time)
    for column in columns.names:
        if header.count(column) > 1:
            raise unusable(path, f"has {header.count(column)} columns {column!r}: rename all but one")
    return columns


def _listed(header: Sequence[str]) -> str:
    """Column names for one line of an error. A file without a header can seem to have thousands, of any characters."""
    return some_of([name if name.isprintable() else repr(name) for name in header], 20)


def rated(log: Log, config: DataConfig) -> Log:
    """The rows that are rated high enough; the others are counted in `left_out`."""
    if config.min_rating is None or log.ratings is None:
        return log
    kept = log.ratings >= config.min_rating
    n_below = len(kept) - int(kept.sum())
    if not n_below:
        return log
    return replace(log.where(kept), left_out={**log.left_out, BELOW_RATING: n_below})


# ---- the whole log ----------------------------------------------------------------------------------------------------


def check_something_left(source: str, config: DataConfig, account: Account, highest: float) -> None:
    """Refuse a log that has no row, or of which every row was left out.

    Args:
        source: for the error.
        config: the lowest rating to keep.
        account: of the whole log.
        highest: the highest rating of a row.
    """
    if not account.rows_read:
        raise unusable(source, "holds no interaction")
    if account.rows_read > account.n_left_out:
        return
    if account.left_out.get(BELOW_RATING) == account.rows_read:
        assert config.min_rating is not None, "without a lowest rating no row is left out"
        raise unusable(source, f"no rating reaches data.min_rating {config.min_rating:g}; the highest is {highest:g}")
    raise unusable(source, f"every row was left out ({listed(account.left_out)}): check the columns")


def check_trainable(source: str, n_train: int) -> None:
    """Refuse a log that leaves nothing to learn from once the other sets are held out."""
    if not n_train:
        raise unusable(
            source,
            "no pair is left to train on: give more data, lower data.test_share and data.valid_share, or set a later "
            "data.test_from",
        )


def concatenated(logs: Sequence[Log]) -> Log:
    """The rows of several files, one after the other."""
    whole = Account.together([log.account() for log in logs])
    with_rows = [log for log in logs if len(log)]
    ratings = [log.ratings for log in with_rows if log.ratings is not None]
    times = [log.times for log in with_rows if log.times is not None]
    return Log(
        _concatenated([log.users for log in logs]),
        _concatenated([log.items for log in logs]),
        np.concatenate(ratings) if ratings and len(ratings) == len(with_rows) else None,
        Times.together(times) if times and len(times) == len(with_rows) else None,
        whole.left_out,
        whole.notices,
    )


def _concatenated(columns: Sequence[Ids]) -> Ids:
    whole = pa.concat_arrays([column.distinct for column in columns]).dictionary_encode()
    starts = np.cumsum([0, *(len(column.distinct) for column in columns[:-1])])
    places = np.concatenate([column.codes + start for column, start in zip(columns, starts, strict=True)])
    return Ids(whole.dictionary, whole.indices.to_numpy()[places], all(column.integers for column in columns))
