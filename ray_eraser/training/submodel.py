"""Training one submodel: always from scratch, from three things only.

The shard's remaining interactions, the config, and seeds derived from the root seed and the shard's id. Not from other shards,
from the order of training, or from what was there before: this is what makes an erasure exact (docs/decisions/0002).
"""

from __future__ import annotations

import numpy as np

from ray_eraser.config import EraserConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import TrainingError
from ray_eraser.ids import ShardId
from ray_eraser.models import make_model
from ray_eraser.models.base import Start
from ray_eraser.seeds import derive, normal_rows


def train_submodel(
    train: Interactions, valid: Interactions, item_keys: np.ndarray, config: EraserConfig, shard: ShardId
) -> Embeddings:
    """A shard's submodel.

    Args:
        train: the shard's remaining interactions.
        valid: the shard's remaining held-out interactions, for early stopping.
        item_keys: (I,) keyed hash of every item's raw id; gives each item one start in all shards.
        config: `model`, `seed` and `runtime.threads` count.
        shard: whose seeds to draw from.

    Raises:
        TrainingError: it diverged.
    """
    start = item_start(item_keys[train.item_rows()], config)
    with deterministic(config.runtime.threads):
        submodel = make_model(config.model).fit(train, valid, Start(derive(config.seed, "shard", shard, "train"), start))
    if not (np.isfinite(submodel.users).all() and np.isfinite(submodel.items).all()):
        raise TrainingError(shard, "vectors are not finite, it has diverged: lower model.lr or raise model.reg")
    return submodel


def item_start(keys: np.ndarray, config: EraserConfig) -> np.ndarray:
    """Standard normal vectors, (len(keys), D) float32, the same for an item wherever it is met."""
    return normal_rows(keys, derive(config.seed, "item-start"), config.model.width)
