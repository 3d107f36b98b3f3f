"""From raw ids to keys and back.

An id is text, and its key is a keyed 64-bit hash of that text. A deployment stores and computes everything in key order. So the
place of an id does not depend on other ids, on the order of arrival, or on erased data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_eraser.errors import InputError, RequestError, UnknownIdError
from ray_eraser.ids import RawId, id_problem, id_text
from ray_eraser.seeds import hash_ids, secret

PARTS = 32
"""Number of files for the ids of one kind, divided by the highest bits of the keys. A change of one id rewrites one file. The
number is fixed: if it followed the count of ids, it would reveal erased ids."""

_SHIFT = np.uint64(64 - 5)
_EDGES = np.arange(1, PARTS, dtype=np.uint64) << _SHIFT

_BLANKS = "".join(chr(code) for code in range(0x3001) if chr(code).isspace()) + "\u200b\ufeff"
"""White space, and two characters that look blank: the zero-width space and the byte order mark."""


@dataclass(frozen=True, eq=False)
class Part:
    """The ids of one kind whose keys begin with the same five bits.

    Attributes:
        keys: (n,) uint64, ascending.
        ids: (n,) Arrow strings, in the order of the keys.
    """

    keys: np.ndarray
    ids: Any

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def empty(cls) -> Part:
        return cls(np.empty(0, np.uint64), pa.array([], pa.string()))


def part_of(key: int) -> int:
    """The number of the part that a key belongs to."""
    return int(np.uint64(key) >> _SHIFT)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The ids of one kind (users or items). Values are frozen; a changed vocabulary shares the parts that did not change.

    Where rows are needed, an id's row is its position in the order of keys.

    Attributes:
        kind: `user` or `item`.
        secret: keys the hash; see `seeds.secret`.
        parts: `PARTS` of them, in order.
        integers: give ids back as integers if they are written as integers. The source decides (a column of integers), not
            the look of other ids.
    """

    kind: str
    secret: bytes = field(repr=False)
    parts: tuple[Part, ...] = field(repr=False)
    integers: bool = False

    @classmethod
    def of(cls, kind: str, ids: Iterable[RawId], seed: int = 0) -> Vocabulary:
        """The vocabulary of some ids, repeated ones once. `integers` where all are given as integers.

        Args:
            kind: `user` or `item`.
            ids: in any order.
            seed: the root seed, whose hash gives the keys.

        Raises:
            InputError: one cannot be an id, or two have the same key.
        """
        given = list(ids)
        for raw in given:
            if problem := id_problem(raw):
                raise InputError(f"the {kind} id {problem}")
        texts = list(dict.fromkeys(map(id_text, given)))
        integers = bool(given) and not any(isinstance(raw, str) for raw in given)
        return cls.of_texts(kind, pa.array(texts, pa.string()), seed, integers=integers)

    @classmethod
    def of_texts(cls, kind: str, texts: Any, seed: int, *, integers: bool) -> Vocabulary:
        """The same from distinct, checked ids as Arrow strings."""
        key = secret(seed, "ids")
        return cls.of_keys(kind, key, hash_texts(texts, key), texts, integers=integers)

    @classmethod
    def of_keys(cls, kind: str, key: bytes, keys: np.ndarray, texts: Any, *, integers: bool) -> Vocabulary:
        """The same from ids and their keys, in any order; an id may come several times.

        Raises:
            InputError: two different ids have the same key.
        """
        order = np.argsort(keys, kind="stable")
        keys, texts = keys[order], texts.take(pa.array(order))
        repeated = np.flatnonzero(keys[1:] == keys[:-1])
        if len(repeated):
            same = pc.equal(texts.take(pa.array(repeated)), texts.take(pa.array(repeated + 1)))
            if not pc.all(same, min_count=0).as_py():
                raise _collision(kind)
            first = np.ones(len(keys), bool)
            first[repeated + 1] = False
            keys, texts = keys[first], texts.take(pa.array(np.flatnonzero(first)))
        ends = np.searchsorted(keys, _EDGES)
        bounds = [0, *ends.tolist(), len(keys)]
        # Copies: a slice of Arrow strings would be pickled with the whole array that it is a part of.
        parts = [Part(keys[a:b].copy(), texts.take(pa.array(np.arange(a, b)))) for a, b in pairwise(bounds)]
        return cls(kind, key, tuple(parts), integers)

    @classmethod
    def empty(cls, kind: str, seed: int = 0, *, integers: bool = False) -> Vocabulary:
        return cls(kind, secret(seed, "ids"), (Part.empty(),) * PARTS, integers)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    # ---- one id --------------------------------------------------------------------------------------------------------

    def key_of(self, raw: RawId) -> int:
        """The key that an id has, or would have, here.

        Raises:
            ValueError: it cannot be an id.
        """
        return int(hash_ids([id_text(raw).encode()], self.secret)[0])

    def find(self, raw: RawId) -> int | None:
        """The key of an id that is here; None where it is not, or cannot be an id."""
        if id_problem(raw):
            return None
        text = id_text(raw)
        key = self.key_of(text)
        return key if self._text_of(key) == text else None

    def __contains__(self, raw: RawId) -> bool:
        return self.find(raw) is not None

    def key(self, raw: RawId) -> int:
        """The key of an id that is here.

        Raises:
            UnknownIdError: the id was never here or has been erased.
        """
        key = self.find(raw)
        if key is None:
            raise UnknownIdError(self.kind, str(raw))
        return key

    def unknown(self, raw: RawId) -> UnknownIdError:
        """The error for an id that is not here. It names other spellings of the id that are here."""
        return UnknownIdError(self.kind, str(raw), tuple(self.spelled_otherwise(raw)))

    def spelled_otherwise(self, raw: RawId) -> list[str]:
        """The ids here that may be another spelling of an id. See `other_spellings`; takes 0.4 s for a million ids."""
        found = self.other_spellings([raw])
        return next(iter(found.values()), [])

    def other_spellings(self, asked: Iterable[RawId]) -> dict[str, list[str]]:
        """The same for many ids, in the same time. See the function of this name."""
        return other_spellings(self.texts, asked)

    def row(self, raw: RawId) -> int:
        """The row of an id: its position in the order of keys. Raises as `key`."""
        return int(np.searchsorted(self.keys, np.uint64(self.key(raw))))

    def _text_of(self, key: int) -> str | None:
        part = self.parts[part_of(key)]
        place = int(np.searchsorted(part.keys, np.uint64(key)))
        found = place < len(part) and int(part.keys[place]) == key
        return str(part.ids[place].as_py()) if found else None

    # ---- many ids ------------------------------------------------------------------------------------------------------

    @cached_property
    def keys(self) -> np.ndarray:
        """(n,) uint64, ascending: the key of every id, by row."""
        return np.concatenate([part.keys for part in self.parts])

    @cached_property
    def texts(self) -> Any:
        """(n,) Arrow strings, by row."""
        return pa.concat_arrays([part.ids for part in self.parts])

    @property
    def ids(self) -> tuple[RawId, ...]:
        """Every id as it is given back, by row."""
        return tuple(self._given_back(text) for text in self.texts.to_pylist())

    def raw(self, rows: Sequence[int] | np.ndarray) -> list[RawId]:
        """The ids of rows, as they are given back."""
        wanted = self.texts.take(pa.array(np.asarray(rows, np.int64)))
        return [self._given_back(text) for text in wanted.to_pylist()]

    def raw_of(self, keys: np.ndarray) -> list[RawId]:
        """The ids of keys that are here, as they are given back."""
        texts = [self._text_of(int(key)) for key in keys]
        return [self._given_back(text) for text in texts if text is not None]

    def _given_back(self, text: str) -> RawId:
        return int(text) if self.integers and is_canonical_integer(text) else text

    def without(self, keys: np.ndarray) -> Vocabulary:
        """Remove the ids of these keys."""
        parts = list(self.parts)
        for number in np.unique(keys >> _SHIFT).astype(np.int64).tolist():
            part = parts[number]
            kept = ~np.isin(part.keys, keys)
            if not kept.all():
                parts[number] = Part(part.keys[kept], part.ids.filter(pa.array(kept)))
        return replace(self, parts=tuple(parts))

    def only(self, keys: np.ndarray) -> Vocabulary:
        """Keep only the ids of these keys."""
        return self.without(self.keys[~np.isin(self.keys, keys)])

    def extended(self, ids: Iterable[RawId]) -> Vocabulary:
        """Add ids. Known ids are ignored.

        Raises:
            RequestError: an id has the key of another one.
        """
        new: dict[int, str] = {}
        for text in dict.fromkeys(map(id_text, ids)):
            key = self.key_of(text)
            present = new.get(key, self._text_of(key))
            if present not in (None, text):
                raise RequestError(str(_collision(self.kind)))
            if present is None:
                new[key] = text
        parts = list(self.parts)
        for number in sorted({part_of(key) for key in new}):
            part = parts[number]
            added = {key: text for key, text in new.items() if part_of(key) == number}
            keys = np.concatenate([part.keys, np.array(list(added), np.uint64)])
            texts = pa.concat_arrays([part.ids, pa.array(list(added.values()), pa.string())])
            order = np.argsort(keys)
            parts[number] = Part(keys[order], texts.take(pa.array(order)))
        return replace(self, parts=tuple(parts))

    def under(self, seed: int) -> Vocabulary:
        """The same ids with the keys of another root seed."""
        if secret(seed, "ids") == self.secret:
            return self
        return Vocabulary.of_texts(self.kind, self.texts, seed, integers=self.integers)


