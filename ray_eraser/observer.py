"""Answers questions about a deployment from its store and its ledger alone, whether or not a coordinator runs it.

An observer writes nothing, begins no epoch and starts no process. Like a coordinator, it leaves out the data of unfinished
requests. It looks at the ledger again when it has an answer, so no answer shows data of a request that was accepted before the
answer was given. It keeps the generation that it read last: close it after use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import sqlalchemy as sa

from ray_eraser.aggregator import AggregationOrder
from ray_eraser.backlog import Backlog
from ray_eraser.config import EraserConfig, UnlearningConfig
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.errors import DeploymentError, InputError, PoolError, RayEraserError, UnknownIdError
from ray_eraser.force import Holder
from ray_eraser.generation import Change, Loaded
from ray_eraser.ids import Generation, RawId, RequestId, ShardId
from ray_eraser.opening import refuse_foreign, unlearning_settings
from ray_eraser.pool import LocalShardPool
from ray_eraser.recommend import Scored, Snapshot
from ray_eraser.served import Served, served_by
from ray_eraser.serving import vectors_of
from ray_eraser.status import Status, is_in, pending, stored_status
from ray_eraser.store import Store
from ray_eraser.unlearning.ledger import GenerationRow, Ledger, default_ledger
from ray_eraser.unlearning.present import Present
from ray_eraser.unlearning.receipt import Receipt
from ray_eraser.unlearning.request import RequestState, UnlearningRequest
from ray_eraser.vectors import Vectors

_T = TypeVar("_T")

_TRIES = 5
_ALL = 2**31 - 1


@dataclass(frozen=True)
class Seen:
    """The state of the ledger behind an answer.

    Attributes:
        digest: of the current generation.
        erasures: the unfinished erasures that the generation does not contain yet.
        published: the current generation in the ledger.
    """

    digest: str
    erasures: frozenset[RequestId]
    published: GenerationRow = field(compare=False)


@dataclass(frozen=True, eq=False)
class View:
    """The published generation without the data of unfinished requests.

    Attributes:
        change: the generation, and the change that the requests make to it.
        config: the settings of the generation.
        snapshot: answers reads.
    """

    change: Change
    config: EraserConfig
    snapshot: Snapshot

    @property
    def served(self) -> Served:
        """The model behind the recommendations."""
        return self.snapshot.served

    @property
    def shards(self) -> Mapping[ShardId, ShardData]:
        """Every shard's remaining interactions."""
        return self.change.rest

    @property
    def generation(self) -> Generation:
        return self.change.before.number

    @property
    def excised(self) -> bool:
        """Whether the data of waiting requests is left out."""
        return bool(self.change.erased)


