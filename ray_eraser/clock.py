"""A clock that never goes back. The times in a chain of receipts must be in order even if the machine's clock is reset."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_STILL_SECONDS = 60.0
"""The largest lag of the machine's clock, in seconds, for which this clock stands still. With a larger lag it keeps running, so
that deadlines still arrive."""


class SteadyClock:
    """Seconds since 1970 that never decrease.

    While the machine's clock is at most a minute behind the newest time returned, that time is returned again. While it is
    further behind, the elapsed seconds are added to the newest time.

    Args:
        clock: the machine's clock, in seconds since 1970.
        at_least: the earliest time to return, such as the newest time in a ledger.
        passing: a monotonic clock in seconds.

    Attributes:
        behind: the seconds by which the machine's clock was behind at the last reading; 0 if it was not behind.
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
            if behind and not self.behind:  # warn once per lag, not at every reading
                log.warning("the machine's clock is behind", extra={"seconds": round(behind, 3)})
            self.behind = behind
            return self._newest
