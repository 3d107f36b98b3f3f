"""Times of interactions: numbers as a log has them, or dates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_eraser.config import DataConfig, moment
from ray_eraser.data.problems import unnamed, unusable
from ray_eraser.errors import DataFileError

_MEND = "mend it, or leave data.test_from out"


@dataclass(frozen=True, eq=False)
class Times:
    """A column of times.

    Attributes:
        values: (n,) float64: the numbers of the log, or seconds since 1970 for dates.
        dates: whether the log has dates. Dates without a time zone are in UTC.
    """

    values: np.ndarray
    dates: bool

    def take(self, chosen: np.ndarray) -> Times:
        return Times(self.values[chosen], self.dates)

    @classmethod
    def together(cls, parts: Sequence[Times]) -> Times:
        return cls(np.concatenate([part.values for part in parts]), parts[0].dates)

    def from_(self, test_from: float | str) -> np.ndarray:
        """Mask (n,) of the times at or after a moment of the same kind."""
        return np.asarray(self.values >= moment(test_from)[0])

    def newest(self, share: float) -> float | int | str:
        """The latest time at or after which at least `share` of the times are, as `data.test_from` takes it."""
        ordered = np.sort(self.values)
        value = float(ordered[len(ordered) - max(1, math.ceil(share * len(ordered)))])
        if self.dates:
            return datetime.fromtimestamp(value, UTC).replace(tzinfo=None).isoformat()
        return int(value) if value.is_integer() else value


def times_of(path: Path, name: str, column: Any, config: DataConfig, fail: Callable[[int, str], DataFileError]) -> Times:
    """Read a column of numbers, of dates, or of either as text.

    Args:
        path: of the file, for errors.
        name: of the column, for errors.
        column: an Arrow array.
        config: `test_from`, if set, must be of the same kind.
        fail: makes the error for a row.

    Raises:
        DataFileError: a row has no time, or a time of another kind.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise unnamed(fail(row, f"{name} is null: {_MEND}"))
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        micros = column.cast(pa.timestamp("us", kind.tz if pa.types.is_timestamp(kind) else None), safe=False)
        found = Times(micros.cast(pa.int64()).to_numpy() / 1e6, dates=True)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = column.cast(pa.float64(), safe=False).to_numpy()
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise fail(int(bad[0]), f"{name} {values[bad[0]]:g} is no time: {_MEND}")
        found = Times(values, dates=False)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        found = _parsed(name, column.cast(pa.string()), fail)
    else:
        raise unusable(path, f"column {name!r} is {kind}: times must be numbers or dates; set data.time_column")
    if config.test_from is not None and len(column) and found.dates != moment(config.test_from)[1]:
        have, asked = ("dates", "a number") if found.dates else ("numbers", "a date")
        raise unusable(path, f"column {name!r} holds {have}, and data.test_from is {asked}: write it as the column has it")
    return found


def _parsed(name: str, column: Any, fail: Callable[[int, str], DataFileError]) -> Times:
    encoded = column.dictionary_encode()
    texts, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    if not texts:
        return Times(np.zeros(0), dates=False)
    dates = False
    try:
        float(texts[0])
    except ValueError:
        dates = True
    values = np.array([_value(text, dates=dates) for text in texts], np.float64)[codes]
    bad = np.flatnonzero(np.isnan(values))
    if len(bad):
        wanted = "ISO date such as 2024-03-01 12:00" if dates else "number as in the rows before"
        raise fail(int(bad[0]), f"{name} {texts[codes[bad[0]]][:40]!r} is no {wanted}: {_MEND}")
    return Times(values, dates)


def _value(text: str, *, dates: bool) -> float:
    """A time as a number; NaN for text that is none."""
    try:
        value = moment(text)[0] if dates else float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
