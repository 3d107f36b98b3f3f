"""The search for what a deployment leaves on disk of ids that were erased: in its store, its ledger, and logs.

Every file is searched as bytes; besides, Parquet and the rows of a SQLite file are decoded, and gzip is unpacked, because what
is compressed cannot be seen from outside. What cannot be decoded is named as such: it was not searched within.

When does a stretch of bytes stand for an id? By this rule:

- An id is *distinctive* if it has at least 6 characters, or 9 where all of them are digits: shorter numbers are process ids,
  ports, dates and fractions of seconds all over a log. A distinctive id is found wherever its text stands as a whole word, as
  it is, or escaped as JSON or Python escape it. A number next to a decimal point is no whole word.
- A shorter id is found where its place says what it is: after `user` or `item` with `id`, `:`, `=` or quotes (`"user": 42`,
  `user_id=42`, `--user-id 42`, `no user '42' here`), and as a member of a list of pairs (`[[42, 7], [43, 8]]`,
  `the first is (42, 7)`), the user first.
- A pair is found as a member of a list of pairs, or with one of its ids in quotes as any pair; where one of its ids is
  distinctive also as fields of a row, with a comma or a tab between them. Either id alone is no trace of it: both may remain.
- In Parquet: cells that equal the id, in the columns that can hold it. A vocabulary holds ids of one kind, interactions hold
  row numbers and no ids; in files of other makers `user...` columns are compared with users, `item...` columns with items, all
  other columns of text with both, numbers only where the column's name ends with `id`. The keyed hashes beside the items' ids
  are compared too: whoever knows the seed, which stands in the manifest, could tell an erased item by its hash.

A PostgreSQL ledger is not a file and is not searched. The package keeps no temporary files of a deployment but the `.partial-`
ones in the store, and there what a log becomes on its way into the shards (`ingest`); they are searched like all others.
"""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa
from pyarrow import fs

from ray_eraser import seeds
from ray_eraser.errors import InputError, StoreError
from ray_eraser.ids import RawId
from ray_eraser.store import Store
from ray_eraser.unlearning.audit import Erased

DISTINCTIVE_TEXT, DISTINCTIVE_NUMBER = 6, 9
"""Characters from which on an id is looked for everywhere, not only where its place says what it is."""

_BLOCK = 1 << 20
_CONTEXT = 64  # bytes before a match that are looked at to judge it
_PREFIX = DISTINCTIVE_TEXT
_FILTER_BITS = 20
_CELLS = 512

_WORD = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz")
_DIGITS = frozenset(b"0123456789")
_VOCABULARY = re.compile(r"vocabulary/(user|item)s-")
_INTERACTIONS = re.compile(r"shards/\d+/interactions-")

Target = tuple[str, int]
"""(`user`, `item` or `pair`, position in the list of them that was given)."""


@dataclass(frozen=True)
class Finding:
    """One of the ids, in one kind of place in one file.

    Attributes:
        file: in the store: its path there.
        kind: `user`, `item` or `pair`.
        position: in the list of erased ids of this kind, from 0. The id itself is not repeated.
        where: the first place: a byte, a column and row, or the file's name.
        count: how many such places there are in the file.
    """

    file: str
    kind: str
    position: int
    where: str
    count: int


@dataclass(frozen=True)
class ResidueReport:
    """What a search found.

    Attributes:
        searched_files, searched_bytes: how much there was, as it lies on disk.
        findings: by file.
        unreadable: files that are packed or compressed and damaged, or may not be read, with the reason.
        structured_only: how many of the ids are not distinctive and were looked for in certain places alone; all pairs are.
    """

    searched_files: int
    searched_bytes: int
    findings: tuple[Finding, ...]
    unreadable: tuple[str, ...] = ()
    structured_only: int = 0

    @property
    def clean(self) -> bool:
        """Nothing was found, and nothing is left that could not be searched."""
        return not self.findings and not self.unreadable

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"clean": self.clean}


