"""An audit that could not fail would prove nothing: every way to be dishonest is found and named."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Deployments, audited
from plain import SHARD, mixed

from ray_eraser.aggregator import aggregate_of
from ray_eraser.config import EraserConfig, TrainingConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.data.vocabulary import Part, Vocabulary, part_of
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.ids import Generation, ShardId
from ray_eraser.models.base import Table, TrainingState
from ray_eraser.pool import LocalShardPool
from ray_eraser.store import FileRef, Manifest, Store, manifest_ref, part_bytes, shard_data_bytes
from ray_eraser.training.slices import slices_of_keys
from ray_eraser.training.submodel import train_submodel
from ray_eraser.unlearning.audit import AuditReport, Erased, audit
from ray_eraser.unlearning.ledger import GenerationRow
from ray_eraser.unlearning.request import UnlearningRequest

ERASED_USER = 7
"""Its row in the log."""


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


def keyed_pair(dataset: Dataset, user: int, item: int) -> KeyedPairs:
    return KeyedPairs.of([(dataset.users.key(user), dataset.items.key(item))])


NOTHING = KeyedPairs.none()


@dataclass
class Forger:
    """Changes a generation so that every digest, name and manifest is consistent, as a dishonest operator could."""

    store: Store
    manifest: Manifest
    digest: str

    @classmethod
    def of(cls, coordinator: Coordinator) -> Forger:
        current = coordinator._serving.loaded
        return cls(coordinator._store, current.manifest, current.digest)

    def shard(self, shard: int, **changes) -> None:
        records = list(self.manifest.shards)
        records[shard] = replace(records[shard], **changes)
        self.manifest = replace(self.manifest, shards=tuple(records))

    def data(self, shard: int) -> ShardData:
        return self.store.read_shard_data(self.manifest.shards[shard].interactions)

    def put(self, shard: int, data: ShardData) -> None:
        written = self.store.write_shard_data(ShardId(shard), data)
        self.shard(shard, interactions=written, n_train=len(data.train), n_valid=len(data.valid))

    def retrain(self, shard: int) -> None:
        data = self.data(shard)
        checkpoints: list[FileRef] = []

        def keep(state: TrainingState) -> None:
            checkpoints.append(self.store.write_checkpoint(ShardId(shard), state.renamed(data.user_keys, data.item_keys)))

        submodel = train_submodel(data, self.manifest.config, ShardId(shard), keep=keep)
        written = self.store.write_submodel(ShardId(shard), submodel)
        self.shard(shard, submodel=written, checkpoints=tuple(checkpoints))

    def aggregate(self) -> None:
        submodels = [self.store.read_embeddings(record.submodel) for record in self.manifest.shards]
        model = aggregate_of(submodels, [self.data(k) for k in range(len(submodels))], self.manifest.config)
        self.manifest = replace(self.manifest, aggregate=self.store.write_aggregate(model))

    # ---- vocabularies

    def vocabulary(self, kind: str) -> Vocabulary:
        return self.store.read_vocabulary(getattr(self.manifest, f"{kind}s"), kind, self.manifest)

    def put_vocabulary(self, vocabulary: Vocabulary) -> None:
        self.manifest = replace(self.manifest, **{f"{vocabulary.kind}s": self.store.write_vocabulary(vocabulary)})

    def put_part(self, kind: str, place: int, content: bytes, number: int | None = None) -> FileRef:
        """Another file in the place of one part."""
        refs = list(getattr(self.manifest, f"{kind}s"))
        number = int(refs[place].path.split("-")[1]) if number is None else number
        refs[place] = self.store._write(f"vocabulary/{kind}s-{number:02d}", "parquet", content)
        self.manifest = replace(self.manifest, **{f"{kind}s": tuple(refs)})
        return refs[place]

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


def a_bit_flipped(model: KeyedEmbeddings) -> KeyedEmbeddings:
    items = model.items.copy()
    items.view(np.uint32)[0, 0] ^= 1
    return replace(model, items=items)


def test_an_honest_deployment_is_exact(coordinator: Coordinator, tiny: Dataset) -> None:
    report = audited(coordinator, Erased(user_ids=(tiny.users.ids[ERASED_USER],), pairs=(erased_pair(tiny),)))
    assert report.to_dict() == {
        "exact": True,
        "generation": 2,
        "digest": coordinator.describe().digest,
        "guarantee": "exact",
        "chosen": (),
        "compared": len(coordinator._serving.loaded.manifest.files()),
        "mismatches": (),
        "found_erased_pairs": 0,
        "not_here": 1,
        "spelled_otherwise": [],
        "passed": True,
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
    forger, old = Forger.of(coordinator), before._serving.loaded.manifest
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


def home_of(forger: Forger, pair: KeyedPairs) -> int:
    """The shard that has the pair's user."""
    return next(k for k in range(3) if pair.users[0] in forger.data(k).user_keys)


