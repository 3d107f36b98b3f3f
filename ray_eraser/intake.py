"""Accepts requests: checks them, records them in the ledger, and removes their data from the served model before returning."""

from __future__ import annotations

import logging
import math
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from ray_eraser.backlog import Backlog
from ray_eraser.building import OnStep
from ray_eraser.config import DAY, UnlearningConfig
from ray_eraser.data.keyed import KeyedPairs
from ray_eraser.data.splits import set_of
from ray_eraser.errors import InputError, QueueFullError, RequestError, StoreError, shortened
from ray_eraser.ids import RawId, RequestId
from ray_eraser.logs import named_safely
from ray_eraser.opening import settings_with
from ray_eraser.serving import Serving
from ray_eraser.unlearning.idempotency import KeyHash
from ray_eraser.unlearning.ledger import Entry, Ledger, RequestRow
from ray_eraser.unlearning.request import Refusal, RequestState, Submission, UnlearningRequest
from ray_eraser.unlearning.suppression import Sifted, Suppressed, sifted, subjects_of
from ray_eraser.unlearning.work import Learning, Repartition

log = logging.getLogger(__name__)

_ARRIVAL_SECONDS = 1.0
"""The longest that an excision waits for other requests to be recorded."""

Pair = tuple[str, str]


@dataclass(frozen=True)
class Submitted:
    """The answer to a submission.

    Attributes:
        request_id, state: its name, and where it stands.
        salt: lets the asker prove later what the receipt is about.
        here_again: this is a repeated submission of an erasure that is finished, and something of it was learned again
            since. It is not erased again: that takes a new key.
        suppressed: of a learning, how many pairs are on the list of what must not be learned again. They were left out, or
            were taken back by `take_back`. See `unlearning.suppress_days`.
    """

    request_id: RequestId
    state: RequestState
    salt: str | None
    here_again: bool = False
    suppressed: int = 0


