"""The search for what a deployment leaves on disk of ids that were erased: in its store, its ledger, and logs.

Every file is searched as bytes. Besides, Parquet, safetensors and the rows of a SQLite file are decoded, and gzip is unpacked,
because compressed content cannot be seen from outside. Files that cannot be decoded are named: they were not searched within.

When does a stretch of bytes stand for an id? By this rule:

- An id is *distinctive* if it has at least 6 characters, or 9 where all of them are digits: shorter numbers are process ids,
  ports, dates and fractions of seconds all over a log. A distinctive id is found wherever its text stands as a whole word, as
  it is, or escaped as JSON or Python escape it. A number next to a decimal point is no whole word.
- A shorter id is found where its place says what it is: after `user` or `item` with `id`, `:`, `=` or quotes (`"user": 42`,
  `user_id=42`, `--user-id 42`, `no user '42' here`), and as a member of a list of pairs (`[[42, 7], [43, 8]]`,
  `the first is (42, 7)`), the user first.
- A pair is found as a member of a list of pairs, or with one of its ids in quotes as any pair; where one of its ids is
  distinctive also as fields of a row, with a comma or a tab between them. Either id alone is no trace of it: both may remain.
- In Parquet: cells that equal the id, in the columns that can hold it. The parts of a vocabulary hold ids of one kind. In files
  of other makers `user...` columns are compared with users, `item...` columns with items, all other columns of text with both,
  numbers only where the column's name ends with `id`.

A deployment's files name ids by their *keys*, keyed hashes of 64 bits. Anyone who knows the seed, which stands in the manifest,
could tell an erased id by its key. So the keys of the erased ids are looked for, too: in the `key` column of the vocabularies,
and in every array of 64-bit numbers of interactions, submodels, checkpoints and the aggregate. Such a finding says `key`. Pairs
are looked for by the keys of both ids, in interactions.

An *orphan* is an id or a key that belongs to nobody any more: it is in one of these files, and no interaction of the generation
has it. Orphans are looked for whether any id is given or not. They are counted and never named. Search when no batch is being
carried out: ids that are being learned are written before their interactions.

A PostgreSQL ledger is not a file and is not searched. The package keeps no temporary files of a deployment but the `.partial-`
ones in the store, and there what a log becomes on its way into the shards (`ingest`); they are searched like all others.
"""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ray_eraser.config import EraserConfig
from ray_eraser.data.keyed import KeyedPairs, all_keys, places_of
from ray_eraser.errors import InputError, StoreError
from ray_eraser.ids import RawId
from ray_eraser.store import Store, manifest_ref
from ray_eraser.unlearning.erased import Erased, key_of

DISTINCTIVE_TEXT, DISTINCTIVE_NUMBER = 6, 9
"""Characters from which on an id is looked for everywhere, not only where its place says what it is."""

_BLOCK = 1 << 20
_CONTEXT = 64  # bytes before a match that are looked at to judge it
_PREFIX = DISTINCTIVE_TEXT
_FILTER_BITS = 20
_CELLS = 512

_WORD = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz")
_DIGITS = frozenset(b"0123456789")
_IDS = re.compile(r"(?:vocabulary/(?=(?:user|item)s-)|pieces/(?=(?:user|item)-))(user|item)")
"""Files of ids of one kind and their keys."""
_KEYS = re.compile(r"pieces/(user|item)s")
"""Files of nothing but the keys of one kind."""
_INTERACTIONS = re.compile(r"shards/\d+/interactions-")
_OF_IDS = ("column key", "user_keys", "item_keys", "users", "items")
_WITHOUT_ORPHANS = re.compile(r"(vocabulary|shards|aggregate)/")
_MANIFEST = re.compile(r"generations/([0-9a-f]{64})\.json")

_LONGEST_HEADER = 100_000_000
"""Bytes of the header of a safetensors file, by its format."""

Target = tuple[str, int]
"""(`user`, `item` or `pair`, position in the list of them that was given)."""

_ORPHAN: Target = ("orphan", -1)


