"""The ledger: the durable record of requests, generations and epochs.

Every method is one transaction of the database (database.py), and only one transaction runs at a time, across all programs.
The ledger no longer holds the data that a finished request was about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import sqlalchemy as sa
from sqlalchemy import Connection

from ray_eraser.errors import DeploymentError, IllegalTransitionError, QueueFullError, RequestError, UnknownRequestError
from ray_eraser.ids import Generation, RequestId
from ray_eraser.store import Store, private_folder
from ray_eraser.unlearning.chain import Chain
from ray_eraser.unlearning.database import EPOCHS, GENERATIONS, REQUESTS, WORKS
from ray_eraser.unlearning.plan import Waiting
from ray_eraser.unlearning.receipt import Link, Receipt, Signer, Standing, chained
from ray_eraser.unlearning.request import RequestState
from ray_eraser.unlearning.suppression import Suppressed, lift, prolong, suppress
from ray_eraser.unlearning.work import Learning, Work, work_from_json

_rows = sa.select(REQUESTS, WORKS.c.payload, WORKS.c.salt).outerjoin(WORKS, WORKS.c.request_id == REQUESTS.c.request_id)


_FINAL = tuple(state for state in RequestState if state.is_final)

_ERASURES = ("user", "item", "pairs")

WAITING = (RequestState.RECEIVED, RequestState.EXCISED, RequestState.ROUTED)
"""The states of unfinished requests that proceed without an operator."""


@dataclass(frozen=True)
class Entry:
    """A request to record.

    Attributes:
        request_id: its name.
        work: the work that it asks for.
        salt: keys the digests in its receipt; None if it gets no receipt.
        key_hash: hash of the idempotency key; None if no key was given.
        work_hash: hash of the key and the work.
        priority: above 0 if the request must not wait for the plan.
    """

    request_id: RequestId
    work: Work
    salt: str | None = None
    key_hash: str | None = None
    work_hash: str | None = None
    priority: int = 0


@dataclass(frozen=True)
class RequestRow:
    """A recorded request. `work` and `salt` are None after it is finished."""

    request_id: RequestId
    state: RequestState
    kind: str
    work: Work | None
    salt: str | None
    priority: int
    received_at: float
    excised_at: float | None
    attempts: int
    reason: str | None
    party: int | None
    generation: Generation | None
    receipt: Receipt | None


@dataclass(frozen=True)
class GenerationRow:
    """A published generation."""

    number: Generation
    digest: str
    published_at: float
    to_purge: tuple[str, ...]

    @classmethod
    def of(cls, row: Any) -> GenerationRow:
        return cls(Generation(row.number), row.digest, row.published_at, tuple(json.loads(row.to_purge)))


class Attested(NamedTuple):
    """The current generation, the chain, and the deployment's last statement about both, from one transaction."""

    current: GenerationRow | None
    links: list[Link]
    standing: Standing | None


