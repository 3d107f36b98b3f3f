"""Embeddings of the whole log, from which a learned partition computes distances (Chen et al. 2022, section 4.1)."""

from __future__ import annotations

import numpy as np

from ray_eraser.config import EraserConfig
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.embeddings import Embeddings
from ray_eraser.models import make_model
from ray_eraser.models.base import Start
from ray_eraser.seeds import derive
from ray_eraser.training.submodel import item_start


def pretrain(train: Interactions, item_keys: np.ndarray, config: EraserConfig) -> Embeddings:
    """Train WMF with ALS on all data, with the model's width. The result is discarded after the partition is made."""
    settings = config.als_settings.model_copy(update={"epochs": config.partition.pretrain_epochs})
    start = Start(derive(config.seed, "pretrain"), item_start(item_keys[train.item_rows()], config))
    with deterministic(config.runtime.threads):
        return make_model(settings).fit(train, Interactions.none(), start)
