"""Interaction logs in many formats, read into a `Dataset`.

Every kind of file becomes a `Log`: columns of ids, each a list of distinct values and one code a row. The line of a bad row is
looked up only if there is a bad row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_eraser.config import DataConfig
from ray_eraser.data.account import Account
from ray_eraser.data.columns import Ids, Log, check_something_left, check_trainable, concatenated, rated
from ray_eraser.data.content import plain_name, suffix
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.folders import JSON_LINES, KNOWN_KINDS, MANIFEST, MOVIELENS, SETS, check_kind, found, is_parquet
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.json_lines import read_json_lines
from ray_eraser.data.lists import read_lists
from ray_eraser.data.parquet import missing_columns, read_parquet
from ray_eraser.data.problems import unusable
from ray_eraser.data.splits import split
from ray_eraser.data.synthetic import synthetic
from ray_eraser.data.text import read_table
from ray_eraser.data.vocabulary import Vocabulary, id_column
from ray_eraser.errors import DataFileError

__all__ = [
    "KNOWN_KINDS",
    "SYNTHETIC",
    "dataset_of_log",
    "parquet_parts",
    "read_dataset",
    "readable",
    "time_of_newest",
    "write_dataset",
]

SYNTHETIC = "synthetic"
"""The source that stands for the generated log."""


def read_dataset(source: str, config: DataConfig, seed: int) -> Dataset:
    """Read the log at `source`: check it, number its ids, and split it if it has no split of its own.

    Ids are text; ids from columns of whole numbers (Parquet, JSON) are given back as integers. Repeated pairs are merged. A
    pair that is in several sets stays in the first of train, valid, test. Rows are ordered by the ids' keys (`Vocabulary`).
    Which pairs are held out depends on the ids and the seed, or on the time of a row, and on no other row.

    Args:
        source: a file or folder of one of `KNOWN_KINDS`, or the word `synthetic`.
        config: columns, the lowest rating to keep, pairs to hold out, and the size of the generated log.
        seed: keys the hash that orders and splits, and generates the synthetic log.

    Raises:
        DataFileError: names the file, the line where there is one, and what is wrong.
    """
    if source == SYNTHETIC:
        if config.test_from is not None:
            raise unusable(source, "has no times: set data.test_share in place of data.test_from")
        return _trainable(source, synthetic(config, seed))
    path = Path(source).expanduser()
    with readable(source):
        log = found(path, config)
        if log.kind == "prepared":
            dataset = _read_prepared(path, config, seed)
        elif log.kind == "lists":
            dataset = _read_lists(path, read_lists(log.by_set, config), config, seed)
        else:
            rows = concatenated([_read_log(part, config) for part in log.paths])
            rows = replace(rows, notices=(*log.notices, *rows.notices))
            where = log.paths[0] if len(log.paths) == 1 else path
            dataset = dataset_of_log(_name(where), rows, config, seed, source=str(where))
        return _trainable(source, dataset)


def dataset_of_log(name: str, log: Log, config: DataConfig, seed: int, *, source: str | None = None) -> Dataset:
    """Number and split the rows of a log, as `read_dataset` does.

    Args:
        name: of the log, for people.
        log: all rows.
        config: the lowest rating to keep, and pairs to hold out.
        seed: keys the hash that orders and splits.
        source: for errors; None is `name`.

    Raises:
        DataFileError: nothing is left.
    """
    kept = rated(log, config)
    highest = 0.0 if log.ratings is None else float(log.ratings.max(initial=0.0))
    check_something_left(source or name, config, kept.account(), highest)
    return split(_dataset(name, _by_time(kept, config), seed), config, seed, test=config.test_from is None, valid=True)


def time_of_newest(source: str, config: DataConfig, share: float) -> int | float | str:
    """Find the value of `data.test_from` that makes the newest rows of a log its test set.

    Args:
        source: as for `read_dataset`.
        config: `time_column` counts.
        share: of the rows, between 0 and 1.

    Returns:
        The latest time at or after which at least this share of the rows is: a number or an ISO date, as the log has it.

    Raises:
        DataFileError: as `read_dataset`, or the log has no times.
    """
    path = Path(source).expanduser()
    without = config.model_copy(update={"test_from": None})
    if source == SYNTHETIC:
        raise unusable(source, "has no times")
    with readable(source):
        log = found(path, config)
        if log.kind == "prepared":
            raise unusable(source, "has no times any more: give the log that it was prepared from")
        if log.kind == "lists":
            logs = list(read_lists(log.by_set, without, times=True).values())
        else:
            logs = [_read_log(part, without, times=True) for part in log.paths]
        whole = concatenated([rated(some, config) for some in logs])
    if not len(whole) or whole.times is None:
        raise unusable(source, "holds no interaction")
    return whole.times.newest(share)


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Turn errors of the file system into our error.

    Raises:
        DataFileError: there is nothing at `source`, or it cannot be read.
    """
    try:
        if not Path(source).expanduser().exists():
            raise unusable(source, "no such file or folder: check the path")
        yield
    except OSError as error:
        raise unusable(str(error.filename or source), f"cannot be read ({error.strerror or error})") from error


