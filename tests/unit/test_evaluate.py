from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.embeddings import Embeddings, KeyedEmbeddings
from ray_eraser.evaluation import Popularity, evaluate, evaluate_deployment, wanted_from

SECOND = 1 / np.log2(3)


def log_of(*pairs) -> Interactions:
    users, items = np.array(pairs, np.int32).reshape(-1, 2).T
    return Interactions.of(users, items)


def scores_of(by_user: dict[int, list[float]], item_rows) -> Embeddings:
    """A model with exactly these scores: users are unit vectors."""
    table = np.array(list(by_user.values()), np.float32)
    return Embeddings(
        np.array(list(by_user), np.int32),
        np.eye(len(table), dtype=np.float32),
        np.array(item_rows, np.int32),
        np.ascontiguousarray(table.T),
    )


# User 0 ranks 1, 2, 3, 4 once item 0 is left out; user 1 likes all alike, so 0, 2, 3, 4 without item 1.
MODEL = scores_of({0: [5, 4, 3, 2, 1], 1: [7, 7, 7, 7, 7]}, range(5))
TRAIN = log_of((0, 0), (1, 1))


def test_recall_and_ndcg_are_as_worked_out_by_hand():
    result = evaluate(MODEL, TRAIN, log_of((0, 1), (0, 3)), (1, 2, 3))
    assert result == pytest.approx(
        {
            "recall@1": 1 / 2,
            "recall@2": 1 / 2,
            "recall@3": 1,
            "ndcg@1": 1,
            "ndcg@2": 1 / (1 + SECOND),
            "ndcg@3": (1 + 1 / 2) / (1 + SECOND),
            "n_users": 1,
        }
    )


def test_items_with_equal_scores_stand_in_the_order_of_their_rows():
    result = evaluate(MODEL, TRAIN, log_of((1, 2)), (1, 2))
    assert result == pytest.approx({"recall@1": 0, "ndcg@1": 0, "recall@2": 1, "ndcg@2": SECOND, "n_users": 1})


def test_the_result_is_the_mean_over_users_with_test_items():
    result = evaluate(MODEL, TRAIN, log_of((0, 1), (0, 3), (1, 2)), (2,))
    assert result == pytest.approx({"recall@2": 3 / 4, "ndcg@2": (1 / (1 + SECOND) + SECOND) / 2, "n_users": 2})


def test_users_without_test_items_are_left_out():
    more = scores_of({**dict(enumerate(MODEL.items.T.tolist())), 2: [0, 0, 0, 0, 9]}, range(5))
    train = Interactions.union([TRAIN, log_of((2, 0), (3, 0))])
    assert evaluate(more, train, log_of((1, 0)), (1,)) == {"recall@1": 1, "ndcg@1": 1, "n_users": 1}


def test_a_user_whom_the_model_lacks_counts_without_a_hit():
    assert evaluate(MODEL, TRAIN, log_of((0, 1), (8, 1)), (1,)) == {"recall@1": 1 / 2, "ndcg@1": 1 / 2, "n_users": 2}


def test_the_hits_of_others_are_not_given_to_a_user_whom_the_model_lacks():
    known = scores_of({5: [0, 9, 0, 0]}, range(4))
    test = log_of((2, 0), (2, 1), (2, 2), (2, 3), (5, 1))
    assert evaluate(known, Interactions.none(), test, (1,)) == {"recall@1": 1 / 2, "ndcg@1": 1 / 2, "n_users": 2}


def test_an_item_that_the_model_lacks_cannot_be_hit_but_counts_among_the_test_items():
    known = scores_of({0: [5, 4, 3]}, [0, 4, 9])
    result = evaluate(known, TRAIN, log_of((0, 4), (0, 6), (0, 200)), (1, 5))
    assert result["recall@1"] == result["recall@5"] == pytest.approx(1 / 3)
    assert result["ndcg@1"] == 1


