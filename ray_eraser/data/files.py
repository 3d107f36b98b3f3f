"""Interaction logs in the formats that they come in, read into a `Dataset`.

Every kind of file becomes a `_Log`: columns of ids, each a list of distinct values and one code a row. What is costly per value
(checking, parsing, numbering) is done once for each distinct value. The line of a bad row is looked up only once there is one.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ray_eraser.config import DataConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.splits import split
from ray_eraser.data.synthetic import synthetic
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import DataFileError
from ray_eraser.ids import RawId

SYNTHETIC = "synthetic"
"""The source that stands for the generated log."""

KNOWN_KINDS = (
    "a folder with train.txt (and valid.txt, test.txt), a folder made by prepare, u.data, ratings.dat, ratings.csv, *.csv, "
    "*.tsv, *.inter, each also with .gz, *.parquet, or the word synthetic"
)
_SETS = ("train", "valid", "test")
_MANIFEST = "dataset.json"
_MOVIELENS = ("u.data", "ratings.dat", "ratings.csv")
_TABLES = (".csv", ".tsv", ".inter", ".parquet")
_LONGEST_ID = 1000  # a longer one is a broken quote or a wrong column
_BLOCK = 1 << 24  # pyarrow wants every row to fit into a block
_CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]{0,18})$"

_Fail = Callable[[int, str], DataFileError]
"""(row, problem) -> the error that names the row's line."""


@dataclass(frozen=True, eq=False)
class _Ids:
    """A column of ids: the distinct ones, int64 or string, and for every row the position of its own among them."""

    distinct: Any
    codes: np.ndarray

    def take(self, chosen: np.ndarray) -> _Ids:
        return _Ids(self.distinct, self.codes[chosen])

    def used(self) -> np.ndarray:
        """Ascending positions of the ids that a row has."""
        return np.flatnonzero(np.bincount(self.codes, minlength=len(self.distinct)))


@dataclass(frozen=True, eq=False)
class _Log:
    """The rows of one file."""

    users: _Ids
    items: _Ids
    ratings: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users.codes)


@dataclass(frozen=True)
class _Columns:
    """The names of the columns to take; a rating column that the file does not have is None."""

    user: str
    item: str
    rating: str | None

    @property
    def names(self) -> list[str]:
        return [self.user, self.item] + ([] if self.rating is None else [self.rating])


def read_dataset(source: str, config: DataConfig, seed: int) -> Dataset:
    """The log at `source`, checked, numbered, and split if it comes without a split.

    Ids are integers where all ids of their kind are written as integers, else strings. Repeated pairs are merged; a pair that
    stands in several sets stays in the first of train, valid, test. What is held out depends on the ids and the seed alone.

    Args:
        source: a file or folder of one of `KNOWN_KINDS`, or the word `synthetic`.
        config: columns, the lowest rating to keep, shares to hold out, and the size of the generated log.
        seed: keys the hash that splits, and generates the synthetic log.

    Raises:
        DataFileError: names the file, the line where there is one, and what is wrong.
    """
    if source == SYNTHETIC:
        return _trainable(source, synthetic(config, seed))
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _trainable(source, _read_folder(path, config, seed))
        if not path.exists():
            raise DataFileError(source, "no such file or folder: check the path")
        return _trainable(source, _read_single(path, config, seed))
    except OSError as error:
        raise DataFileError(str(error.filename or source), f"cannot be read ({error.strerror or error})") from error