@dataclass(frozen=True)
class Desk:
    """The parts of a deployment that `Intake` uses, besides `Serving`.

    Attributes:
        ledger: where requests are recorded.
        settings: how many requests may wait at a time, and what must not be learned again.
        clock: seconds since 1970.
        on_step: see `OnStep`.
        predicted_seconds: predicts the duration of the next run.
        key_hash: hashes idempotency keys, and what must not be learned again.
        heal: restores damaged files of the published generation.
    """

    ledger: Ledger
    settings: UnlearningConfig
    clock: Callable[[], float]
    on_step: OnStep
    predicted_seconds: Callable[[], float]
    key_hash: KeyHash
    heal: Callable[[], object]


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
        return self._submitted([answer], [submission.request])[0]

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
        accepted = {number: answer for number, answer in answers.items() if not isinstance(answer, InputError)}
        numbers = sorted(accepted)
        submitted = iter(self._submitted([accepted[n] for n in numbers], [submissions[n].request for n in numbers]))
        return [
            Refusal(rows[number], _reason(answer)) if isinstance(answer, InputError) else next(submitted)
            for number, answer in enumerate(in_order)
        ]

    def _accept(self, submissions: Sequence[Submission], *, partial: bool = False) -> dict[int, RequestRow | InputError]:
        """Check all submissions against one reading of the state, then record them in one transaction.

        Returns, by position, the recorded row (now or earlier, under the same key) or the error. Unless `partial`, one error
        keeps all new submissions from being recorded, and these have no entry.
        """
        hash_of = self._desk.key_hash
        hashes = [hash_of(submission.idempotency_key) for submission in submissions]
        bound = [hash_of.bound(submission.idempotency_key, submission.request) for submission in submissions]
        asked = [submission.request for submission in submissions]
        known = self._ledger.recorded_among(list(zip(hashes, bound, strict=True)))
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
            entries = [
                Entry(_new_name(), asked[n], secrets.token_hex(32), hashes[n], bound[n], submissions[n].priority) for n in new
            ]
            fresh = [asked[n] for n in new]
            rows = self._record(entries, backlog.amended_by(fresh), suppressed=self._suppressed(fresh))
            answers |= zip(new, rows, strict=True)
        return answers

    def _is_here_again(self, row: RequestRow, request: UnlearningRequest, to_come: _ToCome) -> bool:
        """Whether something of a finished erasure was learned again since: the same key does not erase it twice."""
        if row.state is not RequestState.ERASED:
            return False
        parts = [UnlearningRequest(pairs=(pair,)) for pair in request.named_pairs] or [request]
        return any(self._problem(part, to_come) is None for part in parts)

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

    def learn(self, pairs: Sequence[tuple[RawId, RawId]], idempotency_key: str | None, *, take_back: bool = False) -> Submitted:
        """Accept pairs to learn from. See `Coordinator.learn`."""
        if not len(pairs):
            raise RequestError("pairs is empty: name at least one (user id, item id)")
        desk = self._desk
        key_hash = desk.key_hash(idempotency_key)
        with self._serving.lock:
            self.excise()  # so that a pair under erasure counts as absent, and can be learned again
            named = Learning(tuple(dict.fromkeys(Learning(tuple(pairs)).named)))
            bound = desk.key_hash.bound(idempotency_key, named, *(["take back"] if take_back else []))
            row = self._ledger.recorded(key_hash, bound)
            listed = sifted(named.named, self._ledger, desk.key_hash.subject, desk.clock())
            if row is None:
                new = self._new_pairs(named.named if take_back else self._allowed(listed))
                entry = Entry(_new_name(), Learning(new), None, key_hash, bound)
                (row,) = self._record([entry], {}, lifted=listed.subjects if take_back else ())
        self.excise()
        return replace(self._submitted([row])[0], suppressed=len(listed.refused))

    @staticmethod
    def _allowed(listed: Sifted) -> tuple[Pair, ...]:
        """The pairs that are not on the list of what must not be learned again.

        Raises:
            RequestError: all of them are.
        """
        if not listed.allowed:
            raise RequestError(
                f"all of the {len(listed.refused)} pairs were erased and must not be learned again (unlearning.suppress_days): "
                "leave them out, or learn them all the same (take_back, learn.py --take-back)"
            )
        return listed.allowed

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
            bound = self._desk.key_hash.bound(idempotency_key, asked)
            row = self._ledger.recorded(key_hash, bound)
            if row is None:
                waiting = [row.work for row in self._ledger.unfinished() if isinstance(row.work, Repartition)]
                settings_with(self._ledger, config, [change for work in [*waiting, asked] for change in work.changes])
                (row,) = self._record([Entry(_new_name(), asked, None, key_hash, bound)], {})
        self.excise()
        return self._submitted([row])[0]

    # ---- record and excise ---------------------------------------------------------------------------------------------

    def _record(
        self,
        entries: Sequence[Entry],
        amended: Mapping[RequestId, Learning],
        *,
        lifted: Sequence[str] = (),
        suppressed: Sequence[Suppressed] = (),
    ) -> list[RequestRow]:
        if not entries:
            return []
        desk = self._desk
        try:
            rows = self._ledger.receive(entries, desk.clock(), desk.settings.max_pending, amended, lifted, suppressed)
        except QueueFullError as error:
            seconds = float(math.ceil(max(1.0, desk.predicted_seconds())))
            raise QueueFullError(error.waiting, error.offered, error.limit, seconds) from None
        desk.on_step("received", rows)
        return rows

    def _suppressed(self, requests: Sequence[UnlearningRequest]) -> list[Suppressed]:
        """What erasures put on the list of what must not be learned again, from their acceptance on."""
        days = self._desk.settings.suppress_days
        return subjects_of(requests, self._desk.key_hash.subject, self._desk.clock() + days * DAY) if days else []

    def excise(self) -> None:
        """Remove the data of accepted requests from the served model; then record that.

        Whatever fails: from here on, nothing is served to or about what is asked to be forgotten.
        """
        with self._serving.lock:
            received, lost = self._ledger.unfinished(RequestState.RECEIVED), self._not_left_out()
            if received or lost:
                # Waiting learnings are included because these requests may have shortened them.
                learnings = self._ledger.unfinished(kind=Learning.kind)
                change = self._serving.change.with_([*learnings, *lost, *received])
                self._serving.mask(change)
                try:
                    self._serving.leave_out(change)
                except StoreError as error:
                    log.error("a file is damaged and is made again", extra={"reason": named_safely(error)})  # noqa: TRY400 - a traceback names users
                    self._desk.heal()
                    self._serving.leave_out(change)
                self._ledger.excised([row.request_id for row in received], self._desk.clock())
                self._desk.on_step("excised", received)

    def _not_left_out(self) -> list[RequestRow]:
        """Erasures that are recorded as excised, but are in what is served. There are none, unless the record was changed."""
        if self._serving.is_empty:
            return []
        before = self._serving.change
        names = self._ledger.erasures_beyond(before.before.number)
        return [self._ledger.request(name) for name in names if name not in before.erasures]

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

    def _submitted(self, rows: Sequence[RequestRow], asked: Sequence[UnlearningRequest] = ()) -> list[Submitted]:
        states = self._ledger.states([row.request_id for row in rows])
        again = set[RequestId]()
        if asked and any(row.state is RequestState.ERASED for row in rows):
            to_come = _ToCome(Backlog.of_learnings(self._ledger))
            again = {row.request_id for row, of in zip(rows, asked, strict=True) if self._is_here_again(row, of, to_come)}
        return [Submitted(row.request_id, states[row.request_id], row.salt, row.request_id in again) for row in rows]


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
