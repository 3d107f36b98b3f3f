"""Prepares a log for training: keys its ids, chooses open settings, and divides its interactions. Pure.

Fits, re-partitions, sweep trials and the membership study all start here, so that they start alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ray_eraser.compute import Compute
from ray_eraser.config import EraserConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import ShardData
from ray_eraser.embeddings import Embeddings
from ray_eraser.partition import Partition, divide, place
from ray_eraser.training.pretrain import pretrain
from ray_eraser.training.weights import choose_alpha0_among, choose_ridge_among, users_looked_at


@dataclass(frozen=True, eq=False)
class Prepared:
    """A log, ready to be trained on.

    Attributes:
        log: without its test set and without ids that have no interaction; rows in the order of keys.
        config: the settings, with nothing left open.
        chosen: the names of the settings that were chosen from the log.
        partition: of `log.train`.
        shards: every shard's interactions, in order.
    """

    log: Dataset
    config: EraserConfig
    chosen: tuple[str, ...]
    partition: Partition
    shards: tuple[ShardData, ...]


def prepare(
    dataset: Dataset,
    config: EraserConfig,
    compute: Compute,
    partition: Partition | None = None,
    held: Partition | None = None,
) -> Prepared:
    """Key, settle and divide a log.

    Args:
        dataset: the log; its test set is ignored.
        config: the settings.
        compute: runs the trials for open settings and learned partitions.
        partition: reuse this partition of `dataset.train`; None makes the configured one.
        held: likewise for `dataset.valid`.
    """
    log = keyed(dataset, config)
    assert (partition is None and held is None) or log.users.secret == dataset.users.secret, "it is of another order"
    config, chosen = settle(config, log.train.of_users, len(log.train), log.users.keys, log.items.keys, compute)
    if partition is None:
        partition = divided(log, config, pretrained(log, config, compute))
    if held is None:
        keys = log.users.keys, log.items.keys
        held = Partition(partition.n_shards, place(log.valid, log.train, partition, *keys, config.partition, config.seed))
    return Prepared(log, config, chosen, partition, shards_of(log, partition, held))


def keyed(dataset: Dataset, config: EraserConfig) -> Dataset:
    """The log in the order of this seed's keys, without the test set and without ids that only the test set has."""
    return dataset.under(config.seed).learned()


def settle(
    config: EraserConfig,
    of_users: Callable[[np.ndarray], Interactions],
    n_pairs: int,
    user_keys: np.ndarray,
    item_keys: np.ndarray,
    compute: Compute,
) -> tuple[EraserConfig, tuple[str, ...]]:
    """Choose open settings from the log. Returns (the settings, the names of those that were chosen).

    The kind of model follows from the number of training pairs. It is not named among the chosen settings: training on the
    same pairs again gives the same kind, see `chosen_at`.

    Args:
        config: the settings.
        of_users: returns the training pairs of the users in the given rows.
        n_pairs: number of training pairs.
        user_keys: (U,) uint64, by row.
        item_keys: (I,) uint64, by row.
        compute: runs the trials.
    """
    config = config.resolved(n_pairs)
    chosen = config.open_settings
    if not chosen:
        return config, ()
    looked_at = of_users(users_looked_at(n_pairs, user_keys, config))
    found = {}
    for name in chosen:
        choose = choose_ridge_among if name == "model.ridge" else choose_alpha0_among
        found[name] = choose(looked_at, user_keys, item_keys, config, compute)
    return config.settled(found), chosen


def chosen_at(chosen: Sequence[str], asked: EraserConfig, made: EraserConfig, n_pairs: int) -> tuple[str, ...]:
    """The names of the settings that a generation was made with and that training on its pairs might choose otherwise.

    The kind of model that `model.kind=auto` comes to depends on the number of training pairs alone. So it is named if, and only
    if, a training on the pairs that remain comes to another kind than the one that the generation has.

    Args:
        chosen: the settings that were chosen from the log, at the last fit or re-partition.
        asked: the settings that the deployment was given.
        made: the settings that the generation is made with.
        n_pairs: number of training pairs of the generation.
    """
    others = tuple(name for name in chosen if name != "model.kind")
    is_open = "model.kind" in asked.open_settings
    return ("model.kind", *others) if is_open and asked.kind_for(n_pairs) != made.model.kind else others


def pretrained(log: Dataset, config: EraserConfig, compute: Compute) -> Embeddings | None:
    """Embeddings of the whole log, for partitions that need them. They are never written, and dropped after dividing."""
    if not config.partition.needs_embeddings:
        return None
    return compute.run([partial(pretrain, log.train, log.items.keys, config)])[0]


def divided(log: Dataset, config: EraserConfig, embeddings: Embeddings | None) -> Partition:
    """The configured partition of the training pairs."""
    return divide(log.train, log.users.keys, log.items.keys, config.partition, config.seed, embeddings)


def shards_of(log: Dataset, partition: Partition, held: Partition) -> tuple[ShardData, ...]:
    """Every shard's interactions, given the partitions of the training and validation sets."""
    return tuple(
        ShardData.of(
            log.train.take(partition.owners == shard),
            log.valid.take(held.owners == shard),
            log.users.keys,
            log.items.keys,
        )
        for shard in range(partition.n_shards)
    )
