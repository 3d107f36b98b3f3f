"""Tables in text files: CSV, TSV, and the kinds of MovieLens and RecBole.

pyarrow reads the rows. Python's slower `csv` reads the same rows again where the number of a line is needed.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from ray_eraser.config import DataConfig
from ray_eraser.data.columns import Columns, Log, has_ids, wanted_columns
from ray_eraser.data.content import beginning, content, plain_name, suffix
from ray_eraser.data.problems import unusable
from ray_eraser.data.raw import Raw, log_of
from ray_eraser.errors import DataFileError

_BLOCK = 1 << 24  # pyarrow wants every row to fit into a block
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_COLONS = "\x1f"
"""Stands for `::` in a file of MovieLens. pyarrow's delimiter is one byte, and no id or number has this one."""

_HEADERLESS = ("u.data", "ratings.dat")
_FIELDS = ["user", "item", "rating", "time"]
"""The columns of these files."""

_OF_FIELDS = {"user_id": "user", "item_id": "item", "timestamp": "time"}
_OF_RATINGS_CSV = {"user_id": "userId", "item_id": "movieId"}
_KNOWN_NAMES = re.compile(
    r"(user|item|movie|customer|product|session|u|i)[ _-]?(id|ids|no|sha1)?|rating|score|time(stamp)?|date"
)
_NO_HEADER = ", or put a header line first if the file has none"
_DATE = re.compile(r"\d{4}-\d\d-\d\d.*")
_MOST_UNNAMED = 4
"""A file without a header may have this many columns: user, item, rating, time."""


def read_table(path: Path, config: DataConfig, *, times: bool = False) -> Log:
    """Read a CSV, TSV or RecBole file, or one of MovieLens.

    Args:
        path: of the file.
        config: names the columns.
        times: read the times in any case.

    Raises:
        DataFileError: names the line where there is one, and what is wrong.
    """
    data = content(path)
    if plain_name(path) == "ratings.dat":
        data = data.replace(b"::", _COLONS.encode())
    table = _table(path, data, config)
    if table.header is None:
        columns = _unnamed_columns(table, config, times=times)
    elif suffix(path) == ".inter":
        # RecBole writes `name:type`. The checks here do not need the type.
        bare = {field.partition(":")[0]: field for field in table.header}
        names = [field.partition(":")[0] for field in table.header]
        wanted = wanted_columns(path, names, config, times=times, otherwise=_NO_HEADER)
        rating, time = (None if name is None else bare[name] for name in (wanted.rating, wanted.time))
        columns = Columns(bare[wanted.user], bare[wanted.item], rating, time)
    else:
        aliases = _aliases(path, table.header)
        columns = wanted_columns(path, table.header, config, times=times, aliases=aliases, otherwise=_NO_HEADER)
    notices = table.check_quotes(columns) if table.quoted else ()
    return replace(table, notices=(*table.notices, *notices)).read(columns, config)


def first_row(path: Path, config: DataConfig) -> list[str] | None:
    """The header of a file; None if it has none."""
    return _table(path, beginning(path), config).header


def looks_like_header(fields: Sequence[str]) -> bool:
    """Whether the first fields of a file are usual names of columns, and no number is among them."""
    return not any(map(is_number, fields)) and all(_KNOWN_NAMES.fullmatch(field.strip().lower()) for field in fields[:2])


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.strip().lower().lstrip("+-") not in ("nan", "inf", "infinity")


def _aliases(path: Path, header: Sequence[str]) -> Mapping[str, str] | None:
    name = plain_name(path)
    if name == "ratings.csv" and {"userId", "movieId", "rating"} <= set(header):
        return _OF_RATINGS_CSV
    return _OF_FIELDS if name in _HEADERLESS and header == _FIELDS else None


def _unnamed_columns(table: _Table, config: DataConfig, *, times: bool) -> Columns:
    """The first two columns of a file without a header.

    Raises:
        DataFileError: they may not be users and items, or the settings ask for further columns.
    """
    path = str(table.path)
    way_out = (
        f"put a line such as {config.user_column},{config.item_column} before the first row, with the name of every column"
    )
    for name, key, is_asked in (
        (config.rating_column, "min_rating", config.min_rating is not None),
        (config.time_column, "test_from", times or config.test_from is not None),
    ):
        if is_asked:
            raise unusable(path, f"has no header line, so data.{key} has no column {name!r}: {way_out}")
    rows = [fields for _, fields in zip(range(50), table.fields(), strict=False)]
    first = rows[0]
    if [field for field in first if field] in ([str(n) for n in range(len(first) - k)] for k in (0, 1)):
        raise unusable(path, f"begins with the numbers of its columns, as pandas writes them, or with a row: {way_out}", 1)
    if not 2 <= len(first) <= _MOST_UNNAMED or _DATE.fullmatch(first[1]):
        raise unusable(path, f"has no header line and {len(first)} columns, which may be anything: {way_out}", 1)
    firsts = [fields[0] for fields in rows]
    if len(rows) > 2 and any(firsts == [str(n + start) for n in range(len(rows))] for start in (0, 1)):
        raise unusable(path, f"has no header line, and its first column counts the rows: {way_out}", 1)
    return Columns(*table.names[:2])


