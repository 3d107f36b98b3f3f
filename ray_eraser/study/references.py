"""Reference models for comparisons of quality, each in closed form or by one decomposition. No deployment serves them.

U users, I items, k singular vectors. R is the (U, I) 0/1 matrix of the training pairs, d its degrees.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from ray_eraser import seeds
from ray_eraser.config import load_config
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.splits import hold_out
from ray_eraser.errors import InputError
from ray_eraser.evaluation import evaluate
from ray_eraser.study.cells import Result, with_test_set

EASE_ITEMS = 20_000
"""Maximum number of items for `ease`. A matrix of this size takes 3.2 GB, and two are in memory at once."""
EASE_RIDGES = (100.0, 300.0, 1000.0)
"""The ridges to choose from on held-out pairs. Steck uses 200 to 1000, depending on the log."""
GF_CF_VECTORS = 256
GF_CF_LOW_PASS = 0.3
"""The weight of the ideal low-pass filter relative to the linear filter, as the authors choose for all their logs."""

_HELD = 0.1


@dataclass(frozen=True, eq=False)
class LinearScores:
    """A `Scorer` in the rows of a log, whose scores are linear in a user's items.

    Attributes:
        own: (U, I) R, with one column for each item that has a pair.
        item_rows: (I,) int32, the rows of these items.
        scores_of: a function from n rows of a matrix like R to scores (n, I).
    """

    own: sparse.csr_matrix
    item_rows: np.ndarray
    scores_of: Callable[[sparse.csr_matrix], np.ndarray]

    def scores(self, rows_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = self.own[rows_U]
        known_U = np.diff(own.indptr) > 0
        return known_U, np.asarray(self.scores_of(own[known_U]), np.float32)


def matrix_of(train: Interactions, n_users: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return R (int64) for the items that have a pair, and the rows of these items."""
    item_rows = train.item_rows()
    columns = np.searchsorted(item_rows, train.items)
    shape = (n_users, len(item_rows))
    return sparse.csr_matrix((np.ones(len(train), np.int64), (train.users, columns)), shape=shape), item_rows


def ease_weights(own_UI: sparse.csr_matrix, ridge: float) -> np.ndarray:
    """The matrix B with zero diagonal that minimises |R - R B|^2 + ridge |B|^2, (I, I) float64. Steck 2019, eq. 8.

    Raises:
        InputError: there are more than `EASE_ITEMS` items.
    """
    n_items = own_UI.shape[1]
    if n_items > EASE_ITEMS:
        raise InputError(
            f"ease solves a dense matrix of items by items, and {n_items:,} items are more than {EASE_ITEMS:,}: leave it out "
            "of --models, or use gf-cf, which has no such matrix"
        )
    gram_II = (own_UI.T @ own_UI).toarray().astype(np.float64)  # exact, because the entries are counts
    gram_II[np.diag_indices(n_items)] += ridge
    inverse_II = np.linalg.inv(gram_II)
    weights_II: np.ndarray = inverse_II / -np.diag(inverse_II)
    np.fill_diagonal(weights_II, 0)
    return weights_II


def ease(train: Interactions, n_users: int, ridge: float) -> LinearScores:
    """EASE (Steck 2019). The score of an item for a user is the sum of its weights for the user's items."""
    own_UI, item_rows = matrix_of(train, n_users)
    weights_II = ease_weights(own_UI, ridge)
    return LinearScores(own_UI, item_rows, lambda own: own @ weights_II)


