"""LightGCN (He et al. 2020): BPR on vectors that are smoothed over the shard's own user-item graph.

U users and I items of the shard in its compact numbering, R rows of one side and C of the other, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ray_eraser.config import LightGcnConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.kernels.compiled import compiled
from ray_eraser.kernels.sampling import draw_triplets
from ray_eraser.models.base import BaseModel, Start, Table, TrainingState
from ray_eraser.models.bpr import bpr_slopes, user_start
from ray_eraser.seeds import derive

_START_SCALE = 0.1
"""Standard deviation of the initial coordinates, as in the authors' code."""

DECAY_1, DECAY_2, EPSILON = np.float32(0.9), np.float32(0.999), np.float32(1e-8)
"""Adam's constants, as in Kingma and Ba 2015."""


class LightGcn(BaseModel):
    """LightGCN. Its training state holds the vectors before smoothing."""

    config: LightGcnConfig

    def __init__(self, config: LightGcnConfig) -> None:
        self.config = config

    def train(
        self,
        before: TrainingState,
        interactions: Interactions,
        valid: Interactions,  # noqa: ARG002 - trains all epochs
        start: Start,
        epochs: int,
    ) -> TrainingState:
        """Train for all epochs. An epoch draws as many triplets as there are interactions."""
        config = self.config
        compact = interactions.compact()
        observed_UI = compact.matrix()
        graph = Graph.of(observed_UI, config.layers)
        users_UD = user_start(observed_UI.shape[0], config.width, start) * np.float32(_START_SCALE)
        items_ID = start.items * np.float32(_START_SCALE)
        fresh = TrainingState(Adam.table(compact.user_rows, users_UD), Adam.table(compact.item_rows, items_ID))
        state = fresh.after(before)
        users, items = Adam(state.users, config.lr), Adam(state.items, config.lr)
        n, seed = len(interactions), derive(start.seed, "triplets")
        for epoch in range(epochs):
            triplets_n3 = draw_triplets(observed_UI, n, seed, first=epoch * n)
            # A shorter last batch is kept, because a small shard has only this one.
            for first in range(0, n, config.batch):
                batch_n3 = triplets_n3[first : first + config.batch]
                slope_UD, slope_ID = slopes(graph, users.weights, items.weights, batch_n3, config.reg)
                users.step(slope_UD)
                items.step(slope_ID)
        return state

    def embeddings(self, state: TrainingState, interactions: Interactions) -> Embeddings:
        graph = Graph.of(interactions.compact().matrix(), self.config.layers)
        users_UD, items_ID = graph.smoothed(state.users["vectors"], state.items["vectors"])
        return Embeddings(state.users.rows, users_UD, state.items.rows, items_ID)