def test_only_the_users_own_training_items_are_left_out_of_the_list():
    # What user 1 was trained on stays in the list of user 0 and the other way round.
    assert evaluate(MODEL, log_of((1, 0)), log_of((0, 0)), (1,))["recall@1"] == 1
    assert evaluate(MODEL, log_of((0, 0)), log_of((1, 0)), (1,))["recall@1"] == 1


def test_other_test_items_are_not_left_out_of_the_list():
    assert evaluate(MODEL, TRAIN, log_of((0, 1), (0, 2)), (1,))["recall@1"] == 1 / 2


def test_where_the_model_has_fewer_items_than_the_list_is_long_the_list_is_shorter():
    result = evaluate(MODEL, TRAIN, log_of((0, 1), (0, 4), (1, 4)), (3, 50))
    assert result["recall@3"] == pytest.approx((1 / 2 + 0) / 2)
    assert result["recall@50"] == 1
    assert result["ndcg@50"] == pytest.approx(((1 + 1 / np.log2(5)) / (1 + SECOND) + 1 / np.log2(5)) / 2)


def test_a_training_item_that_fills_up_a_short_list_is_no_hit():
    everything = log_of(*((0, item) for item in range(5)))
    assert evaluate(MODEL, everything, log_of((0, 2)), (5,))["recall@5"] == 0


def test_a_model_that_knows_nobody_hits_nothing():
    assert evaluate(Embeddings.empty(2), TRAIN, log_of((0, 1)), (1, 10))["ndcg@10"] == 0


def test_without_test_items_all_figures_are_zero():
    result = evaluate(MODEL, TRAIN, Interactions.none())
    assert set(result.values()) == {0}
    assert set(result) == {f"{name}@{n}" for name in ("recall", "ndcg") for n in (10, 20, 50)} | {"n_users"}


def test_users_beyond_the_first_batch_are_ranked_as_well():
    # The first item is liked by all 1,300 users and wanted by every second.
    n = 1300
    items = np.array([[1], [0]], np.float32)
    model = Embeddings(np.arange(n, dtype=np.int32), np.ones((n, 1), np.float32), np.arange(2, dtype=np.int32), items)
    result = evaluate(model, Interactions.none(), Interactions.of(np.arange(n), np.arange(n) % 2), (1,))
    assert result == {"recall@1": 0.5, "ndcg@1": 0.5, "n_users": n}


def dataset_of(*pairs: tuple[str, str]) -> Dataset:
    return Dataset.of_pairs("by hand", pairs)


def shard_of(dataset: Dataset, *pairs: tuple[str, str], held: Sequence[tuple[str, str]] = ()) -> ShardData:
    users, items = dataset.users, dataset.items
    train, valid = (log_of(*((users.row(user), items.row(item)) for user, item in some)) for some in (pairs, held))
    return ShardData.of(train, valid, users.keys, items.keys)


def keyed_of(dataset: Dataset, *pairs: tuple[str, str]) -> KeyedPairs:
    return KeyedPairs.of([(dataset.users.key(user), dataset.items.key(item)) for user, item in pairs])


def named(pairs: KeyedPairs, dataset: Dataset) -> set[tuple[str, str]]:
    return set(zip(dataset.users.raw_of(pairs.users), dataset.items.raw_of(pairs.items), strict=True))


EVERYTHING = dataset_of(*((user, item) for user in ("ann", "bob", "cy") for item in ("a", "b", "c", "d")))


def test_users_whom_a_deployment_does_not_know_are_left_out_and_counted():
    shards = [shard_of(EVERYTHING, ("ann", "a")), shard_of(EVERYTHING, ("bob", "b"))]
    wanted = wanted_from(keyed_of(EVERYTHING, ("ann", "b"), ("cy", "a"), ("cy", "b"), ("bob", "a")), shards)
    assert named(wanted.pairs, EVERYTHING) == {("ann", "b"), ("bob", "a")}
    assert (wanted.unknown_users, wanted.learned_since) == (1, 0)


