"""Gram matrices of the concatenated submodels, kept as blocks. When one submodel changes, only its row of blocks is new.

K submodels of width D, k and l two of them; U and I users and items of all submodels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

import numpy as np
from scipy import linalg

from ray_eraser.determinism import in_parts
from ray_eraser.embeddings import Embeddings

Precision = type[np.float64] | type[np.float32]

_GATHERED = 1024
"""Number of rows to multiply at once. Copies of them fit in a processor's cache."""

_Name = tuple[int, int]
_Key = tuple[_Name, _Name, Precision]

Array = TypeVar("Array")


class Blocks(ABC, Generic[Array]):
    """A cache of the blocks of the Gram matrices of some submodels. `keep` drops a block with either of its submodels.

    A submodel is identified by its two tables of vectors and not by its rows, because a block does not depend on the row
    numbers. Two different submodels must therefore not share both tables. `Grams` keeps the blocks in host memory; a subclass
    may keep them on a device.
    """

    def __init__(self) -> None:
        self._blocks: dict[_Key, tuple[Array | None, Array | None]] = {}
        self._tables: dict[_Name, tuple[np.ndarray, np.ndarray]] = {}  # keeps the tables alive, so that ids are not reused

    def keep(self, submodels: Iterable[Embeddings]) -> None:
        """Drop the blocks of all other submodels."""
        self._tables = {_name(submodel): (submodel.users, submodel.items) for submodel in submodels}
        self._blocks = {key: block for key, block in self._blocks.items() if self._tables.keys() >= set(key[:2])}

    def _key(self, left: Embeddings, right: Embeddings, precision: Precision) -> _Key:
        for submodel in (left, right):
            self._tables.setdefault(_name(submodel), (submodel.users, submodel.items))
        return _name(left), _name(right), precision

    def sides(self, submodels: Sequence[Embeddings], precision: Precision = np.float64) -> tuple[Array, Array]:
        """P'P and Q'Q, where P and Q are the concatenated tables of users and items, with zeros for absent rows.

        A matrix is (KD, KD). If no two submodels share a row, only the diagonal blocks are returned, (K, D, D). This is the
        case for users if every user is in one shard.
        """
        for l, right in enumerate(submodels):
            missing = [left for left in submodels[l:] if self._key(left, right, precision) not in self._blocks]
            if missing:
                self._multiply(missing, right, precision)
        return self._side(submodels, 0, precision), self._side(submodels, 1, precision)

    def give(self, submodels: Sequence[Embeddings], sides: tuple[np.ndarray, np.ndarray]) -> None:
        """Take over a result of `sides` for the same submodels, computed elsewhere, from host memory."""
        precision = sides[0].dtype.type
        ends = np.cumsum([0, *(submodel.width for submodel in submodels)])
        for l, right in enumerate(submodels):
            for k, left in enumerate(submodels[l:], l):
                key = self._key(left, right, precision)
                if key not in self._blocks:
                    users, items = (_block_of(side, ends, k, l) for side in sides)
                    self._blocks[key] = self._taken_over(users), self._taken_over(items)

    @abstractmethod
    def on_host(self, sides: tuple[Array, Array]) -> tuple[np.ndarray, np.ndarray]:
        """A result of `sides` in host memory."""

    @abstractmethod
    def _multiply(self, lefts: Sequence[Embeddings], right: Embeddings, precision: Precision) -> None:
        """Compute the blocks of these pairs of submodels. A block is None if the two share no row."""

    @abstractmethod
    def _side(self, submodels: Sequence[Embeddings], side: int, precision: Precision) -> Array:
        """The Gram matrix of the users (side 0) or items (side 1)."""

    @abstractmethod
    def _taken_over(self, block: np.ndarray | None) -> Array | None:
        """A copy of a block."""


