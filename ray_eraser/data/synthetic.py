"""A generated log with a known structure, for a first run without any data.

U users, I items, C communities, n pairs.
"""

from __future__ import annotations

import numpy as np

from ray_eraser.config import DataConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.splits import split
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.seeds import derive

FIRST_USER, FIRST_ITEM = 1000, 1
"""Raw ids begin here and not at 0, so that a row taken for an id, or an id for a row, is noticed."""

_LOYALTY = 0.85  # share of a user's draws from its own community: what a recommender can learn and popularity cannot
_POPULARITY_EXPONENT = 0.9  # the r-th item weighs r^-.9: at the default size a tenth of the items gets 30 % of the pairs
_ACTIVITY_SIGMA = 0.5  # the most active tenth of users has about six times the pairs of the least active
_ROUNDS = 40  # draws again for what was drawn twice; only a user who is to have nearly all items ends with fewer than asked


def synthetic(config: DataConfig, seed: int) -> Dataset:
    """Planted communities of users and items, power-law item popularity, log-normal user activity; split by keyed hash.

    Users and items are dealt to the communities in equal parts. A user draws from its own community with probability .85, else
    from all items, always in proportion to popularity and no item twice. The same seed and settings give the same log.
    """
    U, I = config.synthetic_users, config.synthetic_items
    C = min(config.synthetic_communities, I)
    generator = np.random.default_rng(derive(seed, "synthetic"))
    community_U = generator.permutation(U) % C
    # In this order the items of a community stand together, so one cumulated sum serves the draws from it and from all.
    community_I = generator.permutation(I) % C
    order_I = np.argsort(community_I, kind="stable")
    weights_I = (generator.permutation(I) + 1.0) ** -_POPULARITY_EXPONENT
    cumulated = np.concatenate([[0.0], np.cumsum(weights_I[order_I])])
    edges = np.concatenate([[0], np.cumsum(np.bincount(community_I, minlength=C))])

    activity_U = np.exp(_ACTIVITY_SIGMA * generator.standard_normal(U))
    wanted_U = np.clip(np.rint(activity_U * (config.synthetic_per_user / activity_U.mean())), 1, I).astype(np.int64)
    pairs = Interactions.none()
    for _ in range(_ROUNDS):
        missing_U = wanted_U - np.bincount(pairs.users, minlength=U)
        users = np.repeat(np.arange(U), missing_U)
        if not len(users):
            break
        loyal = generator.random(len(users)) < _LOYALTY
        community = community_U[users]
        low = np.where(loyal, edges[community], 0)
        high = np.where(loyal, edges[community + 1], I)
        points = cumulated[low] + generator.random(len(users)) * (cumulated[high] - cumulated[low])
        # Rounding can put a point on the upper edge, which already belongs to the next community.
        places = np.clip(np.searchsorted(cumulated, points, side="right") - 1, low, high - 1)
        pairs = Interactions.union([pairs, Interactions.of(users, order_I[places])])

    drawn = pairs.compact()  # an item that nobody drew is no part of the log
    dataset = Dataset(
        name="synthetic",
        users=Vocabulary.of("user", (drawn.user_rows + FIRST_USER).tolist()),
        items=Vocabulary.of("item", (drawn.item_rows + FIRST_ITEM).tolist()),
        train=drawn.interactions,
        valid=Interactions.none(),
        test=Interactions.none(),
    )
    return split(dataset, config, seed, test=True, valid=True)
