"""Tight loops compiled to machine code by numba, under rules that keep them bit-exact.

A gradient step over a few hundred pairs is some microseconds of arithmetic; calls into numpy or torch cost many times that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def compiled(function: Kernel) -> Kernel:
    """The same function as machine code, compiled at its first call and kept beside the source for the next process.

    Sums are added in the order written (no fastmath) by one thread (no parallel): same arguments, same bits. Others may run
    beside it (nogil). A kernel calls kernels of its own file alone, because numba compiles anew when that file changes, not
    when another does.
    """
    # Python's division checks for zero at every element, which keeps a loop from being vectorised: four times as slow.
    settings: dict[str, Any] = {"error_model": "numpy", "nogil": True}
    try:
        return cast("Kernel", numba.njit(cache=True, **settings)(function))
    except RuntimeError:  # nowhere to write: neither beside the source nor in a home
        return cast("Kernel", numba.njit(**settings)(function))


def _prefetch(_: Any, array: Any, position: Any) -> Any:
    """For kernels alone: ask for the cache line of an element, by its place in memory order, ahead of its use.

    It computes nothing, so a kernel that is kept compiled need not notice when this changes.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.gep(context.make_array(signature.args[0])(context, builder, arguments[0]).data, [arguments[1]])
        number = ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], function_type)
        to_read, keep_long, data = number(0), number(3), number(1)
        builder.call(function, [pointer, to_read, keep_long, data])
        return context.get_dummy_value()

    return types.void(array, position), generate


prefetch: Any = intrinsic(_prefetch)