class Grams(Blocks[np.ndarray]):
    """Blocks in host memory."""

    def of(self, submodels: Sequence[Embeddings]) -> tuple[np.ndarray, np.ndarray]:
        """P'P and Q'Q, both (KD, KD) float64: the results of `sides` as full matrices."""
        users, items = self.sides(submodels)
        return dense(users), dense(items)

    def on_host(self, sides: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return sides

    def _multiply(self, lefts: Sequence[Embeddings], right: Embeddings, precision: Precision) -> None:
        users, items = _Table(right.user_rows, right.users), _Table(right.item_rows, right.items)

        def multiply(first: int, last: int) -> None:
            for left in lefts[first:last]:
                self._blocks[self._key(left, right, precision)] = (
                    users.block(left.user_rows, left.users, precision),
                    items.block(left.item_rows, left.items, precision),
                )

        in_parts(len(lefts), multiply, 1)

    def _taken_over(self, block: np.ndarray | None) -> np.ndarray | None:
        return None if block is None else block.copy()

    def _side(self, submodels: Sequence[Embeddings], side: int, precision: Precision) -> np.ndarray:
        widths = [submodel.width for submodel in submodels]
        pairs = [(k, l) for l in range(len(submodels)) for k in range(l, len(submodels))]
        blocks = {(k, l): self._blocks[self._key(submodels[k], submodels[l], precision)][side] for k, l in pairs}
        if len(set(widths)) == 1 and all(block is None for (k, l), block in blocks.items() if k != l):
            nothing = np.zeros((widths[0], widths[0]), precision)
            return np.stack([nothing if (own := blocks[k, k]) is None else own for k in range(len(submodels))])
        ends = np.cumsum([0, *widths])
        gram = np.zeros((ends[-1], ends[-1]), precision)
        for (k, l), block in blocks.items():
            if block is not None:
                gram[ends[k] : ends[k + 1], ends[l] : ends[l + 1]] = block
                gram[ends[l] : ends[l + 1], ends[k] : ends[k + 1]] = block.T
        return gram


def _name(submodel: Embeddings) -> _Name:
    return id(submodel.users), id(submodel.items)


class _Table:
    """The vectors of one submodel, indexed by row."""

    def __init__(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        self._places = np.full(int(rows.max(initial=-1)) + 1, -1, np.int32)
        self._places[rows] = np.arange(len(rows), dtype=np.int32)
        self._vectors = vectors

    def block(self, rows: np.ndarray, vectors: np.ndarray, precision: Precision) -> np.ndarray | None:
        """The sum over common rows of the outer products of both vectors, (D, D); None without a common row."""
        places = self._places[rows[: np.searchsorted(rows, len(self._places))]]
        common = np.flatnonzero(places >= 0)
        if not len(common):
            return None
        gram = np.zeros((vectors.shape[1], self._vectors.shape[1]), precision)
        for first in range(0, len(common), _GATHERED):
            theirs = common[first : first + _GATHERED]
            # `take` releases the GIL; indexing does not.
            left, right = vectors.take(theirs, axis=0), self._vectors.take(places[theirs], axis=0)
            gram += left.astype(precision, copy=False).T @ right.astype(precision, copy=False)
        return gram


def _block_of(gram: np.ndarray, ends: np.ndarray, k: int, l: int) -> np.ndarray | None:
    """One block of a Gram matrix in either format; None if it is zero."""
    if gram.ndim == 3 and k != l:
        return None
    block = gram[k] if gram.ndim == 3 else gram[ends[k] : ends[k + 1], ends[l] : ends[l + 1]]
    return block if block.any() else None


def dense(gram: np.ndarray) -> np.ndarray:
    """A Gram matrix in either format as a full matrix, (KD, KD)."""
    return np.asarray(linalg.block_diag(*gram)) if gram.ndim == 3 else gram


def times(gram: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A Gram matrix in either format times a (KD, n) matrix. A full matrix multiplies in its own precision."""
    if gram.ndim == 3:
        return np.asarray(np.matmul(gram, matrix.reshape(*gram.shape[:2], -1)).reshape(matrix.shape))
    return np.asarray(gram @ matrix.astype(gram.dtype, copy=False))
