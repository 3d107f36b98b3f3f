"""The base models: one class a file, each from interactions to embeddings."""

from __future__ import annotations

from ray_eraser.config import BprConfig, LightGcnConfig, ModelConfig, WmfAlsConfig
from ray_eraser.models.base import BaseModel


def make_model(config: ModelConfig) -> BaseModel:
    """The base model that the configuration names. The classes are imported late, because they import torch or numba."""
    if isinstance(config, WmfAlsConfig):
        from ray_eraser.models.wmf_als import WmfAls

        return WmfAls(config)
    if isinstance(config, BprConfig):
        from ray_eraser.models.bpr import Bpr

        return Bpr(config)
    if isinstance(config, LightGcnConfig):
        from ray_eraser.models.lightgcn import LightGcn

        return LightGcn(config)
    from ray_eraser.models.wmf_adagrad import WmfAdagrad

    return WmfAdagrad(config)