def write_dataset(dataset: Dataset, folder: Path, config: DataConfig) -> None:
    """Write `train.parquet`, `valid.parquet`, `test.parquet` with raw ids, then `dataset.json`, which completes the folder.

    Args:
        dataset: what `read_dataset` returned.
        folder: made if missing; a dataset that is there already is replaced.
        config: what the dataset was read with. A later reader with another `min_rating` is refused, the ratings being gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Whoever reads the folder before all of it is new must not take it for a dataset.
    (folder / _MANIFEST).unlink(missing_ok=True)
    users, items = pa.array(dataset.users.ids), pa.array(dataset.items.ids)
    counts: dict[str, int] = {}
    for name in _SETS:
        pairs: Interactions = getattr(dataset, name)
        counts[name] = len(pairs)
        table = pa.table({"user_id": users.take(pa.array(pairs.users)), "item_id": items.take(pa.array(pairs.items))})
        _replace(folder / f"{name}.parquet", partial(pq.write_table, table))
    manifest = {
        "name": dataset.name,
        "users": len(dataset.users),
        "items": len(dataset.items),
        **counts,
        "merged": dataset.merged,
        "below_rating": dataset.below_rating,
        "min_rating": config.min_rating,
    }
    _replace(folder / _MANIFEST, lambda part: part.write_text(json.dumps(manifest, indent=2) + "\n", "utf-8"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _trainable(source: str, dataset: Dataset) -> Dataset:
    if not len(dataset.train):
        raise DataFileError(source, "no pair is left to train on: give more data or lower data.test_share and data.valid_share")
    return dataset


# Folders and files.


def _read_folder(folder: Path, config: DataConfig, seed: int) -> Dataset:
    if (folder / _MANIFEST).exists():
        return _read_prepared(folder, config)
    texts = {name: _only(folder, [p for p in _files(folder) if _plain_name(p) == f"{name}.txt"]) for name in _SETS}
    if texts["train"] is not None:
        _refuse_min_rating(texts["train"], config)
        logs = {name: _read_user_lines(path) for name, path in texts.items() if path is not None}
        dataset = _dataset(folder.resolve().name, logs)
        return split(dataset, config, seed, test=set(logs) == {"train"}, valid="valid" not in logs)
    movielens = [p for p in _files(folder) if _plain_name(p) in _MOVIELENS]
    path = _only(folder, movielens or [p for p in _files(folder) if _suffix(p) in _TABLES])
    if path is None:
        raise DataFileError(str(folder), f"holds no interaction log of a known kind; known are {KNOWN_KINDS}")
    return _read_single(path, config, seed)


def _read_single(path: Path, config: DataConfig, seed: int) -> Dataset:
    log = _read_log(path, config)
    if not len(log):
        raise DataFileError(str(path), "holds no interaction")
    kept, n_below = _rated(path, log, config)
    # Where the log lies in a folder of its own, the folder's name says more than `u.data` or `ratings.dat` does.
    name = path.resolve().parent.name if _plain_name(path) in _MOVIELENS else path.name
    return split(_dataset(name, {"train": kept}, below_rating=n_below), config, seed, test=True, valid=True)


def _read_log(path: Path, config: DataConfig) -> _Log:
    name, suffix = _plain_name(path), _suffix(path)
    if name in ("u.data", "ratings.dat"):
        data, delimiter = _text(path), "\t"
        if name == "ratings.dat":
            # pyarrow's delimiter is one byte; this one stands in no number.
            data, delimiter = data.replace(b"::", b"\x1f"), "\x1f"
        fields = ["user", "item", "rating", "time"]
        return _Table(path, data, delimiter, quoted=False, header=fields).read(_Columns("user", "item", "rating"))
    if suffix == ".parquet" and path.suffix != ".gz":
        return _read_parquet(path, _wanted(path, _parquet_columns(path), config))
    if suffix == ".inter":
        data = _text(path)
        header = _header(path, data, "\t", quoted=False)
        # RecBole writes `name:type`; the type says nothing that the checks here do not.
        wanted = _wanted(path, [field.partition(":")[0] for field in header], config)
        full = {field.partition(":")[0]: field for field in header}
        columns = _Columns(full[wanted.user], full[wanted.item], None if wanted.rating is None else full[wanted.rating])
        return _Table(path, data, "\t", quoted=False).read(columns)
    if suffix in (".csv", ".tsv"):
        data, delimiter = _text(path), "," if suffix == ".csv" else "\t"
        header = _header(path, data, delimiter, quoted=True)
        if name == "ratings.csv" and {"userId", "movieId", "rating"} <= set(header):
            config = config.model_copy(update={"user_column": "userId", "item_column": "movieId", "rating_column": "rating"})
        return _Table(path, data, delimiter, quoted=True).read(_wanted(path, header, config))
    raise DataFileError(str(path), f"is of no known kind; known are {KNOWN_KINDS}")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _only(folder: Path, paths: list[Path]) -> Path | None:
    if len(paths) > 1:
        raise DataFileError(str(folder), f"holds {', '.join(p.name for p in paths)}: keep or name only one of them")
    return paths[0] if paths else None


def _plain_name(path: Path) -> str:
    return path.name.removesuffix(".gz")


def _suffix(path: Path) -> str:
    return Path(_plain_name(path)).suffix.lower()


def _wanted(path: Path, header: Sequence[str], config: DataConfig) -> _Columns:
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
    columns = _Columns(config.user_column, config.item_column, rating)
    for column in columns.names:
        if header.count(column) > 1:
            raise DataFileError(str(path), f"has {header.count(column)} columns {column!r}: rename all but one")
    return columns


def _listed(header: Sequence[str]) -> str:
    """Column names for one line of an error; a file without a header can seem to have thousands, of any characters."""
    shown = [name if name.isprintable() else repr(name) for name in header[:20]]
    return ", ".join(shown) + (f" and {len(header) - 20} more" if len(header) > 20 else "")


def _refuse_min_rating(path: Path, config: DataConfig) -> None:
    if config.min_rating is not None:
        raise DataFileError(str(path), "has no ratings: leave data.min_rating out")


def _rated(path: Path, log: _Log, config: DataConfig) -> tuple[_Log, int]:
    """(the rows that are rated high enough, how many are not)."""
    if config.min_rating is None or log.ratings is None:
        return log, 0
    kept = log.ratings >= config.min_rating
    if not kept.any():
        problem = f"no rating reaches data.min_rating {config.min_rating:g}; the highest is {log.ratings.max():g}"
        raise DataFileError(str(path), problem)
    return _Log(log.users.take(kept), log.items.take(kept)), int(len(kept) - kept.sum())


# Text.


def _text(path: Path) -> bytes:
    """The whole file, unpacked, checked to be UTF-8, without a byte order mark."""
    data = path.read_bytes()
    if data and path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except EOFError as error:
            raise DataFileError(str(path), "ends within its gzip data: copy it again") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataFileError(
                str(path), f"is not sound gzip data ({error}): copy it again or drop .gz from its name"
            ) from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise DataFileError(str(path), "is empty")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataFileError(str(path), f"byte {data[error.start]:#04x} is not UTF-8: convert the file", line) from error
    return data


def _read_user_lines(path: Path) -> _Log:
    """Lines of `user item item ...`; a user without items is fine."""
    users: list[bytes] = []
    items: list[bytes] = []
    counts: list[int] = []
    lines: list[int] = []
    for line, text in enumerate(_text(path).split(b"\n"), start=1):
        if fields := text.split():
            users.append(fields[0])
            items += fields[1:]
            counts.append(len(fields) - 1)
            lines.append(line)
    ends = np.cumsum(counts)

    def fail_user(position: int, problem: str) -> DataFileError:
        return DataFileError(str(path), problem, lines[position])

    def fail_item(row: int, problem: str) -> DataFileError:
        return DataFileError(str(path), problem, lines[int(np.searchsorted(ends, row, side="right"))])

    by_line = _checked_ids(pa.array(users, pa.string()), "user", fail_user)
    return _Log(
        by_line.take(np.repeat(np.arange(len(lines)), counts)), _checked_ids(pa.array(items, pa.string()), "item", fail_item)
    )


def _header(path: Path, data: bytes, delimiter: str, *, quoted: bool) -> list[str]:
    for _, fields in _rows(path, data, delimiter, quoted=quoted):
        return fields
    raise DataFileError(str(path), "is empty")


def _rows(path: Path, data: bytes, delimiter: str, *, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """(line where the row ends, fields), blank lines passed over: as pyarrow reads them, slowly, but with line numbers."""
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="")
    reader = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=quoted)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise DataFileError(str(path), f"malformed row ({error})", reader.line_num) from error


@dataclass(frozen=True, eq=False)
class _Table:
    """Rows of delimited text; `quoted` as in RFC 4180; `header` for a file whose first row is data."""

    path: Path
    data: bytes
    delimiter: str
    quoted: bool
    header: list[str] | None = None

    def read(self, columns: _Columns) -> _Log:
        quotes = self.quoted and b'"' in self.data
        if quotes:
            # pyarrow takes a quote that is never closed for one long field and would swallow all rows behind it without a word.
            deque(_rows(self.path, self.data, self.delimiter, quoted=True), maxlen=0)
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(self.data),
                read_options=pa_csv.ReadOptions(column_names=self.header, block_size=_BLOCK),
                parse_options=pa_csv.ParseOptions(
                    delimiter=self.delimiter, quote_char='"' if quotes else False, newlines_in_values=quotes
                ),
                convert_options=pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(columns.names, pa.string()),
                    include_columns=columns.names,
                    check_utf8=False,  # checked for the whole file, to name the line
                ),
            )
        except pa.ArrowInvalid as error:
            raise self._malformed(str(error)) from error
        users = _checked_ids(table[columns.user], "user", self._fail)
        items = _checked_ids(table[columns.item], "item", self._fail)
        ratings = None if columns.rating is None else _parsed_ratings(table[columns.rating], self._fail)
        return _Log(users, items, ratings)

    def _malformed(self, otherwise: str) -> DataFileError:
        expected = None if self.header is None else len(self.header)
        try:
            for line, fields in _rows(self.path, self.data, self.delimiter, quoted=self.quoted):
                expected = expected or len(fields)
                if len(fields) != expected:
                    return DataFileError(str(self.path), f"malformed row: {len(fields)} fields, expected {expected}", line)
        except DataFileError as error:
            return error
        return DataFileError(str(self.path), f"cannot be parsed: {otherwise.splitlines()[0]}")

    def _fail(self, row: int, problem: str) -> DataFileError:
        position = row if self.header is not None else row + 1
        for place, (line, _) in enumerate(_rows(self.path, self.data, self.delimiter, quoted=self.quoted)):
            if place == position:
                return DataFileError(str(self.path), problem, line)
        return DataFileError(str(self.path), problem)


# Parquet.


@contextmanager
def _sound_parquet(path: Path) -> Iterator[None]:
    """Turn whatever pyarrow raises for damaged bytes into our error; what the file system says passes through."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        problem = " ".join(str(error).split())
        raise DataFileError(str(path), f"is not a sound Parquet file ({problem}): copy or write it again") from error


