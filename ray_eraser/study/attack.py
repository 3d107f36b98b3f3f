"""Membership inference: whether a model betrays that it was trained on a pair.

An attacker asks a served model about pairs of users and items, of which some were erased (members, if the unlearning failed)
and some never were in the training data, and orders them by what the model says. The AUC is the chance that an erased pair
comes before another one: .5 is guessing. An erased pair is what its user liked, so a model that never saw it ranks it high all
the same: what an exact method must meet is the AUC on a model trained without the pair (the oracle), not .5.

Against two kinds of pairs:
- `never seen`: of the same user, in no split, with an item of nearly the same popularity, so that popularity tells nothing.
- `held out`: of the same user, in the test set. They were liked as much and drawn in the same way, so the oracle's AUC is near
  .5, and what an unlearning method left behind stands out.

By threshold on one signal, by a shadow model (Shokri et al. 2017), and by two versions of the same model (Chen et al. 2021,
"When Machine Unlearning Jeopardizes Privacy").

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
"""What the erased pairs are told apart from."""

LIST_LENGTH = 50
"""How much of what a user is recommended the attacker sees."""

_TOLERANCE = 0.1  # the popularities of an erased pair's item and of its never-seen partner's differ by no more than this share
_NEAREST = 8  # the partner is drawn from so many items of the nearest popularity
_BATCH_CELLS = 1 << 22
_Z_95 = 1.959964


@dataclass(frozen=True)
class Auc:
    """An area under the ROC curve, or a difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float


def auc(members_m: np.ndarray, others_o: np.ndarray) -> Auc:
    """The chance that a member's signal is above another pair's, ties half (Mann and Whitney 1947).

    The interval is that of DeLong et al. 1988: it takes pairs for independent, which those of one user are only nearly.
    """
    above_m, above_o = _placements(members_m, others_o)
    value, margin = float(above_m.mean()), _margin(above_m, above_o)
    return Auc(value, max(0.0, value - margin), min(1.0, value + margin))


