"""The conditions under which the same input gives the same bits.

Thread counts change the order of sums inside matrix products and eigensolvers, denormals slow Adagrad several-fold, and some
torch kernels add in any order unless told not to. Every computation whose bits matter runs inside `deterministic`.
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
import scipy.linalg  # brings its own BLAS: one that is loaded later would not be limited
from threadpoolctl import threadpool_limits

from ray_eraser.devices import Device, described

_ONE_AT_A_TIME = threading.RLock()
"""Thread counts and kernels are the process's: two threads that set and restore them would do it for each other."""

_CORES = ContextVar("cores", default=1)
_PARTS = 4
"""Parts of a computation for each core: whoever has had the small ones takes another."""


@contextmanager
def deterministic(threads: int, cores: int = 0) -> Iterator[None]:
    """Run the body with `threads` BLAS and torch threads, deterministic kernels and denormals flushed; restore afterwards.

    Flushing is a property of the calling thread, so every actor call enters anew, whichever thread serves it.

    Args:
        threads: the bits depend on them.
        cores: among which `in_parts` divides what it is given, 0 being one; no bit depends on them.
    """
    import torch  # here, so that processes that never train do not pay for the import

    with _ONE_AT_A_TIME, threadpool_limits(limits=threads):
        before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
        precision_before = torch.get_float32_matmul_precision()
        filled_before = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        flushed_before = bool(torch.tensor(1e-30) * 1e-10 == 0)  # torch can set this, but does not tell it
        torch.set_num_threads(threads)
        # The same switch as use_deterministic_algorithms(True), which would import the compiler as well: 0.8 s a process.
        torch.set_deterministic_debug_mode("error")
        torch.set_flush_denormal(True)
        # Nothing here reads memory before it writes it; filling it costs a tenth of a half sweep.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.set_float32_matmul_precision("highest")  # no TF32: its products have ten bits
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
    """Have `work(first, last)` done for all of range(n), in parts at the same time on the cores that `deterministic` was given.

    It is for results that are the same bits however they are divided: what is done at one place must not depend on the part
    that the place is in.

    Args:
        n: places.
        work: does what is to be done from `first` to before `last`; it is compiled, or else computes in numpy.
        least: places of a part, all but the last part having a multiple of them.
    """
    cores = min(_CORES.get(), -(-n // least))
    if cores <= 1:
        work(0, n)
        return
    import torch

    step = -(-n // (least * cores * _PARTS)) * least
    # Threads of this call alone: one that stays would keep what somebody else told it of denormals.
    with ThreadPoolExecutor(cores, initializer=partial(torch.set_flush_denormal, True)) as threads:
        # From the end: rows that are ordered by what they cost have those there that cost most.
        parts = [threads.submit(work, first, min(first + step, n)) for first in reversed(range(0, n, step))]
        for part in parts:
            part.result()


def environment(threads: int, device: Device = "cpu") -> dict[str, str | int]:
    """What the bits depend on besides the data, the config and the seed. Recorded with every generation.

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
        "pyarrow": version("pyarrow"),  # names itself in the files of ids
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        **described(device),
    }