def _parquet_columns(path: Path) -> list[str]:
    with _sound_parquet(path):
        return list(pq.read_schema(path).names)


def _read_parquet(path: Path, columns: _Columns) -> _Log:
    def fail(row: int, problem: str) -> DataFileError:
        return DataFileError(str(path), f"row {row + 1}: {problem}")

    with _sound_parquet(path):
        # Not read_table: that would take `year=2020/` in the path for a column.
        table = pq.ParquetFile(path).read(columns=columns.names, use_threads=False)
        table.validate(full=True)
    for name in columns.names:
        if table[name].null_count:
            row = int(np.flatnonzero(table[name].is_null().to_numpy())[0])
            raise fail(row, f"{name} is null ({table[name].null_count} such rows): leave them out")
    users = _checked_ids(_id_column(path, table[columns.user], columns.user), "user", fail)
    items = _checked_ids(_id_column(path, table[columns.item], columns.item), "item", fail)
    if columns.rating is None:
        return _Log(users, items)
    column = table[columns.rating]
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        raise DataFileError(str(path), f"column {columns.rating!r} is {column.type}: ratings must be numbers")
    ratings = column.cast(pa.float64()).to_numpy()
    bad = np.flatnonzero(~(np.isfinite(ratings) & (ratings >= 0)))
    if len(bad):
        raise fail(int(bad[0]), f"rating {ratings[bad[0]]:g} is no number from 0 up")
    return _Log(users, items, ratings)