# ---- what a file looks like -------------------------------------------------------------------------------------------


def _table(path: Path, data: bytes, config: DataConfig) -> _Table:
    """Find out the delimiter of a file, whether it has a header line, and whether its fields may be quoted."""
    name, kind = plain_name(path), suffix(path)
    if name in _HEADERLESS:
        table = _Table(path, data, _COLONS if name == "ratings.dat" else "\t", quoted=False, header=None, skip=0)
        first = next(table.fields())
        if has_ids(first, config) or looks_like_header(first):
            return replace(table, header=first, has_header=True)
        return replace(table, header=_FIELDS)
    if kind == ".inter":
        table = _Table(path, data, "\t", quoted=False, header=None, skip=0)
        return replace(table, header=next(table.fields()), has_header=True)
    usual = "\t" if kind == ".tsv" else ","
    told = re.match(rb"sep=([\t -~])\r?\n", data)  # Excel's way to tell the delimiter
    choices = [told[1].decode()] if told else [usual, *(d for d in _DELIMITERS if d != usual)]
    has_quotes = b'"' in data
    quoted = {delimiter: has_quotes and (delimiter != "\t" or _quoted_by_line(data)) for delimiter in choices}
    tables = [_Table(path, data, delimiter, quoted[delimiter], header=None, skip=1 if told else 0) for delimiter in choices]
    firsts = [_first(table) for table in tables]
    named = [n for n, first in enumerate(firsts) if has_ids(first, config, _aliases(path, first))]
    chosen = named[0] if named else max(range(len(choices)), key=lambda n: (len(firsts[n]) > 1 and n == 0, len(firsts[n])))
    table, first = tables[chosen], firsts[chosen]
    if not first:
        first = next(tables[0].fields(), [])  # raises, if the first row is malformed
        raise unusable(path, "is empty")
    notices = []
    if table.delimiter != usual:
        shown = _DELIMITERS.get(table.delimiter, repr(table.delimiter))
        notices.append(f"the fields are separated by {shown}")
    has_header = bool(named) or not _is_data(first, config)
    if not has_header:
        notices.append("the file has no header line: its first column is read as users, its second as items")
    return replace(table, header=first if has_header else None, has_header=has_header, notices=tuple(notices))


def _first(table: _Table) -> list[str]:
    try:
        return next(table.fields(), [])
    except DataFileError:  # quoted in a way that does not fit the delimiter
        return []


def _is_data(first: Sequence[str], config: DataConfig) -> bool:
    """Whether the first row of a file is no header: it has a number or a date, and no usual name of a column of ids."""
    usual = DataConfig()
    if (config.user_column, config.item_column) != (usual.user_column, usual.item_column):
        return False
    is_named = any(_KNOWN_NAMES.fullmatch(field.strip().lower()) for field in first[:2])
    return not is_named and any(is_number(field) or _DATE.fullmatch(field) for field in first)


def _quoted_by_line(data: bytes) -> bool:
    """Whether tab-separated text quotes whole fields, each on one line. Otherwise, a quote is a character like any other."""
    found = False
    for line in data.splitlines():
        if b'"' not in line:
            continue
        for field in line.split(b"\t"):
            if field.startswith(b'"'):
                if not re.fullmatch(rb'"(?:[^"]|"")*"', field):
                    return False
                found = True
    return found


# ---- reading ----------------------------------------------------------------------------------------------------------


class _Lines:
    """The lines of a text, which remembers those since the last `take`."""

    def __init__(self, data: bytes) -> None:
        self._text = io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="")
        self._seen: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._text)
        self._seen.append(line)
        return line

    def take(self) -> list[str]:
        seen, self._seen = self._seen, []
        return seen


