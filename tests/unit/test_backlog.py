"""The backlog of waiting requests as a value: which pairs later requests take from learnings, and the next batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.backlog import Backlog
from ray_eraser.ids import Generation, RequestId
from ray_eraser.unlearning.ledger import Entry, Ledger, RequestRow
from ray_eraser.unlearning.request import RequestState, UnlearningRequest
from ray_eraser.unlearning.work import Learning, Repartition, Work

RECEIVED, EXCISED, ROUTED = RequestState.RECEIVED, RequestState.EXCISED, RequestState.ROUTED
SET_ASIDE = RequestState.SET_ASIDE

ANN, BOB, LAMP = UnlearningRequest(user_id="ann"), UnlearningRequest(user_id="bob"), UnlearningRequest(item_id="lamp")
PAIR = UnlearningRequest(pairs=(("ann", "sofa"),))
BOTH = Learning((("ann", "sofa"), ("ann", "lamp"), ("bob", "lamp")))


def row(
    name: str,
    work: Work,
    state: RequestState = EXCISED,
    party: int | None = None,
    attempts: int = 0,
    generation: int | None = None,
) -> RequestRow:
    published = None if generation is None else Generation(generation)
    return RequestRow(RequestId(name), state, work.kind, work, None, 0, 1.0, 2.0, attempts, None, party, published, None)


def backlog(*rows: RequestRow) -> Backlog:
    return Backlog(rows)


def names(rows: list[RequestRow]) -> str:
    return " ".join(row.request_id for row in rows)


# ---- the remaining learnings


@pytest.mark.parametrize(
    ("later", "left"),
    [
        pytest.param(ANN, [("bob", "lamp")], id="a user"),
        pytest.param(LAMP, [("ann", "sofa")], id="an item"),
        pytest.param(PAIR, [("ann", "lamp"), ("bob", "lamp")], id="a pair"),
        pytest.param(UnlearningRequest(user_id="eve"), list(BOTH.pairs), id="somebody else"),
    ],
)
def test_a_learning_in_training_loses_pairs_that_a_later_request_erases(later: UnlearningRequest, left: list) -> None:
    asked = backlog(row("learn", BOTH, ROUTED), row("later", later, RECEIVED))
    assert asked.left_to_learn() == {"learn": Learning(tuple(left))}
    assert asked.to_come() == frozenset(left)


def test_an_earlier_erasure_takes_nothing_from_a_learning() -> None:
    asked = backlog(row("before", ANN), row("learn", BOTH, ROUTED))
    assert asked.left_to_learn() == {"learn": BOTH}


def test_a_waiting_learning_is_already_amended_and_used_unchanged() -> None:
    """An erasure behind a waiting learning concerns stored pairs or later learnings."""
    asked = backlog(row("learn", BOTH, EXCISED), row("later", ANN))
    assert asked.left_to_learn() == {"learn": BOTH}


def test_a_learning_may_lose_all_its_pairs() -> None:
    asked = backlog(row("learn", BOTH, ROUTED), row("ann", ANN), row("bob", BOB))
    assert asked.left_to_learn() == {"learn": Learning(())}
    assert asked.to_come() == frozenset()


@pytest.mark.parametrize("state", [RECEIVED, EXCISED, SET_ASIDE])
def test_a_new_erasure_takes_its_pairs_from_every_waiting_learning(state: RequestState) -> None:
    other = Learning((("eve", "sofa"),))
    asked = backlog(row("learn", BOTH, state), row("other", other, state), row("old", BOB))
    assert asked.amended_by([ANN, PAIR]) == {"learn": Learning((("bob", "lamp"),))}
    assert asked.amended_by([]) == {}


def test_a_learning_in_training_is_not_amended() -> None:
    assert backlog(row("learn", BOTH, ROUTED)).amended_by([ANN]) == {}


def test_a_pair_is_identified_by_both_of_its_ids() -> None:
    learning = Learning((("ann", "lamp"), ("sofa", "ann")))
    assert backlog(row("learn", learning)).amended_by([PAIR, UnlearningRequest(pairs=(("sofa", "lamp"),))]) == {}


# ---- the next batch


def test_all_waiting_requests_form_one_batch() -> None:
    asked = backlog(row("a", ANN), row("b", BOTH), row("c", Repartition()), row("d", LAMP, RECEIVED), row("e", BOB, SET_ASIDE))
    assert names(asked.next_batch()) == "a b c"
    assert backlog().next_batch() == []
    assert backlog(row("a", ANN, SET_ASIDE), row("b", BOB, RECEIVED)).next_batch() == []


def test_requests_whose_training_failed_run_alone_in_order_of_fewest_failures() -> None:
    asked = [
        row("a", ANN, party=1, attempts=2),
        row("b", BOB, party=2),
        row("c", PAIR, party=2),
        row("d", LAMP, party=3, attempts=1),
    ]
    assert names(backlog(*asked).next_batch()) == "b c"
    assert names(backlog(asked[0], asked[3]).next_batch()) == "d"
    assert names(backlog(*asked, row("new", UnlearningRequest(user_id="eve"))).next_batch()) == "b c"
    assert names(backlog(asked[0], row("new", BOB)).next_batch()) == "new"


def test_a_repeated_learning_waits_for_an_earlier_erasure_of_another_party() -> None:
    """If it ran first, it would be erased together with the older pairs."""
    failed, anew, other = row("erase", ANN, party=1, attempts=1), row("anew", BOTH), row("other", Learning((("eve", "sofa"),)))
    assert names(backlog(failed, anew, other).next_batch()) == "other"
    assert names(backlog(failed, anew).next_batch()) == "erase"
    assert names(backlog(row("erase", ANN, SET_ASIDE), anew, other).next_batch()) == "other"
    assert names(backlog(row("erase", ANN, SET_ASIDE), anew).next_batch()) == ""
    # In this order, they are one batch, which erases first and then learns.
    assert names(backlog(row("erase", ANN), anew).next_batch()) == "erase anew"
    # The earlier learning is already amended.
    assert names(backlog(anew, failed).next_batch()) == "anew"


def test_an_interrupted_batch_is_the_published_one_if_there_is_one() -> None:
    routed = [row("a", ANN, ROUTED), row("b", BOTH, ROUTED, generation=3), row("c", LAMP, ROUTED, generation=3)]
    assert names(backlog(*routed, row("d", BOB)).interrupted()) == "b c"
    assert names(backlog(routed[0], row("d", BOB)).interrupted()) == "a"
    assert backlog(row("d", BOB)).interrupted() == []


IDS = st.sampled_from(["ann", "bob", "lamp", "sofa"])
PAIRS = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=3).map(tuple)
WORKS = st.one_of(
    IDS.map(lambda raw: UnlearningRequest(user_id=raw)),
    IDS.map(lambda raw: UnlearningRequest(item_id=raw)),
    PAIRS.map(lambda pairs: UnlearningRequest(pairs=pairs)),
    PAIRS.map(Learning),
    st.just(Repartition()),
)
ROWS = st.lists(
    st.tuples(WORKS, st.sampled_from([RECEIVED, EXCISED, SET_ASIDE]), st.sampled_from([None, 1, 2]), st.integers(0, 2)),
    max_size=8,
)


def is_about(request: UnlearningRequest, pair: tuple[str, str]) -> bool:
    return request.user_id == pair[0] or request.item_id == pair[1] or pair in request.named_pairs


@given(asked=ROWS)
def test_a_batch_has_one_party_in_request_order_and_no_learning_that_an_earlier_erasure_would_take(asked) -> None:
    rows = [row(str(n), work, state, party, attempts) for n, (work, state, party, attempts) in enumerate(asked)]
    batch = Backlog(tuple(rows)).next_batch()
    assert all(one.state is EXCISED for one in batch)
    assert len({one.party for one in batch}) <= 1
    places = [int(one.request_id) for one in batch]
    assert places == sorted(set(places))
    for place in places:
        work = rows[place].work
        if isinstance(work, Learning):
            before = [
                one.work for n, one in enumerate(rows[:place]) if n not in places and isinstance(one.work, UnlearningRequest)
            ]
            assert not any(is_about(request, pair) for request in before for pair in work.named)
    if any(one.state is EXCISED and isinstance(one.work, UnlearningRequest) for one in rows):
        assert batch  # no request delays an erasure forever


@given(
    asked=st.lists(st.tuples(WORKS, st.sampled_from([RECEIVED, EXCISED, ROUTED])), max_size=8), new=st.lists(WORKS, max_size=3)
)
def test_pairs_to_come_are_those_that_no_later_request_erases(asked, new) -> None:
    rows = [row(str(n), work, state) for n, (work, state) in enumerate(asked)]
    requests = [work for work in new if isinstance(work, UnlearningRequest)]
    amended = Backlog(tuple(rows)).amended_by(requests)
    for one in rows:
        if isinstance(one.work, Learning) and one.state is not ROUTED:
            left = tuple(pair for pair in one.work.named if not any(is_about(request, pair) for request in requests))
            assert amended.get(one.request_id, one.work).pairs == left
        else:
            assert one.request_id not in amended
    left_to_learn = Backlog(tuple(rows)).left_to_learn()
    for place, one in enumerate(rows):
        if isinstance(one.work, Learning):
            later = [other.work for other in rows[place:] if isinstance(other.work, UnlearningRequest)]
            taken = later if one.state is ROUTED else []
            expected = {pair for pair in one.work.named if not any(is_about(request, pair) for request in taken)}
            assert set(left_to_learn[one.request_id].named) == expected


# ---- from the ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    opened.begin_epoch(0.0)
    yield opened
    opened.close()


def test_remaining_learnings_are_read_alone_unless_one_is_in_training(ledger: Ledger) -> None:
    works = {"erase": BOB, "learn": BOTH, "later": ANN}
    entries = [Entry(RequestId(name), work) for name, work in works.items()]
    ledger.receive(entries, 1.0, 10)
    assert names(list(Backlog.read(ledger).rows)) == "erase learn later"
    assert names(list(Backlog.of_learnings(ledger).rows)) == "learn"
    ledger.excised([RequestId("learn")], 2.0)
    ledger.routed([RequestId("learn")])
    asked = Backlog.of_learnings(ledger)
    assert names(list(asked.rows)) == "erase learn later"
    assert asked.left_to_learn() == Backlog.read(ledger).left_to_learn() == {"learn": Learning((("bob", "lamp"),))}
