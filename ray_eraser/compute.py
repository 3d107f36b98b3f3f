"""Where pure functions run: in this process or on a cluster, those who call need not know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

_T = TypeVar("_T")


class Compute(Protocol):
    """A place where pure functions run."""

    def run(self, calls: Sequence[Callable[[], _T]]) -> list[_T]:
        """Results of pure functions of stored files, each called in some process; in the order of `calls`."""
        ...


class InThisProcess:
    """A place that is there always: one call after the other."""

    def run(self, calls: Sequence[Callable[[], _T]]) -> list[_T]:
        return [call() for call in calls]