@dataclass(frozen=True, eq=False)
class Graph:
    """The shard's interactions as edges between users and items. Every user and every item has an edge.

    Attributes:
        by_user: (U, I).
        by_item: (I, U), the same edges.
        layers: the number of steps along the edges that `smoothed` takes.
    """

    by_user: sparse.csr_matrix
    by_item: sparse.csr_matrix
    layers: int

    @classmethod
    def of(cls, observed_UI: sparse.csr_matrix, layers: int) -> Graph:
        return cls(observed_UI, observed_UI.T.tocsr(), layers)

    def smoothed(self, users_UD: np.ndarray, items_ID: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean over l = 0 .. layers of A^l x, (U, D) and (I, D). A weights an edge by 1 / sqrt(product of both degrees).

        He et al. 2020, eq. 7 and 8. In the scale y = x / sqrt(degree), A is the plain mean over a row's neighbours. The map is
        symmetric, so it also maps a gradient at its result to the gradient at its argument.
        """
        roots_U, roots_I = (
            np.sqrt(np.diff(edges.indptr)).astype(users_UD.dtype)[:, None] for edges in (self.by_user, self.by_item)
        )
        layer_UD, layer_ID = users_UD / roots_U, items_ID / roots_I
        sum_UD, sum_ID = layer_UD.copy(), layer_ID.copy()
        for _ in range(self.layers):
            layer_UD, layer_ID = neighbour_means(self.by_user, layer_ID), neighbour_means(self.by_item, layer_UD)
            sum_UD += layer_UD
            sum_ID += layer_ID
        n_terms = users_UD.dtype.type(self.layers + 1)
        return sum_UD * (roots_U / n_terms), sum_ID * (roots_I / n_terms)


class Adam:
    """One table that Adam updates in place (Kingma and Ba 2015).

    Each row counts its own steps, so that the bias correction is right for rows that a later stage adds.
    """

    def __init__(self, table: Table, lr: float) -> None:
        self.weights = table["vectors"]
        self._lr = lr
        self._means, self._squares, self._steps_R = table["means"], table["squares"], table["steps"]
        # All rows that one stage added have the same age; there are A ages.
        self._ages_A, self._age_of_R = np.unique(self._steps_R, return_inverse=True)

    @staticmethod
    def table(rows: np.ndarray, vectors_RD: np.ndarray) -> Table:
        """A table with these vectors, before the first step."""
        zeros, steps = np.zeros_like(vectors_RD), np.zeros(len(vectors_RD), np.int64)
        return Table(rows, {"vectors": vectors_RD, "means": zeros, "squares": zeros.copy(), "steps": steps})

    def step(self, slope: np.ndarray) -> None:
        """Move every coordinate by about `lr` against the running mean of its gradient."""
        self._steps_R += 1
        self._ages_A += 1
        ages = self._ages_A.tolist()
        lr_A = np.array([self._lr / (1 - float(DECAY_1) ** age) for age in ages], np.float32)
        unbias_A = np.array([1 / (1 - float(DECAY_2) ** age) for age in ages], np.float32)
        _adam_step(self.weights, slope, self._means, self._squares, self._age_of_R, lr_A, unbias_A)


def slopes(
    graph: Graph, users_UD: np.ndarray, items_ID: np.ndarray, triplets_n3: np.ndarray, reg: float
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients (U, D) and (I, D) of the loss of these triplets at the vectors before smoothing. He et al. 2020, eq. 15.

    loss = sum over triplets of -log sigmoid(p_u . (q_i - q_j)) with smoothed vectors
           + reg / 2 times the squared lengths of the three vectors before smoothing.
    """
    slope_UD, slope_ID = graph.smoothed(*bpr_slopes(*graph.smoothed(users_UD, items_ID), triplets_n3))
    times_U = np.bincount(triplets_n3[:, 0], minlength=len(users_UD))
    # Item number I means "no item".
    times_I = np.bincount(triplets_n3[:, 1:].ravel(), minlength=len(items_ID))[: len(items_ID)]
    slope_UD += (reg * times_U).astype(users_UD.dtype)[:, None] * users_UD
    slope_ID += (reg * times_I).astype(items_ID.dtype)[:, None] * items_ID
    return slope_UD, slope_ID


def neighbour_means(edges_RC: sparse.csr_matrix, others_CD: np.ndarray) -> np.ndarray:
    """The mean of every row's neighbours, (R, D), added in storage order."""
    means_RD = np.empty((edges_RC.shape[0], others_CD.shape[1]), others_CD.dtype)
    _neighbour_means(edges_RC.indptr, edges_RC.indices, others_CD, means_RD)
    return means_RD


@compiled
def _neighbour_means(starts: np.ndarray, neighbours: np.ndarray, others_CD: np.ndarray, means_RD: np.ndarray) -> None:
    for row in range(len(means_RD)):
        mean_D = means_RD[row]
        mean_D[:] = 0
        start, stop = starts[row], starts[row + 1]
        fours = stop - (stop - start) % 4
        # Four neighbours at a time: the sum is stored a quarter as often, which halves the time.
        for n in range(start, fours, 4):
            a_D, b_D = others_CD[neighbours[n]], others_CD[neighbours[n + 1]]
            c_D, d_D = others_CD[neighbours[n + 2]], others_CD[neighbours[n + 3]]
            for d in range(len(mean_D)):
                mean_D[d] += (a_D[d] + b_D[d]) + (c_D[d] + d_D[d])
        for n in range(fours, stop):
            a_D = others_CD[neighbours[n]]
            for d in range(len(mean_D)):
                mean_D[d] += a_D[d]
        degree = others_CD.dtype.type(stop - start)
        for d in range(len(mean_D)):
            mean_D[d] /= degree


@compiled
def _adam_step(
    weights_RD: np.ndarray,
    slope_RD: np.ndarray,
    means_RD: np.ndarray,
    squares_RD: np.ndarray,
    age_of_R: np.ndarray,
    lr_A: np.ndarray,
    unbias_A: np.ndarray,
) -> None:
    """In place: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w -= lr m / (sqrt(v unbias) + eps)."""
    one = np.float32(1)
    for r in range(weights_RD.shape[0]):
        lr, unbias = lr_A[age_of_R[r]], unbias_A[age_of_R[r]]
        for d in range(weights_RD.shape[1]):
            slope = slope_RD[r, d]
            mean = DECAY_1 * means_RD[r, d] + (one - DECAY_1) * slope
            square = DECAY_2 * squares_RD[r, d] + (one - DECAY_2) * slope * slope
            means_RD[r, d], squares_RD[r, d] = mean, square
            weights_RD[r, d] -= lr * mean / (np.sqrt(square * unbias) + EPSILON)