@dataclass(frozen=True)
class Finding:
    """One of the ids, or all orphans, in one kind of place in one file.

    Attributes:
        file: in the store: its path there.
        kind: `user`, `item`, `pair` or `orphan`.
        position: in the list of erased ids of this kind, from 0; None for orphans. The id itself is not repeated.
        where: the first place: a byte, a column and row, an array and place, or the file's name. For orphans no place, only the
            column or array.
        count: how many such places there are in the file.
    """

    file: str
    kind: str
    position: int | None
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
    """Search everything under a storage path, a ledger's files, and folders of logs, for ids that were erased, and for orphans.

    Nothing is written and no database is opened for writing. A request that is accepted and not carried out yet is found, too.

    Args:
        store: all files under its storage path are searched, whatever made them.
        ledger_files: of SQLite ledgers that are elsewhere; their -wal, -shm and -journal files are searched with them.
        log_folders: with all folders below them; single files may be given too.
        erased: the ids and pairs to look for; with none of them, orphans alone are.

    Raises:
        InputError: one of the ledger files or log folders is not there.
    """
    sought = _Sought(erased)
    in_store = {file.in_store: file for file in _in_store(store) if file.in_store is not None}
    generations = _Generations(store, in_store)
    keys = _Keys.of(erased, generations.roots)
    n_files, n_bytes = 0, 0
    findings: list[Finding] = []
    unreadable: list[str] = []
    for file in (*in_store.values(), *_elsewhere(store, ledger_files, log_folders)):
        search = _Search(file, sought, keys, generations)
        try:
            n_bytes += search.run()
        except FileNotFoundError:
            continue  # rotated away, or superseded, since it was listed
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
    unreadable += [f"{path}: cannot be read, so that orphans could not be told" for path in generations.unread]
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


def _in_store(store: Store) -> Iterator[_File]:
    if (folder := store.local_folder) is None:
        file_system, root = fs.FileSystem.from_uri(store.uri)
        for path in store.everything():
            yield _File(path, partial(file_system.open_input_file, f"{root}/{path}"), path)
    else:
        for path in store.everything():
            yield _File(path, partial((folder / path).open, "rb"), path, folder / path)


def _elsewhere(store: Store, ledger_files: Sequence[Path], log_folders: Sequence[Path]) -> Iterator[_File]:
    """Files that are not under the storage path, each once."""
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


# Keys.


@dataclass(frozen=True, eq=False)
class _Keys:
    """The keys of what is looked for, under the seed of every generation that is there.

    Attributes:
        ids: of each kind, the targets of every key.
        pairs: the targets of every pair of a user's and an item's key.
    """

    ids: Mapping[str, Mapping[int, list[Target]]]
    pairs: Mapping[tuple[int, int], list[Target]]

    @classmethod
    def of(cls, erased: Erased, roots: Iterable[int]) -> _Keys:
        ids: dict[str, dict[int, list[Target]]] = {"user": {}, "item": {}}
        pairs: dict[tuple[int, int], list[Target]] = {}
        for root in sorted(roots):
            secret = seeds.secret(root, "ids")
            for kind, given in (("user", erased.user_ids), ("item", erased.item_ids)):
                for position, raw in enumerate(given):
                    if (key := key_of(raw, secret)) is not None:
                        _add(ids[kind], [key], (kind, position))
            for position, pair in enumerate(erased.pairs):
                user, item = (key_of(raw, secret) for raw in pair)
                if user is not None and item is not None:
                    _add(pairs, [(user, item)], ("pair", position))
        return cls(ids, pairs)

    def among(self, kind: str, keys: np.ndarray) -> Iterator[tuple[int, Target]]:
        """(position, target) of every key of one kind that is looked for."""
        sought = self.ids[kind]
        if sought:
            for place in np.flatnonzero(np.isin(keys, np.array(list(sought), np.uint64))).tolist():
                for target in sought[int(keys[place])]:
                    yield place, target

    def among_pairs(self, pairs: KeyedPairs) -> Iterator[tuple[int, Target]]:
        """The same of pairs."""
        if self.pairs:
            sought = np.array(list(self.pairs), np.uint64)
            likely = np.isin(pairs.users, sought[:, 0]) & np.isin(pairs.items, sought[:, 1])
            for place in np.flatnonzero(likely).tolist():
                for target in self.pairs.get((int(pairs.users[place]), int(pairs.items[place])), ()):
                    yield place, target


