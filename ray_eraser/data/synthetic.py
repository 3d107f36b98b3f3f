"""Generated logs with a known structure: a small one for a first run without data, or a big one in fragments.

U users, I items, C communities, n pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ray_eraser.config import DataConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.splits import split
from ray_eraser.seeds import derive

FIRST_USER, FIRST_ITEM = 1000, 1
"""Raw ids do not begin at 0, so that code that mistakes a row for an id, or an id for a row, is noticed."""

_LOYALTY = 0.85  # share of a user's draws from its own community, which a recommender can learn and popularity cannot
_POPULARITY_EXPONENT = 0.9  # the r-th item weighs r^-.9: at the default size, a tenth of the items gets 30 % of the pairs
_ACTIVITY_SIGMA = 0.5  # the most active tenth of users has about six times as many pairs as the least active
_ROUNDS = 40  # rounds of draws in place of repeated ones; only users who want nearly all items end with fewer than asked
_COMMUNITY_SIZE = 500  # items of a community in a big log


def synthetic(config: DataConfig, seed: int) -> Dataset:
    """Generate a log with planted communities, power-law item popularity and log-normal user activity, split by keyed hash.

    Users and items are divided equally among the communities. A user draws from its own community with probability .85, else
    from all items, always in proportion to popularity, and no item twice. The same seed and settings give the same log.
    """
    U, I = config.synthetic_users, config.synthetic_items
    C = min(config.synthetic_communities, I)
    generator = np.random.default_rng(derive(seed, "synthetic"))
    community_U = generator.permutation(U) % C
    items = _Items.of(I, C, generator)
    wanted_U = _wanted(U, config.synthetic_per_user, I, generator)
    drawn = _drawn(items, community_U, wanted_U, generator).compact()  # items that nobody drew are not part of the log
    raw = (drawn.user_rows + FIRST_USER)[drawn.interactions.users], (drawn.item_rows + FIRST_ITEM)[drawn.interactions.items]
    dataset = Dataset.of_pairs("synthetic", zip(*(ids.tolist() for ids in raw), strict=True), seed)
    return split(dataset, config, seed, test=True, valid=True)


@dataclass(frozen=True)
class BigLog:
    """A log of any size, in fragments of whole users. Each fragment is made from the seed and its number alone.

    So fragments can be made in any order, in several processes, or again. The structure is that of `synthetic`, but communities
    are drawn at random, so their sizes differ a little.

    Attributes:
        n_users, n_items: number of users and items. Items that nobody draws are not part of the log.
        per_user: mean number of interactions per user.
        seed: another seed gives another log.
        communities: number of user groups with a common taste.
        users_per_fragment: number of users in every fragment but the last.
    """

    n_users: int
    n_items: int
    per_user: float
    seed: int
    communities: int
    users_per_fragment: int = 20_000

    @classmethod
    def of(cls, n_interactions: int, per_user: float, seed: int, n_items: int | None = None) -> BigLog:
        """A log of about `n_interactions`, with communities of one size. `n_items` is usually a tenth of the users."""
        n_users = max(2, round(n_interactions / per_user))
        n_items = max(2, n_users // 10 if n_items is None else n_items)
        return cls(n_users, n_items, per_user, seed, max(1, n_items // _COMMUNITY_SIZE))

    def __len__(self) -> int:
        """The number of fragments."""
        return len(range(0, self.n_users, self.users_per_fragment))

    def fragment(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(user ids, item ids) of one fragment, each (n,) int64, in random order. No pair is repeated."""
        first = number * self.users_per_fragment
        U = min(self.users_per_fragment, self.n_users - first)
        generator = np.random.default_rng(derive(self.seed, "big log", number))
        community_U = generator.integers(min(self.communities, self.n_items), size=U)
        wanted_U = _wanted(U, self.per_user, self.n_items, generator)
        drawn = _drawn(self._items, community_U, wanted_U, generator)
        order = generator.permutation(len(drawn))
        users, items = drawn.users[order].astype(np.int64), drawn.items[order].astype(np.int64)
        return users + (first + FIRST_USER), items + FIRST_ITEM

    @cached_property
    def _items(self) -> _Items:
        generator = np.random.default_rng(derive(self.seed, "big log", "items"))
        return _Items.of(self.n_items, min(self.communities, self.n_items), generator)


@dataclass(frozen=True, eq=False)
class _Items:
    """All items, sorted by community, so that one cumulative sum serves draws from a community and from all items.

    Attributes:
        order: (I,) the item at each place.
        cumulated: (I + 1,) total popularity of all places before each place.
        edges: (C + 1,) the first place of every community.
    """

    order: np.ndarray
    cumulated: np.ndarray
    edges: np.ndarray

    @classmethod
    def of(cls, I: int, C: int, generator: np.random.Generator) -> _Items:
        community_I = generator.permutation(I) % C
        order_I = np.argsort(community_I, kind="stable")
        weights_I = (generator.permutation(I) + 1.0) ** -_POPULARITY_EXPONENT
        cumulated = np.concatenate([[0.0], np.cumsum(weights_I[order_I])])
        return cls(order_I, cumulated, np.concatenate([[0], np.cumsum(np.bincount(community_I, minlength=C))]))


def _wanted(U: int, per_user: float, I: int, generator: np.random.Generator) -> np.ndarray:
    """The number of items that each user should have, (U,) int64."""
    activity_U = np.exp(_ACTIVITY_SIGMA * generator.standard_normal(U))
    return np.asarray(np.clip(np.rint(activity_U * (per_user / activity_U.mean())), 1, I), np.int64)


def _drawn(items: _Items, community_U: np.ndarray, wanted_U: np.ndarray, generator: np.random.Generator) -> Interactions:
    """Draw items for each user, from its own community or from all items, in proportion to popularity, and no item twice."""
    U, I = len(wanted_U), len(items.order)
    pairs = Interactions.none()
    for _ in range(_ROUNDS):
        missing_U = wanted_U - np.bincount(pairs.users, minlength=U)
        users = np.repeat(np.arange(U), missing_U)
        if not len(users):
            break
        loyal = generator.random(len(users)) < _LOYALTY
        community = community_U[users]
        low = np.where(loyal, items.edges[community], 0)
        high = np.where(loyal, items.edges[community + 1], I)
        points = items.cumulated[low] + generator.random(len(users)) * (items.cumulated[high] - items.cumulated[low])
        # Rounding can put a point on the upper edge, which belongs to the next community.
        places = np.clip(np.searchsorted(items.cumulated, points, side="right") - 1, low, high - 1)
        pairs = Interactions.union([pairs, Interactions.of(users, items.order[places])])
    return pairs
