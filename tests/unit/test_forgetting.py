"""An erasure gives the same bits as training from scratch on the remaining data, for every way of doing either."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL_LOG, Deployments, audited, digest_of

from ray_eraser.config import EraserConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.partition import Partition
from ray_eraser.unlearning.audit import Erased
from ray_eraser.unlearning.request import UnlearningRequest

LEARNED = (
    "user_based",
    "item_based",
    "interaction_based",
    "label_propagation",
    "embedding_kmeans",
    "transport",
)
PARTITIONS = ("hashed", "random", *LEARNED)
MODELS = {
    "als": {"solver": "als", "epochs": 2, "alpha0": 0.3},
    "adagrad": {"solver": "adagrad", "epochs": 4, "batch": 16},
    "bpr": {"kind": "bpr", "epochs": 2, "batch": 16},
    "lightgcn": {"kind": "lightgcn", "epochs": 2, "batch": 32},
    "adagrad, stopping early": {"solver": "adagrad", "epochs": 6, "batch": 16, "patience": 1, "check_every": 1},
}
AGGREGATIONS = {
    "mean": {"kind": "mean", "foldin": False},
    "mean, folded in": {"kind": "mean", "sweeps": 0},
    "static": {"kind": "static", "foldin": False},
    "attention": {"kind": "attention", "foldin": False, "epochs": 2},
    "attention, as the paper starts": {"kind": "attention", "init": "paper", "foldin": False, "epochs": 2},
    "attention, folded in": {"kind": "attention", "sweeps": 1, "epochs": 2},
    "spectral": {"kind": "spectral", "foldin": False},
    "spectral, two sweeps": {"kind": "spectral", "sweeps": 2},
}


SLICED = [
    *product(PARTITIONS, ["als", "adagrad, stopping early"], ["spectral, two sweeps"]),
    *product(["hashed", "interaction_based"], MODELS, ["spectral, two sweeps", "attention"]),
]


def configured(partition: str, model: str, aggregation: str, slices: int = 1) -> EraserConfig:
    return config_from(
        {
            "data": SMALL_LOG | {"test_share": 0.2, "valid_share": 0.1},
            "partition": {"kind": partition, "n_shards": 3},
            "model": {"width": 6, **MODELS[model]},
            "training": {"slices": slices},
            "aggregation": {"foldin_alpha0": 0.3, **AGGREGATIONS[aggregation]},
        }
    )


def stored_in(coordinator: Coordinator, dataset: Dataset) -> dict[int, tuple[Interactions, Interactions]]:
    """The contents of every shard's file, training and held-out pairs, in the rows of a log."""
    read = coordinator._store.read_shard_data
    return {
        record.shard: read(record.interactions).in_rows_of(dataset.users.keys, dataset.items.keys)
        for record in coordinator._serving.loaded.manifest.shards
    }


def owners_of(coordinator: Coordinator, log: Dataset) -> tuple[Partition, Partition]:
    """The shard that owns each interaction of both sets, read from the shards' files."""
    stored = stored_in(coordinator, log)
    partitions = []
    for side, part in enumerate((log.train, log.valid)):
        owners = np.full(len(part), -1, np.int16)
        for shard, sets in stored.items():
            owners[np.isin(part.codes(), sets[side].codes())] = shard
        partitions.append(Partition(len(stored), owners))
    return partitions[0], partitions[1]


def remaining(dataset: Dataset, coordinator: Coordinator) -> Dataset:
    """The log as if it had never had the erased pairs. Its vocabularies still have the ids, which must not matter."""
    train, valid = (Interactions.union(list(parts)) for parts in zip(*stored_in(coordinator, dataset).values(), strict=True))
    return replace(dataset, train=train, valid=valid)


def a_pair(dataset: Dataset, position: int, *, held_out: bool = False) -> tuple[int, int]:
    part = dataset.valid if held_out else dataset.train
    return dataset.users.ids[part.users[position]], dataset.items.ids[part.items[position]]


@pytest.mark.deep
@pytest.mark.parametrize(
    ("partition", "model", "aggregation", "slices"),
    [*((*way, 1) for way in product(PARTITIONS, MODELS, AGGREGATIONS)), *((*way, 3) for way in sorted(set(SLICED)))],
)
def test_erasing_a_user_and_a_pair_equals_training_from_scratch_on_the_rest(
    deployments: Deployments, partition: str, model: str, aggregation: str, slices: int
) -> None:
    config = configured(partition, model, aggregation, slices)
    dataset = read_dataset("synthetic", config.data, config.seed)
    coordinator = deployments.fit("kept", config, dataset)
    user, pair = dataset.users.ids[4], a_pair(dataset, -1)
    coordinator.submit(UnlearningRequest(user_id=user))
    coordinator.submit(UnlearningRequest(pairs=(pair,)))
    receipts = coordinator.process_pending()
    assert [receipt.guarantee for receipt in receipts] == [config.guarantee] * 2

    rest = remaining(dataset, coordinator)
    assert len(rest.train) + len(rest.valid) == len(dataset.train) + len(dataset.valid) - sum(r.pairs_erased for r in receipts)
    same = owners_of(coordinator, rest) if partition in LEARNED else ()
    fresh = deployments.fit("fresh", config, rest, *same)
    assert digest_of(fresh) == digest_of(coordinator)
    report = audited(coordinator, Erased(user_ids=(user,), pairs=(pair,)))
    assert report.exact, report.mismatches
    n_parts = len([path for path in coordinator._store.files() if path.startswith("vocabulary")])
    assert report.compared == n_parts + (1 + slices) * 3 + 1