def _id_column(path: Path, column: Any, name: str) -> Any:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise DataFileError(
                str(path), f"column {name!r} holds integers beyond 64 bits, signed: write them as strings"
            ) from error
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        return column.cast(pa.string())
    raise DataFileError(str(path), f"column {name!r} is {column.type}: ids must be integers or strings")


def _read_prepared(folder: Path, config: DataConfig) -> Dataset:
    file = folder / _MANIFEST
    try:
        manifest = json.loads(file.read_text("utf-8"))
        name = str(manifest["name"])
        merged, below_rating = int(manifest["merged"]), int(manifest["below_rating"])
        expected = {key: int(manifest[key]) for key in ("users", "items", *_SETS)}
        min_rating = manifest["min_rating"]
    except (ValueError, KeyError, TypeError) as error:  # a UnicodeDecodeError is a ValueError
        raise DataFileError(str(file), f"does not describe a dataset ({error!r}): prepare it again") from error
    if config.min_rating is not None and config.min_rating != min_rating:
        raise DataFileError(
            str(folder),
            f"was prepared with data.min_rating {min_rating}, not {config.min_rating:g}: prepare it again from the log",
        )
    columns = _Columns("user_id", "item_id", None)
    logs = {}
    for key in _SETS:
        path = folder / f"{key}.parquet"
        missing = set(columns.names) - set(_parquet_columns(path))
        if missing:
            raise DataFileError(str(path), f"has no column {', '.join(sorted(missing))}: prepare it again")
        logs[key] = _read_parquet(path, columns)
    dataset = _dataset(name, logs, merged=merged, below_rating=below_rating, keep_types=True)
    for key, count in expected.items():
        if len(getattr(dataset, key)) != count:
            problem = f"{_MANIFEST} says {count} {key}, the files hold {len(getattr(dataset, key))}: prepare it again"
            raise DataFileError(str(folder), problem)
    return dataset


