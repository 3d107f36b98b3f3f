"""Data frames as (user id, item id) pairs: pandas, Polars, Arrow tables, and NumPy arrays of shape (n, 2).

A frame is any object that gives its columns by Arrow's PyCapsule interface (`__arrow_c_stream__`) or by the older data frame
interchange protocol (`__dataframe__`). None of these libraries is needed, or imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from pyarrow.interchange import from_dataframe

from ray_eraser.data.problems import some_of
from ray_eraser.data.vocabulary import id_column
from ray_eraser.errors import InputError
from ray_eraser.ids import RawId, id_problem

USER_COLUMN, ITEM_COLUMN = "user_id", "item_id"


class ArrowFrame(Protocol):
    """A data frame, or a table, that Arrow can read."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


class InterchangeFrame(Protocol):
    """A data frame of an older library."""

    def __dataframe__(self, nan_as_null: bool = False, allow_copy: bool = True) -> object: ...


Frame = ArrowFrame | InterchangeFrame
Pairs = Iterable[tuple[RawId, RawId]] | np.ndarray | Frame
"""(user id, item id) pairs as callers have them."""


def is_frame(source: object) -> bool:
    """Whether something is a data frame or an Arrow table."""
    return isinstance(source, pa.Table | pa.RecordBatch) or any(
        hasattr(type(source), name) for name in ("__arrow_c_stream__", "__dataframe__")
    )


def table_of(frame: Any) -> Any:
    """A data frame as an Arrow table, categories as their values. An index is no column: use reset_index() in pandas.

    Raises:
        InputError: it has no columns, or a column that Arrow cannot hold, such as one of integers and strings.
    """
    try:
        if isinstance(frame, pa.Table):
            table = frame
        elif hasattr(type(frame), "__arrow_c_stream__") or isinstance(frame, pa.RecordBatch):
            table = pa.table(frame)
        else:
            table = from_dataframe(frame)
    except (pa.ArrowException, TypeError, ValueError) as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(
            f"the {type(frame).__name__} cannot be read as a table ({problem}): give each column one type"
        ) from error
    names = [name for name in table.column_names if not name.startswith("__index_level_")]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"the data frame has several columns {repeated[0]!r}: rename all but one")
    return pa.table({name: _decoded(table[name]) for name in names})


def id_table(frame: Any, user_column: str = USER_COLUMN, item_column: str = ITEM_COLUMN) -> Any:
    """A data frame as an Arrow table with the columns `user_column` and `item_column`: those names, or the two only columns.

    Further columns of a frame that has both names stay.

    Raises:
        InputError: the frame has neither.
    """
    table = table_of(frame)
    names = table.column_names
    if {user_column, item_column} <= set(names):
        return table
    if len(names) == 2 and not {user_column, item_column} & set(names):
        return table.rename_columns([user_column, item_column])
    wanted = f"name the ids {user_column!r} and {item_column!r}, or give these two columns alone"
    raise InputError(f"the data frame has the columns {some_of(list(map(repr, names)), 10)}: {wanted}")


def refuse_floats(table: Any, *names: str) -> None:
    """Refuse ids that are floats, as every other call does. In a file they are what a program made of integers with gaps.

    Raises:
        InputError: one of the columns is of floats.
    """
    for name in names:
        kind = table[name].type
        if pa.types.is_floating(kind):
            raise InputError(f"the column {name!r} is of type {kind}: convert the ids, as with astype('Int64') or astype(str)")


def pairs_of(source: Any) -> Any:
    """(user id, item id) pairs as a list, from a data frame or an array. Any other value comes back, to be checked later.

    Raises:
        InputError: a column holds something other than integers or strings, or has gaps; or an array is not of shape (n, 2).
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 2 or source.shape[1] != 2:
            raise InputError(f"an array of pairs has the shape (n, 2), not {source.shape}: give user ids and item ids")
        return [tuple(row) for row in source.tolist()]
    if hasattr(type(source), "collect") and not isinstance(source, Iterable):
        raise InputError(f"a {type(source).__name__} is not computed yet: collect() it first")
    if not is_frame(source):
        return source
    table = id_table(source)
    columns = [_ids(table[name], name).to_pylist() for name in (USER_COLUMN, ITEM_COLUMN)]
    return list(zip(*columns, strict=True))


def ids_of(source: Any) -> Sequence[RawId]:
    """Ids as a list, from a list, an array or a column of a data frame. They are not checked."""
    return list(source.to_pylist() if hasattr(source, "to_pylist") else source)


def table_of_pairs(pairs: Iterable[tuple[RawId, RawId]]) -> Any:
    """Pairs as an Arrow table with the columns `user_id` and `item_id`.

    Raises:
        InputError: a value is no pair, or cannot be an id.
    """
    listed = list(pairs)
    for pair in listed:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"{pair!r} is no pair: name each as (user id, item id)")
        for kind, raw in zip(("user", "item"), pair, strict=True):
            if problem := id_problem(raw):
                raise InputError(f"the {kind} id {problem}")
    sides = ([pair[side] for pair in listed] for side in (0, 1))
    return pa.table(dict(zip((USER_COLUMN, ITEM_COLUMN), map(_id_column, sides), strict=True)))


def _id_column(ids: list[RawId]) -> Any:
    return id_column([raw if isinstance(raw, str) else int(raw) for raw in ids])


def _ids(column: Any, name: str) -> Any:
    kind = column.type
    if column.null_count and not pa.types.is_null(kind):
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise InputError(
            f"the column {name!r} has gaps, {column.null_count} in all, the first in row {row + 1}: drop these rows"
        )
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if len(column) and not is_text and not pa.types.is_integer(kind):
        raise InputError(f"the column {name!r} is of type {kind}: ids are integers or strings")
    return column


def _decoded(column: Any) -> Any:
    """A column of categories as the values that they stand for."""
    if not pa.types.is_dictionary(column.type):
        return column
    values = [
        (chunk.dictionary if pa.types.is_integer(chunk.dictionary.type) else chunk.dictionary.cast(pa.string())).take(
            chunk.indices
        )
        for chunk in column.chunks
    ]
    return pa.chunked_array(values) if values else pa.chunked_array([pa.array([], pa.string())])