def put_back(forger: Forger, pair: KeyedPairs, shard: int | None = None, *, held_out: bool = False) -> int:
    """Put a pair where it was, or into another shard, and make everything consistent with it."""
    shard = home_of(forger, pair) if shard is None else shard
    forger.put(shard, forger.data(shard).with_learned(*((NOTHING, pair) if held_out else (pair, NOTHING))))
    forger.retrain(shard)
    forger.aggregate()
    return shard


def test_an_erased_pair_that_was_put_back_is_found_by_its_name(coordinator: Coordinator, tiny: Dataset) -> None:
    forger = Forger.of(coordinator)
    put_back(forger, keyed_pair(tiny, *erased_pair(tiny)))
    report = report_on(forger, forger.published(), Erased(pairs=(erased_pair(tiny),)))
    assert (report.exact, report.found_erased_pairs, report.mismatches) == (False, 1, ())


def test_an_erased_pair_that_only_the_interactions_have_does_not_fit_the_submodel(
    coordinator: Coordinator, tiny: Dataset
) -> None:
    forger = Forger.of(coordinator)
    pair = keyed_pair(tiny, *erased_pair(tiny))
    shard = home_of(forger, pair)
    forger.put(shard, forger.data(shard).with_learned(pair, NOTHING))
    report = report_on(forger, forger.published())
    (mismatch,) = report.mismatches
    assert mismatch.startswith(forger.manifest.shards[shard].submodel.path)


def test_an_erased_pair_that_was_put_into_another_shard_is_out_of_place(coordinator: Coordinator, tiny: Dataset) -> None:
    forger = Forger.of(coordinator)
    pair = keyed_pair(tiny, *erased_pair(tiny))
    away = put_back(forger, pair, (home_of(forger, pair) + 1) % 3)
    report = report_on(forger, forger.published())
    assert report.mismatches == (f"shard {away}: holds interactions of another shard",)


@pytest.mark.parametrize("held_out", [False, True])
def test_an_interaction_of_an_erased_user_is_found_without_any_name(
    coordinator: Coordinator, tiny: Dataset, held_out: bool
) -> None:
    """Its key has no id."""
    forger = Forger.of(coordinator)
    pair = keyed_pair(tiny, tiny.users.ids[ERASED_USER], tiny.items.ids[0])
    home = mixed(int(pair.users[0]), SHARD) % 3
    put_back(forger, pair, home, held_out=held_out)
    report = report_on(forger, forger.published())
    path = forger.manifest.shards[home].interactions.path
    assert report.mismatches == (f"{path}: holds 1 user of whom no vocabulary has the id",)


@pytest.mark.parametrize("kind", ["user", "item"])
def test_an_id_without_any_interaction_is_found_in_its_file_and_not_named(
    coordinator: Coordinator, kind: str, tiny: Dataset
) -> None:
    """What erasing all of somebody's pairs leaves, unless their id goes with the last."""
    forger = Forger.of(coordinator)
    before, orphans = forger.vocabulary(kind), ["orphan-one", "orphan-two"]
    forger.put_vocabulary(before.extended(orphans))
    report = report_on(forger, forger.published())
    assert not report.exact
    parts = sorted(part_of(before.key_of(raw)) for raw in orphans)
    assert [mismatch.split("-")[:2] for mismatch in report.mismatches] == [
        [f"vocabulary/{kind}s", f"{number:02d}"] for number in parts
    ]
    assert all(mismatch.endswith(f"holds 1 {kind} without any interaction") for mismatch in report.mismatches)
    assert "orphan" not in str(report)


