"""A service in simulated time: arrivals in, replicas up and down, waiting times out.

Exact for what it models – first in, first out over slots, fixed service and start times – and
seeded, so that two policies can be compared on the same arrivals. Policies see what a gateway and a
supervisor would tell them each second. The scaling tests and ``bench/scaling.py`` ask it; it stands
here, and not beside one of them, because it is also the engine for a ``sluice simulate``.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol

from sluice_api import wire
from sluice_operator.scaling.recommend import Recommender, WorkerCounts
from sluice_operator.scaling.rules import Rules
from sluice_operator.scaling.season import Season

Load = Callable[[float], float]
"""Requests a second at a moment."""

_WAKE_SECONDS = 0.05  # From a request for a sleeping service to the record that says so.


@dataclass(frozen=True, slots=True)
class Replica:
    """What one replica is like: ``slots`` requests at once, each for ``service_seconds``."""

    slots: int = 4
    service_seconds: float = 0.1
    cold_start: float = 10.0

    @property
    def capacity(self) -> float:
        """Requests a second at most."""
        return self.slots / self.service_seconds


class View(NamedTuple):
    """What a policy is told after each interval."""

    record: wire.Demand
    workers: WorkerCounts
    now: float


class Policy(Protocol):
    """Decides how many replicas should run."""

    def __call__(self, view: View) -> int: ...


@dataclass(slots=True)
class Outcome:
    """What happened.

    Attributes:
        waits: seconds each request waited for a slot, in order of arrival.
        orders: (time, replicas ordered), one entry a change, the first at the beginning.
        replica_seconds: sum of the replicas ordered over time.
        unanswered: requests still waiting at the end.
    """

    waits: list[float] = field(default_factory=list)
    orders: list[tuple[float, int]] = field(default_factory=list)
    replica_seconds: float = 0.0
    unanswered: int = 0

    @property
    def peak(self) -> int:
        return max(count for _, count in self.orders)

    @property
    def turns(self) -> int:
        """How often the number changed its direction: up after down, or down after up."""
        counts = [count for _, count in self.orders]
        steps = [b > a for a, b in pairwise(counts)]
        return sum(a != b for a, b in pairwise(steps))

    def late(self, seconds: float) -> int:
        """Requests that waited longer, those never answered included."""
        return sum(wait > seconds for wait in self.waits) + self.unanswered


class SimulatedService:
    """The replicas and the gateway's queue of one service. Time moves by :meth:`run_until`."""

    def __init__(self, replica: Replica, arrivals: list[float], replicas: int) -> None:
        self.replica = replica
        self.outcome = Outcome(orders=[(0.0, replicas)])
        self.now = 0.0
        self._arrivals = deque(arrivals)
        self._queue: deque[float] = deque()
        self._free: list[tuple[float, int]] = []  # heap of (when a slot is free, replica)
        self._ready_at: dict[int, float] = {}
        self._made = 0
        self._records = 0
        for _ in range(replicas):
            self._add(0.0)

    def __repr__(self) -> str:
        return f"<SimulatedService {self.now:.1f}s {len(self._ready_at)} held={len(self._queue)}>"

    def next_wake(self, end: float) -> float:
        """When a policy is told next: at ``end``, or at once when a sleeping service is asked."""
        if self._ready_at or not self._arrivals:
            return end
        return min(end, max(self.now, self._arrivals[0]) + _WAKE_SECONDS)

    def run_until(self, end: float) -> View:
        """Serve until ``end`` and report the interval."""
        began, arrived, served = self.now, 0, 0
        while self._arrivals and self._arrivals[0] < end:
            self._queue.append(self._arrivals.popleft())
            arrived += 1
        while self._queue and self._free:
            free_at, number = self._free[0]
            start = max(free_at, self._queue[0])
            if start >= end:
                break
            heapq.heapreplace(self._free, (start + self.replica.service_seconds, number))
            self.outcome.waits.append(start - self._queue.popleft())
            served += 1
        self.now = end
        self.outcome.replica_seconds += len(self._ready_at) * (end - began)
        self._records += 1
        return View(self._record(end - began, arrived, served), self._counts(), end)

    def order(self, replicas: int) -> None:
        """Have so many replicas from now on; what starts is given up first."""
        if replicas != len(self._ready_at):
            self.outcome.orders.append((self.now, replicas))
        while len(self._ready_at) < replicas:
            self._add(self.now + self.replica.cold_start)
        while len(self._ready_at) > replicas:
            newest = max(self._ready_at, key=lambda number: (self._ready_at[number], number))
            del self._ready_at[newest]
            self._free = [slot for slot in self._free if slot[1] != newest]
            heapq.heapify(self._free)

    def finish(self) -> Outcome:
        self.outcome.unanswered = len(self._queue) + len(self._arrivals)
        return self.outcome

    def _add(self, ready_at: float) -> None:
        self._made += 1
        self._ready_at[self._made] = ready_at
        for _ in range(self.replica.slots):
            heapq.heappush(self._free, (ready_at, self._made))

    def _counts(self) -> WorkerCounts:
        ready = sum(at <= self.now for at in self._ready_at.values())
        ordered = len(self._ready_at)
        return WorkerCounts(ordered=ordered, ready=ready, starting=ordered - ready)

    def _record(self, seconds: float, arrived: int, served: int) -> wire.Demand:
        busy = sum(
            free_at > self.now and self._ready_at[number] <= self.now
            for free_at, number in self._free
        )
        return wire.Demand(
            sequence=self._records,
            gateway="simulated",
            namespace="default",
            service="simulated",
            revision="simulated",
            interval_seconds=seconds,
            arrivals=arrived,
            held=len(self._queue),
            oldest_held_seconds=self.now - self._queue[0] if self._queue else 0.0,
            completions=served,
            service_seconds=served / self.replica.capacity,
            in_flight=busy,
            work_units=served,
            wake=bool(self._queue) and not self._ready_at,
        )


def poisson_arrivals(load: Load, seconds: float, peak: float, seed: int) -> list[float]:
    """Arrival times of a Poisson process whose rate follows ``load``, at most ``peak``.

    By thinning (Lewis and Shedler, 1979).
    """
    rng = random.Random(seed)  # noqa: S311  reproducible, not secret
    times, now = [], 0.0
    while (now := now + rng.expovariate(peak)) < seconds:
        if rng.random() * peak < load(now):
            times.append(now)
    return times


def simulate(
    policy: Policy, arrivals: list[float], seconds: float, replica: Replica, *, replicas: int = 1
) -> Outcome:
    """Run ``policy`` against ``arrivals``, starting with so many ready replicas."""
    service = SimulatedService(replica, arrivals, replicas)
    tick = 1.0
    while tick <= seconds:
        wake = service.next_wake(tick)
        view = service.run_until(wake)
        service.order(policy(view))
        if wake >= tick:
            tick += 1.0
    return service.finish()


class Recommended:
    """Our own policy, with start times reported as a supervisor reports them.

    Args:
        season: what remembers the days before; None for nothing.
    """

    def __init__(self, rules: Rules, replica: Replica, season: Season | None = None) -> None:
        self.recommender = Recommender(rules, 0.0, proven=True)
        self.recommender.started(replica.cold_start)
        self.season = season

    def __call__(self, view: View) -> int:
        self.recommender.observe(view.record, view.now)
        return self.recommender.decide(view.workers, view.now, usual=self._usual(view)).desired

    def _usual(self, view: View) -> Callable[[float], float] | None:
        season = self.season
        if season is None:
            return None
        season.observe(view.record.arrivals, view.now)
        return lambda ahead: season.expected(view.now, ahead + season.lead_seconds)
