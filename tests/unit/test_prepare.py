"""From a log to what every shard learns from."""

from __future__ import annotations

import numpy as np
import pytest

from ray_eraser import config as config_module
from ray_eraser import prepare as prepare_module
from ray_eraser import seeds
from ray_eraser.config import EraserConfig, LinearConfig, WmfAlsConfig, config_from, load_config
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.splits import hold_out
from ray_eraser.prepare import chosen_at, prepare
from ray_eraser.training.weights import RIDGES
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
    config = config_from({"model": {"kind": "wmf", "width": 4, "epochs": 2, "alpha0": "auto"}, "partition": {"n_shards": 2}})
    log = Dataset.of_pairs("log", [(user, item) for user in range(20) for item in range(12) if (user + item) % 2])
    ready = prepare(log, config, Here())
    assert ready.chosen == ("model.alpha0",)
    assert ready.config.is_settled
    again = prepare(log, ready.config, Here())
    assert (again.chosen, again.config) == ((), ready.config)


SMALL_LOG = [(user, item) for user in range(20) for item in range(12) if (user + item) % 2]


def test_a_plain_log_is_served_by_the_linear_model_and_no_setting_is_chosen():
    ready = prepare(Dataset.of_pairs("log", SMALL_LOG), load_config(None, ["partition.n_shards=2"]), Here())
    assert ready.config.model == LinearConfig()
    assert (ready.chosen, ready.config.is_settled) == ((), True)


def test_above_the_limit_it_is_als_whose_weight_is_chosen_once_the_kind_is_known(monkeypatch):
    monkeypatch.setattr(config_module, "LINEAR_UP_TO", len(SMALL_LOG) - 1)
    config = load_config(None, ["partition.n_shards=2", "model.kind=auto", "model.width=4", "model.epochs=2"])
    ready = prepare(Dataset.of_pairs("log", SMALL_LOG), config, Here())
    assert ready.config.model == WmfAlsConfig(width=4, epochs=2, alpha0=ready.config.model.alpha0)
    assert ready.config.is_settled
    assert ready.chosen == ("model.alpha0",)


def test_what_is_held_out_does_not_count(monkeypatch):
    monkeypatch.setattr(config_module, "LINEAR_UP_TO", len(SMALL_LOG))
    log = Dataset.of_pairs("log", SMALL_LOG, 0, [(3, 99)], test=[(3, 98)])
    assert prepare(log, EraserConfig(), Here()).config.model == LinearConfig()


LIMIT = config_module.LINEAR_UP_TO


@pytest.mark.parametrize(
    ("asked", "made_at", "n_pairs", "expected"),
    [
        ("auto", LIMIT, LIMIT, ()),
        ("auto", LIMIT, LIMIT + 1, ("model.kind",)),  # what was learned since would have it be wmf
        ("auto", LIMIT + 9, LIMIT + 1, ("model.alpha0",)),
        ("auto", LIMIT + 9, LIMIT, ("model.kind", "model.alpha0")),  # what was erased since would have it be linear
        ("wmf", LIMIT + 9, LIMIT, ("model.alpha0",)),
        ("linear", LIMIT, LIMIT + 1, ()),
    ],
)
def test_the_kind_of_model_is_named_where_a_training_on_what_remains_comes_to_another(asked, made_at, n_pairs, expected):
    given = load_config(None, [f"model.kind={asked}"])
    made = given.resolved(made_at)
    chosen = tuple(name for name in made.open_settings if name == "model.alpha0")
    for before in (chosen, ("model.kind", *chosen)):  # what a generation before named does not count
        assert chosen_at(before, given, made.settled(0.3), n_pairs) == expected


