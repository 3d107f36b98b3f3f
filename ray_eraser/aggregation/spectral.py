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

from ray_eraser.aggregation.grams import Grams, dense, times
from ray_eraser.embeddings import Embeddings

_EXACT_UP_TO = 256
"""Stacked width KD from which on the eigensolver's cubic cost is avoided by subspace iteration."""

_OVERSAMPLING = 64
"""Directions beyond the rank: they decide how fast it is found. On MovieLens-1M eight rounds with as many as the rank of 64
lose one part in 20,000 of what the best approximation holds; with sixteen it takes twenty."""

_ROUNDS = 8
_LAST_ROUNDS = 1


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
        seed: for the start of the subspace iteration (KD > 256).
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
    gram_users, gram_items = (Grams() if grams is None else grams).sides(submodels)
    if weights is not None:
        outer = factors[:, None, None] ** 2 if gram_users.ndim == 3 else np.outer(scale_KD, scale_KD)
        gram_users = gram_users * outer
    if len(scale_KD) <= _EXACT_UP_TO:
        users_KDR, items_KDR = _exact(dense(gram_users), dense(gram_items), rank)
    else:
        users_KDR, items_KDR = _iterated(gram_users, gram_items, rank, seed)
    return scale_KD[:, None] * users_KDR, items_KDR


def _exact(gram_users: np.ndarray, gram_items: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """By eigendecomposition of both Gram matrices, and of the product of their roots times its transpose."""
    values_P, vectors_P = _eigh(gram_users)
    values_Q, vectors_Q = _eigh(gram_items)
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
    """By subspace iteration with G_P G_Q (Halko, Martinsson, Tropp 2011), whose leading eigenvectors z give S's right singular
    vectors Q z.
    """
    n = math.prod(gram_users.shape[:-1])
    basis = np.random.default_rng(seed).standard_normal((n, min(n, rank + _OVERSAMPLING))).astype(np.float32)
    # The way to the subspace bears rounding, which the last rounds undo: single precision is twice as fast.
    light_users, light_items = _single(gram_users), _single(gram_items)
    for _ in range(_ROUNDS - _LAST_ROUNDS):
        basis = _orthonormal(times(light_users, times(light_items, basis)))
    basis = basis.astype(np.float64)
    for _ in range(_LAST_ROUNDS):
        basis = _orthonormal(times(gram_users, times(gram_items, basis)))
    # Orthonormal in item space: Q basis @ whiten.
    image = times(gram_items, basis)
    values, vectors = _eigh(basis.T @ image)
    whiten = vectors / np.sqrt(values)
    right, image = basis @ whiten, image @ whiten
    # S restricted to that space is P (G_Q right); its own Gram matrix gives the rotation and the singular values.
    squares, rotation = _eigh(image.T @ times(gram_users, image))
    kept = min(rank, len(squares))
    leading = slice(len(squares) - 1, len(squares) - 1 - kept if kept < len(squares) else None, -1)
    share = squares[leading] ** 0.25
    users, items = np.zeros((n, rank)), np.zeros((n, rank))
    users[:, :kept] = image @ rotation[:, leading] / share
    items[:, :kept] = right @ rotation[:, leading] * share
    return users, items


def _single(gram: np.ndarray) -> np.ndarray:
    """In single precision and to a trace of one, or products of two could leave its range."""
    light = np.empty(gram.shape, np.float32)
    np.multiply(gram, 1 / (np.einsum("...ii->...", gram).sum() or 1.0), out=light, casting="same_kind")
    return light


def _orthonormal(basis: np.ndarray) -> np.ndarray:
    """Columns that span the same."""
    return np.asarray(linalg.qr(basis, mode="economic", overwrite_a=True, check_finite=False)[0])


def _eigh(symmetric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending, and eigenvectors that carry more than rounding."""
    values, vectors = linalg.eigh(symmetric, driver="evd")
    real = values > values.max(initial=0.0) * len(values) * np.finfo(np.float32).eps ** 2
    return values[real], vectors[:, real]


def _sum_rows(tables: Sequence[tuple[np.ndarray, np.ndarray]], basis_KDR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row numbers of all tables, float32 sums over tables in their order, of the vector that each has there times its basis).

    Args:
        tables: row numbers and vectors, of width D, of each.
        basis_KDR: one below the other.
    """
    is_there = np.zeros(1 + max(int(rows.max(initial=-1)) for rows, _ in tables), bool)
    for rows, _ in tables:
        is_there[rows] = True
    union, places = np.flatnonzero(is_there).astype(np.int32), np.cumsum(is_there) - 1
    total = np.zeros((len(union), basis_KDR.shape[1]))
    end = 0
    for rows, vectors in tables:
        start, end = end, end + vectors.shape[1]
        part = vectors @ basis_KDR[start:end].astype(np.float32)
        if len(rows) == len(union):
            total += part
        else:
            total[places[rows]] += part
    return union, total.astype(np.float32)
