from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.data.interactions import Interactions
from ray_eraser.ids import ShardId
from ray_eraser.store import ShardData
from ray_eraser.unlearning.request import Target
from ray_eraser.unlearning.routing import owned_by_shard, together


def interactions(pairs):
    return Interactions.of(*np.array(sorted(pairs), np.int32).reshape(-1, 2).T)


def as_set(pairs):
    return set(zip(pairs.users.tolist(), pairs.items.tolist(), strict=True))


PAIRS = st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=25)
PLACED = st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 5)), st.tuples(st.integers(0, 2), st.booleans()))


def shards_of(placed):
    return {
        ShardId(k): ShardData(
            *(interactions([pair for pair, place in placed.items() if place == (k, held)]) for held in (False, True))
        )
        for k in range(3)
    }


@given(placed=PLACED, wanted=PAIRS)
def test_pairs_go_to_the_shards_that_have_them_and_to_no_other(placed, wanted):
    owned = owned_by_shard(Target((), (), interactions(wanted)), shards_of(placed))
    expected = {k: {pair for pair in wanted if pair in placed and placed[pair][0] == k} for k in range(3)}
    assert {shard: as_set(pairs) for shard, pairs in owned.items()} == {k: pairs for k, pairs in expected.items() if pairs}


@given(placed=PLACED, user=st.integers(0, 5))
def test_a_users_pairs_are_taken_from_every_shard_held_out_ones_too(placed, user):
    owned = owned_by_shard(Target((user,), (), Interactions.none()), shards_of(placed))
    assert set().union(*map(as_set, owned.values())) == {pair for pair in placed if pair[0] == user}
    assert set(owned) == {place[0] for pair, place in placed.items() if pair[0] == user}


@given(placed=PLACED, item=st.integers(0, 5))
def test_an_items_pairs_are_taken_from_every_shard_held_out_ones_too(placed, item):
    owned = owned_by_shard(Target((), (item,), Interactions.none()), shards_of(placed))
    assert set().union(*map(as_set, owned.values())) == {pair for pair in placed if pair[1] == item}


@given(erasures=st.lists(st.dictionaries(st.integers(0, 3), PAIRS.filter(bool)), max_size=4))
def test_several_requests_together_are_the_union_by_shard_in_the_order_of_shards(erasures):
    joined = together({ShardId(k): interactions(pairs) for k, pairs in erasure.items()} for erasure in erasures)
    expected = {k: set().union(*(erasure.get(k, set()) for erasure in erasures)) for erasure in erasures for k in erasure}
    assert {k: as_set(pairs) for k, pairs in joined.items()} == expected
    assert list(joined) == sorted(joined)
    assert all((np.diff(pairs.codes()) > 0).all() for pairs in joined.values())
