"""Aggregation: combine the submodels of all shards into one model.

The result depends only on the submodels, in the order of their shards, the config and a derived seed. Trained aggregators also
use the remaining interactions. Rows that a submodel lacks are masked, never filled with noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from ray_eraser.aggregation.grams import Blocks, Grams
from ray_eraser.config import AggregationConfig, EraserConfig, LossName, extension
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.devices import by_torch, torch_device
from ray_eraser.embeddings import Embeddings
from ray_eraser.seeds import derive

WITHOUT_CHOICE = 0.3
"""The weight of unobserved pairs if no stored result depends on it, so that none was chosen. It is used only to fold users into
an excision, which is served for seconds."""

GramBlocks = Blocks[Any]
"""Gram blocks on the device that aggregates, as `make_grams` returns them."""

if TYPE_CHECKING:
    from ray_eraser.aggregation.foldin import FoldIn


class Combiner(Protocol):
    """An aggregator of another package, made from its settings; see docs/extend.md.

    The result of `combine` must depend only on its arguments and the settings.
    """

    def combine(self, submodels: Sequence[Embeddings], interactions: Interactions, seed: int, loss: LossName) -> Embeddings:
        """Combine submodels into one model of any width.

        Args:
            submodels: the submodels that are not empty, in the order of their shards.
            interactions: all remaining training interactions.
            seed: the seed for all random numbers.
            loss: the loss that learned parameters should minimise.
        """
        ...


def needs_interactions(config: EraserConfig) -> bool:
    """Whether the result of `aggregate` depends on the interactions, and not only on the submodels."""
    if not config.model.is_trained:
        return False
    settings = config.aggregation
    learned = not isinstance(settings, AggregationConfig) or settings.kind in ("static", "attention")
    return learned or (settings.foldin and settings.sweeps > 0)


def make_grams(config: EraserConfig) -> GramBlocks:
    """Make an empty cache of Gram blocks, to be shared by calls of `aggregate`, `excise` and `products` in one process.

    Raises:
        DeviceError: the device is a GPU, and this process sees none.
    """
    device = config.runtime.known_device
    if not by_torch(device):
        return Grams()
    from ray_eraser.aggregation.spectral_torch import GramsTorch

    return GramsTorch(torch_device(device))


def products(submodels: Sequence[Embeddings], config: EraserConfig, grams: GramBlocks) -> tuple[np.ndarray, np.ndarray]:
    """The users' and items' Gram matrices of all submodels that are not empty, to pass to `give` in another process.

    Args:
        submodels: the submodels of all shards, in order; empty ones are skipped.
        config: as for `aggregate`.
        grams: as for `aggregate`.
    """
    from ray_eraser.aggregation.spectral import gram_sides

    known = [submodel for submodel in submodels if len(submodel.user_rows)]
    with deterministic(config.runtime.threads, config.runtime.cores):
        return grams.on_host(gram_sides(known, grams))


def aggregate(
    submodels: Sequence[Embeddings], interactions: Interactions, config: EraserConfig, grams: GramBlocks | None = None
) -> Embeddings:
    """Combine all submodels with the configured aggregator. With fold-in, the result has only items: see `folding`.

    Args:
        submodels: the submodels of all shards, in order; empty ones are skipped.
        interactions: all remaining training interactions; see `needs_interactions`.
        config: uses `aggregation`, the fold-in's weights, `seed` and `runtime.threads`.
        grams: a cache of the submodels' Gram blocks; missing blocks are added.
    """
    known = [submodel for submodel in submodels if len(submodel.user_rows)]
    if not known:
        return Embeddings.empty(config.model.width)
    with deterministic(config.runtime.threads, config.runtime.cores):
        combined = _combine(known, interactions, config, grams)
        return _swept(combined, interactions, config, config.aggregation.sweeps) if config.aggregation.foldin else combined


def excise(
    submodels: Sequence[Embeddings],
    interactions: Interactions,
    start: Embeddings,
    config: EraserConfig,
    grams: GramBlocks | None = None,
) -> Embeddings:
    """Items of the submodels that never saw the data being erased. They are served until the other shards are retrained.

    Learned aggregation parameters saw the erased data and are not used. The items come from the spectral basis of the remaining
    submodels, and every user is folded in on them (`folding`). If no submodel remains, the items start at `start`, which
    depends on no data, and are solved by one sweep over the remaining interactions.

    Args:
        submodels: the submodels of the shards that hold none of the data being erased.
        interactions: all remaining interactions of all shards. They are used only if no submodel remains.
        start: item vectors that depend only on the root seed.
        config: as for `aggregate`.
        grams: as for `aggregate`.
    """
    known = [submodel for submodel in submodels if len(submodel.user_rows)]
    with deterministic(config.runtime.threads, config.runtime.cores):
        if known:
            return _spectral(known, config, grams, with_users=False)
        return _swept(start, interactions, config, sweeps=1)


def folding(model: Embeddings, config: EraserConfig) -> FoldIn:
    """Make a solver that folds users into a model's items on request, from each user's own remaining interactions."""
    from ray_eraser.aggregation.foldin import FoldIn

    als = config.als_settings
    alpha0 = als.known_alpha0 if config.needs_alpha0 else WITHOUT_CHOICE
    return FoldIn(model.item_rows, np.ascontiguousarray(model.items), alpha0, als.reg)


def with_users(model: Embeddings, interactions: Interactions, config: EraserConfig) -> Embeddings:
    """The aggregate as it is served. If the settings use fold-in, the users of these interactions are folded in.

    Args:
        model: the result of `aggregate`.
        interactions: all remaining interactions of these users.
        config: as for `aggregate`.
    """
    if not config.aggregation.foldin:
        return model
    with deterministic(config.runtime.threads, config.runtime.cores):
        return folding(model, config).users(interactions)


def _combine(
    submodels: Sequence[Embeddings], interactions: Interactions, config: EraserConfig, grams: GramBlocks | None
) -> Embeddings:
    settings, seed = config.aggregation, derive(config.seed, "aggregation")
    if not isinstance(settings, AggregationConfig):
        combiner = cast(Combiner, extension(settings)(settings))
        combined = combiner.combine(submodels, interactions, seed, config.aggregation_loss)
        wide = combined.width > config.model.width
        return _spectral([combined], config) if settings.foldin and wide else combined
    if settings.kind == "spectral":
        return _spectral(submodels, config, grams, with_users=not settings.foldin)
    if settings.kind == "mean":
        from ray_eraser.aggregation.mean import mean

        combined = mean(submodels)
    elif settings.kind == "static":
        from ray_eraser.aggregation.static import static

        combined = static(submodels, interactions, settings, seed, config.aggregation_loss)
    else:
        from ray_eraser.aggregation.attention import attention

        device = config.runtime.known_device
        return attention(submodels, interactions, settings, seed, config.aggregation_loss, device)
    if not settings.foldin:
        return combined
    # To solve every user in K * D dimensions would cost K^3 times as much, so fold in on the best D dimensions.
    return _spectral([combined], config)


def _spectral(
    submodels: Sequence[Embeddings], config: EraserConfig, grams: GramBlocks | None = None, *, with_users: bool = True
) -> Embeddings:
    rank, seed = config.model.width, derive(config.seed, "spectral")
    if not by_torch(config.runtime.known_device):
        from ray_eraser.aggregation.spectral import spectral

        return spectral(submodels, rank, seed, grams=grams if isinstance(grams, Grams) else None, with_users=with_users)

    from ray_eraser.aggregation.spectral_torch import GramsTorch, spectral_torch

    if isinstance(grams, GramsTorch):
        return spectral_torch(submodels, rank, seed, grams, with_users=with_users)
    used_once = GramsTorch(torch_device(config.runtime.known_device))
    try:
        return spectral_torch(submodels, rank, seed, used_once, with_users=with_users)
    finally:
        used_once.keep([])


def _swept(model: Embeddings, interactions: Interactions, config: EraserConfig, sweeps: int) -> Embeddings:
    from ray_eraser.aggregation.foldin import sweep

    items = np.ascontiguousarray(model.items)
    als = config.als_settings
    alpha0 = als.known_alpha0 if config.needs_alpha0 else WITHOUT_CHOICE
    return sweep(model.item_rows, items, interactions, alpha0, als.reg, sweeps, device=config.runtime.known_device)
