"""Train one submodel.

A submodel depends only on the shard's remaining interactions, the config, and seeds derived from the root seed and the shard's
id. It does not depend on other shards, on the order of training, or on earlier submodels. This makes erasures exact
(docs/decisions/0001). With slices, training may continue from a checkpoint of unchanged slices, which depends on the same
inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ray_eraser.config import EraserConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import ShardData
from ray_eraser.determinism import deterministic
from ray_eraser.devices import by_torch
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.errors import TrainingError
from ray_eraser.ids import ShardId
from ray_eraser.models import make_model
from ray_eraser.models.base import UNTRAINED, BaseModel, Start, TrainingState
from ray_eraser.seeds import derive, normal_rows
from ray_eraser.training.slices import slices_of_keys, stage_epochs, stage_seed, up_to


def train_submodel(
    data: ShardData,
    config: EraserConfig,
    shard: ShardId,
    reached: TrainingState = UNTRAINED,
    keep: Callable[[TrainingState], None] = lambda _: None,
) -> KeyedEmbeddings:
    """Train the submodel of a shard.

    Args:
        data: the shard's remaining interactions. Held-out interactions are used only for early stopping.
        config: uses `model`, `training`, `seed` and `runtime`.
        shard: the shard, which seeds are derived from.
        reached: the state to continue from, after stages whose data has not changed since. By default, train from scratch.
        keep: called with the state after every stage trained here, except the last.

    Both states are in the shard's rows: see `TrainingState.renamed`.

    Raises:
        TrainingError: the training diverged.
    """
    train = data.train
    if not config.model.is_trained:
        return KeyedEmbeddings.empty(config.model.width)
    if not len(train):
        for stage in range(reached.stages, config.training.slices - 1):
            keep(TrainingState(stages=stage + 1))
        return KeyedEmbeddings.empty(config.model.width)
    model = make_model(config.model, config.runtime.known_device)
    try:
        with deterministic(config.runtime.threads, config.runtime.cores):
            state = _trained(model, data, config, shard, reached, keep)
            submodel = model.embeddings(state, train)
    finally:
        _release(train, config)
    if not (np.isfinite(submodel.users).all() and np.isfinite(submodel.items).all()):
        raise TrainingError(shard, f"vectors are not finite, because the training diverged: {_way_out(config)}")
    return submodel.keyed(data.user_keys, data.item_keys)


def _trained(
    model: BaseModel,
    data: ShardData,
    config: EraserConfig,
    shard: ShardId,
    state: TrainingState,
    keep: Callable[[TrainingState], None],
) -> TrainingState:
    """The state after the last stage."""
    last = config.training.slices - 1
    slices_U = slices_of_keys(data.user_keys, config) if last else None
    for stage in range(state.stages, last + 1):
        seen, held = data.train, data.valid
        if slices_U is not None and stage < last:
            seen, held = up_to(seen, slices_U, stage), up_to(held, slices_U, stage)
        if len(seen):
            start = item_start(data.item_keys[seen.item_rows()], config)
            state = model.train(state, seen, held, Start(stage_seed(config, shard, stage), start), stage_epochs(config))
            if seen is not data.train:
                _release(seen, config)
        state = replace(state, stages=stage + 1)
        if stage < last:
            keep(state)
    return state


def _release(interactions: Interactions, config: EraserConfig) -> None:
    """Remove the interactions from the GPU, if there is one."""
    if by_torch(config.runtime.known_device):
        from ray_eraser.kernels.resident import release

        release(interactions)


def _way_out(config: EraserConfig) -> str:
    """Advice on how to change the model's settings to stabilise its training."""
    ways = [f"{way} model.{name}" for way, name in (("lower", "lr"), ("raise", "reg")) if hasattr(config.model, name)]
    return " or ".join(ways) or "choose other settings of the model"


def item_start(keys: np.ndarray, config: EraserConfig) -> np.ndarray:
    """Standard normal vectors, (len(keys), D) float32. An item has the same vector in every shard."""
    return normal_rows(keys, derive(config.seed, "item-start"), config.model.width)
