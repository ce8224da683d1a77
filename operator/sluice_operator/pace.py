"""A limit on how often something may be done: a bucket of tokens that fills by time.

``cluster`` takes one before each write, so that many services at once (a start, a new version of
the operator) cannot crowd out the API server's other clients; ``announce`` for Events.
"""

import asyncio
from collections.abc import Callable
from time import monotonic


class Pace:
    """At most ``burst`` at once and ``per_second`` in the long run; who waits is served in turn."""

    def __init__(
        self, per_second: float, burst: int, clock: Callable[[], float] = monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        self._tokens = float(burst)
        self._filled_at = clock()

    def __repr__(self) -> str:
        return f"<Pace {self._tokens:.0f} of {self._burst:.0f}, {self._per_second:g}/s>"

    def reserve(self) -> float:
        """Take a token, on credit if need be; returns the seconds to wait before using it."""
        now = self._clock()
        earned = (now - self._filled_at) * self._per_second
        self._tokens = min(self._burst, self._tokens + earned) - 1.0
        self._filled_at = now
        return max(0.0, -self._tokens / self._per_second)

    async def take(self) -> None:
        """Return when it may be done."""
        if wait := self.reserve():
            await asyncio.sleep(wait)
