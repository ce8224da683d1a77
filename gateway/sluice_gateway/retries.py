"""How many retries a service may cost: a share of its requests, never a storm.

A retry helps when one worker of many is ill and hurts when all are; the budget tells the two
apart. (Envoy's retry budget: a share of the active requests, with a floor.) Hedges take from the
same budget, so that both together stay within it. Asked by ``forward`` and ``hedging``.
"""

from typing import Final

SHARE: Final = 0.2
FLOOR_PER_SECOND: Final = 3
WINDOW_SECONDS: Final = 10


class RetryBudget:
    """Counts over the current and the previous window, so the share has no edge to jump over."""

    __slots__ = ("_current", "_previous", "_started")

    def __init__(self, now: float) -> None:
        self._started = now
        self._current = [0, 0]  # requests, retries
        self._previous = [0, 0]

    def __repr__(self) -> str:
        requests, retries = self._sums()
        return f"<RetryBudget {retries} retries of {requests} requests>"

    def request(self, now: float) -> None:
        """Count one request that is sent for the first time."""
        if now - self._started >= WINDOW_SECONDS:
            self._turn(now)
        self._current[0] += 1

    def take(self, now: float, share: float = SHARE) -> bool:
        """Whether one more is allowed; if so, it is counted.

        Args:
            share: of the requests, that all of them together may be; less for what matters less.
        """
        if now - self._started >= WINDOW_SECONDS:
            self._turn(now)
        requests, retries = self._sums()
        if retries >= max(share * requests, FLOOR_PER_SECOND * WINDOW_SECONDS):
            return False
        self._current[1] += 1
        return True

    def _sums(self) -> tuple[int, int]:
        return self._current[0] + self._previous[0], self._current[1] + self._previous[1]

    def _turn(self, now: float) -> None:
        fresh = now - self._started < 2 * WINDOW_SECONDS
        self._previous = self._current if fresh else [0, 0]
        self._current = [0, 0]
        self._started = now
