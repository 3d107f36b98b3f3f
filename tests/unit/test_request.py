from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import IllegalTransitionError, RequestError
from ray_eraser.ids import RequestId
from ray_eraser.unlearning.request import RequestState, UnlearningRequest, resolve

RAW = st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
USERS = Vocabulary("user", ("ann", None, "cleo"))
ITEMS = Vocabulary("item", (10, 20, 30))
LOG = Interactions.of(np.array([0, 0, 2, 2]), np.array([0, 2, 0, 1]))


def rows(interactions):
    return list(zip(interactions.users.tolist(), interactions.items.tolist(), strict=True))


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


@pytest.mark.parametrize("raw", [0, "", -1])
def test_an_id_that_is_false_is_still_an_id(raw):
    assert UnlearningRequest(user_id=raw).kind == "user"
    assert UnlearningRequest(item_id=raw).kind == "item"
    assert UnlearningRequest.from_json(UnlearningRequest(user_id=raw).to_json()) == UnlearningRequest(user_id=raw)


@given(
    st.builds(UnlearningRequest, user_id=RAW)
    | st.builds(UnlearningRequest, item_id=RAW)
    | st.builds(UnlearningRequest, pairs=st.lists(st.tuples(RAW, RAW), min_size=1, max_size=4).map(tuple))
)
def test_a_request_survives_json_with_the_types_of_its_ids(request):
    again = UnlearningRequest.from_json(request.to_json())
    assert again == request
    assert again.to_json() == request.to_json()
    assert again.kind == request.kind
    assert "\n" not in request.to_json()


def test_pairs_given_as_lists_are_the_same_request_as_pairs_given_as_tuples():
    assert UnlearningRequest(pairs=[["ann", 10]]) == UnlearningRequest(pairs=(("ann", 10),))


def test_what_is_no_pair_is_refused():
    with pytest.raises(RequestError):
        UnlearningRequest(pairs=(("ann", 10, 5.0),))


def test_a_request_for_a_user_takes_all_their_pairs_and_their_id():
    target = resolve(UnlearningRequest(user_id="cleo"), USERS, ITEMS)
    assert (target.user_rows, target.item_rows) == ((2,), ())
    assert rows(target.of(LOG)) == [(2, 0), (2, 1)]


def test_a_request_for_an_item_takes_all_its_pairs_and_its_id():
    target = resolve(UnlearningRequest(item_id=10), USERS, ITEMS)
    assert (target.user_rows, target.item_rows) == ((), (0,))
    assert rows(target.of(LOG)) == [(0, 0), (2, 0)]


def test_a_request_for_pairs_takes_those_alone_and_no_id():
    target = resolve(UnlearningRequest(pairs=(("cleo", 20), ("ann", 10), ("cleo", 20))), USERS, ITEMS)
    assert (target.user_rows, target.item_rows) == ((), ())
    assert rows(target.pairs) == [(0, 0), (2, 1)]
    assert rows(target.of(LOG)) == [(0, 0), (2, 1)]


def test_an_integer_written_as_text_is_the_integer():
    assert resolve(UnlearningRequest(item_id="20"), USERS, ITEMS).item_rows == (1,)


@pytest.mark.parametrize(
    "request_",
    [
        UnlearningRequest(user_id="bob"),
        UnlearningRequest(item_id=40),
        UnlearningRequest(pairs=(("bob", 10), ("ann", "x"))),
        UnlearningRequest(user_id="None"),  # nobody is found under a tombstone
    ],
)
def test_of_an_id_that_is_not_here_there_is_nothing_to_forget(request_):
    target = resolve(request_, USERS, ITEMS)
    assert (target.user_rows, target.item_rows, len(target.pairs), len(target.of(LOG))) == ((), (), 0, 0)


@pytest.mark.parametrize(("state", "wanted"), list(itertools.product(RequestState, RequestState)))
def test_only_the_next_state_may_follow(state, wanted):
    legal = {"received": ["excised"], "excised": ["routed"], "routed": ["erased", "done", "excised", "set_aside"]}
    if wanted in {**legal, "set_aside": ["excised"]}.get(state, []):
        state.check(RequestId("r"), wanted)
    else:
        with pytest.raises(IllegalTransitionError, match=f"request r is {state} and cannot become {wanted}"):
            state.check(RequestId("r"), wanted)
