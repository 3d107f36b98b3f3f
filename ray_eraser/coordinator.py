"""The coordinator: learns, serves, and carries out requests to forget.

It is a plain class over a store, a ledger and a pool of shards. On Ray it is an actor (runtime/actors.py). All of its state can
be read again: killed at any point and restarted, it continues where the ledger says.

Its parts are in other modules: `opening` (settings), `intake` (accepting requests), `backlog` (unfinished requests), `building`
(making a generation), `serving` (the served model) and `reading` (questions). This module has the flows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from ray_eraser.backlog import Backlog
from ray_eraser.building import Builder, Draft, FitReport, noted_with
from ray_eraser.clock import SteadyClock
from ray_eraser.config import EraserConfig, UnlearningConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.frames import Frame, Pairs
from ray_eraser.data.given import dataset_of
from ray_eraser.errors import DeploymentError, DeviceError, LedgerError, PoolError, StaleEpochError, StoreError
from ray_eraser.force import Claim, Force
from ray_eraser.generation import Change, remaining_dataset
from ray_eraser.healing import heal, named_files
from ray_eraser.ids import RequestId
from ray_eraser.intake import Desk, Intake, Submitted
from ray_eraser.logs import named_safely
from ray_eraser.notebook import ShowProgress, following
from ray_eraser.opening import agreed, as_run_here, noted_here, recorded, refuse_foreign, settings_with, unlearning_settings
from ray_eraser.partition import Partition
from ray_eraser.pool import LocalShardPool, ShardPool
from ray_eraser.reading import Reading
from ray_eraser.serving import Serving
from ray_eraser.status import is_in
from ray_eraser.store import FileRef, Store, manifest_ref
from ray_eraser.unlearning.evidence import check_start
from ray_eraser.unlearning.idempotency import KeyHash
from ray_eraser.unlearning.ledger import GenerationRow, Ledger, RequestRow, default_ledger
from ray_eraser.unlearning.receipt import Receipt
from ray_eraser.unlearning.request import Refusal, RequestState, Submission, UnlearningRequest
from ray_eraser.unlearning.request_files import requests_of
from ray_eraser.unlearning.signing import SigningKey, load_signing_key
from ray_eraser.unlearning.suppression import check_secret, note_secret
from ray_eraser.unlearning.work import Repartition

__all__ = ["Coordinator", "FitReport", "MakePool", "Submitted"]

log = logging.getLogger(__name__)

_FEW = 8
"""The largest batch that gets a head start: a larger one would be planned twice."""

MakePool = Callable[[EraserConfig], ShardPool]

_BUSY_SECONDS = 1.0
"""The interval between two checks whether a training is still running."""

_MACHINE = (StaleEpochError, StoreError, LedgerError, OSError)
"""Errors that are not caused by the requests of a batch."""


class Coordinator(Reading):
    """One deployment.

    Args:
        deployment: its name.
        storage_path: the folder of its files.
        make_pool: gives the pool for a configuration.
        config: for a new deployment; for an existing one None, or the same settings again.
        ledger_url: of the ledger's database; empty: `unlearning.ledger` of the config, or SQLite under a local storage path.
        clock: seconds since 1970.
        on_step: called with the name of every durable step, right after it.
        claim: what to do if another coordinator runs the deployment.

    Raises:
        DeploymentError: nothing is deployed there and no config is given, or the deployment has other settings.
        HeldError: another coordinator runs it, and `claim` does not take over.
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
        claim: Claim | None = None,
    ) -> None:
        self.deployment, self.storage_path = deployment, storage_path
        self._on_step, self._make_pool = on_step, make_pool
        self._store = Store(storage_path)
        if config is not None:
            self._signer = _signer_of(config.unlearning)  # before anything is made or recorded
        url = ledger_url or (config.unlearning.ledger if config is not None else "")
        self._ledger = Ledger(url or default_ledger(self._store, deployment, must_exist=config is None))
        self._working = threading.RLock()  # one batch, one fit, or one healing at a time
        try:
            self._open(config, clock, claim or Claim())
        except BaseException:
            self._ledger.close()
            raise

    @classmethod
    def local(cls, path: str | Path, config: EraserConfig | None = None, *, deployment: str = "default") -> Coordinator:
        """A coordinator that computes in this process, without Ray.

        Args:
            path: the folder of its files.
            config: for a new deployment; for an existing one None, or the same settings again.
            deployment: its name.

        Raises:
            DeploymentError, HeldError: as the class.

        Example:
            >>> shop = Coordinator.local("shop", EraserConfig())  # doctest: +SKIP
            >>> shop.fit(read_dataset("log.csv", shop.config.data, shop.config.seed))  # doctest: +SKIP
        """
        return cls(deployment, str(path), partial(LocalShardPool, str(path)), config)

    def _open(self, config: EraserConfig | None, clock: Callable[[], float], claim: Claim) -> None:
        # If this start is refused, the running coordinator must stay in force.
        agreed(self.deployment, self._store, self._ledger, config)
        given = config.unlearning if config is not None else unlearning_settings(self._ledger, config)
        if config is None:
            self._signer = _signer_of(given)
        check_start(self.deployment, self._ledger, self._signer)
        must_last = given.suppress_days > 0
        self._key_hash = KeyHash.of(given.key_folder, self._ledger.name, self._store.local_folder, must_last=must_last)
        check_secret(self._ledger, self._key_hash, clock())
        self._force = Force.claimed(self._ledger, self.deployment, given.lease_seconds, clock(), claim)
        # From here on, no other coordinator records a time.
        self._clock = SteadyClock(clock, self._ledger.newest_time())
        try:
            self._open_in_force(config)
        except BaseException as error:
            self._let_go(with_processes=isinstance(error, StaleEpochError))
            raise

    def _open_in_force(self, config: EraserConfig | None) -> None:
        # Read again: until now another coordinator could publish, and its files would be deleted as leftovers of a crash.
        published, settings = agreed(self.deployment, self._store, self._ledger, config)
        check_start(self.deployment, self._ledger, self._signer)
        settings = noted_here(self._ledger, settings, given=config is not None)
        self.settings = unlearning_settings(self._ledger, config)
        if self.settings.suppress_days:
            note_secret(self._ledger, self._key_hash)
        self._builder = Builder(self._store, self._ledger, self._clock, self._step, self._signer)
        self._serving = Serving(self.deployment, self._store, self._make_pool(settings), settings)
        desk = Desk(self._ledger, self.settings, self._clock, self._step, self._predicted_seconds, self._key_hash, self.heal)
        self._intake = Intake(desk, self._serving)
        if published is not None:
            self.resume(published)

    # ---- learn ---------------------------------------------------------------------------------------------------------

    def fit(
        self,
        log: Dataset | Pairs,
        partition: Partition | None = None,
        held: Partition | None = None,
        *,
        progress: ShowProgress = "auto",
    ) -> FitReport:
        """Divide the interactions, train every shard, aggregate, publish generation 1.

        Args:
            log: a `Dataset`, whose test set is left alone; a data frame or (user id, item id) pairs, read as a file is.
            partition: of `log.train`, to repeat an earlier partition; None makes one as configured.
            held: of `log.valid`, likewise.
            progress: as in `Client.fit`.

        Raises:
            InputError: a data frame lacks a column, or a value cannot be an id.
            DeploymentError: something is deployed here already.
        """
        dataset = dataset_of(log, self.config.data, self.config.seed)
        make = self._builder.from_dataset
        with following(progress, self.progress):
            return self._fit(lambda: make(dataset, self._settled(), self.pool, self._pool_for, partition, held))

    def fit_log(self, source: str) -> FitReport:
        """Make the generation that `fit` makes of `read_dataset(source, ...)`, without holding the whole log in any process.

        Pairs that are held out for the test are not stored.

        Args:
            source: a Parquet file, or a folder of Parquet files that are parts of one log. The path is the same on all nodes.

        Raises:
            DataFileError: as `read_dataset`.
            ConfigError: the partition is learned, which needs all interactions at once: use `fit`.
            DeploymentError: something is deployed here already.
        """
        return self._fit(lambda: self._builder.from_log(source, self._settled(), self.pool, self._pool_for))

    def _fit(self, drafted: Callable[[], Draft]) -> FitReport:
        with self._working:
            self._force.check()
            if not self._serving.is_empty:
                raise DeploymentError(self.deployment, f"{self._store.uri} is in use: unlearn from it, or choose another path")
            started = time.perf_counter()
            refuse_foreign(self.deployment, self._store, self._ledger)
            self._store.claim(self._ledger.name)
            self._ledger.note("settings", recorded(self.config).model_dump_json())
            self._builder.delete(self._store.files())  # of a fit that was never finished
            draft = drafted()
            divided = time.perf_counter()
            published, aggregated = self._builder.train_and_publish(draft, None, (), self.pool)
            self._serve(published, draft.pool)
            self._builder.report()
            done = time.perf_counter()
            seconds = {
                "partition": divided - started,
                "shards": done - divided - aggregated.seconds,
                "aggregation": aggregated.seconds,
                "total": done - started,
            }
            return FitReport.of(self._serving.loaded, seconds, draft.account)

    def _settled(self) -> EraserConfig:
        """The settings, with `runtime.device=auto` replaced by a device."""
        return self.config.on_device(self.pool.device_for(self.config))

    def _pool_for(self, config: EraserConfig) -> ShardPool:
        """The current pool if its shards have these settings, else a new one."""
        return self.pool if config.fingerprint() == self.config.fingerprint() else self._make_pool(config)

    # ---- accept --------------------------------------------------------------------------------------------------------

    def submit(self, request: UnlearningRequest, idempotency_key: str | None = None, priority: int = 0) -> Submitted:
        """Accept a request: record it, and make sure that nothing served depends on the data any more.

        When this returns, the request survives any crash. `process_pending` does the retraining.

        Args:
            request: the user, item or pairs to forget. Pairs that are not stored are passed over and counted.
            idempotency_key: a submission repeated with the same key is the same request.
            priority: above 0: the request does not wait for others, whatever the plan.

        Raises:
            UnknownIdError: nothing of the user or the item is here.
            RequestError: none of the pairs is here, or the key belongs to another request.
            QueueFullError: too many requests wait.
            LedgerError: the request cannot be recorded.
            StaleEpochError: another coordinator has taken over: ask it.
        """
        with self._force.recording():
            return self._intake.submit(Submission(request, idempotency_key, priority))

    def submit_many(self, submissions: Iterable[Submission] | Frame, *, partial: bool = False) -> list[Submitted | Refusal]:
        """Accept many requests, or the rows of a data frame (`request_files.read_frame`): all, or with `partial` the sound.

        The answers have the order of the requests. Raises as `submit`, for the first request at fault, and names its row.
        """
        asked = requests_of(submissions, partial=partial)
        with self._force.recording():
            return asked.in_order(self._intake.submit_many(asked.submissions, partial=partial))

    def learn(self, pairs: Pairs, idempotency_key: str | None = None, *, take_back: bool = False) -> Submitted:
        """Accept (user id, item id) pairs to learn from; `process_pending` trains the shards that they go to.

        Each pair goes where a fit on all interactions would put it, for training or validation. For learned partitions see
        `partition.place_learned`. Known pairs, and pairs that `data.test_share` holds out for a test, are ignored. When this
        returns, the pairs can be erased like all others.

        Args:
            pairs: (user id, item id) each, or a data frame.
            idempotency_key: as `submit`.
            take_back: also learn pairs that were erased and must not be learned again (`unlearning.suppress_days`).

        Raises:
            RequestError: no pair is left, an id cannot be one, or the key cannot be one.
            QueueFullError, LedgerError, StaleEpochError: as `submit`.
        """
        with self._force.recording():
            return self._intake.learn(pairs, idempotency_key, take_back=take_back)

    def repartition(self, changes: Sequence[str] = (), idempotency_key: str | None = None) -> Submitted:
        """Have everything made from scratch, as a fit on the remaining interactions would: settings, partition, all shards.

        Reads and requests go on meanwhile, and the new generation replaces the old one as a whole. A repartition makes an
        `exact-given-partition` deployment independent of earlier erasures, and is the way to other settings.

        Args:
            changes: settings to change from then on, as `section.key=value`; see `config.changed`.
            idempotency_key: as `submit`.

        Raises:
            ConfigError: a setting is unknown, out of range, or plays no part in making a generation.
            RequestError, QueueFullError, LedgerError, StaleEpochError: as `submit`.
        """
        with self._force.recording():
            return self._intake.repartition(changes, idempotency_key)

    def retry(self, request_id: RequestId) -> None:
        """Try a request that was set aside again.

        Raises:
            UnknownRequestError, IllegalTransitionError: no request has this id, or it was not set aside.
        """
        with self._force.recording():
            self._ledger.retry(request_id)

    # ---- carry out -----------------------------------------------------------------------------------------------------

    def process_pending(self) -> list[Receipt]:
        """Carry out all waiting requests in one retraining: one new generation, and one receipt for each erasure.

        Every step is recorded before the next one begins, and gives the same result if it is repeated. `resume` continues here.
        """
        ahead = self._builder.ahead
        with self._working, self._reporting(), ahead(self._known_ahead(), self._planned, self.pool) as start:
            self._intake.excise()
            batch = self._next_batch()
            if not batch:
                return []
            pool = None
            if batch[0].generation is None:
                with self._failing(batch):
                    change, draft = start.of(batch) or self._planned(batch)
                    published, _ = self._builder.train_and_publish(draft, change, batch, self.pool)
                    pool = draft.pool
                self._step("published", batch)
            else:
                published = self._published()

            self._serve(published, pool)
            restored_at = self._clock()
            self._builder.delete(published.to_purge)
            self._step("purged", batch)

            purged_at = self._clock()
            rows = [self._ledger.request(row.request_id) for row in batch]
            drafts = [row.receipt for row in rows if row.receipt is not None]
            receipts = [replace(receipt, restored_at=restored_at, purged_at=purged_at) for receipt in drafts]
            done = [row.request_id for row in rows if row.receipt is None]
            suppressed = self._intake.suppressed((row.work for row in rows), purged_at)
            receipts = self._ledger.finish(receipts, self._signer, done, suppressed)
            self._step("finished", batch)
            return receipts

    def _known_ahead(self) -> Sequence[RequestRow]:
        """The requests of the next batch, if they are known before the excision: few requests, all of them new."""
        self._intake.let_arrive()
        if self._serving.is_empty:
            return ()
        try:
            rows = self._ledger.unfinished()
        except LedgerError:
            return ()  # the next ledger call raises it again
        is_known = all(row.state is RequestState.RECEIVED and isinstance(row.work, UnlearningRequest) for row in rows)
        return rows if len(rows) <= _FEW and is_known else ()

    def _next_batch(self) -> list[RequestRow]:
        """The batch that a crash interrupted; otherwise all waiting requests except those whose training failed."""
        with self._serving.lock:  # later erasures must not shorten the learnings of this batch
            backlog = Backlog.read(self._ledger)
            if interrupted := backlog.interrupted():
                return interrupted
            batch = backlog.next_batch()
            if batch:
                self._ledger.routed([row.request_id for row in batch])
                self._step("routed", batch)
            return batch

    def _planned(self, batch: Sequence[RequestRow]) -> tuple[Change, Draft]:
        """The change and the draft of a batch."""
        change = Change.of(self._serving.loaded, batch)
        works = [row.work for row in batch if isinstance(row.work, Repartition)]
        if not works:
            return change, self._builder.draft_of_change(change, self.config, self.pool)
        settings = settings_with(self._ledger, self.config, [setting for work in works for setting in work.changes])
        on_device = settings.on_device(self.pool.device_for(settings))
        draft = self._builder.from_dataset(remaining_dataset(change, settings), on_device, self.pool, self._pool_for)
        return change, noted_with(draft, settings)

    @contextmanager
    def _failing(self, batch: Sequence[RequestRow]) -> Iterator[None]:
        """Record why a batch failed, so that other requests go on. A failure of the machine does not count."""
        try:
            yield
        except _MACHINE:
            raise
        except Exception as error:
            self._force.check()  # otherwise the batch belongs to another coordinator by now
            # A dead process or a missing GPU is the machine's fault: the batch is retried for ever, but behind the others.
            attempts = 0 if isinstance(error, PoolError | DeviceError) else self.settings.max_attempts
            names = [row.request_id for row in batch]
            with self._serving.lock:
                # The learnings wait again, so they lose the pairs that requests erased during their training.
                left = Backlog.read(self._ledger).left_to_learn()
                amended = {name: left[name] for name in names if name in left}
                self._ledger.failed(names, named_safely(error), attempts, amended)
            self._step("failed", batch)
            with suppress(*_MACHINE):  # otherwise the next generation deletes the leftovers
                self._builder.delete(self._builder.left_over(self._published()))
            raise

    def resume(self, published: GenerationRow) -> None:
        """Serve the published generation without the data of requests that were accepted since."""
        if self._store.owner() is None:
            self._store.claim(self._ledger.name)
        self._builder.delete(self._builder.left_over(published))
        self.pool.tidy()
        self._serve(published)
        self._intake.excise()

    def _serve(self, published: GenerationRow, pool: ShardPool | None = None) -> None:
        """Serve a published generation without the data of accepted requests that it still contains.

        `pool` has the generation's settings. None makes one if the settings have changed.
        """
        loaded = self._serving.read(published)
        config = as_run_here(loaded.manifest.config, self.config.runtime)
        with self._serving.lock:
            waiting = [row for row in self._ledger.unfinished() if not is_in(row, published.number)]
            self._serving.replace(loaded, waiting, pool if pool is not None else self._pool_for(config), config)

    def keep_in_force(self) -> None:
        """Renew the lease when it is time. Call this about every second.

        Raises:
            StaleEpochError: another coordinator has taken over, and may have erased data that this one serves.
            LedgerError: the ledger does not answer. This coordinator stops answering when its lease has run out.
        """
        self._force.keep()

    def sweep(self) -> None:
        """Delete files of no generation, unless a training is running, and expired entries of the suppression list.

        A coordinator that was replaced while its shards trained may leave such files behind.
        """
        with _held_if_free(self._working) as is_free:
            if is_free and not self._serving.is_empty:
                self._builder.delete(self._builder.left_over(self._published()))
        self._ledger.drop_expired(self._clock())

    def verify(self, pause: Callable[[], None] = lambda: None) -> tuple[str, ...]:
        """Like `heal`, but slow: nothing waits for it unless a file is damaged.

        It holds no generation in memory, because data that is erased meanwhile would stay there. If another generation is
        published, it continues with the files of the new one.

        Args:
            pause: called after each verified file.
        """
        verified: set[FileRef] = set()
        while not self._serving.is_empty:
            loaded = self._serving.loaded
            manifest, digest = loaded.manifest, loaded.digest
            del loaded
            ref = next((ref for ref in named_files(manifest, digest) if ref not in verified), None)
            if ref is None:
                break
            try:
                self._store.verify(ref)
                verified.add(ref)
            except StoreError:
                healed = self.heal()
                if healed:
                    return healed
                if healed is None:
                    time.sleep(_BUSY_SECONDS)
            pause()
        return ()

    def heal(self) -> tuple[str, ...] | None:
        """Verify every file of the published generation, and make damaged ones again: see `healing.heal`.

        Returns:
            What was made again, in words; None where something else is being trained, so that nothing was looked at.

        Raises:
            StoreError: a file cannot be made again.
        """
        with _held_if_free(self._working) as is_free:
            if not is_free:
                return None
            loaded = self._serving.loaded
            current = partial(self._while_current, loaded.digest)
            healed = heal(self._store, loaded, self.pool, self._ledger.epoch, in_force=current)
        if healed:
            log.error("damaged files were made again", extra={"deployment": self.deployment, "files": list(healed)})
        return healed

    @contextmanager
    def _while_current(self, digest: str) -> Iterator[None]:
        with self._ledger.in_force() as connection:
            if self._ledger.current_digest(connection) != digest:
                raise StoreError(manifest_ref(digest).path, "was superseded meanwhile")
            yield

    def close(self) -> None:
        """Stop answering, and release the ledger's connections and the pool's processes, if the pool owns them."""
        self._let_go(with_processes=True)
        self._ledger.close()

    def _let_go(self, *, with_processes: bool) -> None:
        """Go out of force and drop all data from memory: another coordinator may erase it."""
        try:
            with suppress(LedgerError):
                self._force.end()
        finally:
            if hasattr(self, "_serving"):  # opening may have failed earlier
                self._serving.drop()
                if with_processes:
                    self.pool.close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except (StoreError, PoolError):
            self._force.check()  # if another coordinator took over, say so: files and processes are its own now
            raise
        finally:
            self._builder.report()

    def _step(self, name: str, requests: Sequence[RequestRow]) -> None:
        log.info(name, extra={"deployment": self.deployment, "requests": [row.request_id for row in requests]})
        self._on_step(name)


@contextmanager
def _held_if_free(lock: threading.RLock) -> Iterator[bool]:
    """Hold a lock for the block if no other thread has it. Yields whether it is held."""
    is_free = lock.acquire(blocking=False)
    try:
        yield is_free
    finally:
        if is_free:
            lock.release()


def _signer_of(settings: UnlearningConfig) -> SigningKey | None:
    return load_signing_key(settings.signing_key) if settings.signing_key else None
