"""The base models: one class a file, each from interactions to embeddings. Those of other packages: docs/extend.md."""

from __future__ import annotations

from typing import cast

from ray_eraser.config import BprConfig, LightGcnConfig, ModelSettings, WmfAdagradConfig, WmfAlsConfig, extension
from ray_eraser.models.base import BaseModel


def make_model(config: ModelSettings) -> BaseModel:
    """The base model that the configuration names. The classes are imported late, because they import torch or numba.

    Raises:
        ConfigError: it is of another package, which this process does not have.
    """
    if isinstance(config, WmfAlsConfig):
        from ray_eraser.models.wmf_als import WmfAls

        return WmfAls(config)
    if isinstance(config, BprConfig):
        from ray_eraser.models.bpr import Bpr

        return Bpr(config)
    if isinstance(config, LightGcnConfig):
        from ray_eraser.models.lightgcn import LightGcn

        return LightGcn(config)
    if isinstance(config, WmfAdagradConfig):
        from ray_eraser.models.wmf_adagrad import WmfAdagrad

        return WmfAdagrad(config)
    return cast(BaseModel, extension(config)(config))
