"""What all gateways together see of one service: the records of a minute, summed on request.

Fed by whoever reads the gateways' demand streams; read by ``recommend.py``. A gateway that falls
silent keeps the arrivals it had, and the sum says that it is incomplete: silence is never zero.
"""

import math
from collections import deque
from dataclasses import dataclass, field

from sluice_api import wire

SILENCE_SECONDS = 5.0
"""Gateways report each second; one that has not for so long is unknown."""
FORGET_SECONDS = 300.0
"""After so long a silent gateway is taken to be gone, if nobody has said so before."""
SHORT, MIDDLE, LONG = 1.0, 10.0, 60.0
"""The windows over which arrivals are counted, in seconds."""

_SLICE_SECONDS = 0.5  # Records that come at once are merged, so that a minute is bounded.
_LOWER_BOUND_DEVIATIONS = 2.0  # Poisson: 98 % of seconds hold at least so many arrivals.


@dataclass(frozen=True, slots=True)
class Traffic:
    """Demand at one moment.

    Attributes:
        gateways: how many are known; 0 means that nothing is known.
        silent: how many of them are unknown at the moment.
        complete_since: since when all known gateways have reported; None while one is silent.
        known_until: when the one that has not reported for longest did; None if none has.
        active_at: when a request was last seen; None if never.
        asked: the newest records hold requests that need a worker.
        arrivals_low: requests a second over 1 s, the lower bound of what that second shows.
        arrivals_10s, arrivals_60s: requests a second, means.
        held: requests waiting in gateways. oldest_held_seconds: age of the oldest.
        in_flight: requests at workers.
        completions: answers a second over 1 s.
        service_seconds: mean time of a whole worker that one request uses; None if none was seen.
        response_seconds: mean time a request spends at a worker, queueing there included.
    """

    gateways: int = 0
    silent: int = 0
    complete_since: float | None = None
    known_until: float | None = None
    active_at: float | None = None
    asked: bool = False
    arrivals_low: float = 0.0
    arrivals_10s: float = 0.0
    arrivals_60s: float = 0.0
    held: int = 0
    oldest_held_seconds: float = 0.0
    in_flight: int = 0
    completions: float = 0.0
    service_seconds: float | None = None
    response_seconds: float | None = None


@dataclass(slots=True)
class _Slice:
    """Counters of an interval of at least half a second."""

    seconds: float = 0.0
    arrivals: int = 0
    completions: int = 0
    service_seconds: float = 0.0
    in_flight_seconds: float = 0.0

    def add(self, record: wire.Demand) -> None:
        seconds = max(record.interval_seconds, 0.0)
        self.seconds += seconds
        self.arrivals += record.arrivals
        self.completions += record.completions
        self.service_seconds += record.service_seconds
        self.in_flight_seconds += record.in_flight * seconds

    def join(self, other: "_Slice") -> None:
        self.seconds += other.seconds
        self.arrivals += other.arrivals
        self.completions += other.completions
        self.service_seconds += other.service_seconds
        self.in_flight_seconds += other.in_flight_seconds


@dataclass(slots=True)
class _Gateway:
    """One gateway's last minute."""

    last: wire.Demand
    seen_at: float
    slices: deque[_Slice] = field(default_factory=lambda: deque([_Slice()], maxlen=128))

    def add(self, record: wire.Demand, now: float) -> None:
        if self.slices[-1].seconds >= _SLICE_SECONDS:
            self.slices.append(_Slice())
        self.slices[-1].add(record)
        self.last, self.seen_at = record, now

    def over(self, seconds: float) -> _Slice:
        """The sum of the newest slices that cover ``seconds``.

        Records' own intervals are counted, not the times they came at: two that arrive within a
        second because the network was slow are still two seconds of demand.
        """
        total = _Slice()
        for piece in reversed(self.slices):
            total.join(piece)
            if total.seconds >= seconds - _SLICE_SECONDS / 2:
                break
        total.seconds = max(total.seconds, seconds)
        return total

    def is_silent(self, now: float) -> bool:
        return now - self.seen_at > SILENCE_SECONDS


