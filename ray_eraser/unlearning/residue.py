"""The search for traces of erased ids on disk: in a deployment's store, its ledger, and logs.

Every file is searched as bytes. Parquet, safetensors and the rows of a SQLite file are also decoded, and gzip is unpacked,
because compressed content is not visible from outside. The report names files that could not be decoded.

This rule says when a stretch of bytes stands for an id:

- An id is *distinctive* if it has at least 6 characters, or at least 9 if all of them are digits. Logs are full of shorter
  numbers: process ids, ports, dates, fractions of seconds. A distinctive id is found wherever its text is a whole word, plain
  or escaped as in JSON or Python. A number next to a decimal point is no whole word.
- A shorter id is found where its place says that it is an id: after `user` or `item` with `id`, `:`, `=` or quotes
  (`"user": 42`, `user_id=42`, `--user-id 42`, `no user '42' here`), and in a list of pairs (`[[42, 7], [43, 8]]`,
  `the first is (42, 7)`), user first.
- A pair is found in a list of pairs, or as any pair if one of its ids is in quotes. If one of its ids is distinctive, the pair
  is also found as fields of a row, with a comma or a tab between. A single id is no trace of a pair: both ids may remain.
- In Parquet, cells that equal the id are found in the columns that can hold it. The parts of a vocabulary hold ids of one kind.
  In other files, `user...` columns are compared with users, `item...` columns with items, other columns of text with both, and
  columns of numbers only if their name ends with `id`.

A deployment's files name ids by their *keys*, keyed hashes of 64 bits. Anyone who reads the seed in the manifest can recognise
an erased id by its key. So the search also looks for the keys of the erased ids: in the `key` column of the vocabularies, and
in every array of 64-bit numbers in interactions, submodels, checkpoints and the aggregate. Such a finding says `key`. Pairs are
sought by the keys of both ids, in interactions.

An *orphan* is an id or a key in one of these files that no interaction of the generation has. The search always looks for
orphans. It counts them and never names them. Search while no batch is being carried out, because the ids of new data are
written before their interactions.

A PostgreSQL ledger is not a file and is not searched. The only temporary files of a deployment are the `.partial-` files in its
store, and there the pieces of a log on its way into the shards (`ingest`). They are searched like all other files.

The report also says which of the given ids are in no vocabulary, and which of those are there under another spelling: a search
for `20007` finds nothing of the user `20007.0`.
"""

from __future__ import annotations

import gzip
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa
from pyarrow import fs

from ray_eraser.data.keyed import places_of
from ray_eraser.errors import InputError
from ray_eraser.store import Store
from ray_eraser.unlearning.erased import UNSOUND, Erased, Lookup, SpelledOtherwise, ref_of
from ray_eraser.unlearning.sought_ids import CONTEXT, SoughtIds, Target, is_distinctive
from ray_eraser.unlearning.sought_keys import INTERACTIONS, Generations, SoughtKeys, key_arrays, pairs_of

_BLOCK = 1 << 20
_CELLS = 512

_IDS = re.compile(r"(?:vocabulary/(?=(?:user|item)s-)|pieces/(?=(?:user|item)-))(user|item)")
"""Files of ids of one kind and their keys."""
_VOCABULARY = re.compile(r"vocabulary/(user|item)s-[0-9]+-[0-9a-f]+\.parquet")
_KEYS = re.compile(r"pieces/(user|item)s")
"""Files of nothing but the keys of one kind."""
_OF_IDS = ("column key", "user_keys", "item_keys", "users", "items")
_WITHOUT_ORPHANS = re.compile(r"(vocabulary|shards|aggregate)/")
_ORPHAN: Target = ("orphan", -1)


@dataclass(frozen=True)
class Finding:
    """One of the ids, or all orphans, in one kind of place in one file.

    Attributes:
        file: its path, in the store if it is there.
        kind: `user`, `item`, `pair` or `orphan`.
        position: in the list of erased ids of this kind, from 0; None for orphans. The id itself is not repeated.
        where: the first place: a byte, a column and row, an array and place, or the file's name. For orphans, only the column
            or array.
        count: number of such places in the file.
    """

    file: str
    kind: str
    position: int | None
    where: str
    count: int