def scan(store: Store, ledger_files: Sequence[Path], log_folders: Sequence[Path], erased: Erased) -> ResidueReport:
    """Search everything under a storage path, a ledger's files, and folders of logs, for ids that were erased.

    Nothing is written and no database is opened for writing. What is accepted and not erased yet is found too: it is there.

    Args:
        store: all files under its storage path are searched, whoever made them.
        ledger_files: of SQLite ledgers that are elsewhere; their -wal, -shm and -journal files are searched with them.
        log_folders: with all folders below them; single files may be given too.
        erased: the ids and pairs to look for.

    Raises:
        InputError: one of the ledger files or log folders is not there.
    """
    sought = _Sought(erased)
    keys = _keyed_hashes(store, erased)
    n_files, n_bytes = 0, 0
    findings: list[Finding] = []
    unreadable: list[str] = []
    for file in _all_files(store, ledger_files, log_folders):
        search = _Search(file, sought, keys)
        try:
            n_bytes += search.run()
        except FileNotFoundError:
            continue  # rotated away, or superseded, since it was listed
        except OSError as error:
            search.problem = f"cannot be read ({error.strerror or error})"
        n_files += 1
        name = sought.masked(file.name)
        findings += [Finding(name, *target, where, count) for (target, _), (where, count) in search.found.items()]
        if search.problem:
            unreadable.append(f"{name}: {search.problem}")
    return ResidueReport(n_files, n_bytes, tuple(findings), tuple(unreadable), sought.n_structured)


def ledger_files(url: str) -> list[Path]:
    """The file of a SQLite ledger that is named by URL; none for a server's, or where no URL is given."""
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
        open: its bytes; they can be sought in.
        in_store: the path under the storage path.
        local: where it is on this machine.
    """

    name: str
    open: Callable[[], Any]
    in_store: str | None = None
    local: Path | None = None


def _all_files(store: Store, ledger_files: Sequence[Path], log_folders: Sequence[Path]) -> Iterator[_File]:
    seen: set[Path] = set()
    if (folder := store.local_folder) is None:
        file_system, root = fs.FileSystem.from_uri(store.uri)
        for path in store.everything():
            yield _File(path, partial(file_system.open_input_file, f"{root}/{path}"), path)
    else:
        for path in store.everything():
            local = folder / path
            seen.add(local.resolve())
            yield _File(path, partial(local.open, "rb"), path, local)
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


def _keyed_hashes(store: Store, erased: Erased) -> dict[int, list[Target]]:
    """What would stand beside the erased items in the items' vocabulary, under the seed of any manifest that is there."""
    digests = [match[1] for path in store.everything() if (match := re.fullmatch(r"generations/([0-9a-f]{64})\.json", path))]
    roots = set()
    for digest in digests:
        with suppress(StoreError):  # a damaged manifest is an audit's to name; its bytes are searched all the same
            roots.add(store.read_manifest(digest).config.seed)
    hashes: dict[int, list[Target]] = {}
    for root in roots:
        hashed = seeds.hash_ids([str(raw).encode() for raw in erased.item_ids], seeds.secret(root, "ids"))
        for position, value in enumerate(hashed.tolist()):
            hashes.setdefault(value, []).append(("item", position))
    return hashes


# What an id looks like.


def is_distinctive(raw: RawId) -> bool:
    """Whether an id is looked for everywhere; see the rule above."""
    text = str(raw)
    digits = text.removeprefix("-")
    return len(digits) >= DISTINCTIVE_NUMBER if digits.isdecimal() else len(text) >= DISTINCTIVE_TEXT


def _texts(raw: RawId) -> set[bytes]:
    """The bytes of an id, plain and escaped, without quotes around them."""
    text = str(raw)
    forms = {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]}
    return {form.encode("utf-8", "surrogatepass") for form in forms}


def _tokens(raw: RawId) -> set[bytes]:
    """The bytes of an id as one value in JSON, Python, or on a command line."""
    texts = _texts(raw)
    return texts | {b'"' + text + b'"' for text in texts} | {b"'" + text + b"'" for text in texts}