def hash_texts(texts: Any, key: bytes) -> np.ndarray:
    """The key of every id, (n,) uint64, of Arrow strings."""
    return hash_ids([text.encode() for text in texts.to_pylist()], key)


def other_spellings(texts: Any, asked: Iterable[RawId]) -> dict[str, list[str]]:
    """For each asked id, the different texts that may mean the same user or item.

    Two ids are other spellings if they differ only in case, in surrounding blanks, in a byte order mark, or in the encoding of
    accents. So are two texts of the same whole number: "20007", "20007.0" and "020007".

    Args:
        texts: Arrow strings.
        asked: ids; anything that cannot be an id has no other spelling.

    Returns:
        The spellings by id as text; ids without any are left out.
    """
    named = list(dict.fromkeys(id_text(raw) for raw in asked if not id_problem(raw)))
    wanted = _cores(pa.array(named, pa.string()))
    cores = _cores(texts)
    found = pc.is_in(cores, value_set=wanted)
    here: dict[str, list[str]] = {}
    for core, text in zip(cores.filter(found).to_pylist(), texts.filter(found).to_pylist(), strict=True):
        here.setdefault(core, []).append(text)
    others = {}
    for text, core in zip(named, wanted.to_pylist(), strict=True):
        if spellings := [other for other in here.get(core, ()) if other != text]:
            others[text] = spellings
    return others


