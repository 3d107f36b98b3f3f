"""Checks the raw columns of a file and turns them into a log, by the same rules for every kind of file.

Checking and parsing a value is costly, so each distinct value goes through it once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_eraser.config import DataConfig
from ray_eraser.data.account import HEADER_LINE, blank
from ray_eraser.data.columns import Columns, Ids, Log
from ray_eraser.data.problems import unnamed, unusable
from ray_eraser.data.times import times_of
from ray_eraser.errors import DataFileError
from ray_eraser.ids import id_problem

Fail = Callable[[int, str], DataFileError]
"""(row, problem) -> the error that names the row's line."""

MISSING_WORDS = frozenset({"nan", "NaN", "None", "null", "NULL", "NA", "<NA>", "NaT", "\\N"})
"""What pandas, R, PostgreSQL and others write where there is no value."""

_MOST_EXACT = 2**53
"""Up to here, a float holds every whole number exactly."""

_WHOLE_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)\.0+")
_NO_RATINGS = "mend it, or leave data.min_rating out to keep every row whatever its rating"


@dataclass(frozen=True, eq=False)
class Raw:
    """The wanted columns of a file as Arrow arrays, before any check. Values may be missing.

    Attributes:
        path: for errors.
        columns: their names.
        users, items: strings or numbers.
        ratings, times: None if not asked for.
        fail: makes the error for a row.
        header: the names that a repeated header line would have; empty if the file cannot have one.
        typed: whether the file says which ids are numbers, so that text is text.
        whole: returns the whole column of users or items, if the arrays are only a part of the file. Counts in errors are of
            the whole file.
        notices: remarks so far.
    """

    path: Path
    columns: Columns
    users: Any
    items: Any
    ratings: Any
    times: Any
    fail: Fail
    header: Sequence[str] = ()
    typed: bool = True
    whole: Callable[[str], Any] | None = None
    notices: tuple[str, ...] = ()


def log_of(raw: Raw, config: DataConfig) -> Log:
    """Check the columns of a file and leave out the rows that have no id.

    Raises:
        DataFileError: names the row and what is wrong.
    """
    users, no_user = _encode(raw, "user", raw.users)
    items, no_item = _encode(raw, "item", raw.items)
    rows = np.arange(len(users.codes))
    is_header = _header_lines(raw, users, items)
    left_out = {HEADER_LINE: int(is_header.sum())}
    rows = rows[~is_header]
    notices = list(raw.notices)
    for kind, column, missing in (("user", users, no_user), ("item", items, no_item)):
        is_blank = missing | np.isin(column.codes, _blank_codes(column, config))
        if is_blank[rows].any() and config.blank_ids != "skip":
            raise _blank_refused(raw, kind, config, int(rows[is_blank[rows]][0]))
        left_out[blank(kind)] = int(is_blank[rows].sum())
        rows = rows[~is_blank[rows]]
    users, items = (_settled(raw, kind, ids.take(rows), rows, notices) for kind, ids in (("user", users), ("item", items)))

    def fail(row: int, problem: str) -> DataFileError:
        return raw.fail(int(rows[row]), problem)

    def chosen(column: Any) -> Any:
        return column if len(rows) == len(column) else column.take(pa.array(rows))

    return Log(
        users,
        items,
        None if raw.ratings is None else _ratings(raw, chosen(raw.ratings), fail),
        None if raw.times is None else times_of(raw.path, str(raw.columns.time), chosen(raw.times), config, fail),
        {reason: count for reason, count in left_out.items() if count},
        tuple(notices),
    )


