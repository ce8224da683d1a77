"""What most of the last answers took. Learnt by ``hedging``, which asks a second worker then."""

from typing import Final

WINDOW: Final = 256
LEAST: Final = 20
"""Answers before anything is said."""
_EVERY: Final = 16
"""Answers after which the figure is made anew."""


class Latencies:
    """The times of the last answers, and one quantile of them.

    Args:
        quantile: of the times, between 0 and 1.
    """

    __slots__ = ("_count", "_figure", "_quantile", "_times")

    def __init__(self, quantile: float = 0.95) -> None:
        self._quantile = quantile
        self._times: list[float] = []
        self._count = 0
        self._figure: float | None = None

    def __repr__(self) -> str:
        shown = "unknown" if self._figure is None else f"{self._figure * 1000:.1f} ms"
        return f"<Latencies {self._quantile:.0%} within {shown}>"

    def took(self, seconds: float) -> None:
        if len(self._times) < WINDOW:
            self._times.append(seconds)
        else:
            self._times[self._count % WINDOW] = seconds
        self._count += 1
        if self._count >= LEAST and self._count % _EVERY == 0:
            self._figure = sorted(self._times)[int(self._quantile * (len(self._times) - 1))]

    def figure(self) -> float | None:
        """Seconds within which that share of the answers came; None while too few have."""
        return self._figure
