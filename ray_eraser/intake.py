"""Accepts requests: checks them, records them in the ledger, and removes their data from the served model before returning."""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ray_eraser.backlog import Backlog
from ray_eraser.building import OnStep
from ray_eraser.data.keyed import KeyedPairs
from ray_eraser.data.splits import set_of
from ray_eraser.errors import InputError, QueueFullError, RequestError, shortened
from ray_eraser.ids import Epoch, RawId, RequestId
from ray_eraser.opening import settings_with
from ray_eraser.serving import Serving
from ray_eraser.unlearning.idempotency import KeyHash
from ray_eraser.unlearning.ledger import Entry, Ledger, RequestRow
from ray_eraser.unlearning.request import Refusal, RequestState, Submission, UnlearningRequest
from ray_eraser.unlearning.work import Learning, Repartition

_ARRIVAL_SECONDS = 1.0
"""The longest that an excision waits for other requests to be recorded."""

Pair = tuple[str, str]


@dataclass(frozen=True)
class Submitted:
    """The answer to a submission. The salt lets the asker prove later what the receipt is about."""

    request_id: RequestId
    state: RequestState
    salt: str | None


@dataclass(frozen=True)
class Desk:
    """The parts of a deployment that `Intake` uses, besides `Serving`.

    Attributes:
        ledger: where requests are recorded.
        epoch: of the coordinator.
        max_pending: how many may wait at a time.
        clock: seconds since 1970.
        on_step: see `OnStep`.
        predicted_seconds: predicts the duration of the next run.
        key_hash: hashes idempotency keys.
    """

    ledger: Ledger
    epoch: Epoch
    max_pending: int
    clock: Callable[[], float]
    on_step: OnStep
    predicted_seconds: Callable[[], float]
    key_hash: KeyHash


