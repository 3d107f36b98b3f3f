"""The contract of every database that holds a ledger. A test class inherits it and gives an `open_ledger` fixture.

Each call of `open_ledger()` opens the ledger of the same database again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest
import sqlalchemy as sa

from ray_eraser.errors import IllegalTransitionError, RayEraserError, RequestError, StaleEpochError, UnknownRequestError
from ray_eraser.ids import Epoch, Generation, RequestId, ShardId
from ray_eraser.unlearning.database import EPOCHS, METADATA
from ray_eraser.unlearning.epochs import EpochRow
from ray_eraser.unlearning.evidence import verify_chain
from ray_eraser.unlearning.ledger import Entry, GenerationRow, Ledger, RequestRow
from ray_eraser.unlearning.receipt import START, Receipt, ShardChange, chained
from ray_eraser.unlearning.request import RequestState, UnlearningRequest
from ray_eraser.unlearning.signing import key_id_of
from ray_eraser.unlearning.suppression import Suppressed
from ray_eraser.unlearning.work import Learning, Repartition, Work

ANN = UnlearningRequest(user_id="ann")
BOB = UnlearningRequest(user_id="bob")
PAIRS = (("ann", "1"),)
OTHERS = (BOB, UnlearningRequest(item_id="ann"), UnlearningRequest(pairs=PAIRS), Learning(PAIRS), Repartition())
"""What is not `ANN`."""
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


def newest_epoch(ledger: Ledger) -> Epoch:
    """The newest epoch that was not ended."""
    return ledger.open_epochs()[-1].epoch


def work_hash(key: str | None, work: Work) -> str | None:
    return None if key is None else hashlib.sha256(f"{key} {work.to_json()}".encode()).hexdigest()


def receive(ledger: Ledger, name: str, work: Work = ANN, key: str | None = None) -> RequestRow:
    return ledger.receive([Entry(RequestId(name), work, SALT, key, work_hash(key, work))], 10.0, 1000)[0]


NEW_EPOCH = {"started_at": 2.0, "holder": "", "lease_seconds": 0.0, "beats": 0, "ended": False}


def everything(ledger: Ledger) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables."""
    with ledger._engine.connect() as connection:
        return {
            table.name: sorted(tuple(row) for row in connection.execute(sa.select(table))) for table in METADATA.tables.values()
        }


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


