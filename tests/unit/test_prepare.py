"""From a log to what every shard learns from."""

from __future__ import annotations

import numpy as np
import pytest

from ray_eraser import prepare as prepare_module
from ray_eraser.config import config_from
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.prepare import prepare
from ray_eraser.unlearning.request import UnlearningRequest

SISA = {
    "model": {"kind": "bpr", "width": 4, "epochs": 2},
    "partition": {"kind": "random", "n_shards": 3},
    "aggregation": {"kind": "mean", "foldin": False},
}


class Here:
    def run(self, calls):
        return [call() for call in calls]


def raw_pairs(log, some):
    return set(zip(log.users.raw(some.users), log.items.raw(some.items), strict=True))


@pytest.mark.parametrize("kind", ["hashed", "random", "user_based"])
def test_every_pair_that_is_learned_or_held_out_is_in_one_shard_and_none_of_the_test_set_is(tiny, tiny_config, kind):
    config = tiny_config.model_copy(update={"partition": tiny_config.partition.model_copy(update={"kind": kind})})
    ready = prepare(tiny, config, Here())
    assert len(ready.shards) == 3
    for name in ("train", "valid"):
        by_shard = [data.keyed(getattr(data, name)) for data in ready.shards]
        named = [set(zip(part.users.tolist(), part.items.tolist(), strict=True)) for part in by_shard]
        whole = getattr(tiny, name)
        keys = tiny.users.keys[whole.users].tolist(), tiny.items.keys[whole.items].tolist()
        assert sum(map(len, named)) == len(whole)
        assert set().union(*named) == set(zip(*keys, strict=True))
    assert len(tiny.test) > 0


def test_a_log_is_learned_in_the_order_of_the_keys_of_the_configs_seed(tiny, tiny_config):
    other = tiny_config.model_copy(update={"seed": tiny_config.seed + 1})
    ready = prepare(tiny, other, Here())
    assert ready.log.users.secret == tiny.users.under(other.seed).secret != tiny.users.secret
    assert raw_pairs(ready.log, ready.log.train) == raw_pairs(tiny, tiny.train)
    assert raw_pairs(ready.log, ready.log.valid) == raw_pairs(tiny, tiny.valid)
    keys = [data.user_keys for data in ready.shards]
    assert np.isin(np.concatenate(keys), ready.log.users.keys).all()


def test_the_weight_of_unobserved_pairs_is_chosen_once_and_named():
    config = config_from({"model": {"width": 4, "epochs": 2, "alpha0": "auto"}, "partition": {"n_shards": 2}})
    log = Dataset.of_pairs("log", [(user, item) for user in range(20) for item in range(12) if (user + item) % 2])
    ready = prepare(log, config, Here())
    assert ready.chosen == ("model.alpha0",)
    assert ready.config.is_settled
    again = prepare(log, ready.config, Here())
    assert (again.chosen, again.config) == ((), ready.config)


def test_where_nothing_that_is_stored_depends_on_a_weight_none_is_looked_for(deployments, tiny, monkeypatch):
    def never(*_):
        raise AssertionError("a weight was looked for")

    monkeypatch.setattr(prepare_module, "choose_alpha0_among", never)
    coordinator = deployments.open("a", config_from(SISA))
    report = coordinator.fit(tiny)
    assert (report.alpha0, report.chosen, report.guarantee) == (None, (), "exact")
    manifest = coordinator._serving.loaded.manifest
    assert (manifest.chosen, manifest.config) == ((), config_from(SISA).with_device("cpu"))
    user, other = tiny.users.raw([0, 1])
    coordinator.submit(UnlearningRequest(user_id=user))
    assert coordinator.recommend(other)  # from what is left where every shard has an interaction of the user
    (receipt,) = coordinator.process_pending()
    assert (receipt.guarantee, receipt.chosen) == ("exact", ())


def test_a_log_without_a_pair_to_learn_from_gives_shards_of_nobody(tiny_config):
    ready = prepare(Dataset.of_pairs("log", [], test=[("ann", 1)]), tiny_config, Here())
    assert (len(ready.log.users), len(ready.log.items)) == (0, 0)
    assert [len(data) for data in ready.shards] == [0, 0, 0]
    assert ready.log.test.codes().tolist() == Interactions.none().codes().tolist()