def parquet_parts(source: str) -> list[Path]:
    """The Parquet files that a log without a split consists of, in the order of their names; none if it is of another kind.

    Raises:
        DataFileError: the folder is a prepared dataset that was never completed, or holds no log.
    """
    log = found(Path(source).expanduser(), DataConfig())  # settings do not matter to Parquet files
    return list(log.paths) if log.is_parquet else []


def write_dataset(dataset: Dataset, folder: Path, config: DataConfig) -> None:
    """Write `train.parquet`, `valid.parquet`, `test.parquet` with raw ids, then `dataset.json`, which completes the folder.

    Args:
        dataset: a dataset that `read_dataset` returned.
        folder: made if missing; a dataset that is there already is replaced.
        config: the settings that the dataset was read with. The folder has no ratings and no times, so a later reader with
            another `min_rating` or `test_from` is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Without this file, nobody takes a half-written folder for a dataset.
    (folder / MANIFEST).unlink(missing_ok=True)
    users, items = _column(dataset.users), _column(dataset.items)
    counts: dict[str, int] = {}
    for name in SETS:
        pairs: Interactions = getattr(dataset, name)
        counts[name] = len(pairs)
        table = pa.table({"user_id": users.take(pa.array(pairs.users)), "item_id": items.take(pa.array(pairs.items))})
        _replace(folder / f"{name}.parquet", partial(pq.write_table, table))
    manifest = {
        "name": dataset.name,
        "users": len(dataset.users),
        "items": len(dataset.items),
        **counts,
        "rows_read": dataset.rows_read,
        "merged": dataset.merged,
        "left_out": dict(dataset.left_out),
        "notices": list(dataset.notices),
        "min_rating": config.min_rating,
        "test_from": config.test_from,
    }
    _replace(folder / MANIFEST, lambda part: part.write_text(json.dumps(manifest, indent=2) + "\n", "utf-8"))


def _column(vocabulary: Vocabulary) -> Any:
    """Its ids by row, as integers if they are given back as such."""
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


# ---- kinds of logs ----------------------------------------------------------------------------------------------------


def _name(path: Path) -> str:
    """The name of a log. The folder's name says more than `u.data` or `ratings.dat` does."""
    if path.is_dir():
        return path.resolve().name
    return path.resolve().parent.name if plain_name(path) in MOVIELENS else path.name


def _read_log(path: Path, config: DataConfig, *, times: bool = False) -> Log:
    check_kind(path)
    if is_parquet(path):
        return read_parquet(path, config, times=times)
    if suffix(path) in JSON_LINES:
        return read_json_lines(path, config, times=times)
    return read_table(path, config, times=times)


