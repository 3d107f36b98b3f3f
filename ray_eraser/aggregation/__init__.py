"""From submodels to one model.

Every aggregator is a function of the submodels, in the order of their shards, and (where it is trained) of the remaining
interactions, the config and a derived seed. Rows that a submodel lacks are masked, never filled with noise.
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
"""The weight of unobserved pairs where nothing that is stored depends on it, so that none was chosen: for the users of an
excision, which is served for seconds."""

GramBlocks = Blocks[Any]
"""Where `make_grams` has them: on the device that aggregates."""

if TYPE_CHECKING:
    from ray_eraser.aggregation.foldin import FoldIn


class Combiner(Protocol):
    """An aggregator of another package, made from its settings; see docs/extend.md. What `combine` gives depends on its
    arguments and the settings alone.
    """

    def combine(self, submodels: Sequence[Embeddings], interactions: Interactions, seed: int, loss: LossName) -> Embeddings:
        """One model of any width.

        Args:
            submodels: every shard's that knows anybody, in order.
            interactions: all that remain to learn from.
            seed: for all that is drawn.
            loss: what the settings ask to lower, where something is learned.
        """
        ...


def needs_interactions(config: EraserConfig) -> bool:
    """Whether `aggregate` looks at the interactions at all, or makes the same of the submodels whatever they are."""
    if not config.model.is_trained:
        return False
    settings = config.aggregation
    learned = not isinstance(settings, AggregationConfig) or settings.kind in ("static", "attention")
    return learned or (settings.foldin and settings.sweeps > 0)


def make_grams(config: EraserConfig) -> GramBlocks:
    """No Gram matrix yet, for many calls of `aggregate`, `excise` and `products` in one process.

    Raises:
        DeviceError: this process sees no GPU, and needs one.
    """
    device = config.runtime.known_device
    if not by_torch(device):
        return Grams()
    from ray_eraser.aggregation.spectral_torch import GramsTorch

    return GramsTorch(torch_device(device))


def products(submodels: Sequence[Embeddings], config: EraserConfig, grams: GramBlocks) -> tuple[np.ndarray, np.ndarray]:
    """The Gram matrices of all submodels that know anybody, users' and items', for `give` of another process.

    Args:
        submodels: every shard's, in order; empty ones are passed over.
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
    """One model from all submodels by the configured aggregator. With fold-in it has items alone: see `folding`.

    Args:
        submodels: every shard's, in order; empty ones are passed over.
        interactions: all that remain to learn from; see `needs_interactions`.
        config: `aggregation`, the fold-in's weights, `seed` and `runtime.threads` count.
        grams: blocks of the submodels' Gram matrices that are there already; gains those that are not.
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
    """Items from the submodels that never saw what is being erased: what is served until the others are trained anew.

    Learned aggregation parameters saw the erased data and are not used: the spectral basis of the submodels that are left,
    on which every user is folded in (`folding`). Where no submodel is left the items start at `start`, which knows no data, and
    one sweep over what remains gives them their places.

    Args:
        submodels: those of the shards that own nothing of what is erased.
        interactions: all that remain, of all shards; looked at where no submodel is left.
        start: item vectors that depend on the root seed alone.
        config: as for `aggregate`.
        grams: as for `aggregate`.
    """
    known = [submodel for submodel in submodels if len(submodel.user_rows)]
    with deterministic(config.runtime.threads, config.runtime.cores):
        if known:
            return _spectral(known, config, grams, with_users=False)
        return _swept(start, interactions, config, sweeps=1)


def folding(model: Embeddings, config: EraserConfig) -> FoldIn:
    """What solves users on a model's items, from their own remaining interactions, whenever they are asked for."""
    from ray_eraser.aggregation.foldin import FoldIn

    als = config.als_settings
    alpha0 = als.known_alpha0 if config.needs_alpha0 else WITHOUT_CHOICE
    return FoldIn(model.item_rows, np.ascontiguousarray(model.items), alpha0, als.reg)


def with_users(model: Embeddings, interactions: Interactions, config: EraserConfig) -> Embeddings:
    """An aggregate as it is served: with the users of these interactions folded in, where the settings say so.

    Args:
        model: of `aggregate`.
        interactions: all that remain of the users in question.
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
    # A ridge in K * D dimensions for every user would cost K^3 times as much: fold in on the best D of them.
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
