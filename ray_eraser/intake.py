"""Accepts requests: checks them, records them in the ledger, and removes their data from the served model before it returns."""

from __future__ import annotations

import logging
import math
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ray_eraser.backlog import Backlog
from ray_eraser.building import OnStep
from ray_eraser.config import DAY, UnlearningConfig
from ray_eraser.data.frames import Pairs, pairs_of
from ray_eraser.data.keyed import KeyedPairs
from ray_eraser.data.splits import set_of
from ray_eraser.errors import InputError, QueueFullError, RequestError, StoreError
from ray_eraser.ids import RequestId
from ray_eraser.logs import named_safely
from ray_eraser.notebook import html_table
from ray_eraser.opening import settings_with
from ray_eraser.serving import Serving
from ray_eraser.unlearning.idempotency import KeyHash
from ray_eraser.unlearning.ledger import Entry, Ledger, RequestRow
from ray_eraser.unlearning.present import Present
from ray_eraser.unlearning.request import Refusal, RequestState, Submission, UnlearningRequest
from ray_eraser.unlearning.suppression import Sifted, Suppressed, sifted, subjects_of
from ray_eraser.unlearning.work import Learning, Repartition, Work

log = logging.getLogger(__name__)

_ARRIVAL_SECONDS = 1.0
"""The longest that an excision waits for other requests to be recorded."""

Pair = tuple[str, str]


@dataclass(frozen=True)
class Submitted:
    """The answer to a submission.

    Attributes:
        request_id: the request's name.
        state: the request's state.
        salt: lets the asker prove later what the receipt is about.
        here_again: this submission repeats an erasure that is finished, and some of its data was learned again since then. The
            data is not erased again: submit it with a new key.
        suppressed: of a learning, the number of pairs that must not be learned again. They were left out, or `take_back` took
            them back. See `unlearning.suppress_days`.
        pairs_absent: of a request for pairs, the number of distinct pairs that are not stored: never learned, held out for the
            test, or erased already. They were passed over. 0 for other requests; None for a repeated submission of pairs,
            because the first answer gave the count.
    """

    request_id: RequestId
    state: RequestState
    salt: str | None
    here_again: bool = False
    suppressed: int = 0
    pairs_absent: int | None = 0

    def _repr_html_(self) -> str:
        # Without the salt: notebooks are shared, and the salt shows which request a receipt is about.
        return html_table(
            f"Request {self.request_id}",
            {
                "state": self.state,
                "pairs passed over": self.pairs_absent or None,
                "pairs not learned again": self.suppressed or None,
                "here again": "yes: submit it with a new key" if self.here_again else None,
            },
        )


