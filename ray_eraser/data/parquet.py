"""Interaction logs in Parquet files, read whole or by row groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_eraser.data.columns import Columns, Log, checked_ids
from ray_eraser.errors import DataFileError


@contextmanager
def sound_parquet(path: Path) -> Iterator[None]:
    """Turn whatever pyarrow raises for damaged bytes into our error; what the file system says passes through."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        problem = " ".join(str(error).split())
        raise DataFileError(str(path), f"is not a sound Parquet file ({problem}): copy or write it again") from error


def parquet_columns(path: Path) -> list[str]:
    with sound_parquet(path):
        return list(pq.read_schema(path).names)


def read_parquet(path: Path, columns: Columns, row_groups: Sequence[int] | None = None) -> Log:
    """The rows of a file, or of consecutive row groups of it alone.

    Raises:
        DataFileError: names the file, the row where there is one, and what is wrong.
    """
    with sound_parquet(path), pq.ParquetFile(path) as file:
        # Not read_table: that would take `year=2020/` in the path for a column.
        groups = range(file.num_row_groups) if row_groups is None else row_groups
        table = file.read_row_groups(list(groups), columns=columns.names, use_threads=False)
        table.validate(full=True)
        first_row = sum(file.metadata.row_group(group).num_rows for group in range(min(groups, default=0)))

    def fail(row: int, problem: str) -> DataFileError:
        return DataFileError(str(path), f"row {first_row + row + 1}: {problem}")

    for name in columns.names:
        if table[name].null_count:
            row = int(np.flatnonzero(table[name].is_null().to_numpy())[0])
            raise fail(row, f"{name} is null ({table[name].null_count} such rows): leave them out")
    users = checked_ids(_id_column(path, table[columns.user], columns.user), "user", fail)
    items = checked_ids(_id_column(path, table[columns.item], columns.item), "item", fail)
    if columns.rating is None:
        return Log(users, items)
    column = table[columns.rating]
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        raise DataFileError(str(path), f"column {columns.rating!r} is {column.type}: ratings must be numbers")
    ratings = column.cast(pa.float64()).to_numpy()
    bad = np.flatnonzero(~(np.isfinite(ratings) & (ratings >= 0)))
    if len(bad):
        raise fail(int(bad[0]), f"rating {ratings[bad[0]]:g} is no number from 0 up")
    return Log(users, items, ratings)


def _id_column(path: Path, column: Any, name: str) -> Any:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type):
        return column
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        return column.cast(pa.string())
    raise DataFileError(str(path), f"column {name!r} is {column.type}: ids must be integers or strings")
