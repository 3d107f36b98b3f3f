"""The best rank-D factors of the submodels' summed scores, from their Gram matrices alone: no training and no data.

The summed score matrix is S = P Q' with P the users' tables side by side, U x KD, and Q the items', I x KD, absent rows zero.
Its singular vectors lie in the columns' spans, so that everything happens in KD x KD matrices, whatever U and I are.

K submodels of width D, k and l two of them; R rank asked for.
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
"""Stacked width KD from which on the eigensolver's cubic cost is avoided by a block Krylov space."""

ROUNDS = 3
FEWEST_DIRECTIONS = 64
"""The Krylov space has a block of as many directions as are asked for, or so many, for the start and for each round. On
MovieLens-1M with ten to fifty shards it holds but one to three thousandths less than the best approximation, and quality on the
validation set is the same."""

_SUMMED = 1024
"""Rows whose sums over all submodels are made at a time: so many stay in a processor's cache."""

NOISE = 10 * float(np.finfo(np.float32).eps)
"""Of the greatest eigenvalue: what is less of an item Gram matrix of single precision may be rounding. Of squared singular
values, what is less than a hundredth of it."""


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
        submodels: the tables; empty ones add nothing.
        rank: width of the result; where the stack has a lower rank the last columns are zero.
        seed: for the start of the Krylov space (KD > 256).
        weights: (K,) factor of each submodel's scores; 1 by default.
        grams: blocks of Gram matrices that are there already; gains those that are not.
        with_users: False leaves the users out, where they are solved anew anyway.
    """
    if not submodels:
        return Embeddings.empty(rank)
    users_KDR, items_KDR = bases(submodels, rank, seed, weights, grams)
    item_rows, items = _sum_rows([(submodel.item_rows, submodel.items) for submodel in submodels], items_KDR)
    if with_users:
        user_rows, users = _sum_rows([(submodel.user_rows, submodel.users) for submodel in submodels], users_KDR)
    else:
        nobody = Embeddings.empty(rank)
        user_rows, users = nobody.user_rows, nobody.users
    return Embeddings(user_rows, users, item_rows, items)


def bases(
    submodels: Sequence[Embeddings],
    rank: int,
    seed: int,
    weights: Sequence[float] | None = None,
    grams: Grams | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What every submodel's user and item vectors are multiplied with before they are summed: two (KD, R) float64."""
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
    """The Gram matrices that `bases` starts from: users' and items', in the precision that it needs."""
    return grams.sides(submodels, np.float32 if is_wide(submodels) else np.float64)


def is_wide(submodels: Sequence[Embeddings]) -> bool:
    """Whether the bases of so wide a stack come from a Krylov space."""
    return sum(submodel.width for submodel in submodels) > _EXACT_UP_TO


def exact(gram_users: np.ndarray, gram_items: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """By eigendecomposition of both Gram matrices, and of the product of their roots times its transpose."""
    values_P, vectors_P = eigh(gram_users)
    values_Q, vectors_Q = eigh(gram_items)
    root_P, root_Q = np.sqrt(values_P), np.sqrt(values_Q)
    core = root_P[:, None] * (vectors_P.T @ vectors_Q) * root_Q[None, :]
    # Only the leading singular vectors are wanted, and those of one side: a third of the time of a whole decomposition.
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
    """From a block Krylov space of G_P G_Q (Musco and Musco 2015), whose leading eigenvectors z give S's right singular vectors
    Q z. Single precision where the matrices are large, double where they are not.
    """
    n = math.prod(gram_users.shape[:-1])
    # To a trace of one, or products of two could leave the range.
    light_users, light_items = (np.float32(1 / (np.einsum("...ii->...", gram).sum() or 1)) for gram in (gram_users, gram_items))
    block = min(n, max(rank, FEWEST_DIRECTIONS))
    span = np.empty((n, min(n, block * (1 + ROUNDS))), np.float32, order="F")
    image = np.empty_like(span)
    directions, filled = np.random.default_rng(seed).standard_normal((n, block)).astype(np.float32), 0
    while filled < span.shape[1]:
        directions = directions[:, : span.shape[1] - filled]
        for _ in range(2):  # in single precision, twice is enough
            before = span[:, :filled]
            directions = _orthonormal(directions - before @ (before.T @ directions))
        new = slice(filled, filled + directions.shape[1])
        span[:, new], image[:, new] = directions, times(gram_items, directions)
        directions = times(gram_users, image[:, new] * light_items) * light_users
        filled = new.stop
    # Orthonormal in item space: Q span @ whiten.
    span, image = span.astype(np.float64), image.astype(np.float64)
    values, vectors = eigh(span.T @ image, NOISE)
    whiten = vectors / np.sqrt(values)
    right, image = span @ whiten, image @ whiten
    # S restricted to that space is P (G_Q right); its own Gram matrix gives the rotation and the singular values.
    squares, rotation = eigh(image.T @ times(gram_users, image), NOISE / 100)
    kept = min(rank, len(squares))
    leading = slice(len(squares) - 1, len(squares) - 1 - kept if kept < len(squares) else None, -1)
    share = squares[leading] ** 0.25
    users, items = np.zeros((n, rank)), np.zeros((n, rank))
    users[:, :kept] = image @ rotation[:, leading] / share
    items[:, :kept] = right @ rotation[:, leading] * share
    return users, items


def _orthonormal(basis: np.ndarray) -> np.ndarray:
    """Columns that span the same."""
    return np.asarray(linalg.qr(basis, mode="economic", overwrite_a=True, check_finite=False)[0])


def eigh(symmetric: np.ndarray, noise: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending, and eigenvectors that carry more than rounding: than `noise` times the greatest."""
    values, vectors = linalg.eigh(symmetric, driver="evd")
    real = values > values.max(initial=0.0) * (len(values) * float(np.finfo(np.float32).eps) ** 2 if noise is None else noise)
    return values[real], vectors[:, real]


def union_of(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The ascending rows that any of some tables has, and where among them each table's rows stand; all int32."""
    is_there = np.zeros(1 + max(int(theirs.max(initial=-1)) for theirs in rows), bool)
    for theirs in rows:
        is_there[theirs] = True
    places = np.cumsum(is_there, dtype=np.int32) - np.int32(1)
    return np.flatnonzero(is_there).astype(np.int32), [places[theirs] for theirs in rows]


def _sum_rows(tables: Sequence[tuple[np.ndarray, np.ndarray]], basis_KDR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row numbers of all tables, float32 sums over tables in their order, of the vector that each has there times its basis).

    Args:
        tables: row numbers and vectors, of width D, of each.
        basis_KDR: one below the other.
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
    """total[places] += part, no place twice."""
    for row in range(len(places)):
        for column in range(total.shape[1]):
            total[places[row], column] += part[row, column]
