"""Gram matrices of submodels side by side, block by block: what one submodel changes is one row of blocks.

K submodels of width D, k and l two of them; U and I users and items of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import linalg

from ray_eraser.embeddings import Embeddings

_Pair = tuple[Embeddings, Embeddings]


class Grams:
    """The blocks of the Gram matrices of some submodels, each made once. A block lives no longer than both of its submodels."""

    def __init__(self) -> None:
        self._blocks: dict[_Pair, tuple[np.ndarray | None, np.ndarray | None]] = {}

    def keep(self, submodels: Iterable[Embeddings]) -> None:
        """Forget the blocks of all others."""
        kept = set(submodels)
        self._blocks = {pair: block for pair, block in self._blocks.items() if kept.issuperset(pair)}

    def of(self, submodels: Sequence[Embeddings]) -> tuple[np.ndarray, np.ndarray]:
        """P'P and Q'Q, both (KD, KD) float64, with P the users' tables side by side, Q the items', absent rows zero."""
        users, items = self.sides(submodels)
        return dense(users), dense(items)

    def sides(self, submodels: Sequence[Embeddings]) -> tuple[np.ndarray, np.ndarray]:
        """As `of`, but where no two submodels have a row in common, as users do not in shards of whole users, the blocks on the
        diagonal, (K, D, D).
        """
        for l, right in enumerate(submodels):
            missing = [left for left in submodels[l:] if (left, right) not in self._blocks]
            if missing:
                user_places, item_places = _places(right.user_rows), _places(right.item_rows)
            for left in missing:
                self._blocks[left, right] = (
                    _block(left.user_rows, left.users, user_places, right.users),
                    _block(left.item_rows, left.items, item_places, right.items),
                )
        return self._side(submodels, 0), self._side(submodels, 1)

    def _side(self, submodels: Sequence[Embeddings], side: int) -> np.ndarray:
        """Of the users (0) or of the items (1)."""
        widths = [submodel.width for submodel in submodels]
        pairs = [(k, l) for l in range(len(submodels)) for k in range(l, len(submodels))]
        blocks = {(k, l): self._blocks[submodels[k], submodels[l]][side] for k, l in pairs}
        if len(set(widths)) == 1 and all(block is None for (k, l), block in blocks.items() if k != l):
            nothing = np.zeros((widths[0], widths[0]))
            return np.stack([nothing if (own := blocks[k, k]) is None else own for k in range(len(submodels))])
        ends = np.cumsum([0, *widths])
        gram = np.zeros((ends[-1], ends[-1]))
        for (k, l), block in blocks.items():
            if block is not None:
                gram[ends[k] : ends[k + 1], ends[l] : ends[l + 1]] = block
                gram[ends[l] : ends[l + 1], ends[k] : ends[k + 1]] = block.T
        return gram


def dense(gram: np.ndarray) -> np.ndarray:
    """A Gram matrix, (KD, KD), whichever way it is held."""
    return np.asarray(linalg.block_diag(*gram)) if gram.ndim == 3 else gram


def times(gram: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A Gram matrix, whichever way it is held, times a (KD, n) matrix."""
    if gram.ndim == 3:
        return np.asarray(np.matmul(gram, matrix.reshape(*gram.shape[:2], -1)).reshape(matrix.shape))
    return np.asarray(gram @ matrix)


def _places(rows: np.ndarray) -> np.ndarray:
    """Where each vocabulary row stands among `rows`; -1 for those that are not there."""
    places = np.full(int(rows.max(initial=-1)) + 1, -1, np.int32)
    places[rows] = np.arange(len(rows), dtype=np.int32)
    return places


def _block(rows: np.ndarray, vectors: np.ndarray, places: np.ndarray, others: np.ndarray) -> np.ndarray | None:
    """The sum over common rows of the products of both vectors, (D, D) float64; None where no row is common."""
    inside = rows < len(places)
    found = np.full(len(rows), -1, np.int32)
    found[inside] = places[rows[inside]]
    common = found >= 0
    if not common.any():
        return None
    return np.asarray(vectors[common].astype(np.float64).T @ others[found[common]].astype(np.float64))
