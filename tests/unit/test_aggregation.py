from __future__ import annotations

import numpy as np
import pytest
from contracts.aggregator_contract import AggregatorContract, by_user, start_of_items
from contracts.model_contract import checkerboard

from ray_eraser.aggregation import aggregate, excise
from ray_eraser.aggregation.mean import mean, side_by_side
from ray_eraser.aggregation.spectral import spectral
from ray_eraser.config import AggregationConfig, EraserConfig, WmfAlsConfig
from ray_eraser.embeddings import Embeddings


class TestMean(AggregatorContract):
    settings = AggregationConfig(kind="mean")


class TestStatic(AggregatorContract):
    settings = AggregationConfig(kind="static")


class TestAttentionFromTheSpectralBasis(AggregatorContract):
    settings = AggregationConfig(kind="attention", attention_width=3, epochs=10)


class TestAttentionAsInThePaper(AggregatorContract):
    settings = AggregationConfig(kind="attention", init="paper", attention_width=3, epochs=60, lr=0.05, batch=8)


class TestSpectral(AggregatorContract):
    settings = AggregationConfig(kind="spectral")


class TestSpectralWithTwoSweeps(AggregatorContract):
    settings = AggregationConfig(kind="spectral", sweeps=2)


def submodels(width=3):
    rng = np.random.default_rng(0)
    shards = []
    for users, items in ((range(5), range(6)), (range(3, 9), range(2, 9))):
        vectors = [rng.normal(0, 0.5, (len(rows), width)).astype(np.float32) for rows in (users, items)]
        shards.append(Embeddings(np.array(users, np.int32), vectors[0], np.array(items, np.int32), vectors[1]))
    return shards


def config(**settings):
    return EraserConfig(model=WmfAlsConfig(width=3, alpha0=0.3), aggregation=AggregationConfig(**settings))


@pytest.mark.parametrize("kind", ["mean", "static"])
def test_scores_without_fold_in_keep_all_columns_side_by_side(kind):
    assert aggregate(submodels(), checkerboard()[0], config(kind=kind, foldin=False)).width == 6


@pytest.mark.parametrize("kind", ["mean", "static", "attention", "spectral"])
def test_the_fold_in_is_made_in_the_models_own_width(kind):
    assert aggregate(submodels(), checkerboard()[0], config(kind=kind, epochs=1)).width == 3


def test_without_fold_in_the_configured_aggregator_alone_decides():
    shards, pairs = submodels(), checkerboard()[0]
    assert aggregate(shards, pairs, config(kind="mean", foldin=False)).same_bits(mean(shards))
    # The two shards' stack has six columns: no seed is looked at.
    assert aggregate(shards, pairs, config(kind="spectral", foldin=False)).same_bits(spectral(shards, 3, 0))


def test_a_fold_in_with_weights_of_its_own_does_not_take_the_models():
    shards, pairs = submodels(), checkerboard()[0]
    taken = aggregate(shards, pairs, config(sweeps=1))
    said = aggregate(shards, pairs, config(sweeps=1, foldin_alpha0=0.3, foldin_reg=0.007))
    other = aggregate(shards, pairs, config(sweeps=1, foldin_alpha0=0.1, foldin_reg=0.007))
    assert taken.same_bits(said)
    assert not taken.same_bits(other)


def test_excision_from_nothing_depends_on_the_start_and_on_what_remains():
    remaining, _ = checkerboard()
    start = start_of_items(remaining)
    served = excise([], remaining, start, config_of_width(4))
    other = Embeddings(start.user_rows, start.users, start.item_rows, start.items[::-1].copy())
    assert not excise([], remaining, other, config_of_width(4)).same_bits(served)
    assert not excise([], by_user(remaining)[0], start, config_of_width(4)).same_bits(served)


def test_side_by_side_scores_are_the_sum_that_the_spectral_basis_approximates():
    together = side_by_side(submodels())
    full = spectral(submodels(), 6, 0)
    np.testing.assert_allclose(full.users @ full.items.T, together.users @ together.items.T, atol=1e-5)


def config_of_width(width):
    return EraserConfig(model=WmfAlsConfig(width=width, alpha0=0.3))
