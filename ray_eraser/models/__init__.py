"""The base models: one class a file, each from interactions to embeddings."""

from __future__ import annotations

from ray_eraser.config import ModelConfig, WmfAlsConfig
from ray_eraser.models.base import BaseModel


def make_model(config: ModelConfig) -> BaseModel:
    """The base model that the configuration names. The classes are imported late, because they import torch."""
    if isinstance(config, WmfAlsConfig):
        from ray_eraser.models.wmf_als import WmfAls

        return WmfAls(config)
    from ray_eraser.models.wmf_adagrad import WmfAdagrad

    return WmfAdagrad(config)
