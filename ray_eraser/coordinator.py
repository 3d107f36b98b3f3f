"""The coordinator: learns, serves, and carries out what it promised to forget.

A plain class over a store, a ledger and a pool of shards; on Ray it is an actor (runtime/actors.py). It keeps nothing that it
could not read again: killed at any point and started anew, it goes on where the ledger says.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ray_eraser import seeds
from ray_eraser.aggregator import Aggregated, AggregationOrder
from ray_eraser.config import EraserConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import DeploymentError, RequestError, StaleEpochError
from ray_eraser.ids import Generation, RawId, RequestId, ShardId
from ray_eraser.partition import Partition, divide, place
from ray_eraser.pool import ShardPool
from ray_eraser.recommend import Snapshot
from ray_eraser.shard import ShardOrder, Trained
from ray_eraser.store import FileRef, Manifest, ShardData, ShardRecord, Store, manifest_ref
from ray_eraser.training.pretrain import pretrain
from ray_eraser.training.weights import choose_alpha0
from ray_eraser.unlearning.ledger import GenerationRow, Ledger, RequestRow, default_ledger
from ray_eraser.unlearning.receipt import Receipt, ShardChange, commitment
from ray_eraser.unlearning.request import RequestState, Target, UnlearningRequest, resolve
from ray_eraser.unlearning.routing import owned_by_shard, together

log = logging.getLogger(__name__)

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
class _Current:
    """The published generation, in memory."""

    number: Generation
    digest: str
    manifest: Manifest
    users: Vocabulary
    items: Vocabulary
    shards: dict[ShardId, ShardData]
    model: Embeddings


@dataclass(frozen=True)
class _Erasure:
    """One request against the current generation: its rows, and the interactions that each shard owns of it."""

    target: Target
    owned: dict[ShardId, Interactions]


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
        url = ledger_url or (config.unlearning.ledger if config is not None else "")
        self._ledger = Ledger(url or default_ledger(self._store, deployment, must_exist=config is None))
        self._working = threading.Lock()  # one batch, or one fit, at a time
        self._serving = threading.RLock()  # what is served changes as a whole; never held while shards train
        self._progress: dict[str, Any] = {"stage": "idle", "done": 0, "total": 0}
        self._current: _Current | None = None
        self._snapshot: Snapshot | None = None
        self._agreed(config)  # a start that is refused leaves the coordinator that runs in force
        self._epoch = self._ledger.begin_epoch(self._clock())
        # Looked at again: until now another coordinator could publish, and its files would be swept as a crash's leftovers.
        published, self.config = self._agreed(config)
        self._make_pool = make_pool
        self.pool = make_pool(self.config)
        if published is not None:
            self.resume(published)

    def _agreed(self, config: EraserConfig | None) -> tuple[GenerationRow | None, EraserConfig]:
        """The published generation, if there is one, and the settings: those it was trained with, or those given."""
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

    # ---- learn ---------------------------------------------------------------------------------------------------------

    def fit(self, dataset: Dataset, partition: Partition | None = None) -> FitReport:
        """Divide the interactions, train every shard, aggregate, publish generation 1.

        Args:
            dataset: what to learn from; its test set is left alone.
            partition: of `dataset.train`, where it is to be the same as another time; None makes one as configured.

        Raises:
            DeploymentError: something is deployed here already.
        """
        with self._working:
            self.check_in_force()  # what another coordinator has trained here since is none of this one's to sweep
            if self._current is not None:
                raise DeploymentError(self.deployment, f"{self._store.uri} is in use: unlearn from it, or choose another path")
            started = time.perf_counter()
            self._report("partition", 0, 1)
            self._sweep(wanted=set())  # of a fit that was never finished
            key = seeds.secret(self.config.seed, "ids")
            user_keys, item_keys = dataset.users.keys(key), dataset.items.keys(key)
            self._settle(dataset.train, user_keys, item_keys)
            settled = time.perf_counter()
            seed, settings = self.config.seed, self.config.partition
            if partition is None:
                embeddings = self._pretrained(dataset.train, item_keys)
                partition = divide(dataset.train, user_keys, item_keys, settings, seed, embeddings)
            held_owners = place(dataset.valid, dataset.train, partition, user_keys, item_keys, settings, seed)
            users = self._store.write_vocabulary(dataset.users)
            items = self._store.write_vocabulary(dataset.items, item_keys)
            orders = {}
            for k in range(settings.n_shards):
                data = ShardData(partition.of_shard(dataset.train, ShardId(k)), dataset.valid.take(held_owners == k))
                written = self._store.write_shard_data(ShardId(k), data)
                orders[ShardId(k)] = ShardOrder(self._epoch, users, items, written, Interactions.none())
            divided = time.perf_counter()

            trained = self._train(orders)
            records = tuple(trained[ShardId(k)].record for k in range(settings.n_shards))
            seconds = {"partition": divided - settled, "shards": time.perf_counter() - divided}
            published, aggregated = self._publish(users, items, records, {}, ())
            seconds |= {"aggregation": aggregated.seconds, "total": time.perf_counter() - started}
            self._serve(self._load(published))
            self._report("idle", 0, 0)
            return FitReport(
                generation=published.number,
                digest=published.digest,
                n_users=len(dataset.users),
                n_items=len(dataset.items),
                n_interactions=len(dataset.train),
                n_shards=settings.n_shards,
                shard_sizes=[int(size) for size in partition.sizes()],
                balance=round(partition.balance(), 4),
                shards_per_user=round(partition.shards_per_user(dataset.train), 4),
                partition=settings.kind,
                guarantee=self.config.guarantee,
                alpha0=self.config.als_settings.known_alpha0,
                seconds={name: round(value, 3) for name, value in seconds.items()},
            )

    def _settle(self, train: Interactions, user_keys: np.ndarray, item_keys: np.ndarray) -> None:
        """Choose from the log what the settings leave open. Recorded with the generation, and kept by every erasure."""
        if self.config.is_settled:
            return
        alpha0 = choose_alpha0(train, user_keys, item_keys, self.config, self.pool)
        log.info("alpha0 chosen", extra={"deployment": self.deployment, "alpha0": alpha0})
        self.pool.close()  # its shards were made with the settings that left it open
        self.config = self.config.settled(alpha0)
        self.pool = self._make_pool(self.config)

    def _pretrained(self, train: Interactions, item_keys: np.ndarray) -> Embeddings | None:
        """Embeddings of the whole log, for a partition made from them; never written, and gone when the partition is made."""
        if not self.config.partition.needs_embeddings:
            return None
        return self.pool.run([partial(pretrain, train, item_keys, self.config)])[0]

    # ---- forget --------------------------------------------------------------------------------------------------------

    def submit(self, request: UnlearningRequest, idempotency_key: str | None = None) -> Submitted:
        """Accept a request: record it, and see to it that nothing served depends on the data any more.

        From the return on, the request survives any crash. The retraining is done by `process_pending`.

        Args:
            request: what to forget.
            idempotency_key: a submission repeated with the same key is the same request.

        Raises:
            UnknownIdError: an id is not here (any more).
            RequestError: a pair is not among the data, or the key belongs to another request.
            StaleEpochError: another coordinator has taken over: ask that one.
        """
        received_at = self._clock()
        with self._serving:
            row = self._ledger.recorded(idempotency_key, request)
            if row is None:
                self._check(request)
                name = RequestId(secrets.token_hex(16))
                row = self._ledger.receive(self._epoch, name, request, secrets.token_hex(32), idempotency_key, received_at)
                self._step("received", row.request_id)
            self._excise()
        return Submitted(row.request_id, self._ledger.request(row.request_id).state, row.salt)

    def process_pending(self) -> list[Receipt]:
        """Carry out every accepted request: one retraining for all that wait, one new generation, one receipt each.

        Every step is recorded before the next begins and gives the same result when it is repeated; `resume` enters here.
        """
        with self._working:
            self._excise()
            batch = self._next_batch()
            if not batch:
                return []
            if batch[0].generation is None:
                before = self._loaded()
                erasures = self._erasures(before, batch)
                per_shard = together(erasure.owned for erasure in erasures.values())
                vocabularies = before.manifest.users, before.manifest.items
                orders = {
                    shard: ShardOrder(self._epoch, *vocabularies, before.manifest.shards[shard].interactions, pairs)
                    for shard, pairs in per_shard.items()
                }
                trained = self._train(orders)
                self._step("retrained")

                records = tuple(
                    trained[record.shard].record if record.shard in trained else record for record in before.manifest.shards
                )
                users, items = self._vocabularies_without(before, erasures)
                published, _ = self._publish(users, items, records, erasures, batch)
                self._step("published")
            else:
                published = self._published()

            after = self._loaded() if self._loaded().number == published.number else self._load(published)
            self._serve(after)
            for path in published.to_purge:
                self._store.delete(path)
            self._step("purged")

            done_at = self._clock()
            rows = [self._ledger.request(row.request_id) for row in batch]
            receipts = [replace(row.receipt, erased_at=done_at) for row in rows if row.receipt is not None]
            self._ledger.finish(receipts)
            self._step("finished")
            self._report("idle", 0, 0)
            return receipts

    def check_in_force(self) -> None:
        """Raise `StaleEpochError` once another coordinator has started: what this one serves may be erased there."""
        newest = self._ledger.newest_epoch()
        if newest != self._epoch:
            raise StaleEpochError(f"deployment {self.deployment!r}", newest, self._epoch)

    def has_pending(self) -> bool:
        """Whether `process_pending` would have something to do."""
        return bool(self._ledger.unfinished())

    def resume(self, published: GenerationRow) -> None:
        """Take up the published generation, with everything that was accepted since already left out of what is served."""
        current = self._load(published)
        self._sweep({ref.path for ref in current.manifest.files()} | {manifest_ref(current.digest).path})
        self._serve(current)
        self._excise()

    def _sweep(self, wanted: set[str]) -> None:
        """Delete what a crash left of generations that never came to be; what is still needed of them is written again."""
        for path in self._store.files():
            if path not in wanted:
                self._store.delete(path)

    def _check(self, request: UnlearningRequest) -> None:
        snapshot = self._served()
        target = resolve(request, snapshot.users, snapshot.items)
        absent = target.pairs.without(snapshot.seen)
        if len(absent):
            (user,), (item,) = snapshot.users.raw(absent.users[:1]), snapshot.items.raw(absent.items[:1])
            raise RequestError(
                f"{len(absent)} of {len(target.pairs)} pairs are not among the data or are being erased already, "
                f"the first is ({user!r}, {item!r}): leave them out"
            )

    def _excise(self) -> None:
        """Change what is served so that it depends on nothing that a received request is about; then record it."""
        with self._serving:
            received = [row.request_id for row in self._ledger.unfinished() if row.state is RequestState.RECEIVED]
            if received:
                self._serve(self._loaded())
                self._ledger.excised(received, self._clock())
                self._step("excised")

    def _next_batch(self) -> list[RequestRow]:
        """The batch that a crash interrupted; else all requests that wait."""
        rows = self._ledger.unfinished()
        interrupted = [row for row in rows if row.state is RequestState.ROUTED]
        if interrupted:
            return interrupted
        waiting = [row for row in rows if row.state is RequestState.EXCISED]
        if waiting:
            self._ledger.routed([row.request_id for row in waiting])
            self._step("routed")
        return waiting

    def _waiting_for(self, current: _Current) -> list[RequestRow]:
        """Requests whose data a generation still holds, be it that a newer one without them is published already."""
        return [row for row in self._ledger.unfinished() if row.generation is None or row.generation > current.number]

    def _erasures(self, current: _Current, rows: list[RequestRow]) -> dict[RequestId, _Erasure]:
        """What each request removes from a generation. A pair that several name counts for the first of them."""
        left = dict(current.shards)
        erasures = {}
        for row in rows:
            assert row.request is not None, "an unfinished request still says what it is about"
            target = resolve(row.request, current.users, current.items)
            owned = owned_by_shard(target, left)
            left |= {shard: left[shard].without(pairs) for shard, pairs in owned.items()}
            erasures[row.request_id] = _Erasure(target, owned)
        return erasures

    def _vocabularies_without(self, before: _Current, erasures: Mapping[RequestId, _Erasure]) -> tuple[FileRef, FileRef]:
        """The vocabularies' files with tombstones for the ids that go."""
        user_rows = [row for erasure in erasures.values() for row in erasure.target.user_rows]
        item_rows = [row for erasure in erasures.values() for row in erasure.target.item_rows]
        users, items = before.manifest.users, before.manifest.items
        if user_rows:
            users = self._store.write_vocabulary(before.users.without(user_rows))
        if item_rows:
            keys = self._store.read_item_keys(items).copy()
            keys[item_rows] = 0  # the hash of an erased id would still betray it to whoever has the key
            items = self._store.write_vocabulary(before.items.without(item_rows), keys)
        return users, items

    # ---- publish and serve ---------------------------------------------------------------------------------------------

    def _train(self, orders: dict[ShardId, ShardOrder]) -> dict[ShardId, Trained]:
        finished: list[float] = []
        self._report("shards", 0, len(orders))

        def on_done(trained: Trained) -> None:
            finished.append(trained.seconds)
            self._report("shards", len(finished), len(orders), f"shard {trained.record.shard} in {trained.seconds:.1f} s")

        return self.pool.erase(orders, on_done)

    def _publish(
        self,
        users: FileRef,
        items: FileRef,
        records: tuple[ShardRecord, ...],
        erasures: Mapping[RequestId, _Erasure],
        batch: list[RequestRow] | tuple[()],
    ) -> tuple[GenerationRow, Aggregated]:
        """Aggregate, write the manifest, and let the ledger point to it together with the batch's receipts."""
        self._report("aggregation", 0, 1)
        aggregated = self.pool.aggregate(AggregationOrder(items, records, Interactions.none()))
        self._step("aggregated")
        manifest = Manifest(self._recorded_config, aggregated.environment, users, items, records, aggregated.aggregate)
        written = self._store.write_manifest(manifest)
        self._step("written")
        before = self._current
        superseded: tuple[str, ...] = ()
        if before is not None:
            kept = {ref.path for ref in manifest.files()} | {written.path}
            old = [*before.manifest.files(), manifest_ref(before.digest)]
            superseded = tuple(sorted({ref.path for ref in old} - kept))
        number = Generation(1 if before is None else before.number + 1)
        row = GenerationRow(number, written.digest, self._clock(), superseded)
        receipts = {
            request.request_id: _receipt(request, erasures[request.request_id], self.config, before, manifest, row)
            for request in batch
            if before is not None
        }
        self._ledger.publish(self._epoch, row, receipts)
        return row, aggregated

    @property
    def _recorded_config(self) -> EraserConfig:
        """The settings without those that say where things run: they change no bit, and a ledger's URL may hold a password."""
        runtime = self.config.runtime.model_copy(update={"slots": 0, "timeout_seconds": EraserConfig().runtime.timeout_seconds})
        return self.config.model_copy(update={"runtime": runtime, "unlearning": EraserConfig().unlearning})

    def _load(self, published: GenerationRow) -> _Current:
        manifest = self._store.read_manifest(published.digest)
        return _Current(
            published.number,
            published.digest,
            manifest,
            self._store.read_vocabulary(manifest.users, "user"),
            self._store.read_vocabulary(manifest.items, "item"),
            {record.shard: self._store.read_shard_data(record.interactions) for record in manifest.shards},
            self._store.read_embeddings(manifest.aggregate),
        )

    def _serve(self, current: _Current) -> None:
        """Serve a generation, without whatever accepted requests are still to be erased from it."""
        with self._serving:
            erasures = self._erasures(current, self._waiting_for(current))
            per_shard = together(erasure.owned for erasure in erasures.values())
            users = current.users.without(row for erasure in erasures.values() for row in erasure.target.user_rows)
            items = current.items.without(row for erasure in erasures.values() for row in erasure.target.item_rows)
            erased = Interactions.union(list(per_shard.values()))
            everything = Interactions.union([part for data in current.shards.values() for part in (data.train, data.valid)])
            order = AggregationOrder(current.manifest.items, current.manifest.shards, erased, frozenset(per_shard))
            model = self.pool.excise(order) if per_shard else current.model
            self._current = current
            self._snapshot = Snapshot(model, users, items, everything.without(erased), current.number)
            if not per_shard:
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
        return self._served().model

    def status(self, request_id: RequestId) -> RequestState:
        return self._ledger.request(request_id).state

    def receipt(self, request_id: RequestId) -> Receipt | None:
        """The receipt of a finished request; None while it is unfinished."""
        row = self._ledger.request(request_id)
        return row.receipt if row.state is RequestState.ERASED else None

    def progress(self) -> dict[str, Any]:
        """What is being done: `stage`, `done`, `total`, and a `note` for people."""
        return self._progress

    def describe(self) -> dict[str, Any]:
        """The deployment in plain values."""
        current, snapshot = self._loaded(), self._served()
        waiting = self._erasures(current, self._waiting_for(current))
        excised = together(erasure.owned for erasure in waiting.values())
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
            "serving": "excision" if excised else "generation",
            "snapshot_generation": snapshot.generation,
            "shards": [
                {"shard": r.shard, "interactions": r.n_train, "held_out": r.n_valid, "excised": r.shard in excised}
                for r in current.manifest.shards
            ],
            "requests": self._ledger.counts(),
        }

    def close(self) -> None:
        """Let go of the ledger's connections and of the pool's processes, where it owns them."""
        self.pool.close()
        self._ledger.close()

    def _loaded(self) -> _Current:
        if self._current is None:
            raise DeploymentError(self.deployment, "nothing has been trained yet: call fit first")
        return self._current

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

    def _step(self, name: str, request_id: RequestId | None = None) -> None:
        log.info(name, extra={"deployment": self.deployment, "request": request_id})
        self._on_step(name)


def _receipt(
    row: RequestRow, erasure: _Erasure, config: EraserConfig, before: _Current, after: Manifest, published: GenerationRow
) -> Receipt:
    """All of a receipt but the time at which it is finished."""
    assert row.request is not None and row.salt is not None and row.excised_at is not None  # noqa: PT018 - one fact: it is unfinished
    changes = tuple(
        ShardChange(
            shard,
            before.manifest.shards[shard].interactions.digest,
            after.shards[shard].interactions.digest,
            before.manifest.shards[shard].submodel.digest,
            after.shards[shard].submodel.digest,
        )
        for shard in sorted(erasure.owned)
    )
    return Receipt(
        request_id=row.request_id,
        kind=row.kind,
        guarantee=config.guarantee,
        commitment=commitment(row.request, row.salt),
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
        erased_at=0.0,
    )
