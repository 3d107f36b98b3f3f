"""The attacks against values computed by hand, and against models whose memory is known."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest

from ray_eraser.config import EraserConfig, config_from
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import places_of
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import ConfigError
from ray_eraser.kernels.products import Rows
from ray_eraser.pool import LocalShardPool
from ray_eraser.served import Served
from ray_eraser.study.asking import InLog, asked_by
from ray_eraser.study.attack import (
    LIST_LENGTH,
    Comparison,
    Probe,
    auc,
    auc_difference,
    draw_erasure,
    draw_probe,
    fit_classifier,
    signals,
)
from ray_eraser.study.membership import AttackReport, StudyPlan, _without, attack_study, learn, unlearn, unlearn_badly
from ray_eraser.unlearning.request import UnlearningRequest

pytestmark = pytest.mark.deep

# Vectors as wide as the number of pairs of a user, and users with little in common, so that a model can memorise its pairs.
MEMORISING = {
    "data": {
        "synthetic_users": 200,
        "synthetic_items": 120,
        "synthetic_per_user": 14,
        "synthetic_communities": 3,
        "test_share": 0.2,
        "valid_share": 0.1,
    },
    "partition": {"n_shards": 2},
    "model": {"width": 32, "solver": "adagrad", "epochs": 100},
    "aggregation": {"foldin": False, "foldin_alpha0": 0.3},
}
ALS = {"model": {"width": 32, "alpha0": 0.3}, "aggregation": {"foldin": False}}
LINEAR = {"model": {"kind": "linear"}}
SEEDS = range(4)
HERE = LocalShardPool("nothing-is-stored-here", config_from(MEMORISING))


def config_of(seed: int = 0, **sections) -> EraserConfig:
    return config_from({"seed": seed, **MEMORISING, **sections})


def log_of(config: EraserConfig) -> Dataset:
    return read_dataset("synthetic", config.data, config.seed)


def studied(config: EraserConfig, plan: StudyPlan) -> AttackReport:
    return attack_study(log_of(config), config, HERE, plan)


@cache
def gradient_study(seed: int) -> AttackReport:
    return studied(config_of(seed), StudyPlan(share=0.1, shadows=1, other_seeds=1))


@cache
def als_study(seed: int) -> AttackReport:
    return studied(config_of(seed, **ALS), StudyPlan(share=0.1, shadows=1, other_seeds=1))


@cache
def linear_study(seed: int) -> AttackReport:
    return studied(config_of(seed, **LINEAR), StudyPlan(share=0.1, shadows=1, other_seeds=1))


ALL_STUDIES = [gradient_study, als_study, linear_study]


# ---- the area under the curve -------------------------------------------------------------------------------------------


def counted(members, others) -> float:
    return sum((m > o) + (m == o) / 2 for m in members for o in others) / (len(members) * len(others))


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_the_auc_is_the_share_of_ordered_couples_with_ties_counted_half(levels):
    generator = np.random.default_rng(levels)
    members, others = generator.integers(0, levels, 57) + generator.integers(0, 2, 57), generator.integers(0, levels, 83)
    assert auc(members, others).value == pytest.approx(counted(members, others), abs=1e-12)


def test_equal_signals_have_an_auc_of_a_half():
    assert auc(np.ones(7), np.ones(3)).value == 0.5


def test_signals_that_separate_have_an_auc_of_one_and_reversed_of_zero():
    low, high = np.arange(5.0), np.arange(5.0, 12.0)
    assert (auc(high, low).value, auc(low, high).value) == (1, 0)


def test_the_interval_of_random_signals_contains_a_half_at_its_nominal_rate():
    generator = np.random.default_rng(0)
    found = [auc(generator.random(200), generator.random(150)) for _ in range(400)]
    covered = np.mean([result.low <= 0.5 <= result.high for result in found])
    assert 0.91 < covered < 0.98  # four standard errors around .95


def test_the_interval_is_that_of_the_bootstrap():
    generator = np.random.default_rng(1)
    members, others = generator.normal(0.7, 1, 150), generator.normal(0, 1, 120)
    drawn = [auc(generator.choice(members, 150), generator.choice(others, 120)).value for _ in range(1000)]
    found = auc(members, others)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.std(drawn), rel=0.1)


def test_a_model_differs_from_itself_by_exactly_zero():
    generator = np.random.default_rng(2)
    asked = generator.random(30), generator.random(20)
    difference = auc_difference(asked, asked)
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_a_difference_on_the_same_pairs_has_a_narrower_interval_than_either_auc():
    generator = np.random.default_rng(3)
    members, others = generator.normal(0.5, 1, 200), generator.normal(0, 1, 200)
    noisy = members + generator.normal(0, 0.1, 200), others + generator.normal(0, 0.1, 200)
    difference, alone = auc_difference((members, others), noisy), auc(members, others)
    assert difference.value == pytest.approx(alone.value - auc(*noisy).value)
    assert difference.high - difference.low < (alone.high - alone.low) / 3


# ---- what is asked ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked() -> tuple[Dataset, Interactions, Probe]:
    dataset = log_of(config_of())
    erased = draw_erasure(dataset, 0.1, 0, whole_users=False)
    return dataset, erased, draw_probe(dataset, erased, 0, whole_users=False, most=10_000)


def test_never_seen_pairs_are_in_no_split_and_held_out_ones_in_the_test_set(asked):
    dataset, erased, probe = asked
    never, held = probe.comparisons["never seen"], probe.comparisons["held out"]
    for split in (dataset.train, dataset.valid, dataset.test):
        assert len(never.others.common(split)) == 0
    assert len(held.others.common(dataset.test)) == len(held.others) > 100
    for comparison in (never, held):
        assert len(comparison.members.common(erased)) == len(comparison.members) > 100


def test_every_user_has_as_many_erased_pairs_as_other_pairs(asked):
    for comparison in asked[2].comparisons.values():
        assert comparison.members.users.tolist() == comparison.others.users.tolist()


def test_popularity_does_not_distinguish_never_seen_pairs(asked):
    dataset, erased, probe = asked
    popularity = np.bincount(dataset.train.without(erased).items, minlength=len(dataset.items))
    never = probe.comparisons["never seen"]
    found = auc(popularity[never.members.items], popularity[never.others.items])
    assert found.low < 0.5 < found.high
    # Pairs drawn without matching would be distinguishable.
    users = np.repeat(np.arange(len(dataset.users)), 5)
    at_random = Interactions.of(users, np.random.default_rng(0).integers(0, len(dataset.items), len(users)))
    unmatched = at_random.without(Interactions.union([dataset.train, dataset.valid, dataset.test]))
    assert auc(popularity[never.members.items], popularity[unmatched.items]).low > 0.55


def test_the_same_seed_draws_the_same_pairs_and_another_seed_others():
    dataset = log_of(config_of())
    first, again, other = (draw_erasure(dataset, 0.1, seed, whole_users=False) for seed in (0, 0, 1))
    assert first.codes().tolist() == again.codes().tolist() != other.codes().tolist()
    assert len(first) == round(0.1 * len(dataset.train))


def test_pairs_of_items_without_interactions_are_left_out():
    dataset = Dataset.of_pairs("by hand", [(0, 0), (0, 1), (1, 1), (1, 2), (2, 1)])
    users, items = dataset.users, dataset.items
    erased = Interactions.of(np.array([users.row(0), users.row(1)]), np.array([items.row(0), items.row(1)]))
    probe = draw_probe(dataset, erased, 0, whole_users=False, most=10)
    assert items.row(0) not in probe.pairs().items  # it has no other pair


def test_an_erased_user_is_known_by_half_of_its_pairs_and_attacked_on_the_others():
    dataset = log_of(config_of())
    erased = draw_erasure(dataset, 0.1, 0, whole_users=True)
    assert len(erased.user_rows()) == round(0.1 * len(dataset.train.user_rows()))
    assert len(dataset.train.without(erased).of_users(erased.user_rows())) == 0
    probe = draw_probe(dataset, erased, 0, whole_users=True, most=10_000)
    members = probe.comparisons["never seen"].members
    assert len(probe.known.common(members)) == 0
    assert len(probe.known.common(erased)) == len(probe.known)
    assert 0.35 < len(probe.known) / len(dataset.train.common(erased)) < 0.5


# ---- what a model says --------------------------------------------------------------------------------------------------


def test_signals_equal_those_computed_by_hand():
    generator = np.random.default_rng(4)
    n_users, n_items = 5, LIST_LENGTH + 20
    users, items = np.arange(n_users, dtype=np.int32), np.arange(n_items, dtype=np.int32)
    user_vectors = generator.normal(size=(n_users, 3)).astype(np.float32)
    item_vectors = generator.integers(1, 4, (n_items, 3)).astype(np.float32)  # few values: ties
    model = Embeddings(users, user_vectors.astype(float), items, item_vectors.astype(float))
    pairs = Interactions.of(generator.integers(0, n_users, 40), generator.integers(0, n_items, 40))
    known = Interactions.of(generator.integers(0, n_users, 30), generator.integers(0, n_items, 30)).without(pairs)
    seen = Interactions.union([known, pairs.take(np.arange(0, len(pairs), 3))])
    probe = Probe({"held out": Comparison(pairs, Interactions.none())}, known, whole_users=False)
    found = signals(model, probe, seen, users, 1)

    scores = user_vectors.astype(float) @ item_vectors.astype(float).T
    is_known, is_seen = (part.matrix(n_users, n_items).toarray() > 0 for part in (known, seen))
    for position, (user, item) in enumerate(zip(pairs.users, pairs.items, strict=True)):
        row, own = scores[user], scores[user, item]
        others = [row[other] for other in items if other != item and not is_known[user, other]]
        assert found.score[position] == pytest.approx(own)
        assert found.percentile[position] == pytest.approx(counted([own], others))
        assert found.user_z[position] == pytest.approx((own - row.mean()) / row.std(), abs=1e-6)
        assert found.item_z[position] == pytest.approx((own - scores[:, item].mean()) / scores[:, item].std(), abs=1e-6)
        better = sum(row[other] > own for other in items if not is_seen[user, other])
        assert found.listed[position] == (not is_seen[user, item] and better < LIST_LENGTH)


def test_the_classifier_finds_a_direction_and_nothing_in_noise():
    generator = np.random.default_rng(5)
    members, others = generator.normal(0, [1, 50, 0.01], (600, 3)), generator.normal(0, [1, 50, 0.01], (400, 3))
    members[:, 1] += 60
    classifier = fit_classifier(members[:300], others[:200])
    found = auc(classifier.logits(members[300:]), classifier.logits(others[200:])).value
    assert found == pytest.approx(counted(members[300:, 1], others[200:, 1]), abs=0.01)
    nothing = fit_classifier(members[:300, ::2], others[:200, ::2])
    by_chance = auc(nothing.logits(members[300:, ::2]), nothing.logits(others[200:, ::2]))
    assert by_chance.low < 0.5 < by_chance.high


def test_the_classifier_of_separable_classes_is_finite_and_reproducible():
    members, others = np.array([[2.0, 1.0], [3.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 1.0]])
    first, again = fit_classifier(members, others), fit_classifier(members, others)
    assert np.isfinite(first.weights).all()
    assert first.weights.tobytes() == again.weights.tobytes()
    assert auc(first.logits(members), first.logits(others)).value == 1


# ---- the study ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sections",
    [
        {},
        ALS,
        {"partition": {"kind": "interaction_based", "n_shards": 2}},
        {"partition": {"kind": "label_propagation", "n_shards": 2}},
        {"model": {"width": 32}, "aggregation": {"kind": "attention", "foldin": True}},  # alpha0 is chosen
        {**ALS, "training": {"slices": 2}},
        LINEAR,
        {**LINEAR, "partition": {"kind": "random", "n_shards": 3}},
    ],
)
def test_the_attacked_models_equal_those_that_a_deployment_serves(sections, deployments):
    config = config_of(**sections)
    dataset = log_of(config)
    erased = draw_erasure(dataset, 0.01, 0, whole_users=False)
    before = learn(dataset, config, HERE)
    coordinator = deployments.fit("attacked", config, dataset)
    assert same_scores(coordinator.served_model(), before.served(), before.user_keys)

    raw = zip(dataset.users.raw(erased.users), dataset.items.raw(erased.items), strict=True)
    coordinator.submit(UnlearningRequest(pairs=tuple(raw)))
    coordinator.process_pending()
    assert same_scores(coordinator.served_model(), unlearn(before, erased, HERE).served(), before.user_keys)


def same_scores(one: Served, other: Served, user_keys: np.ndarray) -> bool:
    """Whether two models score the same items for the same users with the same bits, and `same_bits` agrees."""
    (known, scores), (also_known, others) = one.scores(user_keys), other.scores(user_keys)
    assert known.any()
    assert (known == also_known).all()
    assert (one.item_keys == other.item_keys).all()
    return one.same_bits(other) and scores.tobytes() == others.tobytes()


@pytest.mark.parametrize("sections", [{}, LINEAR], ids=["vectors", "linear"])
def test_a_model_with_another_seed_is_asked_in_the_rows_of_the_given_log(sections, deployments):
    dataset, config = log_of(config_of()), config_of(9, **sections)
    learned = learn(dataset, config, HERE)
    served = deployments.fit("other", config, dataset).served_model()
    assert served.same_bits(learned.served())
    asked = InLog(learned.served(), learned.user_keys, learned.item_keys)
    rows = np.arange(0, len(dataset.users), 7, dtype=np.int32)
    known, scores = asked.scores(rows)
    assert known.all()
    assert (np.diff(asked.item_rows) > 0).all()
    keyed = dataset.under(config.seed)
    _, expected = served.scores(np.array([keyed.users.key(dataset.users.ids[row]) for row in rows], np.uint64))
    columns = [np.searchsorted(served.item_keys, keyed.items.key(dataset.items.ids[row])) for row in asked.item_rows]
    assert scores.tobytes() == expected[:, columns].tobytes()
    held = Interactions.union([dataset.train, dataset.valid])
    assert learned.seen.codes().tolist() == held.codes().tolist()


def test_both_kinds_of_unlearning_retrain_only_the_owning_shards():
    config = config_of()
    before = learn(log_of(config), config, HERE)
    dataset = log_of(config)
    first = before.shards[0].in_rows_of(dataset.users.keys, dataset.items.keys)[0]
    erased = first.of_users(first.user_rows()[:1])
    for after in (unlearn(before, erased, HERE), unlearn_badly(before, erased, 0, HERE)):
        assert not after.submodels[0].same_bits(before.submodels[0])
        assert after.submodels[1].same_bits(before.submodels[1])


@pytest.mark.parametrize(("study", "at_least"), [(gradient_study, 0.9), (als_study, 0.9), (linear_study, 0.85)])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_model_that_memorises_pairs_is_detected_before_the_erasure(study, at_least, seed):
    for attack in ("threshold", "shadow"):
        assert study(seed).result(attack, "never seen").before.low > 0.95
        assert study(seed).result(attack, "held out").before.low > at_least


def test_a_badly_unlearned_linear_model_still_holds_the_erased_pairs_and_its_scores_show_it():
    config = config_of(**LINEAR)
    dataset = log_of(config)
    erased = draw_erasure(dataset, 0.1, 0, whole_users=False)
    before = learn(dataset, config, HERE)
    never = learn(_without(dataset, erased), config, HERE).served()
    broken, stale = (unlearn_badly(before, erased, epochs, HERE).served() for epochs in (1, 0))
    keys = never.scores(before.user_keys)[0]
    of = {name: served.scores(before.user_keys[keys])[1] for name, served in (("broken", broken), ("stale", stale))}
    assert of["stale"].tobytes() == before.served().scores(before.user_keys[keys])[1].tobytes()
    assert len({scores.tobytes() for scores in (*of.values(), never.scores(before.user_keys[keys])[1])}) == 3
    assert not stale.same_bits(never)
    # The broken model scores a user by the user's remaining items.
    user = int(erased.users[0])
    left = dataset.train.without(erased).items_of(user)
    asked = np.sort(places_of(before.item_keys[left], broken.item_keys))
    alone = before.served().solver.scores(Rows.of(np.array([0, len(asked)]), asked))
    assert broken.scores(before.user_keys[[user]])[1].tobytes() == alone.tobytes()


@pytest.mark.parametrize("kind", ["linear", "als"])
def test_an_erasure_that_keeps_the_data_differs_from_the_oracle_and_is_detected(kind, monkeypatch):
    """The test for exact unlearning must fail for an unlearning that does nothing."""
    monkeypatch.setattr("ray_eraser.study.membership.unlearn", lambda before, *_: before)
    report = studied(config_of(**{"linear": LINEAR, "als": ALS}[kind]), StudyPlan(share=0.1, shadows=1, other_seeds=1))
    assert not report.same_bits
    for attack in ("threshold", "shadow"):
        for against in ("never seen", "held out"):
            result = report.result(attack, against)
            assert result.excess.low > 0.1
            assert all(unlearned - oracle > 0.1 for unlearned, oracle in result.others)


@pytest.mark.parametrize("study", ALL_STUDIES)
@pytest.mark.parametrize("seed", SEEDS)
def test_exact_unlearning_equals_the_oracle_bit_for_bit_with_every_seed(study, seed):
    report = study(seed)
    assert report.same_bits
    assert report.guarantee == "exact"
    for result in report.results:
        assert (result.excess.value, result.excess.low, result.excess.high) == (0, 0, 0)
        assert [unlearned - oracle for unlearned, oracle in result.others] == [0]


def test_exact_unlearning_stays_within_two_hundredths_of_an_oracle_with_another_seed():
    held_out = {"test_share": 0.2, "valid_share": 0.1}
    config = config_from({"data": held_out, "model": {"width": 16, "alpha0": 0.3}})
    # Ten shards of 600 users, and about 1,200 erased pairs.
    report = studied(config, StudyPlan(share=0.1, shadows=1, other_seeds=2))
    for attack in ("threshold", "shadow"):
        for against in ("never seen", "held out"):
            result = report.result(attack, against)
            for _, other_oracle in result.others:
                assert abs(result.unlearned.value - other_oracle) < 0.02


@pytest.mark.parametrize("study", ALL_STUDIES)
def test_attacks_on_the_oracle_cannot_distinguish_erased_from_held_out_pairs(study):
    oracles = [study(seed).result("threshold", "held out").oracle for seed in SEEDS]
    error = np.mean([oracle.high - oracle.low for oracle in oracles]) / 2 / len(oracles) ** 0.5
    assert abs(np.mean([oracle.value for oracle in oracles]) - 0.5) < 1.5 * error


@pytest.mark.parametrize(("study", "at_least"), [(gradient_study, 0.08), (als_study, 0.05), (linear_study, 0.08)])
@pytest.mark.parametrize("seed", SEEDS)
def test_keeping_the_old_weights_or_the_erased_pairs_is_detected(study, at_least, seed):
    for attack in ("threshold", "shadow"):
        for against in ("never seen", "held out"):
            result = study(seed).result(attack, against)
            assert result.broken_excess.low > at_least
            assert result.stale_excess.value >= result.broken_excess.value
            assert result.broken.value > max(result.oracle.value, *(oracle for _, oracle in result.others)) + 0.05


@pytest.mark.parametrize("study", ALL_STUDIES)
@pytest.mark.parametrize("seed", SEEDS)
def test_two_versions_reveal_erased_pairs_even_with_exact_unlearning(study, seed):
    report = study(seed)
    for attack, at_least in (("score drop", 0.9), ("rank drop", 0.6)):
        result = report.result(attack, "never seen")
        assert result.before is None
        assert result.unlearned.low == result.oracle.low > at_least
    # An erased item may be recommended again, so it reveals itself by entering a list, not by leaving one.
    assert report.result("list entry", "never seen").unlearned.low > 0.5


@pytest.mark.parametrize("kind", ["interaction_based", "user_based"])
def test_a_learned_partition_changes_no_score_of_a_linear_model(kind):
    report = studied(
        config_of(**LINEAR, partition={"kind": kind, "n_shards": 5}), StudyPlan(share=0.1, shadows=0, other_seeds=1)
    )
    assert report.guarantee == "exact-given-partition"
    for result in report.results:
        assert (result.excess.value, result.excess.low, result.excess.high) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["interaction_based", "user_based"])
def test_a_learned_partition_may_differ_from_the_oracle_and_the_report_says_so(kind):
    # The log must not have the three planted groups of users, which every learned partition would find after any erasure.
    config = config_of(partition={"kind": kind, "n_shards": 5})
    report = studied(config, StudyPlan(share=0.1, shadows=0, other_seeds=1))
    assert report.guarantee == "exact-given-partition"
    assert not report.same_bits
    assert {result.attack for result in report.results} == {"threshold", "score drop", "rank drop", "list entry"}


@pytest.mark.parametrize("sections", [ALS, LINEAR], ids=["als", "linear"])
def test_erased_users_are_attacked_through_the_items_that_the_attacker_knows(sections):
    report = studied(config_of(**sections), StudyPlan(share=0.1, whole_users=True, shadows=1, other_seeds=0))
    assert report.unit == "users"
    assert report.same_bits
    assert {result.attack for result in report.results} == {"threshold", "shadow", "score drop", "rank drop"}
    for result in report.results:
        assert result.excess.value == 0
    held_out = report.result("threshold", "held out")
    assert held_out.before.value > held_out.oracle.high
    assert held_out.stale_excess.low > 0


@pytest.mark.parametrize("model", [{"kind": "bpr", "width": 8, "epochs": 5}, {"kind": "lightgcn", "width": 8, "epochs": 2}])
def test_the_broken_unlearner_of_other_models_keeps_the_old_vectors(model):
    report = studied(config_of(model=model), StudyPlan(share=0.1, shadows=0, other_seeds=0))
    assert report.same_bits
    for result in report.results:
        assert result.broken == result.stale


def test_a_log_without_held_out_pairs_is_compared_with_never_seen_ones_only():
    config = config_of(**ALS)
    config = config.model_copy(update={"data": config.data.model_copy(update={"test_share": 0.0, "valid_share": 0.0})})
    report = studied(config, StudyPlan(share=0.1, shadows=1, other_seeds=0))
    assert {result.against for result in report.results} == {"never seen"}


def test_a_study_is_the_same_every_time_and_its_report_is_plain_json():
    again = studied(config_of(0, **ALS), StudyPlan(share=0.1, shadows=1, other_seeds=1)).to_dict()
    assert again == als_study(0).to_dict()
    assert json.loads(json.dumps(again)) == again
    assert {"unit", "same_bits", "guarantee", "results"} <= set(again)


def test_settings_chosen_from_the_log_are_reported_with_and_without_the_erased_pairs():
    config = config_of(model={"width": 32}, aggregation={"foldin": True})  # alpha0 is chosen
    report = studied(config, StudyPlan(share=0.1, shadows=0, other_seeds=0))
    assert (report.model, report.guarantee) == ("wmf", "exact-given-settings")
    assert set(report.chosen) == set(report.oracle_chosen) == {"model.alpha0"}
    assert (linear_study(0).model, linear_study(0).chosen) == ("linear", {})


def test_erasing_users_is_refused_for_a_model_that_cannot_score_unknown_users():
    class Popularity:
        def vectors(self) -> None:
            return None

    with pytest.raises(ConfigError, match="cannot score users that it does not know: erase pairs, not users"):
        asked_by(Popularity(), [], config_of())


def test_too_small_an_erasure_is_refused():
    with pytest.raises(ConfigError, match="erase more"):
        studied(config_of(), StudyPlan(share=0.001))
