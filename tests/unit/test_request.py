from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.errors import IllegalTransitionError, RequestError
from ray_eraser.ids import RequestId
from ray_eraser.unlearning.request import RequestState, UnlearningRequest, resolve

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip)
RAW = st.integers(-(2**63), 2**63 - 1) | TEXTS
LOG = Dataset.of_pairs("log", [("ann", 10), ("ann", 30), ("cleo", 10)], valid=[("cleo", 20)])
USERS, ITEMS = LOG.users, LOG.items
SHARD = ShardData.of(LOG.train, LOG.valid, USERS.keys, ITEMS.keys)


def named(pairs: KeyedPairs) -> set[tuple[object, object]]:
    return set(zip(USERS.raw_of(pairs.users), ITEMS.raw_of(pairs.items), strict=True))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "none"),
        ({"user_id": 1, "item_id": 2}, "user_id and item_id"),
        ({"user_id": 1, "pairs": ((1, 2),)}, "user_id and pairs"),
        ({"user_id": 1, "item_id": 2, "pairs": ((1, 2),)}, "user_id and item_id and pairs"),
    ],
)
def test_a_request_is_about_exactly_one_thing(given, named):
    with pytest.raises(RequestError, match=f"exactly one of user_id, item_id and pairs, got {named}"):
        UnlearningRequest(**given)


def test_no_pairs_are_no_request():
    with pytest.raises(RequestError, match="pairs is empty"):
        UnlearningRequest(pairs=())


@pytest.mark.parametrize("raw", [0, "0", -1])
def test_an_id_that_is_false_is_still_an_id(raw):
    assert UnlearningRequest(user_id=raw).kind == "user"
    assert UnlearningRequest(item_id=raw).kind == "item"
    assert UnlearningRequest.from_json(UnlearningRequest(user_id=raw).to_json()) == UnlearningRequest(user_id=raw)


@given(
    st.builds(UnlearningRequest, user_id=RAW)
    | st.builds(UnlearningRequest, item_id=RAW)
    | st.builds(UnlearningRequest, pairs=st.lists(st.tuples(RAW, RAW), min_size=1, max_size=4).map(tuple))
)
def test_a_request_survives_json(request):
    again = UnlearningRequest.from_json(request.to_json())
    assert again == request
    assert again.to_json() == request.to_json()
    assert again.kind == request.kind
    assert "\n" not in request.to_json()


@given(RAW)
def test_an_id_of_a_request_is_text_however_it_is_given(raw):
    assert UnlearningRequest(user_id=raw).user_id == str(raw)
    assert UnlearningRequest(item_id=raw) == UnlearningRequest(item_id=str(raw))
    assert UnlearningRequest(pairs=((raw, raw),)).named_pairs == ((str(raw), str(raw)),)


def test_pairs_given_as_lists_are_the_same_request_as_pairs_given_as_tuples():
    assert UnlearningRequest(pairs=[["ann", 10]]) == UnlearningRequest(pairs=(("ann", 10),))


def test_what_is_no_pair_is_refused():
    with pytest.raises(RequestError):
        UnlearningRequest(pairs=(("ann", 10, 5.0),))


def test_a_request_for_a_user_takes_all_their_pairs_held_out_or_not():
    target = resolve(UnlearningRequest(user_id="cleo"), USERS, ITEMS)
    assert (target.user, target.item, len(target.pairs)) == (USERS.key("cleo"), None, 0)
    assert named(target.of(SHARD)) == {("cleo", 10), ("cleo", 20)}


def test_a_request_for_an_item_takes_all_its_pairs():
    target = resolve(UnlearningRequest(item_id=10), USERS, ITEMS)
    assert (target.user, target.item, len(target.pairs)) == (None, ITEMS.key(10), 0)
    assert named(target.of(SHARD)) == {("ann", 10), ("cleo", 10)}


def test_a_request_for_pairs_takes_those_alone():
    target = resolve(UnlearningRequest(pairs=(("cleo", 20), ("ann", 10), ("cleo", 20), ("ann", 20))), USERS, ITEMS)
    assert (target.user, target.item) == (None, None)
    assert named(target.pairs) == {("cleo", 20), ("ann", 10), ("ann", 20)}
    assert len(target.pairs) == 3
    assert named(target.of(SHARD)) == {("cleo", 20), ("ann", 10)}


def test_an_integer_written_as_text_is_the_integer():
    assert UnlearningRequest(item_id="20") == UnlearningRequest(item_id=20)
    assert resolve(UnlearningRequest(item_id="20"), USERS, ITEMS).item == ITEMS.key(20)


@pytest.mark.parametrize(
    "request_",
    [
        UnlearningRequest(user_id="bob"),
        UnlearningRequest(item_id=40),
        UnlearningRequest(pairs=(("bob", 10), ("ann", "x"))),
        UnlearningRequest(user_id="None"),
    ],
)
def test_of_an_id_that_is_not_here_there_is_nothing_to_forget(request_):
    target = resolve(request_, USERS, ITEMS)
    assert (target.user, target.item, len(target.pairs), len(target.of(SHARD))) == (None, None, 0, 0)


def test_of_a_shard_that_has_nothing_of_what_is_asked_for_nothing_goes():
    of_ann = LOG.train.of_users(np.array([USERS.row("ann")]))
    alone = ShardData.of(of_ann, Interactions.none(), USERS.keys, ITEMS.keys)
    for request_ in (
        UnlearningRequest(user_id="cleo"),
        UnlearningRequest(item_id=20),
        UnlearningRequest(pairs=(("cleo", 20), ("cleo", 10))),
    ):
        target = resolve(request_, USERS, ITEMS)
        assert len(target.of(alone)) == len(target.of(ShardData.none())) == 0


@pytest.mark.parametrize(("state", "wanted"), list(itertools.product(RequestState, RequestState)))
def test_only_the_next_state_may_follow(state, wanted):
    legal = {"received": ["excised"], "excised": ["routed"], "routed": ["erased", "done", "excised", "set_aside"]}
    if wanted in {**legal, "set_aside": ["excised"]}.get(state, []):
        state.check(RequestId("r"), wanted)
    else:
        with pytest.raises(IllegalTransitionError, match=f"request r is {state} and cannot become {wanted}"):
            state.check(RequestId("r"), wanted)
