"""Whether demand climbs, and how much of it there will be when a replica ordered now answers. Pure.

Owned by a ``Recommender``, which raises its number to what is foreseen here and never lowers it by
it. A line through the last five minutes, less three standard errors: noise is no climb. It must
have climbed in each of those minutes: a step is over when it has come, and a burst goes again.
"""

import math
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

BUCKET_SECONDS: Final = 30.0
BUCKETS: Final = 10
SPAN_SECONDS: Final = BUCKETS * BUCKET_SECONDS
"""What is looked at, and the furthest that is looked ahead."""
_STANDARD_ERRORS: Final = 3.0
_PLACES: Final = [(number - (BUCKETS - 1) / 2) * BUCKET_SECONDS for number in range(BUCKETS)]
_SQUARES: Final = sum(place**2 for place in _PLACES)


@dataclass(frozen=True, slots=True)
class Line:
    """Requests a second, ``mean`` at ``middle``, rising by ``slope`` a second; 0 for no climb."""

    mean: float = 0.0
    middle: float = 0.0
    slope: float = 0.0

    def at(self, moment: float) -> float:
        """Requests a second then."""
        return max(0.0, self.mean + self.slope * (moment - self.middle))


class Trend:
    """Arrivals of the last minutes, in buckets of half a minute."""

    def __init__(self) -> None:
        self._counts: deque[tuple[int, int]] = deque(maxlen=BUCKETS + 1)  # bucket, arrivals
        self._fitted: tuple[int, Line] = (-1, Line())

    def __repr__(self) -> str:
        return f"<Trend {self._fitted[1]}>"

    def observe(self, arrivals: int, now: float) -> None:
        """So many requests came up to ``now``."""
        bucket = int(now // BUCKET_SECONDS)
        if self._counts and self._counts[-1][0] >= bucket:
            last, count = self._counts.pop()
            self._counts.append((last, count + arrivals))
        else:
            self._counts.append((bucket, arrivals))

    def foreseen(self, now: float, ahead: float, complete_since: float | None) -> float:
        """Requests a second ``ahead`` seconds after ``now``; 0 where nothing says that they climb.

        Args:
            complete_since: since when all arrivals are known; None while some are not. What is
                missing from a part of the time would look like a climb.
        """
        bucket = int(now // BUCKET_SECONDS)
        begin = (bucket - BUCKETS) * BUCKET_SECONDS
        if complete_since is None or complete_since > begin:
            return 0.0
        if self._fitted[0] != bucket:
            self._fitted = (bucket, self._fit(bucket, begin))
        line = self._fitted[1]
        return line.at(now + min(ahead, SPAN_SECONDS)) if line.slope > 0 else 0.0

    def _fit(self, bucket: int, begin: float) -> Line:
        counts = dict(self._counts)
        rates = [counts.get(bucket - BUCKETS + n, 0) / BUCKET_SECONDS for n in range(BUCKETS)]
        return Line(sum(rates) / BUCKETS, begin + SPAN_SECONDS / 2, proven_slope(rates))


def proven_slope(rates: list[float]) -> float:
    """By how much ``rates`` of successive buckets climb in a second for certain; 0 for nothing.

    Least squares. The error is that of a Poisson count, or what the rates themselves show if that
    is more: real demand is rougher than Poisson's. Not steeper than the newest minute, so that a
    climb that flattens is not followed beyond its top.
    """
    minutes = [(a + b) / 2 for a, b in zip(rates[::2], rates[1::2], strict=True)]
    if not all(earlier < later for earlier, later in pairwise(minutes)):
        return 0.0
    mean = sum(rates) / BUCKETS
    slope = sum(place * rate for place, rate in zip(_PLACES, rates, strict=True)) / _SQUARES
    left = sum(
        (rate - mean - slope * place) ** 2 for place, rate in zip(_PLACES, rates, strict=True)
    )
    variance = max(left / (BUCKETS - 2), mean / BUCKET_SECONDS)
    newest = (minutes[-1] - minutes[-2]) / (2 * BUCKET_SECONDS)
    return max(0.0, min(newest, slope - _STANDARD_ERRORS * math.sqrt(variance / _SQUARES)))