class _Sought:
    """All ids that are looked for, ready to be found fast, however many there are."""

    def __init__(self, erased: Erased) -> None:
        self.users, self.items = list(erased.user_ids), list(erased.item_ids)
        self.pairs = list(erased.pairs)
        self.cells: dict[str, dict[str, list[Target]]] = {"user": {}, "item": {}}
        self.pair_cells: dict[tuple[str, str], list[Target]] = {}
        self._raw: dict[bytes, list[Target]] = {}  # bytes of distinctive ids
        self._named: dict[str, dict[bytes, list[Target]]] = {"user": {}, "item": {}}  # values of the others
        self._paired: dict[tuple[bytes, bytes], list[Target]] = {}
        self.n_structured = len(self.pairs)
        for kind, ids in (("user", self.users), ("item", self.items)):
            for position, raw in enumerate(ids):
                target = (kind, position)
                self.cells[kind].setdefault(str(raw), []).append(target)
                if is_distinctive(raw):
                    _add(self._raw, _texts(raw), target)
                else:
                    self.n_structured += 1
                    _add(self._named[kind], _tokens(raw), target)
        for position, (user, item) in enumerate(self.pairs):
            target = ("pair", position)
            self.pair_cells.setdefault((str(user), str(item)), []).append(target)
            for one in _tokens(user):
                _add(self._paired, ((one, other) for other in _tokens(item)), target)
            if is_distinctive(user) or is_distinctive(item):
                _add(self._raw, (f"{user}{between}{item}".encode() for between in ",\t"), target)
        self._by_prefix: dict[bytes, list[bytes]] = {}
        for text in self._raw:
            self._by_prefix.setdefault(text[:_PREFIX], []).append(text)
        self._filter = np.zeros(1 << _FILTER_BITS, np.bool_)
        if self._by_prefix:
            self._filter[_hashed(np.frombuffer(b"".join(self._by_prefix), np.uint8))[::_PREFIX]] = True
        longest = max((len(one) + len(other) for one, other in self._paired), default=0)
        self.overlap = 256 + max(longest, *(len(text) for text in self._raw), 0, 0)

    def hits(self, data: bytes) -> Iterator[tuple[int, Target]]:
        """(position, target) of everything that is found in some bytes, by the rule for text."""
        yield from self._whole_words(data)
        if self._named["user"] or self._named["item"]:
            yield from self._after_names(data)
        if self._paired or self._named["user"] or self._named["item"]:
            yield from self._in_pairs(data)

    def masked(self, name: str) -> str:
        """A file's name without the ids in it."""
        data = name.encode("utf-8", "surrogateescape")
        for text in sorted(self._raw, key=len, reverse=True):
            if text in data:
                data = data.replace(text, b"<erased id>")
        return data.decode("utf-8", "backslashreplace")

    def text(self, target: Target) -> str:
        kind, position = target
        if kind == "pair":
            return ",".join(str(raw) for raw in self.pairs[position])
        return str((self.users if kind == "user" else self.items)[position])

    def _whole_words(self, data: bytes) -> Iterator[tuple[int, Target]]:
        if not self._raw or len(data) < _PREFIX:
            return
        for start in np.flatnonzero(self._filter[_hashed(np.frombuffer(data, np.uint8))]).tolist():
            for text in self._by_prefix.get(data[start : start + _PREFIX], ()):
                if data.startswith(text, start) and _is_whole(data, start, start + len(text)):
                    for target in self._raw[text]:
                        yield start, target

    def _after_names(self, data: bytes) -> Iterator[tuple[int, Target]]:
        for match in _NAMED.finditer(data):
            value = match["value"].rstrip(b".!?")
            # "user 3 of 10" is prose; a value of its own is quoted, or follows what only a name has.
            if value[:1] in (b'"', b"'") or match["id"] or b":" in match["between"] or b"=" in match["between"]:
                for target in self._named[match["kind"].decode().lower()].get(value, ()):
                    yield match.start(), target

    def _in_pairs(self, data: bytes) -> Iterator[tuple[int, Target]]:
        for match in self._pair.finditer(data):
            user, item = match["user"], match["item"]
            before = data[max(0, match.start() - _CONTEXT) : match.start()].rstrip()
            nested = before.endswith((b"[", b"],") if match["open"] == b"[" else (b"(", b"[", b"),", b" is"))
            if nested or user[:1] in b"\"'" or item[:1] in b"\"'":
                for target in self._paired.get((user, item), ()):
                    yield match.start(), target
            if nested:
                for target in (*self._named["user"].get(user, ()), *self._named["item"].get(item, ())):
                    yield match.start(), target

    @cached_property
    def _pair(self) -> re.Pattern[bytes]:
        value = rb"""(?:"(?:[^"\\\r\n]|\\.){0,%d}"|'(?:[^'\\\r\n]|\\.){0,%d}'|-?[0-9]{1,20})""" % (self.overlap, self.overlap)
        gap = rb"\s{0,32}"
        rest = (rb"", rb"(?P<user>" + value + rb")", rb",", rb"(?P<item>" + value + rb")", rb"[\])]")
        return re.compile(rb"(?P<open>[\[(])(?=" + gap.join(rest) + rb")")