class Observer:
    """One deployment, read from outside. Close it, or use it in a `with` block.

    Args:
        deployment: its name, for errors.
        storage_path: the folder of its files.
        ledger_url: of the ledger's database; empty: SQLite under a local storage path.
        clock: seconds since 1970.

    Raises:
        DeploymentError: nothing is deployed there, or the files belong to another ledger.
    """

    def __init__(
        self, deployment: str, storage_path: str, ledger_url: str = "", clock: Callable[[], float] = time.time
    ) -> None:
        self.deployment, self._clock = deployment, clock
        self._store = Store(storage_path)
        self._ledger = existing_ledger(self._store, deployment, ledger_url)
        self._loaded: Loaded | None = None
        self._view: tuple[Seen, View] | None = None
        try:
            refuse_foreign(deployment, self._store, self._ledger)
        except BaseException:
            self._ledger.close()
            raise

    def close(self) -> None:
        self._loaded = self._view = None
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    # ---- what is served --------------------------------------------------------------------------------------------------

    def recommend(self, user_id: RawId, n: int = 10) -> list[RawId]:
        """See `Snapshot.recommend`. The error for an unknown user names other spellings of the id that are here."""
        return [item_id for item_id, _ in self.recommend_scored(user_id, n)]

    def recommend_scored(self, user_id: RawId, n: int = 10) -> list[Scored]:
        """See `Snapshot.recommend_scored`. Raises as `recommend`."""

        def listed(view: View) -> list[Scored]:
            try:
                return view.snapshot.recommend_scored(user_id, n)
            except UnknownIdError:
                raise view.snapshot.users.unknown(user_id) from None

        return self.answer(listed)

    def recommend_many(self, user_ids: Sequence[RawId], n: int = 10) -> list[list[Scored] | None]:
        """See `Snapshot.recommend_many`."""
        return self.answer(lambda view: view.snapshot.recommend_many(user_ids, n))

    def similar_items(self, item_id: RawId, n: int = 10) -> list[Scored]:
        """See `Snapshot.similar_items`. The error for an unknown item names other spellings of the id that are here."""

        def listed(view: View) -> list[Scored]:
            try:
                return view.snapshot.similar_items(item_id, n)
            except UnknownIdError:
                raise view.snapshot.items.unknown(item_id) from None

        return self.answer(listed)

    def vectors(self) -> Vectors:
        """The vectors that a coordinator would serve. See `Vectors`: copies do not forget.

        Raises:
            InputError: the model has none.
        """
        return self.answer(lambda view: vectors_of(view.change, view.snapshot, view.config.model.kind))

    def view(self) -> View:
        """The deployment as it is now, for long computations that name no user."""
        return self.answer(lambda view: view)

    def answer(self, compute: Callable[[View], _T]) -> _T:
        """Compute an answer that contains no data of accepted requests.

        Args:
            compute: gives the answer for a view. It may be called several times.

        Raises:
            DeploymentError: no generation was ever published there.
            PoolError: the deployment changes faster than it can be read.
        """
        return self._steadily(lambda seen: compute(self._viewed(seen)))

    def refusals(self, requests: Sequence[UnlearningRequest]) -> dict[int, InputError]:
        """The errors, by position, for those of some requests of which nothing is here. Computes no model.

        A coordinator refuses these requests, unless it finished one of them earlier under its idempotency key.

        Raises:
            DeploymentError, PoolError: as `answer`.
        """

        def refused(seen: Seen) -> dict[int, InputError]:
            change = self._change(seen)
            to_come = Backlog.of_learnings(self._ledger).to_come()
            present = Present(change.left_users, change.left_items, list(change.rest.values()), to_come)
            return present.refusals(dict(enumerate(requests)))

        return self._steadily(refused)

    # ---- status ----------------------------------------------------------------------------------------------------------

    def describe(self) -> Status:
        """The status of the deployment. Raises as `answer`."""

        def described(seen: Seen) -> Status:
            return stored_status(self.deployment, self._store, self._ledger, self._clock(), self._read(seen))

        return self._steadily(described)

    def erasures(self, limit: int = 100, *, finished: bool = False) -> list[dict[str, Any]]:
        """See `status.pending`."""
        return pending(self._ledger, limit, finished=finished)

    def status(self, request_id: RequestId) -> RequestState:
        """The state of a request.

        Raises:
            UnknownRequestError: no request has this id.
        """
        return self._ledger.request(request_id).state

    def receipt(self, request_id: RequestId) -> Receipt | None:
        """The receipt of a finished request; None while it is unfinished. Raises as `status`."""
        row = self._ledger.request(request_id)
        return row.receipt if row.state is RequestState.ERASED else None

    def settings(self) -> UnlearningConfig:
        """The `unlearning` settings that the deployment was given last."""
        return unlearning_settings(self._ledger, None)

    def holders(self) -> list[Holder]:
        """The coordinators that may be running the deployment now, as far as this machine can tell, newest last."""
        return holders_of(self._ledger)

    # ---- how it is read --------------------------------------------------------------------------------------------------

    def _steadily(self, compute: Callable[[Seen], _T]) -> _T:
        """Compute an answer. Compute it again if a generation was published or an erasure accepted meanwhile."""
        seen = self._look()
        for _ in range(_TRIES):
            answer: _T
            failure: RayEraserError | None = None
            try:
                answer = compute(seen)
            except RayEraserError as error:
                failure = error  # for example, a file was superseded and deleted meanwhile
            before, seen = seen, self._look()
            if seen != before:
                continue
            if failure is not None:
                try:
                    raise failure
                finally:
                    del failure  # the error would keep its stack frames, and with them the generations
            return answer
        raise PoolError(
            f"deployment {self.deployment!r}", f"changed {_TRIES} times while it was read: try again, or ask where it runs"
        )

    def _look(self) -> Seen:
        # Requests first: a request that is missing here cannot be part of a generation that is read afterwards.
        waiting = self._ledger.erasures(_ALL, finished=False)
        published = self._ledger.current()
        if published is None:
            raise DeploymentError(
                self.deployment, f"training at {self._store.uri} was never finished: run ray-eraser train with another path"
            )
        unfinished = frozenset(row.request_id for row in waiting if not is_in(row, published.number))
        return Seen(published.digest, unfinished, published)

    def _read(self, seen: Seen) -> Loaded:
        former = self._loaded
        if former is not None and former.digest == seen.published.digest:
            return former
        self._loaded = self._view = None  # a superseded generation leaves the memory even if reading the next one fails
        self._loaded = loaded = Loaded.read(self._store, seen.published, former)
        return loaded

    def _change(self, seen: Seen) -> Change:
        """The published generation, and the change that unfinished requests make to it."""
        loaded = self._read(seen)
        return Change.of(loaded, [row for row in self._ledger.unfinished() if not is_in(row, loaded.number)])

    def _viewed(self, seen: Seen) -> View:
        if self._view is not None and self._view[0] == seen:
            return self._view[1]
        self._view = None  # a superseded view leaves the memory even if reading the next one fails
        view = viewed(self._store, self._change(seen))
        self._view = (seen, view)
        return view


def viewed(store: Store, change: Change) -> View:
    """Compute a generation without the data that a change erases, in this process. Nothing is written."""
    before, shards = change.before, list(change.rest.values())
    # Excisions are computed on the CPU everywhere, so no GPU is needed.
    config = before.manifest.config.with_device("cpu")
    model = before.model
    if change.erased and config.model.is_trained:
        order = AggregationOrder(
            before.manifest.shards, KeyedPairs.union(list(change.erased.values())), frozenset(change.erased)
        )
        model = LocalShardPool(store.uri, config).excise(order)
    served = served_by(model, shards, config, excised=bool(change.erased))
    return View(change, config, Snapshot(served, change.left_users, change.left_items, shards, before.number))


def existing_ledger(store: Store, deployment: str, ledger_url: str) -> Ledger:
    """Open the ledger of an existing deployment. A missing database is not created.

    Raises:
        DeploymentError: there is no ledger.
    """
    if not ledger_url:
        return Ledger(default_ledger(store, deployment, must_exist=True))
    with suppress(sa.exc.ArgumentError):  # the ledger says what is wrong with it
        url = sa.engine.make_url(ledger_url)
        file = url.database if url.get_backend_name() == "sqlite" else None
        if file and not file.startswith((":", "file:")) and not Path(file).exists():
            raise DeploymentError(deployment, f"no ledger is at {file}: check unlearning.ledger")
    return Ledger(ledger_url)


def holders_of(ledger: Ledger) -> list[Holder]:
    """The coordinators that may be running: they began an epoch, did not end it, and are no dead processes of this machine."""
    holders = [Holder.from_json(row.holder) for row in ledger.open_epochs()]
    return [holder for holder in holders if holder.deployment and not holder.is_gone()]
