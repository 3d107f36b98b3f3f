"""The weight of an unobserved pair, chosen from the log: `alpha0 = "auto"`.

The best value differs fifteen-fold between MovieLens (.3) and Yelp2018 (.02), and the wrong one ruins the ranking. A short
search finds its order of magnitude: a few epochs for each candidate, compared on pairs held out by keyed hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from ray_eraser import seeds
from ray_eraser.compute import Compute
from ray_eraser.config import EraserConfig, WmfAlsConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.splits import hold_out
from ray_eraser.determinism import deterministic
from ray_eraser.evaluation import evaluate
from ray_eraser.models import make_model
from ray_eraser.models.base import Start
from ray_eraser.training.submodel import item_start

CANDIDATES: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.3, 1.0)
"""Coarse on purpose: the choice says next to nothing of any one user, and quality is flat between neighbours."""

_WITHOUT_DATA = 0.3
_EPOCHS = 3
_SHARE = 0.1
_MOST_PAIRS = 1_000_000
_MOST_USERS = 2_000


def users_looked_at(n_pairs: int, user_keys: np.ndarray, config: EraserConfig) -> np.ndarray:
    """Ascending rows of the users whose pairs the choice is made from: all, or of a log with more than a million pairs to learn
    from a part, by keyed hash.
    """
    part = min(1.0, _MOST_PAIRS / max(1, n_pairs))
    return np.flatnonzero(seeds.uniform(seeds.mix(user_keys, seeds.derive(config.seed, "alpha0", "users"))) < part)


def choose_alpha0_among(
    looked_at: Interactions, user_keys: np.ndarray, item_keys: np.ndarray, config: EraserConfig, compute: Compute
) -> float:
    """The candidate with the best NDCG@10 on a tenth of the pairs, held out by keyed hash; the smaller one where two are equal.

    At most about two thousand users are ranked for, chosen by keyed hash.

    Args:
        looked_at: what is learned from of `users_looked_at`.
        user_keys: (U,) key of every user's id, by row.
        item_keys: (I,) key of every item's id, by row.
        config: `model.width`, `seed` and `runtime.threads` count.
        compute: where the candidates are tried.
    """
    kept, held = hold_out(looked_at, user_keys, item_keys, _SHARE, seeds.derive(config.seed, "alpha0", "pairs"))
    drawn = seeds.uniform(seeds.mix(user_keys, seeds.derive(config.seed, "alpha0", "ranked")))
    ranked = drawn < _MOST_USERS / max(1, len(user_keys))
    held = held.take(ranked[held.users])
    if not len(kept) or not len(held):
        return _WITHOUT_DATA
    start = item_start(item_keys[kept.item_rows()], config)
    scores = compute.run([partial(_quality, kept, held, start, alpha0, config) for alpha0 in CANDIDATES])
    return CANDIDATES[int(np.argmax(scores))]


def _quality(kept: Interactions, held: Interactions, start: np.ndarray, alpha0: float, config: EraserConfig) -> float:
    model = WmfAlsConfig(width=config.model.width, epochs=_EPOCHS, alpha0=alpha0)
    with deterministic(config.runtime.threads):
        embeddings = make_model(model).fit(kept, Interactions.none(), Start(0, start))
    return evaluate(embeddings, kept, held, (10,))["ndcg@10"]