class Ledger(Chain):
    """One deployment's ledger. Writing methods raise `StaleEpochError` after another coordinator has begun an epoch."""

    # ---- generations ---------------------------------------------------------------------------------------------------

    def current(self) -> GenerationRow | None:
        """The published generation; None before the first fit."""
        return self.attested(links=False).current

    def attested(self, *, links: bool = True) -> Attested:
        """The current generation, the chain (with `links`), and the deployment's last statement about both."""
        with self._transaction() as connection:
            row = connection.execute(sa.select(GENERATIONS).order_by(GENERATIONS.c.number.desc()).limit(1)).one_or_none()
            chain = self._links(connection) if links else []
        standing = None if row is None or row.standing is None else Standing.from_json(row.standing)
        return Attested(None if row is None else GenerationRow.of(row), chain, standing)

    @staticmethod
    def current_digest(connection: Connection) -> str | None:
        """Digest of the published generation, read within an open transaction; None before the first fit."""
        newest = sa.select(GENERATIONS.c.digest).order_by(GENERATIONS.c.number.desc()).limit(1)
        return connection.execute(newest).scalar_one_or_none()

    def publish(
        self,
        generation: GenerationRow,
        receipts: Mapping[RequestId, Receipt],
        requests: Sequence[RequestId],
        notes: Mapping[str, str] = MappingProxyType({}),
        signer: Signer | None = None,
    ) -> None:
        """Make a generation current, and record the unfinished receipts of its requests; all or nothing.

        Args:
            generation: the generation.
            receipts: the unfinished receipts, by request. A request that erases nothing has none.
            requests: all requests that the generation carries out.
            notes: by name; each replaces the note of that name.
            signer: signs the statement that this generation is current.
        """
        with self.in_force() as connection:
            values = {
                "number": generation.number,
                "digest": generation.digest,
                "published_at": generation.published_at,
                "to_purge": json.dumps(generation.to_purge),
            }
            connection.execute(GENERATIONS.insert().values(**values))
            for request_id in requests:
                receipt = json.dumps(receipts[request_id].to_dict()) if request_id in receipts else None
                named = REQUESTS.c.request_id == request_id
                connection.execute(REQUESTS.update().where(named).values(generation=generation.number, receipt=receipt))
            for name, text in notes.items():
                self._put_note(connection, name, text)
            self._attest(connection, signer)

    # ---- requests ------------------------------------------------------------------------------------------------------

    def receive(
        self,
        entries: Sequence[Entry],
        at: float,
        max_pending: int,
        amended: Mapping[RequestId, Learning] = MappingProxyType({}),
        lifted: Sequence[str] = (),
        suppressed: Sequence[Suppressed] = (),
    ) -> list[RequestRow]:
        """Record requests durably, all or none. For a known key, return the request recorded under it.

        Args:
            entries: the requests.
            at: the time.
            max_pending: the most unfinished requests.
            amended: the waiting learnings that lose pairs to these requests, without these pairs.
            lifted: subjects to take off the suppression list.
            suppressed: subjects to put on the suppression list.

        Raises:
            RequestError: a key belongs to another request.
            QueueFullError: too many requests would wait.
        """
        with self.in_force() as connection:
            waiting = connection.execute(sa.select(sa.func.count()).where(REQUESTS.c.state.not_in(_FINAL))).scalar_one()
            rows, n_new = [], 0
            for entry in entries:
                known = self._recorded(connection, entry.key_hash, entry.work_hash)
                rows.append(entry.request_id if known is None else known.request_id)
                if known is not None:
                    continue
                n_new += 1
                values = {
                    "request_id": entry.request_id,
                    "key_hash": entry.key_hash,
                    "work_hash": entry.work_hash,
                    "kind": entry.work.kind,
                    "state": RequestState.RECEIVED,
                    "priority": entry.priority,
                    "received_at": at,
                    "attempts": 0,
                }
                connection.execute(REQUESTS.insert().values(**values))
                secret = {"request_id": entry.request_id, "payload": entry.work.to_json(), "salt": entry.salt}
                connection.execute(WORKS.insert().values(**secret))
            if n_new and waiting + n_new > max_pending:
                raise QueueFullError(waiting, n_new, max_pending)
            self._amend(connection, amended)
            lift(connection, lifted)
            suppress(connection, suppressed, at)
            return [self._request(connection, request_id) for request_id in rows]

    @staticmethod
    def _amend(connection: Connection, amended: Mapping[RequestId, Learning]) -> None:
        for request_id, learning in amended.items():
            named = WORKS.c.request_id == request_id
            connection.execute(WORKS.update().where(named).values(payload=learning.to_json()))

    def recorded(self, key_hash: str | None, work_hash: str | None) -> RequestRow | None:
        """The request recorded under this key, finished or not; None if the key is new or not given.

        Raises:
            RequestError: the key belongs to another request.
        """
        with self._transaction() as connection:
            return self._recorded(connection, key_hash, work_hash)

    def recorded_among(self, asked: Sequence[tuple[str | None, str | None]]) -> list[RequestRow | RequestError | None]:
        """For each (key hash, work hash), the result or error of `recorded`, from one transaction."""
        answers: list[RequestRow | RequestError | None] = []
        with self._transaction() as connection:
            for key_hash, work_hash in asked:
                try:
                    answers.append(self._recorded(connection, key_hash, work_hash))
                except RequestError as error:
                    answers.append(error)
        return answers

    def states(self, requests: Sequence[RequestId]) -> dict[RequestId, RequestState]:
        """The current states of recorded requests, from one transaction."""
        with self._transaction() as connection:
            return {request_id: self._request(connection, request_id).state for request_id in requests}

    @staticmethod
    def _recorded(connection: Connection, key_hash: str | None, work_hash: str | None) -> RequestRow | None:
        if key_hash is None:
            return None
        found = connection.execute(_rows.where(REQUESTS.c.key_hash == key_hash)).one_or_none()
        if found is None:
            return None
        # Compare hashes: a finished request has no payload left, and a learning may have lost pairs since.
        if found.work_hash != work_hash:
            raise RequestError("the idempotency key belongs to another request: choose a new key")
        return _request_row(found)

    def request(self, request_id: RequestId) -> RequestRow:
        """The request with this id.

        Raises:
            UnknownRequestError: no request has this id.
        """
        with self._transaction() as connection:
            return self._request(connection, request_id)

    @staticmethod
    def _request(connection: Connection, request_id: RequestId) -> RequestRow:
        if not request_id.isprintable():  # some databases reject such text
            raise UnknownRequestError(request_id)
        row = connection.execute(_rows.where(REQUESTS.c.request_id == request_id)).one_or_none()
        if row is None:
            raise UnknownRequestError(request_id)
        return _request_row(row)

    def unfinished(self, *states: RequestState, kind: str | None = None) -> list[RequestRow]:
        """The requests of one kind, or of all, in these states, or in any unfinished state; in the order of asking."""
        in_state = REQUESTS.c.state.in_(states) if states else REQUESTS.c.state.not_in(_FINAL)
        chosen = (in_state,) if kind is None else (in_state, REQUESTS.c.kind == kind)
        with self._transaction() as connection:
            rows = connection.execute(_rows.where(*chosen).order_by(REQUESTS.c.sequence)).all()
        return [_request_row(row) for row in rows]

    def erasures_beyond(self, generation: Generation) -> list[RequestId]:
        """The erasures whose data is recorded as no longer served and that are in no generation up to this one."""
        left_out = REQUESTS.c.state.in_((RequestState.EXCISED, RequestState.ROUTED, RequestState.SET_ASIDE))
        beyond = sa.or_(REQUESTS.c.generation.is_(None), REQUESTS.c.generation > generation)
        chosen = left_out & beyond & REQUESTS.c.kind.in_(_ERASURES)
        with self._transaction() as connection:
            rows = connection.execute(sa.select(REQUESTS.c.request_id).where(chosen).order_by(REQUESTS.c.sequence)).scalars()
            return [RequestId(name) for name in rows]

    def waiting(self) -> list[Waiting]:
        """The receiving time and priority of every waiting request, without its content."""
        columns = REQUESTS.c.received_at, REQUESTS.c.priority
        chosen = REQUESTS.c.state.in_(WAITING)
        with self._transaction() as connection:
            rows = connection.execute(sa.select(*columns).where(chosen).order_by(REQUESTS.c.sequence)).all()
        return [Waiting(row.received_at, row.priority) for row in rows]

    def oldest_received(self) -> float | None:
        """Receiving time of the oldest recorded request whose data is still served; None if there is none."""
        oldest = sa.select(sa.func.min(REQUESTS.c.received_at)).where(REQUESTS.c.state == RequestState.RECEIVED)
        with self._transaction() as connection:
            return cast("float | None", connection.execute(oldest).scalar_one())

    def counts(self) -> dict[str, int]:
        """Number of requests in every state."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(REQUESTS.c.state, sa.func.count().label("n")).group_by(REQUESTS.c.state)).all()
        return {str(state): 0 for state in RequestState} | {row.state: row.n for row in rows}

    def erasures(self, limit: int, *, finished: bool) -> list[RequestRow]:
        """Finished erasures, newest first, or unfinished ones, oldest first, without their content."""
        untold = [sa.null().label(name) for name in ("payload", "salt")]
        state, kind, sequence = REQUESTS.c.state, REQUESTS.c.kind, REQUESTS.c.sequence
        chosen = kind.in_(_ERASURES) & (state.in_(_FINAL) if finished else state.not_in(_FINAL))
        query = sa.select(REQUESTS, *untold).where(chosen).order_by(sequence.desc() if finished else sequence).limit(limit)
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return [_request_row(row) for row in rows]

    def newest_time(self) -> float | None:
        """The newest recorded time; None if nothing is recorded."""
        columns = EPOCHS.c.started_at, GENERATIONS.c.published_at, REQUESTS.c.received_at, REQUESTS.c.excised_at
        with self._transaction() as connection:
            newest = [connection.execute(sa.select(sa.func.max(column))).scalar_one() for column in columns]
            newest += [link.at for link in self._links(connection, last=1)]
        return max((float(at) for at in newest if at is not None), default=None)

    def excised(self, requests: Sequence[RequestId], at: float) -> None:
        """Record that the served model no longer depends on these requests' data."""
        self._move(requests, RequestState.RECEIVED, RequestState.EXCISED, excised_at=at)

    def routed(self, requests: Sequence[RequestId]) -> None:
        """Record that these requests are the batch in training."""
        self._move(requests, RequestState.EXCISED, RequestState.ROUTED)

    def failed(
        self,
        requests: Sequence[RequestId],
        reason: str,
        max_attempts: int,
        amended: Mapping[RequestId, Learning] = MappingProxyType({}),
    ) -> None:
        """Record that the retraining of a batch failed. Several requests are split in half, so that blameless requests proceed.

        A single request is tried again, and set aside after `max_attempts` failures.

        Args:
            requests: the batch.
            reason: text for an operator; names no user and no item.
            max_attempts: how often a single request is tried; 0 for no limit.
            amended: the learnings in the batch that lost pairs to later requests, without these pairs.
        """
        with self.in_force() as connection:
            self._amend(connection, amended)
            last = connection.execute(sa.select(sa.func.max(REQUESTS.c.party))).scalar_one() or 0
            halves = [requests[: len(requests) // 2], requests[len(requests) // 2 :]]
            for party, half in enumerate(halves, last + 1):
                for request_id in half:
                    attempts = self._request(connection, request_id).attempts + 1 if len(requests) == 1 else 0
                    given_up = len(requests) == 1 and 0 < max_attempts <= attempts
                    state = RequestState.SET_ASIDE if given_up else RequestState.EXCISED
                    self._move_one(
                        connection, request_id, RequestState.ROUTED, state, attempts=attempts, reason=reason, party=party
                    )

    def retry(self, request_id: RequestId) -> None:
        """Let a request that was set aside be tried again.

        Raises:
            UnknownRequestError: no request has this id.
            IllegalTransitionError: the request was not set aside.
        """
        with self.in_force() as connection:
            self._request(connection, request_id)
            self._move_one(connection, request_id, RequestState.SET_ASIDE, RequestState.EXCISED, attempts=0)

    def finish(
        self,
        receipts: Sequence[Receipt],
        signer: Signer | None = None,
        done: Sequence[RequestId] = (),
        suppressed: Sequence[Suppressed] = (),
    ) -> list[Receipt]:
        """Finish the requests of a published and purged generation.

        Deletes the content of the requests and the digests of earlier generations from the ledger.

        Args:
            receipts: the unfinished receipts.
            signer: signs the receipts, if given.
            done: the requests without a receipt.
            suppressed: subjects to keep on the suppression list for longer. Subjects taken off the list stay off.

        Returns:
            The receipts as recorded: the next links of the chain.
        """
        with self.in_force() as connection:
            prolong(connection, suppressed)
            links = chained(receipts, self._head(connection), signer, self.name)
            for receipt in links:
                left = {"receipt": json.dumps(receipt.to_dict()), "number": receipt.number}
                self._move_one(connection, receipt.request_id, RequestState.ROUTED, RequestState.ERASED, **left)
            for request_id in done:
                self._move_one(connection, request_id, RequestState.ROUTED, RequestState.DONE)
            for request_id in [*(receipt.request_id for receipt in links), *done]:
                connection.execute(WORKS.delete().where(WORKS.c.request_id == request_id))
            newest = sa.select(sa.func.max(GENERATIONS.c.number)).scalar_subquery()
            connection.execute(GENERATIONS.update().values(to_purge="[]"))
            connection.execute(GENERATIONS.update().where(GENERATIONS.c.number < newest).values(digest="", standing=None))
            self._attest(connection, signer)
        self._wipe()
        return links

    def record(self, since: float, until: float) -> list[RequestRow]:
        """All requests received in [since, until), finished or not, in the order of asking, without their content."""
        untold = [sa.null().label(name) for name in ("payload", "salt")]
        within = (REQUESTS.c.received_at >= since) & (REQUESTS.c.received_at < until)
        with self._transaction() as connection:
            rows = connection.execute(sa.select(REQUESTS, *untold).where(within).order_by(REQUESTS.c.sequence)).all()
        return [_request_row(row) for row in rows]

    def _move(self, requests: Sequence[RequestId], source: RequestState, state: RequestState, **values: Any) -> None:
        with self.in_force() as connection:
            for request_id in requests:
                self._move_one(connection, request_id, source, state, **values)

    @staticmethod
    def _move_one(
        connection: Connection, request_id: RequestId, source: RequestState, state: RequestState, **values: Any
    ) -> None:
        """Move a request from `source` to `state`. Refuse a request in any other state, even one that may move to `state`."""
        named = REQUESTS.c.request_id == request_id
        present = RequestState(connection.execute(sa.select(REQUESTS.c.state).where(named)).scalar_one())
        if present is not source:
            raise IllegalTransitionError(request_id, present, state)
        present.check(request_id, state)
        connection.execute(REQUESTS.update().where(named).values(state=state, **values))


def _request_row(row: Any) -> RequestRow:
    return RequestRow(
        RequestId(row.request_id),
        RequestState(row.state),
        row.kind,
        None if row.payload is None else work_from_json(row.payload),
        row.salt,
        row.priority,
        row.received_at,
        row.excised_at,
        row.attempts,
        row.reason,
        row.party,
        None if row.generation is None else Generation(row.generation),
        None if row.receipt is None else Receipt.from_dict(json.loads(row.receipt)),
    )


def default_ledger(store: Store, deployment: str, *, must_exist: bool) -> sa.URL:
    """The URL of the SQLite ledger under a local storage path.

    Raises:
        DeploymentError: the storage path is not a local folder, or the ledger must exist and does not.
    """
    folder = store.local_folder
    if folder is None:
        raise DeploymentError(deployment, f"{store.uri} is not a local folder: set unlearning.ledger to a database URL")
    file = folder / "ledger.db"
    if not file.exists():
        if must_exist:
            raise DeploymentError(deployment, f"nothing is deployed at {store.uri}: train first, or check the path")
        try:
            private_folder(folder)
        except OSError as error:
            raise DeploymentError(deployment, f"folder {store.uri} cannot be made ({error}): choose another path") from error
    return sa.URL.create("sqlite", database=str(file))  # not a string: the path may need escaping in a URL
