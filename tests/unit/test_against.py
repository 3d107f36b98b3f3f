"""Whoever holds the log that remains can see that a deployment has nothing else, whatever happened to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Deployments

from ray_eraser.config import EraserConfig, TrainingConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.errors import ConfigError
from ray_eraser.ids import RawId
from ray_eraser.pool import LocalShardPool
from ray_eraser.unlearning.against import AgainstReport, audit_against
from ray_eraser.unlearning.request import UnlearningRequest

Pairs = set[tuple[RawId, RawId]]

ERASED = 1007


def everything_in(dataset: Dataset) -> Pairs:
    """All pairs of a log, the test set's among them."""
    return {
        pair
        for part in (dataset.train, dataset.valid, dataset.test)
        for pair in zip(dataset.users.raw(part.users), dataset.items.raw(part.items), strict=True)
    }


def file_of(folder: Path, pairs: Pairs, name: str = "log.csv") -> str:
    """The log as a user holds it, in an order that says nothing."""
    columns = dict(zip(("user_id", "item_id"), zip(*sorted(pairs, key=str), strict=True), strict=True))
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        path.write_text("user_id,item_id\n" + "".join(f"{user},{item}\n" for user, item in zip(*columns.values(), strict=True)))
    return str(path)


def compared(coordinator: Coordinator, source: str) -> AgainstReport:
    published = coordinator._ledger.current()
    assert published is not None
    config = coordinator.config
    dataset = read_dataset(source, config.data, config.seed)
    return audit_against(coordinator._store, published, dataset, LocalShardPool(coordinator._store.uri, config))


def with_a_history(coordinator: Coordinator, pairs: Pairs) -> Pairs:
    """Forget a user, an item and a pair, learn some, forget one of these; gives the log that remains.

    Pairs that a first training would hold out for the test are passed over when they are learned, and are in that log.
    """
    learned = {("ann", 7), ("ann", "a new item"), ("bob", 3), (1001, "a new item"), (1003, 9)} | {("ann", n) for n in range(9)}
    coordinator.submit(UnlearningRequest(user_id=ERASED))
    coordinator.process_pending()
    coordinator.learn(sorted(learned, key=str))
    coordinator.submit(UnlearningRequest(item_id=5))
    coordinator.process_pending()
    gone = next(pair for pair in sorted(pairs) if pair[0] != ERASED and has(coordinator, *pair))
    coordinator.submit(UnlearningRequest(user_id="bob"))
    coordinator.submit(UnlearningRequest(pairs=(gone,)))
    coordinator.process_pending()
    return {pair for pair in pairs | learned if pair[0] not in (ERASED, "bob") and pair[1] != 5} - {gone}


def has(coordinator: Coordinator, user: RawId, item: RawId) -> bool:
    loaded = coordinator._serving.loaded
    keys = loaded.users.find(user), loaded.items.find(item)
    return any(keys[1] in np.concatenate(data.items_of(keys[0])) for data in loaded.shards.values() if None not in keys)


@pytest.fixture
def coordinator(deployments: Deployments, trained: Path) -> Coordinator:
    return deployments.copy(trained, "shop")


def test_a_new_deployment_equals_a_training_on_its_log(coordinator: Coordinator, tiny: Dataset, tmp_path: Path) -> None:
    report = compared(coordinator, file_of(tmp_path, everything_in(tiny), "log.parquet"))
    assert report.to_dict() == {
        "equal": True,
        "generation": 1,
        "digest": coordinator.describe().digest,
        "guarantee": "exact",
        "chosen": (),
        "compared": len(coordinator._store.files()),
        "mismatches": (),
    }


@pytest.mark.parametrize("changes", [{}, {"training": TrainingConfig(slices=3)}], ids=["plain", "slices"])
def test_whatever_happened_a_deployment_equals_a_training_on_the_log_of_what_remains(
    deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path, changes: dict[str, object]
) -> None:
    coordinator = deployments.fit("shop", tiny_config.model_copy(update=changes), tiny)
    left = with_a_history(coordinator, everything_in(tiny))
    assert compared(coordinator, file_of(tmp_path, left)).mismatches == ()


def test_one_more_pair_in_the_log_is_seen_in_its_shards_files_alone(
    coordinator: Coordinator, tiny: Dataset, tmp_path: Path
) -> None:
    pairs = everything_in(tiny)
    gone = next(pair for pair in sorted(pairs) if has(coordinator, *pair))
    coordinator.submit(UnlearningRequest(pairs=(gone,)))
    coordinator.process_pending()
    assert compared(coordinator, file_of(tmp_path, pairs - {gone})).equal
    report = compared(coordinator, file_of(tmp_path, pairs))
    assert not report.equal
    kinds = {mismatch.rpartition("-")[0].partition(":")[0] for mismatch in report.mismatches if "generations" not in mismatch}
    (shard,) = {kind.split("/")[1] for kind in kinds if kind.startswith("shards")}
    assert kinds == {f"shards/{shard}/interactions", f"shards/{shard}/submodel", "aggregate/aggregate"}
    assert len(report.mismatches) == 2 * 4  # with the manifest; of each the one that is stored and the one that is not


