"""The spectral aggregate of aggregation/spectral.py on a torch device: Gram matrices, Krylov space and sums of rows.

The host computes the decompositions in double precision. They have at most a few hundred columns, so a GPU is not faster.

K submodels of width D, k and l two of them, N rows of some of them; R requested rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ray_eraser.aggregation.grams import Blocks, Precision, dense
from ray_eraser.aggregation.spectral import FEWEST_DIRECTIONS, NOISE, ROUNDS, eigh, exact, gram_sides, is_wide, union_of
from ray_eraser.embeddings import Embeddings

_GATHERED = 1 << 23
"""Count of numbers of a table in one matrix product: 200 MiB for both tables in double precision."""

_SUMMED = 1 << 23
"""Count of numbers of the result to sum at once: 160 MiB in double precision, including the part of a submodel."""

_DTYPES = {np.float32: torch.float32, np.float64: torch.float64}

_Table = tuple[np.ndarray, np.ndarray]
"""Row numbers and vectors of one side of a submodel, in host memory."""


class GramsTorch(Blocks[Tensor]):
    """Blocks on a device, together with the tables that they are made from. Each table is uploaded once."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self._uploaded: dict[int, tuple[np.ndarray, Tensor]] = {}  # by id of the array, which is kept so that no id is reused

    def keep(self, submodels: Iterable[Embeddings]) -> None:
        """Overwrite the tables and blocks of all other submodels with zeros, and drop them."""
        submodels = list(submodels)
        blocks, uploaded = self._blocks, self._uploaded
        super().keep(submodels)
        current = {id(array) for submodel in submodels for array in submodel.arrays().values()}
        self._uploaded = {name: held for name, held in uploaded.items() if name in current}
        superseded = [block for key in blocks.keys() - self._blocks.keys() for block in blocks[key] if block is not None]
        superseded += [uploaded[name][1] for name in uploaded.keys() - current]
        for tensor in superseded:
            tensor.zero_()

    def uploaded(self, array: np.ndarray) -> Tensor:
        """A copy on the device of an array that will not change. The copy stays until `keep` drops it."""
        held = self._uploaded.get(id(array))
        if held is None:
            held = self._uploaded[id(array)] = array, torch.tensor(array, device=self.device)
        return held[1]

    def give(self, submodels: Sequence[Embeddings], sides: tuple[np.ndarray, np.ndarray]) -> None:
        """Take over a result as `Blocks.give` does, and upload the items' tables, because an excision sums their rows next."""
        super().give(submodels, sides)
        for submodel in submodels:
            self.uploaded(submodel.items)

    def on_host(self, sides: tuple[Tensor, Tensor]) -> tuple[np.ndarray, np.ndarray]:
        users, items = (side.cpu().numpy() for side in sides)
        return users, items

    def _multiply(self, lefts: Sequence[Embeddings], right: Embeddings, precision: Precision) -> None:
        users = self._products([(left.user_rows, left.users) for left in lefts], (right.user_rows, right.users), precision)
        items = self._products([(left.item_rows, left.items) for left in lefts], (right.item_rows, right.items), precision)
        for left, users_DD, items_DD in zip(lefts, users, items, strict=True):
            self._blocks[self._key(left, right, precision)] = users_DD, items_DD

    def _products(self, lefts: Sequence[_Table], right: _Table, precision: Precision) -> list[Tensor | None]:
        """The block of every left table with the right one, (D, D); None without a common row. See `grams.Blocks`."""
        right_rows, right_vectors = right
        # The last entry stands for all rows above the rows of `right`.
        places = torch.full((int(right_rows.max(initial=-1)) + 2,), -1, dtype=torch.int32, device=self.device)
        places[self.uploaded(right_rows).long()] = torch.arange(len(right_rows), dtype=torch.int32, device=self.device)
        rows_N = torch.cat([self.uploaded(rows) for rows, _ in lefts])
        places_N = places.index_select(0, rows_N.clamp(max=len(places) - 1))
        # All tables at once, because the host would wait for the device once per table otherwise.
        common = (places_N >= 0).nonzero().squeeze(1)
        ends = np.cumsum([0, *(len(rows) for rows, _ in lefts)])
        cuts = torch.searchsorted(common, torch.from_numpy(ends).to(self.device)).tolist()
        products: list[Tensor | None] = []
        for (_, vectors), first, begin, end in zip(lefts, ends[:-1].tolist(), cuts[:-1], cuts[1:], strict=True):
            own, theirs = common[begin:end] - first, places_N.index_select(0, common[begin:end])
            tables = self.uploaded(vectors), self.uploaded(right_vectors)
            products.append(_product(tables, (own, theirs), _DTYPES[precision]) if end > begin else None)
        return products

    def _taken_over(self, block: np.ndarray | None) -> Tensor | None:
        return None if block is None else torch.tensor(block, device=self.device)

    def _side(self, submodels: Sequence[Embeddings], side: int, precision: Precision) -> Tensor:
        widths, dtype = [submodel.width for submodel in submodels], _DTYPES[precision]
        n = len(submodels)
        blocks = {
            (k, l): self._blocks[self._key(submodels[k], submodels[l], precision)][side] for l in range(n) for k in range(l, n)
        }
        diagonal = [self._or_zeros(blocks[k, k], widths[k], widths[k], dtype) for k in range(n)]
        if len(set(widths)) == 1 and all(block is None for (k, l), block in blocks.items() if k != l):
            return torch.stack(diagonal)
        # Fill the part below the diagonal column by column, which takes K large copies instead of K^2 small ones.
        columns = [
            torch.cat([self._or_zeros(blocks[k, l] if k > l else None, widths[k], widths[l], dtype) for k in range(n)])
            for l in range(n)
        ]
        below = torch.cat(columns, 1)
        gram = below + below.T
        first = 0
        for block in diagonal:
            last = first + len(block)
            gram[first:last, first:last] = block
            first = last
        return gram

    def _or_zeros(self, block: Tensor | None, height: int, width: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(height, width, dtype=dtype, device=self.device) if block is None else block


def _product(tables: tuple[Tensor, Tensor], rows: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """The first table's rows, transposed, times the second table's rows, (D, D). The bits depend only on these two tables."""
    left, right = tables
    gram = torch.zeros(left.shape[1], right.shape[1], dtype=dtype, device=left.device)
    size = max(1, _GATHERED // max(gram.shape))
    for own, theirs in zip(*(torch.split(rows_n, size) for rows_n in rows), strict=True):
        gram.addmm_(left.index_select(0, own).to(dtype).T, right.index_select(0, theirs).to(dtype))
    return gram


def spectral_torch(
    submodels: Sequence[Embeddings], rank: int, seed: int, grams: GramsTorch, *, with_users: bool = True
) -> Embeddings:
    """The embeddings of `spectral.spectral`, computed on a device and returned in host memory. Signs of columns may differ.

    Args:
        submodels: the tables; empty ones contribute nothing.
        rank: the width of the result. If the summed scores have a lower rank, the last columns are zero.
        seed: the seed for the start of the Krylov space, which is drawn on the CPU.
        grams: a cache of blocks and tables on the device; missing ones are added.
        with_users: False leaves the users out, for callers that fold users in.
    """
    if not submodels:
        return Embeddings.empty(rank)
    users_KDR, items_KDR = _bases(submodels, rank, seed, grams)
    item_rows, items = _sum_rows([(submodel.item_rows, submodel.items) for submodel in submodels], items_KDR, grams)
    if with_users:
        user_rows, users = _sum_rows([(submodel.user_rows, submodel.users) for submodel in submodels], users_KDR, grams)
    else:
        empty = Embeddings.empty(rank)
        user_rows, users = empty.user_rows, empty.users
    return Embeddings(user_rows, users, item_rows, items)


def _bases(submodels: Sequence[Embeddings], rank: int, seed: int, grams: GramsTorch) -> tuple[Tensor, Tensor]:
    """The matrices of `spectral.bases`, two (KD, R) float64 on the device."""
    sides = gram_sides(submodels, grams)
    if is_wide(submodels):
        return _iterated(*sides, rank, seed)
    gram_users, gram_items = grams.on_host(sides)
    users_KDR, items_KDR = exact(dense(gram_users), dense(gram_items), rank)
    return torch.from_numpy(users_KDR).to(grams.device), torch.from_numpy(items_KDR).to(grams.device)


def _iterated(gram_users: Tensor, gram_items: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """The bases from a Krylov space. See `spectral._iterated`, which explains every step."""
    n, device = math.prod(gram_users.shape[:-1]), gram_users.device
    light_users, light_items = (1 / (_trace(gram) or 1) for gram in (gram_users, gram_items))
    block = min(n, max(rank, FEWEST_DIRECTIONS))
    span = torch.empty(n, min(n, block * (1 + ROUNDS)), dtype=torch.float32, device=device)
    image = torch.empty_like(span)
    start = np.random.default_rng(seed).standard_normal((n, block)).astype(np.float32)
    directions, filled = torch.from_numpy(start).to(device), 0
    while filled < span.shape[1]:
        directions = directions[:, : span.shape[1] - filled]
        before = span[:, :filled]
        for _ in range(2):  # twice is enough in single precision
            directions = torch.linalg.qr(directions - before @ (before.T @ directions))[0]
        new = slice(filled, filled + directions.shape[1])
        span[:, new], image[:, new] = directions, _times(gram_items, directions)
        directions = _times(gram_users, image[:, new] * light_items) * light_users
        filled = new.stop
    span, image = span.double(), image.double()
    values, vectors = eigh((span.T @ image).cpu().numpy(), NOISE)
    whiten = torch.from_numpy(vectors / np.sqrt(values)).to(device)
    right, image = span @ whiten, image @ whiten
    squares, rotation = eigh((image.T @ _times(gram_users, image).double()).cpu().numpy(), NOISE / 100)
    leading, share = rotation[:, ::-1][:, :rank], squares[::-1][:rank] ** 0.25
    users, items = (torch.zeros(n, rank, dtype=torch.float64, device=device) for _ in range(2))
    users[:, : len(share)] = image @ torch.from_numpy(leading / share).to(device)
    items[:, : len(share)] = right @ torch.from_numpy(leading * share).to(device)
    return users, items


def _trace(gram: Tensor) -> float:
    return float(gram.diagonal(dim1=-2, dim2=-1).sum())


def _times(gram: Tensor, matrix: Tensor) -> Tensor:
    """A Gram matrix in either format times a (KD, n) matrix, as in `grams.times`."""
    if gram.ndim == 3:
        return (gram.to(matrix.dtype) @ matrix.reshape(*gram.shape[:2], -1)).reshape(matrix.shape)
    return gram @ matrix.to(gram.dtype)


def _sum_rows(tables: Sequence[_Table], basis_KDR: Tensor, grams: GramsTorch) -> tuple[np.ndarray, np.ndarray]:
    """The sums of `spectral._sum_rows`, in double precision and in the order of the submodels. The result is downloaded."""
    union, at = union_of([rows for rows, _ in tables])
    bases = torch.split(basis_KDR.float(), [vectors.shape[1] for _, vectors in tables])
    sums = np.empty((len(union), basis_KDR.shape[1]), np.float32)
    size = max(1, _SUMMED // basis_KDR.shape[1])
    for first in range(0, len(union), size):
        total = torch.zeros(min(size, len(union) - first), sums.shape[1], dtype=torch.float64, device=grams.device)
        for (_, vectors), basis_DR, theirs in zip(tables, bases, at, strict=True):
            begin, end = np.searchsorted(theirs, (first, first + len(total))).tolist()
            if end > begin:
                places = torch.from_numpy(theirs[begin:end] - np.int32(first)).to(grams.device)
                total.index_add_(0, places.long(), (grams.uploaded(vectors)[begin:end] @ basis_DR).double())
        sums[first : first + len(total)] = total.float().cpu().numpy()
    return union, sums
