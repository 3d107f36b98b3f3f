"""The contract of every served model. A test class inherits it and gives the settings that make the model."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest

from ray_eraser.aggregator import aggregate_of
from ray_eraser.config import EraserConfig, config_from
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.ids import ShardId
from ray_eraser.prepare import prepare
from ray_eraser.seeds import hash_ids, secret
from ray_eraser.served import Served, served_by
from ray_eraser.training.submodel import train_submodel

Pair = tuple[int | str, int | str]
Sections = Mapping[str, Mapping[str, object]]

PAIRS: list[Pair] = [
    (100 + u, i) for u in range(30) for i in range(18) if (u * 5 + i * 3) % 7 < 3 or (u % 2 == i % 2 and (u + i) % 5 < 2)
]
"""Two groups of users with a taste of their own. Every item has several users and every user several items."""

ERASED = {
    "a user": lambda user, item: user == 107,
    "an item": lambda user, item: item == 4,
    "pairs": lambda user, item: (user, item) in {PAIRS[0], PAIRS[70], PAIRS[-1]},
    "a whole shard's users": lambda user, item: user % 3 == 1,
}


class Here:
    """Calls in this process."""

    def run(self, calls: Sequence[Any]) -> list[Any]:
        return [call() for call in calls]


class ServedContract:
    """`sections` are the settings, with a partition that is not learned: of another, erasing is not training from scratch."""

    sections: ClassVar[Sections]
    users_are_trained: ClassVar[bool] = False
    """Whether users have vectors of their own from training. Otherwise a user's scores follow from the user's items."""

    @property
    def config(self) -> EraserConfig:
        partition = {"n_shards": 3, **self.sections.get("partition", {})}
        return config_from({**self.sections, "partition": partition}).settled(0.3)

    def shards_of(self, pairs: Sequence[Pair], held: Sequence[Pair] = ()) -> list[ShardData]:
        """As a deployment divides a log."""
        log = Dataset.of_pairs("log", pairs, self.config.seed, held)
        return list(prepare(log, self.config, Here()).shards)

    def served_from(self, shards: Sequence[ShardData]) -> Served:
        """As a deployment serves these interactions."""
        config = self.config
        submodels = [train_submodel(data, config, ShardId(k)) for k, data in enumerate(shards)]
        return served_by(aggregate_of(submodels, shards, config), shards, config)

    def served(self, pairs: Sequence[Pair] = PAIRS, held: Sequence[Pair] = ()) -> Served:
        return self.served_from(self.shards_of(pairs, held))

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> Served:
        return cls().served()

    def keys(self, *ids: object) -> np.ndarray:
        """Of users or items; by default of all users, in an order that is not theirs."""
        named = ids or tuple(dict.fromkeys(user for user, _ in PAIRS))
        return hash_ids([str(raw).encode() for raw in named], secret(self.config.seed, "ids"))

    def users(self) -> list[tuple[int, object]]:
        """(key, id) of every user."""
        ids = list(dict.fromkeys(user for user, _ in PAIRS))
        return list(zip(self.keys(*ids).tolist(), ids, strict=True))

    def items_of(self, user: object) -> list[object]:
        return [item for other, item in PAIRS if other == user]

    # ---- what is asked and answered

    def test_items_are_the_keys_of_those_with_an_interaction_ascending(self, model):
        wanted = np.sort(self.keys(*{item for _, item in PAIRS}))
        assert model.item_keys.dtype == np.uint64
        assert model.item_keys.tolist() == wanted.tolist()

    def test_everybody_with_an_interaction_has_a_finite_score_of_every_item(self, model):
        known, scores = model.scores(self.keys())
        assert known.dtype == bool
        assert known.all()
        assert (scores.dtype, scores.shape) == (np.float32, (30, len(model.item_keys)))
        assert np.isfinite(scores).all()

    def test_a_users_scores_are_the_same_bits_alone_beside_others_and_again(self, model):
        keys = self.keys()
        _, together = model.scores(keys)
        _, backwards = model.scores(keys[::-1])
        _, some = model.scores(keys[3:9])
        assert together.tobytes() == backwards[::-1].tobytes()
        assert together[3:9].tobytes() == some.tobytes()
        for key, scores in zip(keys, together, strict=True):
            assert model.scores(np.array([key]))[1].tobytes() == scores.tobytes()

    def test_a_user_who_is_asked_about_twice_in_a_call_is_answered_twice(self, model):
        (key,) = self.keys(103)
        known, scores = model.scores(np.array([key, key]))
        assert known.all()
        assert scores[0].tobytes() == scores[1].tobytes()

    def test_unknown_users_are_said_and_the_others_keep_their_order(self, model):
        first, second = self.keys(112, 101)
        known, scores = model.scores(np.array([first, 1, second, *self.keys("nobody")], np.uint64))
        assert known.tolist() == [True, False, True, False]
        alone = [model.scores(np.array([key]))[1] for key in (first, second)]
        assert scores.tobytes() == np.concatenate(alone).tobytes()

    def test_who_asks_about_nobody_or_only_unknown_users_is_given_no_scores(self, model):
        for keys in (np.empty(0, np.uint64), self.keys("nobody")):
            known, scores = model.scores(keys)
            assert known.tolist() == [False] * len(keys)
            assert (scores.dtype, scores.shape) == (np.float32, (0, len(model.item_keys)))

    def test_what_a_caller_writes_into_scores_or_keys_is_not_read_again(self, model):
        keys = self.keys()
        _, scores = model.scores(keys)
        before = scores.copy()
        scores[:] = -np.inf
        keys[:] = 0
        assert model.scores(self.keys())[1].tobytes() == before.tobytes()

    def test_many_who_ask_at_once_are_given_what_one_is_given(self):
        fresh, keys = self.served(), self.keys()
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda key: fresh.scores(np.array([key]))[1], np.repeat(keys, 3)))
        assert np.concatenate(answers).tobytes() == np.repeat(self.served().scores(keys)[1], 3, axis=0).tobytes()

    def test_the_scores_for_the_items_of_a_user_are_the_users_scores(self, model):
        if self.users_are_trained:
            return
        places = {key: np.searchsorted(model.item_keys, np.sort(self.keys(*self.items_of(user)))) for key, user in self.users()}
        _, scores = model.scores(np.array(list(places), np.uint64))
        np.testing.assert_allclose(model.scores_for(list(places.values())), scores, rtol=1e-4, atol=1e-6)

    def test_anybody_with_one_item_can_be_scored_with_the_same_bits_alone_and_beside_others(self, model):
        each = [np.array([place]) for place in range(len(model.item_keys))]
        together = model.scores_for(each)
        assert (together.dtype, together.shape) == (np.float32, (len(each), len(each)))
        assert np.isfinite(together).all()
        for owned, scores in zip(each, together, strict=True):
            assert model.scores_for([owned])[0].tobytes() == scores.tobytes()
        assert model.scores_for([]).shape == (0, len(each))

    # ---- a function of what remains

    @pytest.mark.parametrize("what", ERASED)
    def test_without_the_erased_pairs_it_is_the_model_of_a_log_that_never_had_them(self, model, what):
        rest = [pair for pair in PAIRS if not ERASED[what](*pair)]
        gone = KeyedPairs(*(self.keys(*ids) for ids in zip(*(pair for pair in PAIRS if ERASED[what](*pair)), strict=True)))
        remaining = [data.without(gone) for data in self.shards_of(PAIRS)]
        after, fresh = self.served_from(remaining), self.served(rest)
        assert after.same_bits(fresh)
        assert after.item_keys.tolist() == fresh.item_keys.tolist()
        (known, scores), (also, others) = after.scores(self.keys()), fresh.scores(self.keys())
        assert known.tolist() == also.tolist()
        assert scores.tobytes() == others.tobytes()
        assert not after.same_bits(model)
        assert scores.tobytes() != model.scores(self.keys())[1].tobytes()

    def test_neither_the_order_of_the_log_nor_what_came_and_went_changes_a_bit(self, model):
        shards = self.shards_of(PAIRS[::-1])
        detour = KeyedPairs(self.keys("guest", 103), self.keys(3, "lamp"))
        back = [data.with_learned(detour, KeyedPairs.none()).without(detour) for data in shards]
        again = self.served_from(back)
        assert again.same_bits(model)
        assert again.scores(self.keys())[1].tobytes() == model.scores(self.keys())[1].tobytes()

    def test_who_has_nothing_but_held_out_pairs_is_unknown_and_what_is_only_held_out_has_no_score(self):
        served = self.served(PAIRS, [("late", 3), (103, "lamp")])
        assert served.scores(self.keys("late"))[0].tolist() == [False]
        assert served.item_keys.tolist() == np.sort(self.keys(*{item for _, item in PAIRS})).tolist()

    def test_an_empty_log_is_served_and_knows_nobody(self):
        nothing = self.served_from([ShardData.none()] * 3)
        known, scores = nothing.scores(self.keys(101))
        assert (known.tolist(), scores.shape) == ([False], (0, 0))
        assert nothing.same_bits(self.served_from([ShardData.none()] * 3))

    # ---- the same in rows

    def test_in_rows_it_gives_the_same_scores(self, model):
        users, items = np.sort(self.keys()), model.item_keys
        rows = np.array([2, 5, 21], np.int32)
        scorer = model.in_rows(users, items)
        known, scores = scorer.scores(rows)
        assert scorer.item_rows.tolist() == list(range(len(items)))
        assert known.all()
        np.testing.assert_allclose(scores, model.scores(users[rows])[1], rtol=1e-4, atol=1e-6)

    def test_in_rows_of_other_keys_those_that_are_not_among_them_are_left_out(self, model):
        users = np.sort(np.concatenate([self.keys()[::2], self.keys("nobody")]))
        items = np.sort(np.concatenate([model.item_keys[1::3], self.keys("lamp")]))
        scorer = model.in_rows(users, items)
        known, scores = scorer.scores(np.arange(len(users), dtype=np.int32))
        mask, expected = model.scores(users)
        assert known.tolist() == mask.tolist()
        assert np.count_nonzero(~known) == 1
        assert items[scorer.item_rows].tolist() == model.item_keys[1::3].tolist()
        np.testing.assert_allclose(scores, expected[:, 1::3], rtol=1e-4, atol=1e-6)

    # ---- compared

    def test_it_is_the_same_as_itself_and_as_another_from_the_same_log_only(self, model):
        same, less = self.served(), self.served(PAIRS[1:])
        assert model.same_bits(model)
        assert model.same_bits(same)
        assert same.same_bits(model)
        assert not model.same_bits(less)
        assert not less.same_bits(model)

    def test_it_is_the_same_after_a_way_between_processes(self, model):
        model.scores(self.keys()[:2])  # what a read leaves in memory goes along
        arrived = pickle.loads(pickle.dumps(model))
        assert arrived.same_bits(model)
        assert arrived.scores(self.keys())[1].tobytes() == model.scores(self.keys())[1].tobytes()

    def test_vectors_if_it_has_any_give_its_scores(self, model):
        vectors = model.vectors()
        if vectors is None:
            return
        users = np.sort(self.keys())
        assert vectors.user_keys.tolist() == users.tolist()
        assert vectors.item_keys.tolist() == model.item_keys.tolist()
        np.testing.assert_allclose(vectors.users @ vectors.items.T, model.scores(users)[1], rtol=1e-4, atol=1e-6)