@dataclass(frozen=True)
class Desk:
    """The parts of a deployment that `Intake` uses, besides `Serving`.

    Attributes:
        ledger: where requests are recorded.
        settings: how many requests may wait, and for how long erased data must not be learned again.
        clock: seconds since 1970.
        on_step: see `OnStep`.
        predicted_seconds: predicts the duration of the next run.
        key_hash: hashes idempotency keys, and the names on the suppression list.
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
            checked = self._accept([submission])
        (answer,) = checked.answers().values()
        if isinstance(answer, InputError):
            raise answer
        self.excise()
        return self._submitted([answer], [submission.request])[0]

    def submit_many(self, submissions: Sequence[Submission], *, partial: bool) -> list[Submitted | Refusal]:
        """Accept many requests to forget. See `Coordinator.submit_many`."""
        with self._accepting():
            checked = self._accept(submissions, partial=partial)
        answers = checked.answers()
        rows = {number: submission.row or number + 1 for number, submission in enumerate(submissions)}
        for number, answer in sorted(answers.items()):
            if isinstance(answer, InputError) and not partial:
                raise RequestError(f"row {rows[number]}: {answer.reason}") from answer
        self.excise()
        in_order = [answers[number] for number in rows]
        accepted = {number: answer for number, answer in answers.items() if not isinstance(answer, InputError)}
        numbers = sorted(accepted)
        submitted = iter(self._submitted([accepted[n] for n in numbers], [submissions[n].request for n in numbers]))
        return [
            Refusal(rows[number], answer.reason) if isinstance(answer, InputError) else next(submitted)
            for number, answer in enumerate(in_order)
        ]

    def _accept(self, submissions: Sequence[Submission], *, partial: bool = False) -> _Checked:
        """Check all submissions against one state, then record them in one transaction.

        Unless `partial`, one error keeps all new submissions from being recorded, and the new submissions have no answer.
        """
        hash_of = self._desk.key_hash
        hashes = [hash_of(submission.idempotency_key) for submission in submissions]
        bound = [hash_of.bound(submission.idempotency_key, submission.request) for submission in submissions]
        asked = [submission.request for submission in submissions]
        known = self._ledger.recorded_among(list(zip(hashes, bound, strict=True)))
        backlog = Backlog.of_learnings(self._ledger)
        present = self._present(backlog)
        by_key: dict[str, UnlearningRequest] = {}
        answers: dict[int, _Accepted | InputError] = {}
        absent: dict[int, int] = {}
        nothing_here: dict[int, UnlearningRequest] = {}
        for number, (found, hashed, request) in enumerate(zip(known, hashes, asked, strict=True)):
            if isinstance(found, RequestError):
                answers[number] = found
            elif hashed is not None and by_key.get(hashed, request) != request:
                answers[number] = RequestError("the idempotency key belongs to another request: choose a new key")
            elif found is not None:
                answers[number] = _Accepted(found, None if request.pairs else 0)
            elif (n_absent := present.absent(request)) is None:
                nothing_here[number] = request
            else:
                absent[number] = n_absent
            if hashed is not None and (number in absent or isinstance(answers.get(number), _Accepted)):
                by_key[hashed] = request
        new = list(absent)
        has_error = bool(nothing_here) or any(isinstance(answer, InputError) for answer in answers.values())
        if partial or not has_error:
            entries = [
                Entry(_new_name(), asked[n], secrets.token_hex(32), hashes[n], bound[n], submissions[n].priority) for n in new
            ]
            fresh = [asked[n] for n in new]
            rows = self._record(entries, backlog.amended_by(fresh), suppressed=self.suppressed(fresh, self._desk.clock()))
            answers |= {number: _Accepted(row, absent[number]) for number, row in zip(new, rows, strict=True)}
        return _Checked(answers, nothing_here, present)

    def _present(self, backlog: Backlog) -> Present:
        """The data that requests may name now, given the learnings that wait."""
        snapshot = self._serving.snapshot
        return Present(snapshot.users, snapshot.items, snapshot.shards, backlog.to_come())

    # ---- learn and re-partition ----------------------------------------------------------------------------------------

    def learn(self, pairs: Pairs, idempotency_key: str | None, *, take_back: bool = False) -> Submitted:
        """Accept pairs to learn from. See `Coordinator.learn`."""
        given = UnlearningRequest(pairs=pairs_of(pairs)).named_pairs
        desk = self._desk
        key_hash = desk.key_hash(idempotency_key)
        with self._serving.lock:
            self.excise()  # a pair under erasure then counts as absent, and can be learned again
            named = Learning(tuple(dict.fromkeys(given)))
            bound = desk.key_hash.bound(idempotency_key, named, *(["take back"] if take_back else []))
            row = self._ledger.recorded(key_hash, bound)
            listed = sifted(named.named, self._ledger, desk.key_hash.subject, desk.clock())
            if row is None:
                new = self._new_pairs(named.named if take_back else self._allowed(listed))
                entry = Entry(_new_name(), Learning(new), None, key_hash, bound)
                (row,) = self._record([entry], {}, lifted=listed.subjects if take_back else ())
        self.excise()
        return replace(self._submitted([_Accepted(row)])[0], suppressed=len(listed.refused))

    @staticmethod
    def _allowed(listed: Sifted) -> tuple[Pair, ...]:
        """The pairs that are not on the suppression list.

        Raises:
            RequestError: all pairs are on it.
        """
        if not listed.allowed:
            raise RequestError(
                f"all of the {len(listed.refused)} pairs were erased and must not be learned again (unlearning.suppress_days): "
                "leave them out, or learn them all the same (take_back, ray-eraser learn --take-back)"
            )
        return listed.allowed

    def _new_pairs(self, named: Sequence[Pair]) -> tuple[Pair, ...]:
        """The pairs that are neither stored nor waiting, and that a fit would not hold out for a test.

        Raises:
            RequestError: no pair is left, or a new id has the key of another one.
        """
        snapshot, config = self._serving.snapshot, self._serving.config
        waiting = Backlog.of_learnings(self._ledger).to_come()
        # Refuses an id whose key belongs to another id. Afterwards, equal keys mean equal ids.
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
        return self._submitted([_Accepted(row)])[0]

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

    def suppressed(self, works: Iterable[Work | None], at: float) -> list[Suppressed]:
        """The users, items and pairs that erasures among some requests keep from being learned again, counted from `at`."""
        days = self._desk.settings.suppress_days
        erased = [work for work in works if isinstance(work, UnlearningRequest)]
        return subjects_of(erased, self._desk.key_hash.subject, at + days * DAY) if days else []

    def excise(self) -> None:
        """Remove the data of accepted requests from the served model; then record that.

        Even if this fails, nothing is served from now on to or about the users, items and pairs of the requests.
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
        """Erasures that the ledger calls excised, but whose data is served. There are none, unless the ledger was changed."""
        if self._serving.is_empty:
            return []
        before = self._serving.change
        names = self._ledger.erasures_beyond(before.before.number)
        return [self._ledger.request(name) for name in names if name not in before.erasures]

    @contextmanager
    def _accepting(self) -> Iterator[None]:
        """Record requests in this block. Then wait for other arrivals, so that one excision covers all of them."""
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

    def _submitted(self, accepted: Sequence[_Accepted], asked: Sequence[UnlearningRequest] = ()) -> list[Submitted]:
        rows = [each.row for each in accepted]
        states = self._ledger.states([row.request_id for row in rows])
        again = set[RequestId]()
        if asked and any(row.state is RequestState.ERASED for row in rows):
            # Some data of a finished erasure may have been learned again. The same key does not erase it twice.
            present = self._present(Backlog.of_learnings(self._ledger))
            again = {
                row.request_id
                for row, request in zip(rows, asked, strict=True)
                if row.state is RequestState.ERASED and present.absent(request) is not None
            }
        return [
            Submitted(
                row.request_id,
                states[row.request_id],
                row.salt,
                here_again=row.request_id in again,
                pairs_absent=each.pairs_absent,
            )
            for each, row in zip(accepted, rows, strict=True)
        ]


@dataclass(frozen=True)
class _Accepted:
    """A recorded request, and how many of its pairs were absent; None if it was recorded earlier, under the same key."""

    row: RequestRow
    pairs_absent: int | None = 0


@dataclass(frozen=True)
class _Checked:
    """Submissions by position: answered ones, and ones of which nothing is here.

    A refusal names other spellings of its ids. Finding them takes a while, so it waits until nothing is locked.
    """

    answered: Mapping[int, _Accepted | InputError]
    nothing_here: Mapping[int, UnlearningRequest]
    present: Present

    def answers(self) -> dict[int, _Accepted | InputError]:
        """The recorded request (now or earlier, under the same key), or the error."""
        return {**self.answered, **self.present.refusals(self.nothing_here)}


def _new_name() -> RequestId:
    return RequestId(secrets.token_hex(16))
