"""Membership inference: test whether a model reveals that it was trained on a pair.

An attacker asks a served model about pairs of users and items, and ranks the pairs by the answers. Some pairs were erased; they
are members if the unlearning failed. The other pairs were never in the training data. The AUC is the probability that an erased
pair ranks above another pair; .5 is guessing. Users liked their erased pairs, so even a model that never saw these pairs ranks
them high. An exact method must therefore match the AUC on a model trained without the pairs (the oracle), not .5.

There are two kinds of other pairs:
- `never seen`: pairs of the same user that are in no split. Their items have nearly the same popularity, so that popularity
  reveals nothing.
- `held out`: pairs of the same user in the test set. They were liked as much and drawn in the same way, so the oracle's AUC is
  near .5, and traces left by an unlearning method stand out.

The attacks use a threshold on one signal, a shadow model (Shokri et al. 2017), or two versions of the same model (Chen et al.
2021, "When Machine Unlearning Jeopardizes Privacy").

n pairs, m members, o others, I items, F features, B pairs of a batch, U users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special, stats

from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.evaluation import Scorer
from ray_eraser.seeds import derive

Against = Literal["never seen", "held out"]
"""The kind of pairs that the attack distinguishes erased pairs from."""

LIST_LENGTH = 50
"""The length of the recommendation lists that the attacker sees."""

_TOLERANCE = 0.1  # largest relative difference in popularity between the item of an erased pair and its never-seen partner
_NEAREST = 8  # number of items of nearest popularity from which the partner is drawn
_BATCH_CELLS = 1 << 22
_Z_95 = 1.959964


@dataclass(frozen=True)
class Auc:
    """An area under the ROC curve, or a difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float


def auc(members_m: np.ndarray, others_o: np.ndarray) -> Auc:
    """The probability that a member's signal is above another pair's, with ties counted half (Mann and Whitney 1947).

    The interval is from DeLong et al. 1988. It assumes independent pairs, which is only approximately true for pairs of one
    user.
    """
    above_m, above_o = _placements(members_m, others_o)
    value, margin = float(above_m.mean()), _margin(above_m, above_o)
    return Auc(value, max(0.0, value - margin), min(1.0, value + margin))