_NAMED = re.compile(
    rb"(?<![A-Za-z0-9_])(?P<kind>[Uu]ser|[Ii]tem)(?P<id>(?:[ _-]?[iI][dD])?)"
    rb"(?P<between>[\"']?[ \t]{0,8}[:=][ \t]{0,8}|[\"']?,?[ \t]{1,8})"
    rb"(?=(?P<value>\"(?:[^\"\\\r\n]|\\.){0,80}\"|'(?:[^'\\\r\n]|\\.){0,80}'|[^\s\"'\[\](){},;:=<>|]{1,80}))"
)
"""What is looked ahead at is searched again: a quoted value may be JSON that names an id."""


def _add(table: dict[Any, list[Target]], names: Iterable[Any], target: Target) -> None:
    for name in names:
        table.setdefault(name, []).append(target)


def _hashed(data: np.ndarray) -> np.ndarray:
    """A number below 2^20 for every stretch of `_PREFIX` bytes."""
    n = len(data) - _PREFIX + 1
    windows = np.zeros(n, np.uint64)
    for i in range(_PREFIX):
        windows |= data[i : i + n].astype(np.uint64) << np.uint64(8 * i)
    return (windows * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _FILTER_BITS)


def _is_whole(data: bytes, start: int, end: int) -> bool:
    """Whether no letter or digit, and for a number no decimal point, joins on to it."""
    first, last = data[start], data[end - 1]
    before, after = data[max(0, start - 2) : start], data[end : end + 2]
    if (before and before[-1] in _WORD and first in _WORD) or (after and after[0] in _WORD and last in _WORD):
        return False
    if first in _DIGITS and len(before) == 2 and before[1:] == b"." and before[0] in _DIGITS:
        return False
    return not (last in _DIGITS and len(after) == 2 and after[:1] == b"." and after[1] in _DIGITS)


# One file.


