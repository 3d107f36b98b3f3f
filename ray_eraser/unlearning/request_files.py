"""Files and data frames of unlearning requests. Every row is checked before any request is submitted.

A file is CSV or TSV with a header (UTF-8, also .gz), or Parquet. Its columns are `user_id` and `item_id`, and optionally
`idempotency_key` and `priority`. One row is one request: a user id alone asks for that user, an item id alone for that item,
both for that pair. With one exception, so that a user who asks for fifty pairs gets one receipt: all rows that name a pair of
the same user and have no key become one request, in the place of the first of them.

A fault of the whole file (its columns, its encoding, a quote that is never closed, damaged data) is always an error, because
nobody can tell which rows follow. A fault of one row (no id, an impossible id, a repeated row) is an error too, unless the
caller asks for the sound rows: then the faulty rows come back with their reasons.

The file is read as a stream, up to the limit, and memory is bounded.
"""

from __future__ import annotations

import csv
import gzip
import re
import sys
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ray_eraser.data.frames import Frame, is_frame, table_of
from ray_eraser.errors import DataFileError, RequestError, shortened
from ray_eraser.ids import RawId, id_problem
from ray_eraser.unlearning.request import Refusal, Submission, UnlearningRequest, key_problem

MOST_AT_ONCE = 10_000
"""The default limit of requests from one file."""

KNOWN_KINDS = "*.csv and *.tsv, each also with .gz, and *.parquet"
_REQUIRED, _OPTIONAL = ("user_id", "item_id"), ("idempotency_key", "priority")
_LONGEST_ROW = 1 << 19  # bytes; the csv module itself refuses a field of more than 131,072 characters
_PARQUET_ROWS = 256  # read at a time: with ids of absurd length a row may be large
_MOST_BYTES = 96 << 20  # of rows that are kept
_BYTES_PER_ROW = 400  # memory of a row besides its texts: tuples, sets, requests
_WHOLE_ROW = ""  # the key of a row's problem, if its fields could not be separated
_INTEGER = re.compile(r"-?[0-9]{1,10}")

T = TypeVar("T")
_Row = tuple[int, dict[str, object]]
"""(row number, fields). A missing value is None or an empty text."""


@dataclass(frozen=True)
class RequestsRead:
    """The requests of a file or a data frame.

    Attributes:
        submissions: in the order of the rows. Their `row` is the line where the row begins, as spreadsheets number it (the
            header is line 1); in Parquet files and data frames it is the position, from 1.
        refused: the faulty rows, if the caller asked for the sound ones.
        rows: number of rows, sound and faulty.
    """

    submissions: tuple[Submission, ...]
    refused: tuple[Refusal, ...]
    rows: int

    def in_order(self, answers: Sequence[T]) -> list[T | Refusal]:
        """The answers to `submissions` with the refused rows among them, in the order of the rows."""
        if not self.refused:
            return list(answers)
        answered = [(submission.row or 0, answer) for submission, answer in zip(self.submissions, answers, strict=True)]
        rows: list[tuple[int, T | Refusal]] = [*answered, *((refusal.row or 0, refusal) for refusal in self.refused)]
        return [answer for _, answer in sorted(rows, key=lambda row: row[0])]


def requests_of(given: Iterable[Submission] | Frame, *, partial: bool = False) -> RequestsRead:
    """The requests of a program: as they are, or the rows of a data frame by `read_frame`. Raises as `read_frame`."""
    if is_frame(given):
        return read_frame(given, partial=partial)
    submissions = tuple(cast("Iterable[Submission]", given))
    return RequestsRead(submissions, (), len(submissions))


def read_frame(frame: Any, *, partial: bool = False) -> RequestsRead:
    """The requests in a data frame, by the rules of files. One of the columns `user_id` and `item_id` may be missing.

    Args:
        frame: of pandas, Polars or Arrow; see `frames.table_of`. Rows are numbered from 1.
        partial: take the sound rows and give the others back, instead of refusing the frame.

    Raises:
        RequestError: the frame, or without `partial` a row of it, cannot be used; names the row.
    """
    draft = _Draft("the data frame", sys.maxsize)
    try:
        table = table_of(frame)
        missing = [name for name in _REQUIRED if name not in table.column_names]
        if len(missing) == 1:
            table = table.append_column(missing[0], pa.nulls(len(table)))
        problems = [
            (row, problem)
            for row, fields in _table_rows(Path(draft.path), table.to_batches(_PARQUET_ROWS), table.schema)
            if (problem := draft.add(row, fields)) is not None
        ]
    except DataFileError as error:
        raise RequestError(str(error)) from error
    for row, problem in problems:
        if not partial:
            raise RequestError(f"row {row}: {problem}; nothing was taken (with partial the sound rows are)")
        draft.refuse(row, problem)
    if not draft.rows:
        raise RequestError("the data frame has no rows")
    return draft.finished()