@pytest.mark.parametrize(("partition", "slices"), list(product(PARTITIONS, [1, 4])))
def test_erasing_one_by_one_together_and_training_from_scratch_give_the_same_bits(
    deployments: Deployments, partition: str, slices: int
) -> None:
    config = configured(partition, "als", "spectral, two sweeps", slices)
    dataset = read_dataset("synthetic", config.data, config.seed)
    requests = [
        UnlearningRequest(user_id=dataset.users.ids[1]),
        UnlearningRequest(item_id=dataset.items.ids[2]),
        UnlearningRequest(pairs=(a_pair(dataset, 0), a_pair(dataset, len(dataset.train) // 2))),
        UnlearningRequest(pairs=(a_pair(dataset, -1, held_out=True),)),
        UnlearningRequest(user_id=dataset.users.ids[20]),
        UnlearningRequest(user_id=dataset.users.ids[39]),
    ]
    one_by_one = deployments.fit("one by one", config, dataset)
    for request in requests:
        one_by_one.submit(request)
        one_by_one.process_pending()
    together = deployments.fit("together", config, dataset)
    for request in requests:
        together.submit(request)
    assert len(together.process_pending()) == len(requests)
    assert digest_of(together) == digest_of(one_by_one)

    rest = remaining(dataset, together)
    same = owners_of(together, rest) if partition in LEARNED else ()
    fresh = deployments.fit("fresh", config, rest, *same)
    assert digest_of(fresh) == digest_of(together)
    assert fresh._store.files() == together._store.files()
    assert audited(together).exact


@pytest.mark.parametrize(("model", "slices"), list(product(MODELS, [1, 3])))
def test_a_log_that_never_had_the_user_gives_the_same_files(
    deployments: Deployments, tmp_path: Path, model: str, slices: int
) -> None:
    """Without help from the deployment: the lines are removed from the files, and the files are read again."""
    config = configured("hashed", model, "spectral, two sweeps", slices)
    rng = np.random.default_rng(1)
    lines = {f"user{u:02}": sorted({f"item{i:02}" for i in rng.integers(0, 25, 9)}) for u in range(40)}
    erased = ("user07", "user31")
    folders = []
    for name, users in (("all", lines), ("rest", {u: items for u, items in lines.items() if u not in erased})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.txt").write_text("".join(f"{user} {' '.join(items)}\n" for user, items in users.items()))
        folders.append(str(folder))
    unlearned = deployments.fit("unlearned", config, read_dataset(folders[0], config.data, config.seed))
    for user in erased:
        unlearned.submit(UnlearningRequest(user_id=user))
    unlearned.process_pending()
    never = deployments.fit("never", config, read_dataset(folders[1], config.data, config.seed))

    assert digest_of(unlearned) == digest_of(never)
    assert unlearned._store.files() == never._store.files()


@pytest.mark.parametrize(("partition", "model"), list(product(PARTITIONS, MODELS)))
def test_no_bit_of_another_shard_changes(deployments: Deployments, partition: str, model: str) -> None:
    config = configured(partition, model, "mean")
    dataset = read_dataset("synthetic", config.data, config.seed)
    coordinator = deployments.fit("shards", config, dataset)
    before = coordinator._serving.loaded.manifest.shards
    coordinator.submit(UnlearningRequest(pairs=(a_pair(dataset, 5),)))
    (receipt,) = coordinator.process_pending()
    after = coordinator._serving.loaded.manifest.shards
    assert len(receipt.shards_touched) == 1
    for old, new in zip(before, after, strict=True):
        assert (old == new) == (old.shard not in receipt.shards_touched)


def test_after_acceptance_the_served_model_does_not_depend_on_the_user(deployments: Deployments) -> None:
    """Two logs that differ only in the erased user's interactions serve the same bits between acceptance and restoration."""
    config = configured("hashed", "als", "spectral, two sweeps")
    dataset = read_dataset("synthetic", config.data, config.seed)
    user = 4
    other_items = np.setdiff1d(dataset.train.item_rows(), dataset.train.of_users(np.array([user])).items)[:5]
    others = dataset.train.take(dataset.train.users != user)
    changed = replace(
        dataset,
        train=Interactions.union([others, Interactions.of(np.full(len(other_items), user), other_items)]),
    )
    served = []
    for name, log in (("one", dataset), ("two", changed)):
        coordinator = deployments.fit(name, config, log)
        coordinator.submit(UnlearningRequest(user_id=dataset.users.ids[user]))
        served.append(coordinator.served_model().vectors())
    assert served[0].same_bits(served[1])
    assert len(served[0].user_keys) > 0
