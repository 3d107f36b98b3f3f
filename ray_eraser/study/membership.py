"""The membership inference study: attack a model after unlearning, a model that never saw the data, and badly unlearned models.

The study is for researchers. It needs a log and a configuration, and touches no deployment. Its models are made by the same
functions and in the same order as those of a deployment, and have the same bits. The study erases a share of the training pairs
or of the users, and compares these models:

- `before`: the model that saw the erased pairs.
- `unlearned`: the shards that own erased pairs are retrained on the remaining data. The partition stays.
- `oracle`: everything is trained from scratch on a log that never had the pairs, including alpha0 and a learned partition.
- `broken`: the shards that own erased pairs continue training from weights that saw these pairs.
- `stale`: the old submodels are aggregated again, without any training.

`broken` and `stale` show which failures the attacks would detect.

A model that is never trained has no weights. For the linear model, `broken` is the model from before the erasure, asked about
users by their remaining items, and `stale` is the model served before, unchanged. For models of other packages, both are the
unchanged model.

Repetitions of unlearning and oracle with other seeds show how much an AUC varies by chance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from ray_eraser import seeds
from ray_eraser.aggregator import aggregate_of, folded_in
from ray_eraser.compute import Compute
from ray_eraser.config import EraserConfig, LinearConfig, WmfAdagradConfig, WmfAlsConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.data.vocabulary import hash_texts
from ray_eraser.determinism import deterministic
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.errors import ConfigError
from ray_eraser.ids import ShardId
from ray_eraser.prepare import prepare
from ray_eraser.served import Served, ServedVectors, served_by
from ray_eraser.study.asking import InLog, asked_by, rows_of
from ray_eraser.study.attack import (
    Against,
    Auc,
    Comparison,
    MemberClassifier,
    Probe,
    Signals,
    auc,
    auc_difference,
    draw_erasure,
    draw_probe,
    fit_classifier,
    signals,
)
from ray_eraser.training.submodel import train_submodel

AttackName = Literal["threshold", "shadow", "score drop", "rank drop", "list entry"]
"""`threshold` and `shadow` ask one version of the model. The others compare the models served before and after the erasure.
Exact unlearning is no defence against those: the better a pair is forgotten, the more changes, so a badly unlearned model can
reveal less."""

_ATTACKED = ("unlearned", "oracle", "broken", "stale")
_LEAST = 20  # smallest number of pairs of each kind for a meaningful interval
_SHADOW_SHARE = 0.8  # share of the remaining pairs that a shadow model is trained on; it never sees the others
_POPULATION = 10_000  # maximum number of users over which an item's mean score is computed


@dataclass(frozen=True)
class StudyPlan:
    """The parameters of a study.

    Attributes:
        share: the share of the training pairs, or of the users, to erase.
        whole_users: erase users with all their pairs, instead of single pairs.
        shadows: the number of shadow models.
        other_seeds: the number of repetitions of unlearning and oracle, each with another root seed.
        warm_share: the share of the model's epochs for which the broken unlearner continues training.
        most: the maximum number of erased pairs to ask about.
    """

    share: float = 0.01
    whole_users: bool = False
    shadows: int = 2
    other_seeds: int = 2
    warm_share: float = 0.125
    most: int = 10_000


@dataclass(frozen=True)
class AttackResult:
    """The results of one attack.

    Attributes:
        attack: the attack.
        against: the kind of pairs that the attack distinguishes erased pairs from.
        before: the AUC before the erasure; None for attacks that need two versions.
        unlearned, oracle, broken, stale: the AUC on each model.
        others: the AUCs (unlearned, oracle) with other seeds.
        excess: unlearned minus oracle, on the same pairs. It is exactly 0 if the two have the same bits. Its interval takes
            both models as given; `others` shows how much such a difference varies with the seed.
        broken_excess, stale_excess: broken or stale minus oracle. They show what this attack sees of a failure, if anything.
    """

    attack: AttackName
    against: Against
    before: Auc | None
    unlearned: Auc
    oracle: Auc
    broken: Auc
    stale: Auc
    others: tuple[tuple[float, float], ...]
    excess: Auc
    broken_excess: Auc
    stale_excess: Auc


@dataclass(frozen=True)
class AttackReport:
    """The results of a study.

    Attributes:
        unit: `pairs` or `users`, the unit of the erasure.
        erased_pairs: the number of erased interactions.
        compared: the number of erased pairs that were compared with as many others, by kind of pairs.
        model: the kind of model that is attacked.
        guarantee: the guarantee that the configuration claims.
        chosen, oracle_chosen: settings that were chosen from the log with and without the erased pairs, by name.
        same_bits: whether the unlearned model and the oracle agree in every bit.
        popularity: the AUC of the items' popularity alone, by kind of pairs. It is near .5 if the pairs are well matched.
        results: one result for each attack and kind of pairs.
    """

    unit: str
    erased_pairs: int
    compared: dict[Against, int]
    model: str
    guarantee: str
    chosen: dict[str, float]
    oracle_chosen: dict[str, float]
    same_bits: bool
    popularity: dict[Against, float]
    results: tuple[AttackResult, ...]

    def result(self, attack: AttackName, against: Against) -> AttackResult:
        (found,) = (result for result in self.results if (result.attack, result.against) == (attack, against))
        return found

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        fields: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return fields


@dataclass(frozen=True, eq=False)
class Learned:
    """The state of a deployment, in memory. Pairs are given in rows of the log.

    Attributes:
        config: the settings, with all open ones chosen.
        user_keys, item_keys: (U,) and (I,) uint64, the key of each row's id under the root seed. They ascend only if the log is
            numbered for this seed.
        shards: the data of every shard.
        submodels: the submodel of every shard.
        model: the aggregate, with its users.
        chosen: the names of the settings that were chosen from the log.
        left_in: the data that a badly unlearned model without training still holds; None if this is `shards`.
    """

    config: EraserConfig
    user_keys: np.ndarray
    item_keys: np.ndarray
    shards: tuple[ShardData, ...]
    submodels: tuple[KeyedEmbeddings, ...]
    model: KeyedEmbeddings
    chosen: tuple[str, ...] = ()
    left_in: tuple[ShardData, ...] | None = None

    def keyed(self, pairs: Interactions) -> KeyedPairs:
        """Convert pairs of the log to keys."""
        return KeyedPairs.in_keys(pairs, self.user_keys, self.item_keys)

    def served(self) -> Served:
        """The model as a deployment serves it."""
        if self.config.model.is_trained:
            return ServedVectors(self.model, None, self.shards)
        served = served_by(self.model, self.left_in or self.shards, self.config)
        return served if self.left_in is None else asked_by(served, self.shards, self.config)

    def values_chosen(self) -> dict[str, float]:
        """The settings that were chosen from the log, by name."""
        named = (name.split(".") for name in self.chosen)
        return {f"{section}.{key}": getattr(getattr(self.config, section), key) for section, key in named}

    @property
    def seen(self) -> Interactions:
        """Pairs that are not recommended, because the users have them, in rows of the log."""
        parts = [
            Interactions.of(
                rows_of(data.user_keys, self.user_keys)[data.pairs.users],
                rows_of(data.item_keys, self.item_keys)[data.pairs.items],
            )
            for data in self.shards
        ]
        return Interactions.union(parts)


def learn(dataset: Dataset, config: EraserConfig, compute: Compute) -> Learned:
    """Train as `Coordinator.fit` does."""
    ready = prepare(dataset, config, compute)
    key = seeds.secret(config.seed, "ids")
    user_keys, item_keys = hash_texts(dataset.users.texts, key), hash_texts(dataset.items.texts, key)
    learned = _trained(ready.config, user_keys, item_keys, ready.shards, {}, compute)
    return replace(learned, chosen=ready.chosen)


def unlearn(before: Learned, erased: Interactions, compute: Compute) -> Learned:
    """Unlearn as `Coordinator.process_pending` does: retrain the owning shards from scratch, and keep the others."""
    shards = _without_pairs(before, erased)
    kept = {k: before.submodels[k] for k, data in enumerate(shards) if len(data) == len(before.shards[k])}
    after = _trained(before.config, before.user_keys, before.item_keys, shards, kept, compute)
    return replace(after, chosen=before.chosen)


def unlearn_badly(before: Learned, erased: Interactions, epochs: int, compute: Compute) -> Learned:
    """Unlearn incorrectly, to calibrate the attacks: continue training from weights that saw the erased pairs.

    The owning shards train for some epochs. All other steps are correct: the aggregation and the fold-in see only the remaining
    data. A model that is never trained keeps the erased pairs. The linear model still scores users by their remaining items,
    unless `epochs` is 0.
    """
    shards = _without_pairs(before, erased)
    if not before.config.model.is_trained:
        can_be_asked = isinstance(before.config.model, LinearConfig)
        return replace(before, shards=shards, left_in=before.shards) if epochs and can_be_asked else before
    calls = [
        partial(_trained_on, submodel, data, before.config, epochs, ShardId(k))
        for k, (submodel, data) in enumerate(zip(before.submodels, shards, strict=True))
    ]
    made = dict(enumerate(compute.run(calls)))
    return _trained(before.config, before.user_keys, before.item_keys, shards, made, compute)


def _without_pairs(before: Learned, erased: Interactions) -> tuple[ShardData, ...]:
    return tuple(data.without(before.keyed(erased)) for data in before.shards)


def _trained(
    config: EraserConfig,
    user_keys: np.ndarray,
    item_keys: np.ndarray,
    shards: tuple[ShardData, ...],
    kept: Mapping[int, KeyedEmbeddings],
    compute: Compute,
) -> Learned:
    """Train the submodels that are not kept, and aggregate all."""
    missing = [k for k in range(len(shards)) if k not in kept]
    calls = [partial(train_submodel, shards[k], config, ShardId(k)) for k in missing]
    made = {**kept, **dict(zip(missing, compute.run(calls), strict=True))}
    submodels = tuple(made[k] for k in range(len(shards)))
    (model,) = compute.run([partial(_served, submodels, shards, config)])
    return Learned(config, user_keys, item_keys, shards, submodels, model)


def _served(submodels: Sequence[KeyedEmbeddings], shards: Sequence[ShardData], config: EraserConfig) -> KeyedEmbeddings:
    return folded_in(aggregate_of(submodels, shards, config), shards, config)


def _trained_on(
    old: KeyedEmbeddings, remaining: ShardData, config: EraserConfig, epochs: int, shard: ShardId
) -> KeyedEmbeddings:
    """A submodel that continues from the old one. WMF trains further; other models keep their old vectors.

    With 0 epochs, the function only removes the users and items without remaining pairs.
    """
    compact = remaining.train.compact()
    user_keys, item_keys = remaining.user_keys[compact.user_rows], remaining.item_keys[compact.item_rows]
    users = old.users[np.searchsorted(old.user_keys, user_keys)]
    items = old.items[np.searchsorted(old.item_keys, item_keys)]
    with deterministic(config.runtime.threads):
        if epochs and isinstance(config.model, WmfAlsConfig):
            users, items = _als_on(items, compact.interactions, config.model, epochs)
        elif epochs and isinstance(config.model, WmfAdagradConfig):
            seed = seeds.derive(config.seed, "shard", shard, "attack")
            users, items = _adagrad_on(users, items, compact.interactions, config.model, epochs, seed)
    return KeyedEmbeddings(user_keys, users, item_keys, items)


def _als_on(items_ID: np.ndarray, pairs: Interactions, config: WmfAlsConfig, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    from ray_eraser.models.wmf_als import half_sweep

    by_user = pairs.matrix(1 + int(pairs.users.max(initial=-1)), len(items_ID))
    by_item = by_user.T.tocsr()
    items = items_ID
    users = half_sweep(by_user, items, config.known_alpha0, config.reg)
    for _ in range(epochs):
        items = half_sweep(by_item, users, config.known_alpha0, config.reg)
        users = half_sweep(by_user, items, config.known_alpha0, config.reg)
    return users, items


def _adagrad_on(
    users_UD: np.ndarray, items_ID: np.ndarray, pairs: Interactions, config: WmfAdagradConfig, epochs: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    import torch

    from ray_eraser.models.wmf_adagrad import adagrad_step, dropout_mask, non_sampling_loss

    observed_UI = pairs.matrix(len(users_UD), len(items_ID))
    generator = torch.Generator().manual_seed(seed)
    users, items = torch.from_numpy(users_UD), torch.from_numpy(items_ID)
    # The squared gradients are not stored with the weights. With 1, the first step is as long as one late in the training.
    users_squares, items_squares = torch.ones_like(users), torch.ones_like(items)
    for _ in range(epochs):
        for batch_B in torch.split(torch.randperm(len(users), generator=generator), config.batch):
            before_BD, squares_BD = users[batch_B], users_squares[batch_B]
            dropped_BD = dropout_mask(before_BD, config.keep, generator)
            _, slope_BD, slope_ID = non_sampling_loss(before_BD * dropped_BD, items, observed_UI[batch_B.numpy()], config.w0)
            adagrad_step(before_BD, slope_BD * dropped_BD, squares_BD, config.lr)
            users[batch_B], users_squares[batch_B] = before_BD, squares_BD
            adagrad_step(items, slope_ID, items_squares, config.lr)
    return users.numpy(), items.numpy()


def attack_study(
    dataset: Dataset,
    config: EraserConfig,
    compute: Compute,
    plan: StudyPlan = StudyPlan(),
    on_done: Callable[[str], None] = lambda _: None,
) -> AttackReport:
    """Erase a share of a log and attack the four models.

    Args:
        dataset: the log. Its held-out pairs are asked about too.
        config: the settings of all training.
        compute: where to train.
        plan: the parameters of the study.
        on_done: called with the name of each trained model.

    Raises:
        ConfigError: too few pairs are erased for a meaningful interval, or users are erased and a model of this kind cannot
            score unknown users.
    """
    erased = draw_erasure(dataset, plan.share, config.seed, whole_users=plan.whole_users)
    probe = draw_probe(dataset, erased, config.seed, whole_users=plan.whole_users, most=plan.most)
    comparisons = {against: pairs for against, pairs in probe.comparisons.items() if len(pairs.members) >= _LEAST}
    if not comparisons:
        raise ConfigError("attack share", f"{plan.share:g} erases {len(erased)} pairs, too few to compare: erase more")
    remaining = _without(dataset, erased)
    versions = _versions(dataset, remaining, erased, config, plan, compute, on_done)
    before, oracle = versions["before"], versions["oracle"]
    asked = {name: _asked(learned, probe, compute) for name, learned in versions.items()}
    others = []
    for number in range(plan.other_seeds):
        other = config.model_copy(update={"seed": seeds.derive(config.seed, "attack", "other", number)})
        start = learn(dataset, other, compute)
        repeated = start, unlearn(start, erased, compute), learn(remaining, other, compute)
        others.append([_asked(learned, probe, compute) for learned in repeated])
        on_done(f"other seed {number}")
    known = []
    for number in range(plan.shadows):
        known.append(_shadow(remaining, config, plan, number, compute))
        on_done(f"shadow {number}")

    return AttackReport(
        unit="users" if plan.whole_users else "pairs",
        erased_pairs=len(erased),
        compared={against: len(pairs.members) for against, pairs in comparisons.items()},
        model=before.config.model.kind,
        guarantee=before.config.guarantee_given(before.chosen),
        chosen=before.values_chosen(),
        oracle_chosen=oracle.values_chosen(),
        same_bits=versions["unlearned"].served().same_bits(oracle.served()),
        popularity={against: _by_popularity(remaining, pairs) for against, pairs in comparisons.items()},
        results=tuple(
            result
            for against, pairs in comparisons.items()
            for result in _attacked(asked, others, known, against, pairs, lists=not plan.whole_users)
        ),
    )


def _by_popularity(remaining: Dataset, pairs: Comparison) -> float:
    """The AUC of the items' popularity alone."""
    popularity_I = np.bincount(remaining.train.items, minlength=len(remaining.items))
    return auc(popularity_I[pairs.members.items], popularity_I[pairs.others.items]).value


