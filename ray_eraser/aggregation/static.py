"""One learned weight per shard: GraphEraser's aggregation (Chen et al. 2022, CCS, "LBAggr") with the base model's loss.

K submodels that are not empty, D width, n remaining interactions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from scipy import linalg, optimize, special

from ray_eraser.aggregation.grams import Grams
from ray_eraser.aggregation.mean import side_by_side
from ray_eraser.config import AggregationConfig, LossName
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.seeds import derive

_BATCH_PAIRS = 1 << 14
_MOST_TRIPLETS = 1 << 19
"""Maximum number of triplets. They are more than enough to learn K weights."""


def static(
    submodels: Sequence[Embeddings],
    interactions: Interactions,
    config: AggregationConfig,
    seed: int,
    loss: LossName = "wmf",
) -> Embeddings:
    """Embeddings of width K * D whose inner products are sum_k w_k (p_k . q_k), with w >= 0 and sum w = 1.

    Rows that a submodel lacks count as zero.
    """
    present = [submodel for submodel in submodels if len(submodel.user_rows)]
    if not present:
        return side_by_side(submodels)
    together = side_by_side(present)
    if loss == "wmf":
        weights_K = static_weights(present, interactions, config.w0)
    else:
        weights_K = ranking_weights(present, interactions, derive(seed, "triplets"))
    scale_KD = np.repeat(weights_K.astype(np.float32), [submodel.width for submodel in present])
    return Embeddings(together.user_rows, together.users * scale_KD, together.item_rows, together.items)


def static_weights(submodels: Sequence[Embeddings], interactions: Interactions, w0: float) -> np.ndarray:
    """The weight of every submodel, (K,) float64, at least 0, with sum 1. An empty submodel gets 0.

    The loss is w'Hw - 2 b'w up to a constant (`static_loss`), so its minimum over w >= 0 is a non-negative least squares
    problem. The weights are scaled to sum 1 afterwards, which changes no rank. A constraint to sum 1 during the training would
    fit the size of the scores, which averaging makes too small, instead of their order.
    """
    loss_KK, gain_K = static_loss(submodels, interactions, w0)
    if (gain_K > 0).any():
        # |Aw - y|^2 with A'A = H and A'y = b, restricted to the eigenvectors of H above rounding error.
        values, vectors = linalg.eigh(loss_KK)
        real = values > values[-1] * 1e-10
        root, basis = np.sqrt(values[real]), vectors[:, real]
        weights_K, _ = optimize.nnls(root[:, None] * basis.T, (basis.T @ gain_K) / root)
    else:
        # No submodel scores the remaining pairs above zero, so nothing distinguishes them.
        weights_K = np.array([len(submodel.user_rows) > 0 for submodel in submodels], np.float64)
    shares_K: np.ndarray = weights_K / weights_K.sum()
    return shares_K


def ranking_weights(submodels: Sequence[Embeddings], interactions: Interactions, seed: int) -> np.ndarray:
    """The weights under the BPR loss instead of the WMF loss of `static_weights`, scaled to sum 1 for the same reason."""
    from ray_eraser.kernels.sampling import draw_triplets

    compact = interactions.compact()
    triplets_n3 = draw_triplets(compact.matrix(), min(len(interactions), _MOST_TRIPLETS), seed)
    # Triplets of users who have every item compare no two items.
    triplets_n3 = triplets_n3[triplets_n3[:, 2] < len(compact.item_rows)]
    users_n, items_n2 = compact.user_rows[triplets_n3[:, 0]], compact.item_rows[triplets_n3[:, 1:]]
    present_K = np.array([len(submodel.user_rows) > 0 for submodel in submodels], np.float64)
    weights_K = present_K
    if len(triplets_n3):
        margins_nK = _all_scores(submodels, Interactions(users_n, items_n2[:, 0]))
        margins_nK -= _all_scores(submodels, Interactions(users_n, items_n2[:, 1]))
        bounds = optimize.Bounds(np.zeros(len(submodels)), np.full(len(submodels), np.inf))
        # The loss is convex in the weights, so the starting point does not matter.
        found = optimize.minimize(partial(ranking_loss, margins_nK), present_K, jac=True, method="L-BFGS-B", bounds=bounds)
        weights_K = found.x if found.x.any() else present_K
    shares_K: np.ndarray = weights_K / weights_K.sum()
    return shares_K


def ranking_loss(margins_nK: np.ndarray, weights_K: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean over triplets of -log sigmoid(sum_k w_k (s_k(u, i) - s_k(u, j))), and its gradient (K,).

    Args:
        margins_nK: s_k(u, i) - s_k(u, j).
        weights_K: w.
    """
    margins_n = margins_nK @ weights_K
    slope_K: np.ndarray = -margins_nK.T @ special.expit(-margins_n) / len(margins_n)
    return float(np.logaddexp(0, -margins_n).mean()), slope_K


def static_loss(submodels: Sequence[Embeddings], interactions: Interactions, w0: float) -> tuple[np.ndarray, np.ndarray]:
    """H (K, K) and b (K,), float64, of the non-sampling loss w'Hw - 2 b'w of the scores s = sum_k w_k s_k.

    loss = w0 * sum over all pairs of s^2  +  sum over observed pairs of (1 - w0) s^2 - 2 s, as in models/wmf_adagrad.py.
    """
    n_submodels = len(submodels)
    ends = np.cumsum([0, *(submodel.width for submodel in submodels)])[:-1]
    # sum over all pairs of s_k s_l = the sum of the entries of P_k'P_l * Q_k'Q_l.
    users_gram, items_gram = Grams().of(submodels)
    everywhere_KK = np.add.reduceat(np.add.reduceat(users_gram * items_gram, ends, axis=0), ends, axis=1)
    observed_KK, gain_K = np.zeros((n_submodels, n_submodels)), np.zeros(n_submodels)
    for batch in _batches(interactions):
        scores_nK = np.stack([_scores(submodel, batch) for submodel in submodels], axis=1)
        observed_KK += scores_nK.T @ scores_nK
        gain_K += scores_nK.sum(0)
    return w0 * everywhere_KK + (1 - w0) * observed_KK, gain_K


def _batches(pairs: Interactions) -> Iterator[Interactions]:
    for first in range(0, len(pairs), _BATCH_PAIRS):
        yield pairs.take(np.arange(first, min(first + _BATCH_PAIRS, len(pairs))))


def _all_scores(submodels: Sequence[Embeddings], pairs: Interactions) -> np.ndarray:
    """p.q of every pair in every submodel, (n, K) float64."""
    return np.concatenate([np.stack([_scores(submodel, batch) for submodel in submodels], axis=1) for batch in _batches(pairs)])


def _scores(submodel: Embeddings, pairs: Interactions) -> np.ndarray:
    """p.q of every pair, (n,) float64; 0 where the submodel lacks the user or the item."""
    known = np.isin(pairs.users, submodel.user_rows) & np.isin(pairs.items, submodel.item_rows)
    users_nD = submodel.users[np.searchsorted(submodel.user_rows, pairs.users[known])]
    items_nD = submodel.items[np.searchsorted(submodel.item_rows, pairs.items[known])]
    scores_n = np.zeros(len(pairs))
    scores_n[known] = np.einsum("nd,nd->n", users_nD, items_nD)
    return scores_n
