"""The ids that audits and searches look for: as a caller names them, by their keys in a store, and in other spellings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_eraser import seeds
from ray_eraser.data.keyed import KeyedPairs
from ray_eraser.data.vocabulary import other_spellings
from ray_eraser.errors import StoreError
from ray_eraser.ids import RawId, id_problem, id_text
from ray_eraser.store import FileRef

UNSOUND = (StoreError, AttributeError, IndexError, KeyError, TypeError, ValueError, pa.ArrowException)
"""The errors of reading a file that this package did not write."""


@dataclass(frozen=True)
class Erased:
    """Ids and pairs that an audit or a search looks for."""

    user_ids: tuple[RawId, ...] = ()
    item_ids: tuple[RawId, ...] = ()
    pairs: tuple[tuple[RawId, RawId], ...] = ()

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.user_ids or self.item_ids or self.pairs)


NOTHING = Erased()


def key_of(raw: RawId, secret: bytes) -> int | None:
    """The key of an id, whether it is here or not; None of a value that cannot be an id.

    Args:
        raw: as a caller names it.
        secret: of a deployment; see `Vocabulary.secret`.
    """
    return None if id_problem(raw) else int(seeds.hash_ids([id_text(raw).encode()], secret)[0])


def keys_of(ids: Sequence[RawId], secret: bytes) -> np.ndarray:
    """The keys of several ids, (n,) uint64. A value that cannot be an id is passed over."""
    return seeds.hash_ids([id_text(raw).encode() for raw in ids if not id_problem(raw)], secret)


def keyed_pairs(pairs: Sequence[tuple[RawId, RawId]], secret: bytes) -> KeyedPairs:
    """The keys of several pairs. A pair with a value that cannot be an id is passed over."""
    sound = [(user, item) for user, item in pairs if not id_problem(user) and not id_problem(item)]
    return KeyedPairs(keys_of([user for user, _ in sound], secret), keys_of([item for _, item in sound], secret))


@dataclass(frozen=True)
class SpelledOtherwise:
    """One of the ids that are looked for: it is not among a deployment's ids, and another spelling of it is.

    Attributes:
        kind: `user`, `item` or `pair`.
        position: in the list of ids of this kind that are looked for, from 0.
        here: the other spellings. `to_dict` leaves them out, so that no stored report names a user.
    """

    kind: str
    position: int
    here: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "position": self.position, "spellings": len(self.here)}


@dataclass(frozen=True)
class Lookup:
    """What a deployment's ids say about the ids that are looked for.

    Attributes:
        not_here: how many ids and pairs name a user or an item that is not here: erased, never learned, or misspelt.
        spelled_otherwise: those of them whose user or item is here under another spelling.
    """

    not_here: int = 0
    spelled_otherwise: tuple[SpelledOtherwise, ...] = ()

    @classmethod
    def of(cls, erased: Erased, users: Any, items: Any) -> Lookup:
        """Look for ids among those of a deployment, given as Arrow strings."""
        unknown_users = _unknown((*erased.user_ids, *(user for user, _ in erased.pairs)), users)
        unknown_items = _unknown((*erased.item_ids, *(item for _, item in erased.pairs)), items)
        of_users, of_items = other_spellings(users, unknown_users), other_spellings(items, unknown_items)
        asked = [("user", n, {"user": raw}) for n, raw in enumerate(erased.user_ids)]
        asked += [("item", n, {"item": raw}) for n, raw in enumerate(erased.item_ids)]
        asked += [("pair", n, {"user": user, "item": item}) for n, (user, item) in enumerate(erased.pairs)]
        not_here, spelled = 0, []
        for kind, position, ids in asked:
            user, item = (
                None if (raw := ids.get(side)) is None or id_problem(raw) else id_text(raw) for side in ("user", "item")
            )
            not_here += user in unknown_users or item in unknown_items
            if found := (*of_users.get(user or "", ()), *of_items.get(item or "", ())):
                spelled.append(SpelledOtherwise(kind, position, found))
        return cls(not_here, tuple(spelled))


def _unknown(ids: Iterable[RawId], here: Any) -> set[str]:
    """The ids, as text, that are not among some Arrow strings; anything that cannot be an id is passed over."""
    named = list(dict.fromkeys(id_text(raw) for raw in ids if not id_problem(raw)))
    present = pc.is_in(pa.array(named, pa.string()), value_set=here).to_pylist()
    return {text for text, is_here in zip(named, present, strict=True) if not is_here}


def ref_of(path: str) -> FileRef:
    """A stored file by its path, with the digest that its name says."""
    return FileRef(path, path.rpartition("/")[2].rpartition("-")[2].partition(".")[0])
