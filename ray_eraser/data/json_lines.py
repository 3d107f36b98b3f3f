"""Logs of JSON objects, one on each line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_eraser.config import DataConfig
from ray_eraser.data.columns import Log, wanted_columns
from ray_eraser.data.content import beginning, content
from ray_eraser.data.problems import unusable
from ray_eraser.data.raw import Raw, log_of
from ray_eraser.errors import DataFileError, shortened


def read_json_lines(path: Path, config: DataConfig, *, times: bool = False) -> Log:
    """Read a file with one JSON object on each line. A missing key and null are blank.

    Args:
        path: of the file.
        config: names the keys.
        times: read the times in any case.

    Raises:
        DataFileError: names the line and what is wrong.
    """
    lines: list[int] = []
    objects: list[dict[str, Any]] = []
    keys: dict[str, None] = {}  # in order; a key that the first object lacks may be in a later one
    wanted = {config.user_column, config.item_column, config.rating_column, config.time_column}
    for number, line in enumerate(content(path).split(b"\n"), start=1):
        if line.strip():
            whole = _object(path, number, line)
            keys.update(dict.fromkeys(whole))
            objects.append({key: value for key, value in whole.items() if key in wanted})
            lines.append(number)
    columns = wanted_columns(path, list(keys), config, times=times)

    def fail(row: int, problem: str) -> DataFileError:
        return DataFileError(str(path), problem, lines[row])

    def ids(name: str) -> Any:
        return _ids([some.get(name) for some in objects], name, fail)

    def texts(name: str | None) -> Any:
        if name is None:
            return None
        values = (some.get(name) for some in objects)
        return pa.array([value if isinstance(value, str) else json.dumps(value) for value in values], pa.string())

    raw = Raw(path, columns, ids(columns.user), ids(columns.item), texts(columns.rating), texts(columns.time), fail)
    return log_of(raw, config)


def keys_of(path: Path) -> list[str]:
    """The keys of the first object."""
    for number, line in enumerate(beginning(path).split(b"\n"), start=1):
        if line.strip():
            return list(_object(path, number, line))
    raise unusable(path, "is empty")


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        way_out = "write one object on each line (as jq -c '.[]' does with an array)"
        raise unusable(path, f"is no JSON object on one line: {way_out}", number)
    return value


def _ids(values: list[Any], name: str, fail: Any) -> Any:
    """Ids as an Arrow array of integers or floats if all are numbers, else of strings."""
    for row, value in enumerate(values):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float | str)):
            raise fail(row, f"{name} is {shortened(value)}: ids must be whole numbers or strings")
    types = {type(value) for value in values if value is not None}
    if types <= {int, float} and types:
        try:
            if float in types:
                return pa.array(values, pa.float64())
            return pa.array(values, pa.int64())
        except (pa.ArrowInvalid, OverflowError):
            pass  # beyond 64 bits
    return pa.array(
        [value if value is None else _text(value, row, name, fail) for row, value in enumerate(values)], pa.string()
    )


def _text(value: float | str, row: int, name: str, fail: Any) -> str:
    if isinstance(value, float):
        if value != value:  # noqa: PLR0124  # NaN: no id
            return ""
        if not value.is_integer() or abs(value) > 2**53:
            raise fail(row, f"{name} is {value}: ids must be whole numbers or strings")
        return str(int(value))
    return str(value)
