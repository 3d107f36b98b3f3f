"""A generated log with a known structure: a small one for a first run without any data, or a big one in fragments.

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
"""Raw ids begin here and not at 0, so that a row taken for an id, or an id for a row, is noticed."""

_LOYALTY = 0.85  # share of a user's draws from its own community: what a recommender can learn and popularity cannot
_POPULARITY_EXPONENT = 0.9  # the r-th item weighs r^-.9: at the default size a tenth of the items gets 30 % of the pairs
_ACTIVITY_SIGMA = 0.5  # the most active tenth of users has about six times the pairs of the least active
_ROUNDS = 40  # draws again for what was drawn twice; only a user who is to have nearly all items ends with fewer than asked
_COMMUNITY_SIZE = 500  # items that a user of a big log mostly draws from


def synthetic(config: DataConfig, seed: int) -> Dataset:
    """Planted communities of users and items, power-law item popularity, log-normal user activity; split by keyed hash.

    Users and items are dealt to the communities in equal parts. A user draws from its own community with probability .85, else
    from all items, always in proportion to popularity and no item twice. The same seed and settings give the same log.
    """
    U, I = config.synthetic_users, config.synthetic_items
    C = min(config.synthetic_communities, I)
    generator = np.random.default_rng(derive(seed, "synthetic"))
    community_U = generator.permutation(U) % C
    items = _Items.of(I, C, generator)
    wanted_U = _wanted(U, config.synthetic_per_user, I, generator)
    drawn = _drawn(items, community_U, wanted_U, generator).compact()  # an item that nobody drew is no part of the log
    raw = (drawn.user_rows + FIRST_USER)[drawn.interactions.users], (drawn.item_rows + FIRST_ITEM)[drawn.interactions.items]
    dataset = Dataset.of_pairs("synthetic", zip(*(ids.tolist() for ids in raw), strict=True), seed)
    return split(dataset, config, seed, test=True, valid=True)


@dataclass(frozen=True)
class BigLog:
    """A log of any size, in fragments of whole users that are each made from the seed and their number alone.

    So fragments can be made in any order, in several processes, or anew. Structured as `synthetic`; communities are dealt at
    random, so that their sizes differ a little.

    Attributes:
        n_users, n_items: how many there are. Of the items those that nobody draws are no part of the log.
        per_user: interactions of an average user.
        seed: another seed, another log.
        communities: how many groups of users have a taste in common.
        users_per_fragment: the last fragment has what is left.
    """

    n_users: int
    n_items: int
    per_user: float
    seed: int
    communities: int
    users_per_fragment: int = 20_000

    @classmethod
    def of(cls, n_interactions: int, per_user: float, seed: int, n_items: int | None = None) -> BigLog:
        """About so many interactions; ten users for an item unless told; communities of one size however big the log is."""
        n_users = max(2, round(n_interactions / per_user))
        n_items = max(2, n_users // 10 if n_items is None else n_items)
        return cls(n_users, n_items, per_user, seed, max(1, n_items // _COMMUNITY_SIZE))

    def __len__(self) -> int:
        """How many fragments there are."""
        return len(range(0, self.n_users, self.users_per_fragment))

    def fragment(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(user ids, item ids) of one fragment, each (n,) int64; the rows in no order, as logs come. No pair is there twice."""
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
    """All items, those of a community together, so that one cumulated sum serves the draws from it and from all.

    Attributes:
        order: (I,) the item at each place.
        cumulated: (I + 1,) popularity of all places before each.
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
    """How many items each user is to have, (U,) int64."""
    activity_U = np.exp(_ACTIVITY_SIGMA * generator.standard_normal(U))
    return np.asarray(np.clip(np.rint(activity_U * (per_user / activity_U.mean())), 1, I), np.int64)


def _drawn(items: _Items, community_U: np.ndarray, wanted_U: np.ndarray, generator: np.random.Generator) -> Interactions:
    """What each user draws: from its own community or from all items, in proportion to popularity and no item twice."""
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
        # Rounding can put a point on the upper edge, which already belongs to the next community.
        places = np.clip(np.searchsorted(items.cumulated, points, side="right") - 1, low, high - 1)
        pairs = Interactions.union([pairs, Interactions.of(users, items.order[places])])
    return pairs
