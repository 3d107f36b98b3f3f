"""Limits on the rate of each key and on bodies that arrive slowly."""

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
    """Limits on one key and on one request.

    Attributes:
        rate: requests per second for each key, on average.
        burst: requests that one key may send at once.
        body: largest body, in bytes.
        body_seconds: how long a body may take to arrive.
        receiving: how many bodies of one key each process receives at a time.
        receiving_in_all: how many bodies of all keys together each process receives at a time.
    """

    rate: float = 100.0
    burst: float = 200.0
    body: int = 1 << 20
    body_seconds: float = 10.0
    receiving: int = 16
    receiving_in_all: int = 64

    def divided(self, replicas: int) -> Limits:
        """The limits of one of `replicas` processes that share the requests evenly."""
        return replace(self, rate=self.rate / replicas, burst=max(1.0, self.burst / replicas))


class TokenBuckets:
    """A token bucket for each key. It holds up to `burst` tokens and gains `rate` a second; every request takes one.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: dict[Hashable, tuple[float, float]] = {}  # tokens, and the time of the count
        self._lock = threading.Lock()

    def take(self, key: Hashable) -> float:
        """Take a token. Gives 0, or if the bucket is empty, the seconds until its next token."""
        with self._lock:
            now = self._clock()
            tokens, counted_at = self._buckets.get(key, (self._burst, now))
            tokens = min(self._burst, tokens + (now - counted_at) * self._rate)
            taken = tokens >= 1
            self._buckets[key] = tokens - taken, now
            return 0.0 if taken else (1 - tokens) / self._rate


class Turns:
    """Limits how many bodies a process receives at a time, so that slow senders cannot block the others.

    A body that arrives at once gives its turn back within milliseconds, so a burst of such bodies only waits. For use in one
    event loop.

    Args:
        each: turns that one key may hold at a time.
        in_all: turns that all keys together may hold.
        patience: how many seconds to wait for a turn.
    """

    def __init__(self, each: int, in_all: int, patience: float = 1.0) -> None:
        self._each, self._in_all, self._patience = each, in_all, patience
        self._taken: Counter[Hashable] = Counter()

    async def take(self, key: Hashable) -> bool:
        """Wait for a turn. True if the caller got one, and must give it back."""
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
        """Whether a key holds as many turns as one key may."""
        return self._taken[key] >= self._each
