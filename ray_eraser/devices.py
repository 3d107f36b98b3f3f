"""Where vectors are computed: by compiled loops on the CPU, or by PyTorch on a GPU.

The device is a part of what bits depend on, as thread counts are. All shards of a generation and its aggregate are computed on
one kind, which is recorded with the generation (docs/decisions/0029).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from ray_eraser.errors import DeviceError, DeviceMemoryError

if TYPE_CHECKING:
    import torch

Device = Literal["cpu", "torch-cpu", "cuda"]
"""`cpu`: compiled loops. `cuda`: PyTorch on a GPU. `torch-cpu`: the code for the GPU on the CPU, for rehearsals and tests."""

_CUBLAS_WORKSPACE = ":4096:8"
"""Without a fixed workspace cuBLAS may add in another order from one run to the next."""


_DESCRIBED = ("device", "capability", "cuda", "cublas_workspace")
"""The names that `described` gives."""


def by_torch(device: Device) -> bool:
    """Whether the device computes with PyTorch's kernels."""
    return device != "cpu"


def torch_device(device: Device) -> torch.device:
    """PyTorch's name of a device: of `cuda`, the first GPU that this process sees.

    Raises:
        DeviceError: this process sees no GPU.
    """
    import torch

    if device != "cuda":
        return torch.device("cpu")
    # cuBLAS reads it when CUDA starts in a process.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS_WORKSPACE)
    if not torch.cuda.is_available():
        raise DeviceError(
            "cuda", "this process sees no GPU: check runtime.gpus_per_shard and the driver, or set runtime.device=cpu"
        )
    return torch.device("cuda", 0)


def sees_gpu() -> bool:
    """Whether this process sees a GPU."""
    import torch

    return torch.cuda.is_available()


def described(device: Device) -> dict[str, str]:
    """What bits depend on besides the processor: the kind of device, and of a GPU its name, capability and libraries.

    Raises:
        DeviceError: as for `torch_device`.
    """
    if device != "cuda":
        return {"device": device}
    where = torch_device(device)
    import torch

    major, minor = torch.cuda.get_device_capability(where)
    return {
        "device": torch.cuda.get_device_name(where),
        "capability": f"{major}.{minor}",
        "cuda": str(torch.version.cuda),
        "cublas_workspace": os.environ["CUBLAS_WORKSPACE_CONFIG"],
    }


def named(environment: Mapping[str, str | int]) -> str:
    """A device as sentences name it, given what `described` says of it."""
    name = str(environment.get("device", "cpu"))
    if name == "cpu":
        return "the CPU"
    if name == "torch-cpu":
        return "the CPU, by the GPU's code"
    return f"{name} (compute capability {environment.get('capability')}, CUDA {environment.get('cuda')})"


def check_same(trained_on: Mapping[str, str | int], here: Mapping[str, str | int]) -> None:
    """Refuse to compute on another device than a deployment was trained on.

    Args:
        trained_on: the recorded environment; see `determinism.environment`.
        here: the environment here, or what `described` gives.

    Raises:
        DeviceError: the device, its capability or its libraries differ. Names both.
    """
    if any(trained_on.get(name) != here.get(name) for name in _DESCRIBED):
        raise DeviceError(
            named(trained_on),
            f"the deployment was trained on it, and here is {named(here)}: run this where such a device is, or move the "
            "deployment with repartition.py --set runtime.device=cpu or cuda",
        )


@contextmanager
def computing(device: Device, memory_share: float, what: str) -> Iterator[None]:
    """Run the body within a share of the GPU's memory; afterwards overwrite and give back what it freed.

    Args:
        device: nothing happens on a CPU.
        memory_share: of the GPU's memory, above 0, at most 1.
        what: is computed, for the error.

    Raises:
        DeviceError: as for `torch_device`.
        DeviceMemoryError: the share does not suffice.
    """
    if device != "cuda":
        yield
        return
    where = torch_device(device)
    import torch

    torch.cuda.set_per_process_memory_fraction(min(1.0, memory_share), where)
    torch.cuda.reset_peak_memory_stats(where)
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(what) from error
    finally:
        give_back_memory(device)


def held_memory() -> int:
    """Bytes of GPU memory that PyTorch holds in this process; 0 where it never used a GPU. Imports and starts nothing."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.memory_reserved()) if torch is not None and torch.cuda.is_initialized() else 0


def peak_memory(device: Device) -> int:
    """Bytes of GPU memory that this process has held at most since `computing` began; 0 on a CPU."""
    if device != "cuda":
        return 0
    import torch

    return int(torch.cuda.max_memory_reserved())


def give_back_memory(device: Device) -> None:
    """Overwrite the blocks that PyTorch's allocator caches, and return them to the driver.

    Freed blocks keep their content: vectors and interactions of erased users among it. What the allocator never handed back,
    such as the workspaces inside of cuBLAS, is not reached: see docs/decisions/0012.
    """
    if device != "cuda":
        return
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    torch.cuda.synchronize()
    free = [
        block["size"]
        for segment in torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        for block in segment["blocks"]
        if block["state"] == "inactive"
    ]
    held = []
    for size in sorted(free, reverse=True):
        try:
            held.append(torch.zeros(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:  # the allocator cut its blocks otherwise
            break
    torch.cuda.synchronize()
    held.clear()
    torch.cuda.empty_cache()
