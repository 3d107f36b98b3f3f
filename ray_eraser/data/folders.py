"""Which files of a folder make up an interaction log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_eraser.config import DataConfig
from ray_eraser.data.account import NO_ROWS
from ray_eraser.data.content import OTHER_PACKED, PACKED, plain_name, suffix
from ray_eraser.data.json_lines import keys_of
from ray_eraser.data.problems import some_of, unusable
from ray_eraser.data.text import first_row

KNOWN_KINDS = (
    "a folder with train.txt (and valid.txt, test.txt), a folder made by prepare, u.data, ratings.dat, ratings.csv, *.csv, "
    "*.tsv, *.inter, *.jsonl, *.ndjson or *.json with one object on each line, each also with .gz, .bz2, .xz or .zst, "
    "*.parquet (several in a folder are parts of one log), or the word synthetic"
)
SETS = ("train", "valid", "test")
MANIFEST = "dataset.json"
MOVIELENS = ("u.data", "ratings.dat", "ratings.csv")
PARQUET = (".parquet", ".parq", ".pq")
JSON_LINES = (".jsonl", ".ndjson", ".json")
_TABLES = (".csv", ".tsv", ".inter", *JSON_LINES[:2], *PARQUET)
_TABLE_FORMATS = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}


@dataclass(frozen=True)
class Found:
    """The files of a log.

    Attributes:
        kind: `prepared` for a folder made by prepare, `lists` for train.txt and the like, `tables` for anything else.
        paths: of the files: by set for lists, in the order of their names for tables.
        notices: remarks for people.
    """

    kind: str
    paths: Sequence[Path] = ()
    notices: tuple[str, ...] = ()

    @property
    def by_set(self) -> dict[str, Path]:
        """The files of lists by the name of their set, the training set first."""
        names = {plain_name(path).removesuffix(".txt"): path for path in self.paths}
        return {name: names[name] for name in SETS if name in names}

    @property
    def is_parquet(self) -> bool:
        return self.kind == "tables" and all(map(is_parquet, self.paths))


def is_parquet(path: Path) -> bool:
    return path.suffix.lower() in PARQUET


def found(path: Path, config: DataConfig) -> Found:
    """Find the files that make up the log at `path`.

    Subfolders are searched too, also through links. Files and folders whose name begins with `.` or `_` are passed over, as
    Spark and Hive do.

    Raises:
        DataFileError: there is no log, or it is not clear which files belong to it.
    """
    if not path.is_dir():
        return Found("tables", [path])
    if (path / MANIFEST).exists():
        return Found("prepared")
    here = [own for own in _visible(path) if own.is_file()]
    texts = {name: [own for own in here if plain_name(own) == f"{name}.txt"] for name in SETS}
    if texts["train"]:
        return Found("lists", [_only(path, owns) for owns in texts.values() if owns])
    movielens = [own for own in here if plain_name(own) in MOVIELENS]
    tables = _tables(path)
    if movielens:
        log = _only(path, movielens)
        others = [own for own in tables if own != log]
        notice = f"of the folder, {log.name} is the log; passed over: {_names(path, others)}"
        return Found("tables", [log], (notice,) if others else ())
    if not tables:
        raise unusable(path, f"holds no interaction log of a known kind; known are {KNOWN_KINDS}")
    over = _passed_over(path, tables)
    if len(tables) > 1:
        parts = [table for table in tables if is_parquet(table) or table.stat().st_size]
        _check_parts(path, parts, config)
        empty = (NO_ROWS,) if len(parts) < len(tables) else ()
        return Found("tables", parts or tables, (f"{len(tables)} files are read as the parts of one log", *empty, *over))
    return Found("tables", tables, over)


def _visible(folder: Path) -> list[Path]:
    return sorted(own for own in folder.iterdir() if not own.name.startswith((".", "_")))


def _tables(folder: Path) -> list[Path]:
    """The tables of a folder and its subfolders, in the order of their names.

    Raises:
        DataFileError: a subfolder belongs to a format whose files also hold deleted rows, or a table is packed in a way that
            cannot be read.
    """
    own = _below(folder)
    packed = [path for path in own if path.suffix.lower() in OTHER_PACKED and suffix(path.with_suffix("")) in _TABLES]
    if packed:
        raise unusable(folder, f"holds {_names(folder, packed)}, which is packed: unpack it, or move it out of the folder")
    # Many files that are no log end in .json.
    return [path for path in own if suffix(path) in _TABLES] or [path for path in own if suffix(path) in JSON_LINES]


def _passed_over(folder: Path, tables: list[Path]) -> tuple[str, ...]:
    """A notice if files that end in .json stand beside .jsonl or .ndjson files: they may be parts of the log."""
    others = [path for path in _below(folder) if suffix(path) == ".json" and path not in tables]
    if not others or any(suffix(table) not in JSON_LINES for table in tables):
        return ()
    return (f"passed over: {_names(folder, others)}; rename such files to end in .jsonl if they are parts of the log",)


def _below(folder: Path, above: Sequence[Path] = ()) -> list[Path]:
    """The files of a folder and its subfolders; `above` are the real paths of the folders that the search came through."""
    if (real := folder.resolve()) in above:
        return []  # a link to a folder that is being searched
    for name, kind in _TABLE_FORMATS.items():
        if (folder / name).is_dir():
            _refuse_format(folder, kind)
    if (folder / "metadata").is_dir() and any((folder / "metadata").glob("*.metadata.json")):
        _refuse_format(folder, "Iceberg")
    paths: list[Path] = []
    for own in _visible(folder):
        if own.is_dir():
            paths += _below(own, (*above, real))
        elif own.is_file():
            paths.append(own)
    return paths


def _refuse_format(folder: Path, kind: str) -> None:
    raise unusable(folder, f"is a {kind} table, whose files also hold deleted rows: export its rows to Parquet files")


def _check_parts(folder: Path, tables: list[Path], config: DataConfig) -> None:
    """Make sure that several tables are the parts of one log.

    Raises:
        DataFileError: they are of different kinds, have different columns, or are the sets of an unfinished dataset.
    """
    if any(plain_name(table).partition(".")[0] in SETS for table in tables):
        problem = f"holds {_names(folder, tables)} but no {MANIFEST}, which completes a prepared dataset"
        raise unusable(folder, f"{problem}: prepare it again, or rename the files if they are parts of one log")
    if all(map(is_parquet, tables)):
        return
    kinds = {".jsonl" if suffix(table) in JSON_LINES else suffix(table) for table in tables}
    if len(kinds) == 1 and not any(map(is_parquet, tables)):
        is_json = kinds == {".jsonl"}
        headers = [sorted(keys_of(table)) if is_json else first_row(table, config) for table in tables]
        if all(header == headers[0] for header in headers):
            return
    raise unusable(folder, f"holds {_names(folder, tables)}, which are not parts of one log: keep or name only one of them")


def _only(folder: Path, paths: list[Path]) -> Path:
    if len(paths) > 1:
        raise unusable(folder, f"holds {_names(folder, paths)}: keep or name only one of them")
    return paths[0]


def _names(folder: Path, paths: Sequence[Path]) -> str:
    return some_of([str(path.relative_to(folder)) for path in paths], 5)


def check_kind(path: Path) -> None:
    """Refuse a file of an unknown kind.

    Raises:
        DataFileError: says what to do.
    """
    kind = suffix(path)
    if plain_name(path) in MOVIELENS or (
        kind in (*_TABLES, *JSON_LINES) and not (kind in PARQUET and kind != path.suffix.lower())
    ):
        return
    if path.suffix.lower() in OTHER_PACKED or (kind in PARQUET):
        raise unusable(path, f"is packed: unpack it, or pack it as one of {', '.join(PACKED)}")
    if kind in (".txt", ".dat", ".data", ".log", ".base", ""):
        problem = "may be of any format: rename it to end in .csv or .tsv if it is a table with a header"
        raise unusable(path, f"{problem}; if each line lists a user's items, name it train.txt and give its folder")
    raise unusable(path, f"is of no known kind; known are {KNOWN_KINDS}")
