"""A shard's interactions by keys, against plain Python sets of pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ray_eraser.data import keyed
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData, all_keys, places_of
from ray_eraser.store import shard_data_bytes

KEYS = st.sampled_from([0, 1, 2, 3, 2**31, 2**32 + 7, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1])
PAIRS = st.frozensets(st.tuples(KEYS, KEYS), max_size=12)

Pairs = set[tuple[int, int]] | frozenset[tuple[int, int]]


def data_of(train: Pairs, valid: Pairs = frozenset()) -> ShardData:
    """The shard that a plain reading of its two sets gives."""
    user_keys = np.array(sorted({user for user, _ in train | valid}), np.uint64)
    item_keys = np.array(sorted({item for _, item in train | valid}), np.uint64)
    user_row = {key: row for row, key in enumerate(user_keys.tolist())}
    item_row = {key: row for row, key in enumerate(item_keys.tolist())}

    def in_rows(pairs: Pairs) -> Interactions:
        rows = np.array([(user_row[user], item_row[item]) for user, item in pairs], np.int32).reshape(-1, 2)
        return Interactions.of(rows[:, 0], rows[:, 1])

    return ShardData(user_keys, item_keys, in_rows(train), in_rows(valid))


def pairs_of(some: KeyedPairs) -> set[tuple[int, int]]:
    pairs = list(zip(some.users.tolist(), some.items.tolist(), strict=True))
    assert len(pairs) == len(set(pairs)), "no pair twice"
    return set(pairs)


def sets_of(data: ShardData) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    return pairs_of(data.keyed(data.train)), pairs_of(data.keyed(data.valid))


def assert_same(one: ShardData, other: ShardData) -> None:
    assert shard_data_bytes(one) == shard_data_bytes(other)
    assert [part.users.dtype for part in (one.train, one.valid)] == [np.int32, np.int32]


class AnyHistory(RuleBasedStateMachine):
    """Erase and learn in any order: the bytes of the file are those of a shard that never had anything else."""

    @initialize(train=PAIRS, valid=PAIRS)
    def begin(self, train, valid):
        self.train, self.valid = set(train), set(valid - train)
        self.data = data_of(self.train, self.valid)

    @rule(erased=PAIRS)
    def erase(self, erased):
        self.train -= erased
        self.valid -= erased
        self.data = self.data.without(KeyedPairs.of(sorted(erased, reverse=True)))

    @rule(user=KEYS)
    def erase_a_user(self, user):
        trained, held = (part.tolist() for part in self.data.items_of(user))
        assert trained == sorted(item for one, item in self.train if one == user)
        assert held == sorted(item for one, item in self.valid if one == user)
        self.erase(frozenset((user, item) for item in [*trained, *held]))
        assert user not in self.data.user_keys

    @rule(train=PAIRS, valid=PAIRS)
    def learn(self, train, valid):
        new_train = train - self.train - self.valid
        new_valid = valid - self.train - self.valid - new_train
        self.train |= new_train
        self.valid |= new_valid
        self.data = self.data.with_learned(KeyedPairs.of(list(new_train)), KeyedPairs.of(list(new_valid)))

    @rule(asked=PAIRS)
    def look(self, asked):
        pairs = list(asked)
        assert self.data.has(KeyedPairs.of(pairs)).tolist() == [pair in self.train | self.valid for pair in pairs]

    @invariant()
    def it_is_what_its_pairs_alone_say(self):
        assert sets_of(self.data) == (self.train, self.valid)
        assert len(self.data) == len(self.train) + len(self.valid)
        assert_same(self.data, data_of(self.train, self.valid))


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=50, stateful_step_count=20)


@given(PAIRS, PAIRS, PAIRS)
def test_a_shard_is_cut_out_of_a_log_with_nobody_but_its_own(train, valid, others):
    whole = data_of(train | valid | others)
    rows = [KeyedPairs.of(list(part)).in_rows(whole.user_keys, whole.item_keys) for part in (train, valid - train)]
    assert_same(ShardData.of(rows[0], rows[1], whole.user_keys, whole.item_keys), data_of(train, valid - train))


@given(PAIRS, PAIRS, PAIRS)
def test_a_shards_pairs_are_found_in_the_rows_of_a_wider_log(train, valid, others):
    data, whole = data_of(train, valid - train), data_of(train | valid | others)
    for part, expected in zip(data.in_rows_of(whole.user_keys, whole.item_keys), (train, valid - train), strict=True):
        assert pairs_of(whole.keyed(part)) == expected
        assert (np.diff(part.codes()) > 0).all()


@given(PAIRS, PAIRS)
def test_pairs_come_back_from_rows_and_those_without_a_row_are_left_out(some, others):
    whole = data_of(others)
    back = whole.keyed(KeyedPairs.of(list(some)).in_rows(whole.user_keys, whole.item_keys))
    users, items = {user for user, _ in others}, {item for _, item in others}
    assert pairs_of(back) == {(user, item) for user, item in some if user in users and item in items}


@given(PAIRS)
def test_pairs_get_rows_of_their_own_without_gaps(some):
    rows, user_keys, item_keys = KeyedPairs.of(list(some)).compact()
    assert user_keys.tolist() == sorted({user for user, _ in some})
    assert item_keys.tolist() == sorted({item for _, item in some})
    assert pairs_of(KeyedPairs.in_keys(rows, user_keys, item_keys)) == some


@given(st.lists(PAIRS, max_size=3))
def test_a_union_has_the_pairs_of_all_parts(parts):
    apart = [KeyedPairs.of([(user, item) for user, item in part if user % 3 == n]) for n, part in enumerate(parts)]
    united = KeyedPairs.union(apart)
    assert pairs_of(united) == set().union(*map(pairs_of, apart))
    assert united.users.dtype == united.items.dtype == np.uint64


def test_many_pairs_are_looked_up_as_few_are(monkeypatch):
    generator = np.random.default_rng(1)
    drawn = [tuple(pair) for pair in generator.integers(0, 40, (600, 2)).tolist()]
    here = set(drawn[:300])
    data, asked = data_of(here, frozenset(drawn[:20]) - here), KeyedPairs.of(drawn)
    many = data.has(asked)
    assert many.tolist() == [pair in here for pair in drawn]
    monkeypatch.setattr(keyed, "_FEW", 1000)
    assert data.has(asked).tolist() == many.tolist()


@given(st.sets(KEYS), st.lists(KEYS))
def test_places_are_found_among_ascending_keys_and_minus_one_is_none(known, asked):
    ascending = sorted(known)
    expected = [ascending.index(key) if key in known else -1 for key in asked]
    places = places_of(np.array(asked, np.uint64), np.array(ascending, np.uint64))
    assert places.tolist() == expected
    assert places.dtype == np.int32


@given(st.lists(st.sets(KEYS), max_size=4))
def test_all_keys_are_those_of_every_part_once(parts):
    keys = all_keys([np.array(sorted(part), np.uint64) for part in parts])
    assert keys.tolist() == sorted(set().union(*parts))
    assert keys.dtype == np.uint64


def test_erasing_and_learning_nothing_is_no_new_value():
    data = data_of({(1, 2), (3, 4)})
    assert data.without(KeyedPairs.of([(1, 9), (9, 9)])) is data
    assert data.with_learned(KeyedPairs.none(), KeyedPairs.none()) is data


def test_a_shard_of_nobody_holds_nothing():
    nobody = ShardData.none()
    assert_same(nobody, data_of(set()))
    assert_same(data_of({(1, 2)}, {(1, 3)}).without(KeyedPairs.of([(1, 2), (1, 3)])), nobody)
    assert (len(nobody), nobody.has(KeyedPairs.of([(1, 2)])).tolist()) == (0, [False])
    assert [part.tolist() for part in nobody.items_of(1)] == [[], []]


@pytest.mark.parametrize("key", [0, 2**64 - 1])
def test_the_first_and_the_last_key_are_keys_like_any_other(key):
    data = data_of({(key, key), (5, 6)})
    assert data.has(KeyedPairs.of([(key, key), (key, 6)])).tolist() == [True, False]
    assert [part.tolist() for part in data.items_of(key)] == [[key], []]
    assert sets_of(data.without(KeyedPairs.of([(key, key)])))[0] == {(5, 6)}