def read_requests(path: Path, *, limit: int = MOST_AT_ONCE, partial: bool = False) -> RequestsRead:
    """Read the requests in a file.

    Args:
        path: of one of `KNOWN_KINDS`.
        limit: the maximal number of requests. Reading stops there.
        partial: take the sound rows and return the faulty ones, instead of refusing the file.

    Raises:
        DataFileError: the file, or without `partial` a row of it, cannot be used; names the row.
        RequestError: the file holds more than `limit` requests.
    """
    draft = _Draft(str(path), limit)
    try:
        with closing(_rows(path)) as rows:
            for row, fields in rows:
                problem = draft.add(row, fields)
                if problem is None:
                    continue
                if not partial:
                    raise DataFileError(str(path), f"{problem}; nothing was taken (with partial the sound rows are)", row)
                draft.refuse(row, problem)
    except OSError as error:
        raise DataFileError(str(path), f"cannot be read ({error.strerror or error})") from error
    if not draft.rows:
        raise DataFileError(str(path), "holds no request")
    return draft.finished()


@dataclass
class _Pairs:
    """The pairs of one user so far."""

    row: int
    priority: int
    pairs: list[tuple[RawId, RawId]] = field(default_factory=list)


@dataclass
class _Draft:
    """The requests read so far, and the names and keys that no further row may repeat."""

    path: str
    limit: int
    rows: int = 0
    refused: list[Refusal] = field(default_factory=list)
    _requests: list[Submission | _Pairs] = field(default_factory=list)
    _of_user: dict[RawId, _Pairs] = field(default_factory=dict)
    _named: dict[tuple[RawId | None, RawId | None], int] = field(default_factory=dict)
    _keys: dict[str, int] = field(default_factory=dict)
    _bytes: int = 0

    def add(self, row: int, fields: dict[str, object]) -> str | None:
        """Take a row. If it is faulty, take nothing and return its problem."""
        self.rows += 1
        problem = next(_problems(fields), None)
        if problem is not None:
            return problem
        user, item = (cast("RawId | None", _given(fields[name])) for name in _REQUIRED)
        key = cast("str | None", _given(fields.get("idempotency_key")))
        priority = int(cast("int | str", _given(fields.get("priority")) or 0))
        if (first := self._named.get((user, item))) is not None:
            return f"{_name(user, item)} is named twice, first in row {first}"
        if key is not None and (first := self._keys.get(key)) is not None:
            return f"the idempotency key is given twice, first in row {first}"
        if user is not None and item is not None and key is None:
            together = self._of_user.get(user)
            if together is not None and together.priority != priority:
                return (
                    f"has priority {priority}, and row {together.row}, which is put together with it, {together.priority}: "
                    "give all interactions of a user the same, or keys of their own"
                )
            if together is None:
                together = self._of_user[user] = _Pairs(row, priority)
                self._append(together)
            together.pairs.append((user, item))
        else:
            whole = user is None or item is None
            request = UnlearningRequest(user, item) if whole else UnlearningRequest(pairs=((user, item),))  # type: ignore[arg-type]
            self._append(Submission(request, key, priority, row))
        self._named[user, item] = row
        if key is not None:
            self._keys[key] = row
        self._bytes += _BYTES_PER_ROW + sum(len(str(value)) for value in (user, item, key) if value is not None)
        if self._bytes > _MOST_BYTES:
            raise RequestError(f"{self.path} names too much to be taken at a time, more than {row - 1} rows do: split the file")
        return None

    def refuse(self, row: int, reason: str) -> None:
        if len(self.refused) == self.limit:
            first = self.refused[0]
            problem = f"more than {self.limit} rows are at fault, the first is row {first.row}: {first.reason}"
            raise DataFileError(self.path, problem)
        self.refused.append(Refusal(row, reason))

    def finished(self) -> RequestsRead:
        submissions = [
            Submission(UnlearningRequest(pairs=tuple(entry.pairs)), None, entry.priority, entry.row)
            if isinstance(entry, _Pairs)
            else entry
            for entry in self._requests
        ]
        return RequestsRead(tuple(submissions), tuple(self.refused), self.rows)

    def _append(self, entry: Submission | _Pairs) -> None:
        if len(self._requests) == self.limit:
            raise RequestError(
                f"{self.path} holds at least {self.limit + 1} requests, the queue takes at most {self.limit} at a time: "
                "split the file"
            )
        self._requests.append(entry)


# One row.


def _given(value: object) -> object:
    return None if value == "" else value


def _problems(fields: dict[str, object]) -> Iterator[str]:
    """The problems of a single row."""
    if _WHOLE_ROW in fields:
        yield str(fields[_WHOLE_ROW])
        return
    ids = {name.removesuffix("_id"): _given(fields[name]) for name in _REQUIRED}
    if all(raw is None for raw in ids.values()):
        yield "names neither a user nor an item"
    for kind, raw in ids.items():
        if isinstance(raw, str) and not raw.strip():
            yield f"the {kind} id is nothing but white space"
        elif raw is not None and (problem := id_problem(raw)) is not None:
            yield f"the {kind} id {problem}"
    key = _given(fields.get("idempotency_key"))
    if key is not None and (problem := key_problem(key)) is not None:
        yield f"the idempotency key {problem}"
    priority = _given(fields.get("priority"))
    if priority is not None and not (_INTEGER.fullmatch(str(priority)) and -(2**31) <= int(str(priority)) < 2**31):
        yield f"priority {shortened(priority)} is no integer of 32 bits"


