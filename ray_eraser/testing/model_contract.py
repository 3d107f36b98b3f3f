"""The contract of every base model. A test class inherits it and gives the `model`."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_eraser.config import EraserConfig, RuntimeConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.determinism import deterministic
from ray_eraser.devices import Device
from ray_eraser.embeddings import Embeddings, KeyedEmbeddings
from ray_eraser.ids import ShardId
from ray_eraser.models.base import UNTRAINED, BaseModel, Start, TrainingState
from ray_eraser.seeds import normal_rows
from ray_eraser.training.submodel import train_submodel


def log_of(pairs) -> Interactions:
    users, items = np.array(sorted(pairs), np.int32).reshape(-1, 2).T
    return Interactions.of(users, items)


def checkerboard(n_users=16, n_items=12) -> tuple[Interactions, dict[int, int]]:
    """Even users have all even items but one, odd users all odd ones but one; by user row, the one that was withheld."""
    withheld = {user: (user + 2 * (user // 4)) % n_items for user in range(n_users)}
    pairs = {(user, item) for user in range(n_users) for item in range(n_items) if (user + item) % 2 == 0}
    return log_of(pairs - set(withheld.items())), withheld


NAMED = [
    ("abcdefghijklmnop"[user], 100 + item)
    for user, item in zip(*(rows.tolist() for rows in (checkerboard()[0].users, checkerboard()[0].items)), strict=True)
]
"""The checkerboard's pairs by raw ids."""


def shard_of(log: Dataset) -> ShardData:
    """All of a log as one shard."""
    return ShardData.of(log.train, log.valid, log.users.keys, log.items.keys)


