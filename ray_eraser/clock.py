"""A clock whose times never go back: those of a chain of receipts must be in order, whatever the machine's clock does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_STILL_SECONDS = 60.0
"""By how much the machine's clock may be behind while ours stands still. Further behind ours goes on: deadlines are counted
with it, and would never come."""


class SteadyClock:
    """Seconds since 1970 that never decrease.

    While the machine's clock is at most a minute behind the newest time given, that time is given again. Further behind, the
    seconds that pass are added to it.

    Args:
        clock: the machine's, in seconds since 1970.
        at_least: no time before this is given, such as the newest that a ledger has.
        passing: seconds on a clock that nobody sets.

    Attributes:
        behind: by how many seconds the machine's clock was behind when it was last read; 0 if it was not.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        at_least: float | None = None,
        passing: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._passing = clock, passing
        self._newest = float("-inf") if at_least is None else at_least
        self._read_at = passing()
        self._reading = threading.Lock()
        self.behind = 0.0

    def __call__(self) -> float:
        with self._reading:
            now, read_at = self._clock(), self._passing()
            behind = max(0.0, self._newest - now)
            if behind > _STILL_SECONDS:
                self._newest += read_at - self._read_at
                behind = self._newest - now
            else:
                self._newest = max(self._newest, now)
            self._read_at = read_at
            if behind and not self.behind:  # once each time, not at every reading
                log.warning("the machine's clock is behind", extra={"seconds": round(behind, 3)})
            self.behind = behind
            return self._newest
