"""Tight loops compiled to machine code by numba, under rules that keep them bit-exact.

A gradient step over a few hundred pairs is some microseconds of arithmetic; calls into numpy or torch cost many times that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def compiled(function: Kernel) -> Kernel:
    """The same function as machine code, compiled at its first call and kept beside the source for the next process.

    Sums are added in the order written (no fastmath) by one thread (no parallel): same arguments, same bits. A kernel calls
    kernels of its own file alone, because numba compiles anew when that file changes, not when another does.
    """
    # Python's division checks for zero at every element, which keeps a loop from being vectorised: four times as slow.
    settings: dict[str, Any] = {"error_model": "numpy"}
    try:
        return cast("Kernel", numba.njit(cache=True, **settings)(function))
    except RuntimeError:  # nowhere to write: neither beside the source nor in a home
        return cast("Kernel", numba.njit(**settings)(function))
