"""What every database that holds a ledger does. Its test inherits this and gives an `open_ledger` fixture.

`open_ledger()` opens the ledger of one and the same database, each time anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from ray_eraser.errors import IllegalTransitionError, RayEraserError, RequestError, StaleEpochError, UnknownRequestError
from ray_eraser.ids import Epoch, Generation, RequestId, ShardId
from ray_eraser.unlearning.database import EPOCHS
from ray_eraser.unlearning.evidence import verify_chain
from ray_eraser.unlearning.ledger import Entry, GenerationRow, Ledger, RequestRow
from ray_eraser.unlearning.receipt import START, Receipt, ShardChange, chained
from ray_eraser.unlearning.request import RequestState, UnlearningRequest

ANN = UnlearningRequest(user_id="ann")
BOB = UnlearningRequest(user_id="bob")
SALT = "5a" * 32
OpenLedger = Callable[[], Ledger]


def receipt_of(request_id: str, generation: int = 2, finished_at: float = 0.0) -> Receipt:
    return Receipt(
        request_id=RequestId(request_id),
        kind="user",
        guarantee="exact",
        chosen=(),
        commitment="c0" * 32,
        pairs_erased=3,
        shards_touched=(ShardId(1),),
        changes=(ShardChange(ShardId(1), "a", "b", "c", "d"),),
        generation=Generation(generation),
        generation_digest="d1" * 32,
        aggregate_before="e",
        aggregate_after="f",
        purged=("shards/1/old",),
        received_at=10.0,
        excised_at=11.0,
        restored_at=finished_at,
        purged_at=finished_at,
    )


def generation(number: int, to_purge: tuple[str, ...] = ()) -> GenerationRow:
    return GenerationRow(Generation(number), f"{number:064d}", 100.0 + number, to_purge)


def receive(ledger: Ledger, name: str, request: UnlearningRequest = ANN, key: str | None = None) -> RequestRow:
    return ledger.receive(ledger.newest_epoch(), [Entry(RequestId(name), request, SALT, key)], 10.0, 1000)[0]


def advance(ledger: Ledger, name: str, state: RequestState) -> None:
    """Take a received request along the way that leads there."""
    if state is not RequestState.RECEIVED:
        ledger.excised([RequestId(name)], 11.0)
    if state not in (RequestState.RECEIVED, RequestState.EXCISED):
        ledger.routed([RequestId(name)])
    if state is RequestState.ERASED:
        ledger.finish([receipt_of(name, finished_at=12.0)])
    if state is RequestState.DONE:
        ledger.finish([], done=[RequestId(name)])
    if state is RequestState.SET_ASIDE:
        ledger.failed([RequestId(name)], "diverged", 1)


MOVES: dict[RequestState, Callable[[Ledger, str], None]] = {
    RequestState.EXCISED: lambda ledger, name: ledger.excised([RequestId(name)], 11.0),
    RequestState.ROUTED: lambda ledger, name: ledger.routed([RequestId(name)]),
    RequestState.ERASED: lambda ledger, name: ledger.finish([receipt_of(name)]),
    RequestState.DONE: lambda ledger, name: ledger.finish([], done=[RequestId(name)]),
    RequestState.SET_ASIDE: lambda ledger, name: ledger.failed([RequestId(name)], "diverged", 1),
}
LEGAL = {
    ("received", "excised"),
    ("excised", "routed"),
    ("routed", "erased"),
    ("routed", "done"),
    ("routed", "set_aside"),
}
"""Out of `set_aside` leads `retry` alone, which no other move may stand for."""
WAY = (RequestState.EXCISED, RequestState.ROUTED, RequestState.ERASED)
ILLEGAL = [(state, wanted) for state in RequestState for wanted in MOVES if (state, wanted) not in LEGAL]


class LedgerContract:
    @pytest.fixture
    def ledger(self, open_ledger: OpenLedger) -> Ledger:
        return open_ledger()

    # ---- requests

    def test_a_request_goes_from_received_to_erased_one_state_at_a_time(self, ledger: Ledger) -> None:
        assert receive(ledger, "r").state is RequestState.RECEIVED
        for state in WAY:
            MOVES[state](ledger, "r")
            assert ledger.request(RequestId("r")).state is state

    @pytest.mark.parametrize(("state", "wanted"), ILLEGAL)
    def test_any_other_move_is_refused_and_changes_nothing(
        self, ledger: Ledger, state: RequestState, wanted: RequestState
    ) -> None:
        receive(ledger, "r")
        advance(ledger, "r", state)
        before = ledger.request(RequestId("r"))
        with pytest.raises(IllegalTransitionError, match=f"r is {state} and cannot become {wanted}"):
            MOVES[wanted](ledger, "r")
        assert ledger.request(RequestId("r")) == before

    def test_one_that_may_not_move_holds_back_all_that_were_to_move_with_it(self, ledger: Ledger) -> None:
        for name in ("a", "b"):
            receive(ledger, name)
        advance(ledger, "b", RequestState.ROUTED)
        with pytest.raises(IllegalTransitionError):
            ledger.excised([RequestId("a"), RequestId("b")], 11.0)
        assert ledger.request(RequestId("a")).state is RequestState.RECEIVED
        assert ledger.request(RequestId("a")).excised_at is None

    def test_a_request_is_kept_as_it_was_received(self, ledger: Ledger) -> None:
        request = UnlearningRequest(pairs=(("ann", 'quote"'), ("bøb", "2")))
        receive(ledger, "r", request)
        row = ledger.request(RequestId("r"))
        assert (row.work, row.salt, row.kind, row.received_at, row.excised_at) == (request, SALT, "pairs", 10.0, None)
        assert (row.generation, row.receipt) == (None, None)

    def test_the_time_of_excision_is_kept(self, ledger: Ledger) -> None:
        receive(ledger, "r")
        ledger.excised([RequestId("r")], 11.5)
        assert ledger.request(RequestId("r")).excised_at == 11.5

    def test_unfinished_requests_are_given_in_the_order_in_which_they_came(self, ledger: Ledger) -> None:
        for name in ("c", "a", "b"):
            receive(ledger, name)
        advance(ledger, "a", RequestState.ERASED)
        assert [row.request_id for row in ledger.unfinished()] == ["c", "b"]
        assert [row.request_id for row in ledger.unfinished(kind="user")] == ["c", "b"]
        assert ledger.unfinished(kind="learn") == []

    def test_counts_name_every_state(self, ledger: Ledger) -> None:
        assert ledger.counts() == dict.fromkeys(map(str, RequestState), 0)
        for name in ("a", "b", "c"):
            receive(ledger, name)
        advance(ledger, "a", RequestState.ERASED)
        advance(ledger, "b", RequestState.ROUTED)
        assert ledger.counts() == dict.fromkeys(map(str, RequestState), 0) | {"received": 1, "routed": 1, "erased": 1}

    def test_a_request_that_nobody_made_is_an_error(self, ledger: Ledger) -> None:
        with pytest.raises(UnknownRequestError, match="'nobody'"):
            ledger.request(RequestId("nobody"))

    @pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "x" * 1000], ids=["empty", "zero", "surrogate", "long"])
    def test_an_id_that_no_request_can_have_is_the_same_error(self, ledger: Ledger, name: str) -> None:
        with pytest.raises(UnknownRequestError):
            ledger.request(RequestId(name))

    def test_a_finished_request_keeps_its_receipt_and_nothing_of_what_it_was_about(self, ledger: Ledger) -> None:
        receive(ledger, "r", key="k")
        advance(ledger, "r", RequestState.ERASED)
        row = ledger.request(RequestId("r"))
        assert (row.work, row.salt) == (None, None)
        assert [row.receipt] == chained([receipt_of("r", finished_at=12.0)], START)

    # ---- idempotency keys

    def test_a_key_is_unknown_until_it_was_used(self, ledger: Ledger) -> None:
        receive(ledger, "r", key="k")
        assert ledger.recorded("other", ANN) is None
        assert ledger.recorded(None, ANN) is None

    @pytest.mark.parametrize("state", list(RequestState))
    def test_a_key_that_is_repeated_gives_the_request_that_it_was_used_for(self, ledger: Ledger, state: RequestState) -> None:
        receive(ledger, "r", key="k")
        advance(ledger, "r", state)
        row = receive(ledger, "again", key="k")
        assert (row.request_id, row.state) == ("r", state)
        assert ledger.recorded("k", ANN) == row
        assert sum(ledger.counts().values()) == 1

    @pytest.mark.parametrize("state", [state for state in RequestState if not state.is_final])
    def test_a_key_of_a_pending_request_is_refused_for_another(self, ledger: Ledger, state: RequestState) -> None:
        receive(ledger, "r", key="k")
        advance(ledger, "r", state)
        with pytest.raises(RequestError, match="key belongs to another request"):
            receive(ledger, "again", BOB, "k")
        with pytest.raises(RequestError, match="key belongs to another request"):
            ledger.recorded("k", BOB)
        assert sum(ledger.counts().values()) == 1

    def test_a_key_of_a_finished_request_is_refused_for_one_of_another_kind(self, ledger: Ledger) -> None:
        receive(ledger, "r", key="k")
        advance(ledger, "r", RequestState.ERASED)
        with pytest.raises(RequestError, match="key belongs to another request"):
            receive(ledger, "again", UnlearningRequest(item_id="ann"), "k")

    def test_requests_without_a_key_are_never_the_same(self, ledger: Ledger) -> None:
        receive(ledger, "a")
        receive(ledger, "b")
        assert len(ledger.unfinished()) == 2

    # ---- generations

    def test_nothing_is_current_before_the_first_generation(self, ledger: Ledger) -> None:
        assert ledger.current() is None

    def test_the_newest_generation_is_current(self, ledger: Ledger) -> None:
        epoch = ledger.begin_epoch(1.0)
        for number in (1, 2):
            ledger.publish(epoch, generation(number, ("a/b", "c")), {}, [])
        assert ledger.current() == generation(2, ("a/b", "c"))

    def test_publishing_gives_requests_their_generation_and_leaves_them_unfinished(self, ledger: Ledger) -> None:
        for name in ("a", "b"):
            receive(ledger, name)
            advance(ledger, name, RequestState.ROUTED)
        ledger.publish(ledger.begin_epoch(1.0), generation(2), {RequestId("a"): receipt_of("a")}, [RequestId("a")])
        carried_out, waiting = ledger.unfinished()
        assert (carried_out.generation, carried_out.receipt) == (2, receipt_of("a"))
        assert (waiting.generation, waiting.receipt) == (None, None)
        assert carried_out.work == ANN

    def test_a_coordinator_that_was_replaced_cannot_publish(self, ledger: Ledger) -> None:
        receive(ledger, "r")
        advance(ledger, "r", RequestState.ROUTED)
        old = ledger.begin_epoch(1.0)
        ledger.publish(old, generation(1), {}, [])
        new = ledger.begin_epoch(2.0)
        assert new > old
        before = ledger.request(RequestId("r"))
        with pytest.raises(StaleEpochError, match=f"obeys epoch {new} and refuses epoch {old}"):
            ledger.publish(old, generation(2), {RequestId("r"): receipt_of("r")}, [RequestId("r")])
        assert ledger.current() == generation(1)
        assert ledger.request(RequestId("r")) == before
        ledger.publish(new, generation(2), {}, [])

    def test_a_coordinator_that_was_replaced_can_receive_nothing(self, ledger: Ledger) -> None:
        old = ledger.begin_epoch(1.0)
        new = ledger.begin_epoch(2.0)
        with pytest.raises(StaleEpochError, match=f"obeys epoch {new} and refuses epoch {old}"):
            ledger.receive(old, [Entry(RequestId("r"), ANN, SALT)], 10.0, 1000)
        assert ledger.unfinished() == []

    def test_publishing_happens_whole_or_not_at_all(self, ledger: Ledger) -> None:
        class PowerCut(BaseException):
            pass

        class Broken:
            def to_dict(self) -> dict[str, Any]:
                raise PowerCut

        receive(ledger, "r")
        epoch = ledger.begin_epoch(1.0)
        ledger.publish(epoch, generation(1), {}, [])
        before = ledger.request(RequestId("r"))
        receipts: dict[RequestId, Any] = {RequestId("r"): receipt_of("r"), RequestId("x"): Broken()}
        with pytest.raises(PowerCut):
            ledger.publish(epoch, generation(2), receipts, list(receipts))
        assert ledger.current() == generation(1)
        assert ledger.request(RequestId("r")) == before
        ledger.publish(epoch, generation(2), {}, [])

    def test_finishing_happens_whole_or_not_at_all(self, ledger: Ledger) -> None:
        for name in ("a", "b"):
            receive(ledger, name)
        advance(ledger, "a", RequestState.ROUTED)
        ledger.publish(ledger.begin_epoch(1.0), generation(1, ("old",)), {}, [])
        with pytest.raises(IllegalTransitionError):
            ledger.finish([receipt_of("a"), receipt_of("b")])
        assert ledger.request(RequestId("a")).work == ANN
        current = ledger.current()
        assert current is not None
        assert current.to_purge == ("old",)

    def test_finishing_leaves_nothing_to_purge(self, ledger: Ledger) -> None:
        receive(ledger, "r")
        advance(ledger, "r", RequestState.ROUTED)
        ledger.publish(ledger.begin_epoch(1.0), generation(2, ("old",)), {RequestId("r"): receipt_of("r")}, [RequestId("r")])
        ledger.finish([receipt_of("r", finished_at=12.0)])
        assert ledger.current() == replace(generation(2), to_purge=())

    def test_finishing_leaves_the_digest_of_the_newest_generation_alone(self, ledger: Ledger) -> None:
        epoch = ledger.begin_epoch(1.0)
        for number in (1, 2, 3):
            ledger.publish(epoch, generation(number), {}, [])
        rows = "SELECT number, digest, published_at FROM generations ORDER BY number"
        with ledger._engine.connect() as connection:
            before = connection.exec_driver_sql(rows).all()
        receive(ledger, "r")
        advance(ledger, "r", RequestState.ERASED)
        with ledger._engine.connect() as connection:
            after = connection.exec_driver_sql(rows).all()
        assert [tuple(row) for row in after] == [(1, "", before[0][2]), (2, "", before[1][2]), tuple(before[2])]
        assert ledger.current() == generation(3)

    # ---- the chain of receipts

    def test_receipts_are_chained_in_the_order_of_finishing(self, ledger: Ledger) -> None:
        for name in "abc":
            receive(ledger, name)
            advance(ledger, name, RequestState.ROUTED)
        first = ledger.finish([receipt_of("c", finished_at=12.0)])
        rest = ledger.finish([receipt_of("b", finished_at=13.0), receipt_of("a", finished_at=13.0)])
        assert ledger.receipts() == [*first, *rest]
        assert [(receipt.number, receipt.request_id) for receipt in ledger.receipts()] == [(1, "c"), (2, "b"), (3, "a")]
        assert verify_chain(ledger.receipts()) == []
        assert [ledger.request(RequestId(name)).receipt for name in "cba"] == ledger.receipts()

    def test_a_chain_goes_on_after_reopening(self, open_ledger: OpenLedger) -> None:
        for name in ("a", "b"):
            ledger = open_ledger()
            receive(ledger, name)
            advance(ledger, name, RequestState.ERASED)
        assert [receipt.number for receipt in open_ledger().receipts()] == [1, 2]
        assert verify_chain(open_ledger().receipts()) == []

    def test_what_is_unfinished_is_in_no_chain(self, ledger: Ledger) -> None:
        receive(ledger, "r")
        advance(ledger, "r", RequestState.ROUTED)
        ledger.publish(ledger.begin_epoch(1.0), generation(2), {RequestId("r"): receipt_of("r")}, [RequestId("r")])
        assert ledger.receipts() == []

    def test_finishing_that_fails_leaves_the_chain_as_it_was(self, ledger: Ledger) -> None:
        for name in ("a", "b"):
            receive(ledger, name)
        advance(ledger, "a", RequestState.ROUTED)
        with pytest.raises(IllegalTransitionError):
            ledger.finish([receipt_of("a"), receipt_of("b")])
        assert ledger.receipts() == []

    def test_the_record_of_a_period_has_what_was_received_in_it_and_not_what_it_was_about(self, ledger: Ledger) -> None:
        for name in ("a", "b"):
            receive(ledger, name)  # at 10.0
        advance(ledger, "a", RequestState.ERASED)
        assert [(row.request_id, row.state, row.salt) for row in ledger.record(10.0, 10.5)] == [
            ("a", "erased", None),
            ("b", "received", None),
        ]
        assert "ann" not in repr(ledger.record(10.0, 10.5))
        assert ledger.record(10.5, 99.0) == ledger.record(0.0, 10.0) == []

    # ---- durability and concurrency

    def test_everything_is_there_after_reopening(self, open_ledger: OpenLedger) -> None:
        ledger = open_ledger()
        for name in ("a", "b", "c"):
            receive(ledger, name, key=f"key {name}")
        advance(ledger, "a", RequestState.ERASED)
        advance(ledger, "b", RequestState.ROUTED)
        epoch = ledger.begin_epoch(1.0)
        ledger.publish(epoch, generation(3, ("old",)), {RequestId("b"): receipt_of("b", 3)}, [RequestId("b")])
        before = [ledger.request(RequestId(name)) for name in "abc"]
        ledger.close()
        again = open_ledger()
        assert [again.request(RequestId(name)) for name in "abc"] == before
        assert again.current() == generation(3, ("old",))
        assert receive(again, "d", key="key c").request_id == "c"
        assert again.begin_epoch(2.0) == Epoch(epoch + 1)

    def test_two_programs_at_once_lose_no_request(self, open_ledger: OpenLedger) -> None:
        ledgers = [open_ledger(), open_ledger()]

        def submit(k: int) -> list[RequestId]:
            return [receive(ledgers[k], f"{k}-{n}").request_id for n in range(25)]

        with ThreadPoolExecutor(2) as threads:
            given = [name for names in threads.map(submit, range(2)) for name in names]
        rows = [row.request_id for row in ledgers[0].unfinished()]
        assert sorted(rows) == sorted(given)
        assert rows == [row.request_id for row in ledgers[1].unfinished()]

    def test_two_programs_with_one_key_make_one_request(self, open_ledger: OpenLedger) -> None:
        ledgers = [open_ledger(), open_ledger()]

        def submit(k: int) -> set[RequestId]:
            return {receive(ledgers[k], f"{k}-{n}", key=f"key {n}").request_id for n in range(25)}

        with ThreadPoolExecutor(2) as threads:
            first, second = threads.map(submit, range(2))
        assert first == second
        assert len(ledgers[0].unfinished()) == 25

    def test_who_takes_over_while_another_publishes_or_receives_comes_before_or_after_as_a_whole(
        self, open_ledger: OpenLedger
    ) -> None:
        first, second = open_ledger(), open_ledger()
        old = first.begin_epoch(1.0)
        calls: list[Callable[[], Any]] = [
            lambda: first.publish(old, generation(1), {}, []),
            lambda: first.receive(old, [Entry(RequestId("r"), ANN, SALT)], 10.0, 1000),
        ]
        with ThreadPoolExecutor(2) as threads:
            with second._transaction() as connection:  # another coordinator starts, and has not committed yet
                connection.execute(EPOCHS.insert().values(started_at=2.0))
                running = [threads.submit(call) for call in calls]
                time.sleep(0.3)
                assert not any(call.done() for call in running)
            for call in running:
                with pytest.raises(StaleEpochError):
                    call.result(30)
        assert first.current() is None
        assert first.unfinished() == []

    def test_who_takes_over_and_who_publishes_agree_on_who_came_first(self, open_ledger: OpenLedger) -> None:
        ledgers = [open_ledger(), open_ledger()]

        def work(k: int) -> None:
            for n in range(15):
                epoch = ledgers[k].begin_epoch(float(n))
                try:
                    ledgers[k].receive(epoch, [Entry(RequestId(f"{epoch}"), ANN, SALT)], float(epoch), 1000)
                except StaleEpochError:
                    continue

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(work, range(2)))
        recorded = [int(row.request_id) for row in ledgers[0].unfinished()]
        assert recorded == sorted(recorded)
        assert ledgers[0].newest_epoch() in recorded

    def test_every_start_has_an_epoch_of_its_own(self, open_ledger: OpenLedger) -> None:
        ledgers = [open_ledger(), open_ledger()]
        with ThreadPoolExecutor(2) as threads:
            begun = list(threads.map(lambda n: ledgers[n % 2].begin_epoch(1.0), range(20)))
        assert len(set(begun)) == 20

    def test_of_two_that_finish_one_request_one_is_refused(self, open_ledger: OpenLedger) -> None:
        ledgers = [open_ledger(), open_ledger()]
        receive(ledgers[0], "r")
        advance(ledgers[0], "r", RequestState.ROUTED)

        def finish(ledger: Ledger) -> str:
            try:
                ledger.finish([receipt_of("r")])
            except RayEraserError as error:
                return type(error).__name__
            return "done"

        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(finish, ledgers)) == ["IllegalTransitionError", "done"]
