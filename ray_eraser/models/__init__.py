"""The base models, one class per file. A model turns interactions into embeddings. To add your own, see docs/extend.md."""

from __future__ import annotations

from typing import cast

from ray_eraser.config import BprConfig, LightGcnConfig, ModelSettings, WmfAdagradConfig, WmfAlsConfig, extension
from ray_eraser.devices import Device, by_torch, torch_device
from ray_eraser.models.base import BaseModel
from ray_eraser.models.untrained import Untrained


def make_model(config: ModelSettings, device: Device = "cpu") -> BaseModel:
    """Make the base model that the configuration names. The classes are imported late because they import torch or numba.

    A model of another package is made from its settings alone and chooses its own device.

    Raises:
        ConfigError: the model belongs to another package, which this process does not have.
        DeviceError: the device is a GPU, and this process sees none.
    """
    own = Untrained(config) if not config.is_trained else _on_torch(config, device) if by_torch(device) else _on_cpu(config)
    return cast(BaseModel, extension(config)(config)) if own is None else own


def _on_cpu(config: ModelSettings) -> BaseModel | None:
    """The model in compiled loops; None for a model of another package."""
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
    return None


def _on_torch(config: ModelSettings, device: Device) -> BaseModel | None:
    """The model in PyTorch; None for a model of another package."""
    where = torch_device(device)
    if isinstance(config, WmfAlsConfig):
        from ray_eraser.models.wmf_als_torch import WmfAlsTorch

        return WmfAlsTorch(config, where)
    if isinstance(config, BprConfig):
        from ray_eraser.models.bpr_torch import BprTorch

        return BprTorch(config, where)
    if isinstance(config, LightGcnConfig):
        from ray_eraser.models.lightgcn_torch import LightGcnTorch

        return LightGcnTorch(config, where)
    if isinstance(config, WmfAdagradConfig):
        from ray_eraser.models.wmf_adagrad_torch import WmfAdagradTorch

        return WmfAdagradTorch(config, where)
    return None