def test_a_ridge_that_is_left_open_is_chosen_from_the_log_and_named(deployments, tiny):
    config = load_config(None, ["model.ridge=auto", "partition.n_shards=2"])
    coordinator = deployments.open("shop", config)
    report = coordinator.fit(tiny)
    assert (report.guarantee, report.chosen) == ("exact-given-settings", ("model.ridge",))
    ridge = coordinator.config.model.ridge
    assert ridge in RIDGES
    user, other = tiny.users.raw([0, 1])
    coordinator.submit(UnlearningRequest(user_id=user))
    (receipt,) = coordinator.process_pending()
    assert (receipt.guarantee, receipt.chosen) == ("exact-given-settings", ("model.ridge",))
    assert coordinator.recommend(other)
    assert deployments.open("shop", config).config.model.ridge == ridge
    again = deployments.open("shop")
    again.repartition(["model.ridge=3"])
    again.process_pending()
    assert (again.describe().guarantee, again.config.model.ridge) == ("exact", 3)


def dense_linear_scores(train, n_users, n_items, ridge):
    """The linear model solved exactly, of the equation in models/linear.py."""
    R = np.zeros((n_users, n_items))
    R[train.users, train.items] = 1
    d_u, d_i = R.sum(1), R.sum(0)
    usual = LinearConfig()
    with np.errstate(divide="ignore"):
        w_u = np.where(d_u > 0, (d_u / d_u[d_u > 0].mean()) ** -usual.normalise_users, 0)
        w_i = np.where(d_i > 0, (d_i / d_i[d_i > 0].mean()) ** -usual.normalise_items, 0)
    scaled = w_u[:, None] * R * w_i
    gram = scaled.T @ scaled
    solved = np.linalg.solve(gram + ridge * d_i[d_i > 0].mean() * np.eye(n_items), gram @ (R * w_i).T)
    return (solved / np.where(w_i > 0, w_i, 1)[:, None]).T


def ndcg_of(scores, kept, held):
    """NDCG@10 by double loops, mean over the users with a held-out pair."""
    found = []
    for user in np.unique(held.users):
        mine, wanted = set(kept.items_of(user)), set(held.items_of(user))
        if not mine:
            found.append(0.0)
            continue
        present = [item for item in np.unique(kept.items) if item not in mine]
        best = sorted(present, key=lambda item: (-scores[user, item], item))[:10]
        gain = sum(1 / np.log2(place + 2) for place, item in enumerate(best) if item in wanted)
        found.append(gain / sum(1 / np.log2(place + 2) for place in range(min(10, len(wanted)))))
    return np.mean(found)


def test_the_ridge_is_the_one_that_ranks_held_out_pairs_best():
    rng = np.random.default_rng(3)
    users, items = rng.integers(0, 60, 900), (40 * rng.random(900) ** 1.5).astype(int)
    log = Dataset.of_pairs("log", zip(users.tolist(), ((items + 20 * (users % 2)) % 40).tolist(), strict=True))
    # So many steps that the solution is exact.
    config = load_config(None, ["model.ridge=auto", "model.steps=60", "partition.n_shards=2"])
    ready = prepare(log, config, Here())
    train, keys = ready.log.train, (ready.log.users.keys, ready.log.items.keys)
    kept, held = hold_out(train, *keys, 0.1, seeds.derive(config.seed, "alpha0", "pairs"))
    sizes = len(keys[0]), len(keys[1])
    quality = [ndcg_of(dense_linear_scores(kept, *sizes, ridge), kept, held) for ridge in RIDGES]
    assert len(set(quality)) == 3
    assert ready.config.model.ridge == RIDGES[int(np.argmax(quality))]


def test_where_there_is_nothing_to_compare_ridges_by_the_usual_one_is_taken():
    ready = prepare(Dataset.of_pairs("nobody", []), load_config(None, ["model.ridge=auto", "partition.n_shards=2"]), Here())
    assert ready.config.model.ridge == LinearConfig().ridge


def test_the_ridge_and_the_weight_of_a_learned_partition_are_both_chosen(tiny):
    config = load_config(
        None, ["model.ridge=auto", "partition.kind=user_based", "partition.n_shards=2", "partition.pretrain_epochs=1"]
    )
    ready = prepare(tiny, config, Here())
    assert ready.chosen == ("model.ridge", "aggregation.foldin_alpha0")
    assert ready.config.is_settled


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