# From columns to a dataset.


def _checked_ids(column: Any, kind: str, fail: _Fail) -> _Ids:
    encoded = column.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    ids = _Ids(encoded.dictionary, encoded.indices.to_numpy())
    if pa.types.is_string(ids.distinct.type):
        problems = {code: problem for code, raw in enumerate(ids.distinct.to_pylist()) if (problem := _problem(raw))}
        if problems:
            row = int(np.flatnonzero(np.isin(ids.codes, list(problems)))[0])
            raise fail(row, f"the {kind} id {problems[int(ids.codes[row])]}")
    return ids


def _problem(raw: str) -> str | None:
    if not raw.strip():
        return "is empty"
    if "\0" in raw:
        return "holds a NUL byte"
    if len(raw) > _LONGEST_ID:
        return f"has {len(raw)} characters, more than {_LONGEST_ID}: is the column or a quote wrong?"
    return None


def _parsed_ratings(column: Any, fail: _Fail) -> np.ndarray:
    encoded = column.dictionary_encode().combine_chunks()
    texts, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    values = np.array([_rating(text) for text in texts], np.float64)
    ratings: np.ndarray = values[codes]
    bad = np.flatnonzero(np.isnan(ratings))
    if len(bad):
        raise fail(int(bad[0]), f"rating {texts[codes[bad[0]]][:40]!r} is no number from 0 up")
    return ratings


def _rating(text: str) -> float:
    """The number, or NaN for what is none or cannot be a rating."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) and value >= 0 else math.nan


def _dataset(name: str, logs: dict[str, _Log], *, merged: int = 0, below_rating: int = 0, keep_types: bool = False) -> Dataset:
    """Number the ids of all files together; a pair stays in the first set that has it."""
    users, user_rows = _numbered("user", [log.users for log in logs.values()], keep_types=keep_types)
    items, item_rows = _numbered("item", [log.items for log in logs.values()], keep_types=keep_types)
    sets = dict.fromkeys(_SETS, Interactions.none())
    seen = Interactions.none()
    for key, rows_of_users, rows_of_items in zip(logs, user_rows, item_rows, strict=True):
        sets[key] = Interactions.of(rows_of_users, rows_of_items).without(seen)
        seen = Interactions.union([seen, sets[key]])
    merged += sum(len(log) for log in logs.values()) - len(seen)
    return Dataset(name, users, items, **sets, merged=merged, below_rating=below_rating)


def _numbered(kind: str, columns: list[_Ids], *, keep_types: bool) -> tuple[Vocabulary, list[np.ndarray]]:
    """(the vocabulary of all ids that a row has, the vocabulary row of every row of every column).

    Args:
        kind: `user` or `item`.
        columns: one a file.
        keep_types: strings stay strings even if all are written as integers.
    """
    used = [column.used() for column in columns]
    distinct = [column.distinct.take(pa.array(positions)) for column, positions in zip(columns, used, strict=True)]
    integers = all(pa.types.is_int64(ids.type) or (not keep_types and _canonical_integers(ids)) for ids in distinct)
    raw: list[list[RawId]] = [ids.cast(pa.int64() if integers else pa.string()).to_pylist() for ids in distinct]
    vocabulary = Vocabulary.of(kind, (raw_id for ids in raw for raw_id in ids))
    row_of = {raw_id: row for row, raw_id in enumerate(vocabulary.ids)}
    rows = []
    for column, positions, ids in zip(columns, used, raw, strict=True):
        row_of_code = np.zeros(len(column.distinct), np.int64)
        row_of_code[positions] = [row_of[raw_id] for raw_id in ids]
        rows.append(row_of_code[column.codes])
    return vocabulary, rows


def _canonical_integers(ids: Any) -> bool:
    if not pc.all(pc.match_substring_regex(ids, _CANONICAL_INTEGER), min_count=0).as_py():
        return False
    try:
        ids.cast(pa.int64())
    except pa.ArrowInvalid:  # nineteen digits may be beyond 64 bits
        return False
    return True