def _encode(raw: Raw, kind: str, column: Any) -> tuple[Ids, np.ndarray]:
    """(a column's distinct values as text, mask of the rows without one)."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    missing = np.asarray(column.is_null(nan_is_null=True), bool)
    kind_of = column.type
    if pa.types.is_null(kind_of):
        return Ids(pa.array([], pa.string()), np.zeros(len(column), np.int32), integers=True), missing
    if pa.types.is_floating(kind_of) or pa.types.is_decimal(kind_of):
        column = _whole_numbers(kind, column, missing, raw.fail)
    elif pa.types.is_integer(kind_of):
        column = column.fill_null(0)
    elif pa.types.is_string(kind_of) or pa.types.is_large_string(kind_of) or pa.types.is_string_view(kind_of):
        column = column.cast(pa.string()).fill_null("")
    else:
        name = raw.columns.user if kind == "user" else raw.columns.item
        raise unusable(raw.path, f"column {name!r} is {kind_of}: ids must be whole numbers or strings")
    # Not combined before: the text of a long column does not fit into one array.
    encoded = column.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    integers = bool(pa.types.is_integer(encoded.dictionary.type))
    return Ids(encoded.dictionary.cast(pa.string()), encoded.indices.to_numpy(), integers), missing


def _whole_numbers(kind: str, column: Any, missing: np.ndarray, fail: Fail) -> Any:
    """A column of floats or decimals as int64, 0 where there is no value."""
    if pa.types.is_decimal(column.type):
        try:
            return column.cast(pa.int64()).fill_null(0)
        except pa.ArrowInvalid:  # a fraction or a large number: found below
            column = column.cast(pa.float64())
    values = np.where(missing, 0.0, np.asarray(column.fill_null(0), np.float64))
    for is_bad, problem in (
        (~np.isfinite(values) | (values != np.floor(values)), "is no whole number: ids must be whole numbers or strings"),
        (np.abs(values) > _MOST_EXACT, "is a float over 2**53, which may have been rounded: write ids as integers or strings"),
    ):
        if is_bad.any():
            row = int(np.flatnonzero(is_bad)[0])
            raise fail(row, f"the {kind} id {values[row]:.17g} {problem}")
    return pa.array(values.astype(np.int64))


def _header_lines(raw: Raw, users: Ids, items: Ids) -> np.ndarray:
    """Mask of the rows that repeat the header, as in a file that was put together from several.

    Raises:
        DataFileError: a header line in the middle has its columns in another order.
    """
    names = {name.strip() for name in raw.header}

    def named(ids: Ids) -> dict[int, str]:
        texts = ((code, text.removeprefix("\ufeff").strip()) for code, text in enumerate(ids.distinct.to_pylist()))
        return {code: text for code, text in texts if text in names}

    user_names = named(users) if names else {}
    item_names = named(items) if user_names else {}
    is_header = np.isin(users.codes, list(user_names)) & np.isin(items.codes, list(item_names))
    wanted = raw.columns.user.strip(), raw.columns.item.strip()
    for row in np.flatnonzero(is_header).tolist():
        if (user_names[int(users.codes[row])], item_names[int(items.codes[row])]) != wanted:
            raise unnamed(
                raw.fail(row, "is a header line whose columns are in another order: read the files that were joined one by one")
            )
    return is_header


def _blank_codes(ids: Ids, config: DataConfig) -> list[int]:
    if ids.integers:
        return []
    return [code for code, text in enumerate(ids.distinct.to_pylist()) if _is_blank(text, config)]


def _is_blank(text: str, config: DataConfig) -> bool:
    return not text.strip() or (config.blank_ids != "keep" and text in MISSING_WORDS)


def _blank_refused(raw: Raw, kind: str, config: DataConfig, row: int) -> DataFileError:
    """The error for a column with blank ids, with their number in the whole file."""
    column = raw.users if kind == "user" else raw.items
    first = column[row].as_py()
    if raw.whole is not None:
        column = raw.whole(kind)
    ids, missing = _encode(raw, kind, column)
    count = int((missing | np.isin(ids.codes, _blank_codes(ids, config))).sum())
    is_word = isinstance(first, str) and first.strip()
    what = f"the {kind} id {first!r} stands for no {kind}" if is_word else f"the {kind} id is empty"
    keep = "; data.blank_ids=keep takes the word for an id" if is_word else ""
    return unnamed(
        raw.fail(
            row,
            f"{what}, in {count} of {len(column)} rows: set data.blank_ids=skip to pass over such rows, or mend the file{keep}",
        )
    )


def _settled(raw: Raw, kind: str, ids: Ids, rows: np.ndarray, notices: list[str]) -> Ids:
    """The ids, checked; in a file without types, whole numbers that were saved as floats become whole numbers again."""
    column = raw.columns.user if kind == "user" else raw.columns.item
    if ids.integers:
        original = (raw.users if kind == "user" else raw.items).type
        if len(rows) and (pa.types.is_floating(original) or (pa.types.is_decimal(original) and original.scale > 0)):
            notices.append(_AS_WHOLE.format(column))
        return ids
    used = ids.used().tolist()
    texts = ids.distinct.to_pylist()
    problems = {code: problem for code in used if (problem := id_problem(texts[code]))}
    if problems:
        row = int(np.flatnonzero(np.isin(ids.codes, list(problems)))[0])
        raise raw.fail(int(rows[row]), f"the {kind} id {problems[int(ids.codes[row])]}")
    as_floats = [code for code in used if texts[code].endswith(".0") and _WHOLE_FLOAT.fullmatch(texts[code])]
    if raw.typed or not as_floats or not all(map(_WHOLE_FLOAT.fullmatch, (texts[code] for code in used))):
        if as_floats:
            notices.append(f"column {column!r}: some ids look like whole numbers saved as floats (.0); they stay as they are")
        return ids
    whole = [text.partition(".")[0] for text in texts]
    rounded = [code for code in used if abs(int(whole[code])) > _MOST_EXACT]
    if rounded:
        row = int(np.flatnonzero(np.isin(ids.codes, rounded))[0])
        raise unnamed(
            raw.fail(
                int(rows[row]),
                f"the {kind} id is a float over 2**53, which may have been rounded: write ids as integers or strings",
            )
        )
    notices.append(_AS_WHOLE.format(column))
    encoded = pa.array(whole, pa.string()).dictionary_encode()
    return Ids(encoded.dictionary, encoded.indices.to_numpy()[ids.codes])


_AS_WHOLE = "column {!r}: ids are whole numbers saved as floats (.0) and are read as whole numbers"


# ---- ratings ----------------------------------------------------------------------------------------------------------


def _ratings(raw: Raw, column: Any, fail: Fail) -> np.ndarray:
    """A column as ratings, (n,) float64."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _parsed_ratings(column.cast(pa.string()), fail)
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    if not numeric:
        raise unusable(
            raw.path,
            f"column {raw.columns.rating!r} is {kind}: ratings must be numbers; leave data.min_rating out to keep "
            "every row whatever its rating",
        )
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise unnamed(fail(row, f"{raw.columns.rating} is null: {_NO_RATINGS}"))
    ratings: np.ndarray = column.cast(pa.float64()).to_numpy()
    bad = np.flatnonzero(~(np.isfinite(ratings) & (ratings >= 0)))
    if len(bad):
        raise fail(int(bad[0]), f"rating {ratings[bad[0]]:g} is no number from 0 up: {_NO_RATINGS}")
    return ratings


def _parsed_ratings(column: Any, fail: Fail) -> np.ndarray:
    encoded = column.fill_null("").dictionary_encode()
    texts, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    values = np.array([_rating(text) for text in texts], np.float64)
    ratings: np.ndarray = values[codes]
    bad = np.flatnonzero(np.isnan(ratings))
    if len(bad):
        text = texts[codes[bad[0]]][:40]
        comma = " (write 3.5, not 3,5)" if re.fullmatch(r"-?\d+,\d+", text) else ""
        raise fail(int(bad[0]), f"rating {text!r} is no number from 0 up{comma}: {_NO_RATINGS}")
    return ratings


def _rating(text: str) -> float:
    """The number, or NaN for text that cannot be a rating."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) and value >= 0 else math.nan
