"""The devices that run PyTorch: the CPU always, a GPU where there is one."""

from __future__ import annotations

import pytest
import torch

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

TORCH_DEVICES = [
    pytest.param("torch-cpu"),
    pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU]),
]
"""For `pytest.mark.parametrize("device", TORCH_DEVICES)`; turn each into a torch.device by `devices.torch_device`."""


def on_gpu(test_class):
    """Marks a subclass of a contract whose `device` is `cuda`. Build its model in a fixture or property: here may be no GPU."""
    return pytest.mark.gpu(NEEDS_GPU(test_class))
