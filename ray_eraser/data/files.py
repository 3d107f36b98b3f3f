"""Interaction logs in the formats that they come in, read into a `Dataset`.

Every kind of file becomes a `Log`: columns of ids, each a list of distinct values and one code a row. The line of a bad row is
looked up only once there is one.
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
from collections.abc import Callable, Iterator
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
from ray_eraser.data.columns import (
    Columns,
    Fail,
    Ids,
    Log,
    check_something_left,
    check_trainable,
    checked_ids,
    concatenated,
    rated,
    wanted_columns,
)
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.parquet import parquet_columns, read_parquet
from ray_eraser.data.splits import split
from ray_eraser.data.synthetic import synthetic
from ray_eraser.data.vocabulary import Vocabulary, id_column
from ray_eraser.errors import DataFileError

SYNTHETIC = "synthetic"
"""The source that stands for the generated log."""

KNOWN_KINDS = (
    "a folder with train.txt (and valid.txt, test.txt), a folder made by prepare, u.data, ratings.dat, ratings.csv, *.csv, "
    "*.tsv, *.inter, each also with .gz, *.parquet (several in a folder are parts of one log), or the word synthetic"
)
_SETS = ("train", "valid", "test")
_MANIFEST = "dataset.json"
_MOVIELENS = ("u.data", "ratings.dat", "ratings.csv")
_TABLES = (".csv", ".tsv", ".inter", ".parquet")
_BLOCK = 1 << 24  # pyarrow wants every row to fit into a block


def read_dataset(source: str, config: DataConfig, seed: int) -> Dataset:
    """The log at `source`, checked, numbered, and split if it comes without a split.

    Ids are text; those from columns of integers (Parquet) are given back as integers. Repeated pairs are merged; a pair that
    stands in several sets stays in the first of train, valid, test. Rows are in the order of the ids' keys (`Vocabulary`), and
    what is held out depends on the ids and the seed alone.

    Args:
        source: a file or folder of one of `KNOWN_KINDS`, or the word `synthetic`.
        config: columns, the lowest rating to keep, shares to hold out, and the size of the generated log.
        seed: keys the hash that orders and splits, and generates the synthetic log.

    Raises:
        DataFileError: names the file, the line where there is one, and what is wrong.
    """
    if source == SYNTHETIC:
        return _trainable(source, synthetic(config, seed))
    path = Path(source).expanduser()
    with readable(source):
        if path.is_dir():
            return _trainable(source, _read_folder(path, config, seed))
        return _trainable(source, _read_single(path, config, seed))


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Turn what the file system says of a log into our error.

    Raises:
        DataFileError: there is nothing at `source`, or it cannot be read.
    """
    try:
        if not Path(source).expanduser().exists():
            raise DataFileError(source, "no such file or folder: check the path")
        yield
    except OSError as error:
        raise DataFileError(str(error.filename or source), f"cannot be read ({error.strerror or error})") from error