def test_pairs_that_a_deployment_has_by_now_are_left_out_and_counted():
    # It may have learned from them, or hold them out itself, in whichever shard.
    shards = [shard_of(EVERYTHING, ("ann", "a"), ("ann", "b")), shard_of(EVERYTHING, ("bob", "b"), held=[("ann", "c")])]
    wanted = wanted_from(keyed_of(EVERYTHING, ("ann", "b"), ("ann", "c"), ("ann", "d"), ("bob", "d")), shards)
    assert named(wanted.pairs, EVERYTHING) == {("ann", "d"), ("bob", "d")}
    assert (wanted.unknown_users, wanted.learned_since) == (0, 2)


def test_a_deployment_is_evaluated_as_its_model_is_in_the_rows_of_the_log():
    # ann ranks b, c behind a, which she has; d is in no shard, so that it is wanted and cannot be hit.
    shards = [shard_of(EVERYTHING, ("ann", "a"), ("bob", "b")), shard_of(EVERYTHING, ("bob", "c"))]
    vectors = {"a": 3.0, "b": 2.0, "c": 1.0}
    item_keys = np.array([EVERYTHING.items.key(item) for item in vectors], np.uint64)
    order = np.argsort(item_keys)
    model = KeyedEmbeddings(
        np.array([EVERYTHING.users.key("ann")], np.uint64),
        np.ones((1, 1), np.float32),
        item_keys[order],
        np.array([[vector] for vector in vectors.values()], np.float32)[order],
    )
    wanted = keyed_of(EVERYTHING, ("ann", "b"), ("ann", "d"), ("bob", "a"))
    result = evaluate_deployment(model, shards, wanted, (1, 2))
    assert {name: value for name, value in result.items() if not name.startswith("popularity_")} == pytest.approx(
        {
            "recall@1": 1 / 4,  # the mean of ann's half and of nothing for bob, whom the model lacks
            "recall@2": 1 / 4,
            "ndcg@1": 1 / 2,
            "ndcg@2": 1 / (1 + SECOND) / 2,
            "n_users": 2,
        }
    )


# ---- the baseline of popularity


def test_popularity_ranks_items_by_their_training_interactions_for_everybody():
    train = log_of((0, 7), (1, 7), (2, 7), (0, 3), (1, 3), (2, 5))
    popular = Popularity.of(train)
    assert (popular.item_rows.tolist(), popular.counts.tolist()) == ([3, 5, 7], [2, 1, 3])
    # Users 2 and 9 want item 3: user 2 has 7 and 5, so it comes first; user 9, who is new, is given 7 first.
    assert evaluate(popular, train, log_of((2, 3), (9, 3)), (1,))["recall@1"] == 1 / 2
    assert evaluate(popular, train, log_of((2, 3), (9, 3)), (2,))["recall@2"] == 1
    assert evaluate(Popularity.of(Interactions.none()), train, log_of((2, 3)), (1,))["recall@1"] == 0


def test_a_deployments_figures_stand_beside_those_of_popularity():
    # Item a has two users, b and c one each. Ann, who has a, wants c: popularity puts b or c next, by their keys.
    shards = [
        shard_of(EVERYTHING, ("ann", "a"), ("bob", "a")),
        shard_of(EVERYTHING, ("bob", "b"), ("cy", "c"), held=[("cy", "d")]),
    ]
    wanted = keyed_of(EVERYTHING, ("cy", "a"), ("ann", "d"))
    nobody = KeyedEmbeddings(*(np.empty(shape, kind) for kind, shape in ((np.uint64, 0), (np.float32, (0, 1))) * 2))
    result = evaluate_deployment(nobody, shards, wanted, (1, 3))
    assert {name: result[name] for name in ("recall@1", "popularity_recall@1", "popularity_ndcg@1", "n_users")} == {
        "recall@1": 0,
        "popularity_recall@1": 1 / 2,
        "popularity_ndcg@1": 1 / 2,
        "n_users": 2,
    }
    assert set(result) == {f"{of}{name}@{n}" for of in ("", "popularity_") for name in ("recall", "ndcg") for n in (1, 3)} | {
        "n_users"
    }