class ModelContract:
    """The checkerboard must be within reach of the model's settings, in some hundredths of a second."""

    model: BaseModel
    device: Device = "cpu"
    """Where `train_submodel` is to compute: as `model` does."""

    @pytest.fixture(autouse=True)
    def one_thread(self):
        with deterministic(1):
            yield

    def start(self, interactions: Interactions, seed: int = 3) -> Start:
        return Start(seed, normal_rows(interactions.item_rows().astype(np.uint64), 5, self.model.config.width))

    def fit(self, interactions: Interactions, seed: int = 3) -> Embeddings:
        return self.model.fit(interactions, Interactions.none(), self.start(interactions, seed))

    def covers_exactly(self, model: Embeddings, interactions: Interactions) -> bool:
        return (
            model.user_rows.tolist() == interactions.user_rows().tolist()
            and model.item_rows.tolist() == interactions.item_rows().tolist()
            and model.users.shape == (len(model.user_rows), self.model.config.width)
            and model.items.shape == (len(model.item_rows), self.model.config.width)
        )

    def test_of_the_unseen_items_the_withheld_one_of_the_users_own_kind_comes_first(self):
        interactions, withheld = checkerboard()
        model = self.fit(interactions)
        scores_UI = model.users @ model.items.T
        scores_UI[interactions.users, interactions.items] = -np.inf
        assert dict(enumerate(scores_UI.argmax(1).tolist())) == withheld

    def test_the_same_arguments_give_the_same_bits_whatever_was_drawn_or_trained_before(self):
        interactions, _ = checkerboard()
        first = self.fit(interactions)
        torch.manual_seed(99)
        np.random.seed(99)  # noqa: NPY002 - the state that a model must not look at
        random.seed(99)
        self.fit(log_of([(0, 0), (1, 1)]), seed=8)
        assert self.fit(interactions).same_bits(first)

    def test_another_start_of_the_items_gives_other_bits(self):
        interactions, _ = checkerboard()
        start = self.start(interactions)
        other = self.model.fit(interactions, Interactions.none(), Start(start.seed, start.items[::-1].copy()))
        assert not self.fit(interactions).same_bits(other)

    def test_rows_with_gaps_between_them_give_the_same_vectors(self):
        interactions, _ = checkerboard()
        apart = Interactions.of(interactions.users * 7 + 100, interactions.items * 3 + 5000)
        start = self.start(interactions)
        here = self.model.fit(interactions, Interactions.none(), start)
        there = self.model.fit(apart, Interactions.none(), start)
        assert self.covers_exactly(there, apart)
        assert there.users.tobytes() == here.users.tobytes()
        assert there.items.tobytes() == here.items.tobytes()

    def trained(self, data: ShardData) -> KeyedEmbeddings:
        config = EraserConfig(seed=6, model=self.model.config, runtime=RuntimeConfig(device=self.device))
        return train_submodel(data, config, ShardId(2))

    def test_a_fresh_log_without_an_erased_user_gives_everybody_else_the_same_vectors(self):
        everything, gone = NAMED, ["a", "g"]
        log = Dataset.of_pairs("log", everything)
        fresh = Dataset.of_pairs("log", [pair for pair in everything if pair[0] not in gone])
        erased = KeyedPairs.of([(log.users.key(u), log.items.key(i)) for u, i in everything if u in gone])
        after = self.trained(shard_of(log).without(erased))
        assert after.same_bits(self.trained(shard_of(fresh)))
        assert after.user_keys.tolist() == fresh.users.keys.tolist()
        assert len(after.users) == 14

    def test_a_fresh_log_without_an_erased_item_gives_every_other_item_the_same_vector(self):
        everything, gone = NAMED, [100, 107]
        log = Dataset.of_pairs("log", everything)
        fresh = Dataset.of_pairs("log", [pair for pair in everything if pair[1] not in gone])
        erased = KeyedPairs.of([(log.users.key(u), log.items.key(i)) for u, i in everything if i in gone])
        after = self.trained(shard_of(log).without(erased))
        assert after.same_bits(self.trained(shard_of(fresh)))
        assert after.item_keys.tolist() == fresh.items.keys.tolist()
        assert len(after.items) == 10

    def test_the_order_of_a_log_and_what_was_learned_and_erased_between_change_no_bit(self):
        log = Dataset.of_pairs("log", NAMED)
        detour = KeyedPairs.of([(log.users.key_of("guest"), log.items.key(103)), (log.users.key("b"), log.items.key_of(999))])
        data = shard_of(Dataset.of_pairs("log", NAMED[::-1]))
        back = data.with_learned(detour, KeyedPairs.none()).without(detour)
        assert self.trained(back).same_bits(self.trained(shard_of(log)))

    def test_training_on_what_remains_equals_never_having_had_the_erased_pairs(self):
        interactions, _ = checkerboard()
        erased = log_of([(0, 2), (3, 5), (15, 15)])
        direct = log_of(set(zip(interactions.users.tolist(), interactions.items.tolist(), strict=True)) - {(0, 2), (3, 5)})
        assert not self.fit(interactions).same_bits(self.fit(direct))
        assert self.fit(interactions.without(erased)).same_bits(self.fit(direct))

    def in_stages(self, interactions: Interactions, *last_users: int) -> list[TrainingState]:
        """The states after one stage for each of `last_users`, which has the users up to that one."""
        states = [UNTRAINED]
        for seed, last in enumerate(last_users):
            seen = interactions.take(interactions.users <= last)
            states.append(self.model.train(states[-1], seen, Interactions.none(), self.start(seen, seed), 3))
        return states[1:]

    def test_one_stage_of_all_epochs_is_a_fit(self):
        interactions, _ = checkerboard()
        start, epochs = self.start(interactions), self.model.config.epochs
        state = self.model.train(UNTRAINED, interactions, Interactions.none(), start, epochs)
        assert self.model.embeddings(state, interactions).same_bits(self.fit(interactions))

    def test_a_later_stage_covers_exactly_its_users_and_items_and_starts_from_the_one_before(self):
        interactions = Interactions.union([checkerboard()[0], log_of([(20, 40), (21, 40), (21, 3)])])
        ends = [self.in_stages(interactions, *last_users)[-1] for last_users in ((9, 21), (8, 21))]
        models = [self.model.embeddings(state, interactions) for state in ends]
        assert all(self.covers_exactly(model, interactions) for model in models)
        assert not models[0].same_bits(models[1])

    def test_a_stage_leaves_the_one_before_as_it_was_even_where_nothing_new_comes(self):
        interactions, _ = checkerboard()
        (state,) = self.in_stages(interactions, 15)
        before = {name: array.copy() for name, array in state.arrays().items()}
        after = self.model.train(state, interactions, Interactions.none(), self.start(interactions, 9), 2)
        self.model.embeddings(state, interactions)
        assert all((array == before[name]).all() for name, array in state.arrays().items())
        assert not any(
            np.shares_memory(new, old)
            for new, old in zip(after.arrays().values(), state.arrays().values(), strict=True)
            if old.dtype == np.float32
        )

    def test_a_state_that_was_stored_goes_on_as_if_it_had_never_been(self):
        interactions, _ = checkerboard()
        (state,) = self.in_stages(interactions, 7)
        stored = TrainingState.of(
            {name: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for name, a in state.arrays().items()}
        )
        ends = [
            self.model.embeddings(
                self.model.train(before, interactions, Interactions.none(), self.start(interactions), 3), interactions
            )
            for before in (state, stored)
        ]
        assert ends[0].same_bits(ends[1])

    def test_rows_that_a_later_stage_brings_start_as_at_the_beginning(self):
        interactions = log_of([(user, item) for user in range(8) for item in (user, user + 8)])
        (first,) = self.in_stages(interactions, 3)
        start = self.start(interactions)
        begun = self.model.train(first, interactions, Interactions.none(), start, 0)
        fresh = self.model.train(UNTRAINED, interactions, Interactions.none(), start, 0)
        for side in ("users", "items"):
            before, table, new = (getattr(state, side) for state in (first, begun, fresh))
            known = np.isin(table.rows, before.rows)
            assert set(table.columns) == set(before.columns) == set(new.columns)
            for name, column in table.columns.items():
                assert (column[known] == before[name]).all()
                assert (column[~known] == new[name][~known]).all()

    def test_a_fit_leaves_its_arguments_as_they_were(self):
        interactions, _ = checkerboard()
        start = self.start(interactions)
        arrays = (interactions.users, interactions.items, start.items)
        before = [array.copy() for array in arrays]
        model = self.model.fit(interactions, log_of([(0, 0)]), start)
        assert all((now == then).all() for now, then in zip(arrays, before, strict=True))
        assert not any(np.shares_memory(array, given) for array in model.arrays().values() for given in arrays)

    def test_vectors_are_contiguous_finite_float32_and_rows_ascending_int32(self):
        model = self.fit(checkerboard()[0])
        for vectors in (model.users, model.items):
            assert vectors.dtype == np.float32
            assert vectors.flags.c_contiguous
            assert np.isfinite(vectors).all()
        for rows in (model.user_rows, model.item_rows):
            assert rows.dtype == np.int32
            assert (np.diff(rows) > 0).all()

    def test_no_interactions_give_a_model_that_knows_nobody(self):
        assert self.fit(Interactions.none()).same_bits(Embeddings.empty(self.model.config.width))

    def test_one_single_pair_is_learned(self):
        model = self.fit(log_of([(4, 9)]))
        assert self.covers_exactly(model, log_of([(4, 9)]))
        assert (model.users @ model.items.T).item() > 0.5

    def test_a_shard_with_one_user_covers_that_user_and_scores_its_items_above_zero(self):
        alone = log_of([(7, item) for item in range(0, 40, 3)])
        model = self.fit(alone)
        assert self.covers_exactly(model, alone)
        assert (model.users @ model.items.T > 0).all()

    def test_a_user_with_every_item_scores_all_of_them_above_zero(self):
        interactions, _ = checkerboard()
        more = Interactions.union([interactions, log_of([(16, item) for item in range(12)])])
        model = self.fit(more)
        assert self.covers_exactly(model, more)
        assert (model.items @ model.users[16] > 0).all()

    def test_any_log_gives_finite_vectors_of_exactly_its_users_and_items(self):
        # The property stands inside, because hypothesis wants one class per property and a contract has many.
        @settings(max_examples=15, deadline=None)
        @given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 7)), min_size=1, max_size=40))
        def holds(pairs):
            interactions = log_of(pairs)
            model = self.fit(interactions)
            assert self.covers_exactly(model, interactions)
            assert np.isfinite(model.users).all()
            assert np.isfinite(model.items).all()

        holds()
