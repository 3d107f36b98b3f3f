"""Properties that every kind of partition must have, and the measures of a partition."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.config import EraserConfig, PartitionConfig, WmfAlsConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import Embeddings
from ray_eraser.partition import Partition, divide, place

N_USERS, N_ITEMS = 12, 9
USER_KEYS = Vocabulary.of("user", range(100, 100 + N_USERS), seed=1).keys
ITEM_KEYS = Vocabulary.of("item", range(N_ITEMS), seed=1).keys
KINDS = get_args(PartitionConfig.model_fields["kind"].annotation)
WHOLE_USERS = {"hashed", "user_based", "label_propagation", "embedding_kmeans", "transport"}

pairs = st.sets(st.tuples(st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1)), max_size=40)
settings_of_all = st.builds(
    PartitionConfig,
    kind=st.sampled_from(KINDS),
    n_shards=st.integers(1, 6),
    balance=st.sampled_from(["interactions", "units"]),
    max_iterations=st.integers(1, 5),
    neighbours=st.integers(1, 4),
    entropy=st.sampled_from([0.05, 1.0]),
)


def log_of(pairs) -> Interactions:
    users, items = np.array(sorted(pairs), np.int32).reshape(-1, 2).T
    return Interactions.of(users, items)


def embeddings() -> Embeddings:
    """Small whole numbers, so that many distances tie."""
    generator = np.random.default_rng(5)
    users, items = (generator.integers(0, 3, (n, 2)).astype(np.float32) for n in (N_USERS, N_ITEMS))
    return Embeddings(np.arange(N_USERS, dtype=np.int32), users, np.arange(N_ITEMS, dtype=np.int32), items)


def divided(log, config, seed=7) -> Partition:
    return divide(log, USER_KEYS, ITEM_KEYS, config, seed, embeddings() if config.needs_embeddings else None)


@given(pairs=pairs, erased=pairs, config=settings_of_all)
def test_erasing_pairs_moves_no_other_pair_in_an_exact_partition(pairs, erased, config):
    """A deployment claims the guarantee `exact` for these kinds only."""
    log, gone = log_of(pairs), log_of(erased)
    if EraserConfig(partition=config, model=WmfAlsConfig(alpha0=0.3)).guarantee != "exact":
        assert config.kind not in ("hashed", "random")
        return
    remains = ~np.isin(log.codes(), gone.codes())
    assert np.array_equal(divided(log.without(gone), config).owners, divided(log, config).owners[remains])


@given(pairs=pairs, config=settings_of_all, seed=st.integers(0, 3))
def test_a_partition_depends_only_on_its_arguments_and_the_seed(pairs, config, seed):
    log = log_of(pairs)
    first, second = divided(log, config, seed), divided(log, config, seed)
    assert first.owners.dtype == np.int16
    assert np.array_equal(first.owners, second.owners)


@given(pairs=pairs, config=settings_of_all)
def test_every_interaction_is_in_one_shard(pairs, config):
    log = log_of(pairs)
    partition = divided(log, config)
    parts = [log.take(partition.owners == k) for k in range(config.n_shards)]
    assert partition.sizes().tolist() == [len(part) for part in parts]
    assert sum(len(part) for part in parts) == len(log)
    assert np.array_equal(Interactions.union(parts).codes(), log.codes())


@given(pairs=pairs, held_out=pairs, config=settings_of_all)
def test_partitions_of_whole_users_keep_a_user_in_one_shard_with_held_out_pairs(pairs, held_out, config):
    if config.kind not in WHOLE_USERS:
        return
    log, valid = log_of(pairs), log_of(held_out - pairs)
    partition = divided(log, config)
    owners = place(valid, log, partition, USER_KEYS, ITEM_KEYS, config, 7)
    cells = {*zip(log.users.tolist(), partition.owners.tolist(), strict=True)}
    cells |= {*zip(valid.users.tolist(), owners.tolist(), strict=True)}
    assert len(cells) == len({user for user, _ in cells})
    assert partition.shards_per_user(log) == (1 if len(log) else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_exact_or_learned_and_only_learned_ones_need_embeddings(kind):
    config = PartitionConfig(kind=kind)
    assert config.is_learned == (kind not in ("hashed", "random"))
    assert config.is_learned or not config.needs_embeddings


# The measures of a partition.


def test_scatter_by_hand():
    """Users at 0, 2 and 10 with two, two and one interactions, so the mean is 14 / 5 = 2.8.

    The total sum of squares is 2 * 7.84 + 2 * .64 + 51.84 = 68.8. The shards {0, 2} and {10} have the means 1 and 10, so the
    sum of squares within shards is 2 + 2 + 0 = 4.
    """
    log = log_of([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)])
    vectors = Embeddings(
        np.arange(3, dtype=np.int32),
        np.array([[0], [2], [10]], np.float32),
        np.zeros(1, np.int32),
        np.zeros((1, 1), np.float32),
    )
    partition = Partition(2, np.array([0, 0, 0, 0, 1], np.int16))
    assert partition.scatter(log, vectors) == pytest.approx(4 / 68.8)
    assert partition.describe(log, vectors) == {
        "sizes": [4, 1],
        "balance": 1.6,
        "shards_per_user": 1.0,
        "scatter": pytest.approx(4 / 68.8),
    }
    assert "scatter" not in partition.describe(log)


@given(pairs=pairs, config=settings_of_all)
def test_scatter_equals_its_definition(pairs, config):
    log, vectors = log_of(pairs), embeddings()
    partition = divided(log, config)
    points = vectors.users[log.users].astype(np.float64)

    def squares(members) -> float:
        return ((members - members.mean(axis=0)) ** 2).sum() if len(members) else 0.0

    total = squares(points)
    within = sum(squares(points[partition.owners == k]) for k in range(config.n_shards))
    assert partition.scatter(log, vectors) == pytest.approx(within / total if total > 1e-12 else 0, abs=1e-9)


def test_scatter_is_one_for_one_shard_and_zero_for_a_shard_per_user():
    log = log_of([(user, 0) for user in range(N_USERS)])
    assert Partition(1, np.zeros(N_USERS, np.int16)).scatter(log, embeddings()) == pytest.approx(1)
    assert Partition(N_USERS, np.arange(N_USERS, dtype=np.int16)).scatter(log, embeddings()) == pytest.approx(0, abs=1e-12)
    assert Partition(2, np.empty(0, np.int16)).scatter(Interactions.none(), embeddings()) == 0
