"""Builds a generation: drafts it, trains its shards, aggregates them, writes the manifest and publishes it in the ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ray_eraser.aggregator import Aggregated, AggregationOrder
from ray_eraser.compute import Compute
from ray_eraser.config import EraserConfig
from ray_eraser.data.account import Account
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.keyed import KeyedPairs, all_keys
from ray_eraser.devices import check_same, same_as
from ray_eraser.generation import NO_GAIN, Change, Loaded
from ray_eraser.ids import Generation, RequestId, ShardId
from ray_eraser.ingest import Ingested, ingest
from ray_eraser.logs import named_safely
from ray_eraser.opening import asked_settings, recorded
from ray_eraser.partition import Partition
from ray_eraser.partition.assignment import balance_of
from ray_eraser.pool import ShardPool
from ray_eraser.prepare import chosen_at, prepare, settle
from ray_eraser.shard import ShardOrder, Trained
from ray_eraser.status import Progress
from ray_eraser.store import FileRef, Manifest, ShardRecord, Store, manifest_ref
from ray_eraser.unlearning.ledger import GenerationRow, Ledger, RequestRow
from ray_eraser.unlearning.plan import CostModel, Run, ShardRun
from ray_eraser.unlearning.receipt import Receipt, ShardChange, Signer, commitment
from ray_eraser.unlearning.request import UnlearningRequest

log = logging.getLogger(__name__)

OnStep = Callable[[str, Sequence[RequestRow]], None]
"""Called after every durable step with the step's name and requests."""

PoolFor = Callable[[EraserConfig], ShardPool]
"""Returns a pool whose shards have the given settings."""


@dataclass(frozen=True, eq=False)
class Draft:
    """A generation before training: which shards train, and which files stay.

    Attributes:
        config: its settings.
        chosen: names of the settings that were chosen from the log.
        pool: the shards with these settings.
        integers: `user` and `item`, if their ids are returned as integers.
        users, items: the files of its vocabularies.
        orders: one order for each shard that must train.
        kept: the files of the other shards.
        notes: entries for the ledger, written with the publication.
        account: the rows of the log, counted, for the report of a fit. It counts data that may be erased later, so it is not
            stored.
    """

    config: EraserConfig
    chosen: tuple[str, ...]
    pool: ShardPool
    integers: tuple[str, ...]
    users: tuple[FileRef, ...]
    items: tuple[FileRef, ...]
    orders: Mapping[ShardId, ShardOrder]
    kept: Mapping[ShardId, ShardRecord] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    account: Account = field(default_factory=Account)


@dataclass(frozen=True)
class FitReport:
    """The result of a fit.

    Attributes:
        generation, digest: number and manifest digest of the published generation.
        n_users, n_items: users and items with a stored interaction.
        n_interactions: interactions that the shards train on.
        held_out: interactions stored for validation only.
        held_for_test: interactions of the test set, which are stored nowhere.
        rows_read, merged, left_out: rows of the log; rows that repeat an interaction; and rows that were left out, by reason.
        notices: remarks on how the log was read. They name no id.
        n_shards, shard_sizes, balance, shards_per_user, partition: how the interactions are divided.
        guarantee, chosen: the level that receipts will claim, and the settings that were chosen from the log.
        alpha0: the weight of unobserved pairs; None if no stored file depends on it.
        seconds: duration of every stage.
    """

    generation: Generation
    digest: str
    n_users: int
    n_items: int
    n_interactions: int
    held_out: int
    held_for_test: int
    rows_read: int
    merged: int
    left_out: dict[str, int]
    notices: tuple[str, ...]
    n_shards: int
    shard_sizes: list[int]
    balance: float
    shards_per_user: float
    partition: str
    guarantee: str
    chosen: tuple[str, ...]
    alpha0: float | None
    seconds: dict[str, float]

    @classmethod
    def of(cls, loaded: Loaded, seconds: Mapping[str, float], account: Account) -> FitReport:
        """Describe a fitted generation, the duration of its stages, and the rows of its log."""
        manifest, shards = loaded.manifest, list(loaded.shards.values())
        config, sizes = manifest.config, np.array([len(data.train) for data in shards])
        trained = [data.user_keys[data.train.user_rows()] for data in shards]
        return cls(
            generation=loaded.number,
            digest=loaded.digest,
            n_users=len(loaded.users),
            n_items=len(loaded.items),
            n_interactions=int(sizes.sum()),
            held_out=sum(len(data.valid) for data in shards),
            held_for_test=account.held_for_test,
            rows_read=account.rows_read,
            merged=account.merged,
            left_out=dict(account.left_out),
            notices=account.notices,
            n_shards=config.partition.n_shards,
            shard_sizes=sizes.tolist(),
            balance=round(balance_of(sizes), 4),
            shards_per_user=round(sum(map(len, trained)) / max(1, len(all_keys(trained))), 4),
            partition=config.partition.kind,
            guarantee=manifest.guarantee,
            chosen=manifest.chosen,
            alpha0=config.own_alpha0 if config.needs_alpha0 else None,
            seconds={name: round(value, 3) for name, value in seconds.items()},
        )


