"""Where vectors are computed: by compiled loops on the CPU, or by PyTorch on a GPU.

The device is a part of what bits depend on, as thread counts are. All shards of a generation and its aggregate are computed on
one kind, which is recorded with the generation (docs/decisions/0029).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ray_eraser.errors import DeviceError, DeviceMemoryError

if TYPE_CHECKING:
    import torch

Device = Literal["cpu", "torch-cpu", "cuda"]
"""`cpu`: compiled loops. `cuda`: PyTorch on a GPU. `torch-cpu`: the code for the GPU on the CPU, for rehearsals and tests."""

_CUBLAS_WORKSPACES = (":4096:8", ":16:8")
"""The first is ours. Without a fixed workspace cuBLAS may add in another order from one run to the next."""

_Described = TypeVar("_Described", bound=Mapping[str, Any])


_DESCRIBED = ("device", "capability", "multiprocessors", "cuda", "cublas_workspace")
"""The names that `described` gives."""


def by_torch(device: Device) -> bool:
    """Whether the device computes with PyTorch's kernels."""
    return device != "cpu"


def torch_device(device: Device) -> torch.device:
    """PyTorch's name of a device; for `cuda`, that of the first GPU that this process sees.

    Raises:
        DeviceError: this process sees no GPU, or is set to compute on it without repeatable bits.
    """
    import torch

    if device != "cuda":
        return torch.device("cpu")
    # cuBLAS reads it when CUDA starts in a process.
    if (found := os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS_WORKSPACES[0])) not in _CUBLAS_WORKSPACES:
        ways = " or ".join(_CUBLAS_WORKSPACES)
        raise DeviceError("cuda", f"CUBLAS_WORKSPACE_CONFIG is {found!r}, with which bits are not repeated: set {ways}")
    if not torch.cuda.is_available():
        raise DeviceError(
            "cuda", "this process sees no GPU: check runtime.gpus_per_shard and the driver, or set runtime.device=cpu"
        )
    return torch.device("cuda", 0)


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
        "multiprocessors": str(torch.cuda.get_device_properties(where).multi_processor_count),
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


def same_as(trained_on: Mapping[str, str | int], ask: Callable[[], _Described]) -> _Described:
    """What is found here, which must be the device that a deployment was trained on.

    Args:
        trained_on: as for `check_same`.
        ask: finds it.

    Raises:
        DeviceError: it is another device, or there is none. Names both.
    """
    try:
        here = ask()
    except DeviceError as error:
        raise DeviceError(named(trained_on), f"the deployment was trained on it, and {error.problem}") from error
    check_same(trained_on, here)
    return here


@contextmanager
def computing(device: Device, memory_share: float, what: str) -> Iterator[None]:
    """Run the body within a share of the GPU's memory; afterwards overwrite and give back what it freed.

    Args:
        device: nothing happens on a CPU.
        memory_share: of the GPU's memory, above 0, at most 1.
        what: the computation, as errors name it.

    Raises:
        DeviceError: as for `torch_device`, or the GPU failed.
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
    except RuntimeError as error:
        # The frames of the failed computation hold its tensors, which could not be overwritten.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, torch.OutOfMemoryError):
            raise DeviceMemoryError(what) from None
        if type(error).__name__ == "AcceleratorError":  # this process can compute nothing on the GPU any more
            raise DeviceError(device, f"{what} failed ({str(error).splitlines()[0]}): look at the GPU's health") from None
        raise
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

    Freed blocks keep their content: vectors and interactions of erased users among it. Memory that other libraries of CUDA
    allocate for themselves is not reached: see docs/decisions/0012.
    """
    if device != "cuda":
        return
    import torch

    cuda: Any = torch.cuda
    if not cuda.is_initialized():
        return
    cuda.synchronize()
    # cuBLAS has its workspaces from the same allocator. Nothing public frees them.
    clear_workspaces = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)  # noqa: SLF001
    clear_workspaces()
    for segment in cuda.memory_snapshot():
        for block in segment["blocks"]:
            if block["state"] == "inactive":
                torch.as_tensor(_Block(block["address"], block["size"]), device="cuda").zero_()
    cuda.synchronize()
    cuda.empty_cache()


class _Block:
    """Bytes on the GPU, by their address: nothing is allocated to overwrite them."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {"data": (address, False), "shape": (size,), "typestr": "|u1", "version": 3}
