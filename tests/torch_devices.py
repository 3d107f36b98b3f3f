"""The devices that run PyTorch: always the CPU, and a GPU if there is one."""

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
    """Mark a subclass of a contract whose `device` is `cuda`. Build its model in a fixture, because there may be no GPU."""
    return pytest.mark.gpu(NEEDS_GPU(test_class))