def _name(user: object, item: object) -> str:
    if user is None:
        return f"item {shortened(item)}"
    return f"user {shortened(user)}" if item is None else f"the interaction of {shortened(user)} with {shortened(item)}"


# Files.


def _rows(path: Path) -> Generator[_Row, None, None]:
    plain = path.name.removesuffix(".gz").lower()
    if plain.endswith(".parquet") and path.suffix != ".gz":
        return _parquet_rows(path)
    if plain.endswith((".csv", ".tsv")):
        return _text_rows(path, "," if plain.endswith(".csv") else "\t")
    raise DataFileError(str(path), f"is no file of requests of a known kind; known are {KNOWN_KINDS}")


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    known = (*_REQUIRED, *_OPTIONAL)
    listed = ", ".join(shortened(name) for name in columns[:10]) + (" and more" if len(columns) > 10 else "")
    for name in _REQUIRED:
        if name not in columns:
            raise DataFileError(str(path), f"has no column {name!r} but {listed}: the first line must name {', '.join(known)}")
    for name in columns:
        # Ignoring a misspelt idempotency_key would silently break the promise of idempotency.
        if name not in known:
            raise DataFileError(str(path), f"column {shortened(name)} says nothing of a request: known are {', '.join(known)}")
        if columns.count(name) > 1:
            raise DataFileError(str(path), f"has {columns.count(name)} columns {name!r}: keep one")


def _text_rows(path: Path, delimiter: str) -> Generator[_Row, None, None]:
    with path.open("rb") as raw, _sound_gzip(path):
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
        lines = _Lines(path, stream)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        columns: list[str] | None = None
        while True:
            row, lines.in_row = reader.line_num + 1, 0
            try:
                fields = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                raise DataFileError(str(path), f"malformed row ({error}): is a quote not closed?", row) from error
            if not fields:
                continue  # a blank line
            if columns is None:
                columns = fields
                _check_columns(path, columns)
            elif len(fields) != len(columns):
                yield row, {_WHOLE_ROW: f"has {len(fields)} fields, expected {len(columns)}"}
            else:
                yield row, dict(zip(columns, fields, strict=True))
        if columns is None:
            raise DataFileError(str(path), "is empty")


class _Lines:
    """The lines of a text, decoded.

    Attributes:
        in_row: number of bytes since the current row began. The reader of rows sets it to 0.
    """

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._path, self._stream = path, stream
        self._line, self.in_row = 0, 0

    def __iter__(self) -> Iterator[str]:
        while data := self._stream.readline(_LONGEST_ROW):
            self._line += 1
            self.in_row += len(data)
            if self._line == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
            if self.in_row >= _LONGEST_ROW:
                problem = f"ends a row of more than {_LONGEST_ROW - 1} bytes: is a quote or the format wrong?"
                raise DataFileError(str(self._path), problem, self._line)
            try:
                yield data.decode()
            except UnicodeDecodeError as error:
                problem = f"byte {data[error.start]:#04x} is not UTF-8: convert the file"
                raise DataFileError(str(self._path), problem, self._line) from error


@contextmanager
def _sound_gzip(path: Path) -> Iterator[None]:
    try:
        yield
    except EOFError as error:
        raise DataFileError(str(path), "ends within its gzip data: copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        problem = f"is not sound gzip data ({error}): copy it again or drop .gz from its name"
        raise DataFileError(str(path), problem) from error


def _parquet_rows(path: Path) -> Generator[_Row, None, None]:
    try:
        # Opened here, to separate errors of the file system from damaged content.
        with path.open("rb") as raw, pq.ParquetFile(raw) as file:
            yield from _table_rows(path, file.iter_batches(_PARQUET_ROWS, use_threads=False), file.schema_arrow)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        problem = " ".join(str(error).split())
        raise DataFileError(
            str(path), f"is not a sound Parquet file ({shortened(problem, 300)}): copy or write it again"
        ) from error


def _table_rows(path: Path, batches: Iterable[Any], schema: Any) -> Generator[_Row, None, None]:
    """The rows of an Arrow table, in batches."""
    _check_columns(path, schema.names)
    for name in schema.names:
        _check_type(path, name, schema.field(name).type)
    row = 0
    for batch in batches:
        batch.validate(full=True)
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            row += 1
            yield row, dict(zip(schema.names, values, strict=True))


def _check_type(path: Path, name: str, kind: Any) -> None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if pa.types.is_null(kind) or (text and name != "priority") or (pa.types.is_integer(kind) and name != "idempotency_key"):
        return
    wanted = {"idempotency_key": "strings", "priority": "integers"}.get(name, "integers or strings")
    # Pandas turns a column of integers with gaps into floats.
    raise DataFileError(str(path), f"column {name!r} is {kind}: write {wanted}, and null where there is none")
