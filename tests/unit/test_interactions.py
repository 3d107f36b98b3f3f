from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_eraser.data.interactions import Interactions

LARGEST = 2**31 - 1

pairs = st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25)


def log_of(some) -> Interactions:
    users, items = np.array(list(some), np.int64).reshape(-1, 2).T
    return Interactions.of(users, items)


def pairs_of(interactions: Interactions) -> list[tuple[int, int]]:
    return list(zip(interactions.users.tolist(), interactions.items.tolist(), strict=True))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30))
def test_pairs_in_any_order_are_sorted_by_user_and_item_and_repeated_ones_merged(some):
    assert pairs_of(log_of(some)) == sorted(set(some))


@settings(max_examples=200, deadline=None)
@given(pairs, pairs)
def test_without_common_and_union_are_those_of_sets(mine, theirs):
    one, other = log_of(mine), log_of(theirs)
    assert pairs_of(one.without(other)) == sorted(mine - theirs)
    assert pairs_of(one.common(other)) == sorted(mine & theirs)
    assert pairs_of(Interactions.union([one, other])) == sorted(mine | theirs)


@settings(max_examples=50, deadline=None)
@given(pairs, pairs)
def test_removing_at_once_equals_removing_one_after_the_other(mine, theirs):
    one_by_one = log_of(mine)
    for pair in theirs:
        one_by_one = one_by_one.without(log_of([pair]))
    assert pairs_of(one_by_one) == pairs_of(log_of(mine).without(log_of(theirs)))


def test_removing_gives_a_new_value_and_leaves_the_old_one():
    before = log_of([(1, 2), (3, 4)])
    assert pairs_of(before.without(log_of([(1, 2)]))) == [(3, 4)]
    assert pairs_of(before) == [(1, 2), (3, 4)]


def test_rows_are_int32():
    for interactions in (log_of([(3, 4)]), Interactions.none(), log_of([(3, 4)]).compact().interactions):
        assert interactions.users.dtype == interactions.items.dtype == np.int32


def test_the_largest_rows_come_back_as_they_were():
    some = [(0, LARGEST), (LARGEST, 0), (LARGEST, LARGEST)]
    assert pairs_of(log_of(some)) == some
    assert pairs_of(log_of(some).without(log_of([(LARGEST, 0)]))) == [some[0], some[2]]


def test_codes_ascend_and_tell_all_pairs_apart():
    codes = log_of([(0, 5), (1, 0), (1, 7), (2, 0)]).codes()
    assert codes.dtype == np.int64
    assert (np.diff(codes) > 0).all()


@pytest.mark.parametrize("parts", [[], [Interactions.none()], [Interactions.none(), Interactions.none()]])
def test_the_union_of_nothing_is_no_pair(parts):
    assert len(Interactions.union(parts)) == 0


def test_the_pairs_of_some_users_or_with_some_items_are_picked_by_row():
    some = log_of([(0, 1), (0, 2), (3, 1), (4, 4)])
    assert pairs_of(some.of_users(np.array([4, 0, 9]))) == [(0, 1), (0, 2), (4, 4)]
    assert pairs_of(some.of_items(np.array([1]))) == [(0, 1), (3, 1)]
    assert len(some.of_users(np.array([], np.int32))) == 0


def test_rows_of_users_and_items_are_named_once_in_order():
    some = log_of([(5, 1), (0, 7), (5, 7)])
    assert some.user_rows().tolist() == [0, 5]
    assert some.item_rows().tolist() == [1, 7]


@settings(max_examples=50, deadline=None)
@given(pairs)
def test_the_matrix_has_ones_where_there_are_pairs_and_nowhere_else(some):
    matrix = log_of(some).matrix(8, 9)
    expected = np.zeros((8, 9))
    for user, item in some:
        expected[user, item] = 1
    assert (matrix.toarray() == expected).all()
    assert matrix.dtype == np.float32
    assert matrix.has_canonical_format


@settings(max_examples=50, deadline=None)
@given(pairs)
def test_compact_numbers_have_no_gaps_and_lead_back_to_the_rows(some):
    compact = log_of(some).compact()
    back = zip(
        compact.user_rows[compact.interactions.users].tolist(),
        compact.item_rows[compact.interactions.items].tolist(),
        strict=True,
    )
    assert list(back) == sorted(some)
    assert compact.matrix().shape == (len({user for user, _ in some}), len({item for _, item in some}))
    assert compact.matrix().nnz == len(some)
    assert compact.user_rows.dtype == compact.item_rows.dtype == np.int32


def test_pairs_are_taken_by_position_or_by_mask():
    some = log_of([(0, 1), (2, 3), (4, 5)])
    assert pairs_of(some.take(np.array([0, 2]))) == [(0, 1), (4, 5)]
    assert pairs_of(some.take(np.array([False, True, False]))) == [(2, 3)]


@pytest.mark.parametrize("n_users", [100, 1000, 1_000_000])
def test_rows_and_compact_numbers_are_those_of_a_sort(n_users: int) -> None:
    generator = np.random.default_rng(0)
    pairs = Interactions.of(generator.integers(0, n_users, 300), generator.integers(0, 50, 300))
    compact = pairs.compact()
    for rows, found, places, mine in (
        (pairs.users, compact.user_rows, compact.interactions.users, pairs.user_rows()),
        (pairs.items, compact.item_rows, compact.interactions.items, pairs.item_rows()),
    ):
        distinct, inverse = np.unique(rows, return_inverse=True)
        for array, wanted in ((found, distinct), (mine, distinct), (places, inverse)):
            assert array.dtype == np.int32
            assert np.array_equal(array, wanted)


def test_nobody_is_numbered_where_nothing_is() -> None:
    compact = Interactions.none().compact()
    assert compact.user_rows.dtype == compact.item_rows.dtype == np.int32
    assert len(compact.user_rows) == len(compact.item_rows) == len(compact.interactions) == 0


def test_one_user_is_found_as_several_are() -> None:
    generator = np.random.default_rng(0)
    pairs = Interactions.of(generator.integers(1, 20, 100), generator.integers(0, 50, 100))
    for user in range(22):
        alone = pairs.of_users(np.array([user]))
        assert np.array_equal(alone.codes(), pairs.take(pairs.users == user).codes())
        assert alone.users.dtype == alone.items.dtype == np.int32
    assert len(Interactions.none().of_users(np.array([3]))) == 0