def _versions(
    dataset: Dataset,
    remaining: Dataset,
    erased: Interactions,
    config: EraserConfig,
    plan: StudyPlan,
    compute: Compute,
    on_done: Callable[[str], None],
) -> dict[str, Learned]:
    """Make all versions of the model, by name."""
    before = learn(dataset, config, compute)
    on_done("before")
    unlearned = unlearn(before, erased, compute)
    on_done("unlearned")
    oracle = learn(remaining, config, compute)
    on_done("oracle")
    broken = unlearn_badly(before, erased, max(1, round(plan.warm_share * before.config.model.epochs)), compute)
    stale = unlearn_badly(before, erased, 0, compute)
    on_done("broken")
    return {"before": before, "unlearned": unlearned, "oracle": oracle, "broken": broken, "stale": stale}


def _without(dataset: Dataset, erased: Interactions) -> Dataset:
    """The log as it would be if the erased pairs had never been in it."""
    return replace(dataset, train=dataset.train.without(erased), valid=dataset.valid.without(erased))


def _asked(learned: Learned, probe: Probe, compute: Compute) -> Signals:
    # Send everything but the submodels, which are large and not needed.
    return compute.run([partial(_signals_of, replace(learned, submodels=()), probe)])[0]


def _signals_of(learned: Learned, probe: Probe) -> Signals:
    """The signals of a model on a probe's pairs. It does not know erased users, so it scores them by the pairs known to the
    attacker.
    """
    served, seen = learned.served(), learned.seen
    population = seen.user_rows()
    if probe.whole_users:
        known = ShardData.none().with_learned(learned.keyed(probe.known), KeyedPairs.none())
        served, population = asked_by(served, [known], learned.config), probe.known.user_rows()
    population = population[:: max(1, -(-len(population) // _POPULATION))]
    model = InLog(served, learned.user_keys, learned.item_keys)
    return signals(model, probe, seen, population, learned.config.runtime.threads)


def _shadow(remaining: Dataset, config: EraserConfig, plan: StudyPlan, number: int, compute: Compute) -> tuple[Signals, Probe]:
    """Train a shadow model, whose members are known, on a part of the remaining pairs. The attacker knows no erased pair.

    Its members are drawn in the same way as the erased pairs. The pairs that it is not trained on act as held-out pairs.
    """
    seed = seeds.derive(config.seed, "attack", "shadow", number)
    chosen = np.random.default_rng(seed).random(len(remaining.train)) < _SHADOW_SHARE
    part = replace(remaining, train=remaining.train.take(chosen), test=remaining.train.take(~chosen))
    members = draw_erasure(part, plan.share, seed, whole_users=plan.whole_users)
    probe = draw_probe(part, members, seed, whole_users=plan.whole_users, most=plan.most)
    learned = learn(part, config.model_copy(update={"seed": seed}), compute)
    return _asked(learned, probe, compute), probe


def _attacked(
    asked: Mapping[str, Signals],
    others: list[list[Signals]],
    known: list[tuple[Signals, Probe]],
    against: Against,
    pairs: Comparison,
    *,
    lists: bool,
) -> list[AttackResult]:
    """The results of all attacks against one kind of pairs. An attack maps two versions to a signal for every pair.

    `lists`: whether the users still get recommendations; erased users do not.
    """
    attacks: dict[AttackName, Callable[[Signals, Signals], np.ndarray]] = {"threshold": lambda _, after: after.percentile}
    classifier = _classifier(known, against)
    if classifier is not None:
        attacks["shadow"] = lambda _, after: classifier.logits(after.features())
    attacks["score drop"] = lambda before, after: before.score - after.score
    attacks["rank drop"] = lambda before, after: before.percentile - after.percentile
    if lists:
        attacks["list entry"] = lambda before, after: after.listed.astype(float) - before.listed

    results = []
    for name, attack in attacks.items():

        def split(
            before: Signals, after: Signals, attack: Callable[[Signals, Signals], np.ndarray] = attack
        ) -> tuple[np.ndarray, np.ndarray]:
            return (
                attack(before.of(pairs.members), after.of(pairs.members)),
                attack(before.of(pairs.others), after.of(pairs.others)),
            )

        first = asked["before"]
        unlearned, oracle, broken, stale = (split(first, asked[model]) for model in _ATTACKED)
        results.append(
            AttackResult(
                attack=name,
                against=against,
                before=auc(*split(first, first)) if name in ("threshold", "shadow") else None,
                unlearned=auc(*unlearned),
                oracle=auc(*oracle),
                broken=auc(*broken),
                stale=auc(*stale),
                others=tuple(
                    (auc(*split(start, without)).value, auc(*split(start, never)).value) for start, without, never in others
                ),
                excess=auc_difference(unlearned, oracle),
                broken_excess=auc_difference(broken, oracle),
                stale_excess=auc_difference(stale, oracle),
            )
        )
    return results


def _classifier(known: list[tuple[Signals, Probe]], against: Against) -> MemberClassifier | None:
    """A classifier of the shadow models' members against other pairs of this kind; None without shadow models."""
    members, others = [], []
    for found, probe in known:
        pairs = probe.comparisons[against]
        members.append(found.of(pairs.members).features())
        others.append(found.of(pairs.others).features())
    if not known or not sum(map(len, others)):
        return None
    return fit_classifier(np.concatenate(members), np.concatenate(others))
