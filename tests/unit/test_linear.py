from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch_devices import TORCH_DEVICES

from ray_eraser.config import LinearConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.devices import torch_device
from ray_eraser.kernels.products import Rows
from ray_eraser.models.linear import LinearModel, OfSplitUsers, OfWholeUsers, Slice
from ray_eraser.models.linear_torch import LinearTorch

N_USERS, N_ITEMS = 120, 50
WITHIN = 2e-5
"""Tolerance relative to the norm of a user's scores, for rounding in a few steps of single precision on any device."""


def skewed_log(n_users=N_USERS, n_items=N_ITEMS, n=1500, seed=1) -> Interactions:
    """A log in which popular items have most of the users and some items have none."""
    generator = np.random.default_rng(seed)
    items = (n_items * generator.random(n) ** 3).astype(np.int32)
    return Interactions.of((n_users * generator.random(n) ** 1.5).astype(np.int32), items)


def by_user(pairs: Interactions, n_shards=3) -> list[Interactions]:
    return [pairs.take(pairs.users % n_shards == k) for k in range(n_shards)]


def by_pair(pairs: Interactions, n_shards=3) -> list[Interactions]:
    owners = np.random.default_rng(7).integers(0, n_shards, len(pairs))
    return [pairs.take(owners == k) for k in range(n_shards)]


def whole(pairs: Interactions) -> list[Interactions]:
    return [pairs]


def rows_of(items_of) -> Rows:
    """Rows from a list of items for each user."""
    own = [np.array(items, np.int32) for items in items_of]
    return Rows.of(np.cumsum([0, *map(len, own)]), np.concatenate([np.empty(0, np.int32), *own]))


def items_in(pairs: Interactions, n_users=N_USERS) -> list[np.ndarray]:
    return [pairs.items_of(user) for user in range(n_users)]


def model_of(parts, config=None, n_users=N_USERS, n_items=N_ITEMS) -> LinearModel:
    return LinearModel.of([Slice.of(part, n_items) for part in parts], n_users, n_items, config or LinearConfig())


def torch_model_of(parts, device, config=None, n_users=N_USERS, n_items=N_ITEMS) -> LinearTorch:
    slices = [Slice.of(part, n_items) for part in parts]
    return LinearTorch.of(slices, n_users, n_items, config or LinearConfig(), torch_device(device))


class Naive:
    """The equations in double precision, dense, over the users and items that have a pair."""

    def __init__(self, pairs: Interactions, config: LinearConfig) -> None:
        self.users, self.items = pairs.user_rows(), pairs.item_rows()
        observed = pairs.matrix(int(self.users.max()) + 1, int(self.items.max()) + 1).toarray().astype(np.float64)
        observed = observed[self.users][:, self.items]
        degree_U, degree_I = observed.sum(1), observed.sum(0)
        self.degree_I = degree_I
        self.weight_I = (degree_I / degree_I.mean()) ** -config.normalise_items
        weight_U = (degree_U / degree_U.mean()) ** -config.normalise_users
        normalised = weight_U[:, None] * observed * self.weight_I
        self.gram = normalised.T @ normalised
        self.ridge = config.ridge * observed.sum() / len(self.items)
        self.steps = config.steps

    def right_side(self, items) -> np.ndarray:
        return self.gram @ (self.weight_I * np.isin(self.items, items))

    def exact(self, items) -> np.ndarray:
        solution = np.linalg.solve(self.gram + self.ridge * np.eye(len(self.gram)), self.right_side(items))
        return solution / self.weight_I

    def by_steps(self, items) -> np.ndarray:
        """Conjugate gradients deflated by popularity, as in Saad et al. 2000."""
        system = self.gram + self.ridge * np.eye(len(self.gram))
        known = self.weight_I * self.degree_I
        right_side = self.right_side(items)
        solution = known * (known @ right_side) / (known @ system @ known)
        residual = right_side - system @ solution
        direction = residual - known * (known @ system @ residual) / (known @ system @ known)
        for _ in range(self.steps):
            left = residual @ residual
            if left == 0:
                break
            length = left / (direction @ system @ direction)
            solution = solution + length * direction
            residual = residual - length * (system @ direction)
            correction = known * (known @ system @ residual) / (known @ system @ known)
            direction = residual + residual @ residual / left * direction - correction
        return solution / self.weight_I


def assert_scores_agree(found_BI, expected_BI, within=WITHIN):
    """Check that -inf is in the same places and that other scores agree relative to each user's scores."""
    assert found_BI.dtype == np.float32
    assert np.array_equal(np.isneginf(found_BI), np.isneginf(expected_BI))
    found_BI, expected_BI = (np.where(np.isneginf(part), 0, part).astype(np.float64) for part in (found_BI, expected_BI))
    error_B = np.linalg.norm(found_BI - expected_BI, axis=1)
    assert (error_B <= within * np.linalg.norm(expected_BI, axis=1)).all()