def _cores(texts: Any) -> Any:
    """What all spellings of an id have in common, as Arrow strings."""
    plain = pc.utf8_normalize(pc.utf8_lower(pc.utf8_trim(texts, characters=_BLANKS)), form="NFC")
    return pc.replace_substring_regex(plain, pattern=r"^(-?)0*([0-9]+?)(?:\.0+)?$", replacement=r"\1\2")


def is_canonical_integer(text: str) -> bool:
    """Whether text is how an integer of 64 bits, signed or not, is written: "7" and "-12", not "07", "+7", "7.0" or " 7"."""
    digits = text.removeprefix("-")
    is_written_so = digits.isascii() and digits.isdigit() and len(digits) <= 20 and str(int(text)) == text
    return is_written_so and -(2**63) <= int(text) < 2**64


def id_column(ids: Sequence[RawId]) -> Any:
    """Ids as an Arrow array: of integers where all of them are and one type holds them, else of strings."""
    if ids and all(isinstance(raw, int) for raw in ids):
        for integers in (pa.int64(), pa.uint64()):
            with suppress(OverflowError):
                return pa.array(ids, integers)
    return pa.array(list(map(str, ids)), pa.string())


def _collision(kind: str) -> InputError:
    return InputError(f"two {kind} ids have the same 64-bit key under this root seed: train with another `seed`")
