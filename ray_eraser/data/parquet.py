"""Interaction logs in Parquet files, read as a whole or by row groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from ray_eraser.config import DataConfig
from ray_eraser.data.account import NO_ROWS
from ray_eraser.data.columns import Columns, Log, wanted_columns
from ray_eraser.data.raw import Raw, log_of
from ray_eraser.errors import DataFileError

_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@contextmanager
def sound_parquet(path: Path) -> Iterator[None]:
    """Turn the exceptions that pyarrow raises for damaged bytes into our error. Errors of the file system pass through."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        problem = " ".join(str(error).split())
        raise DataFileError(str(path), f"is not a sound Parquet file ({problem}): copy or write it again") from error


def read_parquet(path: Path, config: DataConfig, row_groups: Sequence[int] | None = None, *, times: bool = False) -> Log:
    """Read the rows of a file, or of consecutive row groups alone.

    A column that the file lacks may be in the names of its folders (`user_id=7/`), as Hive and Spark write it. A file without
    rows is passed over, because the types of its columns mean nothing.

    Args:
        path: of the file.
        config: names the columns.
        row_groups: None reads all.
        times: read the times in any case.

    Raises:
        DataFileError: names the file, the row where there is one, and what is wrong.
    """
    with sound_parquet(path), pq.ParquetFile(path) as file:
        if not file.metadata.num_rows:
            return Log.nothing(NO_ROWS)
        stored = list(file.schema_arrow.names)
        from_path = {name: value for name, value in _hive_columns(path).items() if name not in stored}
        columns = wanted_columns(path, [*stored, *from_path], config, times=times, declared=True)
        # Not read_table: it would read columns from the path in its own way.
        groups = range(file.num_row_groups) if row_groups is None else row_groups
        inside = [name for name in columns.names if name not in from_path]
        table = file.read_row_groups(list(groups), columns=inside, use_threads=False)
        table.validate(full=True)
        first_row = sum(file.metadata.row_group(group).num_rows for group in range(min(groups, default=0)))
    for name in columns.names:
        if name in from_path:
            table = table.append_column(name, pa.array([from_path[name]] * len(table), pa.string()))

    def whole(kind: str) -> Any:
        name = columns.user if kind == "user" else columns.item
        if name in from_path:
            return table[name]
        with sound_parquet(path), pq.ParquetFile(path) as again:
            return again.read(columns=[name], use_threads=False)[name]

    return _log_of(path, table, columns, config, first_row, None if row_groups is None else whole)


def log_of_table(name: str, table: Any, config: DataConfig, *, times: bool = False) -> Log:
    """Read an Arrow table as a Parquet file with the same columns is read.

    Args:
        name: stands for the file in errors.
        table: with the columns that `config` names.
        config: names the columns.
        times: read the times in any case.

    Raises:
        DataFileError: names the row where there is one, and what is wrong.
    """
    columns = wanted_columns(Path(name), list(table.column_names), config, times=times, declared=True)
    return _log_of(Path(name), table, columns, config)


def _log_of(
    path: Path,
    table: Any,
    columns: Columns,
    config: DataConfig,
    first_row: int = 0,
    whole: Callable[[str], Any] | None = None,
) -> Log:
    def fail(row: int, problem: str) -> DataFileError:
        return DataFileError(str(path), f"row {first_row + row + 1}: {problem}")

    rating, time = (None if name is None else table[name] for name in (columns.rating, columns.time))
    return log_of(Raw(path, columns, table[columns.user], table[columns.item], rating, time, fail, whole=whole), config)


def _hive_columns(path: Path) -> dict[str, str | None]:
    """Columns that stand in the names of the folders above a file, such as `dt=2024-03-01`."""
    found: dict[str, str | None] = {}
    for part in path.parent.parts:
        name, equals, value = part.partition("=")
        if name and equals:
            found[unquote(name)] = None if value == _NO_VALUE else unquote(value)
    return found


def row_group_sizes(path: Path) -> list[int]:
    """The number of rows in every row group."""
    with sound_parquet(path):
        metadata = pq.read_metadata(path)
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def missing_columns(path: Path, names: Sequence[str]) -> list[str]:
    """The names that a file has no column for."""
    with sound_parquet(path):
        stored = set(pq.read_schema(path).names)
    return [name for name in names if name not in stored]