def test_one_pair_less_in_the_log_is_seen_too(coordinator: Coordinator, tiny: Dataset, tmp_path: Path) -> None:
    pairs = everything_in(tiny)
    missing = next(pair for pair in sorted(pairs) if has(coordinator, *pair))
    assert not compared(coordinator, file_of(tmp_path, pairs - {missing})).equal


def test_what_was_asked_and_is_not_carried_out_yet_still_differs(
    deployments: Deployments, coordinator: Coordinator, tiny: Dataset, tmp_path: Path
) -> None:
    coordinator.submit(UnlearningRequest(user_id=ERASED))
    left = {pair for pair in everything_in(tiny) if pair[0] != ERASED}
    assert not compared(coordinator, file_of(tmp_path, left)).equal
    coordinator.process_pending()
    assert compared(coordinator, file_of(tmp_path, left)).equal


@pytest.mark.parametrize("path", ["shards/0/notes.txt", "orphans.bin", "ledger/x", "generations/results/x"])
def test_any_other_file_under_the_storage_path_is_named(
    deployments: Deployments, coordinator: Coordinator, tiny: Dataset, tmp_path: Path, path: str
) -> None:
    deployments.honest = False
    target = coordinator._store.local_folder / path
    target.parent.mkdir(exist_ok=True)
    target.write_text("ann")
    report = compared(coordinator, file_of(tmp_path, everything_in(tiny)))
    assert report.mismatches == (f"{path}: is stored, and training on the log does not give it",)


def test_what_jobs_reported_and_logs_are_no_part_of_it(coordinator: Coordinator, tiny: Dataset, tmp_path: Path) -> None:
    folder = coordinator._store.local_folder
    coordinator._store.write_result("raysubmit_1", {"equal": True})
    (folder / "logs").mkdir()
    (folder / "logs" / "worker.txt").write_text("trained")
    (folder / "serve.log").write_text("served")
    assert compared(coordinator, file_of(tmp_path, everything_in(tiny))).equal


def test_a_file_with_the_right_name_and_other_content_is_named(
    deployments: Deployments, coordinator: Coordinator, tiny: Dataset, tmp_path: Path
) -> None:
    deployments.honest = False
    path = coordinator._serving.loaded.manifest.aggregate.path
    file = coordinator._store.local_folder / path
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    (mismatch,) = compared(coordinator, file_of(tmp_path, everything_in(tiny))).mismatches
    assert path in mismatch
    assert "its digest differs" in mismatch


def test_settings_that_were_chosen_from_the_log_are_taken_as_recorded(
    deployments: Deployments, tiny: Dataset, tmp_path: Path
) -> None:
    config = config_from({"partition": {"n_shards": 2}, "model": {"kind": "wmf", "width": 4, "epochs": 1}})
    pairs = everything_in(tiny)
    coordinator = deployments.fit("shop", config, Dataset.of_pairs("log", pairs))
    coordinator.submit(UnlearningRequest(user_id=ERASED))
    coordinator.process_pending()
    report = compared(coordinator, file_of(tmp_path, {pair for pair in pairs if pair[0] != ERASED}))
    assert (report.equal, report.guarantee, report.chosen) == (True, "exact-given-settings", ("model.alpha0",))


def test_the_random_partition_is_compared_as_well(deployments: Deployments, tiny: Dataset, tmp_path: Path) -> None:
    config = config_from(
        {"partition": {"kind": "random", "n_shards": 2}, "model": {"width": 4, "epochs": 1, "alpha0": 0.3}, "seed": 7}
    )
    pairs = everything_in(tiny)
    coordinator = deployments.fit("shop", config, Dataset.of_pairs("log", pairs))
    coordinator.submit(UnlearningRequest(item_id=5))
    coordinator.process_pending()
    assert compared(coordinator, file_of(tmp_path, {pair for pair in pairs if pair[1] != 5})).equal


def test_a_learned_partition_is_refused_with_the_way_out(deployments: Deployments, tiny: Dataset, tmp_path: Path) -> None:
    config = config_from(
        {"partition": {"kind": "user_based", "n_shards": 2}, "model": {"width": 4, "epochs": 1, "alpha0": 0.3}}
    )
    coordinator = deployments.fit("shop", config, tiny)
    with pytest.raises(ConfigError, match=r"user_based partition is learned .* ray-eraser repartition"):
        compared(coordinator, file_of(tmp_path, everything_in(tiny)))


def test_comparing_writes_nothing(coordinator: Coordinator, tiny: Dataset, tmp_path: Path, monkeypatch) -> None:
    source = file_of(tmp_path, everything_in(tiny))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    compared(coordinator, source)
    assert sorted(tmp_path.rglob("*")) == before


def test_under_other_conditions_a_difference_is_explained(
    coordinator: Coordinator, tiny: Dataset, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("ray_eraser.unlearning.against.environment", lambda threads, _: {"torch": "0.1", "threads": threads})
    report = compared(coordinator, file_of(tmp_path, everything_in(tiny)))
    assert [mismatch.partition("/")[0] for mismatch in report.mismatches[:-1]] == ["generations", "generations"]
    assert report.mismatches[-1].endswith("audit where it was trained")