def auc_difference(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> Auc:
    """The AUC of one model less that of another, both asked about the same pairs (members, others), so that what the pairs
    have in common falls out of the interval (DeLong et al. 1988).
    """
    (first_m, first_o), (second_m, second_o) = _placements(*first), _placements(*second)
    value, margin = float(first_m.mean() - second_m.mean()), _margin(first_m - second_m, first_o - second_o)
    return Auc(value, value - margin, value + margin)


def _placements(members_m: np.ndarray, others_o: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every member the share of others below it, for every other pair the share of members above it; ties half."""
    ranks = stats.rankdata(np.concatenate([members_m, others_o]))
    n_members, n_others = len(members_m), len(others_o)
    below_m = (ranks[:n_members] - stats.rankdata(members_m)) / n_others
    above_o = 1 - (ranks[n_members:] - stats.rankdata(others_o)) / n_members
    return below_m, above_o


def _margin(above_m: np.ndarray, above_o: np.ndarray) -> float:
    return _Z_95 * float(np.sqrt(above_m.var(ddof=1) / len(above_m) + above_o.var(ddof=1) / len(above_o)))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Erased pairs and as many others, of every user the same number of both: what tells users apart tells nothing here."""

    members: Interactions
    others: Interactions


@dataclass(frozen=True, eq=False)
class Probe:
    """The pairs that an attacker asks about.

    Attributes:
        comparisons: with each kind of pairs.
        known: pairs of these users that the attacker knows and passes over: those that remain, or where whole users are erased
            the known half of what they had.
        whole_users: erased users are unknown to the model. The attacker, who knows half of what they had, asks about somebody
            who has that half.
    """

    comparisons: dict[Against, Comparison]
    known: Interactions
    whole_users: bool

    def pairs(self) -> Interactions:
        return Interactions.union([part for pairs in self.comparisons.values() for part in (pairs.members, pairs.others)])


def draw_erasure(dataset: Dataset, share: float, seed: int, *, whole_users: bool) -> Interactions:
    """A share of the training pairs, at random; or everything, held-out training pairs too, of a share of the users."""
    generator = np.random.default_rng(derive(seed, "attack", "erasure"))
    train = dataset.train
    if whole_users:
        users = train.user_rows()
        chosen = generator.choice(users, max(1, round(share * len(users))), replace=False)
        return Interactions.union([train.of_users(chosen), dataset.valid.of_users(chosen)])
    return train.take(np.sort(generator.choice(len(train), max(1, round(share * len(train))), replace=False)))


def draw_probe(dataset: Dataset, erased: Interactions, seed: int, *, whole_users: bool, most: int) -> Probe:
    """What to ask about an erasure.

    Pairs whose item nobody has any more are left out, because no model scores them, and so are those whose user has nothing
    left to be known by.

    Args:
        dataset: the log with the erased pairs; held out are those of its test set, or of its validation set where it has none.
        erased: some of its training pairs, or all of some users.
        seed: of every draw.
        whole_users: the users go with their pairs.
        most: members to ask about; more are sampled.
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
    """Every user's pairs in two halves, at random; users with a single pair are left out."""
    order = np.lexsort((generator.random(len(pairs)), pairs.users))
    _, first, count = np.unique(pairs.users, return_index=True, return_counts=True)
    place = np.arange(len(pairs)) - np.repeat(first, count)  # in the order of the users, which sorting kept
    counts = np.repeat(count, count)
    known = np.zeros(len(pairs), bool)
    known[order] = place < counts // 2
    return pairs.take(known & (counts > 1)), pairs.take(~known & (counts > 1))


def _balanced(members: Interactions, others: Interactions, generator: np.random.Generator) -> Comparison:
    """Of every user as many members as others, at random."""
    return Comparison(_at_most(members, others, generator), _at_most(others, members, generator))


def _at_most(pairs: Interactions, limits: Interactions, generator: np.random.Generator) -> Interactions:
    """Of each user no more pairs than it has among `limits`, at random."""
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
    """For each member a pair of its user that nobody has seen, with an item of nearly the same popularity among what remains.

    By popularity among what *remains*, because that is what the models under attack were trained on. Members whose user has
    seen all items of that popularity get none.
    """
    by_popularity = np.argsort(popularity_I, kind="stable")
    sorted_popularity = popularity_I[by_popularity]
    users, items = [], []
    taken_I = np.zeros(len(popularity_I), bool)
    user = -1
    # In random order within a user, so that no item is first to choose.
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
    """What an attacker learns of n pairs from one model, all (n,).

    Attributes:
        pairs: which.
        score: of the item for the user.
        percentile: share of the items that the user is not known to have, scored lower (ties half). Comparable between users
            and between models, which scores are not: what the threshold attack goes by.
        user_z: by how many deviations the score is above the mean of the user's scores.
        item_z: by how many it is above the mean of the item's scores.
        listed: whether the item is among the first `LIST_LENGTH` that the user is recommended.
    """

    pairs: Interactions
    score: np.ndarray
    percentile: np.ndarray
    user_z: np.ndarray
    item_z: np.ndarray
    listed: np.ndarray

    def of(self, pairs: Interactions) -> Signals:
        """Those of some of the pairs, in their order."""
        at = np.searchsorted(self.pairs.codes(), pairs.codes())
        return Signals(pairs, *(values[at] for name, values in vars(self).items() if name != "pairs"))

    def features(self) -> np.ndarray:
        """What the shadow attack learns from, (n, F). The percentile in logits: members are crowded near 1."""
        return np.column_stack([self.score, special.logit(np.clip(self.percentile, 1e-4, 1 - 1e-4)), self.user_z, self.item_z])


def signals(model: Scorer, probe: Probe, seen: Interactions, population: np.ndarray, threads: int) -> Signals:
    """Ask a model about a probe's pairs. It needs scores alone, so models of every kind are asked alike.

    Args:
        model: as it is served, in the rows of the log; it can score every user and item of the probe.
        probe: the pairs.
        seen: what users are not recommended, because they have it.
        population: (U,) ascending rows of the users whose scores of an item say what is usual for it.
        threads: of BLAS; another count rounds otherwise.
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
            assert known.all(), "a probe asks about users whom the model can score"
            scores_BI, own_BI, had_BI = scores.astype(np.float64)[place_B], known_UI[rows], seen_UI[rows]
            found.append(_of_pairs(scores_BI, at_n[batch], own_BI[place_B].toarray() > 0, had_BI[place_B].toarray() > 0))
    score, percentile, user_z, listed = np.concatenate(found, 1)
    return Signals(pairs, score, percentile, user_z, (score - mean_I[at_n]) / deviation_I[at_n], listed > 0)


def _of_pairs(scores_BI: np.ndarray, at_B: np.ndarray, known_BI: np.ndarray, seen_BI: np.ndarray) -> np.ndarray:
    """Score, percentile, user_z and listed, (4, B), of one pair a row: see `Signals`.

    Args:
        scores_BI: float64, of all items for the pair's user.
        at_B: where the pair's item stands.
        known_BI: whether the user is known to have the item.
        seen_BI: whether the user has it, so that it is not recommended.
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
    """Mean and deviation of every item's scores over some users, both (I,)."""
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
    """Parts of n rows whose scores of all items fit into memory."""
    length = max(1, _BATCH_CELLS // max(1, n_items))
    return (slice(first, first + length) for first in range(0, n, length))


def _deviation(variance: np.ndarray) -> np.ndarray:
    """Of scores; where all are alike none deviates, however they are rounded."""
    deviation: np.ndarray = np.sqrt(np.maximum(variance, np.finfo(float).eps))
    return deviation


@dataclass(frozen=True, eq=False)
class MemberClassifier:
    """A logistic regression on pairs whose membership is known: those of shadow models.

    Attributes:
        mean, scale: (F,) of the features that it was fitted to.
        weights: (F + 1,), the last is the constant.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray

    def logits(self, features_nF: np.ndarray) -> np.ndarray:
        standard_nF = (features_nF - self.mean) / self.scale
        logits_n: np.ndarray = standard_nF @ self.weights[:-1] + self.weights[-1]
        return logits_n


def fit_classifier(members_mF: np.ndarray, others_oF: np.ndarray, ridge: float = 1e-3) -> MemberClassifier:
    """Members apart from others by Newton's method, from zero: the same features give the same weights.

    Both kinds count the same, however many there are; `ridge` keeps the weights finite where they can be told apart without
    an error.
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
        # Far from the minimum a whole step can jump over it.
        weights = weights - step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    return MemberClassifier(mean, scale, weights)
