"""How often each key may ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one key, and one request, may ask for at most.

    Attributes:
        rate: requests a second for each key, over time.
        burst: requests of one key that may come at once.
        body: bytes of a request's body.
    """

    rate: float = 100.0
    burst: float = 200.0
    body: int = 1 << 20

    def divided(self, replicas: int) -> Limits:
        """The share of one of so many processes, among which requests are spread evenly."""
        return Limits(self.rate / replicas, max(1.0, self.burst / replicas), self.body)


class TokenBuckets:
    """One bucket a key: it holds `burst` tokens at most, gains `rate` a second, and every request takes one.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: dict[Hashable, tuple[float, float]] = {}  # tokens, and when they were counted
        self._lock = threading.Lock()

    def take(self, key: Hashable) -> float:
        """0 where a token was taken; else the seconds until there is one again, and none was."""
        with self._lock:
            now = self._clock()
            tokens, counted_at = self._buckets.get(key, (self._burst, now))
            tokens = min(self._burst, tokens + (now - counted_at) * self._rate)
            taken = tokens >= 1
            self._buckets[key] = tokens - taken, now
            return 0.0 if taken else (1 - tokens) / self._rate
