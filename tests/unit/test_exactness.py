"""An erasure leaves other shards unchanged and equals training from scratch. See also test_forgetting.py."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from conftest import SMALL_LOG, Deployments, audited, digest_of
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import Plain

from ray_eraser.config import EraserConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs
from ray_eraser.store import embeddings_bytes
from ray_eraser.training.submodel import train_submodel
from ray_eraser.unlearning.audit import Erased
from ray_eraser.unlearning.receipt import sealed_path
from ray_eraser.unlearning.request import UnlearningRequest

pytestmark = pytest.mark.deep

PARTITIONS = ("hashed", "random", "user_based", "item_based", "interaction_based")
MODELS = {
    "als": {"solver": "als", "epochs": 2, "alpha0": 0.3},
    "adagrad": {"solver": "adagrad", "epochs": 4, "batch": 16, "patience": 1, "check_every": 1},
    "bpr": {"kind": "bpr", "epochs": 2, "batch": 16},
    "lightgcn": {"kind": "lightgcn", "epochs": 2, "batch": 32},
}
UNTRAINED = {"linear": {"kind": "linear"}}
"""Models without submodels, to which the tests of submodels below do not apply."""
AGGREGATIONS = {
    "mean": {"kind": "mean", "sweeps": 1},
    "static": {"kind": "static", "foldin": False},
    "attention": {"kind": "attention", "sweeps": 0, "epochs": 2},
    "spectral": {"kind": "spectral", "sweeps": 1},
}
WAYS = [
    *((partition, model, "spectral", 1) for partition, model in product(PARTITIONS, ("als", "adagrad"))),
    *(("hashed", model, "spectral", 1) for model in ("bpr", "lightgcn")),
    *(("hashed", "als", aggregation, 1) for aggregation in AGGREGATIONS if aggregation != "spectral"),
    *((partition, "adagrad", "spectral", 3) for partition in PARTITIONS),
    *(("hashed", model, "attention", 3) for model in ("als", "bpr", "lightgcn")),
    *((partition, "linear", "spectral", 1) for partition in PARTITIONS),
]


def configured(partition: str, model: str, aggregation: str = "spectral", slices: int = 1) -> EraserConfig:
    return config_from(
        {
            "data": SMALL_LOG | {"test_share": 0.2, "valid_share": 0.1},
            "partition": {"kind": partition, "n_shards": 3},
            "model": {"width": 6, **(MODELS | UNTRAINED)[model]},
            "training": {"slices": slices},
            "aggregation": {"foldin_alpha0": 0.3, **AGGREGATIONS[aggregation]},
        }
    )


def generated(config: EraserConfig) -> Dataset:
    return read_dataset("synthetic", config.data, config.seed)


def named(dataset: Dataset, part: Interactions) -> list[tuple[str, str]]:
    users, items = (of.texts.to_pylist() for of in (dataset.users, dataset.items))
    return [(users[u], items[i]) for u, i in zip(part.users, part.items, strict=True)]


def rows_of(dataset: Dataset, request: UnlearningRequest) -> Interactions:
    """The pairs of a request, looked up by hand."""
    log = Interactions.union([dataset.train, dataset.valid])
    users, items = (of.texts.to_pylist() for of in (dataset.users, dataset.items))
    if request.user_id is not None:
        return log.take(log.users == users.index(request.user_id))
    if request.item_id is not None:
        return log.take(log.items == items.index(request.item_id))
    rows = np.array([(users.index(user), items.index(item)) for user, item in request.pairs])
    return Interactions.of(rows[:, 0], rows[:, 1])


def requests_of(dataset: Dataset) -> list[UnlearningRequest]:
    """Requests for a user, an item, a pair, a held-out pair and two more users, without a common pair."""
    user, item = dataset.users.ids[4], dataset.items.ids[2]
    clear = [part.take((part.users != 4) & (part.items != 2)) for part in (dataset.train, dataset.valid)]
    return [
        UnlearningRequest(user_id=user),
        UnlearningRequest(item_id=item),
        UnlearningRequest(pairs=(named(dataset, clear[0])[0],)),
        UnlearningRequest(pairs=(named(dataset, clear[1])[-1],)),
        UnlearningRequest(user_id=dataset.users.ids[20]),
        UnlearningRequest(user_id=dataset.users.ids[30]),
    ]


@pytest.mark.parametrize(("partition", "model", "aggregation", "slices"), WAYS)
def test_after_every_kind_of_request_the_generation_equals_training_from_scratch(
    deployments: Deployments, partition: str, model: str, aggregation: str, slices: int
) -> None:
    config = configured(partition, model, aggregation, slices)
    dataset = generated(config)
    coordinator = deployments.fit("one by one", config, dataset)
    at_first, done, plain = coordinator.shard_data(), [], Plain(coordinator)
    in_sets = [set().union(*(parts[side] for parts in plain.shards)) for side in (0, 1)]
    assert in_sets == [set(named(dataset, dataset.train)), set(named(dataset, dataset.valid))]
    for request in requests_of(dataset):
        before, files = coordinator._serving.loaded.manifest, coordinator._store.files()
        salt = coordinator.submit(request).salt
        (receipt,) = coordinator.process_pending()
        done.append(request)

        after = coordinator._serving.loaded.manifest
        plain.erase(request)
        assert digest_of(coordinator) == plain.digest(deployments.store("scratch"))
        gone = KeyedPairs.in_keys(rows_of(dataset, request), dataset.users.keys, dataset.items.keys)
        owning = {shard for shard, data in at_first.items() if data.has(gone).any()}
        assert set(receipt.shards_touched) <= owning  # an earlier request may have erased a shard's pairs already
        for shard in set(at_first) - owning:
            assert after.shards[shard] == before.shards[shard]
        gone_files = set(files) - set(coordinator._store.files())
        assert sorted(receipt.purged) == sorted(sealed_path(path, salt) for path in gone_files)
    names = Erased(
        user_ids=tuple(r.user_id for r in done if r.user_id is not None),
        item_ids=tuple(r.item_id for r in done if r.item_id is not None),
        pairs=tuple(pair for r in done for pair in r.pairs or ()),
    )
    report = audited(coordinator, names)
    assert (report.exact, report.found_erased_pairs) == (True, 0), report.mismatches

    together = deployments.fit("together", config, dataset)
    for request in requests_of(dataset):
        together.submit(request)
    assert len(together.process_pending()) == len(done)
    assert digest_of(together) == digest_of(coordinator)


@pytest.mark.parametrize("model", ["als", "linear"])
@pytest.mark.parametrize("partition", ["hashed", "random"])
def test_without_a_given_partition_a_fresh_fit_on_the_rest_gives_the_same_generation(
    deployments: Deployments, partition: str, model: str
) -> None:
    config = configured(partition, model)
    dataset = generated(config)
    requests = requests_of(dataset)
    coordinator = deployments.fit("kept", config, dataset)
    for request in requests:
        coordinator.submit(request)
        coordinator.process_pending()
    erased = Interactions.union([rows_of(dataset, request) for request in requests])
    rest = replace(dataset, train=dataset.train.without(erased), valid=dataset.valid.without(erased))
    fresh = deployments.fit("fresh", config, rest)  # users without one of its pairs are left out
    assert digest_of(fresh) == digest_of(coordinator)
    assert fresh._store.files() == coordinator._store.files()
    (known, scores), (also_known, others) = (of.served_model().scores(dataset.users.keys) for of in (coordinator, fresh))
    assert known.tolist() == also_known.tolist()
    assert scores.tobytes() == others.tobytes()


@pytest.fixture(scope="module", params=list(product(PARTITIONS, MODELS)), ids="-".join)
def divided(request, tmp_path_factory):
    """The shards of a fitted deployment, with its submodels' bytes."""
    config = configured(*request.param)
    opened = Deployments(tmp_path_factory.mktemp("divided"))
    coordinator: Coordinator = opened.fit("shop", config, generated(config))
    store = opened.store("shop")
    manifest = coordinator._serving.loaded.manifest
    yield config, coordinator.shard_data(), {r.shard: store.read(r.submodel) for r in manifest.shards}
    opened.close()


