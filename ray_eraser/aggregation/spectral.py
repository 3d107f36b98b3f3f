"""The best rank-D factors of the submodels' summed scores, computed from their Gram matrices without training or data.

The summed score matrix is S = P Q'. P (U x KD) and Q (I x KD) are the concatenated tables of users and items, with zeros for
absent rows. The singular vectors of S lie in the column spans of P and Q, so all computations use KD x KD matrices.

K submodels of width D, k and l two of them; R requested rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import linalg

from ray_eraser.aggregation.grams import Array, Blocks, Grams, dense, times
from ray_eraser.determinism import in_parts
from ray_eraser.embeddings import Embeddings
from ray_eraser.kernels.compiled import compiled

_EXACT_UP_TO = 256
"""Largest total width KD for the exact eigensolver, whose cost is cubic. Above it, a block Krylov space is used."""

ROUNDS = 3
FEWEST_DIRECTIONS = 64
"""The Krylov space has one block for the start and one for each round. A block has as many directions as the requested rank,
and at least `FEWEST_DIRECTIONS`. On MovieLens-1M with 10 to 50 shards, the space captures only .1 to .3 percent less than the
best approximation, and quality on the validation set is the same."""

_SUMMED = 1024
"""Number of rows to sum over all submodels at once. They fit in a processor's cache."""

NOISE = 10 * float(np.finfo(np.float32).eps)
"""Relative cutoff: smaller eigenvalues of a single-precision Gram matrix may be rounding error. The cutoff for squared singular
values is a hundredth of it."""


def spectral(
    submodels: Sequence[Embeddings],
    rank: int,
    seed: int,
    weights: Sequence[float] | None = None,
    grams: Grams | None = None,
    *,
    with_users: bool = True,
) -> Embeddings:
    """Embeddings of width `rank` whose inner products are the best rank-`rank` approximation of the summed scores.

    Args:
        submodels: the tables; empty ones contribute nothing.
        rank: the width of the result. If the summed scores have a lower rank, the last columns are zero.
        seed: the seed for the start of the Krylov space (KD > 256).
        weights: (K,) the factor of each submodel's scores; 1 by default.
        grams: a cache of Gram blocks; missing blocks are added.
        with_users: False leaves the users out, for callers that fold users in.
    """
    if not submodels:
        return Embeddings.empty(rank)
    users_KDR, items_KDR = bases(submodels, rank, seed, weights, grams)
    item_rows, items = _sum_rows([(submodel.item_rows, submodel.items) for submodel in submodels], items_KDR)
    if with_users:
        user_rows, users = _sum_rows([(submodel.user_rows, submodel.users) for submodel in submodels], users_KDR)
    else:
        empty = Embeddings.empty(rank)
        user_rows, users = empty.user_rows, empty.users
    return Embeddings(user_rows, users, item_rows, items)


