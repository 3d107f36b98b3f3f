from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_devices import TORCH_DEVICES

from ray_eraser.aggregation import spectral as on_cpu
from ray_eraser.aggregation import spectral_torch as module
from ray_eraser.aggregation.grams import Grams
from ray_eraser.aggregation.spectral import spectral
from ray_eraser.aggregation.spectral_torch import GramsTorch, spectral_torch
from ray_eraser.determinism import deterministic
from ray_eraser.devices import torch_device
from ray_eraser.embeddings import Embeddings

U, I = 60, 50


@pytest.fixture(params=TORCH_DEVICES)
def device(request):
    with deterministic(1):
        yield torch_device(request.param)


def some_submodels(n=4, width=3, *, shares_users=True):
    """Submodels that each know a random part of the users and items, with vectors of the same few tastes."""
    rng = np.random.default_rng(n)
    tastes = [rng.standard_normal((count, 8)) for count in (U, I)]
    submodels = []
    for k in range(n):
        rows = [np.flatnonzero(rng.random(count) < share).astype(np.int32) for count, share in ((U, 0.4), (I, 0.6))]
        turned = rng.standard_normal((8, width))
        users, items = (
            (taste[known] @ turned / 8 + rng.normal(0, 0.1, (len(known), width))).astype(np.float32)
            for taste, known in zip(tastes, rows, strict=True)
        )
        submodels.append(Embeddings(rows[0] + (0 if shares_users else np.int32(U * k)), users, rows[1], items))
    return submodels


def louder(submodel):
    return Embeddings(submodel.user_rows, submodel.users * np.float32(2), submodel.item_rows, submodel.items + np.float32(1))


def agrees(there, here, tolerance):
    """Compare scores relative to the largest one, because signs and rotations of the vectors are arbitrary."""
    assert there.user_rows.tolist() == here.user_rows.tolist()
    assert there.item_rows.tolist() == here.item_rows.tolist()
    for vectors in (there.users, there.items):
        assert vectors.dtype == np.float32
        assert vectors.flags.c_contiguous
    here_UI, there_UI = here.users @ here.items.T, there.users @ there.items.T
    np.testing.assert_allclose(there_UI, here_UI, atol=tolerance * abs(here_UI).max(initial=0))


def counted(monkeypatch):
    """Count the blocks that are multiplied, of users and of items."""
    calls, product = [], module._product
    monkeypatch.setattr(module, "_product", lambda *args: calls.append(args) or product(*args))
    return calls


@pytest.mark.parametrize("shares_users", [True, False])
@pytest.mark.parametrize("rank", [2, 5, 12, 15])
def test_a_narrow_stack_gets_the_scores_of_the_cpu(device, shares_users, rank):
    submodels = some_submodels(shares_users=shares_users)
    agrees(spectral_torch(submodels, rank, 0, GramsTorch(device)), spectral(submodels, rank, 0), 1e-5)


@pytest.mark.parametrize("shares_users", [True, False])
@pytest.mark.parametrize("rank", [4, 70])
def test_a_wide_stack_gets_the_scores_of_the_cpu(device, shares_users, rank):
    submodels = some_submodels(10, 30, shares_users=shares_users)
    agrees(spectral_torch(submodels, rank, 7, GramsTorch(device)), spectral(submodels, rank, 7), 1e-4)


@pytest.mark.parametrize("widths", [(3, 5, 1), (150, 20, 130)])
def test_submodels_may_differ_in_width(device, widths):
    submodels = [some_submodels(2, width)[k % 2] for k, width in enumerate(widths)]
    agrees(spectral_torch(submodels, 6, 0, GramsTorch(device)), spectral(submodels, 6, 0), 1e-4)


@pytest.mark.parametrize("exact_up_to", [256, 0])
@pytest.mark.parametrize("scale", [1e-12, 1, 1e12])
def test_very_small_and_very_large_vectors_and_empty_submodels_keep_their_scores(monkeypatch, device, exact_up_to, scale):
    monkeypatch.setattr(on_cpu, "_EXACT_UP_TO", exact_up_to)
    submodels = [Embeddings(one.user_rows, one.users * np.float32(scale), one.item_rows, one.items) for one in some_submodels()]
    submodels.insert(1, Embeddings.empty(3))
    agrees(spectral_torch(submodels, 12, 0, GramsTorch(device)), spectral(submodels, 12, 0), 1e-4)


@pytest.mark.parametrize("exact_up_to", [256, 0])
def test_a_stack_of_lower_rank_and_one_of_zeros_leave_zero_columns(monkeypatch, device, exact_up_to):
    monkeypatch.setattr(on_cpu, "_EXACT_UP_TO", exact_up_to)
    only = some_submodels(1, 2)[0]
    model = spectral_torch([only, only], 5, 0, GramsTorch(device))
    assert model.users[:, :2].any(0).all()
    assert not model.users[:, 2:].any()
    assert not model.items[:, 2:].any()
    zeros = Embeddings(only.user_rows, only.users * 0, only.item_rows, only.items * 0)
    model = spectral_torch([zeros, zeros], 3, 0, GramsTorch(device))
    assert not model.users.any()
    assert not model.items.any()


