"""Run pure functions in this process or on a cluster. Callers need not know which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

_T = TypeVar("_T")


class Compute(Protocol):
    """A place where pure functions run."""

    def run(self, calls: Sequence[Callable[[], _T]]) -> list[_T]:
        """Call pure functions of stored files, each in some process, and return their results in the order of `calls`."""
        ...


class InThisProcess:
    """Run all calls in this process, one after the other."""

    def run(self, calls: Sequence[Callable[[], _T]]) -> list[_T]:
        return [call() for call in calls]