@dataclass(frozen=True, eq=False)
class _Table:
    """Rows of delimited text.

    Attributes:
        path, data: the file and its content.
        delimiter: one byte.
        quoted: whether fields may be quoted, as in RFC 4180.
        header: names of the columns; None if they have none.
        skip: lines before the header.
        has_header: whether the first row is the header.
        notices: remarks so far.
    """

    path: Path
    data: bytes
    delimiter: str
    quoted: bool
    header: list[str] | None
    skip: int
    has_header: bool = False
    notices: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of the columns, made up if the file has none."""
        return self.header if self.header is not None else [f"column {n}" for n, _ in enumerate(next(self.fields()), start=1)]

    def read(self, columns: Columns, config: DataConfig) -> Log:
        """Read the rows.

        Raises:
            DataFileError: names the line of the first bad row.
        """
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(self.data),
                read_options=pa_csv.ReadOptions(
                    column_names=None if self.has_header else self.names, block_size=_BLOCK, skip_rows=self.skip
                ),
                parse_options=pa_csv.ParseOptions(
                    delimiter=self.delimiter, quote_char='"' if self.quoted else False, newlines_in_values=self.quoted
                ),
                convert_options=pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(columns.names, pa.string()),
                    include_columns=columns.names,
                    check_utf8=False,  # checked for the whole file, to name the line
                ),
            )
        except pa.ArrowInvalid as error:
            raise self._malformed(str(error)) from error
        rating, time = (None if name is None else table[name] for name in (columns.rating, columns.time))
        usual = [config.user_column, config.item_column, config.rating_column, config.time_column]
        header = self.header if self.has_header and self.header else [*usual, *columns.names]
        as_header = columns if self.has_header else replace(columns, user=config.user_column, item=config.item_column)
        return log_of(
            Raw(
                self.path,
                as_header,
                table[columns.user],
                table[columns.item],
                rating,
                time,
                self._fail,
                header=header,
                typed=False,
                notices=self.notices,
            ),
            config,
        )

    def fields(self) -> Iterator[list[str]]:
        """The fields of every row, the header's first."""
        return (fields for _, fields, _ in self._rows())

    def _rows(self) -> Iterator[tuple[int, list[str], list[str]]]:
        """(line where a row begins, its fields, its lines), without blank lines, as pyarrow reads them."""
        lines = _Lines(self.data)
        reader = csv.reader(
            lines,
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
            strict=self.quoted,
        )
        try:
            for number, fields in enumerate(reader):
                own = lines.take()
                if fields and number >= self.skip:
                    yield reader.line_num - len(own) + 1, fields, own
        except csv.Error as error:
            line = reader.line_num - len(lines.take()) + 1
            raise unusable(self.path, f"malformed row ({error}): is a quote not closed?", line) from error

    def check_quotes(self, columns: Columns) -> tuple[str, ...]:
        """Make sure that no quoted field has swallowed rows, as where two rows each have a lone quote.

        Returns:
            a notice if quoted fields run over line ends.

        Raises:
            DataFileError: names the line of the quote that opens such a field, or is never closed.
        """
        names = self.names
        ids = names.index(columns.user), names.index(columns.item)
        count, longest, where = 0, 0, 0
        for line, fields, own in self._rows():
            if len(own) == 1:
                continue
            if any(self._is_like_a_row(text, fields, ids) for text in own[1:]):
                problem = (
                    f"a quoted field that opens here runs over {len(own)} lines, and they look like rows: "
                    "close the quote, or write it twice where it is part of the text"
                )
                raise unusable(self.path, problem, line)
            count += 1
            if len(own) > longest:
                longest, where = len(own), line
        fields_run = "1 row has a quoted field" if count == 1 else f"{count} rows have a quoted field"
        return (f"{fields_run} over several lines; the longest has {longest} lines from line {where} on",) if count else ()

    def _is_like_a_row(self, line: str, fields: list[str], ids: tuple[int, int]) -> bool:
        """Whether a line within a quoted field looks like a row of its own, as the enclosing row does."""
        line = line.rstrip("\r\n")
        if line.count('"') == 1:  # closes the field
            line = line.removesuffix('"')
        own = line.split(self.delimiter)
        if '"' in line or len(own) != len(fields) or any(field != field.strip() for field in own):
            return False
        return all(own[n] and own[n].isdigit() == fields[n].isdigit() for n in ids if n < len(own))

    def _malformed(self, otherwise: str) -> DataFileError:
        expected = len(self.header) if self.header is not None else None
        try:
            for line, fields, _ in self._rows():
                expected = expected or len(fields)
                if len(fields) != expected:
                    return unusable(self.path, f"malformed row: {len(fields)} fields, expected {expected}", line)
        except DataFileError as error:
            return error
        return DataFileError(str(self.path), f"cannot be parsed: {otherwise.splitlines()[0]}")

    def _fail(self, row: int, problem: str) -> DataFileError:
        position = row + 1 if self.has_header else row
        for place, (line, _, _) in enumerate(self._rows()):
            if place == position:
                return DataFileError(str(self.path), problem, line)
        return DataFileError(str(self.path), problem)