@settings(max_examples=2)
@given(data=st.data())
def test_a_submodel_does_not_depend_on_other_shards(divided, data):
    """After any erasure from one shard, training every other shard on its own data gives the same bytes as before."""
    config, shards, submodels = divided
    touched = data.draw(st.sampled_from(sorted(shard for shard, part in shards.items() if len(part.train))))
    erased = data.draw(st.sets(st.integers(0, len(shards[touched].train) - 1), min_size=1))
    gone = shards[touched].keyed(shards[touched].train.take(np.array(sorted(erased))))
    for shard, part in shards.items():
        again = embeddings_bytes(train_submodel(part.without(gone), config, shard))
        assert (again == submodels[shard]) == (shard != touched)


@pytest.mark.parametrize("model", [*MODELS, *UNTRAINED])
def test_submodels_do_not_depend_on_the_order_in_which_shards_train(deployments: Deployments, model: str) -> None:
    config = configured("hashed", model)
    dataset = generated(config)
    coordinator = deployments.fit("forwards", config, dataset)
    backwards = deployments.open("backwards", config)
    erase = backwards.pool.train
    backwards.pool.train = lambda orders, on_done: erase(dict(reversed(orders.items())), on_done)
    backwards.fit(dataset)
    assert digest_of(backwards) == digest_of(coordinator)
