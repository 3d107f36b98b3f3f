from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse.linalg import svds

from ray_eraser.config import DataConfig
from ray_eraser.data.files import read_dataset
from ray_eraser.data.synthetic import FIRST_USER, BigLog, synthetic


def codes(dataset):
    return [part.codes().tolist() for part in (dataset.train, dataset.valid, dataset.test)]


def recall_at_10(dataset, scores_UI):
    scores_UI = np.where(dataset.train.matrix(*scores_UI.shape).toarray() > 0, -np.inf, scores_UI)
    top_UT = np.argsort(-scores_UI, axis=1)[:, :10]
    relevant_UI = dataset.test.matrix(*scores_UI.shape).toarray()
    tested = relevant_UI.sum(1) > 0
    hits_U = np.take_along_axis(relevant_UI, top_UT, axis=1).sum(1)
    return float(np.mean(hits_U[tested] / np.minimum(relevant_UI.sum(1)[tested], 10)))


def test_the_same_seed_gives_the_same_log():
    config = DataConfig(test_share=0.2, valid_share=0.1)
    one, other = synthetic(config, 7), synthetic(config, 7)
    assert codes(one) == codes(other)
    assert one.users.ids == other.users.ids
    assert one.items.ids == other.items.ids


def test_another_seed_gives_another_log():
    one, other = (synthetic(DataConfig(), seed) for seed in (7, 8))
    assert codes(one.under(1)) != codes(other.under(1))


def test_ids_are_integers_that_cannot_be_taken_for_rows():
    dataset = synthetic(DataConfig(synthetic_users=50, synthetic_items=20, synthetic_per_user=15), 1)
    assert set(dataset.users.ids) == set(range(1000, 1050))
    assert set(dataset.items.ids) == set(range(1, 21))


def test_an_average_user_has_as_many_pairs_as_asked_for():
    dataset = synthetic(DataConfig(synthetic_users=2000, synthetic_items=500, synthetic_per_user=30), 1)
    n_pairs = len(dataset.train) + len(dataset.valid) + len(dataset.test)
    assert n_pairs / 2000 == pytest.approx(30, rel=0.02)


def test_a_tenth_of_the_items_has_a_quarter_of_the_pairs_or_more():
    dataset = synthetic(DataConfig(), 1)
    counts = np.sort(np.bincount(dataset.train.items))[::-1]
    assert counts[: len(counts) // 10].sum() > 0.25 * counts.sum()


def test_a_recommender_that_sees_the_communities_clearly_beats_popularity():
    dataset = synthetic(DataConfig(test_share=0.2), 1)
    train = dataset.train.matrix(len(dataset.users), len(dataset.items)).toarray()
    left, weights, right = svds(train - train.mean(0), k=8, v0=np.ones(min(train.shape)))
    learned = recall_at_10(dataset, train.mean(0) + (left * weights) @ right)
    popularity = recall_at_10(dataset, np.tile(train.mean(0), (len(train), 1)))
    assert learned > 2 * popularity


def test_the_word_synthetic_reads_the_generated_log():
    assert codes(read_dataset("synthetic", DataConfig(), 3)) == codes(synthetic(DataConfig(), 3))


@pytest.mark.parametrize(
    "settings",
    [
        {"synthetic_users": 2, "synthetic_items": 2, "synthetic_per_user": 1, "synthetic_communities": 8},
        {"synthetic_users": 40, "synthetic_items": 10, "synthetic_per_user": 1000, "synthetic_communities": 1},
        {"synthetic_users": 40, "synthetic_items": 10, "synthetic_per_user": 0.01, "synthetic_communities": 10},
    ],
)
def test_settings_at_their_limits_still_give_a_log(settings):
    dataset = synthetic(DataConfig(test_share=0, valid_share=0, **settings), 1)
    per_user = np.bincount(dataset.train.users, minlength=settings["synthetic_users"])
    assert per_user.min() >= 1
    assert per_user.max() <= settings["synthetic_items"]


def test_a_fragment_of_a_big_log_depends_on_the_seed_and_its_number_alone() -> None:
    log = BigLog.of(30_000, 30, seed=3)
    assert (log.n_users, log.n_items) == (1000, 100)
    assert BigLog.of(30_000, 30, seed=3, n_items=40).n_items == 40
    small = replace(log, users_per_fragment=300)
    assert len(small) == 4
    later, earlier = small.fragment(2), replace(small).fragment(2)
    assert all(np.array_equal(one, other) for one, other in zip(later, earlier, strict=True))
    assert not np.array_equal(later[1], replace(small, seed=4).fragment(2)[1])


def test_the_fragments_of_a_big_log_have_users_of_their_own_and_about_as_many_pairs_as_asked_for() -> None:
    log = replace(BigLog.of(30_000, 30, seed=3), users_per_fragment=300)
    fragments = [log.fragment(number) for number in range(len(log))]
    users = [set(users.tolist()) for users, _ in fragments]
    assert sum(map(len, users)) == len(set().union(*users)) == 1000
    assert min(set().union(*users)) == FIRST_USER
    assert sum(len(users) for users, _ in fragments) == pytest.approx(30_000, rel=0.02)
    assert all(len(set(zip(*map(np.ndarray.tolist, pairs), strict=True))) == len(pairs[0]) for pairs in fragments)


def test_popular_items_have_many_times_the_pairs_of_others_in_a_big_log() -> None:
    log = BigLog.of(100_000, 20, seed=3)
    counts = np.sort(np.bincount(log.fragment(0)[1]))[::-1]
    assert counts[:50].sum() > 0.3 * counts.sum()  # a tenth of the items
