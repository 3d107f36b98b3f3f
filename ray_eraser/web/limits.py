"""How often each key may ask, and how much of a process the bodies that are on their way may take up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Limits:
    """What one key, and one request, may ask for at most.

    Attributes:
        rate: requests a second for each key, over time.
        burst: requests of one key that may come at once.
        body: bytes of a request's body.
        body_seconds: how long a body may take to arrive.
        receiving: bodies of one key that may be on their way at once, in each process.
        receiving_in_all: the same of all keys together.
    """

    rate: float = 100.0
    burst: float = 200.0
    body: int = 1 << 20
    body_seconds: float = 10.0
    receiving: int = 16
    receiving_in_all: int = 64

    def divided(self, replicas: int) -> Limits:
        """The share of one of so many processes, among which requests are spread evenly."""
        return replace(self, rate=self.rate / replicas, burst=max(1.0, self.burst / replicas))


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


class Turns:
    """Who may have a body received. One that is sent slowly, or half, must not keep others from being answered.

    Bodies that are there at once take their turns within milliseconds, so a burst of them only waits. Of one event loop.

    Args:
        each: turns of one key at the same time.
        in_all: of all keys.
        patience: seconds that are waited for a turn.
    """

    def __init__(self, each: int, in_all: int, patience: float = 1.0) -> None:
        self._each, self._in_all, self._patience = each, in_all, patience
        self._taken: Counter[Hashable] = Counter()

    async def take(self, key: Hashable) -> bool:
        """Whether there was a turn; it must be given back."""
        until = time.monotonic() + self._patience
        while self.is_full(key) or self._taken.total() >= self._in_all:
            if time.monotonic() >= until:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        self._taken[key] += 1
        return True

    def give_back(self, key: Hashable) -> None:
        self._taken[key] -= 1

    def is_full(self, key: Hashable) -> bool:
        """Whether a key has all the turns that one may have."""
        return self._taken[key] >= self._each