class DemandWindow:
    """Sums the demand records of one service over all gateways. Bounded: a minute a gateway."""

    def __init__(self) -> None:
        self._gateways: dict[str, _Gateway] = {}
        self._complete_since: float | None = None
        self._active_at: float | None = None

    def __repr__(self) -> str:
        return f"<DemandWindow gateways={len(self._gateways)} active_at={self._active_at}>"

    def observe(self, record: wire.Demand, now: float) -> None:
        """Take one record, received at ``now``. One that came before or twice is left out."""
        gateway = self._gateways.get(record.gateway)
        if gateway is None:
            gateway = self._gateways[record.gateway] = _Gateway(record, now)
            if self._complete_since is None:
                self._complete_since = now
        elif record.sequence <= gateway.last.sequence:
            return
        elif gateway.is_silent(now):
            # What happened meanwhile nobody knows, so knowledge begins anew.
            self._complete_since = now
        if _is_active(record):
            self._active_at = now
        elif self._is_resting(now):
            # Thousands of services may sleep: a minute of nothing need not be kept in pieces.
            gateway.slices.clear()
            gateway.slices.append(_Slice())
        gateway.add(record, now)

    def _is_resting(self, now: float) -> bool:
        """Nobody has asked within any window that is looked at."""
        return self._active_at is None or now - self._active_at > 2 * LONG

    def forget(self, gateway: str) -> None:
        """A gateway is gone for good, and its share with it."""
        self._gateways.pop(gateway, None)
        if not self._gateways:
            self._complete_since = None

    def settle(self) -> None:
        """What came so far is over: the service goes to sleep, and wakes for what comes then."""
        for gateway in self._gateways.values():
            gateway.slices.clear()
            gateway.slices.append(_Slice())

    def traffic(self, now: float) -> Traffic:
        """The sum at ``now``."""
        for name, gateway in list(self._gateways.items()):
            if now - gateway.seen_at > FORGET_SECONDS:
                self._complete_since = now
                self.forget(name)
        gateways = list(self._gateways.values())
        if not gateways:
            return Traffic(active_at=self._active_at)
        speaking = [gateway for gateway in gateways if not gateway.is_silent(now)]
        silent = len(gateways) - len(speaking)
        known_until = min(gateway.seen_at for gateway in gateways)
        if not silent and self._is_resting(now):
            # Nothing to sum: most services sleep most of the time, and there may be thousands.
            return Traffic(
                gateways=len(gateways),
                complete_since=self._complete_since,
                known_until=known_until,
                active_at=self._active_at,
            )
        # A silent gateway keeps its share of arrivals, but its last second says nothing about now.
        short = [gateway.over(SHORT if gateway in speaking else MIDDLE) for gateway in gateways]
        middle = [gateway.over(MIDDLE) for gateway in gateways]
        long = [gateway.over(LONG) for gateway in gateways]
        return Traffic(
            gateways=len(gateways),
            silent=silent,
            complete_since=None if silent else self._complete_since,
            known_until=known_until,
            active_at=self._active_at,
            asked=any(_asks(gateway.last) for gateway in speaking),
            arrivals_low=_lower_bound(short),
            arrivals_10s=_rate(middle),
            arrivals_60s=_rate(long),
            held=sum(gateway.last.held for gateway in speaking),
            oldest_held_seconds=max((g.last.oldest_held_seconds for g in speaking), default=0.0),
            in_flight=sum(gateway.last.in_flight for gateway in speaking),
            completions=sum(piece.completions / piece.seconds for piece in short),
            service_seconds=_mean_service(middle) or _mean_service(long),
            response_seconds=_mean_response(middle) or _mean_response(long),
        )


def _asks(record: wire.Demand) -> bool:
    return bool(record.arrivals or record.held or record.wake)


def _is_active(record: wire.Demand) -> bool:
    return _asks(record) or bool(record.in_flight or record.completions)


def _rate(pieces: list[_Slice]) -> float:
    return sum(piece.arrivals / piece.seconds for piece in pieces)


def _lower_bound(pieces: list[_Slice]) -> float:
    """What a short window proves: its rate less two standard deviations of a Poisson count."""
    variance = sum(piece.arrivals / piece.seconds**2 for piece in pieces)
    return max(0.0, _rate(pieces) - _LOWER_BOUND_DEVIATIONS * math.sqrt(variance))


_ENOUGH = 20  # answers, for a mean worth acting on within 10 s


def _mean_service(pieces: list[_Slice]) -> float | None:
    completions = sum(piece.completions for piece in pieces)
    if not completions or (completions < _ENOUGH and pieces[0].seconds < LONG):
        return None
    return sum(piece.service_seconds for piece in pieces) / completions or None


def _mean_response(pieces: list[_Slice]) -> float | None:
    """By Little's law: mean number at the workers over answers a second."""
    completions = sum(piece.completions for piece in pieces)
    if not completions or (completions < _ENOUGH and pieces[0].seconds < LONG):
        return None
    return sum(piece.in_flight_seconds for piece in pieces) / completions or None
