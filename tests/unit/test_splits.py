from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.config import DataConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.splits import hold_out, set_of, split
from ray_eraser.data.vocabulary import Vocabulary

pairs = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), unique=True, max_size=60)
shares = st.floats(0, 0.99)
salts = st.integers(0, 2**63 - 1)
USERS = Vocabulary.of("user", range(31), seed=1).keys
ITEMS = Vocabulary.of("item", range(31), seed=2).keys


def interactions(chosen):
    return Interactions.of(np.array([u for u, _ in chosen], np.int64), np.array([i for _, i in chosen], np.int64))


def as_set(some):
    return set(some.codes().tolist())


@given(pairs, shares, salts)
def test_every_pair_is_either_kept_or_held(chosen, share, salt):
    whole = interactions(chosen)
    kept, held = hold_out(whole, USERS, ITEMS, share, salt)
    assert as_set(kept) | as_set(held) == as_set(whole)
    assert not as_set(kept) & as_set(held)


@given(pairs, st.data(), shares, salts)
def test_removing_pairs_moves_no_other(chosen, data, share, salt):
    removed = interactions(data.draw(st.lists(st.sampled_from(chosen), unique=True)) if chosen else [])
    whole = interactions(chosen)
    kept, held = hold_out(whole, USERS, ITEMS, share, salt)
    kept_after, held_after = hold_out(whole.without(removed), USERS, ITEMS, share, salt)
    assert as_set(kept_after) == as_set(kept) - as_set(removed)
    assert as_set(held_after) == as_set(held) - as_set(removed)


@given(pairs, shares, shares, salts)
def test_a_larger_share_holds_what_a_smaller_one_holds_and_more(chosen, one, other, salt):
    _, few = hold_out(interactions(chosen), USERS, ITEMS, min(one, other), salt)
    _, many = hold_out(interactions(chosen), USERS, ITEMS, max(one, other), salt)
    assert as_set(few) <= as_set(many)


@given(pairs, salts)
def test_share_zero_holds_nothing(chosen, salt):
    _, held = hold_out(interactions(chosen), USERS, ITEMS, 0, salt)
    assert len(held) == 0


@given(pairs, salts)
def test_renumbering_the_rows_changes_no_choice(chosen, salt):
    reverse = interactions([(30 - u, 30 - i) for u, i in chosen])
    _, held = hold_out(interactions(chosen), USERS, ITEMS, 0.5, salt)
    _, held_in_reverse = hold_out(reverse, USERS[::-1], ITEMS[::-1], 0.5, salt)
    assert as_set(held) == as_set(Interactions.of(30 - held_in_reverse.users, 30 - held_in_reverse.items))


def grid(n_users, n_items, seed=1):
    return Dataset.of_pairs("grid", itertools.product(range(n_users), range(n_items)), seed)


def test_a_split_has_the_shares_that_the_config_names():
    # 100,000 independent choices: the standard deviation of the test share is 0.0013, of the validation share 0.0011.
    whole = grid(400, 250)
    parts = split(whole, DataConfig(test_share=0.2, valid_share=0.1), 1, test=True, valid=True)
    assert abs(len(parts.test) / 100_000 - 0.2) < 0.006
    assert abs(len(parts.valid) / (100_000 - len(parts.test)) - 0.1) < 0.005
    assert len(parts.train) + len(parts.valid) + len(parts.test) == 100_000


def test_the_validation_set_is_drawn_apart_from_the_test_set():
    # With one salt for both, no pair whose number is over the test share could be under a smaller validation share.
    parts = split(grid(40, 25), DataConfig(test_share=0.5, valid_share=0.4), 1, test=True, valid=True)
    assert len(parts.valid) > 100


def test_another_seed_holds_other_pairs():
    whole = grid(40, 25)
    one, other = (split(whole, DataConfig(test_share=0.2), seed, test=True, valid=False).test for seed in (1, 2))
    assert as_set(one) != as_set(other)


def test_nothing_is_held_out_unless_the_config_asks_for_it():
    whole = grid(40, 25)
    parts = split(whole, DataConfig(), 1, test=True, valid=True)
    assert as_set(parts.train) == as_set(whole.train)
    assert (len(parts.valid), len(parts.test)) == (0, 0)


def test_a_pair_belongs_to_the_set_that_a_split_of_a_log_puts_it_in():
    # What is learned later goes where a fit on all would have put it.
    config = DataConfig(test_share=0.3, valid_share=0.4)
    whole = grid(40, 25)
    parts = split(whole, config, 1, test=True, valid=True)
    test, valid = set_of(whole.users.keys[whole.train.users], whole.items.keys[whole.train.items], config, 1)
    assert as_set(whole.train.take(test)) == as_set(parts.test)
    assert as_set(whole.train.take(valid)) == as_set(parts.valid)


def test_a_users_pairs_with_the_item_of_the_same_name_are_chosen_like_any_other():
    whole = Dataset.of_pairs("diagonal", [(name, name) for name in range(2000)], 3)
    assert whole.users.keys.tolist() == whole.items.keys.tolist()
    parts = split(whole, DataConfig(test_share=0.2), 3, test=True, valid=False)
    # 2,000 choices: standard deviation 0.009.
    assert abs(len(parts.test) / 2000 - 0.2) < 0.04
