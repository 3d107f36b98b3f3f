"""Gram matrices of submodels side by side, block by block: what one submodel changes is one row of blocks.

K submodels of width D, k and l two of them; U and I users and items of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

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
        ends = np.cumsum([0, *(submodel.width for submodel in submodels)])
        users, items = np.zeros((ends[-1], ends[-1])), np.zeros((ends[-1], ends[-1]))
        for l, right in enumerate(submodels):
            places: tuple[np.ndarray, np.ndarray] | None = None
            for k, left in enumerate(submodels[l:], l):
                if (left, right) not in self._blocks:
                    if places is None:
                        places = _places(right.user_rows), _places(right.item_rows)
                    self._blocks[left, right] = (
                        _block(left.user_rows, left.users, places[0], right.users),
                        _block(left.item_rows, left.items, places[1], right.items),
                    )
                for gram, block in zip((users, items), self._blocks[left, right], strict=True):
                    if block is not None:
                        gram[ends[k] : ends[k + 1], ends[l] : ends[l + 1]] = block
                        gram[ends[l] : ends[l + 1], ends[k] : ends[k + 1]] = block.T
        return users, items


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
