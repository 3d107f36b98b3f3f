from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_eraser.aggregation.foldin import FoldIn
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.errors import InputError, InvalidIdError, UnknownIdError
from ray_eraser.ids import Generation
from ray_eraser.ranking import top_items
from ray_eraser.recommend import Snapshot
from ray_eraser.served import ServedVectors

USERS = Vocabulary.of("user", ["ann", "bob", "cy", "di"])
ITEMS = Vocabulary.of("item", [10, 11, 12, 13, 14, 15])
SEEN = (("ann", 10), ("ann", 12), ("bob", 11), ("bob", 12), ("cy", 12))
SCORES = {"ann": {10: 9, 11: 1, 12: 8, 13: 3, 15: 3}, "bob": {10: 5, 11: 6, 12: 4, 13: 0, 15: -1}}
"""Item 14 is unknown to the model."""
TIED = sorted((13, 15), key=ITEMS.key)
"""Ann's two items of one score: the one with the lower key comes first."""


def keyed(pairs) -> KeyedPairs:
    return KeyedPairs.of([(USERS.key(user), ITEMS.key(item)) for user, item in pairs])


def without(vocabulary: Vocabulary, *gone) -> Vocabulary:
    return vocabulary.without(np.array([vocabulary.key(raw) for raw in gone], np.uint64))


def snapshot(
    users=USERS, items=ITEMS, seen: Iterable = SEEN, model: KeyedEmbeddings | None = None, folding: FoldIn | None = None
) -> Snapshot:
    """In two shards, of which one holds some pairs out."""
    parts = [keyed(tuple(seen)[part::3]) for part in range(3)]
    shards = [ShardData.none().with_learned(parts[0], parts[2]), ShardData.none().with_learned(parts[1], KeyedPairs.none())]
    return Snapshot(ServedVectors(model or scored(SCORES), folding, shards), users, items, shards, Generation(1))


def scored(by_user: dict[str, dict[int, float]]) -> KeyedEmbeddings:
    """A model with exactly these scores: users are unit vectors."""
    users = sorted(by_user, key=USERS.key)
    items = sorted(next(iter(by_user.values())), key=ITEMS.key)
    return KeyedEmbeddings(
        np.array([USERS.key(user) for user in users], np.uint64),
        np.eye(len(users), dtype=np.float32),
        np.array([ITEMS.key(item) for item in items], np.uint64),
        np.array([[by_user[user][item] for user in users] for item in items], np.float32),
    )


def naive_top(scores, n):
    return [sorted(range(len(row)), key=lambda position: (-row[position], position))[:n] for row in scores]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_top_items_are_the_first_of_a_full_sort_by_score_and_then_by_position(data):
    n_users, n_items = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    # Few different scores, so that there are ties at the end of the list as well as within it.
    score = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 0.5000001, 2.0])
    scores = data.draw(st.lists(st.lists(score, min_size=n_items, max_size=n_items), min_size=n_users, max_size=n_users))
    n = data.draw(st.integers(1, n_items))
    assert top_items(np.array(scores, np.float32), n).tolist() == naive_top(np.array(scores, np.float32).tolist(), n)


def test_of_items_that_tie_at_the_end_of_the_list_the_first_are_taken():
    assert top_items(np.array([[1.0, 7.0, 1.0, 1.0, 9.0]]), 3).tolist() == [[4, 1, 0]]


def test_the_best_unseen_items_come_first():
    assert snapshot().recommend("ann", 2) == TIED
    assert snapshot().recommend("bob", 3) == [10, 13, 15]


def test_nobody_is_recommended_what_they_have_seen():
    assert snapshot().recommend("ann", 10) == [*TIED, 11]
    assert snapshot().recommend("bob", 10) == [10, 13, 15]


def test_items_that_the_model_does_not_know_are_not_recommended():
    assert 14 not in snapshot().recommend("ann", 10)


