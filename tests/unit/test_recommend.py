from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_eraser.aggregation.foldin import FoldIn
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import InputError, UnknownIdError
from ray_eraser.ids import Generation
from ray_eraser.recommend import Snapshot, top_items

USERS = Vocabulary.of("user", ["ann", "bob", "cy", "di"])
ITEMS = Vocabulary.of("item", [10, 11, 12, 13, 14, 15])


def snapshot(users=USERS, items=ITEMS, seen=((0, 0), (0, 2), (1, 1), (1, 2), (2, 2)), model=None) -> Snapshot:
    pairs = Interactions.of(*np.array(seen, np.int32).reshape(-1, 2).T)
    model = model or scores_of({0: [9, 1, 8, 3, 3], 1: [5, 6, 4, 0, -1]})
    # In two shards, and one pair held out.
    parts = [pairs.take(np.arange(len(pairs)) % 3 == part) for part in range(3)]
    return Snapshot(model, None, users, items, parts[:2], parts[2:], Generation(1))


def scores_of(by_user: dict[int, list[float]], item_rows=(0, 1, 2, 3, 5)) -> Embeddings:
    """A model with exactly these scores: users are unit vectors. Item row 4 is unknown to it."""
    table = np.array(list(by_user.values()), np.float32)
    return Embeddings(
        np.array(list(by_user), np.int32),
        np.eye(len(table), dtype=np.float32),
        np.array(item_rows, np.int32),
        np.ascontiguousarray(table.T),
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
    assert snapshot().recommend("ann", 2) == [13, 15]  # a tie, the lower row first
    assert snapshot().recommend("bob", 3) == [10, 13, 15]


def test_nobody_is_recommended_what_they_have_seen():
    assert snapshot().recommend("ann", 10) == [13, 15, 11]
    assert snapshot().recommend("bob", 10) == [10, 13, 15]


def test_items_that_the_model_does_not_know_are_not_recommended():
    assert 14 not in snapshot().recommend("ann", 10)


def test_an_erased_item_is_never_recommended():
    erased = snapshot(items=ITEMS.without([3]))
    assert erased.recommend("ann", 10) == [15, 11]
    assert None not in erased.recommend("bob", 10)


def test_a_user_whom_the_model_does_not_know_is_given_what_most_others_have():
    # Item 12 was taken three times, items 10 and 11 once; cy knows 12.
    assert snapshot().recommend("di", 10) == [12, 10, 11]
    assert snapshot().recommend("di", 1) == [12]
    assert snapshot().recommend("cy", 10) == [10, 11]


def test_an_erased_item_is_not_given_to_a_user_whom_the_model_does_not_know():
    assert snapshot(items=ITEMS.without([2]), seen=[(0, 0), (1, 1), (1, 2)]).recommend("di", 10) == [10, 11]


def test_lists_are_shorter_where_fewer_items_are_left():
    everything = [(0, item) for item in range(6)]
    assert snapshot(seen=everything).recommend("ann", 3) == []
    assert snapshot(seen=everything[:-1]).recommend("ann", 3) == [15]


def test_where_nothing_was_learned_nothing_is_recommended():
    assert snapshot(seen=[], model=Embeddings.empty(2)).recommend("ann", 3) == []


@pytest.mark.parametrize("user", ["eve", 3, ""])
def test_a_user_who_was_never_here_is_an_error_that_names_them(user):
    with pytest.raises(UnknownIdError, match=repr(str(user))):
        snapshot().recommend(user, 3)


def test_an_erased_user_is_as_unknown_as_one_who_was_never_here():
    assert snapshot().recommend("bob", 1) == [10]
    with pytest.raises(UnknownIdError, match="'bob'"):
        snapshot(users=USERS.without([1])).recommend("bob", 1)
    assert snapshot(users=USERS.without([1])).recommend("ann", 1) == [13]


class Forgotten(dict):
    """What is kept is gone at once, as where another reader makes room at that moment."""

    def __setitem__(self, row, vector) -> None:
        self.clear()


def test_a_reader_needs_not_what_was_solved_before_nor_that_it_be_kept():
    items = np.random.default_rng(0).normal(0, 0.5, (6, 4)).astype(np.float32)
    model = Embeddings(np.empty(0, np.int32), np.empty((0, 4), np.float32), np.arange(6, dtype=np.int32), items)
    kept = replace(snapshot(model=model), folding=FoldIn(model.item_rows, items, 0.1, 0.01))
    expected = [kept.recommend(user, 3) for user in USERS.ids]
    assert set(kept._folded) == {0, 1, 2}  # the last user has nothing, and no vector
    for other in (kept, replace(kept, _folded={}), replace(kept, _folded=Forgotten())):
        assert [other.recommend(user, 3) for user in USERS.ids] == expected


@pytest.mark.parametrize("n", [0, -1])
def test_fewer_than_one_item_cannot_be_asked_for(n):
    users, items = Vocabulary.of("user", [1]), Vocabulary.of("item", [1])
    snapshot = Snapshot(Embeddings.empty(2), None, users, items, [Interactions.none()], [], Generation(1))
    with pytest.raises(InputError, match="at least one item"):
        snapshot.recommend(1, n)
