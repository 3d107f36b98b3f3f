"""Served models of every kind, and deployments of the linear model, which is served without training."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Deployments, audited
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.config import EraserConfig, LinearConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.errors import ConfigError, InputError
from ray_eraser.evaluation import evaluate
from ray_eraser.models.linear import LinearModel, Slice
from ray_eraser.served import ServedLinear, ServedVectors
from ray_eraser.unlearning.request import UnlearningRequest

PAIRS = [(100 + u, i) for u in range(40) for i in range(24) if (u * 5 + i * 3) % 7 < 3 or (u % 2 == i % 2 and (u + i) % 5 < 2)]
KINDS = {
    "folded": {"model": {"width": 6, "epochs": 2, "alpha0": 0.3}},
    "stored": {"model": {"kind": "bpr", "width": 6, "epochs": 2}, "aggregation": {"foldin": False}},
    "linear": {"model": {"kind": "linear"}},
}


def config_of(kind: str = "linear", **sections: dict[str, object]) -> EraserConfig:
    return config_from({"partition": {"n_shards": 3}, **KINDS[kind], **sections})


def log_of(pairs, config: EraserConfig) -> Dataset:
    return Dataset.of_pairs("log", pairs, config.seed)


def fitted(deployments: Deployments, name: str, config: EraserConfig, pairs=PAIRS) -> Coordinator:
    return deployments.fit(name, config, log_of(pairs, config))


def lists(coordinator: Coordinator) -> dict[object, list[object]]:
    return {user: coordinator.recommend(user, 5) for user in coordinator._serving.snapshot.users.ids}


# ---- every kind ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_users_scores_have_the_same_bits_alone_and_with_others(deployments, kind):
    served = fitted(deployments, "shop", config_of(kind)).served_model()
    keys = deployments.open("shop")._serving.snapshot.users.keys
    known, together = served.scores(keys)
    assert known.all()
    assert together.shape == (40, len(served.item_keys))
    assert together.dtype == np.float32
    for key, scores in zip(keys, together, strict=True):
        _, alone = served.scores(np.array([key]))
        assert alone[0].tobytes() == scores.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_users_without_scores_are_marked_and_the_others_keep_their_order(deployments, kind):
    served = fitted(deployments, "shop", config_of(kind)).served_model()
    keys = deployments.open("shop")._serving.snapshot.users.keys
    known, scores = served.scores(np.array([keys[3], 1, keys[0]], np.uint64))
    assert known.tolist() == [True, False, True]
    assert scores.tobytes() == np.concatenate([served.scores(keys[[3]])[1], served.scores(keys[[0]])[1]]).tobytes()
    known, scores = served.scores(np.empty(0, np.uint64))
    assert (known.tolist(), scores.shape) == ([], (0, len(served.item_keys)))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_uses_the_scores_of_recommendations(deployments, kind):
    config = config_of(kind, data={"test_share": 0.2})
    dataset = deployments_log = log_of(PAIRS, config)
    coordinator = deployments.open("shop", config)
    from ray_eraser.data.splits import split

    dataset = split(deployments_log, config.data, config.seed, test=True, valid=True)
    coordinator.fit(dataset)
    model = coordinator.served_model().in_rows(dataset.users.keys, dataset.items.keys)
    hits = sum(
        len({*coordinator.recommend(user, 5)} & {dataset.items.ids[i] for i in dataset.test.items_of(row)})
        / len(dataset.test.items_of(row))
        for row, user in enumerate(dataset.users.ids)
        if len(dataset.test.items_of(row)) and len(dataset.train.items_of(row))
    )
    expected = hits / len(dataset.test.user_rows())
    assert evaluate(model, dataset.train, dataset.test, (5,))["recall@5"] == pytest.approx(expected)


def test_only_models_with_vectors_have_vectors(deployments):
    assert isinstance(fitted(deployments, "folded", config_of("folded")).served_model(), ServedVectors)
    linear = fitted(deployments, "linear", config_of("linear"))
    assert isinstance(linear.served_model(), ServedLinear)
    assert linear.served_model().vectors() is None
    with pytest.raises(InputError, match="a linear model has no vectors: ask for recommendations, or repartition"):
        linear.vectors()


def test_two_served_models_are_equal_if_every_score_is_equal(deployments):
    one, same = (fitted(deployments, name, config_of("linear")).served_model() for name in ("one", "same"))
    less = fitted(deployments, "less", config_of("linear"), PAIRS[1:]).served_model()
    other = fitted(deployments, "other", config_of("linear", model={"kind": "linear", "ridge": 7})).served_model()
    vectors = fitted(deployments, "vectors", config_of("folded")).served_model()
    assert one.same_bits(same)
    assert not any(one.same_bits(not_this) for not_this in (less, other, vectors))
    assert not vectors.same_bits(one)


# ---- deployments of the linear model -----------------------------------------------------------------------------------------


def test_the_linear_model_chooses_no_setting_and_trains_nothing(deployments, monkeypatch):
    monkeypatch.setattr("ray_eraser.prepare.choose_alpha0_among", lambda *_: pytest.fail("a setting was looked for"))
    monkeypatch.setattr("ray_eraser.training.submodel.make_model", lambda *_: pytest.fail("something was trained"))
    coordinator = fitted(deployments, "shop", config_of())
    assert coordinator.describe().guarantee == "exact"
    assert coordinator.describe().chosen == ()


@pytest.mark.parametrize("partition", ["hashed", "random", "user_based", "item_based"])
def test_scores_have_the_same_bits_for_every_partition(deployments, partition):
    whole = fitted(deployments, "whole", config_of(partition={"n_shards": 1}))
    keys = whole._serving.snapshot.users.keys
    expected = whole.served_model().scores(keys)[1]
    settings = {"kind": partition, "n_shards": 4, "pretrain_epochs": 1}
    divided = fitted(deployments, "divided", config_of(partition=settings))
    assert sum(len(data) > 0 for data in divided.shard_data().values()) > 1
    assert divided.served_model().scores(keys)[1].tobytes() == expected.tobytes()


@pytest.mark.parametrize("partition", ["hashed", "random"])
@pytest.mark.parametrize(
    "request_", [{"user_id": 103}, {"item_id": 4}, {"pairs": (PAIRS[0], PAIRS[70])}], ids=["a user", "an item", "pairs"]
)
def test_an_accepted_erasure_is_served_in_its_final_form_at_once(deployments, partition, request_):
    config = config_of(partition={"kind": partition, "n_shards": 3})
    coordinator = fitted(deployments, "shop", config)
    request = UnlearningRequest(**request_)
    coordinator.submit(request)
    at_once, model = lists(coordinator), coordinator.served_model()
    (receipt,) = coordinator.process_pending()
    assert receipt.guarantee == "exact"
    assert coordinator.served_model() is model  # no result was computed twice
    user_gone, item_gone = str(request.user_id), str(request.item_id)
    left = [
        (user, item)
        for user, item in PAIRS
        if str(user) != user_gone and str(item) != item_gone and (str(user), str(item)) not in request.named_pairs
    ]
    fresh = fitted(deployments, "fresh", config, left)
    assert at_once == lists(coordinator) == lists(fresh)
    assert fresh.describe().digest == coordinator.describe().digest
    assert audited(coordinator).exact


def test_a_linear_model_needs_no_excision(deployments, monkeypatch):
    coordinator = fitted(deployments, "shop", config_of())
    for name in ("excise", "prepare_excision", "forget"):
        monkeypatch.setattr(type(coordinator.pool), name, lambda *_: pytest.fail("it was asked"))
    coordinator.submit(UnlearningRequest(user_id=103))
    coordinator.process_pending()


def test_learned_pairs_are_served_and_erased_like_the_rest(deployments):
    coordinator = fitted(deployments, "shop", config_of())
    coordinator.learn([("new", 3), ("new", 5), (100, "lamp")])
    coordinator.process_pending()
    assert len(coordinator.recommend("new", 3)) == 3
    assert coordinator.served_model().same_bits(
        fitted(deployments, "all", config_of(), [*PAIRS, ("new", 3), ("new", 5), (100, "lamp")]).served_model()
    )
    for request in (UnlearningRequest(user_id="new"), UnlearningRequest(item_id="lamp")):
        coordinator.submit(request)
    coordinator.process_pending()
    assert coordinator.describe().digest == fitted(deployments, "before", config_of()).describe().digest


def test_a_re_partition_changes_the_model_in_both_directions(deployments):
    coordinator = fitted(deployments, "shop", config_of("folded"))
    coordinator.repartition(["model.kind=linear"])
    coordinator.process_pending()
    linear = fitted(deployments, "linear", config_of("linear", model={"kind": "linear", "width": 6}))
    assert coordinator.describe().digest == linear.describe().digest
    assert coordinator.served_model().same_bits(linear.served_model())
    coordinator.repartition(["model.kind=wmf", "model.alpha0=0.3", "model.epochs=2"])
    coordinator.process_pending()
    assert coordinator.served_model().vectors().width == 6


def test_a_user_with_only_held_out_pairs_gets_the_most_popular_items(deployments):
    config = config_of()
    dataset = Dataset.of_pairs("log", PAIRS, config.seed, [("held", 3)])
    coordinator = deployments.fit("shop", config, dataset)
    assert len(coordinator.recommend("held", 5)) == 5
    assert "3" not in map(str, coordinator.recommend("held", 23))


def test_a_read_during_an_erasure_gives_the_result_before_or_after_it(deployments, monkeypatch):
    coordinator = fitted(deployments, "shop", config_of())
    before = coordinator.recommend(101, 5)
    seen = []
    original = LinearModel.of.__func__

    def watched(cls, *arguments):
        seen.append(coordinator.recommend(101, 5))  # while the next model is made
        return original(cls, *arguments)

    monkeypatch.setattr(LinearModel, "of", classmethod(watched))
    coordinator.submit(UnlearningRequest(user_id=103))
    assert seen == [before]


def shards_of(pairs: set[tuple[int, int]], n_shards: int, *, split_users: bool, held: int = 9) -> list[ShardData]:
    """Shards with randomly ordered keys, and every `held`-th pair for validation only."""
    shards = []
    for shard in range(n_shards):
        own = [(u, i) for u, i in sorted(pairs) if (u + i if split_users else u) % n_shards == shard]
        trained = KeyedPairs.of([(u * 7919 % 1009, i * 104729 % 2003) for u, i in own if (u + 2 * i) % held])
        valid = KeyedPairs.of([(u * 7919 % 1009, i * 104729 % 2003) for u, i in own if not (u + 2 * i) % held])
        shards.append(ShardData.none().with_learned(trained, valid))
    return shards


def arrays_of(served: ServedLinear) -> list[tuple[str, list[float]]]:
    whole, norms, popularity = served.whole, served.solver.normalisation, served.solver.popularity
    slices = whole.pairs.users, *vars(whole.pairs.by_user).values(), *vars(whole.pairs.by_item).values()
    arrays = [whole.user_keys, whole.item_keys, *slices, *vars(norms).values(), popularity.vector, popularity.image]
    return [(str(np.asarray(array).dtype), np.asarray(array).tolist()) for array in arrays]


@pytest.mark.parametrize("split_users", [False, True])
@given(st.lists(st.sampled_from(["user", "item", "pairs", "nothing", "learn"]), max_size=5), st.randoms(use_true_random=False))
def test_a_model_made_from_the_previous_one_has_the_arrays_of_a_new_one(split_users, steps, random):
    everything = {(u, i) for u in range(12) for i in range(9) if (u * 5 + i * 3) % 7 < 4}
    pairs, settings = set(everything), LinearConfig()
    served = ServedLinear.of(shards_of(pairs, 3, split_users=split_users), settings)
    for step in steps:
        user, item = random.randrange(12), random.randrange(9)
        if step == "learn":
            pairs |= {(user, i) for i in range(9)} | {(20 + user, item)}
        elif step != "nothing":
            chosen = {pair for pair in sorted(pairs) if random.random() < 0.3} if step == "pairs" else set()
            pairs -= chosen | {(u, i) for u, i in pairs if (step == "user" and u == user) or (step == "item" and i == item)}
        shards = shards_of(pairs, 3, split_users=split_users)
        served = ServedLinear.of(shards, settings, served)
        assert served.shards is shards
        assert arrays_of(served) == arrays_of(ServedLinear.of(shards, settings))


def test_an_erasure_does_not_rebuild_the_whole_model(deployments, monkeypatch):
    coordinator = fitted(deployments, "shop", config_of())
    monkeypatch.setattr(Slice, "of", lambda *_: pytest.fail("a slice was made from all pairs"))
    coordinator.submit(UnlearningRequest(user_id=103))
    coordinator.process_pending()


def test_pairs_from_files_are_compared_like_pairs_in_memory():
    before = shards_of(set(PAIRS), 2, split_users=False)
    after = [data.without(data.keyed(data.train.take(np.array([0])))) for data in before]
    expected = arrays_of(ServedLinear.of(after, LinearConfig()))
    for data in (*before, *after):
        for array in (data.user_keys, data.item_keys, data.train.users, data.train.items):
            array.flags.writeable = False
    assert arrays_of(ServedLinear.of(after, LinearConfig(), ServedLinear.of(before, LinearConfig()))) == expected


def test_settings_without_meaning_for_the_linear_model_are_refused():
    for settings, problem in (
        ({"model": {"kind": "linear"}, "training": {"slices": 2}}, "training.slices"),
        ({"model": {"kind": "linear", "epochs": 5}}, "model.epochs"),
        ({"model": {"kind": "linear", "alpha0": 0.3}}, "model.alpha0"),
        ({"model": {"kind": "linear", "ridge": 0}}, "model.ridge"),
        ({"model": {"kind": "linear", "steps": 0}}, "model.steps"),
    ):
        with pytest.raises(ConfigError, match=problem):
            config_from(settings)
