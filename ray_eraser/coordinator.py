"""The coordinator: learns, serves, and carries out what it promised to forget.

A plain class over a store, a ledger and a pool of shards; on Ray it is an actor (runtime/actors.py). It keeps nothing that it
could not read again: killed at any point and started anew, it goes on where the ledger says.
"""

from __future__ import annotations

import hmac
import json
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ray_eraser import seeds
from ray_eraser.aggregation import folding as folding_of
from ray_eraser.aggregator import Aggregated, AggregationOrder
from ray_eraser.config import DAY, RUN_HERE, EraserConfig, RuntimeConfig, UnlearningConfig, changed, config_from
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import (
    ConfigError,
    DeploymentError,
    InputError,
    LedgerError,
    PoolError,
    QueueFullError,
    RequestError,
    StaleEpochError,
    StoreError,
    shortened,
)
from ray_eraser.generation import Change, Erasure, Loaded, remaining_dataset
from ray_eraser.ids import Generation, RawId, RequestId, ShardId
from ray_eraser.ingest import ingest
from ray_eraser.logs import named_safely
from ray_eraser.partition import Partition, divide, place
from ray_eraser.partition.assignment import balance_of
from ray_eraser.pool import ShardPool
from ray_eraser.recommend import Snapshot
from ray_eraser.shard import ShardOrder, Trained
from ray_eraser.store import FileRef, Manifest, ShardData, ShardRecord, Store, manifest_ref
from ray_eraser.training.pretrain import pretrain
from ray_eraser.training.weights import choose_alpha0_among, users_looked_at
from ray_eraser.unlearning.ledger import Entry, GenerationRow, Ledger, RequestRow, default_ledger
from ray_eraser.unlearning.plan import CostModel, Run, ShardRun, oldest_pending_seconds, overdue, plan_of
from ray_eraser.unlearning.receipt import Receipt, ShardChange, Signer, commitment
from ray_eraser.unlearning.request import Refusal, RequestState, Submission, UnlearningRequest, key_problem
from ray_eraser.unlearning.signing import load_signing_key
from ray_eraser.unlearning.work import Learning, Repartition
from ray_eraser.vectors import Vectors

log = logging.getLogger(__name__)

_ARRIVAL_SECONDS = 1.0
"""The longest that an excision waits for other requests to be recorded."""

_FEW = 8
"""More requests than these are not looked at twice to give a shard a head start."""

MakePool = Callable[[EraserConfig], ShardPool]


@dataclass(frozen=True)
class FitReport:
    """What a fit made."""

    generation: Generation
    digest: str
    n_users: int
    n_items: int
    n_interactions: int
    n_shards: int
    shard_sizes: list[int]
    balance: float
    shards_per_user: float
    partition: str
    guarantee: str
    alpha0: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class Submitted:
    """The answer to a submission. With the salt the asker can show later what the receipt's commitment stands for."""

    request_id: RequestId
    state: RequestState
    salt: str | None


@dataclass(frozen=True, eq=False)
class _Draft:
    """A generation in the making: who trains what, and what is kept as it is.

    Attributes:
        config: its settings.
        pool: of shards with these settings.
        users, items: its vocabularies.
        orders: for the shards that must be trained.
        kept: the files of the others.
        notes: what the ledger is to remember with it.
    """

    config: EraserConfig
    pool: ShardPool
    users: FileRef
    items: FileRef
    orders: Mapping[ShardId, ShardOrder]
    kept: Mapping[ShardId, ShardRecord]
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Ahead:
    """What was made of requests before they were a batch; of none where nothing was."""

    rows: Sequence[RequestRow] = ()
    change: Change | None = None
    draft: _Draft | None = None

    def of(self, batch: Sequence[RequestRow]) -> tuple[Change, _Draft] | None:
        """What a batch makes of the generation, if it is those requests."""
        if self.change is None or self.draft is None:
            return None
        is_same = [row.request_id for row in batch] == [row.request_id for row in self.rows]
        return (self.change, self.draft) if is_same else None


@dataclass(frozen=True, eq=False)
class _Division:
    """How a log was divided: users, items, interactions that each shard learns from, (K,), and shards a user is in."""

    n_users: int
    n_items: int
    sizes: np.ndarray
    shards_per_user: float