def gf_cf(train: Interactions, n_users: int, n_vectors: int = GF_CF_VECTORS, seed: int = 0) -> LinearScores:
    """GF-CF (Shen et al. 2021, eq. 15): a linear filter on the user-item graph plus an ideal low-pass filter.

    With R~ = diag(d_u)^-1/2 R diag(d_i)^-1/2 and V the right singular vectors of its k largest singular values,

        scores = r_u (R~' R~ + .3 diag(d_i)^-1/2 V V' diag(d_i)^1/2).
    """
    own_UI, item_rows = matrix_of(train, n_users)
    users_U, items_I = (np.asarray(own_UI.sum(axis)).ravel().astype(np.float64) for axis in (1, 0))
    scaled_UI = (_power(users_U, -0.5) @ own_UI @ _power(items_I, -0.5)).tocsr()
    rank = min(n_vectors, min(scaled_UI.shape) - 1)
    vectors_Ik = np.zeros((len(item_rows), 0))
    if rank > 0:
        start = np.random.default_rng(seed).standard_normal(min(scaled_UI.shape))
        vectors_Ik = svds(scaled_UI, rank, v0=start)[2].T
    into_Ik = GF_CF_LOW_PASS * (_power(items_I, -0.5) @ vectors_Ik)
    out_of_kI = (_power(items_I, 0.5) @ vectors_Ik).T

    def scores_of(own: sparse.csr_matrix) -> np.ndarray:
        return np.asarray(((own @ scaled_UI.T) @ scaled_UI).toarray() + (own @ into_Ik) @ out_of_kI)

    return LinearScores(own_UI, item_rows, scores_of)


def _power(degrees: np.ndarray, exponent: float) -> sparse.dia_matrix:
    """diag(d^exponent), with 0 for degree 0."""
    powers = np.zeros(len(degrees))
    powers[degrees > 0] = degrees[degrees > 0] ** exponent
    return sparse.diags(powers)


def chosen_ease(dataset: Dataset, seed: int) -> LinearScores:
    """EASE with the ridge from `EASE_RIDGES` that ranks best on a tenth of the training pairs, held out by keyed hash."""
    n_users, salt = len(dataset.users), seeds.derive(seed, "study", "ease")
    kept, held = hold_out(dataset.train, dataset.users.keys, dataset.items.keys, _HELD, salt)
    quality = [evaluate(ease(kept, n_users, ridge), kept, held, (10,))["ndcg@10"] for ridge in EASE_RIDGES]
    return ease(dataset.train, n_users, EASE_RIDGES[int(np.argmax(quality))])


def _gf_cf(dataset: Dataset, seed: int) -> LinearScores:
    return gf_cf(dataset.train, len(dataset.users), seed=seeds.derive(seed, "study", "gf-cf"))


REFERENCES: Mapping[str, Callable[[Dataset, int], LinearScores]] = {"ease": chosen_ease, "gf-cf": _gf_cf}
"""Functions from a log and a seed to a model, by the names in the tables."""


@dataclass(frozen=True)
class Reference:
    """A row of a table for a reference model.

    Attributes:
        data: the path of the interaction log, or `synthetic`.
        model: a name in `REFERENCES`.
        changes: settings of the section `data`, and the seed.
    """

    data: str
    model: str
    changes: tuple[str, ...] = ()

    @classmethod
    def of(cls, data: str, model: str, changes: Sequence[str]) -> Reference:
        """Make a reference with the relevant ones of some settings."""
        return cls(data, model, tuple(change for change in changes if change.strip().startswith(("data.", "seed"))))

    def dataset(self) -> Dataset:
        """See `Cell.dataset`."""
        return with_test_set(self.data, load_config(None, self.changes))

    def key(self) -> str:
        """The key of the row in a file of results."""
        named = [Path(self.data).name, self.model, load_config(None, self.changes).fingerprint()]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]

    def label(self) -> str:
        """A label for progress messages."""
        return self.model

    def named(self) -> dict[str, str]:
        """The columns that identify the row."""
        return {"model": self.model, "method": "reference", "changes": " ".join(self.changes)}

    def row(self) -> dict[str, Any]:
        """Measure the model, and return one flat row with the columns of a `Cell`."""
        dataset = self.dataset()
        started = time.perf_counter()
        model = REFERENCES[self.model](dataset, load_config(None, self.changes).seed)
        seconds = time.perf_counter() - started
        quality = evaluate(model, dataset.train, dataset.test)
        result = Result(
            self.key(),
            Path(self.data).name,
            self.model,
            "reference",
            n_shards=1,
            changes=" ".join(self.changes),
            quality={name: value for name, value in quality.items() if "@" in name},
            balance=1,
            shards_per_user=1,
            seconds_shards=seconds,
            seconds_aggregation=0,
            erase_shards=0,
            erase_aggregation=0,
            touched=0,
        )
        return result.to_row()
