"""Erased ids as text in logs, in pages of a database, and in files of other programs. The rule is in residue.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from ray_eraser.ids import RawId
from ray_eraser.unlearning.erased import Erased

DISTINCTIVE_TEXT, DISTINCTIVE_NUMBER = 6, 9
"""Length from which an id is sought everywhere, not only where its place says that it is an id."""

CONTEXT = 64  # bytes before a match that help to judge it
_PREFIX = DISTINCTIVE_TEXT
_FILTER_BITS = 20

_WORD = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz")
_DIGITS = frozenset(b"0123456789")

Target = tuple[str, int]
"""(`user`, `item` or `pair`, position in the given list of this kind)."""


def is_distinctive(raw: RawId) -> bool:
    """Whether an id is sought everywhere; see the rule in residue.py."""
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


class SoughtIds:
    """All ids to look for, prepared for a fast search whatever their number."""

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
                    add_target(self._raw, _texts(raw), target)
                else:
                    self.n_structured += 1
                    add_target(self._named[kind], _tokens(raw), target)
        for position, (user, item) in enumerate(self.pairs):
            target = ("pair", position)
            self.pair_cells.setdefault((str(user), str(item)), []).append(target)
            for one in _tokens(user):
                add_target(self._paired, ((one, other) for other in _tokens(item)), target)
            if is_distinctive(user) or is_distinctive(item):
                add_target(self._raw, (f"{user}{between}{item}".encode() for between in ",\t"), target)
        self._by_prefix: dict[bytes, list[bytes]] = {}
        for text in self._raw:
            self._by_prefix.setdefault(text[:_PREFIX], []).append(text)
        self._filter = np.zeros(1 << _FILTER_BITS, np.bool_)
        if self._by_prefix:
            self._filter[_hashed(np.frombuffer(b"".join(self._by_prefix), np.uint8))[::_PREFIX]] = True
        longest = max((len(one) + len(other) for one, other in self._paired), default=0)
        self.overlap = 256 + max(longest, *(len(text) for text in self._raw), 0, 0)

    def hits(self, data: bytes) -> Iterator[tuple[int, Target]]:
        """(position, target) of every id found in some bytes, by the rule for text."""
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
            # "user 3 of 10" is prose. An id is quoted, or follows `id`, a colon or an equals sign.
            if value[:1] in (b'"', b"'") or match["id"] or b":" in match["between"] or b"=" in match["between"]:
                for target in self._named[match["kind"].decode().lower()].get(value, ()):
                    yield match.start(), target

    def _in_pairs(self, data: bytes) -> Iterator[tuple[int, Target]]:
        for match in self._pair.finditer(data):
            user, item = match["user"], match["item"]
            before = data[max(0, match.start() - CONTEXT) : match.start()].rstrip()
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
"""The value is only looked ahead at, so it is searched again: a quoted value may be JSON that names an id."""


def add_target(table: dict[Any, list[Target]], names: Iterable[Any], target: Target) -> None:
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
