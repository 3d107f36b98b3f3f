"""The contract of every aggregator. A test class inherits it and gives the aggregator's `settings`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ray_eraser.aggregation import aggregate, excise, folding, with_users
from ray_eraser.config import AggregationConfig, EraserConfig, RuntimeConfig, WmfAlsConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import ShardData
from ray_eraser.devices import Device
from ray_eraser.embeddings import Embeddings
from ray_eraser.ids import ShardId
from ray_eraser.seeds import normal_rows
from ray_eraser.testing.model_contract import checkerboard, log_of
from ray_eraser.training.submodel import train_submodel

WIDTH, N_SHARDS = 4, 3
KEYS = np.arange(100, dtype=np.uint64)  # of users and of items, by row


def by_user(interactions: Interactions) -> list[Interactions]:
    """Whole users, four neighbours to a shard, so that each shard has both kinds."""
    return [interactions.take(interactions.users // 4 % N_SHARDS == k) for k in range(N_SHARDS)]


def start_of_items(interactions: Interactions) -> Embeddings:
    nobody, rows = Embeddings.empty(WIDTH), interactions.item_rows()
    return Embeddings(nobody.user_rows, nobody.users, rows, normal_rows(KEYS[rows], 1, WIDTH) * np.float32(0.05))


def submodel_of(part: Interactions, config: EraserConfig, shard: ShardId) -> Embeddings:
    """What a shard with these interactions learns on the CPU, in their rows."""
    data = ShardData.of(part, Interactions.none(), KEYS, KEYS)
    return train_submodel(data, config.model_copy(update={"runtime": RuntimeConfig()}), shard).in_rows(KEYS, KEYS)


class AggregatorContract:
    """Tests come twice, with and without the fold-in."""

    settings: AggregationConfig
    device: Device = "cpu"
    """Where to aggregate."""

    @pytest.fixture(params=[True, False], ids=["fold-in", "no fold-in"])
    def config(self, request) -> EraserConfig:
        settings = self.settings.model_copy(update={"foldin": request.param})
        model, runtime = WmfAlsConfig(width=WIDTH, epochs=4, alpha0=0.3), RuntimeConfig(device=self.device)
        return EraserConfig(seed=4, model=model, aggregation=settings, runtime=runtime)

    def trained(self, parts: list[Interactions], config: EraserConfig) -> list[Embeddings]:
        return [submodel_of(part, config, ShardId(k)) for k, part in enumerate(parts)]

    def aggregated(self, interactions: Interactions, config: EraserConfig) -> Embeddings:
        return self.combined(self.trained(by_user(interactions), config), interactions, config)

    def combined(self, submodels: list[Embeddings], interactions: Interactions, config: EraserConfig) -> Embeddings:
        """What is served: the aggregate, its users folded in where they are."""
        return with_users(aggregate(submodels, interactions, config), interactions, config)

    def test_of_the_unseen_items_the_withheld_one_of_the_users_own_kind_comes_first(self, config):
        interactions, withheld = checkerboard(n_users=48)  # 16 to a shard, of both kinds: fewer could be learned by heart
        model = self.aggregated(interactions, config)
        scores_UI = model.users @ model.items.T
        scores_UI[interactions.users, interactions.items] = -np.inf
        assert dict(enumerate(scores_UI.argmax(1).tolist())) == withheld

    def test_the_same_arguments_give_the_same_bits_whatever_was_drawn_before(self, config):
        interactions, _ = checkerboard()
        submodels = self.trained(by_user(interactions), config)
        first = self.combined(submodels, interactions, config)
        torch.manual_seed(99)
        np.random.seed(99)  # noqa: NPY002 - the state that an aggregator must not look at
        assert self.combined(submodels, interactions, config).same_bits(first)

    def test_the_number_of_cores_changes_no_bit(self, config):
        interactions, _ = checkerboard()
        first = self.aggregated(interactions, config)
        runtime = config.runtime.model_copy(update={"cores": 3})
        assert self.aggregated(interactions, config.model_copy(update={"runtime": runtime})).same_bits(first)

    def test_it_covers_everybody_whom_any_submodel_covers(self, config):
        interactions = log_of([(0, 3), (0, 9), (1, 3), (4, 5), (5, 5), (5, 20), (9, 9), (10, 21)])
        model = self.aggregated(interactions, config)
        assert model.user_rows.tolist() == [0, 1, 4, 5, 9, 10]
        assert model.item_rows.tolist() == [3, 5, 9, 20, 21]

    def test_vectors_are_contiguous_finite_float32(self, config):
        model = self.aggregated(checkerboard()[0], config)
        for vectors in (model.users, model.items):
            assert vectors.dtype == np.float32
            assert vectors.flags.c_contiguous
            assert np.isfinite(vectors).all()

    def test_rows_with_gaps_between_them_give_the_same_vectors(self, config):
        interactions, _ = checkerboard()
        apart = Interactions.of(interactions.users * 7 + 100, interactions.items * 3 + 50)
        submodels = self.trained(by_user(interactions), config)
        moved = [Embeddings(one.user_rows * 7 + 100, one.users, one.item_rows * 3 + 50, one.items) for one in submodels]
        here, there = self.combined(submodels, interactions, config), self.combined(moved, apart, config)
        assert there.user_rows.tolist() == (here.user_rows * 7 + 100).tolist()
        assert there.item_rows.tolist() == (here.item_rows * 3 + 50).tolist()
        assert there.users.tobytes() == here.users.tobytes()
        assert there.items.tobytes() == here.items.tobytes()

    def test_submodels_and_interactions_stay_as_they_were(self, config):
        interactions, _ = checkerboard()
        submodels = self.trained(by_user(interactions), config)
        arrays = [interactions.users, interactions.items, *(array for one in submodels for array in one.arrays().values())]
        before = [array.copy() for array in arrays]
        aggregate(submodels, interactions, config)
        assert all((now == then).all() for now, then in zip(arrays, before, strict=True))

    def test_a_shard_that_lost_its_last_pair_is_passed_over(self, config):
        interactions, _ = checkerboard()
        first, second, third = self.trained(by_user(interactions), config)
        remaining = interactions.without(by_user(interactions)[1])
        with_empty = self.combined([first, Embeddings.empty(WIDTH), third], remaining, config)
        assert with_empty.same_bits(self.combined([first, third], remaining, config))
        assert not np.isin(second.user_rows, with_empty.user_rows).any()

    @pytest.mark.parametrize("n", [0, 1, 3])
    def test_submodels_that_all_know_nobody_make_a_model_that_knows_nobody(self, config, n):
        model = aggregate([Embeddings.empty(WIDTH)] * n, Interactions.none(), config)
        assert model.same_bits(Embeddings.empty(WIDTH))

    def test_one_shard_with_one_pair_is_aggregated_to_that_pair(self, config):
        only = log_of([(3, 8)])
        model = self.combined(self.trained([only], config), only, config)
        assert (model.user_rows.tolist(), model.item_rows.tolist()) == ([3], [8])
        assert (model.users @ model.items.T).item() > 0.3

    def test_erasing_and_training_the_owner_again_equals_never_having_had_the_pairs(self, config):
        interactions, _ = checkerboard()
        erased = interactions.of_users(np.array([5]))
        submodels = self.trained(by_user(interactions), config)
        owner = ShardId(1)
        submodels[owner] = submodel_of(by_user(interactions)[owner].without(erased), config, owner)
        pairs = zip(interactions.users.tolist(), interactions.items.tolist(), strict=True)
        never_had = log_of([pair for pair in pairs if pair[0] != 5])
        after = self.combined(submodels, interactions.without(erased), config)
        assert after.same_bits(self.aggregated(never_had, config))
        assert 5 not in after.user_rows

    def test_excision_is_a_function_of_the_submodels_left_and_of_what_remains_alone(self, config):
        # What the excised shard learned from, another one's log or nothing at all: the bits are those of the others.
        interactions, _ = checkerboard()
        remaining = interactions.without(interactions.of_users(np.array([4])))
        one, _, other = self.trained(by_user(interactions), config)
        served = excise([one, other], remaining, start_of_items(remaining), config)
        start = Embeddings(one.user_rows[:0], one.users[:0], one.item_rows, one.items + 1)
        assert excise([one, Embeddings.empty(WIDTH), other], remaining, start, config).same_bits(served)
        defaults = config.model_copy(update={"aggregation": AggregationConfig(foldin=False)})
        assert excise([one, other], remaining, start_of_items(remaining), defaults).same_bits(served)
        assert folding(served, config).users(remaining).user_rows.tolist() == [0, 1, 2, 3, *range(5, 16)]

    def test_excision_still_ranks_what_everybody_likes_first_even_where_no_submodel_is_left(self, config):
        interactions, withheld = checkerboard()
        remaining = interactions.without(interactions.of_users(np.array([4, 9])))
        submodels = self.trained(by_user(remaining), config)
        for left in (submodels[:1], [Embeddings.empty(WIDTH)], []):
            model = folding(excise(left, remaining, start_of_items(remaining), config), config).users(remaining)
            scores_UI = model.users @ model.items.T
            positions = np.searchsorted(model.user_rows, remaining.users)
            scores_UI[positions, np.searchsorted(model.item_rows, remaining.items)] = -np.inf
            best = model.item_rows[scores_UI.argmax(1)].tolist()
            assert dict(zip(model.user_rows.tolist(), best, strict=True)) == {
                user: item for user, item in withheld.items() if user not in (4, 9)
            }

    def test_excision_of_all_that_there_is_leaves_a_model_that_knows_nobody(self, config):
        nothing = Interactions.none()
        assert excise([], nothing, start_of_items(nothing), config).same_bits(Embeddings.empty(WIDTH))