def test_an_erased_item_is_never_recommended():
    erased = snapshot(items=without(ITEMS, 13))
    assert erased.recommend("ann", 10) == [15, 11]
    assert erased.recommend("bob", 10) == [10, 15]


def test_a_user_whom_the_model_does_not_know_is_given_what_most_others_have():
    # Item 12 was taken three times, items 10 and 11 once; cy knows 12.
    once = sorted((10, 11), key=ITEMS.key)
    assert snapshot().recommend("di", 10) == [12, *once]
    assert snapshot().recommend("di", 1) == [12]
    assert snapshot().recommend("cy", 10) == once


def test_an_erased_item_is_not_given_to_a_user_whom_the_model_does_not_know():
    given = snapshot(items=without(ITEMS, 12), seen=[("ann", 10), ("bob", 11), ("bob", 12)]).recommend("di", 10)
    assert given == sorted((10, 11), key=ITEMS.key)


def test_lists_are_shorter_where_fewer_items_are_left():
    everything = [("ann", item) for item in range(10, 16)]
    assert snapshot(seen=everything).recommend("ann", 3) == []
    assert snapshot(seen=everything[:-1]).recommend("ann", 3) == [15]


def test_where_nothing_was_learned_nothing_is_recommended():
    assert snapshot(seen=[], model=KeyedEmbeddings.empty(2)).recommend("ann", 3) == []


@pytest.mark.parametrize("user", ["eve", 3, "Ann"])
def test_a_user_who_was_never_here_is_an_error_that_names_them(user):
    with pytest.raises(UnknownIdError, match=repr(str(user))):
        snapshot().recommend(user, 3)


@pytest.mark.parametrize("user", ["", " ", "a\0", True, 1.0, None])
def test_what_cannot_be_a_user_is_an_error_that_says_so(user):
    with pytest.raises(InvalidIdError, match="the user id"):
        snapshot().recommend(user, 3)


def test_a_user_with_an_integer_for_an_id_is_found_by_its_digits_too():
    users = USERS.extended([7])
    assert snapshot(users=users).recommend(7, 1) == snapshot(users=users).recommend("7", 1) == [12]


def test_an_erased_user_is_as_unknown_as_one_who_was_never_here():
    assert snapshot().recommend("bob", 1) == [10]
    left = snapshot(users=without(USERS, "bob"))
    with pytest.raises(UnknownIdError, match="'bob'"):
        left.recommend("bob", 1)
    assert left.recommend("ann", 1) == TIED[:1]


def test_pairs_are_known_wherever_they_are_held_out_or_not():
    asked = [*SEEN, ("ann", 11), ("di", 12), ("cy", 10)]
    assert snapshot().has(keyed(asked)).tolist() == [True] * 5 + [False] * 3
    assert snapshot().has(KeyedPairs.none()).tolist() == []


class Forgotten(dict):
    """What is kept is gone at once, as where another reader makes room at that moment."""

    def __setitem__(self, key, vector) -> None:
        self.clear()


def folded_in() -> Snapshot:
    """A model of items alone, on which users are solved."""
    vectors = np.random.default_rng(0).normal(0, 0.5, (6, 4)).astype(np.float32)
    nobody = KeyedEmbeddings.empty(4)
    model = KeyedEmbeddings(nobody.user_keys, nobody.users, ITEMS.keys, vectors)
    return snapshot(model=model, folding=FoldIn(np.arange(6, dtype=np.int32), vectors, 0.1, 0.01))


def keeping(snapshot: Snapshot, folded: dict) -> Snapshot:
    return replace(snapshot, served=replace(snapshot.served, _folded=folded))


def test_a_reader_needs_not_what_was_solved_before_nor_that_it_be_kept():
    kept = folded_in()
    expected = [kept.recommend(user, 3) for user in USERS.ids]
    assert set(kept.served._folded) == {USERS.key(user) for user in ("ann", "bob", "cy")}  # di has nothing, and no vector
    for other in (kept, keeping(kept, {}), keeping(kept, Forgotten())):
        assert [other.recommend(user, 3) for user in USERS.ids] == expected