MOVES: dict[RequestState, Callable[[Ledger, str], object]] = {
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


def enter(ledger: Ledger) -> None:
    with ledger.in_force():
        pass


@dataclass(frozen=True)
class Key:
    """Signs without cryptography."""

    raw: str = "ab" * 32

    @property
    def key_id(self) -> str:
        return key_id_of(self.raw)

    def sign(self, digest: str) -> str:
        return digest[::-1]


WRITES: dict[str, Callable[[Ledger], object]] = {
    "receive": lambda ledger: receive(ledger, "new"),
    "publish": lambda ledger: ledger.publish(
        generation(2), {RequestId("routed"): receipt_of("routed")}, [RequestId("routed")], {"settings": "new"}
    ),
    "excised": lambda ledger: ledger.excised([RequestId("received")], 11.0),
    "routed": lambda ledger: ledger.routed([RequestId("excised")]),
    "failed": lambda ledger: ledger.failed([RequestId("routed")], "diverged", 1),
    "retry": lambda ledger: ledger.retry(RequestId("set_aside")),
    "finish": lambda ledger: ledger.finish([receipt_of("routed")], suppressed=[Suppressed("5b" * 32, "user", 99.0)]),
    "note": lambda ledger: ledger.note("settings", "new"),
    "renew": lambda ledger: ledger.renew(),
    "rotate": lambda ledger: ledger.rotate(Key(), Key("cd" * 32), 12.0, {"signing_key": "new"}),
    "in_force": enter,
    "drop_expired": lambda ledger: ledger.drop_expired(99.0),
}
"""What only the newest epoch may do, of a ledger with a request in each state."""
READS = {
    "attested",
    "counts",
    "current",
    "current_digest",
    "erasures",
    "erasures_beyond",
    "key_in_force",
    "links",
    "newest_time",
    "noted",
    "oldest_received",
    "open_epochs",
    "receipts",
    "record",
    "recorded",
    "recorded_among",
    "request",
    "states",
    "suppressed_among",
    "suppressed_kinds",
    "unfinished",
    "waiting",
}


def one_in_each_state(ledger: Ledger) -> None:
    for state in RequestState:
        receive(ledger, state)
        advance(ledger, state, state)
    ledger.publish(generation(1), {}, [])


WAY = (RequestState.EXCISED, RequestState.ROUTED, RequestState.ERASED)
ILLEGAL = [(state, wanted) for state in RequestState for wanted in MOVES if (state, wanted) not in LEGAL]


class _OfALedger:
    @pytest.fixture
    def ledger(self, open_ledger: OpenLedger) -> Ledger:
        ledger = open_ledger()
        ledger.begin_epoch(0.0)
        return ledger


class RequestsContract(_OfALedger):
    """Requests and idempotency keys."""

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
        assert [row.receipt] == chained([receipt_of("r", finished_at=12.0)], START, None, ledger.name)

    # ---- idempotency keys

    def test_a_key_is_unknown_until_it_was_used(self, ledger: Ledger) -> None:
        receive(ledger, "r", key="k")
        assert ledger.recorded("other", work_hash("other", ANN)) is None
        assert ledger.recorded(None, None) is None

    @pytest.mark.parametrize("state", list(RequestState))
    def test_a_key_that_is_repeated_gives_the_request_that_it_was_used_for(self, ledger: Ledger, state: RequestState) -> None:
        receive(ledger, "r", key="k")
        advance(ledger, "r", state)
        row = receive(ledger, "again", key="k")
        assert (row.request_id, row.state) == ("r", state)
        assert ledger.recorded("k", work_hash("k", ANN)) == row
        assert ledger.recorded_among([("k", work_hash("k", ANN)), ("l", work_hash("l", ANN)), (None, None)]) == [
            row,
            None,
            None,
        ]
        assert sum(ledger.counts().values()) == 1

    @pytest.mark.parametrize("state", list(RequestState))
    @pytest.mark.parametrize(
        "other",
        [
            BOB,
            UnlearningRequest(item_id="ann"),
            UnlearningRequest(pairs=(("ann", "1"),)),
            Learning((("ann", "1"),)),
            Repartition(),
        ],
        ids=lambda work: work.kind,
    )
    def test_a_key_is_refused_for_another_request_pending_or_finished(
        self, ledger: Ledger, state: RequestState, other: Work
    ) -> None:
        receive(ledger, "r", key="k")
        advance(ledger, "r", state)
        before = everything(ledger)
        with pytest.raises(RequestError, match="key belongs to another request"):
            receive(ledger, "again", other, "k")
        with pytest.raises(RequestError, match="key belongs to another request"):
            ledger.recorded("k", work_hash("k", other))
        (found,) = ledger.recorded_among([("k", work_hash("k", other))])
        assert isinstance(found, RequestError)
        assert everything(ledger) == before

    def test_a_learning_that_lost_pairs_is_still_the_request_of_its_key(self, ledger: Ledger) -> None:
        both, one = Learning((("ann", "1"), ("bob", "2"))), Learning((("bob", "2"),))
        receive(ledger, "r", both, "k")
        ledger.receive([Entry(RequestId("e"), ANN, SALT)], 10.0, 1000, {RequestId("r"): one})
        assert ledger.request(RequestId("r")).work == one
        assert receive(ledger, "again", both, "k").request_id == "r"
        with pytest.raises(RequestError, match="key belongs to another request"):
            receive(ledger, "again", one, "k")

    def test_requests_without_a_key_are_never_the_same(self, ledger: Ledger) -> None:
        receive(ledger, "a")
        receive(ledger, "b")
        assert len(ledger.unfinished()) == 2


class PublishingContract(_OfALedger):
    """Generations, and the chain of receipts."""

    def test_nothing_is_current_before_the_first_generation(self, ledger: Ledger) -> None:
        assert ledger.current() is None

    def test_the_newest_generation_is_current(self, ledger: Ledger) -> None:
        for number in (1, 2):
            ledger.publish(generation(number, ("a/b", "c")), {}, [])
        assert ledger.current() == generation(2, ("a/b", "c"))

    def test_publishing_gives_requests_their_generation_and_leaves_them_unfinished(self, ledger: Ledger) -> None:
        for name in ("a", "b"):
            receive(ledger, name)
            advance(ledger, name, RequestState.ROUTED)
        ledger.publish(generation(2), {RequestId("a"): receipt_of("a")}, [RequestId("a")])
        carried_out, waiting = ledger.unfinished()
        assert (carried_out.generation, carried_out.receipt) == (2, receipt_of("a"))
        assert (waiting.generation, waiting.receipt) == (None, None)
        assert carried_out.work == ANN

    def test_publishing_happens_whole_or_not_at_all(self, ledger: Ledger) -> None:
        class PowerCut(BaseException):
            pass

        class Broken:
            def to_dict(self) -> dict[str, Any]:
                raise PowerCut

        receive(ledger, "r")
        ledger.publish(generation(1), {}, [])
        before = ledger.request(RequestId("r"))
        receipts: dict[RequestId, Any] = {RequestId("r"): receipt_of("r"), RequestId("x"): Broken()}
        with pytest.raises(PowerCut):
            ledger.publish(generation(2), receipts, list(receipts))
        assert ledger.current() == generation(1)
        assert ledger.request(RequestId("r")) == before
        ledger.publish(generation(2), {}, [])

    def test_finishing_happens_whole_or_not_at_all(self, ledger: Ledger) -> None:
        for name in ("a", "b"):
            receive(ledger, name)
        advance(ledger, "a", RequestState.ROUTED)
        ledger.publish(generation(1, ("old",)), {}, [])
        with pytest.raises(IllegalTransitionError):
            ledger.finish([receipt_of("a"), receipt_of("b")])
        assert ledger.request(RequestId("a")).work == ANN
        current = ledger.current()
        assert current is not None
        assert current.to_purge == ("old",)

    def test_finishing_leaves_nothing_to_purge(self, ledger: Ledger) -> None:
        receive(ledger, "r")
        advance(ledger, "r", RequestState.ROUTED)
        ledger.publish(generation(2, ("old",)), {RequestId("r"): receipt_of("r")}, [RequestId("r")])
        ledger.finish([receipt_of("r", finished_at=12.0)])
        assert ledger.current() == replace(generation(2), to_purge=())

    def test_finishing_leaves_the_digest_of_the_newest_generation_alone(self, ledger: Ledger) -> None:
        for number in (1, 2, 3):
            ledger.publish(generation(number), {}, [])
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
            ledger.begin_epoch(1.0)
            receive(ledger, name)
            advance(ledger, name, RequestState.ERASED)
        assert [receipt.number for receipt in open_ledger().receipts()] == [1, 2]
        assert verify_chain(open_ledger().receipts()) == []

    def test_what_is_unfinished_is_in_no_chain(self, ledger: Ledger) -> None:
        receive(ledger, "r")
        advance(ledger, "r", RequestState.ROUTED)
        ledger.publish(generation(2), {RequestId("r"): receipt_of("r")}, [RequestId("r")])
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


class WritersContract(_OfALedger):
    """Who may write, notes, and the list of what must not be learned again."""

    def test_a_start_needs_a_time_alone_and_every_start_has_a_higher_epoch(self, open_ledger: OpenLedger) -> None:
        first, second = open_ledger(), open_ledger()
        old, new = first.begin_epoch(1.0), second.begin_epoch(2.0)
        assert old is not None
        assert new is not None
        assert new > old
        assert (first.epoch, second.epoch) == (old, new)
        assert newest_epoch(first) == new
        assert first.open_epochs() == [EpochRow(old, 1.0, "", 0.0, 0), EpochRow(new, 2.0, "", 0.0, 0)]

    def test_every_method_either_reads_or_is_refused_to_who_was_replaced(self) -> None:
        methods = {name for name in dir(Ledger) if not name.startswith("_") and callable(getattr(Ledger, name))}
        assert methods == READS | set(WRITES) | {"begin_epoch", "end_epochs", "close"}

    @pytest.mark.parametrize("write", WRITES)
    def test_a_coordinator_that_was_replaced_can_write_nothing(self, open_ledger: OpenLedger, write: str) -> None:
        ledger, other = open_ledger(), open_ledger()
        old = ledger.begin_epoch(1.0)
        one_in_each_state(ledger)
        new = other.begin_epoch(2.0)
        before = everything(ledger)
        with pytest.raises(StaleEpochError, match=f"obeys epoch {new} and refuses epoch {old}"):
            WRITES[write](ledger)
        assert everything(ledger) == before
        WRITES[write](other)  # who replaced it can
        assert write in ("in_force", "drop_expired") or everything(ledger) != before  # the list of that ledger is empty

    @pytest.mark.parametrize("write", WRITES)
    def test_who_has_begun_no_epoch_writes_nothing(self, open_ledger: OpenLedger, write: str) -> None:
        writer, reader = open_ledger(), open_ledger()
        writer.begin_epoch(1.0)
        one_in_each_state(writer)
        before = everything(reader)
        with pytest.raises(AssertionError, match="before begin_epoch"):
            WRITES[write](reader)
        assert everything(reader) == before

    def test_who_begins_again_writes_in_the_new_epoch(self, open_ledger: OpenLedger) -> None:
        ledger, other = open_ledger(), open_ledger()
        ledger.begin_epoch(1.0)
        other.begin_epoch(2.0)
        assert ledger.begin_epoch(3.0) == ledger.epoch == newest_epoch(other)
        receive(ledger, "r")
        with pytest.raises(StaleEpochError):
            receive(other, "s")

    def test_a_renewal_is_counted_and_an_epoch_that_was_ended_has_none(self, open_ledger: OpenLedger) -> None:
        ledger, other = open_ledger(), open_ledger()
        epoch = ledger.begin_epoch(1.0, "me", 7.0)
        assert epoch is not None
        for beats in range(3):
            assert other.open_epochs() == [EpochRow(epoch, 1.0, "me", 7.0, beats)]
            ledger.renew()
        other.end_epochs([epoch])
        assert ledger.open_epochs() == []
        before = everything(ledger)
        with pytest.raises(StaleEpochError):
            ledger.renew()
        assert everything(ledger) == before

    def test_who_saw_other_epochs_than_are_open_begins_none(self, open_ledger: OpenLedger) -> None:
        ledger, other = open_ledger(), open_ledger()
        epoch = ledger.begin_epoch(1.0, "me", 7.0)
        assert epoch is not None

        def is_refused(seen: list[EpochRow]) -> bool:
            before = everything(ledger)
            refused = other.begin_epoch(2.0, "you", 7.0, seen=seen) is None
            assert not refused or everything(ledger) == before
            return refused

        assert is_refused([])
        seen = ledger.open_epochs()
        ledger.renew()
        assert is_refused(seen)
        seen = ledger.open_epochs()
        ledger.end_epochs([epoch])
        assert is_refused(seen)
        receive(ledger, "r")  # none of these has replaced it
        assert not is_refused([])
        with pytest.raises(StaleEpochError):
            receive(ledger, "s")
        assert is_refused([])  # its own is there now

    def test_nobody_takes_over_while_files_are_deleted(self, open_ledger: OpenLedger) -> None:
        ledger, other = open_ledger(), open_ledger()
        ledger.begin_epoch(1.0)
        ledger.publish(generation(1), {}, [])
        with ThreadPoolExecutor(1) as threads:
            with ledger.in_force() as connection:
                assert ledger.current_digest(connection) == generation(1).digest
                starting = threads.submit(other.begin_epoch, 2.0)
                time.sleep(0.3)
                assert not starting.done()
            assert starting.result(30) == newest_epoch(other)
        with pytest.raises(StaleEpochError), ledger.in_force():
            pytest.fail("files would be deleted here")

    # ---- notes

    def test_what_was_never_noted_is_asked_for_without_being_noted(self, ledger: Ledger) -> None:
        before = everything(ledger)
        assert ledger.noted("settings", "usual") == "usual"
        assert everything(ledger) == before
        for text in ("one", "two"):
            ledger.note("settings", text)
            assert ledger.noted("settings", "usual") == text

    # ---- erasures that a generation does not have

    def test_erasures_that_are_left_out_and_in_no_generation_yet_are_known(self, ledger: Ledger) -> None:
        one_in_each_state(ledger)
        receive(ledger, "learning", Learning((("ann", "1"),)))
        advance(ledger, "learning", RequestState.EXCISED)
        assert ledger.erasures_beyond(Generation(1)) == ["excised", "routed", "set_aside"]
        ledger.publish(generation(2), {RequestId("routed"): receipt_of("routed")}, [RequestId("routed")])
        assert ledger.erasures_beyond(Generation(1)) == ["excised", "routed", "set_aside"]
        assert ledger.erasures_beyond(Generation(2)) == ["excised", "set_aside"]

    # ---- what must not be learned again

    def test_what_must_not_be_learned_again_is_known_until_its_time_is_over(self, ledger: Ledger) -> None:
        ann, pair = Suppressed("a1" * 32, "user", 50.0), Suppressed("b2" * 32, "pair", 60.0)
        ledger.receive([Entry(RequestId("a"), ANN, SALT)], 10.0, 1000, suppressed=[ann, pair])
        advance(ledger, "a", RequestState.ROUTED)
        asked = [ann.subject, pair.subject, "c3" * 32, *(f"{n:064x}" for n in range(1200))]
        assert ledger.suppressed_among(asked, 49.9) == {ann.subject, pair.subject}
        assert ledger.suppressed_kinds(49.9) == {"user", "pair"}
        assert ledger.suppressed_among(asked, 50.0) == {pair.subject}
        assert ledger.suppressed_kinds(50.0) == {"pair"}
        # Its days are counted from the end of the erasure. What was taken off the list meanwhile stays off.
        taken_back = Suppressed("c3" * 32, "item", 90.0)
        ledger.finish([receipt_of("a", finished_at=13.0)], suppressed=[replace(ann, until=90.0), taken_back])
        assert ledger.suppressed_among(asked, 60.0) == {ann.subject}

    def test_what_is_taken_back_is_on_the_list_no_more_and_only_if_it_is_recorded(self, ledger: Ledger) -> None:
        receive(ledger, "r", key="k")
        subjects = [f"{n:064x}" for n in range(1200)]
        listed = [Suppressed(subject, "user", 99.0) for subject in subjects]
        ledger.receive([Entry(RequestId("s"), ANN, SALT)], 10.0, 1000, suppressed=listed)
        learning = Learning((("ann", "1"),))
        refused = Entry(RequestId("x"), learning, None, "k", work_hash("k", learning))
        with pytest.raises(RequestError):
            ledger.receive([refused], 20.0, 1000, lifted=subjects)
        assert ledger.suppressed_among(subjects, 20.0) == set(subjects)
        ledger.receive([Entry(RequestId("l"), learning)], 20.0, 1000, lifted=subjects[:1100])
        assert ledger.suppressed_among(subjects, 20.0) == set(subjects[1100:])

    def test_a_subject_whose_time_is_over_leaves_the_database(self, ledger: Ledger) -> None:
        ledger.receive([Entry(RequestId("r"), ANN, SALT)], 10.0, 1000, suppressed=[Suppressed("a1" * 32, "user", 50.0)])
        ledger.receive([Entry(RequestId("s"), BOB, SALT)], 49.0, 1000)
        assert len(everything(ledger)["suppressed"]) == 1
        ledger.receive([Entry(RequestId("t"), BOB, SALT)], 50.0, 1000)
        assert everything(ledger)["suppressed"] == []
        # No request need come for that.
        ledger.receive([Entry(RequestId("u"), ANN, SALT)], 51.0, 1000, suppressed=[Suppressed("a1" * 32, "user", 60.0)])
        ledger.drop_expired(59.0)
        assert len(everything(ledger)["suppressed"]) == 1
        ledger.drop_expired(60.0)
        assert everything(ledger)["suppressed"] == []


class ConcurrencyContract(_OfALedger):
    """Durability, and several programs at once."""

    def test_everything_is_there_after_reopening(self, open_ledger: OpenLedger) -> None:
        ledger = open_ledger()
        epoch = ledger.begin_epoch(1.0)
        assert epoch is not None
        for name in ("a", "b", "c"):
            receive(ledger, name, key=f"key {name}")
        advance(ledger, "a", RequestState.ERASED)
        advance(ledger, "b", RequestState.ROUTED)
        ledger.publish(generation(3, ("old",)), {RequestId("b"): receipt_of("b", 3)}, [RequestId("b")])
        before = [ledger.request(RequestId(name)) for name in "abc"]
        ledger.close()
        again = open_ledger()
        assert [again.request(RequestId(name)) for name in "abc"] == before
        assert again.current() == generation(3, ("old",))
        assert again.begin_epoch(2.0) == Epoch(epoch + 1)
        assert receive(again, "d", key="key c").request_id == "c"

    def test_several_at_once_lose_no_request(self, ledger: Ledger) -> None:
        def submit(k: int) -> list[RequestId]:
            return [receive(ledger, f"{k}-{n}").request_id for n in range(25)]

        with ThreadPoolExecutor(2) as threads:
            given = [name for names in threads.map(submit, range(2)) for name in names]
        rows = [row.request_id for row in ledger.unfinished()]
        assert sorted(rows) == sorted(given)
        assert len(set(given)) == 50

    def test_several_with_one_key_make_one_request(self, ledger: Ledger) -> None:
        def submit(k: int) -> set[RequestId]:
            return {receive(ledger, f"{k}-{n}", key=f"key {n}").request_id for n in range(25)}

        with ThreadPoolExecutor(2) as threads:
            first, second = threads.map(submit, range(2))
        assert first == second
        assert len(ledger.unfinished()) == 25

    def test_of_two_programs_at_once_each_has_recorded_what_it_was_told_and_no_more(self, open_ledger: OpenLedger) -> None:
        ledgers = [open_ledger(), open_ledger()]

        def submit(k: int) -> list[RequestId]:
            given = []
            for n in range(25):
                if n % 5 == 0:
                    ledgers[k].begin_epoch(float(n))
                try:
                    given.append(receive(ledgers[k], f"{k}-{n}").request_id)
                except StaleEpochError:
                    continue
            return given

        with ThreadPoolExecutor(2) as threads:
            told = [name for names in threads.map(submit, range(2)) for name in names]
        rows = [row.request_id for row in ledgers[0].unfinished()]
        assert sorted(rows) == sorted(told)
        assert rows == [row.request_id for row in ledgers[1].unfinished()]
        assert len(rows) >= 5  # who began last went on to the next start

    def test_who_takes_over_while_another_writes_comes_before_or_after_as_a_whole(self, open_ledger: OpenLedger) -> None:
        first, second = open_ledger(), open_ledger()
        first.begin_epoch(1.0)
        one_in_each_state(first)
        before = everything(first)
        with ThreadPoolExecutor(len(WRITES)) as threads:
            with second._transaction() as connection:  # another coordinator starts, and has not committed yet
                connection.execute(EPOCHS.insert().values(**NEW_EPOCH))
                running = [threads.submit(call, first) for call in WRITES.values()]
                time.sleep(0.3)
                assert not any(call.done() for call in running)
            for call in running:
                with pytest.raises(StaleEpochError):
                    call.result(30)
        assert len(first.open_epochs()) == 2
        assert {**everything(first), "epochs": []} == {**before, "epochs": []}

    def test_who_takes_over_and_who_publishes_agree_on_who_came_first(self, open_ledger: OpenLedger) -> None:
        ledgers = [open_ledger(), open_ledger()]

        def work(k: int) -> None:
            for n in range(15):
                epoch = ledgers[k].begin_epoch(float(n))
                try:
                    ledgers[k].receive([Entry(RequestId(f"{epoch}"), ANN, SALT)], float(n), 1000)
                except StaleEpochError:
                    continue

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(work, range(2)))
        recorded = [int(row.request_id) for row in ledgers[0].unfinished()]
        assert recorded == sorted(recorded)
        assert newest_epoch(ledgers[0]) in recorded

    def test_every_start_has_an_epoch_of_its_own(self, open_ledger: OpenLedger) -> None:
        ledgers = [open_ledger(), open_ledger()]
        with ThreadPoolExecutor(2) as threads:
            begun = list(threads.map(lambda n: ledgers[n % 2].begin_epoch(1.0), range(20)))
        assert len(set(begun)) == 20

    def test_of_several_that_saw_the_same_one_begins_an_epoch(self, open_ledger: OpenLedger) -> None:
        ledgers = [open_ledger() for _ in range(4)]
        seen = ledgers[0].open_epochs()
        with ThreadPoolExecutor(4) as threads:
            begun = list(threads.map(lambda ledger: ledger.begin_epoch(1.0, "x", 5.0, seen=seen), ledgers))
        assert sorted(epoch is None for epoch in begun) == [False, True, True, True]

    def test_of_two_that_finish_one_request_one_is_refused(self, ledger: Ledger) -> None:
        receive(ledger, "r")
        advance(ledger, "r", RequestState.ROUTED)

        def finish(_: int) -> str:
            try:
                ledger.finish([receipt_of("r")])
            except RayEraserError as error:
                return type(error).__name__
            return "done"

        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(finish, range(2))) == ["IllegalTransitionError", "done"]


class LedgerContract(RequestsContract, PublishingContract, WritersContract, ConcurrencyContract):
    """The whole contract."""
