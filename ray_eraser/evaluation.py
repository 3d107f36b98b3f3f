"""The quality of lists: rank all items for every user with test items, without the user's training items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData, all_keys, places_of, trained_pairs
from ray_eraser.metrics import ndcg, recall
from ray_eraser.ranking import top_items

_BATCH_USERS = 512


class Scorer(Protocol):
    """A model that can be evaluated: scores of items for users, by rows. `Embeddings` is one."""

    @property
    def item_rows(self) -> np.ndarray:
        """(I',) int32, ascending rows of the items that have a score."""
        ...

    def scores(self, rows_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(mask (U,) of the users that can be scored, their scores (n, I') float32), for users by ascending rows."""
        ...


class ByKeys(Protocol):
    """A model with scores by keys; see `served.Served`."""

    @property
    def item_keys(self) -> np.ndarray: ...

    def scores(self, user_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


class Rowed(Protocol):
    """A model by keys that can be put in rows: a served model, or embeddings by keys."""

    def in_rows(self, user_keys: np.ndarray, item_keys: np.ndarray) -> Scorer: ...


@dataclass(frozen=True, eq=False)
class InRows:
    """A model by keys, put in rows of ascending keys. Its other users and items are left out.

    Attributes:
        model: the model.
        user_keys, item_keys: the key of every row.
    """

    model: ByKeys
    user_keys: np.ndarray
    item_keys: np.ndarray

    @cached_property
    def _places(self) -> np.ndarray:
        return places_of(self.model.item_keys, self.item_keys)

    @property
    def item_rows(self) -> np.ndarray:
        return self._places[self._places >= 0]

    def scores(self, rows_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        known, scores = self.model.scores(self.user_keys[rows_U])
        return known, scores[:, self._places >= 0]


@dataclass(frozen=True, eq=False)
class Popularity:
    """The baseline that every model must beat: the items with the most interactions, for every user.

    Attributes:
        item_rows: (I',) int32, ascending rows of the items that have an interaction.
        counts: (I',) int64, how many interactions each has.
    """

    item_rows: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, train: Interactions) -> Popularity:
        """Count the training interactions of every item."""
        item_rows, counts = np.unique(train.items, return_counts=True)
        return cls(item_rows.astype(np.int32), counts)

    def scores(self, rows_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.ones(len(rows_U), bool), np.tile(self.counts.astype(np.float32), (len(rows_U), 1))


def evaluate(model: Scorer, train: Interactions, test: Interactions, cutoffs: Sequence[int] = (10, 20, 50)) -> dict[str, float]:
    """`recall@N` and `ndcg@N`, means over the users that have test items, and `n_users`, the number of these users.

    A user whom the model lacks gets no hit. An item that the model lacks cannot be hit, but counts among the test items. All
    figures are 0 if there are no test items. `evaluate(Popularity.of(train), train, test)` gives the baseline.

    Args:
        model: in the rows of the interactions. `served_model().in_rows(dataset.users.keys, dataset.items.keys)` puts a
            deployment's model in the rows of its log.
        train: interactions to leave out of the lists.
        test: interactions that the lists should contain.
        cutoffs: lengths of lists.
    """
    tested = test.user_rows()
    sums = {f"{name}@{n}": 0.0 for n in cutoffs for name in ("recall", "ndcg")}
    longest = min(max(cutoffs), len(model.item_rows))
    n_rows = 1 + max([-1, *(int(rows.max()) for rows in (train.users, test.users) if len(rows))])
    n_columns = 1 + max([-1, *(int(rows.max()) for rows in (train.items, test.items, model.item_rows) if len(rows))])
    train_matrix, test_matrix = train.matrix(n_rows, n_columns), test.matrix(n_rows, n_columns)
    for first in range(0, len(tested), _BATCH_USERS):
        rows_U = tested[first : first + _BATCH_USERS]
        relevant_U = np.diff(test_matrix.indptr)[rows_U]
        known_U, scores_UI = model.scores(rows_U)
        hits_UN = np.zeros((len(rows_U), max(cutoffs)))
        if known_U.any() and longest:
            scores_UI[train_matrix[rows_U[known_U]][:, model.item_rows].toarray() > 0] = -np.inf
            best_UN = top_items(scores_UI, longest)
            relevant_UI = test_matrix[rows_U[known_U]][:, model.item_rows].toarray()
            allowed_UN = np.take_along_axis(scores_UI, best_UN, 1) > -np.inf
            hits_UN[known_U, :longest] = np.take_along_axis(relevant_UI, best_UN, 1) * allowed_UN
        for n in cutoffs:
            sums[f"recall@{n}"] += float(recall(hits_UN[:, :n], relevant_U).sum())
            sums[f"ndcg@{n}"] += float(ndcg(hits_UN[:, :n], relevant_U).sum())
    return {**{name: value / max(1, len(tested)) for name, value in sums.items()}, "n_users": float(len(tested))}


@dataclass(frozen=True, eq=False)
class Wanted:
    """The held-out pairs that measure a deployment.

    Attributes:
        pairs: the held-out pairs that count.
        unknown_users: number of users that were left out because the deployment does not know them, or not any more.
        learned_since: number of pairs that were left out because the deployment has learned them since.
    """

    pairs: KeyedPairs
    unknown_users: int
    learned_since: int


def wanted_from(held_out: KeyedPairs, shards: Sequence[ShardData]) -> Wanted:
    """The held-out pairs that a deployment can be measured by.

    Pairs with items that the deployment does not know stay: it cannot recommend these items, but the user wanted them.

    Args:
        held_out: pairs by their keys under the deployment's seed.
        shards: the deployment's interactions.
    """
    known = places_of(held_out.users, all_keys([data.user_keys for data in shards])) >= 0
    unknown_users = len(np.unique(held_out.users[~known]))
    pairs = held_out.take(known)
    learned = np.zeros(len(pairs), bool)
    for data in shards:
        learned |= data.has(pairs)
    return Wanted(pairs.take(~learned), unknown_users, int(learned.sum()))


def evaluate_deployment(
    model: Rowed, shards: Sequence[ShardData], wanted: KeyedPairs, cutoffs: Sequence[int] = (10, 20, 50)
) -> dict[str, float]:
    """`evaluate` by keys. The figures of `Popularity`, measured alike, have names that begin with `popularity_`.

    Args:
        model: the served model.
        shards: the interactions that it was learned from.
        wanted: held-out pairs, of users that the shards have.
        cutoffs: lengths of lists.
    """
    user_keys = all_keys([data.user_keys for data in shards])
    item_keys = all_keys([np.unique(wanted.items), *(data.item_keys for data in shards)])
    train = trained_pairs(shards, user_keys, item_keys)
    test = wanted.in_rows(user_keys, item_keys)
    popular = evaluate(Popularity.of(train), train, test, cutoffs)
    return evaluate(model.in_rows(user_keys, item_keys), train, test, cutoffs) | {
        f"popularity_{name}": value for name, value in popular.items() if name != "n_users"
    }