def expected_scores(naive: Naive, items_of, exact=False) -> np.ndarray:
    scores = np.full((len(items_of), N_ITEMS), -np.inf)
    for own, items in zip(scores, items_of, strict=True):
        if np.isin(items, naive.items).any():
            own[naive.items] = (naive.exact if exact else naive.by_steps)(items)
    return scores


CONFIGS = [
    LinearConfig(),
    LinearConfig(normalise_users=0, normalise_items=0.5, ridge=20, steps=1),
    LinearConfig(normalise_users=0.5, normalise_items=0, ridge=1, steps=3),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["default", "items", "users"])
@pytest.mark.parametrize("division", [whole, by_user, by_pair])
def test_scores_equal_the_equations_solved_in_double_precision(config, division):
    pairs = skewed_log()
    asked = items_in(pairs)
    scores = model_of(division(pairs), config).scores(rows_of(asked))
    assert_scores_agree(scores, expected_scores(Naive(pairs, config), asked))


@pytest.mark.parametrize("division", [whole, by_pair])
def test_many_steps_solve_the_system(division):
    pairs = skewed_log()
    config, asked = LinearConfig(steps=60), items_in(pairs)
    scores = model_of(division(pairs), config).scores(rows_of(asked))
    assert_scores_agree(scores, expected_scores(Naive(pairs, config), asked, exact=True))


def test_slices_take_one_round_with_whole_users_and_two_with_split_users():
    pairs = skewed_log()
    for parts, expected in (([], OfWholeUsers), (by_user(pairs), OfWholeUsers), (by_pair(pairs), OfSplitUsers)):
        assert isinstance(model_of(parts).products, expected)


@pytest.mark.parametrize("n_shards", [2, 7])
@pytest.mark.parametrize("division", [by_user, by_pair])
def test_scores_do_not_depend_on_the_number_of_shards(division, n_shards):
    pairs = skewed_log()
    asked = rows_of(items_in(pairs))
    one = model_of([pairs]).scores(asked)
    assert_scores_agree(model_of(division(pairs, n_shards)).scores(asked), one)


