"""The record of everything that was promised: requests, generations, and who may write.

Every method is one transaction of the database (database.py), and of all programs' transactions one runs at a time. What a
finished request was about is no longer in it.
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
"""The states of what is still to be carried out without anybody's doing."""


@dataclass(frozen=True)
class Entry:
    """What is to be recorded.

    Attributes:
        request_id: its name.
        work: what it asks for.
        salt: keys what its receipt says of the data; None where there will be no receipt.
        key_hash: of the idempotency key; None where none was given.
        work_hash: of the key and of what was asked under it.
        priority: above 0: is not to wait for others.
    """

    request_id: RequestId
    work: Work
    salt: str | None = None
    key_hash: str | None = None
    work_hash: str | None = None
    priority: int = 0


@dataclass(frozen=True)
class RequestRow:
    """A request as the ledger has it; `work` and `salt` are None once it is finished."""

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
    """The current generation, the chain, and what the deployment last said of both; from one reading."""

    current: GenerationRow | None
    links: list[Link]
    standing: Standing | None


class Ledger(Chain):
    """One deployment's ledger. What writes raises `StaleEpochError` once another coordinator has begun an epoch."""

    # ---- generations ---------------------------------------------------------------------------------------------------

    def current(self) -> GenerationRow | None:
        """The generation that is served; None before the first fit."""
        return self.attested(links=False).current

    def attested(self, *, links: bool = True) -> Attested:
        """The current generation, the chain (with `links`), and what the deployment last said of both."""
        with self._transaction() as connection:
            row = connection.execute(sa.select(GENERATIONS).order_by(GENERATIONS.c.number.desc()).limit(1)).one_or_none()
            chain = self._links(connection) if links else []
        standing = None if row is None or row.standing is None else Standing.from_json(row.standing)
        return Attested(None if row is None else GenerationRow.of(row), chain, standing)

    @staticmethod
    def current_digest(connection: Connection) -> str | None:
        """Digest of the generation that is served, within a transaction such as `in_force`; None before the first fit."""
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
        """Make a generation current, with the unfinished receipts of the requests that it carries out; all or nothing.

        Args:
            generation: the generation.
            receipts: of those of the requests that get one.
            requests: all that it carries out.
            notes: by name, in place of what stands there; see `note`.
            signer: signs that this generation is current.
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
        """Record requests, all or none; from here on they cannot be lost. A known key gives the request recorded under it.

        Args:
            entries: the requests.
            at: the time.
            max_pending: how many may wait at a time.
            amended: learnings that wait, as they are without what these requests are about.
            lifted: what is taken off the list of what must not be learned again.
            suppressed: what is put on it.

        Raises:
            RequestError: a key belongs to another request.
            QueueFullError: too many would wait.
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
        """The request that was submitted with this key before, finished or not; None where the key is new or not given.

        Raises:
            RequestError: another request was.
        """
        with self._transaction() as connection:
            return self._recorded(connection, key_hash, work_hash)

    def recorded_among(self, asked: Sequence[tuple[str | None, str | None]]) -> list[RequestRow | RequestError | None]:
        """For each (key hash, work hash) what `recorded` gives or raises, from one reading."""
        answers: list[RequestRow | RequestError | None] = []
        with self._transaction() as connection:
            for key_hash, work_hash in asked:
                try:
                    answers.append(self._recorded(connection, key_hash, work_hash))
                except RequestError as error:
                    answers.append(error)
        return answers

    def states(self, requests: Sequence[RequestId]) -> dict[RequestId, RequestState]:
        """Where each of some recorded requests stands now, from one reading."""
        with self._transaction() as connection:
            return {request_id: self._request(connection, request_id).state for request_id in requests}

    @staticmethod
    def _recorded(connection: Connection, key_hash: str | None, work_hash: str | None) -> RequestRow | None:
        if key_hash is None:
            return None
        found = connection.execute(_rows.where(REQUESTS.c.key_hash == key_hash)).one_or_none()
        if found is None:
            return None
        # The hash is all that is left of a finished request, and of a learning that has lost pairs since.
        if found.work_hash != work_hash:
            raise RequestError("the idempotency key belongs to another request: choose a new key")
        return _request_row(found)

    def request(self, request_id: RequestId) -> RequestRow:
        """One request.

        Raises:
            UnknownRequestError: there is none of this id.
        """
        with self._transaction() as connection:
            return self._request(connection, request_id)

    @staticmethod
    def _request(connection: Connection, request_id: RequestId) -> RequestRow:
        if not request_id.isprintable():  # not every database takes such text
            raise UnknownRequestError(request_id)
        row = connection.execute(_rows.where(REQUESTS.c.request_id == request_id)).one_or_none()
        if row is None:
            raise UnknownRequestError(request_id)
        return _request_row(row)

    def unfinished(self, *states: RequestState, kind: str | None = None) -> list[RequestRow]:
        """All requests in these states, or in any that is not final, in the order in which they came; of one kind or of all."""
        in_state = REQUESTS.c.state.in_(states) if states else REQUESTS.c.state.not_in(_FINAL)
        chosen = (in_state,) if kind is None else (in_state, REQUESTS.c.kind == kind)
        with self._transaction() as connection:
            rows = connection.execute(_rows.where(*chosen).order_by(REQUESTS.c.sequence)).all()
        return [_request_row(row) for row in rows]

    def erasures_beyond(self, generation: Generation) -> list[RequestId]:
        """The erasures that are recorded as left out of what is served, and are not part of a generation yet."""
        left_out = REQUESTS.c.state.in_((RequestState.EXCISED, RequestState.ROUTED, RequestState.SET_ASIDE))
        beyond = sa.or_(REQUESTS.c.generation.is_(None), REQUESTS.c.generation > generation)
        chosen = left_out & beyond & REQUESTS.c.kind.in_(_ERASURES)
        with self._transaction() as connection:
            rows = connection.execute(sa.select(REQUESTS.c.request_id).where(chosen).order_by(REQUESTS.c.sequence)).scalars()
            return [RequestId(name) for name in rows]

    def waiting(self) -> list[Waiting]:
        """When each request came that is to be carried out, and how urgent it is; without what it is about."""
        columns = REQUESTS.c.received_at, REQUESTS.c.priority
        chosen = REQUESTS.c.state.in_(WAITING)
        with self._transaction() as connection:
            rows = connection.execute(sa.select(*columns).where(chosen).order_by(REQUESTS.c.sequence)).all()
        return [Waiting(row.received_at, row.priority) for row in rows]

    def oldest_received(self) -> float | None:
        """When the oldest request came that is recorded and not out of what is served yet; None where there is none."""
        oldest = sa.select(sa.func.min(REQUESTS.c.received_at)).where(REQUESTS.c.state == RequestState.RECEIVED)
        with self._transaction() as connection:
            return cast("float | None", connection.execute(oldest).scalar_one())

    def counts(self) -> dict[str, int]:
        """Requests by state, every state named."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(REQUESTS.c.state, sa.func.count().label("n")).group_by(REQUESTS.c.state)).all()
        return {str(state): 0 for state in RequestState} | {row.state: row.n for row in rows}

    def erasures(self, limit: int, *, finished: bool) -> list[RequestRow]:
        """Finished erasures, the newest first, or unfinished ones, the oldest first; without what they are about."""
        untold = [sa.null().label(name) for name in ("payload", "salt")]
        state, kind, sequence = REQUESTS.c.state, REQUESTS.c.kind, REQUESTS.c.sequence
        chosen = kind.in_(_ERASURES) & (state.in_(_FINAL) if finished else state.not_in(_FINAL))
        query = sa.select(REQUESTS, *untold).where(chosen).order_by(sequence.desc() if finished else sequence).limit(limit)
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return [_request_row(row) for row in rows]

    def newest_time(self) -> float | None:
        """The newest time of anything that was recorded; None where nothing was."""
        columns = EPOCHS.c.started_at, GENERATIONS.c.published_at, REQUESTS.c.received_at, REQUESTS.c.excised_at
        with self._transaction() as connection:
            newest = [connection.execute(sa.select(sa.func.max(column))).scalar_one() for column in columns]
            newest += [link.at for link in self._links(connection, last=1)]
        return max((float(at) for at in newest if at is not None), default=None)

    def excised(self, requests: Sequence[RequestId], at: float) -> None:
        """Nothing that is served depends on these any more."""
        self._move(requests, RequestState.RECEIVED, RequestState.EXCISED, excised_at=at)

    def routed(self, requests: Sequence[RequestId]) -> None:
        """These make up the batch that the shards now work on."""
        self._move(requests, RequestState.EXCISED, RequestState.ROUTED)

    def failed(
        self,
        requests: Sequence[RequestId],
        reason: str,
        max_attempts: int,
        amended: Mapping[RequestId, Learning] = MappingProxyType({}),
    ) -> None:
        """Their retraining failed. Several are tried again in two halves, so that those go on that it was not the fault of.

        One alone is tried again, and set aside the `max_attempts`-th time.

        Args:
            requests: the batch.
            reason: for an operator; names no user and no item.
            max_attempts: how often one alone is tried; 0: without end.
            amended: those of them that are learnings, as they are without what was asked to be forgotten since.
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
        """Have a request that was set aside tried again.

        Raises:
            IllegalTransitionError: it was not set aside.
        """
        self._move([request_id], RequestState.SET_ASIDE, RequestState.EXCISED, attempts=0)

    def finish(
        self,
        receipts: Sequence[Receipt],
        signer: Signer | None = None,
        done: Sequence[RequestId] = (),
        suppressed: Sequence[Suppressed] = (),
    ) -> list[Receipt]:
        """Close the requests of a published and purged generation; what they were about leaves the ledger, and the digests of
        the generations before.

        Gives the receipts as they are recorded: the next of the chain, signed where there is a signer. `done` are the requests
        that get none. `suppressed` says until when what must not be learned again stays on the list, unless it was taken back.
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
        """All requests received in [since, until), finished or not, as they came; without what they are about."""
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
        """From the one state that this step starts at: several lead to some, and each has a step of its own."""
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
        DeploymentError: the storage path is no local folder, or nothing is there although it must be.
    """
    folder = store.local_folder
    if folder is None:
        raise DeploymentError(deployment, f"{store.uri} is not a local folder: say where the ledger is in unlearning.ledger")
    file = folder / "ledger.db"
    if not file.exists():
        if must_exist:
            raise DeploymentError(deployment, f"nothing is deployed at {store.uri}: train first, or check the path")
        try:
            private_folder(folder)
        except OSError as error:
            raise DeploymentError(deployment, f"{store.uri} cannot be made a folder ({error}): choose another path") from error
    return sa.URL.create("sqlite", database=str(file))  # not text: the folder's name may hold what a URL escapes
