"""The device that computes vectors: the CPU with compiled loops, or a GPU with PyTorch.

Like thread counts, the device affects the bits. All shards of a generation and its aggregate are computed on one kind of
device, which is recorded with the generation (docs/decisions/0029).
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
"""`cpu`: compiled loops. `cuda`: PyTorch on a GPU. `torch-cpu`: the GPU code on the CPU, for rehearsals and tests."""

_CUBLAS_WORKSPACES = (":4096:8", ":16:8")
"""The accepted settings; the first is the default. Without a fixed workspace, the order in which cuBLAS adds may vary."""

_Described = TypeVar("_Described", bound=Mapping[str, Any])


_DESCRIBED = ("device", "capability", "multiprocessors", "cuda", "cublas_workspace")
"""The keys that `described` returns."""


def by_torch(device: Device) -> bool:
    """Whether the device uses PyTorch's kernels."""
    return device != "cpu"


def torch_device(device: Device) -> torch.device:
    """The PyTorch device; for `cuda`, the first GPU that this process sees.

    Raises:
        DeviceError: this process sees no GPU, or its cuBLAS setting does not give repeatable bits.
    """
    import torch

    if device != "cuda":
        return torch.device("cpu")
    # cuBLAS reads this variable when CUDA starts in a process.
    if (found := os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS_WORKSPACES[0])) not in _CUBLAS_WORKSPACES:
        ways = " or ".join(_CUBLAS_WORKSPACES)
        raise DeviceError("cuda", f"CUBLAS_WORKSPACE_CONFIG is {found!r}, which does not give repeatable bits: set {ways}")
    if not torch.cuda.is_available():
        raise DeviceError(
            "cuda", "this process sees no GPU: check runtime.gpus_per_shard and the driver, or set runtime.device=cpu"
        )
    return torch.device("cuda", 0)


def described(device: Device) -> dict[str, str]:
    """The device as far as bits depend on it: its kind, and for a GPU its name, capability and libraries.

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
    """The name of a device for use in sentences, given the result of `described`."""
    name = str(environment.get("device", "cpu"))
    if name == "cpu":
        return "the CPU"
    if name == "torch-cpu":
        return "the CPU with the GPU code"
    return f"{name} (compute capability {environment.get('capability')}, CUDA {environment.get('cuda')})"


def check_same(trained_on: Mapping[str, str | int], here: Mapping[str, str | int]) -> None:
    """Refuse to compute on another device than a deployment was trained on.

    Args:
        trained_on: the recorded environment; see `determinism.environment`.
        here: the environment of this process, or the result of `described`.

    Raises:
        DeviceError: the device, its capability or its libraries differ. The error names both devices.
    """
    if any(trained_on.get(name) != here.get(name) for name in _DESCRIBED):
        raise DeviceError(
            named(trained_on),
            f"the deployment was trained on it, but this process has {named(here)}: run it on the same device, or move the "
            "deployment with ray-eraser repartition --set runtime.device=cpu or cuda",
        )


def same_as(trained_on: Mapping[str, str | int], ask: Callable[[], _Described]) -> _Described:
    """Return the environment of this process if it is the one that a deployment was trained on.

    Args:
        trained_on: as for `check_same`.
        ask: finds the environment.

    Raises:
        DeviceError: the device is another one, or there is none. The error names both devices.
    """
    try:
        here = ask()
    except DeviceError as error:
        raise DeviceError(named(trained_on), f"the deployment was trained on it, but {error.problem}") from error
    check_same(trained_on, here)
    return here


@contextmanager
def computing(device: Device, memory_share: float, what: str) -> Iterator[None]:
    """Run the body within a share of the GPU's memory. Afterwards, overwrite the freed memory and return it to the driver.

    Args:
        device: the device; on a CPU, only the body runs.
        memory_share: the share of the GPU's memory, above 0 and at most 1.
        what: the name of the computation in error messages.

    Raises:
        DeviceError: as for `torch_device`, or the GPU failed.
        DeviceMemoryError: the computation needs more memory than its share.
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
        # The frames of the failed computation keep its tensors alive, so that they could not be overwritten.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, torch.OutOfMemoryError):
            raise DeviceMemoryError(what) from None
        if type(error).__name__ == "AcceleratorError":  # the process can no longer use the GPU
            raise DeviceError(device, f"{what} failed ({str(error).splitlines()[0]}): check the GPU's health") from None
        raise
    finally:
        give_back_memory(device)


def held_memory() -> int:
    """Bytes of GPU memory that PyTorch holds in this process; 0 if it never used a GPU. Does not import torch or start CUDA."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.memory_reserved()) if torch is not None and torch.cuda.is_initialized() else 0


def peak_memory(device: Device) -> int:
    """The peak of GPU memory in bytes that this process has held since `computing` began; 0 on a CPU."""
    if device != "cuda":
        return 0
    import torch

    return int(torch.cuda.max_memory_reserved())


def give_back_memory(device: Device) -> None:
    """Overwrite the blocks that PyTorch's allocator caches, and return them to the driver.

    Freed blocks keep their content, which may include vectors and interactions of erased users. Memory that other CUDA
    libraries allocate for themselves is not overwritten: see docs/decisions/0012.
    """
    if device != "cuda":
        return
    import torch

    cuda: Any = torch.cuda
    if not cuda.is_initialized():
        return
    cuda.synchronize()
    # cuBLAS takes its workspaces from the same allocator, and no public function frees them.
    clear_workspaces = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)  # noqa: SLF001
    clear_workspaces()
    for segment in cuda.memory_snapshot():
        for block in segment["blocks"]:
            if block["state"] == "inactive":
                torch.as_tensor(_Block(block["address"], block["size"]), device="cuda").zero_()
    cuda.synchronize()
    cuda.empty_cache()


class _Block:
    """Bytes on the GPU by address, so that they can be overwritten without an allocation."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {"data": (address, False), "shape": (size,), "typestr": "|u1", "version": 3}