def parquet_parts(source: str) -> list[Path]:
    """The Parquet files that a log without a split consists of, in the order of their names; none where it is of another kind.

    Raises:
        DataFileError: the folder is a prepared dataset that was never completed.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _parquet_parts(path)
    return [path] if _is_parquet(path) else []


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
    users, items = _column(dataset.users), _column(dataset.items)
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


def _column(vocabulary: Vocabulary) -> Any:
    """Its ids by row, as integers where they are to be given back as such."""
    return id_column(vocabulary.ids) if vocabulary.integers else vocabulary.texts


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _trainable(source: str, dataset: Dataset) -> Dataset:
    check_trainable(source, len(dataset.train))
    return dataset


# Folders and files.


def _read_folder(folder: Path, config: DataConfig, seed: int) -> Dataset:
    if (folder / _MANIFEST).exists():
        return _read_prepared(folder, config, seed)
    texts = _texts(folder)
    if texts["train"] is not None:
        _refuse_min_rating(texts["train"], config)
        logs = {name: _read_user_lines(path) for name, path in texts.items() if path is not None}
        dataset = _dataset(folder.resolve().name, logs, seed)
        return split(dataset, config, seed, test=set(logs) == {"train"}, valid="valid" not in logs)
    if len(parts := _parquet_parts(folder)) > 1:
        log = concatenated([_read_log(part, config) for part in parts])
        return _split(folder, folder.resolve().name, log, config, seed)
    path = _only(folder, _movielens(folder) or _tables(folder))
    if path is None:
        raise DataFileError(str(folder), f"holds no interaction log of a known kind; known are {KNOWN_KINDS}")
    return _read_single(path, config, seed)


def _parquet_parts(folder: Path) -> list[Path]:
    tables = _tables(folder)
    is_other = (folder / _MANIFEST).exists() or _texts(folder)["train"] is not None or _movielens(folder)
    if is_other or not all(map(_is_parquet, tables)):
        return []
    # A test set must not be learned from because the folder is not complete.
    if len(tables) > 1 and any(table.stem in _SETS for table in tables):
        problem = (
            f"holds {', '.join(table.name for table in tables[:5])} but no {_MANIFEST}, which completes a prepared dataset"
        )
        raise DataFileError(str(folder), f"{problem}: prepare it again, or rename the files where they are parts of one log")
    return tables


def _texts(folder: Path) -> dict[str, Path | None]:
    return {name: _only(folder, [p for p in _files(folder) if _plain_name(p) == f"{name}.txt"]) for name in _SETS}


def _movielens(folder: Path) -> list[Path]:
    return [p for p in _files(folder) if _plain_name(p) in _MOVIELENS]


def _tables(folder: Path) -> list[Path]:
    return [p for p in _files(folder) if _suffix(p) in _TABLES]


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _read_single(path: Path, config: DataConfig, seed: int) -> Dataset:
    # Where the log lies in a folder of its own, the folder's name says more than `u.data` or `ratings.dat` does.
    name = path.resolve().parent.name if _plain_name(path) in _MOVIELENS else path.name
    return _split(path, name, _read_log(path, config), config, seed)


def _split(path: Path, name: str, log: Log, config: DataConfig, seed: int) -> Dataset:
    kept, n_below = rated(log, config)
    highest = 0.0 if log.ratings is None else float(log.ratings.max(initial=0.0))
    check_something_left(str(path), config, len(log), n_below, highest)
    return split(_dataset(name, {"train": kept}, seed, below_rating=n_below), config, seed, test=True, valid=True)


def _read_log(path: Path, config: DataConfig) -> Log:
    name, suffix = _plain_name(path), _suffix(path)
    if name in ("u.data", "ratings.dat"):
        data, delimiter = _text(path), "\t"
        if name == "ratings.dat":
            # pyarrow's delimiter is one byte; this one stands in no number.
            data, delimiter = data.replace(b"::", b"\x1f"), "\x1f"
        fields = ["user", "item", "rating", "time"]
        return _Table(path, data, delimiter, quoted=False, header=fields).read(Columns("user", "item", "rating"))
    if _is_parquet(path):
        return read_parquet(path, wanted_columns(path, parquet_columns(path), config))
    if suffix == ".inter":
        data = _text(path)
        header = _header(path, data, "\t", quoted=False)
        # RecBole writes `name:type`; the type says nothing that the checks here do not.
        wanted = wanted_columns(path, [field.partition(":")[0] for field in header], config)
        full = {field.partition(":")[0]: field for field in header}
        columns = Columns(full[wanted.user], full[wanted.item], None if wanted.rating is None else full[wanted.rating])
        return _Table(path, data, "\t", quoted=False).read(columns)
    if suffix in (".csv", ".tsv"):
        data, delimiter = _text(path), "," if suffix == ".csv" else "\t"
        header = _header(path, data, delimiter, quoted=True)
        if name == "ratings.csv" and {"userId", "movieId", "rating"} <= set(header):
            config = config.model_copy(update={"user_column": "userId", "item_column": "movieId", "rating_column": "rating"})
        return _Table(path, data, delimiter, quoted=True).read(wanted_columns(path, header, config))
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


def _refuse_min_rating(path: Path, config: DataConfig) -> None:
    if config.min_rating is not None:
        raise DataFileError(str(path), "has no ratings: leave data.min_rating out")


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


def _read_user_lines(path: Path) -> Log:
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

    by_line = checked_ids(pa.array(users, pa.string()), "user", fail_user)
    return Log(
        by_line.take(np.repeat(np.arange(len(lines)), counts)), checked_ids(pa.array(items, pa.string()), "item", fail_item)
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

    def read(self, columns: Columns) -> Log:
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
        users = checked_ids(table[columns.user], "user", self._fail)
        items = checked_ids(table[columns.item], "item", self._fail)
        ratings = None if columns.rating is None else _parsed_ratings(table[columns.rating], self._fail)
        return Log(users, items, ratings)

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


def _read_prepared(folder: Path, config: DataConfig, seed: int) -> Dataset:
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
    columns = Columns("user_id", "item_id", None)
    logs = {}
    for key in _SETS:
        path = folder / f"{key}.parquet"
        missing = set(columns.names) - set(parquet_columns(path))
        if missing:
            raise DataFileError(str(path), f"has no column {', '.join(sorted(missing))}: prepare it again")
        logs[key] = read_parquet(path, columns)
    dataset = _dataset(name, logs, seed, merged=merged, below_rating=below_rating)
    for key, count in expected.items():
        if len(getattr(dataset, key)) != count:
            problem = f"{_MANIFEST} says {count} {key}, the files hold {len(getattr(dataset, key))}: prepare it again"
            raise DataFileError(str(folder), problem)
    return dataset


# From columns to a dataset.


def _parsed_ratings(column: Any, fail: Fail) -> np.ndarray:
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


def _dataset(name: str, logs: dict[str, Log], seed: int, *, merged: int = 0, below_rating: int = 0) -> Dataset:
    """Number the ids of all files together; a pair stays in the first set that has it."""
    users, user_rows = _numbered("user", [log.users for log in logs.values()], seed)
    items, item_rows = _numbered("item", [log.items for log in logs.values()], seed)
    sets = dict.fromkeys(_SETS, Interactions.none())
    seen = Interactions.none()
    for key, rows_of_users, rows_of_items in zip(logs, user_rows, item_rows, strict=True):
        sets[key] = Interactions.of(rows_of_users, rows_of_items).without(seen)
        seen = Interactions.union([seen, sets[key]])
    merged += sum(len(log) for log in logs.values()) - len(seen)
    return Dataset(name, users, items, **sets, merged=merged, below_rating=below_rating)


def _numbered(kind: str, columns: list[Ids], seed: int) -> tuple[Vocabulary, list[np.ndarray]]:
    """(the vocabulary of all ids that a row has, the vocabulary row of every row of every column)."""
    used = [column.used() for column in columns]
    present = [column.present() for column in columns]
    texts = pc.unique(pa.concat_arrays(present))
    vocabulary = Vocabulary.of_texts(kind, texts, seed, integers=all(column.integers for column in columns))
    rows = []
    for column, positions, ids in zip(columns, used, present, strict=True):
        row_of_code = np.zeros(len(column.distinct), np.int64)
        row_of_code[positions] = pc.index_in(ids, value_set=vocabulary.texts).to_numpy()
        rows.append(row_of_code[column.codes])
    return vocabulary, rows
