"""Choose settings from the log on pairs held out by keyed hash: `model.alpha0 = "auto"` and `model.ridge = "auto"`.

The best weight of an unobserved pair is .3 on MovieLens and .02 on Yelp2018, a factor of fifteen, and a wrong weight ruins the
ranking. A short search of a few epochs per candidate finds its order of magnitude. The ridge of the linear model matters less,
and the search for it needs no training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ray_eraser import seeds
from ray_eraser.compute import Compute
from ray_eraser.config import EraserConfig, LinearConfig, WmfAlsConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.splits import hold_out
from ray_eraser.determinism import deterministic
from ray_eraser.evaluation import Scorer, evaluate
from ray_eraser.kernels.products import Rows
from ray_eraser.models import make_model
from ray_eraser.models.base import Start
from ray_eraser.models.linear import LinearModel, Slice
from ray_eraser.training.submodel import item_start

CANDIDATES: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.3, 1.0)
"""Deliberately coarse: the choice reveals almost nothing about a single user, and quality is flat between neighbours."""

RIDGES: Sequence[float] = (2.0, 4.0, 8.0)
"""Coarse for the same reasons."""

_WITHOUT_DATA = 0.3
_EPOCHS = 3
_SHARE = 0.1
_MOST_PAIRS = 1_000_000
_MOST_USERS = 2_000


def users_looked_at(n_pairs: int, user_keys: np.ndarray, config: EraserConfig) -> np.ndarray:
    """Ascending rows of the users whose pairs decide the choice.

    These are all users, or a part of them by keyed hash if the log has more than a million training pairs.
    """
    part = min(1.0, _MOST_PAIRS / max(1, n_pairs))
    return np.flatnonzero(seeds.uniform(seeds.mix(user_keys, seeds.derive(config.seed, "alpha0", "users"))) < part)


def choose_alpha0_among(
    looked_at: Interactions, user_keys: np.ndarray, item_keys: np.ndarray, config: EraserConfig, compute: Compute
) -> float:
    """Choose the candidate with the best NDCG@10 on a tenth of the pairs, held out by keyed hash; the smaller one in a tie.

    The NDCG is the mean over about two thousand users at most, chosen by keyed hash.

    Args:
        looked_at: the training pairs of `users_looked_at`.
        user_keys: (U,) key of every user's id, by row.
        item_keys: (I,) key of every item's id, by row.
        config: uses `model.width`, `seed` and `runtime.threads`.
        compute: where to run the candidates.
    """
    kept, held = _divided(looked_at, user_keys, item_keys, config.seed)
    start = item_start(item_keys[kept.item_rows()], config)
    return _best(CANDIDATES, partial(_quality_of_alpha0, kept, held, start, config), kept, held, _WITHOUT_DATA, compute)


def choose_ridge_among(
    looked_at: Interactions, user_keys: np.ndarray, item_keys: np.ndarray, config: EraserConfig, compute: Compute
) -> float:
    """Choose the ridge from `RIDGES` with which the linear model ranks best on the held-out pairs of `choose_alpha0_among`.

    Args:
        looked_at: the training pairs of `users_looked_at`.
        user_keys: (U,) key of every user's id, by row.
        item_keys: (I,) key of every item's id, by row.
        config: uses the model's exponents and steps, `seed` and `runtime.threads`.
        compute: where to run the candidates.
    """
    kept, held = _divided(looked_at, user_keys, item_keys, config.seed)
    own = Slice.of(kept, len(item_keys))
    quality = partial(_quality_of_ridge, own, kept, held, len(user_keys), len(item_keys), config)
    return _best(RIDGES, quality, kept, held, LinearConfig().known_ridge, compute)


def _divided(
    looked_at: Interactions, user_keys: np.ndarray, item_keys: np.ndarray, seed: int
) -> tuple[Interactions, Interactions]:
    """Split the pairs by keyed hash into training pairs and the held-out pairs of the users that count in the NDCG."""
    kept, held = hold_out(looked_at, user_keys, item_keys, _SHARE, seeds.derive(seed, "alpha0", "pairs"))
    drawn = seeds.uniform(seeds.mix(user_keys, seeds.derive(seed, "alpha0", "ranked")))
    ranked = drawn < _MOST_USERS / max(1, len(user_keys))
    return kept, held.take(ranked[held.users])


def _best(
    candidates: Sequence[float],
    quality: Callable[[float], float],
    kept: Interactions,
    held: Interactions,
    without_data: float,
    compute: Compute,
) -> float:
    """The candidate with the best quality, or the first one in a tie; `without_data` if there are no pairs to compare by."""
    if not len(kept) or not len(held):
        return without_data
    scores = compute.run([partial(quality, candidate) for candidate in candidates])
    return candidates[int(np.argmax(scores))]


def _quality_of_alpha0(kept: Interactions, held: Interactions, start: np.ndarray, config: EraserConfig, alpha0: float) -> float:
    model = WmfAlsConfig(width=config.model.width, epochs=_EPOCHS, alpha0=alpha0)
    with deterministic(config.runtime.threads):
        embeddings = make_model(model).fit(kept, Interactions.none(), Start(0, start))
    return _ndcg(embeddings, kept, held)


def _quality_of_ridge(
    own: Slice, kept: Interactions, held: Interactions, n_users: int, n_items: int, config: EraserConfig, ridge: float
) -> float:
    settings = config.model.model_copy(update={"ridge": ridge})
    assert isinstance(settings, LinearConfig)
    with deterministic(config.runtime.threads):
        return _ndcg(_Solved(LinearModel.of([own], n_users, n_items, settings), kept), kept, held)


def _ndcg(model: Scorer, kept: Interactions, held: Interactions) -> float:
    return evaluate(model, kept, held, (10,))["ndcg@10"]


@dataclass(frozen=True, eq=False)
class _Solved:
    """The linear model in the rows of a log, for evaluation."""

    model: LinearModel
    kept: Interactions

    @property
    def item_rows(self) -> np.ndarray:
        return self.kept.item_rows()

    def scores(self, rows_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = [self.kept.items_of(row) for row in rows_U]
        known = np.array([len(items) > 0 for items in own], bool)
        own = [items for items in own if len(items)]
        asked = Rows.of(np.cumsum([0, *map(len, own)]), np.concatenate([np.empty(0, np.int32), *own]))
        return known, self.model.scores(asked)[:, self.item_rows]
