"""From submodels to one model.

Every aggregator is a function of the submodels, in the order of their shards, and (where it is trained) of the remaining
interactions, the config and a derived seed. Rows that a submodel lacks are masked, never filled with noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np

from ray_eraser.config import AggregationConfig, EraserConfig, LossName, extension
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.embeddings import Embeddings
from ray_eraser.seeds import derive


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


def aggregate(submodels: Sequence[Embeddings], interactions: Interactions, config: EraserConfig) -> Embeddings:
    """One model from all submodels by the configured aggregator, and the fold-in after it.

    Args:
        submodels: every shard's, in order; empty ones are passed over.
        interactions: all that remain to learn from.
        config: `aggregation`, the fold-in's weights, `seed` and `runtime.threads` count.
    """
    known = [submodel for submodel in submodels if len(submodel.user_rows)]
    if not known:
        return Embeddings.empty(config.model.width)
    with deterministic(config.runtime.threads):
        combined = _combine(known, interactions, config)
        return _folded(combined, interactions, config, config.aggregation.sweeps) if config.aggregation.foldin else combined


def excise(submodels: Sequence[Embeddings], interactions: Interactions, start: Embeddings, config: EraserConfig) -> Embeddings:
    """One model from the submodels that never saw what is being erased: what is served until the others are trained anew.

    Learned aggregation parameters saw the erased data and are not used: the spectral basis of the submodels that are left,
    every user folded in on what remains. Where no submodel is left the items start at `start`, which knows no data, and one
    sweep over what remains gives them their places.

    Args:
        submodels: those of the shards that own nothing of what is erased.
        interactions: all that remain, of all shards.
        start: item vectors that depend on the root seed alone.
        config: as for `aggregate`.
    """
    known = [submodel for submodel in submodels if len(submodel.user_rows)]
    with deterministic(config.runtime.threads):
        if known:
            return _folded(_spectral(known, config), interactions, config, sweeps=0)
        return _folded(start, interactions, config, sweeps=1)


def _combine(submodels: Sequence[Embeddings], interactions: Interactions, config: EraserConfig) -> Embeddings:
    settings, seed = config.aggregation, derive(config.seed, "aggregation")
    if not isinstance(settings, AggregationConfig):
        combiner = cast(Combiner, extension(settings)(settings))
        combined = combiner.combine(submodels, interactions, seed, config.aggregation_loss)
        wide = combined.width > config.model.width
        return _spectral([combined], config) if settings.foldin and wide else combined
    if settings.kind == "spectral":
        return _spectral(submodels, config)
    if settings.kind == "mean":
        from ray_eraser.aggregation.mean import mean

        combined = mean(submodels)
    elif settings.kind == "static":
        from ray_eraser.aggregation.static import static

        combined = static(submodels, interactions, settings, seed, config.aggregation_loss)
    else:
        from ray_eraser.aggregation.attention import attention

        return attention(submodels, interactions, settings, seed, config.aggregation_loss)
    if not settings.foldin:
        return combined
    # A ridge in K * D dimensions for every user would cost K^3 times as much: fold in on the best D of them.
    return _spectral([combined], config)


def _spectral(submodels: Sequence[Embeddings], config: EraserConfig) -> Embeddings:
    from ray_eraser.aggregation.spectral import spectral

    return spectral(submodels, config.model.width, derive(config.seed, "spectral"))


def _folded(model: Embeddings, interactions: Interactions, config: EraserConfig, sweeps: int) -> Embeddings:
    from ray_eraser.aggregation.foldin import fold_in

    items = np.ascontiguousarray(model.items)
    als = config.als_settings
    return fold_in(model.item_rows, items, interactions, als.known_alpha0, als.reg, sweeps)
