"""What is learnt about a service from its own past: how much a replica does, how long one starts,
how soon demand comes back.

Owned by a ``Recommender``. Everything forgets: capacity measured under load counts in full for a
minute and only upwards for ten; the last twenty starts count; a demand that did not come back in
its time is not waited for again.
"""

import math
from collections import deque

COLD_START_SECONDS = 10.0
"""Taken for a start until one has been seen."""
_STARTS = 20
_RETURNS = 4
_HABIT = 2
_MARGIN = 1.2
_MEASURED_FULLY_SECONDS = 60.0
_MEASURED_SECONDS = 600.0
_SMOOTHING_SECONDS = 5.0


class ColdStarts:
    """How long a replica takes from its order to its first readiness."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_STARTS)

    def __repr__(self) -> str:
        return f"<ColdStarts {self.typical():.1f}s of {len(self._seconds)}>"

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def typical(self) -> float:
        """Seconds within which nine of ten starts are done."""
        if not self._seconds:
            return COLD_START_SECONDS
        ordered = sorted(self._seconds)
        return ordered[math.ceil(0.9 * len(ordered)) - 1]


class ReplicaCapacity:
    """Requests a second that one replica does: what it reports, corrected by what was measured.

    A worker's reported time per request tells its capacity at any load, but with the batches of
    that load. While requests wait for a free replica, throughput itself is the capacity.
    """

    def __init__(self) -> None:
        self._service_seconds: float | None = None
        self._measured: float | None = None
        self._measured_service: float | None = None
        self._measured_at = -math.inf

    def __repr__(self) -> str:
        return f"<ReplicaCapacity reported={self._service_seconds} measured={self._measured}>"

    def reported(self, service_seconds: float | None, *, only_more: bool = False) -> None:
        """The mean time of a whole worker that one request uses; None leaves what was known.

        ``only_more``: believe no figure by which a replica does less than was known.
        """
        known = self._service_seconds
        if service_seconds and not (only_more and known and service_seconds > known):
            self._service_seconds = service_seconds

    def saturated(self, per_replica: float, now: float, *, only_more: bool = False) -> None:
        """Answers a second and replica, measured while requests were waiting throughout.

        ``only_more``: as for :meth:`reported`.
        """
        known = self.estimate(now)
        if per_replica <= 0 or (only_more and known is not None and per_replica < known):
            return
        if self._measured is None or now - self._measured_at > _MEASURED_FULLY_SECONDS:
            self._measured = per_replica
        else:
            weight = 1.0 - math.exp(-max(0.0, now - self._measured_at) / _SMOOTHING_SECONDS)
            self._measured += weight * (per_replica - self._measured)
        self._measured_service, self._measured_at = self._service_seconds, now

    def estimate(self, now: float) -> float | None:
        """Requests a second of one replica; None while nothing is known."""
        reported = 1.0 / self._service_seconds if self._service_seconds else None
        age = now - self._measured_at
        if self._measured is None or age > _MEASURED_SECONDS:
            return reported
        measured = self._measured
        if reported and self._measured_service:
            # Requests that have grown heavier since count as that much more.
            measured *= min(1.0, self._measured_service * reported)
        if reported is None or age <= _MEASURED_FULLY_SECONDS:
            return measured
        return max(measured, reported)


class Returns:
    """How soon demand comes back after it has fallen: those that burst again and again.

    Once is no habit, twice is one. Who has waited for it in vain forgets it.

    Args:
        longest: seconds; later is no return but another time.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._gaps: deque[float] = deque(maxlen=_RETURNS)
        self._came_at = -math.inf

    def __repr__(self) -> str:
        return f"<Returns after {[round(gap) for gap in self._gaps]} s>"

    def came_back(self, gap: float, now: float) -> None:
        """More is needed than there is; so much was needed last ``gap`` seconds ago."""
        if now - self._came_at < gap:
            return  # the same return, which goes on
        self._came_at = now
        if gap * _MARGIN <= self._longest:
            self._gaps.append(gap)

    def waited(self, seconds: float) -> None:
        """Replicas go because so long nobody has needed them."""
        if 0.0 < self.patience() <= seconds:
            self._gaps.clear()

    def patience(self) -> float:
        """Seconds after which demand has come back, with a margin; 0 where that is no habit."""
        return _MARGIN * max(self._gaps) if len(self._gaps) >= _HABIT else 0.0


class PeakWindow:
    """The highest value of the last so many seconds.

    Args:
        longest: seconds for which anybody asks; older values are dropped.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._peaks: deque[tuple[float, int]] = deque()  # times rising, values falling

    def __repr__(self) -> str:
        return f"<PeakWindow {list(self._peaks)}>"

    def add(self, value: int, now: float) -> None:
        while self._peaks and self._peaks[-1][1] <= value:
            self._peaks.pop()
        while self._peaks and now - self._peaks[0][0] > self._longest:
            self._peaks.popleft()
        self._peaks.append((now, value))

    def highest(self, seconds: float, now: float) -> int:
        """The highest value added within the last ``seconds``; 0 when there is none."""
        return next((value for at, value in self._peaks if now - at <= seconds), 0)

    def last(self, least: int) -> float | None:
        """When a value was at least ``least`` for the last time; None for not in this window."""
        return next((at for at, value in reversed(self._peaks) if value >= least), None)