@dataclass(frozen=True, eq=False)
class HeadStart:
    """A draft made before its requests became a batch; empty if there was none."""

    rows: Sequence[RequestRow] = ()
    made: tuple[Change, Draft] | None = None

    def of(self, batch: Sequence[RequestRow]) -> tuple[Change, Draft] | None:
        """The change and the draft, if the batch has exactly these requests."""
        return self.made if [row.request_id for row in batch] == [row.request_id for row in self.rows] else None


class Builder:
    """Builds generations for one coordinator.

    Args:
        store, ledger: the deployment's.
        clock: gives seconds since 1970.
        on_step: see `OnStep`.
        signer: signs the statement of which generation is current.
    """

    def __init__(
        self, store: Store, ledger: Ledger, clock: Callable[[], float], on_step: OnStep, signer: Signer | None = None
    ) -> None:
        self._store, self._ledger, self._epoch = store, ledger, ledger.epoch
        self._clock, self._step, self._signer = clock, on_step, signer
        self.costs = CostModel.from_json(ledger.noted("costs", CostModel().to_json()))
        self.progress = Progress()

    def report(self, stage: str = "idle", done: int = 0, total: int = 0, note: str = "") -> None:
        """Update `progress`."""
        self.progress = Progress(stage, done, total, note)

    # ---- drafts --------------------------------------------------------------------------------------------------------

    def from_dataset(
        self,
        dataset: Dataset,
        config: EraserConfig,
        compute: Compute,
        pool_for: PoolFor,
        partition: Partition | None = None,
        held: Partition | None = None,
    ) -> Draft:
        """Draft a first generation: key, divide and write a log; every shard will train. See `prepare`."""
        self.report("partition", 0, 1)
        ready = prepare(dataset, config, compute, partition, held)
        learned, config = ready.log, ready.config
        users, items = self._store.write_vocabulary(learned.users), self._store.write_vocabulary(learned.items)
        files = [self._store.write_shard_data(ShardId(shard), data) for shard, data in enumerate(ready.shards)]
        orders = self._first_orders(files)
        pool, integers = pool_for(config), _integers(learned)
        return Draft(config, ready.chosen, pool, integers, users, items, orders, account=dataset.account())

    def from_log(self, source: str, config: EraserConfig, compute: Compute, pool_for: PoolFor) -> Draft:
        """As `from_dataset`, for a log that no single process loads as a whole. See `ingest`."""
        self.report("partition", 0, 3)
        parts = ingest(source, self._store, config, compute, lambda done: self.report("partition", done, 3))
        looked_at = partial(parts.of_users, store_uri=self._store.uri, compute=compute)
        config, chosen = settle(config, looked_at, parts.n_trained, parts.users.keys, parts.items.keys, compute)
        orders = self._first_orders(parts.shards)
        pool, integers = pool_for(config), _integers(parts)
        return Draft(config, chosen, pool, integers, parts.user_refs, parts.item_refs, orders, account=parts.account)

    def _first_orders(self, files: Sequence[FileRef]) -> dict[ShardId, ShardOrder]:
        return {ShardId(shard): ShardOrder(self._epoch, file) for shard, file in enumerate(files)}

    def draft_of_change(self, change: Change, config: EraserConfig, pool: ShardPool) -> Draft:
        """Draft the generation after a change: write its vocabularies; the shards that it touches will train."""
        before = change.before
        manifest = before.manifest
        orders = {}
        for shard in change.touched:
            record, gain = manifest.shards[shard], change.added.get(shard, NO_GAIN)
            erased = change.erased.get(shard, KeyedPairs.none())
            orders[shard] = ShardOrder(self._epoch, record.interactions, erased, gain.train, gain.valid, record.checkpoints)
        return Draft(
            config,
            manifest.chosen,
            pool,
            manifest.integers,
            self._store.write_vocabulary(change.users, before.users, manifest.users),
            self._store.write_vocabulary(change.items, before.items, manifest.items),
            orders,
            {record.shard: record for record in manifest.shards if record.shard not in orders},
        )

    # ---- training and publishing ---------------------------------------------------------------------------------------

    def train_and_publish(
        self, draft: Draft, change: Change | None, batch: Sequence[RequestRow], running: ShardPool
    ) -> tuple[GenerationRow, Aggregated]:
        """Train, aggregate, write the manifest, and publish it in the ledger with the receipts.

        Args:
            draft: the generation.
            change: the change from the previous generation; None for a fit.
            batch: the requests that the generation carries out.
            running: the serving pool. If training fails and the draft has a pool of its own, that pool is closed.
        """
        try:
            if draft.pool is not running:
                running.abandon()
            return self._trained_and_published(draft, change, batch)
        except Exception:
            if draft.pool is not running:
                draft.pool.close()
            raise

    def _trained_and_published(
        self, draft: Draft, change: Change | None, batch: Sequence[RequestRow]
    ) -> tuple[GenerationRow, Aggregated]:
        before = None if change is None or len(draft.orders) == draft.config.partition.n_shards else change.before.manifest
        here = draft.pool.described() if before is None else same_as(before.environment, draft.pool.described)
        trained = self._train(draft)
        for answer in trained.values():
            check_same(here, answer.device)
        self._step("retrained", batch)
        files = {**draft.kept} | {shard: answer.record for shard, answer in trained.items()}
        records = tuple(files[ShardId(k)] for k in range(draft.config.partition.n_shards))

        self.report("aggregation", 0, 1)
        aggregated = draft.pool.aggregate(AggregationOrder(records, KeyedPairs.none()))
        check_same(aggregated.environment, here)
        self._step("aggregated", batch)
        asked = asked_settings(self._ledger, draft.config, draft.notes)
        manifest = Manifest(
            recorded(draft.config),
            aggregated.environment,
            chosen_at(draft.chosen, asked, draft.config, sum(record.n_train for record in records)),
            draft.integers,
            draft.users,
            draft.items,
            records,
            aggregated.aggregate,
        )
        written = self._store.write_manifest(manifest)
        self._step("written", batch)

        number = Generation(1 if change is None else change.before.number + 1)
        superseded = () if change is None else self._superseded(manifest, written.digest)
        row = GenerationRow(number, written.digest, self._clock(), superseded)
        receipts = {} if change is None else _receipts(batch, change, change.before, manifest, row)
        names = [request.request_id for request in batch]
        self._ledger.publish(row, receipts, names, draft.notes, self._signer)
        self._observe(trained, aggregated)
        return row, aggregated

    def _train(self, draft: Draft) -> dict[ShardId, Trained]:
        finished: list[float] = []
        self.report("shards", 0, len(draft.orders))

        def on_done(trained: Trained) -> None:
            finished.append(trained.seconds)
            note = f"shard {trained.record.shard} in {trained.seconds:.1f} s"
            self.report("shards", len(finished), len(draft.orders), note)

        return draft.pool.train(draft.orders, on_done)

    def _superseded(self, manifest: Manifest, digest: str) -> tuple[str, ...]:
        """Files to delete after a generation is published: files of the previous generation, and leftovers of failed attempts.

        Leftovers may hold data that this generation erases. The list is made before publishing, while no other coordinator can
        write. A later purge deletes only the listed files.
        """
        kept = files_of(manifest, digest)
        return tuple(path for path in self._store.files() if path not in kept)

    def _observe(self, trained: Mapping[ShardId, Trained], aggregated: Aggregated) -> None:
        """Record the cost of a run, to predict the next one."""
        shards = tuple(ShardRun.of(answer.record.n_train, answer.seconds) for answer in trained.values())
        self.costs = self.costs.observe(Run(shards, aggregated.seconds))
        self._ledger.note("costs", self.costs.to_json())

    # ---- ahead of time -------------------------------------------------------------------------------------------------

    @contextmanager
    def ahead(
        self, rows: Sequence[RequestRow], planned: Callable[[Sequence[RequestRow]], tuple[Change, Draft]], pool: ShardPool
    ) -> Iterator[HeadStart]:
        """Let a shard train during the block, alongside the excision, if its order is known in advance.

        This is not a durable step. It writes files that no manifest names, and a repetition writes the same files.

        Args:
            rows: the requests of the next batch; empty if they are not known.
            planned: drafts a batch.
            pool: trains the shard.
        """
        start = HeadStart()
        try:
            if rows:
                change, draft = planned(rows)
                pool.begin(draft.orders)
                start = HeadStart(rows, (change, draft))
        except Exception as error:  # noqa: BLE001 - the batch itself fails again, and reports it
            log.info("no head start", extra={"reason": named_safely(error)})
        try:
            yield start
        finally:
            pool.abandon()

    # ---- files ---------------------------------------------------------------------------------------------------------

    def left_over(self, published: GenerationRow) -> list[str]:
        """Sorted paths of files that do not belong to a published generation."""
        wanted = files_of(self._store.read_manifest(published.digest), published.digest)
        return [path for path in self._store.files() if path not in wanted]

    def delete(self, paths: Sequence[str]) -> None:
        """Delete files, except files of the published generation: equal content gets the same name again.

        Raises:
            StaleEpochError: another coordinator is in force, and its generation may need the file.
        """
        kept: tuple[str, set[str]] = ("", set())
        for path in paths:
            with self._ledger.in_force() as connection:
                digest = self._ledger.current_digest(connection)
                if digest is not None and digest != kept[0]:
                    kept = digest, files_of(self._store.read_manifest(digest), digest)
                if path not in kept[1]:
                    self._store.delete(path)


