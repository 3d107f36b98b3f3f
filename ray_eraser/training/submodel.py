"""Training one submodel: from three things only.

The shard's remaining interactions, the config, and seeds derived from the root seed and the shard's id. Not from other shards,
from the order of training, or from what was there before: this is what makes an erasure exact (docs/decisions/0001). A training
with slices may go on from a checkpoint, which is a function of the same three and of slices that have not changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ray_eraser.config import EraserConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import TrainingError
from ray_eraser.ids import ShardId
from ray_eraser.models import make_model
from ray_eraser.models.base import UNTRAINED, Start, TrainingState
from ray_eraser.seeds import derive, normal_rows
from ray_eraser.training.slices import stage_epochs, stage_seed, up_to


def train_submodel(
    train: Interactions,
    valid: Interactions,
    item_keys: np.ndarray,
    config: EraserConfig,
    shard: ShardId,
    slices_U: np.ndarray | None = None,
    reached: TrainingState = UNTRAINED,
    keep: Callable[[TrainingState], None] = lambda _: None,
) -> Embeddings:
    """A shard's submodel.

    Args:
        train: the shard's remaining interactions.
        valid: the shard's remaining held-out interactions, for early stopping.
        item_keys: (I,) keyed hash of every item's raw id; gives each item one start in all shards.
        config: `model`, `training`, `seed` and `runtime.threads` count.
        shard: whose seeds to draw from.
        slices_U: (U,) every user's slice; needed with more than one.
        reached: the state to go on from, after stages that saw nothing which has changed since; from scratch unless given.
        keep: hears of the state after every stage that is trained here but the last.

    Raises:
        TrainingError: it diverged.
    """
    model, last, state = make_model(config.model), config.training.slices - 1, reached
    assert slices_U is not None or not last, "with slices, training needs to know every user's"
    with deterministic(config.runtime.threads, config.runtime.cores):
        for stage in range(reached.stages, config.training.slices):
            seen, held = train, valid
            if slices_U is not None and stage < last:
                seen, held = up_to(train, slices_U, stage), up_to(valid, slices_U, stage)
            if len(seen):
                start = item_start(item_keys[seen.item_rows()], config)
                state = model.train(state, seen, held, Start(stage_seed(config, shard, stage), start), stage_epochs(config))
            state = replace(state, stages=stage + 1)
            if stage < last:
                keep(state)
        submodel = model.embeddings(state, train) if len(train) else Embeddings.empty(config.model.width)
    if not (np.isfinite(submodel.users).all() and np.isfinite(submodel.items).all()):
        raise TrainingError(shard, "vectors are not finite, it has diverged: lower model.lr or raise model.reg")
    return submodel


def item_start(keys: np.ndarray, config: EraserConfig) -> np.ndarray:
    """Standard normal vectors, (len(keys), D) float32, the same for an item wherever it is met."""
    return normal_rows(keys, derive(config.seed, "item-start"), config.model.width)