def _read_lists(folder: Path, logs: Mapping[str, Log], config: DataConfig, seed: int) -> Dataset:
    kept = {name: rated(log, config) for name, log in logs.items()}
    if config.test_from is not None and "test" in kept:
        raise unusable(folder, "has a test.txt: leave data.test_from out, or the file")
    if config.test_from is not None:
        by_time = _by_time(kept.pop("train"), config)
        kept = {name: log for name in SETS for log in [{**by_time, **kept}.get(name)] if log is not None}
    dataset = _dataset(folder.resolve().name, kept, seed)
    return split(dataset, config, seed, test=config.test_from is None and set(kept) == {"train"}, valid="valid" not in kept)


def _by_time(log: Log, config: DataConfig) -> dict[str, Log]:
    """The rows by set: those at or after `data.test_from` are the test set."""
    if config.test_from is None or log.times is None:
        return {"train": log}
    is_test = log.times.from_(config.test_from)
    # The rows that were left out are counted once.
    return {"train": log.where(~is_test), "test": replace(log.where(is_test), left_out={}, notices=())}


def _read_prepared(folder: Path, config: DataConfig, seed: int) -> Dataset:
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text("utf-8"))
        name = str(manifest["name"])
        expected = {key: int(manifest[key]) for key in ("users", "items", *SETS)}
        account = Account(
            int(manifest["rows_read"]),
            int(manifest["merged"]),
            {str(reason): int(count) for reason, count in manifest["left_out"].items()},
            notices=tuple(map(str, manifest["notices"])),
        )
        prepared_with = {key: manifest[key] for key in ("min_rating", "test_from")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # a UnicodeDecodeError is a ValueError
        raise DataFileError(str(file), f"does not describe a dataset ({error!r}): prepare it again") from error
    for key, value in prepared_with.items():
        asked = getattr(config, key)
        if asked is not None and asked != value:
            problem = f"was prepared with data.{key} {value}, not {asked}: prepare it again from the log"
            raise unusable(folder, problem)
    logs = {}
    as_written = DataConfig(blank_ids="keep")  # what is a blank id was decided when it was prepared
    for key in SETS:
        path = folder / f"{key}.parquet"
        if missing := missing_columns(path, ["user_id", "item_id"]):
            raise unusable(path, f"has no column {', '.join(missing)}: prepare it again")
        logs[key] = read_parquet(path, as_written)
    counted = _dataset(name, logs, seed)
    dataset = replace(
        counted, rows_read=account.rows_read, merged=account.merged, left_out=account.left_out, notices=account.notices
    )
    for key, count in expected.items():
        if len(getattr(dataset, key)) != count:
            problem = f"{MANIFEST} says {count} {key}, the files hold {len(getattr(dataset, key))}: prepare it again"
            raise unusable(folder, problem)
    return dataset


# ---- from columns to a dataset ----------------------------------------------------------------------------------------


def _dataset(name: str, logs: Mapping[str, Log], seed: int) -> Dataset:
    """Number the ids of all files together; a pair stays in the first set that has it."""
    users, user_rows = _numbered("user", [log.users for log in logs.values()], seed)
    items, item_rows = _numbered("item", [log.items for log in logs.values()], seed)
    sets = dict.fromkeys(SETS, Interactions.none())
    seen = Interactions.none()
    for key, rows_of_users, rows_of_items in zip(logs, user_rows, item_rows, strict=True):
        sets[key] = Interactions.of(rows_of_users, rows_of_items).without(seen)
        seen = Interactions.union([seen, sets[key]])
    account = Account.together([log.account() for log in logs.values()])
    merged = sum(len(log) for log in logs.values()) - len(seen)
    train, valid, test = (sets[key] for key in SETS)
    return Dataset(name, users, items, train, valid, test, merged, account.rows_read, account.left_out, account.notices)


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