@dataclass(frozen=True)
class ResidueReport:
    """The result of a search.

    Attributes:
        searched_files, searched_bytes: number and size of the searched files on disk.
        findings: by file.
        unreadable: files that could not be searched, with the reasons: damaged, or not readable.
        structured_only: number of the ids that are not distinctive, and were sought in certain places alone. Pairs count.
        not_here: number of the ids and pairs that name a user or an item which no vocabulary has. Erased ids are not here, nor
            are mistyped ones.
        spelled_otherwise: those of them whose user or item a vocabulary has under another spelling. See `Lookup`.
    """

    searched_files: int
    searched_bytes: int
    findings: tuple[Finding, ...]
    unreadable: tuple[str, ...] = ()
    structured_only: int = 0
    not_here: int = 0
    spelled_otherwise: tuple[SpelledOtherwise, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing was found, everything could be searched, and no id is here under another spelling."""
        return not self.findings and not self.unreadable and not self.spelled_otherwise

    def to_dict(self) -> dict[str, Any]:
        spelled = [entry.to_dict() for entry in self.spelled_otherwise]
        return asdict(self) | {"spelled_otherwise": spelled, "clean": self.clean}


def scan(store: Store, ledger_files: Sequence[Path], log_folders: Sequence[Path], erased: Erased) -> ResidueReport:
    """Search all files under a storage path, a ledger's files, and folders of logs for erased ids and for orphans.

    Nothing is written, and no database is opened for writing. Requests that are accepted but not carried out are found too.

    Args:
        store: all files under its storage path are searched, including those of other programs.
        ledger_files: of SQLite ledgers elsewhere; their -wal, -shm and -journal files are searched too.
        log_folders: searched with all folders below them. Single files are accepted too.
        erased: the ids and pairs to look for; empty looks for orphans alone.

    Raises:
        InputError: a ledger file or a log folder does not exist.
    """
    sought = SoughtIds(erased)
    in_store = {file.in_store: file for file in _in_store(store) if file.in_store is not None}
    generations = Generations(store, {path: file.open for path, file in in_store.items()})
    keys = SoughtKeys.of(erased, generations.roots)
    n_files, n_bytes = 0, 0
    findings: list[Finding] = []
    unreadable: list[str] = []
    for file in (*in_store.values(), *_elsewhere(store, ledger_files, log_folders)):
        search = _Search(file, sought, keys, generations)
        try:
            n_bytes += search.run()
        except FileNotFoundError:
            continue  # deleted since it was listed
        except OSError as error:
            search.problem = f"cannot be read ({error.strerror or error})"
        n_files += 1
        name = sought.masked(file.name)
        findings += [
            Finding(name, kind, None if kind == "orphan" else position, where, count)
            for ((kind, position), _), (where, count) in search.found.items()
        ]
        if search.problem:
            unreadable.append(f"{name}: {search.problem}")
    unreadable += [f"{path}: cannot be read, so orphans could not be found" for path in generations.unread]
    lookup = _looked_up(store, list(in_store), erased)
    return ResidueReport(
        n_files,
        n_bytes,
        tuple(findings),
        tuple(unreadable),
        sought.n_structured,
        lookup.not_here,
        lookup.spelled_otherwise,
    )


def _looked_up(store: Store, paths: Sequence[str], erased: Erased) -> Lookup:
    """Look for the ids in every vocabulary under the storage path. A damaged one is left to an audit to name."""
    ids: dict[str, list[Any]] = {"user": [], "item": []}
    for path in paths if erased else ():
        if match := _VOCABULARY.fullmatch(path):
            with suppress(*UNSOUND):
                ids[match[1]].append(store.read_part(ref_of(path)).ids)
    nothing = pa.array([], pa.string())
    with suppress(*UNSOUND):
        return Lookup.of(erased, *(pa.concat_arrays([nothing, *ids[kind]]) for kind in ("user", "item")))
    return Lookup()


def ledger_files(url: str) -> list[Path]:
    """The file of a SQLite ledger, from its URL; none for a server's ledger, or without a URL."""
    if not url:
        return []
    try:
        parsed = sa.engine.make_url(url)
    except sa.exc.ArgumentError as error:
        raise InputError("the ledger's URL cannot be understood: check unlearning.ledger") from error
    return [Path(parsed.database)] if parsed.get_backend_name() == "sqlite" and parsed.database else []


# Which files.


@dataclass(frozen=True)
class _File:
    """A file to search.

    Attributes:
        name: for the report.
        open: opens its bytes as a stream with `seek`.
        in_store: its path under the storage path.
        local: its path on this machine.
    """

    name: str
    open: Callable[[], Any]
    in_store: str | None = None
    local: Path | None = None


def _in_store(store: Store) -> Iterator[_File]:
    if (folder := store.local_folder) is None:
        file_system, root = fs.FileSystem.from_uri(store.uri)
        for path in store.everything():
            yield _File(path, partial(file_system.open_input_file, f"{root}/{path}"), path)
    else:
        for path in store.everything():
            yield _File(path, partial((folder / path).open, "rb"), path, folder / path)


def _elsewhere(store: Store, ledger_files: Sequence[Path], log_folders: Sequence[Path]) -> Iterator[_File]:
    """The files outside the storage path, each once."""
    folder = store.local_folder
    seen = set() if folder is None else {(folder / path).resolve() for path in store.everything()}
    for local in (*_with_siblings(ledger_files), *_below(log_folders)):
        if local.resolve() not in seen:
            seen.add(local.resolve())
            yield _File(str(local), partial(local.open, "rb"), None, local)


def _with_siblings(databases: Sequence[Path]) -> Iterator[Path]:
    for database in databases:
        if not database.is_file():
            raise InputError(f"no ledger file {str(database)!r}: check the path")
        yield database
        yield from (sibling for suffix in ("-wal", "-shm", "-journal") if (sibling := Path(f"{database}{suffix}")).is_file())


def _below(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        if folder.is_file():
            yield folder
        elif folder.is_dir():
            yield from sorted(path for path in folder.resolve().rglob("*") if path.is_file())  # no sockets, which Ray has
        else:
            raise InputError(f"no folder of logs {str(folder)!r}: check the path")


# One file.


class _Search:
    """The search of one file.

    Attributes:
        found: (target, kind of place) -> (first place, number of places).
        problem: why the file could not be searched completely.
    """

    def __init__(self, file: _File, sought: SoughtIds, keys: SoughtKeys, generations: Generations) -> None:
        self._file, self._sought, self._keys, self._generations = file, sought, keys, generations
        self._path = file.in_store or ""
        self.found: dict[tuple[Target, str], tuple[str, int]] = {}
        self.problem = ""

    def run(self) -> int:
        """Search the whole file. Returns its size in bytes."""
        for _, target in self._sought.hits(self._file.name.encode("utf-8", "surrogateescape")):
            self._note(target, "name", "file name")
        with closing(self._file.open()) as stream:
            magic = stream.read(16)
            stream.seek(0)
            self._bytes(stream, "byte {}")
            n_bytes: int = stream.tell()
            stream.seek(0)
            name = self._file.name.rpartition("/")[2]
            if magic.startswith(b"\x1f\x8b"):
                self._gzip(stream)
            elif ".safetensors" in name:
                self._safetensors(stream)
            elif own := _KEYS.fullmatch(self._path):
                self._key_array(own[1], "the file", np.frombuffer(stream.read(n_bytes - n_bytes % 8), "<u8"))
            elif magic.startswith(b"PAR1") or (n_bytes and ".parquet" in name):
                self._parquet(stream)
        if magic == b"SQLite format 3\0" and self._file.local is not None:
            self._sqlite(self._file.local)
        return n_bytes

    def _note(self, target: Target, kind: str, where: str, count: int = 1) -> None:
        first, before = self.found.get((target, kind), (where, 0))
        self.found[target, kind] = first, before + count

    def _bytes(self, stream: Any, place: str) -> None:
        """Search in blocks that overlap, so that nothing between two blocks is missed, and nothing is counted twice."""
        carried, offset, first = b"", 0, 0
        while True:
            block = stream.read(_BLOCK)
            data = carried + block
            end = max(first, len(data) - self._sought.overlap) if block else len(data)
            for start, target in self._sought.hits(data):
                if first <= start < end and self._may_hold(target):
                    self._note(target, place, place.format(offset + start))
            if not block:
                return
            kept = max(0, end - CONTEXT)
            carried, offset, first = data[kept:], offset + kept, end - kept

    def _may_hold(self, target: Target) -> bool:
        """Of two vocabularies, one may hold what was erased from the other."""
        own = _IDS.match(self._path)
        return own is None or target[0] == own[1]

    def _gzip(self, stream: Any) -> None:
        try:
            self._bytes(gzip.GzipFile(fileobj=stream), "byte {}, unpacked")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            self.problem = f"is damaged gzip data, not all could be searched ({error})"

    # Keys.

    def _safetensors(self, stream: Any) -> None:
        arrays: dict[str, np.ndarray] = {}
        is_interactions = INTERACTIONS.match(self._path) is not None
        try:
            for name, array in key_arrays(stream, ("U64", "I32") if is_interactions else ("U64",)):
                arrays[name] = array
                kind = name[:4]
                if array.dtype == np.uint64 and kind in ("user", "item"):
                    self._key_array(kind, name, array)
            if is_interactions:
                for name in ("train", "valid"):
                    for place, target in self._keys.among_pairs(pairs_of(arrays, name)):
                        self._note(target, name, f"keys (the hashes of both ids) in {name}, place {place}")
        except (KeyError, IndexError, ValueError):
            self.problem = "is damaged safetensors data, not all could be searched: delete it, or read it with another tool"

    def _key_array(self, kind: str, name: str, keys: np.ndarray) -> None:
        for place, target in self._keys.among(kind, keys):
            self._note(target, f"key {name}", f"key (the hash of its id) in {name}, place {place}")
        self._orphans(kind, name, keys)

    def _orphans(self, kind: str, name: str, keys: np.ndarray) -> None:
        """Count the keys without an interaction."""
        if name not in _OF_IDS or not _WITHOUT_ORPHANS.match(self._path):
            return
        present = self._generations.present(self._path)
        if present is not None and (count := int((places_of(keys, present[kind]) < 0).sum())):
            self._note(_ORPHAN, f"orphan {name}", f"{kind}s without an interaction, in {name}", count)

    # Parquet.

    def _parquet(self, stream: Any) -> None:
        raw_hits = {target for target, _ in self.found}
        explained: set[Target] = set()
        try:
            with pq.ParquetFile(stream) as file:
                row = 0
                for batch in file.iter_batches(1 << 16, use_threads=False):
                    self._batch(batch, row)
                    explained |= {target for target in raw_hits - explained if self._in_longer_text(batch, target)}
                    row += len(batch)
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            self.problem = "is damaged Parquet and could not be searched within: delete it, or read it with another tool"
            return
        for target in explained:
            # Its bytes are part of another id that is still here; the cells were compared as a whole.
            self.found.pop((target, "byte {}"), None)

    def _in_longer_text(self, batch: Any, target: Target) -> bool:
        text = self._sought.text(target)
        columns = [_plain(column) for column in batch.columns]
        return any(
            pc.any(pc.and_(pc.match_substring(column, text), pc.not_equal(column, text))).as_py()
            for column in columns
            if _is_text(column.type)
        )

    def _batch(self, batch: Any, first_row: int) -> None:
        columns = {name: _plain(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
        if (own := _IDS.match(self._path)) and {"key", "id"} <= set(columns):
            self._cells("id", columns["id"].cast(pa.string()), own[1], first_row)
            keys = pc.fill_null(columns["key"].cast(pa.uint64()), pa.scalar(0, pa.uint64()))
            self._key_cells(own[1], keys.to_numpy(zero_copy_only=False), first_row)
        else:
            self._foreign_batch(columns, first_row)

    def _foreign_batch(self, columns: dict[str, Any], first_row: int) -> None:
        of_kind: dict[str, list[list[str | None]]] = {"user": [], "item": []}
        for name, column in columns.items():
            for kind in _kinds(name, column):
                texts = column.cast(pa.string())
                of_kind[kind].append(texts.to_pylist() if self._sought.pairs else [])
                self._cells(name, texts, kind, first_row)
            if _is_text(column.type) or not pa.types.is_primitive(column.type):
                self._words_in_cells(name, column, first_row)
        if self._sought.pairs:
            self._pair_rows(of_kind, first_row)

    def _cells(self, name: str, texts: Any, kind: str, first_row: int) -> None:
        sought = self._sought.cells[kind]
        if not sought:
            return
        for row in np.flatnonzero(pc.is_in(texts, pa.array(list(sought), pa.string())).to_numpy(zero_copy_only=False)).tolist():
            for target in sought[texts[row].as_py()]:
                self._note(target, name, f"column {name}, row {first_row + row}")

    def _words_in_cells(self, name: str, column: Any, first_row: int) -> None:
        """Find ids among other words, in texts, lists and records."""
        texts = [_all_bytes(value) for value in column.to_pylist()]
        for begin in range(0, len(texts), _CELLS):
            some = texts[begin : begin + _CELLS]
            if any(True for _ in self._sought.hits(b"\n".join(some))):
                for row, text in enumerate(some, first_row + begin):
                    for _, target in self._sought.hits(text):
                        if text != self._sought.text(target).encode():  # otherwise it was counted as a whole cell
                            self._note(target, name, f"column {name}, row {row}")

    def _key_cells(self, kind: str, keys: np.ndarray, first_row: int) -> None:
        for row, target in self._keys.among(kind, keys):
            self._note(target, "key", f"column key (the hash of its id), row {first_row + row}")
        self._orphans(kind, "column key", keys)

    def _pair_rows(self, of_kind: dict[str, list[list[str | None]]], first_row: int) -> None:
        for users in of_kind["user"]:
            for items in of_kind["item"]:
                for row, (user, item) in enumerate(zip(users, items, strict=True), first_row):
                    if user is not None and item is not None:
                        for target in self._sought.pair_cells.get((user, item), ()):
                            self._note(target, "row", f"row {row}")

    # SQLite.

    def _sqlite(self, path: Path) -> None:
        """Search the rows of the last checkpoint. In a page of bytes, a value can touch its neighbour and seem no whole word.

        Free pages and the write-ahead log have been searched as bytes.
        """
        try:
            # Immutable: takes no lock, makes no -shm file, and rolls nothing back.
            with closing(sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1", uri=True)) as connection:
                connection.text_factory = bytes
                tables = [row[0].decode() for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
                for table in tables:
                    name = table.replace('"', '""')
                    self._rows(table, connection.execute(f'SELECT * FROM "{name}"'))  # noqa: S608 - a name, quoted
        except sqlite3.DatabaseError as error:
            self.problem = f"its rows could not be read ({error}): search it again when nobody writes to it"

    def _rows(self, table: str, cursor: sqlite3.Cursor) -> None:
        names = [column[0] for column in cursor.description]
        row = 0
        while some := cursor.fetchmany(_CELLS):
            texts = [[value if isinstance(value, bytes) else b"" for value in values] for values in some]
            suspicious = any(True for _ in self._sought.hits(b"\n".join(text for values in texts for text in values)))
            for values in texts:
                for name, text in zip(names, values, strict=True):
                    place = f"table {table}, column {name}"
                    for _, target in self._sought.hits(text) if suspicious else ():
                        self._note(target, place, f"{place}, row {row}")
                    for target in self._short_cell(text) if name.endswith(("id", "key")) else ():
                        self._note(target, place, f"{place}, row {row}")
                row += 1

    def _short_cell(self, text: bytes) -> list[Target]:
        """The ids that are not distinctive and fill a whole cell, in a column whose name says that it holds ids or keys."""
        whole = text.decode("utf-8", "replace")
        targets = [*self._sought.cells["user"].get(whole, ()), *self._sought.cells["item"].get(whole, ())]
        return [] if is_distinctive(whole) else targets


def _plain(column: Any) -> Any:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()) if _is_text(column.type) else column


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _kinds(name: str, column: Any) -> tuple[str, ...]:
    """The kinds of ids that a column of another program's file may hold."""
    lower = name.lower()
    if not _is_text(column.type) and not pa.types.is_integer(column.type):
        return ()
    if "user" in lower or "item" in lower:
        return tuple(kind for kind in ("user", "item") if kind in lower)
    return ("user", "item") if _is_text(column.type) or lower.endswith("id") else ()


def _all_bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else b"" if value is None else str(value).encode("utf-8", "backslashreplace")