class _Generations:
    """The generations that are in a store: one, or two while one takes the other's place.

    Attributes:
        roots: their root seeds, and the usual one, for files of a training that was never finished.
        unread: paths of interactions that could not be read.
    """

    def __init__(self, store: Store, files: Mapping[str, _File]) -> None:
        self._files = files
        self._present: dict[str, Mapping[str, np.ndarray] | None] = {}
        self._united: dict[tuple[str, ...], Mapping[str, np.ndarray] | None] = {}
        self._named: dict[str, tuple[str, ...]] = {}
        self.roots = {EraserConfig().seed}
        self.unread: list[str] = []
        for path in files:
            # A damaged manifest is an audit's to name; its bytes are searched all the same.
            if match := _MANIFEST.fullmatch(path):
                with suppress(StoreError, ValueError, KeyError, TypeError):
                    self._note(json.loads(store.read(manifest_ref(match[1]))))
        self._all = tuple(path for path in files if _INTERACTIONS.match(path) and ".partial-" not in path)

    def _note(self, manifest: Mapping[str, Any]) -> None:
        self.roots.add(int(manifest["config"]["seed"]))
        shards = manifest["shards"]
        refs = [*manifest["users"], *manifest["items"], manifest["aggregate"]]
        for shard in shards:
            refs += [shard["interactions"], shard["submodel"], *shard["checkpoints"]]
        interactions = [shard["interactions"]["path"] for shard in shards]
        for ref in refs:
            path = ref["path"]
            self._named[path] = tuple(sorted({*self._named.get(path, ()), *interactions}))

    def present(self, path: str) -> Mapping[str, np.ndarray] | None:
        """Of each kind the keys, ascending, that have an interaction in the generations of a file.

        For files of no generation, all interactions count. None where they cannot be read.
        """
        wanted = self._named.get(path, self._all)
        if wanted not in self._united:
            parts = [self._of(interactions) for interactions in wanted]
            known = [part for part in parts if part is not None]
            united = {kind: all_keys([part[kind] for part in known]) for kind in ("user", "item")}
            self._united[wanted] = united if len(known) == len(parts) else None
        return self._united[wanted]

    def _of(self, path: str) -> Mapping[str, np.ndarray] | None:
        if path not in self._present:
            try:
                with closing(self._files[path].open()) as stream:
                    arrays = dict(_arrays(stream, ("U64", "I32")))
                pairs = [_pairs_of(arrays, name) for name in ("train", "valid")]
                users, items = (
                    np.unique(np.concatenate([getattr(part, side) for part in pairs])) for side in ("users", "items")
                )
                self._present[path] = {"user": users, "item": items}
            except (KeyError, OSError, IndexError, TypeError, ValueError):
                self._present[path] = None
                self.unread.append(path)
        return self._present[path]


def _arrays(stream: Any, kinds: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, content) of every array of some types in a safetensors file, `U64` and `I32`, without the others being read.

    Raises:
        ValueError: it is no such file, or ends too early; what is there was given before.
    """
    n_header = int.from_bytes(stream.read(8), "little")
    if not 2 <= n_header <= _LONGEST_HEADER:
        raise ValueError("no header")
    header = json.loads(stream.read(n_header))
    try:
        places = [
            (name, entry["dtype"], *map(int, entry["data_offsets"])) for name, entry in header.items() if name != "__metadata__"
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("no header") from error
    for name, kind, begin, end in places:
        if kind in kinds:
            stream.seek(8 + n_header + begin)
            content = stream.read(max(0, end - begin))
            dtype = np.dtype("<u8" if kind == "U64" else "<i4")
            yield name, np.frombuffer(content[: len(content) - len(content) % dtype.itemsize], dtype)
            if len(content) < end - begin:
                raise ValueError("it ends too early")


def _pairs_of(arrays: Mapping[str, np.ndarray], name: str) -> KeyedPairs:
    """One set of a file of interactions."""
    return KeyedPairs(np.repeat(arrays["user_keys"], arrays[name]), arrays["item_keys"][arrays[f"{name}_items"]])


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

    def __init__(self, file: _File, sought: _Sought, keys: _Keys, generations: _Generations) -> None:
        self._file, self._sought, self._keys, self._generations = file, sought, keys, generations
        self._path = file.in_store or ""
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
        is_interactions = _INTERACTIONS.match(self._path) is not None
        try:
            for name, array in _arrays(stream, ("U64", "I32") if is_interactions else ("U64",)):
                arrays[name] = array
                kind = name[:4]
                if array.dtype == np.uint64 and kind in ("user", "item"):
                    self._key_array(kind, name, array)
            if is_interactions:
                for name in ("train", "valid"):
                    for place, target in self._keys.among_pairs(_pairs_of(arrays, name)):
                        self._note(target, name, f"keys (the hashes of both ids) in {name}, place {place}")
        except (KeyError, IndexError, ValueError):
            self.problem = "is damaged safetensors data, not all could be searched: delete it, or read it with another tool"

    def _key_array(self, kind: str, name: str, keys: np.ndarray) -> None:
        for place, target in self._keys.among(kind, keys):
            self._note(target, f"key {name}", f"key (the hash of its id) in {name}, place {place}")
        self._orphans(kind, name, keys)

    def _orphans(self, kind: str, name: str, keys: np.ndarray) -> None:
        """Count the keys that no interaction has."""
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
        """Texts, lists and records that name an id among other words."""
        texts = [_all_bytes(value) for value in column.to_pylist()]
        for begin in range(0, len(texts), _CELLS):
            some = texts[begin : begin + _CELLS]
            if any(True for _ in self._sought.hits(b"\n".join(some))):
                for row, text in enumerate(some, first_row + begin):
                    for _, target in self._sought.hits(text):
                        if text != self._sought.text(target).encode():  # else it has been counted
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