def auc_difference(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> Auc:
    """The difference between the AUCs of two models.

    Both models are asked about the same pairs (members, others), so variation that both share cancels out of the interval
    (DeLong et al. 1988).
    """
    (first_m, first_o), (second_m, second_o) = _placements(*first), _placements(*second)
    value, margin = float(first_m.mean() - second_m.mean()), _margin(first_m - second_m, first_o - second_o)
    return Auc(value, value - margin, value + margin)


def _placements(members_m: np.ndarray, others_o: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every member, the share of others below it; for every other pair, the share of members above it; ties count half."""
    ranks = stats.rankdata(np.concatenate([members_m, others_o]))
    n_members, n_others = len(members_m), len(others_o)
    below_m = (ranks[:n_members] - stats.rankdata(members_m)) / n_others
    above_o = 1 - (ranks[n_members:] - stats.rankdata(others_o)) / n_members
    return below_m, above_o


def _margin(above_m: np.ndarray, above_o: np.ndarray) -> float:
    return _Z_95 * float(np.sqrt(above_m.var(ddof=1) / len(above_m) + above_o.var(ddof=1) / len(above_o)))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Erased pairs and other pairs, in equal numbers for every user, so that differences between users reveal nothing."""

    members: Interactions
    others: Interactions


@dataclass(frozen=True, eq=False)
class Probe:
    """The pairs that an attacker asks about.

    Attributes:
        comparisons: the comparison with each kind of other pairs.
        known: pairs of these users that the attacker knows and excludes. They are the remaining pairs, or the known half of the
            erased pairs if whole users are erased.
        whole_users: whether whole users are erased. The model then does not know them, so the attacker, who knows half of their
            pairs, asks about a user with that half.
    """

    comparisons: dict[Against, Comparison]
    known: Interactions
    whole_users: bool

    def pairs(self) -> Interactions:
        return Interactions.union([part for pairs in self.comparisons.values() for part in (pairs.members, pairs.others)])


def draw_erasure(dataset: Dataset, share: float, seed: int, *, whole_users: bool) -> Interactions:
    """Draw a random share of the training pairs, or all training and validation pairs of a random share of the users."""
    generator = np.random.default_rng(derive(seed, "attack", "erasure"))
    train = dataset.train
    if whole_users:
        users = train.user_rows()
        chosen = generator.choice(users, max(1, round(share * len(users))), replace=False)
        return Interactions.union([train.of_users(chosen), dataset.valid.of_users(chosen)])
    return train.take(np.sort(generator.choice(len(train), max(1, round(share * len(train))), replace=False)))


def draw_probe(dataset: Dataset, erased: Interactions, seed: int, *, whole_users: bool, most: int) -> Probe:
    """Draw the pairs to ask about after an erasure.

    Pairs whose item no longer has any interaction are left out, because no model scores them. Pairs of users without a known
    pair are left out too.

    Args:
        dataset: the log with the erased pairs. Held-out pairs come from its test set, or from its validation set if it has
            none.
        erased: some of its training pairs, or all pairs of some users.
        seed: the seed of all draws.
        whole_users: whether whole users are erased.
        most: the maximum number of members to ask about; a sample is drawn if there are more.
    """
    generator = np.random.default_rng(derive(seed, "attack", "probe"))
    remaining = dataset.train.without(erased)
    popularity_I = np.bincount(remaining.items, minlength=len(dataset.items))
    members = dataset.train.common(erased)
    members = members.take(popularity_I[members.items] > 0)
    if whole_users:
        known, members = _halves(members, generator)
    else:
        known = remaining.of_users(members.user_rows())
        members = members.of_users(known.user_rows())
    if len(members) > most:
        members = members.take(np.sort(generator.choice(len(members), most, replace=False)))
    seen = Interactions.union([dataset.train, dataset.valid, dataset.test])
    held_out = dataset.test if len(dataset.test) else dataset.valid
    held_out = held_out.take(popularity_I[held_out.items] > 0)
    others: dict[Against, Interactions] = {
        "never seen": _never_seen(members, seen, popularity_I, generator),
        "held out": held_out,
    }
    comparisons = {against: _balanced(members, pairs, generator) for against, pairs in others.items()}
    return Probe(comparisons, known.of_users(members.user_rows()), whole_users)


def _halves(pairs: Interactions, generator: np.random.Generator) -> tuple[Interactions, Interactions]:
    """Split every user's pairs randomly into two halves. Users with a single pair are left out."""
    order = np.lexsort((generator.random(len(pairs)), pairs.users))
    _, first, count = np.unique(pairs.users, return_index=True, return_counts=True)
    place = np.arange(len(pairs)) - np.repeat(first, count)  # pairs are ordered by user before and after sorting
    counts = np.repeat(count, count)
    known = np.zeros(len(pairs), bool)
    known[order] = place < counts // 2
    return pairs.take(known & (counts > 1)), pairs.take(~known & (counts > 1))


def _balanced(members: Interactions, others: Interactions, generator: np.random.Generator) -> Comparison:
    """Sample equal numbers of members and others for every user."""
    return Comparison(_at_most(members, others, generator), _at_most(others, members, generator))


def _at_most(pairs: Interactions, limits: Interactions, generator: np.random.Generator) -> Interactions:
    """Sample at most as many pairs of each user as the user has in `limits`."""
    order = np.lexsort((generator.random(len(pairs)), pairs.users))
    users, first, count = np.unique(pairs.users, return_index=True, return_counts=True)
    wanted = np.searchsorted(limits.users, users, side="right") - np.searchsorted(limits.users, users)
    place = np.arange(len(pairs)) - np.repeat(first, count)
    chosen = np.zeros(len(pairs), bool)
    chosen[order] = place < np.repeat(wanted, count)
    return pairs.take(chosen)


def _never_seen(
    members: Interactions, seen: Interactions, popularity_I: np.ndarray, generator: np.random.Generator
) -> Interactions:
    """For each member, draw an unseen pair of the same user, with an item of nearly the same popularity.

    Popularity is counted in the *remaining* pairs, because the attacked models were trained on these. A member gets no partner
    if its user has seen all items of that popularity.
    """
    by_popularity = np.argsort(popularity_I, kind="stable")
    sorted_popularity = popularity_I[by_popularity]
    users, items = [], []
    taken_I = np.zeros(len(popularity_I), bool)
    user = -1
    # The order within a user is random, so that no item has an advantage.
    for position in np.lexsort((generator.random(len(members)), members.users)):
        if members.users[position] != user:
            user = int(members.users[position])
            first, last = np.searchsorted(seen.users, [user, user + 1])
            taken_I[:] = popularity_I == 0
            taken_I[seen.items[first:last]] = True
        wanted = popularity_I[members.items[position]]
        slack = max(1.0, _TOLERANCE * wanted)
        low, high = np.searchsorted(sorted_popularity, [wanted - slack, wanted + slack], side="left")
        near = by_popularity[low : high + 1]
        near = near[~taken_I[near]]
        near = near[np.abs(popularity_I[near] - wanted) <= slack]
        if len(near):
            nearest = near[np.lexsort((generator.random(len(near)), np.abs(popularity_I[near] - wanted)))[:_NEAREST]]
            item = int(generator.choice(nearest))
            taken_I[item] = True
            users.append(user)
            items.append(item)
    return Interactions.of(np.array(users, np.int32), np.array(items, np.int32))


@dataclass(frozen=True, eq=False)
class Signals:
    """The signals of n pairs that an attacker obtains from one model, all (n,).

    Attributes:
        pairs: the pairs.
        score: the score of the item for the user.
        percentile: the share of lower-scored items among those that the user is not known to have (ties count half). Unlike
            scores, percentiles are comparable between users and models. The threshold attack uses them.
        user_z: the number of standard deviations by which the score exceeds the mean of the user's scores.
        item_z: the number of standard deviations by which the score exceeds the mean of the item's scores.
        listed: whether the item is among the user's first `LIST_LENGTH` recommendations.
    """

    pairs: Interactions
    score: np.ndarray
    percentile: np.ndarray
    user_z: np.ndarray
    item_z: np.ndarray
    listed: np.ndarray

    def of(self, pairs: Interactions) -> Signals:
        """The signals of some of the pairs, in the order of these pairs."""
        at = np.searchsorted(self.pairs.codes(), pairs.codes())
        return Signals(pairs, *(values[at] for name, values in vars(self).items() if name != "pairs"))

    def features(self) -> np.ndarray:
        """The features of the shadow attack, (n, F). Percentiles are in logits, because members crowd near 1."""
        return np.column_stack([self.score, special.logit(np.clip(self.percentile, 1e-4, 1 - 1e-4)), self.user_z, self.item_z])


def signals(model: Scorer, probe: Probe, seen: Interactions, population: np.ndarray, threads: int) -> Signals:
    """Ask a model about the pairs of a probe. This needs only scores, so it works for models of every kind.

    Args:
        model: the served model in the rows of the log. It must be able to score every user and item of the probe.
        probe: the pairs.
        seen: pairs that are not recommended, because the users have them.
        population: (U,) ascending rows of the users over which the mean and deviation of an item's scores are computed.
        threads: the number of BLAS threads, which affects rounding.
    """
    pairs, item_rows = probe.pairs(), model.item_rows
    at_n = np.searchsorted(item_rows, pairs.items)
    n_rows = 1 + max(int(rows.max(initial=0)) for rows in (pairs.users, probe.known.users))
    n_columns = 1 + max(int(rows.max(initial=0)) for rows in (item_rows, probe.known.items, seen.items))
    known_UI = probe.known.matrix(n_rows, n_columns)[:, item_rows]
    seen_UI = seen.of_users(pairs.user_rows()).matrix(n_rows, n_columns)[:, item_rows]
    found = [np.empty((4, 0))]
    with deterministic(threads):
        mean_I, deviation_I = _usual(model, population)
        for batch in _batches(len(pairs), len(item_rows)):
            rows, place_B = np.unique(pairs.users[batch], return_inverse=True)
            known, scores = model.scores(rows)
            assert known.all(), "the model must be able to score every user of a probe"
            scores_BI, own_BI, had_BI = scores.astype(np.float64)[place_B], known_UI[rows], seen_UI[rows]
            found.append(_of_pairs(scores_BI, at_n[batch], own_BI[place_B].toarray() > 0, had_BI[place_B].toarray() > 0))
    score, percentile, user_z, listed = np.concatenate(found, 1)
    return Signals(pairs, score, percentile, user_z, (score - mean_I[at_n]) / deviation_I[at_n], listed > 0)


def _of_pairs(scores_BI: np.ndarray, at_B: np.ndarray, known_BI: np.ndarray, seen_BI: np.ndarray) -> np.ndarray:
    """Score, percentile, user_z and listed of B pairs, (4, B): see `Signals`.

    Args:
        scores_BI: float64, the scores of all items for each pair's user.
        at_B: the column of each pair's item.
        known_BI: whether the user is known to have the item.
        seen_BI: whether the user has the item, so that it is not recommended.
    """
    score_B1 = np.take_along_axis(scores_BI, at_B[:, None], 1)
    other_BI = ~known_BI
    np.put_along_axis(other_BI, at_B[:, None], values=False, axis=1)
    below_B = ((scores_BI < score_B1) & other_BI).sum(1) + ((scores_BI == score_B1) & other_BI).sum(1) / 2
    better_B = ((scores_BI > score_B1) & ~seen_BI).sum(1)
    unseen_B = ~np.take_along_axis(seen_BI, at_B[:, None], 1)[:, 0]
    user_z_B = (score_B1[:, 0] - scores_BI.mean(1)) / _deviation(scores_BI.var(1))
    listed_B = unseen_B & (better_B < LIST_LENGTH)
    return np.stack([score_B1[:, 0], below_B / np.maximum(1, other_BI.sum(1)), user_z_B, listed_B])


def _usual(model: Scorer, population: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every item's scores over some users, both (I,)."""
    sums_I, squares_I, n_users = np.zeros(len(model.item_rows)), np.zeros(len(model.item_rows)), 0
    for batch in _batches(len(population), len(model.item_rows)):
        known, scores = model.scores(population[batch])
        scores_UI = scores.astype(np.float64)
        sums_I += scores_UI.sum(0)
        squares_I += (scores_UI**2).sum(0)
        n_users += int(known.sum())
    mean_I = sums_I / max(1, n_users)
    return mean_I, _deviation(squares_I / max(1, n_users) - mean_I**2)


def _batches(n: int, n_items: int) -> Iterator[slice]:
    """Batches of n rows whose scores for all items fit in memory."""
    length = max(1, _BATCH_CELLS // max(1, n_items))
    return (slice(first, first + length) for first in range(0, n, length))


def _deviation(variance: np.ndarray) -> np.ndarray:
    """The standard deviation, with a lower bound so that rounding of equal scores does not look like a deviation."""
    deviation: np.ndarray = np.sqrt(np.maximum(variance, np.finfo(float).eps))
    return deviation


@dataclass(frozen=True, eq=False)
class MemberClassifier:
    """A logistic regression on pairs of shadow models, whose membership is known.

    Attributes:
        mean, scale: (F,) the mean and standard deviation of the training features.
        weights: (F + 1,), the last one is the intercept.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray

    def logits(self, features_nF: np.ndarray) -> np.ndarray:
        standard_nF = (features_nF - self.mean) / self.scale
        logits_n: np.ndarray = standard_nF @ self.weights[:-1] + self.weights[-1]
        return logits_n


def fit_classifier(members_mF: np.ndarray, others_oF: np.ndarray, ridge: float = 1e-3) -> MemberClassifier:
    """Fit a classifier of members against others by Newton's method from zero. The same features give the same weights.

    Both classes have the same total weight, whatever their sizes. `ridge` keeps the weights finite if the classes are
    separable.
    """
    features_nF = np.concatenate([members_mF, others_oF])
    mean, scale = features_nF.mean(0), np.maximum(features_nF.std(0), np.finfo(float).tiny)
    design_nF = np.column_stack([(features_nF - mean) / scale, np.ones(len(features_nF))])
    is_member = np.concatenate([np.ones(len(members_mF)), np.zeros(len(others_oF))])
    share_n = np.concatenate([np.full(len(part), 0.5 / len(part)) for part in (members_mF, others_oF)])
    weights = np.zeros(design_nF.shape[1])
    for _ in range(50):
        chance_n = special.expit(design_nF @ weights)
        slope = design_nF.T @ (share_n * (chance_n - is_member)) + ridge * weights
        curvature = (design_nF * (share_n * chance_n * (1 - chance_n))[:, None]).T @ design_nF
        step = np.linalg.solve(curvature + ridge * np.eye(len(weights)), slope)
        # Far from the minimum, a full step can overshoot it.
        weights = weights - step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    return MemberClassifier(mean, scale, weights)
