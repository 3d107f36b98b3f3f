"""What audits and searches look for: ids as a caller names them, and the keys that these have, or would have, in a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_eraser import seeds
from ray_eraser.data.keyed import KeyedPairs
from ray_eraser.errors import StoreError
from ray_eraser.ids import RawId, id_problem, id_text
from ray_eraser.store import FileRef

UNSOUND = (StoreError, AttributeError, IndexError, KeyError, TypeError, ValueError, pa.ArrowException)
"""What reading a file raises that this package never wrote."""


@dataclass(frozen=True)
class Erased:
    """Raw ids and pairs that an audit is asked to look for."""

    user_ids: tuple[RawId, ...] = ()
    item_ids: tuple[RawId, ...] = ()
    pairs: tuple[tuple[RawId, RawId], ...] = ()

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.user_ids or self.item_ids or self.pairs)


NOTHING = Erased()


def key_of(raw: RawId, secret: bytes) -> int | None:
    """The key of an id, whether it is here or not; None of what cannot be an id.

    Args:
        raw: as a caller names it.
        secret: of a deployment; see `Vocabulary.secret`.
    """
    return None if id_problem(raw) else int(seeds.hash_ids([id_text(raw).encode()], secret)[0])


def keys_of(ids: Sequence[RawId], secret: bytes) -> np.ndarray:
    """The keys of several, (n,) uint64; what cannot be an id is passed over."""
    return seeds.hash_ids([id_text(raw).encode() for raw in ids if not id_problem(raw)], secret)


def keyed_pairs(pairs: Sequence[tuple[RawId, RawId]], secret: bytes) -> KeyedPairs:
    """The same of pairs."""
    sound = [(user, item) for user, item in pairs if not id_problem(user) and not id_problem(item)]
    return KeyedPairs(keys_of([user for user, _ in sound], secret), keys_of([item for _, item in sound], secret))


def ref_of(path: str) -> FileRef:
    """A stored file by its path, with the digest that its name says."""
    return FileRef(path, path.rpartition("/")[2].rpartition("-")[2].partition(".")[0])
