"""An audit that could not fail would prove nothing: every way to be dishonest is found and named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Deployments, audited

from ray_eraser import seeds
from ray_eraser.aggregation import aggregate
from ray_eraser.config import EraserConfig, TrainingConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.ids import Generation, ShardId
from ray_eraser.models.base import Table, TrainingState
from ray_eraser.pool import LocalShardPool
from ray_eraser.store import FileRef, Manifest, ShardData, Store, manifest_ref
from ray_eraser.training.slices import slices_of_users
from ray_eraser.training.submodel import train_submodel
from ray_eraser.unlearning.audit import AuditReport, Erased, audit
from ray_eraser.unlearning.ledger import GenerationRow
from ray_eraser.unlearning.request import UnlearningRequest

ERASED_USER = 7


@pytest.fixture
def coordinator(deployments: Deployments, trained: Path, tiny: Dataset) -> Coordinator:
    """A deployment that has erased a user and a pair."""
    opened = deployments.copy(trained, "shop")
    opened.submit(UnlearningRequest(user_id=tiny.users.ids[ERASED_USER]))
    opened.submit(UnlearningRequest(pairs=(erased_pair(tiny),)))
    opened.process_pending()
    deployments.honest = False  # what these tests do to files is no crash
    return opened


def erased_pair(dataset: Dataset) -> tuple[int, int]:
    return dataset.users.ids[dataset.train.users[0]], dataset.items.ids[dataset.train.items[0]]


def row_pair(dataset: Dataset, user: int, item: int) -> Interactions:
    return Interactions.of(np.array([dataset.users.row(user)]), np.array([dataset.items.row(item)]))


@dataclass
class Forger:
    """Changes a generation so that every digest, name and manifest is consistent, as a dishonest operator could."""

    store: Store
    manifest: Manifest
    digest: str

    @classmethod
    def of(cls, coordinator: Coordinator) -> Forger:
        current = coordinator._loaded()
        return cls(coordinator._store, current.manifest, current.digest)

    def shard(self, shard: int, **changes) -> None:
        records = list(self.manifest.shards)
        records[shard] = replace(records[shard], **changes)
        self.manifest = replace(self.manifest, shards=tuple(records))

    def data(self, shard: int) -> ShardData:
        return self.store.read_shard_data(self.manifest.shards[shard].interactions)

    def put(self, shard: int, data: ShardData) -> None:
        self.shard(shard, interactions=self.store.write_shard_data(ShardId(shard), data), n_train=len(data.train))

    def retrain(self, shard: int) -> None:
        data, keys = self.data(shard), self.store.read_item_keys(self.manifest.items)
        users = self.store.read_vocabulary(self.manifest.users, "user")
        slices_U = slices_of_users(users, np.arange(len(users)), self.manifest.config)
        checkpoints: list[FileRef] = []
        submodel = train_submodel(
            data.train,
            data.valid,
            keys,
            self.manifest.config,
            ShardId(shard),
            slices_U,
            keep=lambda state: checkpoints.append(self.store.write_checkpoint(ShardId(shard), state)),
        )
        written = self.store.write_submodel(ShardId(shard), submodel)
        self.shard(shard, submodel=written, checkpoints=tuple(checkpoints))

    def aggregate(self) -> None:
        submodels = [self.store.read_embeddings(record.submodel) for record in self.manifest.shards]
        log = Interactions.union([self.data(k).train for k in range(len(submodels))])
        model = aggregate(submodels, log, self.manifest.config)
        self.manifest = replace(self.manifest, aggregate=self.store.write_aggregate(model))

    def published(self) -> GenerationRow:
        """Write the manifest, delete what it does not name."""
        written = self.store.write_manifest(self.manifest)
        wanted = {ref.path for ref in self.manifest.files()} | {written.path}
        for path in set(self.store.files()) - wanted:
            self.store.delete(path)
        return GenerationRow(Generation(9), written.digest, 0.0, ())


def report_on(forger: Forger, published: GenerationRow, erased: Erased | None = None) -> AuditReport:
    pool = LocalShardPool(forger.store.uri, forger.manifest.config)
    return audit(forger.store, published, pool, erased or Erased())


def a_bit_flipped(model: Embeddings) -> Embeddings:
    items = model.items.copy()
    items.view(np.uint32)[0, 0] ^= 1
    return replace(model, items=items)


def test_an_honest_deployment_is_exact(coordinator: Coordinator, tiny: Dataset) -> None:
    report = audited(coordinator, Erased(user_ids=(tiny.users.ids[ERASED_USER],), pairs=(erased_pair(tiny),)))
    assert report.to_dict() == {
        "exact": True,
        "generation": 2,
        "digest": coordinator.describe()["digest"],
        "guarantee": "exact",
        "compared": 2 * 3 + 1,
        "mismatches": (),
        "found_erased_pairs": 0,
    }


def test_a_forger_who_changes_nothing_is_honest(coordinator: Coordinator) -> None:
    forger = Forger.of(coordinator)
    for shard in range(3):
        forger.retrain(shard)
    forger.aggregate()
    published = forger.published()
    assert published.digest == forger.digest
    assert report_on(forger, published).exact


def test_one_bit_of_a_submodel_that_training_does_not_give_is_found_and_the_file_named(coordinator: Coordinator) -> None:
    forger = Forger.of(coordinator)
    submodel = a_bit_flipped(forger.store.read_embeddings(forger.manifest.shards[1].submodel))
    forger.shard(1, submodel=forger.store.write_submodel(ShardId(1), submodel))
    forger.aggregate()
    report = report_on(forger, forger.published())
    assert not report.exact
    (mismatch,) = report.mismatches
    assert mismatch.startswith(f"{forger.manifest.shards[1].submodel.path}: training again gives ")


def test_a_submodel_that_was_trained_on_with_the_erased_pairs_is_found(
    deployments: Deployments, trained: Path, coordinator: Coordinator
) -> None:
    """What a lazy operator does: delete the interactions, keep the submodel that saw them."""
    before = deployments.copy(trained, "before")
    forger, old = Forger.of(coordinator), before._loaded().manifest
    touched = [k for k in range(3) if old.shards[k].submodel != forger.manifest.shards[k].submodel]
    for k in touched:
        forger.shard(k, submodel=forger.store.write_submodel(ShardId(k), before._store.read_embeddings(old.shards[k].submodel)))
    forger.aggregate()
    report = report_on(forger, forger.published())
    assert [mismatch.partition(":")[0] for mismatch in report.mismatches] == [
        forger.manifest.shards[k].submodel.path for k in touched
    ]


def test_one_bit_of_the_aggregate_is_found_and_the_file_named(coordinator: Coordinator) -> None:
    forger = Forger.of(coordinator)
    model = a_bit_flipped(forger.store.read_embeddings(forger.manifest.aggregate))
    forger.manifest = replace(forger.manifest, aggregate=forger.store.write_aggregate(model))
    report = report_on(forger, forger.published())
    (mismatch,) = report.mismatches
    assert mismatch.startswith(f"{forger.manifest.aggregate.path}: training again gives ")


def put_back(forger: Forger, pair: Interactions, shard: int | None = None) -> int:
    """Put a pair where it was, or into another shard, and make everything consistent with it."""
    if shard is None:
        shard = next(k for k in range(3) if (forger.data(k).train.users == pair.users[0]).any())
    data = forger.data(shard)
    forger.put(shard, ShardData(Interactions.union([data.train, pair]), data.valid))
    forger.retrain(shard)
    forger.aggregate()
    return shard


def test_an_erased_pair_that_was_put_back_is_found_by_its_name(coordinator: Coordinator, tiny: Dataset) -> None:
    forger = Forger.of(coordinator)
    put_back(forger, row_pair(tiny, *erased_pair(tiny)))
    report = report_on(forger, forger.published(), Erased(pairs=(erased_pair(tiny),)))
    assert (report.exact, report.found_erased_pairs, report.mismatches) == (False, 1, ())


def test_an_erased_pair_that_only_the_interactions_have_does_not_fit_the_submodel(
    coordinator: Coordinator, tiny: Dataset
) -> None:
    forger = Forger.of(coordinator)
    pair = row_pair(tiny, *erased_pair(tiny))
    shard = next(k for k in range(3) if (forger.data(k).train.users == pair.users[0]).any())
    data = forger.data(shard)
    forger.put(shard, ShardData(Interactions.union([data.train, pair]), data.valid))
    report = report_on(forger, forger.published())
    (mismatch,) = report.mismatches
    assert mismatch.startswith(forger.manifest.shards[shard].submodel.path)


def test_an_erased_pair_that_was_put_into_another_shard_is_out_of_place(coordinator: Coordinator, tiny: Dataset) -> None:
    forger = Forger.of(coordinator)
    pair = row_pair(tiny, *erased_pair(tiny))
    home = next(k for k in range(3) if (forger.data(k).train.users == pair.users[0]).any())
    away = put_back(forger, pair, (home + 1) % 3)
    report = report_on(forger, forger.published())
    assert report.mismatches == (f"shard {away}: holds interactions of another shard",)


@pytest.mark.parametrize("held_out", [False, True])
def test_a_pair_of_a_tombstone_is_found_without_any_name(coordinator: Coordinator, tiny: Dataset, held_out: bool) -> None:
    forger = Forger.of(coordinator)
    pair = Interactions.of(np.array([ERASED_USER]), np.array([0]))
    # A tombstone's key is 0, which puts it into one shard; only there is nothing else wrong.
    counts = []
    for shard in range(3):
        data = forger.data(shard)
        parts = (
            (data.train, Interactions.union([data.valid, pair]))
            if held_out
            else (
                Interactions.union([data.train, pair]),
                data.valid,
            )
        )
        other = Forger(forger.store, forger.manifest, forger.digest)
        other.put(shard, ShardData(*parts))
        other.retrain(shard)
        other.aggregate()
        published = GenerationRow(Generation(9), other.store.write_manifest(other.manifest).digest, 0.0, ())
        report = report_on(other, published)
        assert not report.exact
        counts.append(report.found_erased_pairs)
    assert counts == [1, 1, 1]


def test_an_item_key_of_a_tombstone_that_was_kept_is_found(deployments: Deployments, trained: Path, tiny: Dataset) -> None:
    """The hash of an erased id betrays it to whoever has the key."""
    coordinator = deployments.copy(trained, "kept")
    deployments.honest = False
    keys = coordinator._store.read_item_keys(coordinator._loaded().manifest.items)
    coordinator.submit(UnlearningRequest(item_id=tiny.items.ids[3]))
    coordinator.process_pending()
    assert coordinator._store.read_item_keys(coordinator._loaded().manifest.items)[3] == 0
    forger = Forger.of(coordinator)
    vocabulary = forger.store.read_vocabulary(forger.manifest.items, "item")
    forger.manifest = replace(forger.manifest, items=forger.store.write_vocabulary(vocabulary, keys))
    report = report_on(forger, forger.published())
    assert [mismatch.partition(":")[0] for mismatch in report.mismatches] == [forger.manifest.items.path]


def test_item_keys_that_the_ids_do_not_give_are_found_although_all_was_trained_from_them(
    coordinator: Coordinator, tiny: Dataset
) -> None:
    """Starts that are not those of the ids could carry anything."""
    forger = Forger.of(coordinator)
    vocabulary = forger.store.read_vocabulary(forger.manifest.items, "item")
    keys = vocabulary.keys(seeds.secret(forger.manifest.config.seed, "ids"))
    forger.manifest = replace(forger.manifest, items=forger.store.write_vocabulary(vocabulary, keys[::-1].copy()))
    for shard in range(3):
        forger.retrain(shard)
    forger.aggregate()
    report = report_on(forger, forger.published())
    assert not report.exact
    assert forger.manifest.items.path in report.mismatches[0]


def test_counts_that_the_interactions_do_not_have_are_found(coordinator: Coordinator) -> None:
    forger = Forger.of(coordinator)
    forger.shard(1, n_train=forger.manifest.shards[1].n_train + 1)
    report = report_on(forger, forger.published())
    assert not report.exact


@pytest.fixture
def sliced(deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig) -> tuple[Coordinator, Manifest]:
    """A deployment with slices that has erased a user of the first slice, and its manifest before."""
    config = tiny_config.model_copy(update={"training": TrainingConfig(slices=3)})
    coordinator = deployments.fit("sliced", config, tiny)
    before = coordinator._loaded().manifest
    slices_U = slices_of_users(tiny.users, np.arange(len(tiny.users)), config)
    coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[int(np.flatnonzero(slices_U == 0)[3])]))
    coordinator.process_pending()
    deployments.honest = False
    return coordinator, before


def changed_shard(sliced: tuple[Coordinator, Manifest]) -> int:
    coordinator, before = sliced
    (shard,) = (k for k, record in enumerate(coordinator._loaded().manifest.shards) if record != before.shards[k])
    return shard


def test_checkpoints_are_trained_again_too(sliced: tuple[Coordinator, Manifest]) -> None:
    coordinator, _ = sliced
    report = audited(coordinator)
    assert (report.exact, report.compared) == (True, (2 + 2) * 3 + 1)
    forger = Forger.of(coordinator)
    for shard in range(3):
        forger.retrain(shard)
    assert forger.published().digest == forger.digest


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_missing_or_altered_checkpoint_is_found_and_named(sliced: tuple[Coordinator, Manifest], damage: str) -> None:
    coordinator, _ = sliced
    ref = coordinator._loaded().manifest.shards[1].checkpoints[1]
    file = coordinator._store.local_folder / ref.path
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b"\0")
    (mismatch,) = audited(coordinator).mismatches
    assert ref.path in mismatch


def test_one_bit_of_a_checkpoint_that_training_does_not_give_is_found(sliced: tuple[Coordinator, Manifest]) -> None:
    """The next erasure would go on from it."""
    forger = Forger.of(sliced[0])
    first, second = forger.manifest.shards[1].checkpoints
    state = forger.store.read_checkpoint(first)
    vectors = state.items["vectors"].copy()
    vectors.view(np.uint32)[0, 0] ^= 1
    forged = TrainingState(state.users, Table(state.items.rows, {"vectors": vectors}), state.stages)
    ref = forger.store.write_checkpoint(ShardId(1), forged)
    forger.shard(1, checkpoints=(ref, second))
    (mismatch,) = report_on(forger, forger.published()).mismatches
    assert mismatch.startswith(f"{ref.path}: training again gives {first.digest}")


@pytest.mark.parametrize("stage", [0, 1])
def test_a_checkpoint_that_saw_the_erased_user_is_found(
    deployments: Deployments, sliced: tuple[Coordinator, Manifest], tiny: Dataset, stage: int
) -> None:
    """What a lazy operator does: keep it, with all that it knows, for the next erasure to begin from."""
    coordinator, before = sliced
    shard = changed_shard(sliced)
    never = deployments.fit("before", coordinator.config, tiny)
    stale = before.shards[shard].checkpoints[stage]
    forger = Forger.of(coordinator)
    kept = list(forger.manifest.shards[shard].checkpoints)
    assert kept[stage] != stale
    kept[stage] = forger.store.write_checkpoint(ShardId(shard), never._store.read_checkpoint(stale))
    forger.shard(shard, checkpoints=tuple(kept))
    (mismatch,) = report_on(forger, forger.published()).mismatches
    assert mismatch.startswith(f"{stale.path}: training again gives ")


@pytest.mark.parametrize("n_kept", [0, 1, 3])
def test_too_few_or_too_many_checkpoints_are_found(sliced: tuple[Coordinator, Manifest], n_kept: int) -> None:
    forger = Forger.of(sliced[0])
    kept = forger.manifest.shards[2].checkpoints
    forger.shard(2, checkpoints=(*kept, kept[0])[:n_kept])
    report = report_on(forger, forger.published())
    assert report.mismatches == (f"shard 2: has {n_kept} checkpoints, its settings ask for 2",)


def test_data_that_was_not_erased_is_found_by_its_name(coordinator: Coordinator, tiny: Dataset) -> None:
    user, item = tiny.users.ids[9], tiny.items.ids[0]
    log = Interactions.union([part for data in coordinator.shard_data().values() for part in (data.train, data.valid)])
    of_user = len(log.of_users(np.array([9])))
    of_item = len(log.of_items(np.array([0])))
    kept = (tiny.users.ids[log.users[3]], tiny.items.ids[log.items[3]])
    # An id that is still in the vocabulary counts too.
    assert audited(coordinator, Erased(user_ids=(user,))).found_erased_pairs == of_user + 1
    assert audited(coordinator, Erased(item_ids=(item,))).found_erased_pairs == of_item + 1
    assert audited(coordinator, Erased(pairs=(kept, erased_pair(tiny)))).found_erased_pairs == 1
    for erased in (Erased(user_ids=(user,)), Erased(pairs=(kept,))):
        assert not audited(coordinator, erased).exact


@pytest.mark.parametrize(
    "path",
    [
        f"shards/1/submodel-{'0' * 64}.safetensors",
        f"shards/7/interactions-{'0' * 64}.parquet",
        f"shards/1/interactions-{'0' * 64}.parquet.partial-0123",
        f"vocabulary/users-{'0' * 64}.parquet",
        f"generations/{'0' * 64}.json",
    ],
)
def test_a_file_that_is_left_over_is_found_whatever_is_in_it(coordinator: Coordinator, path: str) -> None:
    target = coordinator._store.local_folder / path
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(b"anything")
    report = audited(coordinator, Erased(pairs=((1, 1),)))
    assert report.mismatches == (f"{path}: left over, no part of the current generation",)


def test_a_left_over_file_with_the_erased_pair_is_read_too(
    deployments: Deployments, trained: Path, coordinator: Coordinator, tiny: Dataset
) -> None:
    old = deployments.copy(trained, "before")
    shard = next(k for k, data in old.shard_data().items() if len(data.train.common(row_pair(tiny, *erased_pair(tiny)))))
    left_over = coordinator._store.write_shard_data(shard, old.shard_data()[shard])
    report = audited(coordinator, Erased(pairs=(erased_pair(tiny),)))
    assert report.mismatches == (f"{left_over.path}: left over, no part of the current generation",)
    assert report.found_erased_pairs == 1


@pytest.mark.parametrize("damage", ["missing", "altered"])
@pytest.mark.parametrize("which", ["users", "items", "interactions", "submodel", "aggregate"])
def test_a_missing_or_altered_file_is_found_and_named(coordinator: Coordinator, which: str, damage: str) -> None:
    manifest = coordinator._loaded().manifest
    ref = getattr(manifest.shards[2] if which in ("interactions", "submodel") else manifest, which)
    file = coordinator._store.local_folder / ref.path
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b"\0")
    report = audited(coordinator)
    assert not report.exact
    assert any(ref.path in mismatch for mismatch in report.mismatches)


def test_interactions_in_another_order_are_found(coordinator: Coordinator) -> None:
    forger = Forger.of(coordinator)
    data = forger.data(0)
    backwards = Interactions(data.train.users[::-1].copy(), data.train.items[::-1].copy())
    forger.put(0, ShardData(backwards, data.valid))
    assert not report_on(forger, forger.published()).exact


def test_an_audit_changes_nothing(coordinator: Coordinator) -> None:
    before = (coordinator._store.everything(), coordinator.describe())
    audited(coordinator)
    assert (coordinator._store.everything(), coordinator.describe()) == before


def test_an_audit_under_other_conditions_says_so(coordinator: Coordinator) -> None:
    forger = Forger.of(coordinator)
    forger.manifest = replace(forger.manifest, environment=forger.manifest.environment | {"torch": "0.1"})
    submodel = a_bit_flipped(forger.store.read_embeddings(forger.manifest.shards[0].submodel))
    forger.shard(0, submodel=forger.store.write_submodel(ShardId(0), submodel))
    report = report_on(forger, forger.published())
    assert any("audit where it was trained" in mismatch for mismatch in report.mismatches)


def test_a_learned_partition_is_audited_at_its_level(deployments: Deployments, tiny: Dataset) -> None:
    config = config_from(
        {"partition": {"kind": "user_based", "n_shards": 3}, "model": {"width": 6, "epochs": 2, "alpha0": 0.3}}
    )
    coordinator = deployments.fit("shop", config, tiny)
    coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[ERASED_USER]))
    coordinator.process_pending()
    report = audited(coordinator)
    assert (report.exact, report.guarantee) == (True, "exact-given-partition")


def test_the_manifest_names_every_file_that_an_audit_wants(coordinator: Coordinator) -> None:
    current = coordinator._loaded()
    assert coordinator._store.files() == sorted(
        [*(ref.path for ref in current.manifest.files()), manifest_ref(current.digest).path]
    )