@pytest.mark.parametrize("kind", ["user", "item"])
def test_a_key_without_an_id_is_found_in_every_shard_that_has_it(coordinator: Coordinator, kind: str) -> None:
    forger = Forger.of(coordinator)
    before = forger.vocabulary(kind)
    having = [k for k in range(3) if before.keys[4] in getattr(forger.data(k), f"{kind}_keys")]
    forger.put_vocabulary(before.without(before.keys[4:5]))
    report = report_on(forger, forger.published())
    assert report.mismatches == tuple(
        f"{forger.manifest.shards[k].interactions.path}: holds 1 {kind} of whom no vocabulary has the id" for k in having
    )


AGAIN = "writing its content again gives another file"


def as_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("damage", ["keys", "order", "twice", "more", "wide", "null", "no parquet", "empty"])
def test_a_part_of_a_vocabulary_that_is_otherwise_written_is_found_and_named(coordinator: Coordinator, damage: str) -> None:
    """The bytes of a file could tell what the ids in it do not."""
    forger = Forger.of(coordinator)
    place = max(range(len(forger.manifest.users)), key=lambda n: len(forger.store.read_part(forger.manifest.users[n])))
    part = forger.store.read_part(forger.manifest.users[place])
    assert len(part) > 1
    table = pa.table({"key": part.keys, "id": part.ids})
    forged = {
        "keys": lambda: part_bytes(Part(part.keys + np.uint64(1), part.ids)),
        "order": lambda: part_bytes(Part(part.keys[::-1].copy(), part.ids.take(pa.array(range(len(part))[::-1])))),
        "twice": lambda: part_bytes(Part(part.keys.repeat(2), part.ids.take(pa.array(np.arange(len(part)).repeat(2))))),
        "more": lambda: as_parquet(table.append_column("was", pa.array(["ann"] * len(part)))),
        "wide": lambda: as_parquet(table.set_column(1, "id", part.ids.cast(pa.large_string()))),
        "null": lambda: as_parquet(pa.table({"key": part.keys, "id": pa.array([None, *part.ids.to_pylist()[1:]])})),
        "no parquet": lambda: b"ids",
        "empty": lambda: part_bytes(Part.empty()),
    }[damage]()
    ref = forger.put_part("user", place, forged)
    report = report_on(forger, forger.published())
    assert not report.exact
    said = [mismatch for mismatch in report.mismatches if ref.path in mismatch]
    assert said
    if damage in ("keys", "order", "twice", "more", "wide"):
        assert AGAIN in said[-1]


def test_an_id_in_another_part_than_its_own_is_found(coordinator: Coordinator) -> None:
    forger = Forger.of(coordinator)
    first, second = (forger.store.read_part(ref) for ref in forger.manifest.items[:2])
    moved = Part(np.concatenate([first.keys[-1:], second.keys]), pa.concat_arrays([first.ids[-1:], second.ids]))
    ref = forger.put_part("item", 1, part_bytes(moved))
    report = report_on(forger, forger.published())
    assert f"{ref.path}: holds ids of another part" in report.mismatches


def test_a_part_under_another_ones_number_is_found(coordinator: Coordinator) -> None:
    forger = Forger.of(coordinator)
    part = forger.store.read_part(forger.manifest.users[0])
    number = next(n for n in range(32) if not any(f"users-{n:02d}-" in ref.path for ref in forger.manifest.users))
    ref = forger.put_part("user", 0, part_bytes(part), number)
    report = report_on(forger, forger.published())
    assert f"{ref.path}: holds ids of another part" in report.mismatches
    assert "the manifest names the parts of the users' vocabulary twice or out of order" in report.mismatches


def with_more(data: ShardData, name: str, array: np.ndarray) -> bytes:
    from safetensors.numpy import load, save

    return save(load(shard_data_bytes(data)) | {name: array})


