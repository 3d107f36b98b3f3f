"""Two deployments with the same remaining interactions have the same files, whatever happened before.

Each known way to break this property is a test. Comparisons of whole storage paths leave out the ledger and its mark. The scan
for traces of an erased id belongs to this file: it looks for bytes and does not know the layout of the store.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Deployments
from plain import key_of
from safetensors.numpy import load_file
from torch_devices import TORCH_DEVICES

from ray_eraser import seeds
from ray_eraser.config import EraserConfig, changed, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.unlearning.request import UnlearningRequest

Pairs = list[tuple[str, str]]

TWO = [{"width": 6, "epochs": 2, "alpha0": 0.3}, {"kind": "bpr", "width": 6, "epochs": 2}]


@pytest.fixture
def log() -> Pairs:
    """A log with numeric users and items, so that a single id that is not a number is visible."""
    return [(str(1000 + u), str(i)) for u in range(24) for i in range(14) if (u * 5 + i * 3) % 7 < 3]


def config_of(**sections: dict[str, object]) -> EraserConfig:
    usual: dict[str, dict[str, object]] = {
        "partition": {"n_shards": 3},
        "model": {"width": 6, "epochs": 2, "alpha0": 0.3},
    }
    return config_from({name: sections.get(name, usual.get(name, {})) for name in {*usual, *sections}})


def written(folder: Path, name: str, pairs: Iterable[tuple[str, str]]) -> str:
    file = folder / f"{name}.csv"
    file.write_text("user_id,item_id\n" + "".join(f"{user},{item}\n" for user, item in pairs))
    return str(file)


def files_under(deployments: Deployments, name: str) -> dict[str, bytes]:
    folder = Path(deployments.path(name))
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if not file.name.startswith("ledger")}


def same_files(deployments: Deployments, one: str, other: str) -> None:
    mine, theirs = files_under(deployments, one), files_under(deployments, other)
    assert sorted(mine) == sorted(theirs)
    assert mine == theirs


def erase(coordinator: Coordinator, **request: object) -> str:
    """Request and carry out an erasure, and return the guarantee that the receipt claims."""
    coordinator.submit(UnlearningRequest(**request))
    (receipt,) = coordinator.process_pending()
    return receipt.guarantee


# ---- an erased id does not affect the order of others ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "guest",
    [[("guest-7", "3")], [("1003", "lamp")], [("guest-7", "lamp"), ("guest-7", "3"), ("1003", "lamp")]],
    ids=["a user", "an item", "both"],
)
@pytest.mark.parametrize("model", TWO, ids=["als", "bpr"])
def test_an_erased_id_that_is_not_a_number_leaves_no_trace_in_any_shard(deployments, tmp_path, log, guest, model):
    config = config_of(model=model, aggregation={"foldin": False} if "kind" in model else {})
    coordinator = deployments.fit(
        "with", config, read_dataset(written(tmp_path, "with", log + guest), config.data, config.seed)
    )
    for user, item in guest:
        assert erase(coordinator, pairs=((user, item),)) == "exact"
    never = read_dataset(written(tmp_path, "never", log), config.data, config.seed)
    deployments.fit("never", config, never)
    same_files(deployments, "with", "never")


def test_an_id_with_only_a_test_pair_has_no_effect_and_is_not_stored(deployments, tmp_path, log):
    folders = []
    for name, test in (("with", "guest-7 lamp\n"), ("never", "1001 3\n")):
        folder = tmp_path / "logs" / name
        folder.mkdir(parents=True)
        lines = [
            f"{user} {' '.join(item for _, item in rows)}\n" for user, rows in itertools.groupby(log, lambda pair: pair[0])
        ]
        (folder / "train.txt").write_text("".join(lines))
        (folder / "test.txt").write_text(test)
        folders.append(str(folder))
    config = config_of()
    for name, folder in zip(("with", "never"), folders, strict=True):
        deployments.fit(name, config, read_dataset(folder, config.data, config.seed))
    same_files(deployments, "with", "never")
    assert not traces(deployments, "with", "guest-7", config.seed)


# ---- no file records the order of learning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", ["hashed", "random"])
@pytest.mark.parametrize("model", TWO, ids=["als", "bpr"])
def test_an_erased_user_leaves_no_trace_in_the_order_of_others(deployments, log, model, partition):
    config = config_of(
        model=model, partition={"kind": partition, "n_shards": 3}, aggregation={"foldin": False} if "kind" in model else {}
    )
    first, others = "1023", [pair for pair in log if pair[0] != "1023"]
    coordinator = deployments.fit("with", config, Dataset.of_pairs("log", others[:40]))
    coordinator.learn([*(pair for pair in log if pair[0] == first), ("2000", "99")])
    coordinator.process_pending()
    for part in (others[90:], others[40:90]):
        coordinator.learn(part)
        coordinator.process_pending()
    assert erase(coordinator, user_id=first) == "exact"
    assert erase(coordinator, user_id="2000") == "exact"
    deployments.fit("never", config, Dataset.of_pairs("log", others))
    same_files(deployments, "with", "never")


def test_learning_and_then_erasing_changes_no_file(deployments, log):
    config = config_of(data={"valid_share": 0.3})
    coordinator = deployments.fit("shop", config, Dataset.of_pairs("log", log))
    before = files_under(deployments, "shop")
    coordinator.learn([("ann", str(item)) for item in range(14)] + [("1001", "sofa")])
    coordinator.process_pending()
    assert files_under(deployments, "shop") != before
    erase(coordinator, user_id="ann")
    erase(coordinator, item_id="sofa")
    assert files_under(deployments, "shop") == before


@pytest.mark.parametrize(
    "shares", [{"valid_share": 0.3}, {"valid_share": 0.2, "test_share": 0.3}], ids=["valid", "valid and test"]
)
def test_learned_pairs_go_to_the_shards_of_a_fit_on_all_pairs(deployments, tmp_path, log, shares):
    config = config_of(data=shares)
    learned = [(f"new {n}", str(n % 14)) for n in range(30)] + [("1001", "lamp"), ("1002", "lamp"), ("1003", "lamp")]
    coordinator = deployments.fit("learned", config, read_dataset(written(tmp_path, "some", log), config.data, config.seed))
    coordinator.learn(learned)
    coordinator.process_pending()
    union = read_dataset(written(tmp_path, "all", [*learned, *log]), config.data, config.seed)
    deployments.fit("fit", config, union)
    same_files(deployments, "learned", "fit")


# ---- no erased id survives, and no gap reveals one -------------------------------------------------------------------------


def traces(deployments: Deployments, name: str, raw: str, seed: int) -> list[str]:
    """Files under a storage path that contain the text of an id or its key, packed or unpacked."""
    text, key = raw.encode(), key_of(raw, seed).to_bytes(8, "little")
    files = (file for file in sorted(Path(deployments.path(name)).rglob("*")) if file.is_file())
    return [str(file) for file in files if any(text in data or key in data for data in unpacked(file))]


def unpacked(file: Path) -> list[bytes]:
    data = [file.read_bytes()]
    if file.suffix == ".parquet":
        for column in pq.read_table(file).columns:
            values = column.to_pylist()
            data.append("\n".join(map(str, values)).encode())
            if pa.types.is_uint64(column.type):
                data.append(np.array(values, "<u8").tobytes())
    return data


def test_items_of_only_the_erased_user_are_in_no_file(deployments, log):
    config, item = config_of(), "clinic-hiv-followup"
    coordinator = deployments.fit("shop", config, Dataset.of_pairs("log", [*log, ("1003", item), ("ann", item)]))
    assert traces(deployments, "shop", item, config.seed)
    erase(coordinator, user_id="1003")
    assert traces(deployments, "shop", item, config.seed)  # ann has it
    erase(coordinator, user_id="ann")
    for raw in (item, "ann", "1003"):
        assert not traces(deployments, "shop", raw, config.seed)
    deployments.fit("never", config, Dataset.of_pairs("log", [pair for pair in log if pair[0] != "1003"]))
    same_files(deployments, "shop", "never")


def test_users_of_only_the_erased_item_are_in_no_file(deployments, log):
    config = config_of()
    coordinator = deployments.fit("shop", config, Dataset.of_pairs("log", [*log, ("only-lamps", "lamp")]))
    erase(coordinator, item_id="lamp")
    assert not traces(deployments, "shop", "only-lamps", config.seed)
    assert coordinator.describe().n_users == len({user for user, _ in log})


def test_a_re_partition_keeps_no_id_without_an_interaction(deployments, log):
    config = config_of()
    coordinator = deployments.fit("shop", config, Dataset.of_pairs("log", [*log, ("ann", "clinic-hiv-followup")]))
    coordinator.submit(UnlearningRequest(user_id="ann"))
    coordinator.repartition(["partition.n_shards=2"])
    coordinator.process_pending()
    assert not traces(deployments, "shop", "clinic-hiv-followup", config.seed)
    assert not list(Path(deployments.path("shop"), "shards").glob("2*"))


@pytest.mark.parametrize("change", ["data.valid_share=0.5", "data.test_share=0.3", "seed=5"])
def test_a_re_partition_with_other_hold_outs_equals_a_fit_with_these_settings(deployments, log, change):
    config = config_of(data={"valid_share": 0.2})
    coordinator = deployments.fit("shop", config, as_read(log, config))
    coordinator.repartition([change])
    coordinator.process_pending()
    kept = [
        pair
        for data in coordinator.shard_data().values()
        for pair in zip(
            coordinator._serving.loaded.users.raw_of(data.user_keys[data.pairs.users]),
            coordinator._serving.loaded.items.raw_of(data.item_keys[data.pairs.items]),
            strict=True,
        )
    ]
    assert (len(kept) < len(log)) == ("test_share" in change)
    other = changed(config, [change])
    deployments.fit("fresh", other, as_read(kept, other))
    same_files(deployments, "shop", "fresh")


def test_no_gap_in_any_file_reveals_an_erased_user(deployments, log):
    config = config_of(training={"slices": 2}, model={"kind": "bpr", "width": 6, "epochs": 2}, aggregation={"foldin": False})
    coordinator = deployments.fit("shop", config, Dataset.of_pairs("log", log))
    for user in ("1001", "1010", "1022"):
        erase(coordinator, user_id=user)
    ids: dict[str, list[str]] = {"users": [], "items": []}
    for file in Path(deployments.path("shop"), "vocabulary").iterdir():
        table = pq.read_table(file)
        assert table.column_names == ["key", "id"]
        assert not any(column.null_count for column in table.columns)
        ids[file.name.partition("-")[0]] += table["id"].to_pylist()
    remaining = [pair for pair in log if pair[0] not in ("1001", "1010", "1022")]
    assert sorted(ids["users"]) == sorted({user for user, _ in remaining})
    assert sorted(ids["items"]) == sorted({item for _, item in remaining})
    for file in Path(deployments.path("shop"), "shards").rglob("interactions-*"):
        arrays = load_file(file)
        for side in ("train", "valid"):
            assert len(arrays[side]) == len(arrays["user_keys"])
        used = np.unique(np.concatenate([arrays["train_items"], arrays["valid_items"]]))
        assert used.tolist() == list(range(len(arrays["item_keys"])))
        assert (arrays["train"] + arrays["valid"] > 0).all()
        assert (np.diff(arrays["user_keys"].astype(object)) > 0).all()


# ---- idempotency keys reveal no user ---------------------------------------------------------------------------------------


def test_a_key_that_names_a_user_cannot_be_found_from_the_storage_path_and_the_ledger(deployments, log):
    config = config_of()
    coordinator = deployments.fit("shop", config, Dataset.of_pairs("log", log))
    coordinator.submit(UnlearningRequest(user_id="1007"), "erase 1007")
    coordinator.process_pending()
    kept = b"".join(file.read_bytes() for file in Path(deployments.path("shop")).rglob("*") if file.is_file())
    secrets = [seeds.secret(config.seed, *path) for path in ((), ("idempotency",), ("ids",))]
    secrets += [coordinator._ledger.name.encode(), bytes.fromhex(coordinator._ledger.name), b""]
    for secret in secrets:
        for digest in (hmac.new(secret, b"erase 1007", "sha256"), hashlib.sha256(secret + b"erase 1007")):
            assert digest.hexdigest().encode() not in kept
            assert digest.digest() not in kept
    # It is still the same request.
    assert coordinator.submit(UnlearningRequest(user_id="1007"), "erase 1007").state.is_final


# ---- every model, aggregation and partition, after one long history --------------------------------------------------------

MODELS = {
    "als": {"width": 5, "epochs": 2, "alpha0": 0.3},
    "adagrad": {"solver": "adagrad", "width": 5, "epochs": 3},
    "bpr": {"kind": "bpr", "width": 5, "epochs": 2},
    "lightgcn": {"kind": "lightgcn", "width": 5, "epochs": 2},
}
AGGREGATIONS = {
    "spectral": {"foldin_alpha0": 0.2},
    "mean": {"kind": "mean", "foldin": False},
    "static": {"kind": "static", "foldin": False},
    "attention": {"kind": "attention", "foldin": False, "epochs": 2},
}


def lived(coordinator: Coordinator, reopen: Callable[[], Coordinator], log: Pairs) -> tuple[Coordinator, set[tuple[str, str]]]:
    """Learn and erase in batches and alone, close and reopen, re-partition back and forth, and return the remaining data."""
    left = set(log)

    def learned(*pairs: tuple[str, str]) -> None:
        coordinator.learn(pairs)
        left.update(pairs)

    def erased(**request: object) -> None:
        asked = UnlearningRequest(**request)
        coordinator.submit(asked)
        gone = {p for p in left if p[0] == asked.user_id or p[1] == asked.item_id or p in (asked.pairs or ())}
        left.difference_update(gone)

    learned(("ann", "lamp"), ("ann", "3"), ("1004", "sofa"), ("0007", "3"))
    coordinator.process_pending()
    erased(user_id="1001")
    erased(item_id="sofa")
    learned(("bob", "5"), ("bob", "lamp"))
    coordinator.process_pending()
    coordinator.close()
    coordinator = reopen()
    erased(pairs=[("ann", "lamp"), ("1002", next(item for user, item in sorted(left) if user == "1002"))])
    coordinator.process_pending()
    for changes in (["partition.n_shards=2"], ["partition.n_shards=3"]):
        erased(user_id=min(user for user, _ in left))
        coordinator.repartition(changes)
        coordinator.process_pending()
    learned(("1001", "9"))
    coordinator.process_pending()
    return coordinator, left


@pytest.mark.parametrize("partition", ["hashed", "random"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("model", MODELS)
def test_after_a_long_history_the_files_equal_those_of_a_new_deployment(deployments, log, model, aggregation, partition):
    ends_as_today(deployments, log, model, aggregation, partition, "cpu")


@pytest.mark.parametrize("partition", ["hashed", "random"])
def test_after_a_long_history_a_linear_model_has_the_files_of_a_new_one(deployments, log, partition):
    ends_as_today(deployments, log, "linear", "spectral", partition, "cpu")


@pytest.mark.parametrize("device", TORCH_DEVICES)
@pytest.mark.deep
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("model", MODELS)
def test_after_a_long_history_with_torch_the_files_equal_those_of_a_new_deployment(
    deployments, log, model, aggregation, device
):
    ends_as_today(deployments, log, model, aggregation, "hashed", device)


def ends_as_today(deployments: Deployments, log: Pairs, model: str, aggregation: str, partition: str, device: str) -> None:
    config = config_of(
        data={"valid_share": 0.1},
        model=MODELS.get(model, {"kind": model}),
        aggregation=AGGREGATIONS[aggregation],
        partition={"kind": partition, "n_shards": 3},
        training={"slices": 2 if aggregation == "mean" else 1},
        runtime={"device": device},
    )
    coordinator = deployments.fit("old", config, as_read(log, config))
    coordinator, left = lived(coordinator, lambda: deployments.open("old"), log)
    assert coordinator.config.runtime.device == device
    today = as_read(sorted(left, key=lambda pair: (pair[1], pair[0])), config)
    deployments.fit("today", config, today)
    same_files(deployments, "old", "today")


def as_read(pairs: Iterable[tuple[str, str]], config: EraserConfig) -> Dataset:
    from ray_eraser.data.splits import split

    return split(Dataset.of_pairs("log", pairs, config.seed), config.data, config.seed, test=True, valid=True)
