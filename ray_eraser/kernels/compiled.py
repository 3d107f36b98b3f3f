"""Loops compiled to machine code by numba, under rules that keep their results bit-exact.

A gradient step over a few hundred pairs takes a few microseconds of arithmetic. Calls into NumPy or torch cost many times that.
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
    """Compile a function to machine code at its first call, and cache it beside the source for the next process.

    Sums are added in the order written (no fastmath) by one thread (no parallel), so the same arguments give the same bits.
    Other threads may run at the same time (nogil). A kernel may call only kernels of its own file, because numba recompiles it
    when that file changes, and not when another file does.
    """
    # With Python's semantics, every division would check for zero. The check prevents vectorisation: four times as slow.
    settings: dict[str, Any] = {"error_model": "numpy", "nogil": True}
    try:
        return cast("Kernel", numba.njit(cache=True, **settings)(function))
    except RuntimeError:  # no writable cache folder, neither beside the source nor in the home folder
        return cast("Kernel", numba.njit(**settings)(function))


def _prefetch(_: Any, array: Any, position: Any) -> Any:
    """Prefetch the cache line of an element, given its position in memory order. For use in kernels only.

    It computes nothing, so a cached kernel need not be recompiled when this function changes.
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
