"""Matrix factorisation by Bayesian personalised ranking: BPR-MF (Rendle et al. 2009), with Adagrad's steps (Duchi et al. 2011).

U users and I items of the shard in its compact numbering, J = I + 1 with a row for "no item", n triplets (user u, an item i of
the user, an item j that the user does not have), R distinct rows in a batch, D width.
"""

from __future__ import annotations

import math

import numpy as np

from ray_eraser.config import BprConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.kernels.compiled import compiled, prefetch
from ray_eraser.kernels.sampling import draw_triplets
from ray_eraser.models.base import BaseModel, Start, Table, TrainingState
from ray_eraser.seeds import derive, normal_rows

_START_SCALE = 0.01
"""Standard deviation of the initial coordinates. They must not be zero, because the loss is flat where all scores are equal."""

_ACCUMULATOR_START = 1e-8
"""Initial value of Adagrad's accumulator. It is so small that the first step of a row has length `lr`, as in wmf_adagrad.py."""

_AHEAD = 8
"""Number of rows to prefetch ahead of the arithmetic, because the tables of a large log fit in no cache."""

_LINE_BYTES = 64
"""Size of a cache line in bytes."""


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
        """Train for all epochs. An epoch draws as many triplets as there are interactions."""
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
    """Standard normal vectors of the users, (n_users, width) float32. A row depends on the user's position in the shard."""
    return normal_rows(np.arange(n_users, dtype=np.uint64), derive(start.seed, "users"), width)