def test_without_a_submodel_the_result_is_empty_and_items_do_not_depend_on_users(device):
    assert spectral_torch([], 3, 0, GramsTorch(device)).same_bits(Embeddings.empty(3))
    both = spectral_torch(some_submodels(), 4, 0, GramsTorch(device))
    alone = spectral_torch(some_submodels(), 4, 0, GramsTorch(device), with_users=False)
    assert alone.same_bits(Embeddings(both.user_rows[:0], both.users[:0], both.item_rows, both.items))


@pytest.mark.parametrize("shares_users", [True, False])
@pytest.mark.parametrize(("precision", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_gram_matrices_equal_those_of_the_cpu(device, shares_users, precision, tolerance):
    submodels = [*some_submodels(shares_users=shares_users), Embeddings.empty(3)]
    grams = GramsTorch(device)
    for here, there in zip(Grams().sides(submodels, precision), grams.on_host(grams.sides(submodels, precision)), strict=True):
        assert there.dtype == precision
        assert there.shape == here.shape
        np.testing.assert_allclose(there, here, atol=tolerance * abs(here).max())


def test_tables_that_are_multiplied_and_summed_in_parts_give_the_same_scores(device, monkeypatch):
    whole = spectral_torch(some_submodels(), 5, 0, GramsTorch(device))
    monkeypatch.setattr(module, "_GATHERED", 3 * 4)
    monkeypatch.setattr(module, "_SUMMED", 5 * 7)
    agrees(spectral_torch(some_submodels(), 5, 0, GramsTorch(device)), whole, 1e-5)


@pytest.mark.parametrize("width", [3, 70])
def test_only_the_blocks_of_a_changed_submodel_are_computed_again(device, monkeypatch, width):
    submodels, grams = some_submodels(4, width), GramsTorch(device)
    spectral_torch(submodels, 5, 1, grams)
    calls = counted(monkeypatch)
    assert spectral_torch(submodels, 5, 1, grams).same_bits(spectral_torch(submodels, 5, 1, grams))
    assert not calls
    submodels[2] = louder(submodels[2])
    grams.keep(submodels)
    kept = spectral_torch(submodels, 5, 1, grams)
    assert len(calls) == 2 * 4  # of users and of items: with itself and with three others
    assert kept.same_bits(spectral_torch(submodels, 5, 1, GramsTorch(device)))
    assert spectral_torch(submodels[1:], 5, 1, grams).same_bits(spectral_torch(submodels[1:], 5, 1, GramsTorch(device)))


def test_superseded_tables_and_blocks_are_overwritten_and_others_stay(device):
    submodels, grams = some_submodels(3), GramsTorch(device)
    before = [{name: array.copy() for name, array in one.arrays().items()} for one in submodels]
    grams.sides(submodels)
    gone, stays = submodels[1], submodels[0]
    uploaded = [grams.uploaded(array) for array in (gone.users, gone.items)]
    blocks = [block for key, pair in grams._blocks.items() if id(gone.users) in (key[0][0], key[1][0]) for block in pair]
    assert len(blocks) == 2 * 3
    grams.keep([submodels[0], submodels[2]])
    assert not any(tensor.any() for tensor in [*uploaded, *blocks])
    assert id(gone.users) not in grams._uploaded
    assert grams.uploaded(stays.items).cpu().numpy().tolist() == stays.items.tolist()
    # Only the copy was overwritten, not the submodel itself.
    for one, arrays in zip(submodels, before, strict=True):
        assert all((array == arrays[name]).all() for name, array in one.arrays().items())


def test_tables_stay_on_the_device_when_all_rows_are_renumbered(device, monkeypatch):
    submodels, grams = some_submodels(3), GramsTorch(device)
    first = spectral_torch(submodels, 4, 1, grams)
    calls, tables = counted(monkeypatch), [grams.uploaded(one.items) for one in submodels]
    moved = [Embeddings(one.user_rows * 2 + 5, one.users, one.item_rows * 3, one.items) for one in submodels]
    grams.keep(moved)
    model = spectral_torch(moved, 4, 1, grams)
    assert (model.users.tobytes(), model.items.tobytes()) == (first.users.tobytes(), first.items.tobytes())
    assert not calls
    assert all(grams.uploaded(one.items) is table and table.any() for one, table in zip(moved, tables, strict=True))


@pytest.mark.parametrize("shares_users", [True, False])
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_blocks_taken_over_equal_blocks_computed_here(device, monkeypatch, shares_users, precision):
    submodels = [*some_submodels(shares_users=shares_users), Embeddings.empty(3)]
    here, given = GramsTorch(device), GramsTorch(device)
    given.give(submodels, here.on_host(here.sides(submodels, precision)))
    calls = counted(monkeypatch)
    for some in (submodels, submodels[1:], [submodels[0], submodels[3]]):
        for mine, theirs in zip(given.sides(some, precision), here.sides(some, precision), strict=True):
            assert torch.equal(mine, theirs)
    assert not calls