class Coordinator:
    """One deployment.

    Args:
        deployment: its name.
        storage_path: where everything that it keeps is.
        make_pool: gives the pool for a configuration.
        config: for a new deployment; for one that exists None, or the same settings again.
        ledger_url: where the ledger is; empty: `unlearning.ledger` of the config, or SQLite under a local storage path.
        clock: seconds since 1970.
        on_step: hears the name of every durable step right after it was taken.

    Raises:
        DeploymentError: nothing is deployed there and no config is given, or what is there was made with other settings.
    """

    def __init__(
        self,
        deployment: str,
        storage_path: str,
        make_pool: MakePool,
        config: EraserConfig | None = None,
        ledger_url: str = "",
        clock: Callable[[], float] = time.time,
        on_step: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.deployment, self.storage_path = deployment, storage_path
        self._clock, self._on_step = clock, on_step
        self._store = Store(storage_path)
        if config is not None:
            self._signer = _signer_of(config.unlearning)  # before anything is made or recorded
        url = ledger_url or (config.unlearning.ledger if config is not None else "")
        self._ledger = Ledger(url or default_ledger(self._store, deployment, must_exist=config is None))
        self._working = threading.Lock()  # one batch, or one fit, at a time
        self._serving = threading.RLock()  # what is served changes as a whole; never held while shards train
        self._arrivals = threading.Condition()
        self._arriving = 0  # callers that wait for their requests to be recorded
        self._progress: dict[str, Any] = {"stage": "idle", "done": 0, "total": 0}
        self._pending: Change | None = None  # the generation, and what is being forgotten of it
        self._snapshot: Snapshot | None = None
        try:
            self._start(make_pool, config)
        except BaseException:
            self._ledger.close()
            raise

    def _start(self, make_pool: MakePool, config: EraserConfig | None) -> None:
        # A start that is refused leaves the coordinator that runs in force.
        self._agreed(config)
        if config is None:
            self._signer = _signer_of(self._unlearning_settings(config))
        self._epoch = self._ledger.begin_epoch(self._clock())
        # Looked at again: until now another coordinator could publish, and its files would be swept as a crash's leftovers.
        published, self.config = self._agreed(config)
        if config is not None:
            self._ledger.note("run here", self.config.runtime.model_dump_json(include=set(RUN_HERE)))
        else:
            self.config = self._as_run_here(self.config, json.loads(self._ledger.noted("run here", "{}")))
        self.settings = self._unlearning_settings(config)
        # Of the first settings for ever: a key must be the same request also after the seed was changed on the way.
        self._key_secret = seeds.secret(int(self._ledger.noted("key_seed", str(self.config.seed))), "idempotency")
        self._costs = CostModel.from_json(self._ledger.noted("costs", CostModel().to_json()))
        self._make_pool = make_pool
        self.pool = make_pool(self.config)
        if published is not None:
            self.resume(published)

    def _agreed(self, config: EraserConfig | None) -> tuple[GenerationRow | None, EraserConfig]:
        """The published generation, if there is one, and the settings: those it was trained with, or those given."""
        self._refuse_foreign()
        published = self._ledger.current()
        if published is None:
            if config is None:
                raise DeploymentError(self.deployment, f"nothing is deployed at {self.storage_path}: train first")
            return None, config
        trained = self._store.read_manifest(published.digest).config
        if config is not None and not config.agrees_with(trained):
            raise DeploymentError(
                self.deployment, f"{self.storage_path} was trained with other settings: use them, or another path"
            )
        return published, trained.model_copy(update={} if config is None else {"runtime": config.runtime})

    def _refuse_foreign(self) -> None:
        """What another ledger knows of is none of this one's to sweep."""
        if self._store.owner() not in (None, self._ledger.name):
            raise DeploymentError(
                self.deployment, f"{self.storage_path} belongs to another ledger: give that one, or choose another path"
            )

    def _unlearning_settings(self, config: EraserConfig | None) -> UnlearningConfig:
        """When requests are carried out and the like: as given now, or else as given the last time. They change no bit."""
        if config is not None:
            # The URL may hold a password, and whoever reads this has it already.
            self._ledger.note("unlearning", config.unlearning.model_copy(update={"ledger": ""}).model_dump_json())
            return config.unlearning
        return UnlearningConfig.model_validate_json(self._ledger.noted("unlearning", UnlearningConfig().model_dump_json()))

    # ---- learn ---------------------------------------------------------------------------------------------------------

    def fit(self, dataset: Dataset, partition: Partition | None = None) -> FitReport:
        """Divide the interactions, train every shard, aggregate, publish generation 1.

        Args:
            dataset: what to learn from; its test set is left alone.
            partition: of `dataset.train`, where it is to be the same as another time; None makes one as configured.

        Raises:
            DeploymentError: something is deployed here already.
        """
        return self._fitted(lambda: self._from_scratch(dataset, self.config, partition))

    def fit_log(self, source: str) -> FitReport:
        """The generation that `fit` makes of `read_dataset(source, ...)`, of a log that no process ever holds as a whole.

        What is held out for the test is kept nowhere.

        Args:
            source: a Parquet file or a folder of them, which are parts of one log, on a path that is the same on all nodes.

        Raises:
            DataFileError: as `read_dataset`.
            ConfigError: the partition is learned, which takes all interactions at once: use `fit`.
            DeploymentError: something is deployed here already.
        """
        return self._fitted(lambda: self._from_log(source, self.config))

    def _fitted(self, drafted: Callable[[], tuple[_Draft, _Division]]) -> FitReport:
        with self._working:
            self.check_in_force()  # what another coordinator has trained here since is none of this one's to sweep
            if self._pending is not None:
                raise DeploymentError(self.deployment, f"{self._store.uri} is in use: unlearn from it, or choose another path")
            started = time.perf_counter()
            self._refuse_foreign()
            self._store.claim(self._ledger.name)
            self._ledger.note("settings", _recorded(self.config).model_dump_json())
            self._sweep(wanted=set())  # of a fit that was never finished
            draft, division = drafted()
            divided = time.perf_counter()
            published, aggregated = self._made(draft, None, ())
            self._serve(published, draft.pool)
            self._report("idle", 0, 0)
            done = time.perf_counter()
            seconds = {
                "partition": divided - started,
                "shards": done - divided - aggregated.seconds,
                "aggregation": aggregated.seconds,
                "total": done - started,
            }
            return FitReport(
                generation=published.number,
                digest=published.digest,
                n_users=division.n_users,
                n_items=division.n_items,
                n_interactions=int(division.sizes.sum()),
                n_shards=draft.config.partition.n_shards,
                shard_sizes=[int(size) for size in division.sizes],
                balance=round(balance_of(division.sizes), 4),
                shards_per_user=round(division.shards_per_user, 4),
                partition=draft.config.partition.kind,
                guarantee=draft.config.guarantee,
                alpha0=draft.config.als_settings.known_alpha0,
                seconds={name: round(value, 3) for name, value in seconds.items()},
            )

    def _from_scratch(self, dataset: Dataset, config: EraserConfig, partition: Partition | None) -> tuple[_Draft, _Division]:
        """Number, divide and write the data; every shard is to be trained."""
        self._report("partition", 0, 1)
        key = seeds.secret(config.seed, "ids")
        user_keys, item_keys = dataset.users.keys(key), dataset.items.keys(key)
        config = self._settled(dataset.train.of_users, len(dataset.train), user_keys, item_keys, config)
        pool = self._pool_for(config)
        settings = config.partition
        if partition is None:
            # Embeddings of the whole log: never written, and gone when the partition is made.
            embeddings = (
                pool.run([partial(pretrain, dataset.train, item_keys, config)])[0] if settings.needs_embeddings else None
            )
            partition = divide(dataset.train, user_keys, item_keys, settings, config.seed, embeddings)
        held_owners = place(dataset.valid, dataset.train, partition, user_keys, item_keys, settings, config.seed)
        users = self._store.write_vocabulary(dataset.users)
        items = self._store.write_vocabulary(dataset.items, item_keys)
        files = []
        for shard in map(ShardId, range(settings.n_shards)):
            data = ShardData(partition.of_shard(dataset.train, shard), dataset.valid.take(held_owners == shard))
            files.append(self._store.write_shard_data(shard, data))
        per_user = partition.shards_per_user(dataset.train)
        division = _Division(len(dataset.users), len(dataset.items), partition.sizes(), per_user)
        return self._first_draft(config, pool, users, items, files), division

    def _from_log(self, source: str, config: EraserConfig) -> tuple[_Draft, _Division]:
        """The same where the log is never in one place."""
        self._report("partition", 0, 3)
        parts = ingest(source, self._store, config, self.pool, lambda done: self._report("partition", done, 3))
        n_pairs = int(parts.sizes.sum())
        looked_at = partial(parts.of_users, store_uri=self._store.uri, compute=self.pool)
        config = self._settled(looked_at, n_pairs, parts.user_keys, parts.item_keys, config)
        division = _Division(len(parts.user_keys), len(parts.item_keys), parts.sizes, parts.shards_per_user)
        return self._first_draft(config, self._pool_for(config), parts.users, parts.items, parts.shards), division

    def _first_draft(
        self, config: EraserConfig, pool: ShardPool, users: FileRef, items: FileRef, shards: Sequence[FileRef]
    ) -> _Draft:
        """Every shard is to be trained on its file, of which nothing is erased yet."""
        orders = {ShardId(k): ShardOrder(self._epoch, users, items, file, Interactions.none()) for k, file in enumerate(shards)}
        return _Draft(config, pool, users, items, orders, {})

    def _settled(
        self,
        of_users: Callable[[np.ndarray], Interactions],
        n_pairs: int,
        user_keys: np.ndarray,
        item_keys: np.ndarray,
        config: EraserConfig,
    ) -> EraserConfig:
        """Choose from the log what the settings leave open. Recorded with the generation, and kept by every erasure.

        Args:
            of_users: gives what is learned from of these users.
            n_pairs: how much is learned from.
            user_keys: (U,) keyed hash of every user's id.
            item_keys: (I,) keyed hash of every item's id.
            config: the settings.
        """
        if config.is_settled:
            return config
        looked_at = of_users(users_looked_at(n_pairs, user_keys, config))
        alpha0 = choose_alpha0_among(looked_at, user_keys, item_keys, config, self.pool)
        log.info("alpha0 chosen", extra={"deployment": self.deployment, "alpha0": alpha0})
        return config.settled(alpha0)

    def _pool_for(self, config: EraserConfig) -> ShardPool:
        """The pool, where its shards have these settings; else a new one."""
        return self.pool if config.fingerprint() == self.config.fingerprint() else self._make_pool(config)

    # ---- forget --------------------------------------------------------------------------------------------------------

    def submit(self, request: UnlearningRequest, idempotency_key: str | None = None, priority: int = 0) -> Submitted:
        """Accept a request: record it, and see to it that nothing served depends on the data any more.

        From the return on, the request survives any crash. The retraining is done by `process_pending`.

        Args:
            request: what to forget.
            idempotency_key: a submission repeated with the same key is the same request.
            priority: above 0: is not to wait for others, whatever the plan.

        Raises:
            UnknownIdError: an id is not here (any more).
            RequestError: a pair is not among the data, or the key belongs to another request.
            QueueFullError: too many requests wait.
            LedgerError: it cannot be recorded.
            StaleEpochError: another coordinator has taken over: ask that one.
        """
        with self._accepting():
            rows = self._receive([Submission(request, idempotency_key, priority)], self._clock())
        self._excise()
        return self._submitted(rows[0])

    def submit_many(self, submissions: Sequence[Submission], *, partial: bool = False) -> list[Submitted | Refusal]:
        """Accept many requests: all or, with `partial`, all that can be accepted; in their order.

        Raises:
            as `submit`: for the first that is at fault, whose row the error names; nothing was recorded.
        """
        with self._accepting():
            faults: dict[int, Refusal] = {}
            by_key: dict[str | None, UnlearningRequest] = {}
            for number, submission in enumerate(submissions, 1):
                row, key = submission.row or number, submission.idempotency_key
                try:
                    if key is not None and by_key.get(key, submission.request) != submission.request:
                        raise RequestError("the idempotency key belongs to another request: choose a new key")
                    if self._ledger.recorded(self._key_hash(key), submission.request) is None:
                        self._check(submission.request)
                    by_key[key] = submission.request
                except InputError as error:
                    reason = error.problem if isinstance(error, RequestError) else str(error)
                    if not partial:
                        raise RequestError(f"row {row}: {reason}") from error
                    faults[number] = Refusal(row, reason)
            good = [submission for number, submission in enumerate(submissions, 1) if number not in faults]
            rows = iter(self._receive(good, self._clock()))
        self._excise()
        return [faults.get(number) or self._submitted(next(rows)) for number in range(1, len(submissions) + 1)]

    def learn(self, pairs: Sequence[tuple[RawId, RawId]], idempotency_key: str | None = None) -> Submitted:
        """Accept (user id, item id) pairs to learn from; `process_pending` trains the shards that they go to.

        A user's pairs go to the shard that has the user; see `partition.place_learned`. Pairs that are known already are passed
        over. From the return on they can be asked to be forgotten like all others.

        Raises:
            RequestError: all are known already, an id is not of the kind of the deployment's ids, or the key cannot be one.
            QueueFullError, LedgerError, StaleEpochError: as `submit`.
        """
        key_hash = self._key_hash(idempotency_key)
        with self._serving:
            self._excise()  # what is being forgotten may be learned anew
            asked = Learning(tuple(pairs)).pairs
            users, items = self._kinds()
            if users.is_empty or items.is_empty:  # then the first that come decide
                users, items = users.extended(user for user, _ in asked), items.extended(item for _, item in asked)
            named = dict.fromkeys((users.checked(user), items.checked(item)) for user, item in asked)
            repeated = self._ledger.recorded(key_hash, Learning(tuple(named)))
            if repeated is not None:
                return self._submitted(repeated)
            waiting = set(self._to_come())
            new = tuple(pair for pair in named if pair not in waiting and not self._is_known(*pair))
            if not new:
                raise RequestError(f"all of the {len(named)} pairs are known already: there is nothing to learn")
            entry = Entry(self._new_name(), Learning(new), None, key_hash)
            (row,) = self._record([entry], self._clock(), {})
        self._excise()
        return self._submitted(row)

    def repartition(self, changes: Sequence[str] = (), idempotency_key: str | None = None) -> Submitted:
        """Have everything made from scratch, as a fit on what remains would: ids numbered, shards divided, all trained.

        What is served, and what is asked meanwhile, goes on; the new generation takes over as a whole. It is what makes an
        `exact-given-partition` deployment independent of what was erased before, and the way to other settings.

        Args:
            changes: settings to change, `section.key=value`; see `config.changed`. They are the deployment's from then on.
            idempotency_key: as `submit`.

        Raises:
            ConfigError: a setting is unknown, out of range, or none of those that something is made with.
            RequestError, QueueFullError, LedgerError, StaleEpochError: as `submit`.
        """
        key_hash = self._key_hash(idempotency_key)
        with self._serving:
            self._loaded_change()
            if (repeated := self._ledger.recorded(key_hash, Repartition(tuple(changes)))) is not None:
                return self._submitted(repeated)
            waiting = [row.work for row in self._ledger.unfinished() if isinstance(row.work, Repartition)]
            self._settings_with([*(change for repartition in waiting for change in repartition.changes), *changes])
            (row,) = self._record([Entry(self._new_name(), Repartition(tuple(changes)), None, key_hash)], self._clock(), {})
        self._excise()
        return self._submitted(row)

    def process_pending(self) -> list[Receipt]:
        """Carry out every accepted request: one retraining for all that wait, one new generation, one receipt each.

        Every step is recorded before the next begins and gives the same result when it is repeated; `resume` enters here.
        """
        with self._working, self._reporting(), self._ahead() as ahead:
            self._excise()
            batch = self._next_batch()
            if not batch:
                return []
            pool = None
            if batch[0].generation is None:
                with self._failing(batch):
                    change, draft = ahead.of(batch) or self._planned(batch)
                    published, _ = self._made(draft, change, batch)
                    pool = draft.pool
                self._step("published", batch)
            else:
                published = self._published()

            self._serve(published, pool)
            restored_at = self._clock()
            for path in published.to_purge:
                self._store.delete(path)
            self._step("purged", batch)

            purged_at = self._clock()
            rows = [self._ledger.request(row.request_id) for row in batch]
            drafts = [row.receipt for row in rows if row.receipt is not None]
            receipts = [replace(receipt, restored_at=restored_at, purged_at=purged_at) for receipt in drafts]
            receipts = self._ledger.finish(receipts, self._signer, [row.request_id for row in rows if row.receipt is None])
            self._step("finished", batch)
            return receipts

    def due_at(self) -> float | None:
        """When `process_pending` should be called by the plan, in seconds since 1970; None where nothing waits."""
        waiting = self._ledger.waiting()
        if not waiting or self._pending is None:
            return None
        return plan_of(self.settings).next_run(waiting, self._published().published_at, self._predicted_seconds())

    def retry(self, request_id: RequestId) -> None:
        """Have a request that was set aside tried again.

        Raises:
            UnknownRequestError, IllegalTransitionError: there is none of this id, or it was not set aside.
        """
        self._ledger.retry(request_id)

    def check_in_force(self) -> None:
        """Raise `StaleEpochError` once another coordinator has started: what this one serves may be erased there."""
        newest = self._ledger.newest_epoch()
        if newest != self._epoch:
            raise StaleEpochError(f"deployment {self.deployment!r}", newest, self._epoch)

    def has_pending(self) -> bool:
        """Whether `process_pending` would have something to do."""
        return bool(self._ledger.waiting())

    def is_due(self) -> bool:
        """Whether `process_pending` should be called now, by the plan."""
        due_at = self.due_at()
        return due_at is not None and due_at <= self._clock()

    def resume(self, published: GenerationRow) -> None:
        """Take up the published generation, with everything that was accepted since already left out of what is served."""
        if self._store.owner() is None:
            self._store.claim(self._ledger.name)
        self._sweep(self._files_of(self._store.read_manifest(published.digest), published.digest))
        self.pool.tidy()
        self._serve(published)
        self._excise()

    @staticmethod
    def _files_of(manifest: Manifest, digest: str) -> set[str]:
        return {ref.path for ref in manifest.files()} | {manifest_ref(digest).path}

    def _sweep(self, wanted: set[str]) -> None:
        """Delete what a crash left of generations that never came to be; what is still needed of them is written again."""
        for path in self._store.files():
            if path not in wanted:
                self._store.delete(path)

    # ---- accept --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _accepting(self) -> Iterator[None]:
        """Requests are recorded within. Those that arrived meanwhile go first then: one excision will do for all of them."""
        with self._arrivals:
            self._arriving += 1
        try:
            with self._serving:
                yield
        finally:
            with self._arrivals:
                self._arriving -= 1
                self._arrivals.notify_all()
        with self._arrivals:
            self._arrivals.wait_for(lambda: not self._arriving, _ARRIVAL_SECONDS)

    def _receive(self, submissions: Sequence[Submission], at: float) -> list[RequestRow]:
        """Record requests to forget; those whose key is known already are what was recorded then."""
        rows: list[RequestRow | None] = []
        entries, asked = [], []
        for submission in submissions:
            hashed = self._key_hash(submission.idempotency_key)
            rows.append(self._ledger.recorded(hashed, submission.request))
            if rows[-1] is None:
                self._check(submission.request)
                asked.append(submission.request)  # what was recorded before says nothing of what was learned since
                salt = secrets.token_hex(32)
                entries.append(Entry(self._new_name(), submission.request, salt, hashed, submission.priority))
        waiting = self._learning_rows(RequestState.RECEIVED, RequestState.EXCISED, RequestState.SET_ASIDE)
        new = iter(self._record(entries, at, self._amended(waiting, asked)))
        return [row or next(new) for row in rows]

    def _record(self, entries: Sequence[Entry], at: float, amended: Mapping[RequestId, Learning]) -> list[RequestRow]:
        try:
            rows = self._ledger.receive(self._epoch, entries, at, self.settings.max_pending, amended)
        except QueueFullError as error:
            seconds = float(math.ceil(max(1.0, self._predicted_seconds())))
            raise QueueFullError(error.waiting, error.offered, error.limit, seconds) from None
        self._step("received", rows)
        return rows

    def _check(self, request: UnlearningRequest) -> None:
        """Refuse what names something that is not here, neither learned from nor waiting to be.

        Raises:
            UnknownIdError, RequestError: see `submit`.
        """
        snapshot = self._served()
        users, items = self._kinds()
        waiting = self._to_come()
        if request.user_id is not None and not any(user == users.parsed(request.user_id) for user, _ in waiting):
            snapshot.users.row(request.user_id)
        if request.item_id is not None and not any(item == items.parsed(request.item_id) for _, item in waiting):
            snapshot.items.row(request.item_id)
        if request.pairs is not None:
            to_come = set(waiting)
            here = [pair for pair in request.pairs if (users.parsed(pair[0]), items.parsed(pair[1])) not in to_come]
            for user, item in here:
                snapshot.users.row(user), snapshot.items.row(item)
            absent = [pair for pair in here if not self._is_known(*pair)]
            if absent:
                raise RequestError(
                    f"{len(absent)} of {len(request.pairs)} pairs are not among the data or are being erased already, "
                    f"the first is {shortened(absent[0])}: leave them out"
                )

    def _is_known(self, user: RawId, item: RawId) -> bool:
        """Whether a pair is among the data and not being forgotten."""
        snapshot = self._served()
        return user in snapshot.users and item in snapshot.items and snapshot.has_seen(user, item)

    def _to_come(self) -> list[tuple[RawId, RawId]]:
        """The pairs that wait to be learned or are being trained on, but for those that go again right afterwards."""
        rows = self._learning_rows()
        if any(row.state is RequestState.ROUTED for row in rows):
            rows = self._ledger.unfinished()  # with what came after them
        return [pair for left in self._left_to_learn(rows).values() for pair in left.pairs]

    def _left_to_learn(self, rows: Sequence[RequestRow]) -> dict[RequestId, Learning]:
        """What the requests that came after them leave of the learnings among all unfinished requests."""
        left = {}
        for position, row in enumerate(rows):
            if isinstance(row.work, Learning):
                left[row.request_id] = row.work
                if row.state is RequestState.ROUTED:  # those that wait lost it when it was asked, this one cannot any more
                    later = [other.work for other in rows[position:] if isinstance(other.work, UnlearningRequest)]
                    left |= self._amended([row], later)
        return left

    def _learning_rows(self, *states: RequestState) -> list[RequestRow]:
        """Learnings alone: thousands of other requests may wait, and reading them takes its time."""
        return self._ledger.unfinished(*states, kind=Learning.kind)

    def _kinds(self) -> tuple[Vocabulary, Vocabulary]:
        """Vocabularies of users and items that say how an id stands here: where none is left, as in what is to be learned."""
        users, items = self._served().users, self._served().items
        if users.is_empty or items.is_empty:
            waiting = [pair for row in self._learning_rows() if isinstance(row.work, Learning) for pair in row.work.pairs]
            users, items = users.extended(user for user, _ in waiting), items.extended(item for _, item in waiting)
        return users, items

    def _amended(self, learnings: Iterable[RequestRow], requests: Iterable[UnlearningRequest]) -> dict[RequestId, Learning]:
        """Those of the learnings that lose something to requests which came after them, as they are without it."""
        is_forgotten = self._are_about(requests)
        amended = {}
        for row in learnings:
            if isinstance(row.work, Learning):
                left = row.work.without(is_forgotten)
                if left != row.work:
                    amended[row.request_id] = left
        return amended

    def _are_about(self, requests: Iterable[UnlearningRequest]) -> Callable[[RawId, RawId], bool]:
        """Whether any of the requests is about a pair."""
        as_user, as_item = (vocabulary.parsed for vocabulary in self._kinds())
        asked = list(requests)
        users = {as_user(request.user_id) for request in asked if request.user_id is not None}
        items = {as_item(request.item_id) for request in asked if request.item_id is not None}
        pairs = {(as_user(user), as_item(item)) for request in asked for user, item in request.pairs or ()}
        return lambda user, item: user in users or item in items or (user, item) in pairs

    def _submitted(self, row: RequestRow) -> Submitted:
        return Submitted(row.request_id, self._ledger.request(row.request_id).state, row.salt)

    @staticmethod
    def _new_name() -> RequestId:
        return RequestId(secrets.token_hex(16))

    def _key_hash(self, idempotency_key: str | None) -> str | None:
        """What the ledger keeps of a key, which may name a user."""
        if idempotency_key is None:
            return None
        if problem := key_problem(idempotency_key):
            raise RequestError(f"the idempotency key {problem}")
        return hmac.new(self._key_secret, idempotency_key.encode(), "sha256").hexdigest()

    def _excise(self) -> None:
        """Change what is served so that it depends on nothing that a received request is about; then record it."""
        with self._serving:
            received = self._ledger.unfinished(RequestState.RECEIVED)
            if received:
                # With those that waited to be learned from before: they may have lost what is to be forgotten.
                self._leave_out(self._loaded_change().with_([*self._learning_rows(), *received]))
                self._ledger.excised([row.request_id for row in received], self._clock())
                self._step("excised", received)

    # ---- carry out -----------------------------------------------------------------------------------------------------

    def _next_batch(self) -> list[RequestRow]:
        """The batch that a crash interrupted; else all requests that wait, but for those whose training failed."""
        with self._serving:  # what is being trained on cannot be taken out of what is to be learned any more
            rows = self._ledger.unfinished()
            interrupted = [row for row in rows if row.state is RequestState.ROUTED]
            if interrupted:
                return [row for row in interrupted if row.generation is not None] or interrupted
            parties: dict[int | None, list[RequestRow]] = {}
            for row in rows:
                if row.state is RequestState.EXCISED:
                    parties.setdefault(row.party, []).append(row)
            for party in sorted(parties.values(), key=lambda party: party[0].attempts):
                batch = self._in_order(party, rows)
                if batch:
                    self._ledger.routed([row.request_id for row in batch])
                    self._step("routed", batch)
                    return batch
            return []

    def _in_order(self, party: Sequence[RequestRow], rows: Sequence[RequestRow]) -> list[RequestRow]:
        """A party without those who learn what others, outside of it, asked to be forgotten before: it would go with that."""
        names, earlier, batch = {row.request_id for row in party}, list[UnlearningRequest](), []
        for row in rows:
            if row.request_id not in names:
                if isinstance(row.work, UnlearningRequest):
                    earlier.append(row.work)
            elif not (earlier and isinstance(row.work, Learning) and self._amended([row], earlier)):
                batch.append(row)
        return batch

    @contextmanager
    def _failing(self, batch: Sequence[RequestRow]) -> Iterator[None]:
        """What a batch fails of is recorded with it, so that others go on; a failure of the machine is none of the batch."""
        try:
            yield
        except (StaleEpochError, StoreError, LedgerError, OSError):
            raise
        except Exception as error:
            self.check_in_force()  # else the batch is another's by now
            # A process that dies may be the machine's fault as well: tried again for ever, but behind the others.
            attempts = 0 if isinstance(error, PoolError) else self.settings.max_attempts
            names = [row.request_id for row in batch]
            with self._serving:
                # Waiting again, what is to be learned loses what was asked to be forgotten while it was being trained on.
                left = self._left_to_learn(self._ledger.unfinished())
                amended = {name: left[name] for name in names if name in left}
                self._ledger.failed(names, named_safely(error), attempts, amended)
            self._step("failed", batch)
            with suppress(StaleEpochError, StoreError, LedgerError, OSError):  # what remains now goes with the next generation
                left_over = self._left_over(self._published())
                self.check_in_force()  # after looking: what another coordinator writes is not among what was there
                for path in left_over:
                    self._store.delete(path)
            raise

    def _left_over(self, published: GenerationRow) -> list[str]:
        """Files that are no part of a generation, sorted."""
        wanted = self._files_of(self._store.read_manifest(published.digest), published.digest)
        return [path for path in self._store.files() if path not in wanted]

    @contextmanager
    def _ahead(self) -> Iterator[_Ahead]:
        """Within, a shard trains already beside the excision, where it is known what it will be told: what has been received
        is all that the next batch will be of. It is no step: it writes files that nothing points to, the same ones whenever
        it is repeated, and only what is ordered of a batch counts.
        """
        ahead, pool = _Ahead(), self.pool
        try:
            with self._arrivals:
                self._arrivals.wait_for(lambda: not self._arriving, _ARRIVAL_SECONDS)
            rows = self._ledger.unfinished() if self._pending is not None else []
            is_known = all(row.state is RequestState.RECEIVED and isinstance(row.work, UnlearningRequest) for row in rows)
            if 0 < len(rows) <= _FEW and is_known:
                change, draft = self._planned(rows)
                pool.begin(draft.orders)
                ahead = _Ahead(rows, change, draft)
        except Exception as error:  # noqa: BLE001 - it fails again where it is asked for, and is answered for there
            log.info("no head start", extra={"deployment": self.deployment, "reason": named_safely(error)})
        try:
            yield ahead
        finally:
            pool.abandon()

    def _planned(self, batch: Sequence[RequestRow]) -> tuple[Change, _Draft]:
        """What a batch makes of the generation, and who trains what for it."""
        change = Change.of(self._loaded(), batch)
        return change, self._drafted(change, batch)

    def _drafted(self, change: Change, batch: Sequence[RequestRow]) -> _Draft:
        """What a batch asks of the shards."""
        before = change.before
        repartitions = [row.work for row in batch if isinstance(row.work, Repartition)]
        if repartitions:
            settings = self._settings_with([setting for repartition in repartitions for setting in repartition.changes])
            draft, _ = self._from_scratch(remaining_dataset(change), settings, None)
            return replace(draft, notes={"settings": _recorded(settings).model_dump_json()})
        users, items = before.manifest.users, before.manifest.items
        if change.erased_user_rows or change.learned:
            users = self._store.write_vocabulary(change.users)
        if change.erased_item_rows or change.learned:
            items = self._store.write_vocabulary(change.items, change.items.keys(seeds.secret(self.config.seed, "ids")))
        has_slices = self.config.training.slices > 1
        orders = {
            shard: ShardOrder(
                self._epoch,
                users if has_slices else None,
                items,
                before.manifest.shards[shard].interactions,
                change.erased.get(shard, Interactions.none()),
                change.added.get(shard, Interactions.none()),
                before.manifest.users if has_slices else None,
                before.manifest.shards[shard].checkpoints,
            )
            for shard in change.touched
        }
        kept = {record.shard: record for record in before.manifest.shards if record.shard not in orders}
        return _Draft(self.config, self.pool, users, items, orders, kept)

    def _settings_with(self, changes: Sequence[str]) -> EraserConfig:
        """The settings that the deployment was asked to have, what was left to be chosen still open, with changes.

        Raises:
            ConfigError: as `repartition`.
        """
        for change in changes:
            name = change.partition("=")[0].strip()
            if name.startswith("unlearning.") or name.removeprefix("runtime.") in RUN_HERE:
                raise ConfigError(name, "changes nothing of what is made: give it when the deployment is opened")
        asked = config_from(json.loads(self._ledger.noted("settings", _recorded(self.config).model_dump_json())))
        return self._as_run_here(changed(asked, changes))

    def _as_run_here(self, config: EraserConfig, given: Mapping[str, Any] | None = None) -> EraserConfig:
        """Settings with what says how wide and how long things run here, which no generation records: as now, or as given."""
        here = given if given is not None else self.config.runtime.model_dump(include=set(RUN_HERE))
        runtime = RuntimeConfig.model_validate(config.runtime.model_dump() | dict(here))
        return config.model_copy(update={"runtime": runtime})

    def _made(self, draft: _Draft, change: Change | None, batch: Sequence[RequestRow]) -> tuple[GenerationRow, Aggregated]:
        """Train what a draft orders, aggregate, write the manifest, and let the ledger point to it, with the receipts."""
        try:
            return self._made_by(draft, change, batch)
        except StaleEpochError:
            raise  # the processes are those of the coordinator that took over
        except Exception:
            if draft.pool is not self.pool:
                draft.pool.close()
            raise

    def _made_by(self, draft: _Draft, change: Change | None, batch: Sequence[RequestRow]) -> tuple[GenerationRow, Aggregated]:
        if draft.pool is not self.pool:
            self.pool.abandon()
        trained = self._train(draft)
        self._step("retrained", batch)
        files = {**draft.kept} | {shard: answer.record for shard, answer in trained.items()}
        records = tuple(files[ShardId(k)] for k in range(draft.config.partition.n_shards))

        self._report("aggregation", 0, 1)
        aggregated = draft.pool.aggregate(AggregationOrder(draft.items, records, Interactions.none()))
        self._step("aggregated", batch)
        manifest = Manifest(
            _recorded(draft.config), aggregated.environment, draft.users, draft.items, records, aggregated.aggregate
        )
        written = self._store.write_manifest(manifest)
        self._step("written", batch)

        superseded: tuple[str, ...] = ()
        if change is not None:
            # With the generation before goes what an attempt has left that failed: it may hold what is erased now. Listed while
            # it is sure that nobody else writes here; who finds this one replaced later on deletes nothing but that.
            kept = self._files_of(manifest, written.digest)
            superseded = tuple(path for path in self._store.files() if path not in kept)
        number = Generation(1 if change is None else change.before.number + 1)
        row = GenerationRow(number, written.digest, self._clock(), superseded)
        receipts = {}
        if change is not None:
            for request in batch:
                if isinstance(request.work, UnlearningRequest):
                    erasure = change.erasures[request.request_id]
                    receipts[request.request_id] = _receipt(request, request.work, erasure, change.before, manifest, row)
        self._ledger.publish(self._epoch, row, receipts, [request.request_id for request in batch], draft.notes)
        self._observe(trained, aggregated)
        return row, aggregated

    def _train(self, draft: _Draft) -> dict[ShardId, Trained]:
        finished: list[float] = []
        self._report("shards", 0, len(draft.orders))

        def on_done(trained: Trained) -> None:
            finished.append(trained.seconds)
            self._report("shards", len(finished), len(draft.orders), f"shard {trained.record.shard} in {trained.seconds:.1f} s")

        return draft.pool.erase(draft.orders, on_done)

    def _observe(self, trained: Mapping[ShardId, Trained], aggregated: Aggregated) -> None:
        """Remember what a run took, to know what the next will."""
        shards = tuple(ShardRun(answer.record.n_train, answer.seconds) for answer in trained.values())
        self._costs = self._costs.observe(Run(shards, aggregated.seconds))
        self._ledger.note("costs", self._costs.to_json())

    def _predicted_seconds(self) -> float:
        """What carrying out all that waits will take."""
        change = self._loaded_change()
        sizes = [change.before.manifest.shards[shard].n_train for shard in change.touched]
        return self._costs.predict(sizes, max(1, self.config.runtime.slots)).seconds

    # ---- serve ---------------------------------------------------------------------------------------------------------

    def _serve(self, published: GenerationRow, pool: ShardPool | None = None) -> None:
        """Serve a published generation, without whatever accepted requests are still to be erased from it.

        `pool` has its settings; None where it is not there yet, should they be others than before.
        """
        loaded = self._pending.before if self._pending is not None else None
        if loaded is None or loaded.number != published.number:
            loaded = Loaded.read(self._store, published, loaded)
        config = self._as_run_here(loaded.manifest.config)
        with self._serving:
            if config.fingerprint() != self.config.fingerprint():
                old, self.config = self.pool, config
                self.pool = self._make_pool(config) if pool is None else pool
                old.close()
            waiting = [row for row in self._ledger.unfinished() if row.generation is None or row.generation > published.number]
            self._leave_out(Change.of(loaded, waiting))

    def _leave_out(self, change: Change) -> None:
        """Serve a generation without what is being forgotten of it."""
        with self._serving:
            before = change.before
            erased = Interactions.union(list(change.erased.values()))
            order = AggregationOrder(before.manifest.items, before.manifest.shards, erased, frozenset(change.erased))
            model = self.pool.excise(order) if change.erased else before.model
            is_folded = self.config.aggregation.foldin or bool(change.erased)
            folding = folding_of(model, self.config) if is_folded else None
            if folding is not None:
                folding.users(Interactions.none())  # loads what it computes with: the first read should not wait for that
            users = before.users.without(change.erased_user_rows)
            items = before.items.without(change.erased_item_rows)
            rest = change.rest.values()
            self._pending = change
            self._snapshot = Snapshot(
                model, folding, users, items, [data.train for data in rest], [data.valid for data in rest], before.number
            )
            if not change.erased:
                self.pool.prepare_excision(order)

    # ---- read ----------------------------------------------------------------------------------------------------------

    def recommend(self, user_id: RawId, n: int = 10) -> list[RawId]:
        """See `Snapshot.recommend`. Never waits for training."""
        return self._served().recommend(user_id, n)

    def shard_data(self) -> dict[ShardId, ShardData]:
        """What every shard of the current generation holds."""
        return dict(self._loaded().shards)

    def served_model(self) -> Embeddings:
        """The vectors that recommendations are computed from now."""
        return self._served().embeddings()

    def vectors(self) -> Vectors:
        """What is served now, for whoever serves it elsewhere. See `Vectors`: copies that were handed out do not forget.

        While shards are trained anew it is the excision, which depends on nothing that was asked to be forgotten either.
        """
        with self._serving:
            change, snapshot = self._loaded_change(), self._served()
            serving = "excision" if change.erased else "generation"
        before = change.before
        return Vectors.of(snapshot.embeddings(), snapshot.users, snapshot.items, before.number, before.digest, serving)

    def status(self, request_id: RequestId) -> RequestState:
        return self._ledger.request(request_id).state

    def receipt(self, request_id: RequestId) -> Receipt | None:
        """The receipt of a finished request; None while it is unfinished."""
        row = self._ledger.request(request_id)
        return row.receipt if row.state is RequestState.ERASED else None

    def set_aside(self) -> dict[RequestId, str]:
        """The requests that an operator should look at, and what their training failed of."""
        return {row.request_id: row.reason or "" for row in self._ledger.unfinished(RequestState.SET_ASIDE)}

    def erasures(self, limit: int = 100, *, finished: bool) -> list[dict[str, Any]]:
        """Finished erasures, the newest first, or unfinished ones, the oldest first, in plain values that name no ids.

        Times are seconds since 1970: `deadline_at` is when the law wants it done, `finished_at` when it was.
        """
        return [
            {
                "request_id": row.request_id,
                "kind": row.kind,
                "state": str(row.state),
                "received_at": row.received_at,
                "excised_at": row.excised_at,
                "deadline_at": row.received_at + self.settings.deadline_days * DAY,
                "finished_at": row.receipt.purged_at if finished and row.receipt is not None else None,
                "generation": row.generation,
            }
            for row in self._ledger.erasures(limit, finished=finished)
        ]

    def progress(self) -> dict[str, Any]:
        """What is being done: `stage`, `done`, `total`, and a `note` for people."""
        return self._progress

    def describe(self) -> dict[str, Any]:
        """The deployment in plain values."""
        change, snapshot = self._loaded_change(), self._served()
        current, now = change.before, self._clock()
        waiting = self._ledger.waiting()
        return {
            "deployment": self.deployment,
            "storage_path": self._store.uri,
            "generation": current.number,
            "digest": current.digest,
            "guarantee": self.config.guarantee,
            "partition": self.config.partition.kind,
            "n_users": len(current.users) - len(current.users.tombstones()),
            "n_items": len(current.items) - len(current.items.tombstones()),
            "n_interactions": current.manifest.n_interactions,
            "serving": "excision" if change.erased else "generation",
            "snapshot_generation": snapshot.generation,
            "shards": [
                {"shard": r.shard, "interactions": r.n_train, "held_out": r.n_valid, "excised": r.shard in change.erased}
                for r in current.manifest.shards
            ],
            "requests": self._ledger.counts(),
            "plan": self.settings.plan,
            "due_at": self.due_at(),
            "predicted_seconds": round(self._predicted_seconds(), 3),
            "costs": asdict(self._costs.costs()),
            "oldest_pending_seconds": round(oldest_pending_seconds(waiting, now), 3),
            "overdue": overdue(waiting, self.settings.deadline_days * DAY, now),
            "set_aside": self.set_aside(),
        }

    def overdue(self) -> int:
        """How many requests wait longer than the law allows."""
        return overdue(self._ledger.waiting(), self.settings.deadline_days * DAY, self._clock())

    def close(self) -> None:
        """Let go of the ledger's connections and of the pool's processes, where it owns them."""
        self.pool.close()
        self._ledger.close()

    def _loaded_change(self) -> Change:
        """The published generation, and what is being forgotten of it."""
        if self._pending is None:
            raise DeploymentError(self.deployment, "nothing has been trained yet: call fit first")
        return self._pending

    def _loaded(self) -> Loaded:
        return self._loaded_change().before

    def _served(self) -> Snapshot:
        if self._snapshot is None:
            raise DeploymentError(self.deployment, "nothing has been trained yet: call fit first")
        return self._snapshot

    def _published(self) -> GenerationRow:
        published = self._ledger.current()
        assert published is not None, "a request was carried out, so a generation was published"
        return published

    def _report(self, stage: str, done: int, total: int, note: str = "") -> None:
        self._progress = {"stage": stage, "done": done, "total": total, "note": note}

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._report("idle", 0, 0)

    def _step(self, name: str, requests: Sequence[RequestRow]) -> None:
        log.info(name, extra={"deployment": self.deployment, "requests": [row.request_id for row in requests]})
        self._on_step(name)


def _signer_of(settings: UnlearningConfig) -> Signer | None:
    return load_signing_key(settings.signing_key) if settings.signing_key else None


def _recorded(config: EraserConfig) -> EraserConfig:
    """The settings without those that say where and when things run: they change no bit, and a URL may hold a password."""
    usual = {name: getattr(EraserConfig().runtime, name) for name in RUN_HERE}
    runtime = config.runtime.model_copy(update=usual)
    return config.model_copy(update={"runtime": runtime, "unlearning": EraserConfig().unlearning})


def _receipt(
    row: RequestRow, request: UnlearningRequest, erasure: Erasure, before: Loaded, after: Manifest, published: GenerationRow
) -> Receipt:
    """All of a receipt but what is known when it is finished: when that is, and its place in the chain."""
    assert row.salt is not None and row.excised_at is not None  # noqa: PT018 - one fact: it is unfinished
    old, new = before.manifest.shards, dict(enumerate(after.shards))  # a new partition may have fewer
    changes = tuple(ShardChange.between(old[shard], new.get(shard)) for shard in sorted(erasure.owned))
    return Receipt(
        request_id=row.request_id,
        kind=row.kind,
        guarantee=after.config.guarantee,
        commitment=commitment(request, row.salt),
        pairs_erased=sum(len(pairs) for pairs in erasure.owned.values()),
        shards_touched=tuple(change.shard for change in changes),
        changes=changes,
        generation=published.number,
        generation_digest=published.digest,
        aggregate_before=before.manifest.aggregate.digest,
        aggregate_after=after.aggregate.digest,
        purged=published.to_purge,
        received_at=row.received_at,
        excised_at=row.excised_at,
    ).under_seal(row.salt)
