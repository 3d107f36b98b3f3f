from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import UnknownIdError

KEY = b"sixteen bytes ok"


def test_integers_are_sorted_by_value_and_strings_by_their_bytes():
    assert Vocabulary.of("user", [10, 9, 100, 9]).ids == (9, 10, 100)
    assert Vocabulary.of("user", ["10", "9", "é", "z", "Z"]).ids == ("10", "9", "Z", "z", "é")


def test_one_string_makes_all_ids_strings():
    assert Vocabulary.of("item", [2, 10, "x"]).ids == ("10", "2", "x")
    assert Vocabulary.of("item", [2, "2"]).ids == ("2",)


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.lists(st.integers(-(2**63), 2**63 - 1)), st.lists(st.text())), st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_the_order_of_the_log(ids, random):
    shuffled = [*ids, *ids]
    random.shuffle(shuffled)
    vocabulary = Vocabulary.of("user", shuffled)
    assert vocabulary.ids == Vocabulary.of("user", ids).ids
    assert len(vocabulary) == len(set(ids))
    assert all(vocabulary.raw([vocabulary.row(raw)]) == [raw] for raw in ids)


def test_an_integer_is_found_by_its_digits_too():
    vocabulary = Vocabulary.of("user", [7, 12])
    assert vocabulary.row(12) == vocabulary.row("12") == 1
    assert "7" in vocabulary


def test_a_string_of_digits_is_found_by_the_integer_too():
    vocabulary = Vocabulary.of("user", ["12", "x"])
    assert vocabulary.row("12") == vocabulary.row(12) == 0
    assert 12 in vocabulary


@pytest.mark.parametrize(("ids", "raw"), [([7, 12], 8), ([7, 12], "seven"), (["a", "b"], "c"), (["a", "b"], 1), ([], "a")])
def test_an_id_that_was_never_here_is_an_error_that_names_it(ids, raw):
    vocabulary = Vocabulary.of("item", ids)
    assert raw not in vocabulary
    with pytest.raises(UnknownIdError, match=f"no item {str(raw)!r}"):
        vocabulary.row(raw)


def test_erasing_an_id_leaves_a_tombstone_and_every_other_row_as_it_was():
    before = Vocabulary.of("user", ["ann", "bob", "cy"])
    after = before.without([1])
    assert after.ids == ("ann", None, "cy")
    assert (len(after), after.row("cy"), after.tombstones().tolist()) == (3, 2, [1])
    assert after.raw([2, 1, 0]) == ["cy", None, "ann"]
    assert before.row("bob") == 1


def test_an_erased_id_is_unknown():
    after = Vocabulary.of("user", [7, 12]).without(np.array([0], np.int32))
    assert 7 not in after
    with pytest.raises(UnknownIdError):
        after.row(7)
    assert after.row("12") == 1


def test_erasing_one_after_the_other_equals_erasing_at_once():
    before = Vocabulary.of("user", range(6))
    assert before.without([4]).without([1, 4]).ids == before.without([1, 4]).ids


def test_a_vocabulary_of_tombstones_knows_nobody():
    after = Vocabulary.of("user", ["ann", "5"]).without([0, 1])
    assert len(after) == 2
    assert all(raw not in after for raw in ("ann", "5", 5, "None"))


def test_keys_depend_on_the_raw_id_and_the_key_and_never_on_the_row():
    small, large = Vocabulary.of("user", ["cy", "di"]), Vocabulary.of("user", ["ann", "bob", "cy", "di"])
    assert small.keys(KEY).tolist() == large.keys(KEY)[2:].tolist()
    assert len(set(large.keys(KEY).tolist())) == 4
    assert not np.isin(large.keys(KEY), large.keys(b"another key")).any()


def test_integers_and_their_digits_have_one_key():
    assert (
        Vocabulary.of("user", [3, 20]).keys(KEY).tolist() == Vocabulary.of("user", ["3", "20", "x"]).keys(KEY)[[1, 0]].tolist()
    )


def test_nothing_is_left_of_an_erased_ids_key_and_the_others_keep_theirs():
    before = Vocabulary.of("user", ["ann", "bob", "cy"])
    after = before.without([1])
    assert after.keys(KEY).tolist() == [before.keys(KEY)[0], 0, before.keys(KEY)[2]]


def test_an_empty_vocabulary_has_no_keys():
    assert Vocabulary.of("user", []).keys(KEY).shape == (0,)


@pytest.mark.parametrize("lookalike", ["1_0", "+10", " 10", "10\n", "010", "1e1", "\uff11\uff10"])
def test_an_id_that_only_looks_like_a_number_of_another_user_is_unknown(lookalike):
    vocabulary = Vocabulary.of("user", [7, 10])
    assert lookalike not in vocabulary
    with pytest.raises(UnknownIdError):
        vocabulary.row(lookalike)
    assert vocabulary.row("10") == 1