class Intake:
    """Accepts requests for one coordinator."""

    def __init__(self, desk: Desk, serving: Serving) -> None:
        self._desk, self._ledger, self._serving = desk, desk.ledger, serving
        self._arrivals = threading.Condition()
        self._arriving = 0  # callers that wait for their requests to be recorded

    # ---- forget --------------------------------------------------------------------------------------------------------

    def submit(self, submission: Submission) -> Submitted:
        """Accept one request to forget. See `Coordinator.submit`."""
        with self._accepting():
            (answer,) = self._accept([submission]).values()
            if isinstance(answer, InputError):
                raise answer
        self.excise()
        return self._submitted([answer])[0]

    def submit_many(self, submissions: Sequence[Submission], *, partial: bool) -> list[Submitted | Refusal]:
        """Accept many requests to forget. See `Coordinator.submit_many`."""
        with self._accepting():
            answers = self._accept(submissions, partial=partial)
            rows = {number: submission.row or number + 1 for number, submission in enumerate(submissions)}
            for number, answer in sorted(answers.items()):
                if isinstance(answer, InputError) and not partial:
                    raise RequestError(f"row {rows[number]}: {_reason(answer)}") from answer
        self.excise()
        in_order = [answers[number] for number in rows]
        submitted = iter(self._submitted([answer for answer in in_order if not isinstance(answer, InputError)]))
        return [
            Refusal(rows[number], _reason(answer)) if isinstance(answer, InputError) else next(submitted)
            for number, answer in enumerate(in_order)
        ]

    def _accept(self, submissions: Sequence[Submission], *, partial: bool = False) -> dict[int, RequestRow | InputError]:
        """Check all submissions against one reading of the state, then record them in one transaction.

        Returns, by position, the recorded row (now or earlier, under the same key) or the error. Unless `partial`, one error
        keeps all new submissions from being recorded, and these have no entry.
        """
        hashes = [self._desk.key_hash(submission.idempotency_key) for submission in submissions]
        asked = [submission.request for submission in submissions]
        known = self._ledger.recorded_among(list(zip(hashes, asked, strict=True)))
        backlog = Backlog.of_learnings(self._ledger)
        to_come = _ToCome(backlog)
        by_key: dict[str, UnlearningRequest] = {}
        answers: dict[int, RequestRow | InputError] = {}
        for number, (found, hashed, request) in enumerate(zip(known, hashes, asked, strict=True)):
            if isinstance(found, RequestError):
                answers[number] = found
            elif hashed is not None and by_key.get(hashed, request) != request:
                answers[number] = RequestError("the idempotency key belongs to another request: choose a new key")
            elif found is None and (problem := self._problem(request, to_come)):
                answers[number] = problem
            else:
                if hashed is not None:
                    by_key[hashed] = request
                if found is not None:
                    answers[number] = found
        new = [number for number in range(len(asked)) if number not in answers]
        if partial or not any(isinstance(answer, InputError) for answer in answers.values()):
            entries = [Entry(_new_name(), asked[n], secrets.token_hex(32), hashes[n], submissions[n].priority) for n in new]
            answers |= zip(new, self._record(entries, backlog.amended_by([asked[n] for n in new])), strict=True)
        return answers

    def _problem(self, request: UnlearningRequest, to_come: _ToCome) -> InputError | None:
        """The error that a new request deserves; None if it can be accepted."""
        try:
            self._check(request, to_come)
        except InputError as error:
            return error
        return None

    def _check(self, request: UnlearningRequest, to_come: _ToCome) -> None:
        """Refuse a request about an id or a pair that is neither stored nor waiting to be learned.

        Raises:
            UnknownIdError, RequestError: see `Coordinator.submit`.
        """
        snapshot = self._serving.snapshot
        if request.user_id is not None and request.user_id not in to_come.users:
            snapshot.users.key(request.user_id)
        if request.item_id is not None and request.item_id not in to_come.items:
            snapshot.items.key(request.item_id)
        if request.pairs is not None:
            here = [pair for pair in request.named_pairs if pair not in to_come.pairs]
            keys = KeyedPairs.of([(snapshot.users.key(user), snapshot.items.key(item)) for user, item in here])
            absent = np.flatnonzero(~snapshot.has(keys))
            if len(absent):
                raise RequestError(
                    f"{len(absent)} of {len(request.pairs)} pairs are not among the data or are being erased already, "
                    f"the first is {shortened(here[absent[0]])}: leave them out"
                )

    # ---- learn and re-partition ----------------------------------------------------------------------------------------

    def learn(self, pairs: Sequence[tuple[RawId, RawId]], idempotency_key: str | None) -> Submitted:
        """Accept pairs to learn from. See `Coordinator.learn`."""
        if not len(pairs):
            raise RequestError("pairs is empty: name at least one (user id, item id)")
        key_hash = self._desk.key_hash(idempotency_key)
        with self._serving.lock:
            self.excise()  # so that a pair under erasure counts as absent, and can be learned again
            named = Learning(tuple(dict.fromkeys(Learning(tuple(pairs)).named)))
            row = self._ledger.recorded(key_hash, named)
            if row is None:
                new = self._new_pairs(named.named)
                (row,) = self._record([Entry(_new_name(), Learning(new), None, key_hash)], {})
        self.excise()
        return self._submitted([row])[0]

    def _new_pairs(self, named: Sequence[Pair]) -> tuple[Pair, ...]:
        """The pairs that are neither stored nor waiting, and that a fit would not hold out for a test.

        Raises:
            RequestError: no pair is left, or a new id has the key of another one.
        """
        snapshot, config = self._serving.snapshot, self._serving.config
        waiting = Backlog.of_learnings(self._ledger).to_come()
        # Refuses an id whose key belongs to another id. Afterwards equal keys mean equal ids.
        for vocabulary, side in ((snapshot.users, 0), (snapshot.items, 1)):
            vocabulary.extended(pair[side] for pair in (*waiting, *named))
        keys = KeyedPairs.of([(snapshot.users.key_of(user), snapshot.items.key_of(item)) for user, item in named])
        known = snapshot.has(keys)
        test, _ = set_of(keys.users, keys.items, config.data, config.seed)
        new = [pair for pair, is_out in zip(named, known | test, strict=True) if not is_out and pair not in waiting]
        if not new:
            held = " or held out for the test by data.test_share" if (test & ~known).any() else ""
            raise RequestError(f"all of the {len(named)} pairs are known already{held}: there is nothing to learn")
        return tuple(new)

    def repartition(self, changes: Sequence[str], idempotency_key: str | None) -> Submitted:
        """Accept a re-partition. See `Coordinator.repartition`."""
        key_hash = self._desk.key_hash(idempotency_key)
        asked = Repartition(tuple(changes))
        with self._serving.lock:
            config = self._serving.loaded.manifest.config
            row = self._ledger.recorded(key_hash, asked)
            if row is None:
                waiting = [row.work for row in self._ledger.unfinished() if isinstance(row.work, Repartition)]
                settings_with(self._ledger, config, [change for work in [*waiting, asked] for change in work.changes])
                (row,) = self._record([Entry(_new_name(), asked, None, key_hash)], {})
        self.excise()
        return self._submitted([row])[0]

    # ---- record and excise ---------------------------------------------------------------------------------------------

    def _record(self, entries: Sequence[Entry], amended: Mapping[RequestId, Learning]) -> list[RequestRow]:
        if not entries:
            return []
        desk = self._desk
        try:
            rows = self._ledger.receive(desk.epoch, entries, desk.clock(), desk.max_pending, amended)
        except QueueFullError as error:
            seconds = float(math.ceil(max(1.0, desk.predicted_seconds())))
            raise QueueFullError(error.waiting, error.offered, error.limit, seconds) from None
        desk.on_step("received", rows)
        return rows

    def excise(self) -> None:
        """Remove the data of received requests from the served model; then record that."""
        with self._serving.lock:
            received = self._ledger.unfinished(RequestState.RECEIVED)
            if received:
                # Waiting learnings are included because these requests may have shortened them.
                learnings = self._ledger.unfinished(kind=Learning.kind)
                self._serving.leave_out(self._serving.change.with_([*learnings, *received]))
                self._ledger.excised([row.request_id for row in received], self._desk.clock())
                self._desk.on_step("excised", received)

    @contextmanager
    def _accepting(self) -> Iterator[None]:
        """Record requests within. Then wait for other arrivals, so that one excision covers all of them."""
        with self._arrivals:
            self._arriving += 1
        try:
            with self._serving.lock:
                yield
        finally:
            with self._arrivals:
                self._arriving -= 1
                self._arrivals.notify_all()
        self.let_arrive()

    def let_arrive(self) -> None:
        """Wait briefly until all requests that are being submitted are recorded."""
        with self._arrivals:
            self._arrivals.wait_for(lambda: not self._arriving, _ARRIVAL_SECONDS)

    def _submitted(self, rows: Sequence[RequestRow]) -> list[Submitted]:
        states = self._ledger.states([row.request_id for row in rows])
        return [Submitted(row.request_id, states[row.request_id], row.salt) for row in rows]


class _ToCome:
    """The pairs that wait to be learned, with sets of their ids."""

    def __init__(self, backlog: Backlog) -> None:
        self.pairs = backlog.to_come()
        self.users = frozenset(user for user, _ in self.pairs)
        self.items = frozenset(item for _, item in self.pairs)


def _new_name() -> RequestId:
    return RequestId(secrets.token_hex(16))


def _reason(error: InputError) -> str:
    return error.problem if isinstance(error, RequestError) else str(error)