@pytest.mark.parametrize("damage", ["order", "gap user", "gap item", "both sets", "more", "wide keys", "no file"])
def test_interactions_that_are_otherwise_written_are_found_and_named(coordinator: Coordinator, damage: str) -> None:
    """A gap tells that somebody was there; an order, when."""
    forger = Forger.of(coordinator)
    data = forger.data(0)
    more = np.uint64(2**64 - 1)
    forged = {
        "order": lambda: shard_data_bytes(
            replace(data, train=Interactions(data.train.users, data.train.items[::-1].copy()), valid=Interactions.none())
        ),
        "gap user": lambda: shard_data_bytes(replace(data, user_keys=np.append(data.user_keys, more))),
        "gap item": lambda: shard_data_bytes(replace(data, item_keys=np.append(data.item_keys, more))),
        "both sets": lambda: shard_data_bytes(replace(data, valid=data.train.take(np.arange(2)))),
        "more": lambda: with_more(data, "was", np.arange(3)),
        "wide keys": lambda: with_more(data, "user_keys", data.user_keys.astype(np.float64)),
        "no file": lambda: b"interactions",
    }[damage]()
    ref = forger.store._write("shards/0/interactions", "safetensors", forged)
    forger.shard(0, interactions=ref)
    report = report_on(forger, forger.published())
    assert not report.exact
    assert any(ref.path in mismatch for mismatch in report.mismatches)
    assert any("no submodel was trained again" in mismatch for mismatch in report.mismatches)


def test_a_manifest_that_says_more_than_one_does_is_found(coordinator: Coordinator) -> None:
    forger = Forger.of(coordinator)
    content = json.dumps(json.loads(forger.manifest.to_json()) | {"erased": ["ann"]}).encode()
    ref = forger.store._write("generations/", "json", content)
    forger.store.delete(manifest_ref(forger.digest).path)
    report = report_on(forger, GenerationRow(Generation(9), ref.digest, 0.0, ()))
    assert report.mismatches == (f"{ref.path}: is not written as a manifest is, or it has more",)


def test_a_file_of_another_shards_folder_is_found(coordinator: Coordinator) -> None:
    forger = Forger.of(coordinator)
    ref = forger.store.write_submodel(ShardId(2), forger.store.read_embeddings(forger.manifest.shards[1].submodel))
    forger.shard(1, submodel=ref)
    report = report_on(forger, forger.published())
    assert report.mismatches == (f"{ref.path}: is not where such a file belongs",)


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
    before = coordinator._serving.loaded.manifest
    slices_U = slices_of_keys(tiny.users.keys, config)
    coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[int(np.flatnonzero(slices_U == 0)[3])]))
    coordinator.process_pending()
    deployments.honest = False
    return coordinator, before


def changed_shard(sliced: tuple[Coordinator, Manifest]) -> int:
    coordinator, before = sliced
    (shard,) = (k for k, record in enumerate(coordinator._serving.loaded.manifest.shards) if record != before.shards[k])
    return shard


def test_checkpoints_are_trained_again_too(sliced: tuple[Coordinator, Manifest]) -> None:
    coordinator, _ = sliced
    report = audited(coordinator)
    assert (report.exact, report.compared) == (True, len(coordinator._serving.loaded.manifest.files()))
    forger = Forger.of(coordinator)
    for shard in range(3):
        forger.retrain(shard)
    assert forger.published().digest == forger.digest


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_missing_or_altered_checkpoint_is_found_and_named(sliced: tuple[Coordinator, Manifest], damage: str) -> None:
    coordinator, _ = sliced
    ref = coordinator._serving.loaded.manifest.shards[1].checkpoints[1]
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
    left = [*remaining_pairs(coordinator)]
    of_user = sum(one == user for one, _ in left)
    of_item = sum(one == item for _, one in left)
    kept = left[3]
    # An id that is still in the vocabulary counts too.
    assert audited(coordinator, Erased(user_ids=(user,))).found_erased_pairs == of_user + 1
    assert audited(coordinator, Erased(item_ids=(str(item),))).found_erased_pairs == of_item + 1
    assert audited(coordinator, Erased(pairs=(kept, erased_pair(tiny)))).found_erased_pairs == 1
    for erased in (Erased(user_ids=(user,)), Erased(pairs=(kept,))):
        assert not audited(coordinator, erased).exact