@pytest.mark.parametrize("division", [whole, by_user, by_pair])
@pytest.mark.parametrize("n_asked", [2, 3, 4, 31, 32, 33, 35, 36, 70])
def test_a_user_has_the_same_bits_alone_and_in_any_batch(division, n_asked):
    pairs = skewed_log()
    model, asked = model_of(division(pairs)), items_in(pairs)[:n_asked]
    together = model.scores(rows_of(asked))
    for user in range(0, n_asked, 1 + n_asked // 12):
        assert model.scores(rows_of([asked[user]])).tobytes() == together[user].tobytes()


@given(st.lists(st.lists(st.integers(0, N_ITEMS - 1), unique=True).map(sorted), min_size=1, max_size=9), st.randoms())
def test_other_users_of_a_request_change_no_bit(asked, random):
    model = model_of([skewed_log()])
    order = list(range(len(asked)))
    random.shuffle(order)
    shuffled = model.scores(rows_of([asked[user] for user in order]))
    for row, user in enumerate(order):
        assert model.scores(rows_of([asked[user]])).tobytes() == shuffled[row].tobytes()


def test_the_number_of_cores_changes_no_bit():
    pairs = skewed_log()
    model, asked = model_of(by_user(pairs)), rows_of(items_in(pairs))
    with deterministic(1, cores=1):
        one = model.scores(asked)
    with deterministic(1, cores=3):
        assert model.scores(asked).tobytes() == one.tobytes()
    assert model.scores(asked).tobytes() == one.tobytes()


@pytest.mark.parametrize("division", [whole, by_user, by_pair])
def test_erasing_pairs_equals_building_from_what_remains(division):
    pairs = skewed_log()
    gone = Interactions.union(
        [pairs.of_users(np.array([0, 17])), pairs.of_items(np.array([3])), pairs.take(np.arange(0, 900, 9))]
    )
    erased = model_of([part.without(gone) for part in division(pairs)])
    # The rest is numbered from scratch, so that no trace of the erased users and items is left.
    remaining = pairs.without(gone)
    users, items = remaining.user_rows(), remaining.item_rows()
    assert len(users) < len(pairs.user_rows())
    assert len(items) < len(pairs.item_rows())
    parts = [
        Interactions(np.searchsorted(users, part.users).astype(np.int32), np.searchsorted(items, part.items).astype(np.int32))
        for part in (part.without(gone) for part in division(pairs))
    ]
    fresh = model_of(parts, n_users=len(users), n_items=len(items))
    asked = [remaining.items_of(user) for user in users]
    found = erased.scores(rows_of(asked))
    assert found[:, items].tobytes() == fresh.scores(rows_of([np.searchsorted(items, own) for own in asked])).tobytes()
    assert np.isneginf(np.delete(found, items, axis=1)).all()


@pytest.mark.parametrize(
    ("users", "items", "every"), [([], [], 0), ([0, 17], [], 0), ([], [3], 0), ([5], [0, 49], 7), ([], [], 1)]
)
def test_a_slice_without_pairs_is_the_slice_of_the_others(users, items, every):
    pairs = skewed_log().compact().interactions
    gone = Interactions.union([pairs.of_users(np.array(users)), pairs.of_items(np.array(items))])
    if every:
        gone = Interactions.union([gone, pairs.take(np.arange(0, len(pairs), every))])
    left = pairs.without(gone).compact()
    expected = Slice.of(left.interactions, len(left.item_rows))
    found, users_left, items_left = Slice.of(pairs, len(pairs.item_rows())).without(gone)
    assert np.flatnonzero(users_left).tolist() == left.user_rows.tolist()
    assert np.flatnonzero(items_left).tolist() == left.item_rows.tolist()
    for mine, fresh in (
        (found.users, expected.users),
        (found.by_user.starts, expected.by_user.starts),
        (found.by_user.columns, expected.by_user.columns),
        (found.by_item.starts, expected.by_item.starts),
        (found.by_item.columns, expected.by_item.columns),
    ):
        assert mine.dtype == fresh.dtype
        assert mine.tolist() == fresh.tolist()


def test_slices_without_a_pair_change_no_bit():
    pairs = skewed_log()
    asked, none = rows_of(items_in(pairs)), Interactions.none()
    for division in (by_user, by_pair):
        parts = division(pairs)
        with_empty = model_of([none, parts[0], none, *parts[1:], none])
        assert with_empty.scores(asked).tobytes() == model_of(parts).scores(asked).tobytes()


def test_a_user_without_an_item_that_has_a_pair_has_no_score():
    pairs, absent = skewed_log(), 3
    pairs = pairs.without(pairs.of_items(np.array([absent])))
    scores = model_of([pairs]).scores(rows_of([[], [1, 2], [absent], [1, 2, absent]]))
    assert np.isneginf(scores).all(1).tolist() == [True, False, True, False]
    assert np.isneginf(scores[1]).tolist() == (~np.isin(np.arange(N_ITEMS), pairs.item_rows())).tolist()
    assert scores[1].tobytes() == scores[3].tobytes()


def test_a_user_with_all_items_has_the_scores_of_the_equations():
    pairs = Interactions.union(
        [skewed_log(), Interactions.of(np.full(N_ITEMS, 5, np.int32), np.arange(N_ITEMS, dtype=np.int32))]
    )
    asked = [np.arange(N_ITEMS)]
    scores = model_of([pairs]).scores(rows_of(asked))
    assert np.isfinite(scores).all()
    assert_scores_agree(scores, expected_scores(Naive(pairs, LinearConfig()), asked))


@pytest.mark.parametrize("ridge", [0.5, 5])
def test_one_pair_has_a_known_score(ridge):
    # All degrees are their means, so G = x = 1 and z = 1 / (1 + ridge), after one step and after many.
    pairs = Interactions.of(np.array([3]), np.array([7]))
    for steps in (1, 2, 20):
        scores = model_of([pairs], LinearConfig(ridge=ridge, steps=steps)).scores(rows_of([[7], [8]]))
        assert scores[0, 7] == np.float32(1 / (1 + ridge))
        assert np.isneginf(np.delete(scores[0], 7)).all()
        assert np.isneginf(scores[1]).all()


def test_without_pairs_there_are_no_scores():
    for parts in ([], [Interactions.none()], [Interactions.none()] * 3):
        scores = model_of(parts).scores(rows_of([[1], []]))
        assert np.isneginf(scores).all()
        assert scores.shape == (2, N_ITEMS)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_request_without_users_is_allowed(steps):
    assert model_of([skewed_log()], LinearConfig(steps=steps)).scores(rows_of([])).shape == (0, N_ITEMS)


@pytest.mark.parametrize("item", [-1, N_ITEMS])
def test_an_item_outside_the_numbering_is_refused(item):
    with pytest.raises(IndexError, match=f"item {item} is not one of 50: give items in the numbering of the slices"):
        model_of([skewed_log()]).scores(rows_of([[item]]))


def test_arguments_are_not_changed():
    pairs = skewed_log()
    asked = rows_of(items_in(pairs))
    before = [array.copy() for array in (pairs.users, pairs.items, asked.starts, asked.columns)]
    model_of(by_pair(pairs)).scores(asked)
    after = (pairs.users, pairs.items, asked.starts, asked.columns)
    assert all(np.array_equal(now, then) for now, then in zip(after, before, strict=True))


def test_a_shard_computes_only_its_own_rows():
    pairs = skewed_log()
    own = Slice.of(by_pair(pairs)[1], N_ITEMS)
    matrix = by_pair(pairs)[1].matrix(N_USERS, N_ITEMS)[own.users]
    vectors_IB = np.random.default_rng(1).integers(-5, 6, (N_ITEMS, 3)).astype(np.float32)
    sums_UB = np.random.default_rng(2).integers(-5, 6, (len(own.users), 3)).astype(np.float32)
    assert own.to_users(vectors_IB).tolist() == (matrix @ vectors_IB).tolist()
    assert own.to_items(sums_UB).tolist() == (matrix.T @ sums_UB).tolist()
    ones_U = np.ones(len(own.users), np.float32)
    products_IB, squares_B = own.gram(vectors_IB, ones_U)
    assert products_IB.tolist() == (matrix.T @ (matrix @ vectors_IB)).tolist()
    assert squares_B.tolist() == ((matrix @ vectors_IB) ** 2).sum(0).tolist() == own.squares(vectors_IB, ones_U).tolist()
    asked = rows_of([[0], [], [2, 5]])
    chosen_IB = np.zeros((N_ITEMS, 3), np.float32)
    chosen_IB[[0, 2, 5], [0, 2, 2]] = 1
    assert own.gram_of(asked, np.ones(N_ITEMS, np.float32), ones_U).tolist() == (matrix.T @ (matrix @ chosen_IB)).tolist()


class TestOnATorchDevice:
    @pytest.fixture(params=TORCH_DEVICES)
    def device(self, request):
        with deterministic(1):
            yield request.param

    @pytest.mark.parametrize("config", CONFIGS, ids=["default", "items", "users"])
    @pytest.mark.parametrize("division", [whole, by_user, by_pair])
    def test_scores_equal_those_of_the_compiled_loops_up_to_rounding(self, device, division, config):
        pairs = skewed_log()
        asked = rows_of([*items_in(pairs), [], [N_ITEMS - 1]])
        found = torch_model_of(division(pairs), device, config).scores(asked)
        assert_scores_agree(found, model_of(division(pairs), config).scores(asked))

    def test_scores_agree_for_long_rows(self, device):
        pairs = skewed_log(n_users=3000, n_items=20, n=30_000)
        asked = rows_of(items_in(pairs)[:3])
        found = torch_model_of([pairs], device, n_users=3000, n_items=20).scores(asked)
        assert_scores_agree(found, model_of([pairs], n_users=3000, n_items=20).scores(asked))

    @pytest.mark.parametrize("n_asked", [2, 3, 5, 64, 65, 100])
    def test_a_user_has_the_same_bits_alone_and_in_any_batch(self, device, n_asked):
        pairs = skewed_log(n_users=700, n=9000)
        model, asked = torch_model_of(by_pair(pairs), device, n_users=700), items_in(pairs)[:n_asked]
        together = model.scores(rows_of(asked))
        for user in range(0, n_asked, 1 + n_asked // 12):
            assert model.scores(rows_of([asked[user]])).tobytes() == together[user].tobytes()

    def test_erasing_pairs_equals_building_from_what_remains(self, device):
        pairs = skewed_log()
        gone = pairs.take(np.arange(0, 900, 9))
        asked = rows_of(items_in(pairs.without(gone)))
        torch_model_of(by_user(pairs), device).scores(asked)
        erased = torch_model_of([part.without(gone) for part in by_user(pairs)], device).scores(asked)
        assert erased.tobytes() == torch_model_of(by_user(pairs.without(gone)), device).scores(asked).tobytes()

    def test_without_pairs_or_users_the_result_is_that_of_the_cpu(self, device):
        assert np.isneginf(torch_model_of([Interactions.none()], device).scores(rows_of([[1]]))).all()
        assert torch_model_of([], device).scores(rows_of([[1]])).shape == (1, N_ITEMS)
        assert torch_model_of([skewed_log()], device).scores(rows_of([])).shape == (0, N_ITEMS)
        with pytest.raises(IndexError):
            torch_model_of([skewed_log()], device).scores(rows_of([[N_ITEMS]]))

    def test_all_data_is_on_the_device(self, device):
        model = torch_model_of(by_user(skewed_log()), device)
        held = [part for own in model.slices for part in (own.users, own.by_user.columns, own.by_item.columns)]
        assert {tensor.device for tensor in (*held, model.users, model.items, model.back)} == {torch_device(device)}
