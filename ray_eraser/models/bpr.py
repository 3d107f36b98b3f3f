"""Matrix factorisation by Bayesian personalised ranking: BPR-MF (Rendle et al. 2009), with Adagrad's steps (Duchi et al. 2011).

U users and I items of the shard in its compact numbering, n triplets (user u, an item i the user has, an item j the user has
not), D width.
"""

from __future__ import annotations

import math

import numpy as np

from ray_eraser.config import BprConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.models.base import BaseModel, Start, Table, TrainingState
from ray_eraser.seeds import derive, normal_rows
from ray_eraser.training.kernels import compiled
from ray_eraser.training.sampling import draw_triplets

_START_SCALE = 0.01
"""Deviation of every coordinate at the start; the loss is flat at zero, where all scores are equal."""

_ACCUMULATOR_START = 1e-8
"""Adagrad's first squared gradient: small, so that the first step of a row is a whole `lr`, as in models/wmf_adagrad.py."""


class Bpr(BaseModel):
    """BPR-MF."""

    config: BprConfig

    def __init__(self, config: BprConfig) -> None:
        self.config = config

    def train(
        self,
        before: TrainingState,
        interactions: Interactions,
        valid: Interactions,  # noqa: ARG002 - trains all epochs
        start: Start,
        epochs: int,
    ) -> TrainingState:
        """Train for all epochs, each of as many triplets as there are interactions."""
        config = self.config
        compact = interactions.compact()
        observed_UI = compact.matrix()
        fresh = TrainingState(
            _fresh(compact.user_rows, user_start(observed_UI.shape[0], config.width, start)),
            _fresh(compact.item_rows, start.items),
        )
        state = fresh.after(before)
        n, seed = len(interactions), derive(start.seed, "triplets")
        for epoch in range(epochs):
            triplets_n3 = draw_triplets(observed_UI, n, seed, first=epoch * n)
            _train_epoch(
                triplets_n3,
                state.users["vectors"],
                state.items["vectors"],
                state.users["squares"],
                state.items["squares"],
                config.batch,
                np.float32(config.lr),
                np.float32(config.reg),
            )
        return state

    def embeddings(self, state: TrainingState, interactions: Interactions) -> Embeddings:  # noqa: ARG002 - all in the state
        return Embeddings(state.users.rows, state.users["vectors"], state.items.rows, state.items["vectors"])


def _fresh(rows: np.ndarray, normal_RD: np.ndarray) -> Table:
    vectors_RD = normal_RD * np.float32(_START_SCALE)
    return Table(rows, {"vectors": vectors_RD, "squares": np.full_like(vectors_RD, _ACCUMULATOR_START)})


def user_start(n_users: int, width: int, start: Start) -> np.ndarray:
    """Standard normal vectors of the users, (n_users, width) float32, by their places among the shard's users."""
    return normal_rows(np.arange(n_users, dtype=np.uint64), derive(start.seed, "users"), width)


def bpr_slopes(users_UD: np.ndarray, items_ID: np.ndarray, triplets_n3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gradients (U, D) and (I, D) of the loss of these triplets. Rendle et al. 2009, "BPR-Opt" without its ridge.

    loss = sum over triplets of -log sigmoid(p_u . (q_i - q_j)), where item number I is no item, and its q is zero.
    """
    slope_UD, slope_ID = np.zeros_like(users_UD), np.zeros_like(items_ID)
    _add_slopes(triplets_n3, users_UD, items_ID, slope_UD, slope_ID, users_UD.dtype.type(0))
    return slope_UD, slope_ID


@compiled
def _train_epoch(
    triplets_n3: np.ndarray,
    users_UD: np.ndarray,
    items_ID: np.ndarray,
    users_squares_UD: np.ndarray,
    items_squares_ID: np.ndarray,
    batch: int,
    lr: np.float32,
    reg: np.float32,
) -> None:
    """One step of Adagrad for every batch of triplets, in place; the last, shorter batch is kept.

    A batch moves the rows that it names: what the ridge does to the others would cost a pass over both tables a step.
    """
    slope_UD, slope_ID = np.zeros_like(users_UD), np.zeros_like(items_ID)
    for first in range(0, len(triplets_n3), batch):
        batch_n3 = triplets_n3[first : first + batch]
        _add_slopes(batch_n3, users_UD, items_ID, slope_UD, slope_ID, reg)
        for s in range(len(batch_n3)):
            _adagrad_step(batch_n3[s, 0], users_UD, slope_UD, users_squares_UD, lr)
            _adagrad_step(batch_n3[s, 1], items_ID, slope_ID, items_squares_ID, lr)
            if batch_n3[s, 2] < len(items_ID):
                _adagrad_step(batch_n3[s, 2], items_ID, slope_ID, items_squares_ID, lr)


@compiled
def _adagrad_step(row: int, weights_RD: np.ndarray, slope_RD: np.ndarray, squares_RD: np.ndarray, lr: np.float32) -> None:
    """One step of Adagrad of a row, in place. The slope is used up: a row that a batch names twice moves once, by the sum."""
    for d in range(weights_RD.shape[1]):
        slope = slope_RD[row, d]
        square = squares_RD[row, d] + slope * slope
        squares_RD[row, d] = square
        weights_RD[row, d] -= lr * slope / np.sqrt(square)
    for d in range(weights_RD.shape[1]):
        slope_RD[row, d] = 0


@compiled
def _add_slopes(
    triplets_n3: np.ndarray,
    users_UD: np.ndarray,
    items_ID: np.ndarray,
    slope_UD: np.ndarray,
    slope_ID: np.ndarray,
    reg: np.float32,
) -> None:
    """Add to the slopes every triplet's gradient of -log sigmoid(p.(q_i - q_j)) + reg / 2 (p^2 + q_i^2 + q_j^2)."""
    one = users_UD.dtype.type(1)
    # What stands for no item: a vector of zeros, and a place for its slope that nobody reads.
    nothing_D, unread_D = np.zeros_like(items_ID[0]), np.zeros_like(items_ID[0])
    products_D = np.empty_like(items_ID[0])
    for s in range(len(triplets_n3)):
        user, positive, negative = triplets_n3[s, 0], triplets_n3[s, 1], triplets_n3[s, 2]
        p_D, i_D = users_UD[user], items_ID[positive]
        j_D = items_ID[negative] if negative < len(items_ID) else nothing_D
        for d in range(len(p_D)):
            products_D[d] = p_D[d] * (i_D[d] - j_D[d])
        slope = -one / (one + math.exp(_sum(products_D)))
        to_p_D, to_i_D = slope_UD[user], slope_ID[positive]
        to_j_D = slope_ID[negative] if negative < len(items_ID) else unread_D
        for d in range(len(p_D)):
            to_p_D[d] += slope * (i_D[d] - j_D[d]) + reg * p_D[d]
        for d in range(len(p_D)):
            to_i_D[d] += slope * p_D[d] + reg * i_D[d]
        for d in range(len(p_D)):
            to_j_D[d] += reg * j_D[d] - slope * p_D[d]


@compiled
def _sum(terms_D: np.ndarray) -> np.float32:
    """In four sums that a processor can add side by side; in one, every addition would wait for the last."""
    a = b = c = d = terms_D[0] * 0
    whole = len(terms_D) // 4 * 4
    for first in range(0, whole, 4):
        a += terms_D[first]
        b += terms_D[first + 1]
        c += terms_D[first + 2]
        d += terms_D[first + 3]
    for last in range(whole, len(terms_D)):
        a += terms_D[last]
    total: np.float32 = (a + b) + (c + d)
    return total