def remaining_pairs(coordinator: Coordinator) -> Iterable[tuple[int, int]]:
    """What a deployment has, held out or not."""
    loaded = coordinator._serving.loaded
    for data in loaded.shards.values():
        keyed = data.keyed(data.pairs)
        yield from zip(loaded.users.raw_of(keyed.users), loaded.items.raw_of(keyed.items), strict=True)


def test_what_cannot_be_an_id_is_nowhere(coordinator: Coordinator) -> None:
    assert audited(coordinator, Erased(("", "a" * 2000), (True,), (("", 1),))).exact


@pytest.mark.parametrize(
    "path",
    [
        f"shards/1/submodel-{'0' * 64}.safetensors",
        f"shards/7/interactions-{'0' * 64}.safetensors",
        f"shards/1/interactions-{'0' * 64}.safetensors.partial-0123",
        f"vocabulary/users-07-{'0' * 64}.parquet",
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
    shard = next(k for k, data in old.shard_data().items() if data.has(keyed_pair(tiny, *erased_pair(tiny))).any())
    left_over = coordinator._store.write_shard_data(shard, old.shard_data()[shard])
    report = audited(coordinator, Erased(pairs=(erased_pair(tiny),)))
    assert report.mismatches == (f"{left_over.path}: left over, no part of the current generation",)
    assert report.found_erased_pairs == 1


@pytest.mark.parametrize("damage", ["missing", "altered"])
@pytest.mark.parametrize("which", ["users", "items", "interactions", "submodel", "aggregate"])
def test_a_missing_or_altered_file_is_found_and_named(coordinator: Coordinator, which: str, damage: str) -> None:
    manifest = coordinator._serving.loaded.manifest
    found = getattr(manifest.shards[2] if which in ("interactions", "submodel") else manifest, which)
    ref = found[1] if which in ("users", "items") else found
    file = coordinator._store.local_folder / ref.path
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b"\0")
    report = audited(coordinator)
    assert not report.exact
    assert any(ref.path in mismatch for mismatch in report.mismatches)


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


def test_settings_that_were_chosen_from_the_log_are_named(deployments: Deployments, tiny: Dataset) -> None:
    config = config_from({"partition": {"n_shards": 2}, "model": {"kind": "wmf", "width": 4, "epochs": 1}})
    report = audited(deployments.fit("shop", config, tiny))
    assert (report.exact, report.guarantee, report.chosen) == (True, "exact-given-settings", ("model.alpha0",))


def test_the_manifest_names_every_file_that_an_audit_wants(coordinator: Coordinator) -> None:
    current = coordinator._serving.loaded
    assert coordinator._store.files() == sorted(
        [*(ref.path for ref in current.manifest.files()), manifest_ref(current.digest).path]
    )


# ---- ids that are not here


def test_an_id_of_which_another_spelling_is_here_does_not_pass(deployments, tiny_config):
    log = Dataset.of_pairs("orders", [(f"2000{u}.0", f"0{i}") for u in range(8) for i in range(10, 16)], tiny_config.seed)
    coordinator = deployments.fit("floats", tiny_config, log)
    report = audited(
        coordinator, Erased(user_ids=("anna", 20007, "20001.0"), item_ids=("012", "13"), pairs=(("20003", "010"),))
    )
    assert report.not_here == 4
    assert [(entry.kind, entry.position, entry.here) for entry in report.spelled_otherwise] == [
        ("user", 1, ("20007.0",)),
        ("item", 1, ("013",)),
        ("pair", 0, ("20003.0",)),
    ]
    assert not report.passed
    assert "20007" not in json.dumps(report.to_dict())
    assert report.to_dict()["spelled_otherwise"][0] == {"kind": "user", "position": 1, "spellings": 1}


def test_erased_ids_are_not_here_and_pass(coordinator, tiny):
    report = audited(coordinator, Erased(user_ids=(tiny.users.ids[ERASED_USER], "nobody")))
    assert (report.not_here, report.spelled_otherwise, report.exact, report.passed) == (2, (), True, True)
    assert audited(coordinator).not_here == 0
