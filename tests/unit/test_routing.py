from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.data.dataset import Dataset
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.ids import ShardId
from ray_eraser.unlearning.request import Target, UnlearningRequest, resolve
from ray_eraser.unlearning.routing import owned_by_shard, together

LOG = Dataset.of_pairs("all", itertools.product(range(6), range(6)))
SIDES = ((LOG.users, "user_keys"), (LOG.items, "item_keys"))
USER_KEYS, ITEM_KEYS = ([ids.key(raw) for raw in range(6)] for ids, _ in SIDES)


def keyed(pairs):
    return KeyedPairs.of([(USER_KEYS[user], ITEM_KEYS[item]) for user, item in sorted(pairs)])


def as_set(pairs):
    return {(USER_KEYS.index(u), ITEM_KEYS.index(i)) for u, i in zip(pairs.users.tolist(), pairs.items.tolist(), strict=True)}


PAIRS = st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=25)
PLACED = st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 5)), st.tuples(st.integers(0, 2), st.booleans()))


def shards_of(placed):
    return {
        ShardId(k): ShardData.none().with_learned(
            *(keyed([pair for pair, place in placed.items() if place == (k, held)]) for held in (False, True))
        )
        for k in range(3)
    }


@given(placed=PLACED, wanted=PAIRS)
def test_pairs_are_routed_only_to_the_shards_that_have_them(placed, wanted):
    owned = owned_by_shard(Target(None, None, keyed(wanted)), shards_of(placed))
    expected = {k: {pair for pair in wanted if pair in placed and placed[pair][0] == k} for k in range(3)}
    assert {shard: as_set(pairs) for shard, pairs in owned.items()} == {k: pairs for k, pairs in expected.items() if pairs}


@given(placed=PLACED, user=st.integers(0, 5))
def test_a_users_pairs_are_taken_from_every_shard_including_held_out_ones(placed, user):
    owned = owned_by_shard(Target(USER_KEYS[user], None, KeyedPairs.none()), shards_of(placed))
    assert set().union(*map(as_set, owned.values())) == {pair for pair in placed if pair[0] == user}
    assert set(owned) == {place[0] for pair, place in placed.items() if pair[0] == user}


@given(placed=PLACED, item=st.integers(0, 5))
def test_an_items_pairs_are_taken_from_every_shard_including_held_out_ones(placed, item):
    owned = owned_by_shard(Target(None, ITEM_KEYS[item], KeyedPairs.none()), shards_of(placed))
    assert set().union(*map(as_set, owned.values())) == {pair for pair in placed if pair[1] == item}


@given(placed=st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 5)), st.tuples(st.integers(0, 3), st.integers(0, 3))))
def test_several_requests_give_their_union_by_shard_in_order(placed):
    """No pair is in two of them."""
    erasures = [{k: {pair for pair, place in placed.items() if place == (number, k)} for k in range(4)} for number in range(4)]
    asked = [{ShardId(k): keyed(pairs) for k, pairs in erasure.items() if pairs} for erasure in erasures]
    joined = together(asked)
    expected = {k: set().union(*(erasure[k] for erasure in erasures)) for k in range(4)}
    assert {k: as_set(pairs) for k, pairs in joined.items()} == {k: pairs for k, pairs in expected.items() if pairs}
    assert sum(map(len, joined.values())) == len(placed)
    assert list(joined) == sorted(joined)


IDS = st.integers(0, 8).map(str)  # some of them nobody has


@given(placed=PLACED, user=IDS, item=IDS, pairs=st.lists(st.tuples(IDS, IDS), min_size=1, max_size=5))
def test_a_request_finds_exactly_its_stored_pairs(placed, user, item, pairs):
    shards = shards_of(placed)
    users, items = (ids.only(np.concatenate([getattr(data, side) for data in shards.values()])) for ids, side in SIDES)
    here = {(str(u), str(i)) for u, i in placed}
    for request, wanted in (
        (UnlearningRequest(user_id=user), {pair for pair in here if pair[0] == user}),
        (UnlearningRequest(item_id=item), {pair for pair in here if pair[1] == item}),
        (UnlearningRequest(pairs=tuple(pairs)), here & set(pairs)),
    ):
        owned = owned_by_shard(resolve(request, users, items), shards)
        found = [pair for part in owned.values() for pair in as_set(part)]
        assert sorted(found) == sorted((int(u), int(i)) for u, i in wanted)
