"""Conditions under which the same input gives the same bits.

Thread counts change the order of sums inside matrix products and eigensolvers. Some torch kernels add in any order by default.
Denormals slow Adagrad several-fold. Every computation whose bits matter runs inside `deterministic`, which controls all three.
"""

from __future__ import annotations

import platform
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from importlib.metadata import version

import numpy as np
import scipy
import scipy.linalg  # loads its own BLAS now, because a BLAS that is loaded later would not be limited
from threadpoolctl import threadpool_limits

from ray_eraser.devices import Device, described

_ONE_AT_A_TIME = threading.RLock()
"""Thread counts and kernel modes are global in a process, so only one thread at a time may set and restore them."""

_CORES = ContextVar("cores", default=1)
_PARTS = 4
"""Number of parts of a computation per core, so that a core that finishes early can take another part."""


@contextmanager
def deterministic(threads: int, cores: int = 0) -> Iterator[None]:
    """Run the body with `threads` BLAS and torch threads, deterministic kernels and flushed denormals; restore afterwards.

    Flushing is a setting of the calling thread, so every actor call must enter this context, whichever thread serves it.

    Args:
        threads: the number of threads. The bits depend on it.
        cores: the number of cores that `in_parts` divides its work among; 0 means one. The bits do not depend on it.
    """
    import torch  # imported here, so that processes that never train do not pay for it

    with _ONE_AT_A_TIME, threadpool_limits(limits=threads):
        before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
        precision_before = torch.get_float32_matmul_precision()
        filled_before = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        flushed_before = bool(torch.tensor(1e-30) * 1e-10 == 0)  # torch can set this mode but not report it
        torch.set_num_threads(threads)
        # The same mode as use_deterministic_algorithms(True), which would also import the compiler: 0.8 s per process.
        torch.set_deterministic_debug_mode("error")
        torch.set_flush_denormal(True)
        # No code here reads memory before it writes it. Filling memory would cost a tenth of a half sweep.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.set_float32_matmul_precision("highest")  # no TF32, whose factors have only ten bits
        token = _CORES.set(max(1, cores))
        try:
            yield
        finally:
            _CORES.reset(token)
            torch.set_float32_matmul_precision(precision_before)
            torch.utils.deterministic.fill_uninitialized_memory = filled_before  # type: ignore[attr-defined]
            torch.set_flush_denormal(flushed_before)
            torch.set_deterministic_debug_mode(before[1])
            torch.set_num_threads(before[0])


def in_parts(n: int, work: Callable[[int, int], None], least: int) -> None:
    """Call `work(first, last)` for parts of range(n), at the same time on the cores that `deterministic` was given.

    The bits of the results must not depend on how the range is divided: the work at one position must not depend on its part.

    Args:
        n: the number of positions.
        work: does the work for positions `first` to `last` - 1. It is compiled, or computes in NumPy.
        least: the size of a part is a multiple of this number, except for the last part.
    """
    cores = min(_CORES.get(), -(-n // least))
    if cores <= 1:
        work(0, n)
        return
    import torch

    step = -(-n // (least * cores * _PARTS)) * least
    # New threads for each call, because a lasting thread could keep another caller's mode for denormals.
    with ThreadPoolExecutor(cores, initializer=partial(torch.set_flush_denormal, True)) as threads:
        # Start with the last part, because rows ordered by cost have the most expensive ones at the end.
        parts = [threads.submit(work, first, min(first + step, n)) for first in reversed(range(0, n, step))]
        for part in parts:
            part.result()


def environment(threads: int, device: Device = "cpu") -> dict[str, str | int]:
    """Everything that the bits depend on besides the data, the config and the seed. It is recorded with every generation.

    Raises:
        DeviceError: the device is a GPU, and this process sees none.
    """
    import torch

    return {
        "python": ".".join(map(str, sys.version_info[:2])),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "torch": torch.__version__,
        "numba": version("numba"),
        "pyarrow": version("pyarrow"),  # the files of ids contain its version
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        **described(device),
    }