def bases(
    submodels: Sequence[Embeddings],
    rank: int,
    seed: int,
    weights: Sequence[float] | None = None,
    grams: Grams | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The matrices that map each submodel's user and item vectors before they are summed: two (KD, R) float64."""
    factors = np.ones(len(submodels)) if weights is None else np.asarray(weights, np.float64)
    scale_KD = np.repeat(factors, [submodel.width for submodel in submodels])
    gram_users, gram_items = gram_sides(submodels, Grams() if grams is None else grams)
    if weights is not None:
        outer = factors[:, None, None] ** 2 if gram_users.ndim == 3 else np.outer(scale_KD, scale_KD)
        gram_users = gram_users * outer.astype(gram_users.dtype)
    if not is_wide(submodels):
        users_KDR, items_KDR = exact(dense(gram_users), dense(gram_items), rank)
    else:
        users_KDR, items_KDR = _iterated(gram_users, gram_items, rank, seed)
    return scale_KD[:, None] * users_KDR, items_KDR


def gram_sides(submodels: Sequence[Embeddings], grams: Blocks[Array]) -> tuple[Array, Array]:
    """The Gram matrices of users and items for `bases`, in the precision that it needs."""
    return grams.sides(submodels, np.float32 if is_wide(submodels) else np.float64)


def is_wide(submodels: Sequence[Embeddings]) -> bool:
    """Whether the total width is so large that the bases are computed from a Krylov space."""
    return sum(submodel.width for submodel in submodels) > _EXACT_UP_TO


def exact(gram_users: np.ndarray, gram_items: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The bases by eigendecomposition of both Gram matrices, and of core core' for the product `core` of their roots."""
    values_P, vectors_P = eigh(gram_users)
    values_Q, vectors_Q = eigh(gram_items)
    root_P, root_Q = np.sqrt(values_P), np.sqrt(values_Q)
    core = root_P[:, None] * (vectors_P.T @ vectors_Q) * root_Q[None, :]
    # Only the leading left singular vectors are needed, which takes a third of the time of a full decomposition.
    last = len(core) - 1
    squares, left = linalg.eigh(core @ core.T, subset_by_index=[max(0, last + 1 - rank), last], driver="evr")
    squares, left = squares[::-1], left[:, ::-1]
    real = squares > squares.max(initial=0.0) * len(core) * np.finfo(np.float64).eps
    left, singular = left[:, real], np.sqrt(squares[real])
    kept = len(singular)
    share = np.sqrt(singular)
    users = np.zeros((len(gram_users), rank))
    items = np.zeros((len(gram_items), rank))
    users[:, :kept] = vectors_P @ (left / root_P[:, None]) * share
    items[:, :kept] = vectors_Q @ ((core.T @ left / singular) / root_Q[:, None]) * share
    return users, items


def _iterated(gram_users: np.ndarray, gram_items: np.ndarray, rank: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The bases from a block Krylov space of G_P G_Q (Musco and Musco 2015).

    The leading eigenvectors z of G_P G_Q give the right singular vectors Q z of S. Large matrices are in single precision,
    small ones in double precision.
    """
    n = math.prod(gram_users.shape[:-1])
    # Scale both to a trace of one, because their product could leave the range of single precision.
    light_users, light_items = (np.float32(1 / (np.einsum("...ii->...", gram).sum() or 1)) for gram in (gram_users, gram_items))
    block = min(n, max(rank, FEWEST_DIRECTIONS))
    span = np.empty((n, min(n, block * (1 + ROUNDS))), np.float32, order="F")
    image = np.empty_like(span)
    directions, filled = np.random.default_rng(seed).standard_normal((n, block)).astype(np.float32), 0
    while filled < span.shape[1]:
        directions = directions[:, : span.shape[1] - filled]
        for _ in range(2):  # twice is enough in single precision
            before = span[:, :filled]
            directions = _orthonormal(directions - before @ (before.T @ directions))
        new = slice(filled, filled + directions.shape[1])
        span[:, new], image[:, new] = directions, times(gram_items, directions)
        directions = times(gram_users, image[:, new] * light_items) * light_users
        filled = new.stop
    # Make Q span @ whiten orthonormal.
    span, image = span.astype(np.float64), image.astype(np.float64)
    values, vectors = eigh(span.T @ image, NOISE)
    whiten = vectors / np.sqrt(values)
    right, image = span @ whiten, image @ whiten
    # S restricted to this space is P (G_Q right). Its Gram matrix gives the rotation and the singular values.
    squares, rotation = eigh(image.T @ times(gram_users, image), NOISE / 100)
    kept = min(rank, len(squares))
    leading = slice(len(squares) - 1, len(squares) - 1 - kept if kept < len(squares) else None, -1)
    share = squares[leading] ** 0.25
    users, items = np.zeros((n, rank)), np.zeros((n, rank))
    users[:, :kept] = image @ rotation[:, leading] / share
    items[:, :kept] = right @ rotation[:, leading] * share
    return users, items


def _orthonormal(basis: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the columns' span."""
    return np.asarray(linalg.qr(basis, mode="economic", overwrite_a=True, check_finite=False)[0])


def eigh(symmetric: np.ndarray, noise: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues above `noise` times the largest, ascending, and their eigenvectors; the rest may be rounding error."""
    values, vectors = linalg.eigh(symmetric, driver="evd")
    real = values > values.max(initial=0.0) * (len(values) * float(np.finfo(np.float32).eps) ** 2 if noise is None else noise)
    return values[real], vectors[:, real]


def union_of(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The ascending union of the tables' rows, and the positions of each table's rows in it; all int32."""
    is_there = np.zeros(1 + max(int(theirs.max(initial=-1)) for theirs in rows), bool)
    for theirs in rows:
        is_there[theirs] = True
    places = np.cumsum(is_there, dtype=np.int32) - np.int32(1)
    return np.flatnonzero(is_there).astype(np.int32), [places[theirs] for theirs in rows]


def _sum_rows(tables: Sequence[tuple[np.ndarray, np.ndarray]], basis_KDR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum over tables, for every row, the table's vector times its basis.

    Args:
        tables: row numbers and vectors of each table, in the order of the sum.
        basis_KDR: the bases of the tables, stacked.

    Returns:
        The union of the row numbers, and the float32 sums of these rows.
    """
    union, at = union_of([rows for rows, _ in tables])
    bases = np.split(basis_KDR.astype(np.float32), np.cumsum([vectors.shape[1] for _, vectors in tables[:-1]]))
    sums = np.empty((len(union), basis_KDR.shape[1]), np.float32)
    cuts = [np.searchsorted(theirs, np.arange(0, len(union) + _SUMMED, _SUMMED)) for theirs in at]

    def sum_blocks(first: int, last: int) -> None:
        for block in range(first, last):
            begin = block * _SUMMED
            total = np.zeros((min(_SUMMED, len(union) - begin), sums.shape[1]))
            for (_, vectors), basis_DR, theirs, cut in zip(tables, bases, at, cuts, strict=True):
                inside = slice(cut[block], cut[block + 1])
                _add_rows(vectors[inside] @ basis_DR, theirs[inside] - begin, total)
            sums[begin : begin + _SUMMED] = total

    in_parts(-(-len(union) // _SUMMED), sum_blocks, 1)
    return union, sums


@compiled
def _add_rows(part: np.ndarray, places: np.ndarray, total: np.ndarray) -> None:
    """total[places] += part, for distinct places."""
    for row in range(len(places)):
        for column in range(total.shape[1]):
            total[places[row], column] += part[row, column]