def _integers(log: Dataset | Ingested) -> tuple[str, ...]:
    """`user` and `item`, if their ids are returned as integers."""
    return tuple(vocabulary.kind for vocabulary in (log.users, log.items) if vocabulary.integers)


def files_of(manifest: Manifest, digest: str) -> set[str]:
    """Paths of all files of a generation."""
    return {ref.path for ref in manifest.files()} | {manifest_ref(digest).path}


def _receipts(
    batch: Sequence[RequestRow], change: Change, before: Loaded, after: Manifest, published: GenerationRow
) -> dict[RequestId, Receipt]:
    """Unfinished receipts for the requests that ask for an erasure."""
    return {
        row.request_id: _receipt(row, row.work, change.erasures[row.request_id], before, after, published)
        for row in batch
        if isinstance(row.work, UnlearningRequest)
    }


def _receipt(
    row: RequestRow,
    request: UnlearningRequest,
    owned: Mapping[ShardId, KeyedPairs],
    before: Loaded,
    after: Manifest,
    published: GenerationRow,
) -> Receipt:
    """A receipt without its end times and its place in the chain. Both are added when the request finishes."""
    assert row.salt is not None and row.excised_at is not None  # noqa: PT018 - one fact: it is unfinished
    old, new = before.manifest.shards, dict(enumerate(after.shards))  # a new partition may have fewer
    changes = tuple(ShardChange.between(old[shard], new.get(shard)) for shard in sorted(owned))
    return Receipt(
        request_id=row.request_id,
        kind=row.kind,
        guarantee=after.guarantee,
        chosen=after.chosen,
        commitment=commitment(request, row.salt),
        pairs_erased=sum(len(pairs) for pairs in owned.values()),
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


def noted_with(draft: Draft, settings: EraserConfig) -> Draft:
    """A draft whose publication also records the deployment's new settings."""
    return replace(draft, notes={"settings": recorded(settings).model_dump_json()})