class _Search:
    """The search of one file.

    Attributes:
        found: (target, kind of place) -> (first place, number of places).
        problem: why not all of it could be searched.
    """

    def __init__(self, file: _File, sought: _Sought, keys: dict[int, list[Target]]) -> None:
        self._file, self._sought, self._keys = file, sought, keys
        self.found: dict[tuple[Target, str], tuple[str, int]] = {}
        self.problem = ""

    def run(self) -> int:
        """Search all of it; how many bytes it has."""
        for _, target in self._sought.hits(self._file.name.encode("utf-8", "surrogateescape")):
            self._note(target, "name", "file name")
        with closing(self._file.open()) as stream:
            magic = stream.read(16)
            stream.seek(0)
            self._bytes(stream, "byte {}")
            n_bytes: int = stream.tell()
            stream.seek(0)
            if magic.startswith(b"\x1f\x8b"):
                self._gzip(stream)
            elif magic.startswith(b"PAR1") or (n_bytes and ".parquet" in self._file.name.rpartition("/")[2]):
                self._parquet(stream)
        if magic == b"SQLite format 3\0" and self._file.local is not None:
            self._sqlite(self._file.local)
        return n_bytes

    def _note(self, target: Target, kind: str, where: str, count: int = 1) -> None:
        first, before = self.found.get((target, kind), (where, 0))
        self.found[target, kind] = first, before + count

    def _bytes(self, stream: Any, place: str) -> None:
        """In blocks that overlap, so that nothing is missed between two and nothing is counted twice."""
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
            kept = max(0, end - _CONTEXT)
            carried, offset, first = data[kept:], offset + kept, end - kept

    def _may_hold(self, target: Target) -> bool:
        """Of two vocabularies, one may hold what was erased from the other."""
        own = _VOCABULARY.match(self._file.in_store or "")
        return own is None or target[0] == own[1]

    def _gzip(self, stream: Any) -> None:
        try:
            self._bytes(gzip.GzipFile(fileobj=stream), "byte {}, unpacked")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            self.problem = f"is damaged gzip data, not all could be searched ({error})"

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
        path = self._file.in_store or ""
        if own := _VOCABULARY.match(path):
            self._cells("id", columns["id"].cast(pa.string()), own[1], first_row)
            if "key" in columns and own[1] == "item":
                self._key_cells(columns["key"], first_row)
        elif not _INTERACTIONS.match(path):  # those hold row numbers
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
        """Texts, lists and records that name an id among other words."""
        texts = [_all_bytes(value) for value in column.to_pylist()]
        for begin in range(0, len(texts), _CELLS):
            some = texts[begin : begin + _CELLS]
            if any(True for _ in self._sought.hits(b"\n".join(some))):
                for row, text in enumerate(some, first_row + begin):
                    for _, target in self._sought.hits(text):
                        if text != self._sought.text(target).encode():  # else it has been counted
                            self._note(target, name, f"column {name}, row {row}")

    def _key_cells(self, column: Any, first_row: int) -> None:
        keys = pa.array(list(self._keys), pa.uint64())
        for row in np.flatnonzero(pc.is_in(column.cast(pa.uint64()), keys).to_numpy(zero_copy_only=False)).tolist():
            for target in self._keys[column[row].as_py()]:
                self._note(target, "key", f"column key (the hash of its id), row {first_row + row}")

    def _pair_rows(self, of_kind: dict[str, list[list[str | None]]], first_row: int) -> None:
        for users in of_kind["user"]:
            for items in of_kind["item"]:
                for row, (user, item) in enumerate(zip(users, items, strict=True), first_row):
                    if user is not None and item is not None:
                        for target in self._sought.pair_cells.get((user, item), ()):
                            self._note(target, "row", f"row {row}")

    # SQLite.

    def _sqlite(self, path: Path) -> None:
        """The rows as of the last checkpoint: in a page, a value can join on to its neighbour so that it seems no whole word.

        Freed pages and the write-ahead log have been searched as bytes.
        """
        try:
            # Immutable: no lock is taken, no -shm file made, nothing rolled back.
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
        """What is not distinctive, and is all that a cell holds whose name says that it holds a name."""
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
    """Of which kind the ids are that a column of another maker's file may hold."""
    lower = name.lower()
    if not _is_text(column.type) and not pa.types.is_integer(column.type):
        return ()
    if "user" in lower or "item" in lower:
        return tuple(kind for kind in ("user", "item") if kind in lower)
    return ("user", "item") if _is_text(column.type) or lower.endswith("id") else ()


def _all_bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else b"" if value is None else str(value).encode("utf-8", "backslashreplace")
