from __future__ import annotations

import numpy as np
import pytest
from torch_devices import TORCH_DEVICES, on_gpu

from ray_eraser.aggregation import aggregate, excise, make_grams, products, spectral_torch
from ray_eraser.aggregation.mean import mean, side_by_side
from ray_eraser.aggregation.spectral import spectral
from ray_eraser.config import AggregationConfig, EraserConfig, RuntimeConfig, WmfAlsConfig
from ray_eraser.embeddings import Embeddings
from ray_eraser.testing.aggregator_contract import AggregatorContract, by_user, start_of_items
from ray_eraser.testing.model_contract import checkerboard


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


class TestMeanTorch(TestMean):
    device = "torch-cpu"


class TestAttentionTorch(AggregatorContract):
    settings = AggregationConfig(kind="attention", attention_width=3, epochs=4)
    device = "torch-cpu"


class TestSpectralTorch(TestSpectral):
    device = "torch-cpu"


@on_gpu
class TestMeanOnAGpu(TestMean):
    device = "cuda"


@on_gpu
class TestStaticOnAGpu(TestStatic):
    device = "cuda"


@on_gpu
class TestAttentionFromTheSpectralBasisOnAGpu(TestAttentionFromTheSpectralBasis):
    device = "cuda"


@on_gpu
class TestAttentionAsInThePaperOnAGpu(TestAttentionAsInThePaper):
    device = "cuda"


@on_gpu
class TestSpectralOnAGpu(TestSpectral):
    device = "cuda"


def submodels(width=3):
    rng = np.random.default_rng(0)
    shards = []
    for users, items in ((range(5), range(6)), (range(3, 9), range(2, 9))):
        vectors = [rng.normal(0, 0.5, (len(rows), width)).astype(np.float32) for rows in (users, items)]
        shards.append(Embeddings(np.array(users, np.int32), vectors[0], np.array(items, np.int32), vectors[1]))
    return shards


def config(device="cpu", **settings):
    model, runtime = WmfAlsConfig(width=3, alpha0=0.3), RuntimeConfig(device=device)
    return EraserConfig(model=model, aggregation=AggregationConfig(**settings), runtime=runtime)


@pytest.mark.parametrize("kind", ["mean", "static"])
def test_without_fold_in_all_columns_are_kept(kind):
    assert aggregate(submodels(), checkerboard()[0], config(kind=kind, foldin=False)).width == 6


@pytest.mark.parametrize("kind", ["mean", "static", "attention", "spectral"])
def test_the_fold_in_has_the_models_width(kind):
    assert aggregate(submodels(), checkerboard()[0], config(kind=kind, epochs=1)).width == 3


def test_without_fold_in_the_result_is_that_of_the_configured_aggregator():
    shards, pairs = submodels(), checkerboard()[0]
    assert aggregate(shards, pairs, config(kind="mean", foldin=False)).same_bits(mean(shards))
    # The tables of both shards have six columns together, so no seed is used.
    assert aggregate(shards, pairs, config(kind="spectral", foldin=False)).same_bits(spectral(shards, 3, 0))


def test_a_fold_in_with_its_own_weights_does_not_use_the_models():
    shards, pairs = submodels(), checkerboard()[0]
    taken = aggregate(shards, pairs, config(sweeps=1))
    said = aggregate(shards, pairs, config(sweeps=1, foldin_alpha0=0.3, foldin_reg=0.007))
    other = aggregate(shards, pairs, config(sweeps=1, foldin_alpha0=0.1, foldin_reg=0.007))
    assert taken.same_bits(said)
    assert not taken.same_bits(other)


def test_an_excision_without_submodels_depends_on_the_start_and_the_remaining_data():
    remaining, _ = checkerboard()
    start = start_of_items(remaining)
    served = excise([], remaining, start, config_of_width(4))
    other = Embeddings(start.user_rows, start.users, start.item_rows, start.items[::-1].copy())
    assert not excise([], remaining, other, config_of_width(4)).same_bits(served)
    assert not excise([], by_user(remaining)[0], start, config_of_width(4)).same_bits(served)


def test_concatenated_tables_score_the_sum_that_the_spectral_basis_approximates():
    together = side_by_side(submodels())
    full = spectral(submodels(), 6, 0)
    np.testing.assert_allclose(full.users @ full.items.T, together.users @ together.items.T, atol=1e-5)


def config_of_width(width):
    return EraserConfig(model=WmfAlsConfig(width=width, alpha0=0.3))


@pytest.mark.parametrize("device", TORCH_DEVICES)
@pytest.mark.parametrize("kind", ["mean", "static", "attention", "spectral"])
@pytest.mark.parametrize("foldin", [True, False])
def test_a_torch_device_gives_the_scores_of_the_cpu(device, kind, foldin):
    shards, pairs = submodels(), checkerboard()[0]
    here, there = (
        aggregate(shards, pairs, config(where, kind=kind, foldin=foldin, epochs=2, attention_width=2))
        for where in ("cpu", device)
    )
    assert there.user_rows.tolist() == here.user_rows.tolist()
    assert there.item_rows.tolist() == here.item_rows.tolist()
    # Signs and rotations are arbitrary. With fold-in there are only items, whose inner products do not depend on them.
    scores_here, scores_there = (
        model.items @ model.items.T if foldin else model.users @ model.items.T for model in (here, there)
    )
    np.testing.assert_allclose(scores_there, scores_here, atol=1e-4 * abs(scores_here).max())


@pytest.mark.parametrize("device", ["cpu", *TORCH_DEVICES])
def test_cached_gram_matrices_change_no_bit(device):
    shards, nobody, settings = submodels(), Embeddings.empty(3), config(device)
    alone = aggregate(shards, checkerboard()[0], settings)
    grams, given = make_grams(settings), make_grams(settings)
    given.give(shards, products([shards[0], nobody, shards[1]], settings, grams))
    for known in (grams, given, grams):
        assert aggregate(shards, checkerboard()[0], settings, known).same_bits(alone)
        assert excise(shards[:1], checkerboard()[0], nobody, settings, known).same_bits(
            excise(shards[:1], checkerboard()[0], nobody, settings)
        )


@pytest.mark.parametrize("device", TORCH_DEVICES)
def test_tables_uploaded_for_one_aggregation_are_overwritten_afterwards(device, monkeypatch):
    uploaded = []

    class Watched(spectral_torch.GramsTorch):
        def uploaded(self, array):
            uploaded.append(super().uploaded(array))
            return uploaded[-1]

    monkeypatch.setattr(spectral_torch, "GramsTorch", Watched)
    shards = submodels()
    before = [shard.items.copy() for shard in shards]
    aggregate(shards, checkerboard()[0], config(device))
    assert uploaded
    assert not any(tensor.any() for tensor in uploaded)
    assert all((shard.items == then).all() for shard, then in zip(shards, before, strict=True))