def bpr_slopes(users_UD: np.ndarray, items_ID: np.ndarray, triplets_n3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gradients (U, D) and (I, D) of the loss of these triplets. Rendle et al. 2009, "BPR-Opt" without its ridge.

    loss = sum over triplets of -log sigmoid(p_u . (q_i - q_j)). Item number I means "no item", with q = 0.
    """
    items_JD = _with_no_item(items_ID)
    slope_UD, slope_JD = np.zeros_like(users_UD), np.zeros_like(items_JD)
    _add_slopes(triplets_n3, triplets_n3, users_UD, items_JD, slope_UD, slope_JD, users_UD.dtype.type(0))
    return slope_UD, slope_JD[:-1]


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
    """Take one Adagrad step for every batch of triplets, in place. A shorter last batch is kept.

    A batch updates only its own rows. To regularise the other rows as well would cost a pass over both tables at every step.
    Gradients are stored for the rows of the batch only, so they stay in the cache even if the tables do not fit.
    """
    n_items, batch = len(items_ID), min(batch, len(triplets_n3))
    items_JD = _with_no_item(items_ID)
    users_R, items_R = np.empty(batch, np.int32), np.empty(2 * batch, np.int32)
    user_slopes_RD = np.zeros((batch, users_UD.shape[1]), users_UD.dtype)
    # The last row takes the gradient of "no item" and is never read.
    item_slopes_RD = np.zeros((2 * batch + 1, users_UD.shape[1]), users_UD.dtype)
    place_of_user, place_of_item = np.full(len(users_UD), -1, np.int32), np.full(n_items + 1, -1, np.int32)
    place_of_item[n_items] = 2 * batch
    places_n3 = np.empty((batch, 3), np.int32)
    for first in range(0, len(triplets_n3), batch):
        batch_n3 = triplets_n3[first : first + batch]
        n_users = _number(batch_n3[:, :1], place_of_user, users_R, places_n3[:, :1])
        n_items_named = _number(batch_n3[:, 1:], place_of_item, items_R, places_n3[:, 1:])
        _add_slopes(batch_n3, places_n3, users_UD, items_JD, user_slopes_RD, item_slopes_RD, reg)
        _adagrad_steps(users_R[:n_users], users_UD, user_slopes_RD, users_squares_UD, lr)
        _adagrad_steps(items_R[:n_items_named], items_JD, item_slopes_RD, items_squares_ID, lr)
        place_of_user[users_R[:n_users]] = -1
        place_of_item[items_R[:n_items_named]] = -1
    items_ID[:] = items_JD[:n_items]


@compiled
def _with_no_item(items_ID: np.ndarray) -> np.ndarray:
    """Append a row of zeros, which represents "no item": J = I + 1 rows."""
    items_JD = np.zeros((len(items_ID) + 1, items_ID.shape[1]), items_ID.dtype)
    items_JD[: len(items_ID)] = items_ID
    return items_JD


@compiled
def _number(named_nm: np.ndarray, place_of: np.ndarray, rows_R: np.ndarray, places_nm: np.ndarray) -> int:
    """Number the distinct rows in `named_nm` in order of first occurrence, and return how many there are.

    Args:
        named_nm: rows, which may repeat.
        place_of: the number of each row; negative for a row without a number.
        rows_R: output, the distinct rows in the order of their numbers.
        places_nm: output, the number of each entry of `named_nm`.
    """
    count = 0
    for n in range(named_nm.shape[0]):
        for m in range(named_nm.shape[1]):
            row = named_nm[n, m]
            place = place_of[row]
            if place < 0:
                place = count
                place_of[row], rows_R[count] = place, row
                count += 1
            places_nm[n, m] = place
    return count


# The loops below write weights_RD[row, d] instead of naming a row view: numba would count references to the view at every
# triplet, which costs as much as the arithmetic.


@compiled
def _adagrad_steps(
    rows_R: np.ndarray, weights_ND: np.ndarray, slopes_RD: np.ndarray, squares_ND: np.ndarray, lr: np.float32
) -> None:
    """Take one Adagrad step for these rows of N, in place. The gradients are reset to zero."""
    for r in range(len(rows_R)):
        if r + _AHEAD < len(rows_R):
            _fetch(squares_ND, rows_R[r + _AHEAD])
        row = rows_R[r]
        for d in range(weights_ND.shape[1]):
            slope = slopes_RD[r, d]
            square = squares_ND[row, d] + slope * slope
            squares_ND[row, d] = square
            weights_ND[row, d] -= lr * slope / np.sqrt(square)
        for d in range(weights_ND.shape[1]):
            slopes_RD[r, d] = 0


@compiled
def _add_slopes(
    triplets_n3: np.ndarray,
    places_n3: np.ndarray,
    users_UD: np.ndarray,
    items_JD: np.ndarray,
    user_slopes_RD: np.ndarray,
    item_slopes_RD: np.ndarray,
    reg: np.float32,
) -> None:
    """Add every triplet's gradient of -log sigmoid(p.(q_i - q_j)) + reg / 2 (p^2 + q_i^2 + q_j^2) to the slopes."""
    zero, one, width = users_UD.dtype.type(0), users_UD.dtype.type(1), users_UD.shape[1]
    products_D, fours = np.empty_like(users_UD[0]), width // 4 * 4
    for s in range(len(triplets_n3)):
        if s + _AHEAD < len(triplets_n3):
            _fetch(users_UD, triplets_n3[s + _AHEAD, 0])
            _fetch(items_JD, triplets_n3[s + _AHEAD, 1])
            _fetch(items_JD, triplets_n3[s + _AHEAD, 2])
        u, i, j = triplets_n3[s, 0], triplets_n3[s, 1], triplets_n3[s, 2]
        to_u, to_i, to_j = places_n3[s, 0], places_n3[s, 1], places_n3[s, 2]
        for d in range(width):
            products_D[d] = users_UD[u, d] * (items_JD[i, d] - items_JD[j, d])
        # Four independent sums, because each addition to a single sum would wait for the previous one.
        sum_0 = sum_1 = sum_2 = sum_3 = zero
        for d in range(0, fours, 4):
            sum_0 += products_D[d]
            sum_1 += products_D[d + 1]
            sum_2 += products_D[d + 2]
            sum_3 += products_D[d + 3]
        for d in range(fours, width):
            sum_0 += products_D[d]
        slope = -one / (one + math.exp((sum_0 + sum_1) + (sum_2 + sum_3)))
        for d in range(width):
            user_slopes_RD[to_u, d] += slope * (items_JD[i, d] - items_JD[j, d]) + reg * users_UD[u, d]
        for d in range(width):
            item_slopes_RD[to_i, d] += slope * users_UD[u, d] + reg * items_JD[i, d]
        for d in range(width):
            item_slopes_RD[to_j, d] += reg * items_JD[j, d] - slope * users_UD[u, d]


@compiled
def _fetch(table_RD: np.ndarray, row: int) -> None:
    """Prefetch a row into the cache. This changes no result."""
    for d in range(0, table_RD.shape[1], _LINE_BYTES // table_RD.itemsize):
        prefetch(table_RD, np.int64(row) * table_RD.shape[1] + d)
