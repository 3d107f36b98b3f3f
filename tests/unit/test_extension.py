"""Models, partitions and aggregators of other packages: those of tests/extension, known here by `register`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar, Literal

import numpy as np
import pytest
from conftest import audited, digest_of
from extension.eraser_averages import (
    Averages,
    AveragesConfig,
    BySize,
    BySizeConfig,
    ItemHashed,
    ItemHashedConfig,
    Neighbours,
    NeighboursConfig,
    ServedNeighbours,
)

import ray_eraser
from ray_eraser import registry
from ray_eraser.config import (
    AggregationConfig,
    EraserConfig,
    PartitionConfig,
    PartitionSettings,
    WmfAlsConfig,
    changed,
    config_from,
    load_config,
    only_here,
)
from ray_eraser.errors import ConfigError, ExtensionError
from ray_eraser.generation import Change, remaining_dataset
from ray_eraser.models import make_model
from ray_eraser.partition import divide
from ray_eraser.study.membership import StudyPlan, attack_study
from ray_eraser.testing.aggregator_contract import AggregatorContract
from ray_eraser.testing.model_contract import ModelContract
from ray_eraser.testing.served_contract import Sections, ServedContract
from ray_eraser.unlearning.audit import Erased
from ray_eraser.unlearning.request import UnlearningRequest

MINE = ("model.kind=averages", "partition.kind=item_hashed", "aggregation.kind=by_size")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_here", {})
    monkeypatch.setattr(registry, "_loaded", {})
    ray_eraser.register("models", Averages)
    ray_eraser.register("models", Neighbours)
    ray_eraser.register("partitions", ItemHashed)
    ray_eraser.register("aggregators", BySize)


@pytest.fixture
def nothing_is_registered(registered, monkeypatch):
    monkeypatch.setattr(registry, "_here", {})


class TestAverages(ModelContract):
    model = Averages(AveragesConfig())


class TestNeighbours(ServedContract):
    sections: ClassVar[Sections] = {"model": {"kind": "neighbours"}}

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        with pytest.MonkeyPatch.context() as patched:  # before the fixture that registers for each test
            patched.setattr(registry, "_here", {})
            ray_eraser.register("models", Neighbours)
            yield cls().served()


class TestBySize(AggregatorContract):
    settings = BySizeConfig()


def test_settings_are_read_with_the_class_of_their_kind():
    config = load_config(None, [*MINE, "model.keep=0.2", "partition.n_shards=3", "aggregation.power=1"])
    assert config.model == AveragesConfig(keep=0.2)
    assert config.partition == ItemHashedConfig(n_shards=3)
    assert config.aggregation == BySizeConfig(power=1)
    assert isinstance(make_model(config.model), Averages)


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        ("model.keep=2", "model.keep", "less than 1"),
        ("model.solver=als", "model.solver", "unknown key"),
        ("aggregation.attention_width=3", "aggregation.attention_width", "unknown key"),
        ("partition.slack=2", "partition.slack", "unknown key"),
    ],
)
def test_settings_of_another_package_are_checked_like_all_others(change, key, said):
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(None, [*MINE, change])
    assert caught.value.key == key


def test_settings_are_part_of_the_fingerprint_and_survive_toml_and_plain_values(tmp_path):
    config = load_config(None, MINE)
    prints = {
        load_config(None, changes).fingerprint()
        for changes in ([], MINE, [*MINE, "model.keep=0.5"], [*MINE, "aggregation.power=2"], MINE[:1], MINE[1:2])
    }
    assert len(prints) == 6
    assert config_from(config.model_dump(mode="json")) == config
    (tmp_path / "mine.toml").write_text(config.to_toml())
    assert load_config(tmp_path / "mine.toml") == config


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("model.kind", "auto, linear, wmf, bpr, lightgcn, averages, neighbours"),
        ("partition.kind", "embedding_kmeans, transport, item_hashed"),
        ("aggregation.kind", "attention, spectral, by_size"),
    ],
)
def test_an_unknown_kind_is_refused_with_the_known_ones(key, known):
    with pytest.raises(ConfigError, match="'avreages' is not known in this process") as caught:
        load_config(None, [f"{key}=avreages"])
    assert caught.value.key == key
    assert known in str(caught.value)


def test_a_deployment_learns_forgets_and_is_audited_with_them(deployments, tiny, tiny_config):
    mine = {"model": {"kind": "averages", "width": 8}, "partition": {"kind": "item_hashed", "n_shards": 3}}
    config = config_from(
        tiny_config.model_dump(mode="json") | mine | {"aggregation": {"kind": "by_size", "foldin_alpha0": 0.3}}
    )
    coordinator = deployments.fit("a", config, tiny)
    assert coordinator.describe().guarantee == "exact"
    user, item = tiny.users.ids[3], tiny.items.ids[5]
    coordinator.submit(UnlearningRequest(item_id=item))
    (receipt,) = coordinator.process_pending()
    assert len(receipt.shards_touched) == 1  # by item: a shard of its own
    coordinator.submit(UnlearningRequest(user_id=user))
    coordinator.process_pending()
    report = audited(coordinator, Erased(user_ids=(user,), item_ids=(item,)))
    assert report.exact, report.mismatches

    afresh = deployments.fit("b", config, coordinator_dataset(coordinator))
    assert afresh.served_model().vectors().items.tobytes() == coordinator.served_model().vectors().items.tobytes()


def test_a_deployment_serves_and_forgets_exactly_with_a_model_that_is_never_trained(
    deployments, tiny, tiny_config, monkeypatch
):
    monkeypatch.setattr("ray_eraser.training.submodel.make_model", lambda *_: pytest.fail("something was trained"))
    config = config_from(tiny_config.model_dump(mode="json") | {"model": {"kind": "neighbours"}})
    coordinator = deployments.fit("a", config, tiny)
    before = coordinator.served_model()
    assert isinstance(before, ServedNeighbours)
    user, item = tiny.users.ids[3], tiny.items.ids[5]
    for request in (UnlearningRequest(item_id=item), UnlearningRequest(user_id=user)):
        coordinator.submit(request)
    at_once = coordinator.served_model()
    receipts = coordinator.process_pending()
    assert [receipt.guarantee for receipt in receipts] == ["exact", "exact"]
    assert coordinator.served_model() is at_once  # accepted is final: nothing is made twice
    report = audited(coordinator, Erased(user_ids=(user,), item_ids=(item,)))
    assert report.exact, report.mismatches

    fresh = deployments.fit("b", config, coordinator_dataset(coordinator))
    assert digest_of(fresh) == digest_of(coordinator)
    (known, scores), (also_known, others) = (one.scores(tiny.users.keys) for one in (at_once, fresh.served_model()))
    assert known.tolist() == also_known.tolist()
    assert scores.tobytes() == others.tobytes() != before.scores(tiny.users.keys)[1].tobytes()
    coordinator.learn([(tiny.users.ids[7], item)])
    coordinator.process_pending()
    assert tiny.items.key(item) in coordinator.served_model().item_keys


def test_a_membership_attack_works_on_a_model_of_another_package(tiny_config):
    model = {"model": {"kind": "neighbours"}, "data": {"synthetic_users": 200, "test_share": 0.2}}
    config = config_from(tiny_config.model_dump(mode="json") | model)
    dataset = ray_eraser.read_dataset("synthetic", config.data, config.seed)
    pool = ray_eraser.LocalShardPool("nothing-is-stored-here", config)
    report = attack_study(dataset, config, pool, StudyPlan(share=0.1, shadows=1, other_seeds=0))
    assert report.same_bits
    assert all(result.excess.value == 0 for result in report.results)
    assert report.result("threshold", "held out").stale_excess.low > 0
    with pytest.raises(ConfigError, match="erase pairs, not users"):
        attack_study(dataset, config, pool, StudyPlan(share=0.1, whole_users=True, shadows=0, other_seeds=0))


def test_a_model_without_training_must_be_servable():
    with pytest.raises(ExtensionError, match="is not trained and cannot be served: give it a method `served`"):
        ray_eraser.register("models", type("Mute", (), {"Settings": NeighboursConfig}))


def coordinator_dataset(coordinator):
    return remaining_dataset(Change.nothing(coordinator._serving.loaded), coordinator.config)


def test_a_deployment_can_move_to_a_kind_of_another_package_and_back():
    config = load_config(None, ["model.width=16", "partition.n_shards=4", "partition.slack=2", "aggregation.sweeps=0"])
    mine = changed(config, MINE)
    assert mine.model == AveragesConfig(width=16)
    assert mine.partition == ItemHashedConfig(n_shards=4)
    assert mine.aggregation == BySizeConfig(sweeps=0)
    back = changed(mine, ["model.kind=wmf", "partition.kind=hashed", "aggregation.kind=mean"])
    assert back.model == WmfAlsConfig(width=16)
    assert back.partition == PartitionConfig(n_shards=4)
    assert back.aggregation == AggregationConfig(kind="mean", sweeps=0)


def test_a_partition_must_say_whether_it_is_learned():
    class SilentConfig(PartitionSettings):
        kind: Literal["silent"] = "silent"

    with pytest.raises(ExtensionError, match="does not say whether it is learned"):
        ray_eraser.register("partitions", type("Silent", (), {"Settings": SilentConfig}))


def test_a_learned_partition_gives_the_lesser_guarantee():
    class BusiestConfig(PartitionSettings):
        kind: Literal["busiest"] = "busiest"

        @property
        def is_learned(self) -> bool:
            return True

    ray_eraser.register("partitions", type("Busiest", (), {"Settings": BusiestConfig}))
    assert load_config(None, ["partition.kind=busiest"]).guarantee == "exact-given-partition"


@pytest.mark.parametrize("what", [object, type("NoKind", (), {"Settings": dict})])
def test_a_class_without_settings_cannot_be_registered(what):
    with pytest.raises(ExtensionError, match="has no class of settings"):
        ray_eraser.register("models", what)


def test_settings_that_do_not_derive_from_this_package_are_refused():
    with pytest.raises(ExtensionError, match=r"needs settings that derive from config\.ModelSettings"):
        ray_eraser.register("models", type("Odd", (), {"Settings": ItemHashedConfig}))


def test_a_kind_of_this_package_cannot_be_replaced():
    class HashedConfig(PartitionSettings):
        kind: Literal["hashed"] = "hashed"

    with pytest.raises(ExtensionError, match="choose another"):
        ray_eraser.register("partitions", type("Hashed", (), {"Settings": HashedConfig}))


def test_a_kind_registered_only_here_is_distinguished_from_entry_points():
    assert only_here(EraserConfig()) is None
    assert only_here(load_config(None, MINE[1:2])) == "partition.kind"


def test_a_deployment_on_ray_with_a_kind_registered_only_here_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="entry point") as caught:
        ray_eraser.deploy("mine", str(tmp_path / "mine"), load_config(None, MINE))
    assert caught.value.key == "model.kind"
    assert not (tmp_path / "mine").exists()


def test_settings_without_their_package_are_an_error_that_says_so(nothing_is_registered):
    with pytest.raises(ConfigError, match="install the package that has it on every node"):
        make_model(AveragesConfig())


def test_an_entry_point_is_loaded_and_must_have_the_name_of_its_settings(monkeypatch, nothing_is_registered):
    def declare(*points):
        monkeypatch.setattr(registry, "entry_points", lambda *, group: [p for p in points if p.group == group])

    def point(name, value="package:Class", loads=lambda: Averages):
        return SimpleNamespace(name=name, value=value, group="ray_eraser.models", load=loads)

    def fails():
        raise ImportError("no such thing")

    declare(point("averages"))
    assert load_config(None, ["model.kind=averages"]).model == AveragesConfig()
    assert only_here(load_config(None, ["model.kind=averages"])) is None
    for points, said in (
        ((point("means"),), "give both the same name"),
        ((point("means", loads=fails),), "cannot be loaded from package:Class"),
        ((point("means"), point("means", "other:Class")), r"declared by several packages \(other:Class, package:Class\)"),
    ):
        declare(*points)
        with pytest.raises(ExtensionError, match=said):
            load_config(None, ["model.kind=means"])


def test_the_shard_of_a_pair_does_not_depend_on_other_pairs(tiny):
    keys = np.arange(1000, dtype=np.uint64) * np.uint64(7919)
    config = ItemHashedConfig(n_shards=4)
    whole = divide(tiny.train, keys, keys, config, 0).owners
    part = tiny.train.take(np.arange(len(tiny.train)) % 3 == 0)
    assert (divide(part, keys, keys, config, 0).owners == whole[np.arange(len(tiny.train)) % 3 == 0]).all()