def test_the_vectors_of_everybody_are_those_that_are_solved_one_by_one_to_the_last_bit():
    served = folded_in().served
    everybody = served.vectors()
    alone = {user: served.vector_of(USERS.key(user)) for user in USERS.ids}
    assert everybody.user_keys.tolist() == sorted(USERS.key(user) for user, vector in alone.items() if vector is not None)
    for key, vector in zip(everybody.user_keys.tolist(), everybody.users, strict=True):
        assert vector.tobytes() == served.vector_of(key).tobytes()
    assert everybody.items.tobytes() == served.model.items.tobytes()
    assert snapshot().served.vectors().same_bits(scored(SCORES))


@pytest.mark.parametrize("n", [0, -1])
def test_fewer_than_one_item_cannot_be_asked_for(n):
    with pytest.raises(InputError, match="at least one item"):
        snapshot().recommend("ann", n)


# ---- with scores, for many, and for an item


def test_the_scores_are_the_models():
    assert snapshot().recommend_scored("bob", 3) == [(10, 5.0), (13, 0.0), (15, -1.0)]
    assert [item for item, _ in snapshot().recommend_scored("ann", 10)] == snapshot().recommend("ann", 10)


def test_the_scores_of_a_user_whom_the_model_does_not_know_are_how_many_others_have_the_item():
    assert snapshot().recommend_scored("di", 1) == [(12, 3.0)]


@pytest.mark.parametrize("batch", [1, 2, 256])
def test_many_are_given_what_each_is_given_alone(monkeypatch: pytest.MonkeyPatch, batch: int):
    monkeypatch.setattr("ray_eraser.recommend._BATCH_USERS", batch)
    asked, shop = ["bob", "di", "nobody", "ann", "bob", "cy"], snapshot()
    wanted = [None if user == "nobody" else shop.recommend_scored(user, 3) for user in asked]
    assert shop.recommend_many(asked, 3) == wanted
    assert shop.recommend_many([], 3) == []


FOLDED = FoldIn(np.arange(3, dtype=np.int32), np.array([[1, 0], [0.9, 0.1], [0, 1]], np.float32), 0.1, 0.01)
"""Three items, of which the first two are alike."""


def alike() -> Snapshot:
    keys = sorted(ITEMS.key(raw) for raw in (10, 11, 12))
    model = KeyedEmbeddings(np.empty(0, np.uint64), np.empty((0, 2), np.float32), np.array(keys, np.uint64), FOLDED.items)
    return snapshot(model=model, folding=FOLDED)


def test_items_that_a_user_of_the_item_alone_would_be_given_are_similar():
    first, second, third = ITEMS.raw_of(alike().served.item_keys)
    assert [item for item, _ in alike().similar_items(first, 5)] == [second, third]
    assert [item for item, _ in alike().similar_items(second, 1)] == [first]


def test_an_item_without_a_score_has_no_similar_items_and_an_unknown_one_is_refused():
    assert alike().similar_items(13, 5) == []
    with pytest.raises(UnknownIdError, match="no item '99'"):
        alike().similar_items(99, 5)


@pytest.mark.parametrize("n", [True, 5.0, "5", None])
def test_only_a_whole_number_of_items_can_be_asked_for(n):
    shop = snapshot()
    for ask in (shop.recommend, shop.recommend_scored, shop.similar_items):
        with pytest.raises(InputError, match=r"give a whole number"):
            ask("ann" if ask != shop.similar_items else 10, n)
    assert shop.recommend("ann", np.int64(2)) == TIED


@pytest.mark.parametrize("raw", [True, np.True_, 5.0, np.float64(5), None, 5 + 0j])
def test_neither_a_bool_nor_a_float_is_an_id(raw):
    shop = snapshot()
    for ask in (shop.recommend, shop.recommend_scored, shop.similar_items, lambda raw, n: shop.recommend_many([raw], n)):
        with pytest.raises(InvalidIdError):
            ask(raw, 3)
