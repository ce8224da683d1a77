"""Scaling decisions in simulated time: ours beside Knative's, KubeAI's and the HPA's algorithms.

Six families of load, four start times, the same arrivals for every policy; then two of them day
after day, to see what remembering them is worth. "reactive" is ours without foresight (trend and
season). The peers are written from their published algorithms (Knative: docs of its autoscaler,
config-autoscaler defaults; KubeAI: its autoscaler's source; HPA v2: its documentation) and get what
they cannot measure in reality for free: exact concurrency of every replica and of the queue,
without delay. Nothing else of them is modelled.
"""

import argparse
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise

import measure

from sluice_operator.scaling.rules import Rules
from sluice_operator.scaling.season import Season
from sluice_operator.scaling.simulation import (
    Load,
    Outcome,
    Policy,
    Recommended,
    Replica,
    View,
    poisson_arrivals,
    simulate,
)

SECONDS = 1800
LATE_SECONDS = 0.5
"""A request that waited longer for a slot missed its goal."""
PLANNED = 0.8
"""The utilisation at which the oracle calls a number of replicas enough."""
MAX_REPLICAS = 100
COLD_STARTS = (5.0, 15.0, 60.0, 240.0)
DAYS = 5
SLOTS_PER_DAY = 60
"""A day of the repeated loads is half an hour long, and so its slots are half a minute."""


def steady(now: float) -> float:
    return 60.0


def diurnal(now: float) -> float:
    return 70.0 - 60.0 * math.cos(2 * math.pi * now / SECONDS)


def step(now: float) -> float:
    return 20.0 if now < 600 or now > 1200 else 120.0


def on_off(now: float) -> float:
    return 100.0 if now % 300 < 120 else 0.0


def burst(now: float) -> float:
    return 20.0 + (80.0 if now % 240 < 30 else 0.0)


def spike(now: float) -> float:
    return 20.0 + (280.0 if 900 <= now < 910 else 0.0)


FAMILIES: dict[str, tuple[Load, float]] = {
    "steady": (steady, 60.0),
    "diurnal": (diurnal, 130.0),
    "step": (step, 120.0),
    "on/off": (on_off, 100.0),
    "burst": (burst, 100.0),
    "spike": (spike, 300.0),
}


REPEATED = {"diurnal": FAMILIES["diurnal"], "spike": FAMILIES["spike"]}


def concurrency(view: View) -> float:
    """Requests at replicas and in the queue: what a concurrency-based autoscaler counts."""
    return view.record.in_flight + view.record.held


class Knative:
    """KPA: 60 s and 6 s averages, panic at twice the capacity, 70 % of the target, tick 2 s."""

    def __init__(self, replica: Replica) -> None:
        self.target = replica.slots * 0.7
        self.samples: deque[tuple[float, float]] = deque()
        self.panic_until = -math.inf
        self.panic_most = 0
        self.seen_at = -math.inf

    def __call__(self, view: View) -> int:
        now, ordered = view.now, view.workers.ordered
        self.samples.append((now, concurrency(view)))
        while now - self.samples[0][0] > 60:
            self.samples.popleft()
        if view.record.arrivals or concurrency(view):
            self.seen_at = now
        if ordered == 0:
            return 1 if concurrency(view) else 0
        if now % 2 and view.record.interval_seconds == 1.0:
            return ordered
        ready = max(1, view.workers.ready)
        stable = self._wanted([value for _, value in self.samples], ready)
        panic = self._wanted([value for at, value in self.samples if now - at < 6], ready)
        if panic / ready >= 2:
            self.panic_until = now + 60
        if now < self.panic_until:
            self.panic_most = max(self.panic_most, panic, ready)
            return self.panic_most
        self.panic_most = 0
        if now - self.seen_at >= 60 + 30:
            return 0
        return max(1, stable)

    def _wanted(self, values: list[float], ready: int) -> int:
        wanted = math.ceil(sum(values) / len(values) / self.target)
        return min(MAX_REPLICAS, max(wanted, ready // 2))


class ConcurrencyHpa:
    """HPA v2 on concurrency (AverageValue), default behaviour: sync 15 s, down after 300 s."""

    def __init__(self, replica: Replica) -> None:
        self.target = replica.slots * 0.7
        self.recommended: deque[tuple[float, int]] = deque()
        self.synced_at = 0.0

    def __call__(self, view: View) -> int:
        now, ordered = view.now, view.workers.ordered
        if now - self.synced_at < 15:
            return ordered
        self.synced_at = now
        ratio = concurrency(view) / (self.target * ordered)
        wanted = ordered if abs(1 - ratio) <= 0.1 else math.ceil(concurrency(view) / self.target)
        self.recommended.append((now, wanted))
        while now - self.recommended[0][0] > 300:
            self.recommended.popleft()
        stable = max(count for _, count in self.recommended) if wanted < ordered else wanted
        return max(1, min(stable, max(ordered + 4, ordered * 2), MAX_REPLICAS))


class KubeAi:
    """Mean concurrency of ten minutes, looked at each 10 s; down after three lower decisions."""

    def __init__(self, replica: Replica) -> None:
        self.target = replica.slots * 0.7
        self.samples: deque[float] = deque(maxlen=60)
        self.lower = 0

    def __call__(self, view: View) -> int:
        ordered = view.workers.ordered
        if view.now % 10:
            return max(1, ordered)
        self.samples.append(concurrency(view))
        # Its window is full of zeros at first.
        wanted = min(MAX_REPLICAS, math.ceil(sum(self.samples) / 60 / self.target))
        self.lower = self.lower + 1 if wanted < ordered else 0
        if wanted > ordered or self.lower >= 3:
            return max(1, wanted)
        return max(1, ordered)


class CpuHpa:
    """HPA v2 on CPU, as :class:`ConcurrencyHpa`; what it sees is how busy ready replicas were
    half a minute ago."""

    def __init__(self, replica: Replica) -> None:
        self.slots = replica.slots
        self.seen: deque[float] = deque(maxlen=30)
        self.recommended: deque[tuple[float, int]] = deque()
        self.synced_at = 0.0

    def __call__(self, view: View) -> int:
        now, ordered, ready = view.now, view.workers.ordered, view.workers.ready
        self.seen.append(view.record.in_flight / (self.slots * ready) if ready else 0.0)
        if now - self.synced_at < 15 or not ready:
            return max(1, ordered)
        self.synced_at = now
        ratio = self.seen[0] / PLANNED
        # Replicas that are not ready count as idle when more are wanted.
        wanted = ordered if abs(1 - ratio) <= 0.1 else math.ceil(ratio * ready)
        if ratio > 1:
            wanted = max(wanted, ordered)
        self.recommended.append((now, wanted))
        while now - self.recommended[0][0] > 300:
            self.recommended.popleft()
        stable = max(count for _, count in self.recommended) if wanted < ordered else wanted
        return max(1, min(stable, max(ordered + 4, ordered * 2), MAX_REPLICAS))


def ours(replica: Replica, *, foresight: bool = True) -> Policy:
    season = Season(SECONDS / SLOTS_PER_DAY, SLOTS_PER_DAY)
    return Recommended(Rules(max_replicas=MAX_REPLICAS, foresight=foresight), replica, season)


POLICIES: dict[str, Callable[[Replica], Policy]] = {
    "sluice": ours,
    "reactive": lambda replica: ours(replica, foresight=False),
    "knative": Knative,
    "kubeai": KubeAi,
    "hpa": ConcurrencyHpa,
    "hpa cpu": CpuHpa,
}


@dataclass(frozen=True)
class Figures:
    """One policy on one family with one start time.

    Attributes:
        late_percent: requests that waited longer than is allowed.
        spare_percent: replica-seconds beyond the oracle's, which knows the load.
        changes: how often the number changed; turns: how often its direction did.
    """

    family: str
    cold_start: float
    policy: str
    requests: int
    late_percent: float
    wait_p99: float
    peak: int
    need: int
    spare_percent: float
    changes: int
    turns: int


def oracle(load: Load, replica: Replica) -> tuple[float, int]:
    """Replica-seconds and peak of one who knows the load and starts replicas beforehand."""
    needs = [math.ceil(load(second) / (replica.capacity * PLANNED)) for second in range(SECONDS)]
    return float(sum(needs)), max(needs)


def last_day(outcome: Outcome, arrivals: list[float], days: int) -> Outcome:
    """What happened on the last of so many days."""
    began, end = (days - 1) * SECONDS, days * SECONDS
    before = [count for now, count in outcome.orders if now <= began][-1]
    orders = [(float(began), before), *((n, c) for n, c in outcome.orders if n > began)]
    until = [now for now, _ in orders[1:]] + [float(end)]
    return Outcome(
        waits=outcome.waits[bisect_left(arrivals, began) :],
        orders=orders,
        replica_seconds=sum(
            count * (then - now) for (now, count), then in zip(orders, until, strict=True)
        ),
        unanswered=outcome.unanswered,
    )


def figures(family: str, replica: Replica, policy: str, outcome: Outcome) -> Figures:
    seconds, need = oracle(FAMILIES[family][0], replica)
    waits = sorted([*outcome.waits, *([math.inf] * outcome.unanswered)])
    return Figures(
        family=family,
        cold_start=replica.cold_start,
        policy=policy,
        requests=len(waits),
        late_percent=round(100 * outcome.late(LATE_SECONDS) / len(waits), 2),
        wait_p99=round(waits[int(0.99 * len(waits))], 3),
        peak=outcome.peak,
        need=need,
        spare_percent=round(100 * (outcome.replica_seconds / seconds - 1), 1),
        changes=sum(a != b for (_, a), (_, b) in pairwise(outcome.orders)),
        turns=outcome.turns,
    )


def measure_once(policies: list[str]) -> Iterator[Figures]:
    """Half an hour that nobody has seen before."""
    for family, (load, peak) in FAMILIES.items():
        arrivals = poisson_arrivals(load, SECONDS, peak, seed=7)
        for cold_start in COLD_STARTS:
            replica = Replica(cold_start=cold_start)
            for name in policies:
                outcome = simulate(POLICIES[name](replica), arrivals, SECONDS, replica)
                yield figures(family, replica, name, outcome)


def measure_days() -> Iterator[Figures]:
    """The last of several days that are alike, with what remembers them and without."""
    for family, (load, peak) in REPEATED.items():

        def daily(now: float, load: Load = load) -> float:
            return load(now % SECONDS)

        arrivals = poisson_arrivals(daily, DAYS * SECONDS, peak, seed=7)
        for cold_start in COLD_STARTS:
            replica = Replica(cold_start=cold_start)
            for name in ("sluice", "reactive", "knative"):
                outcome = simulate(POLICIES[name](replica), arrivals, DAYS * SECONDS, replica)
                yield figures(family, replica, name, last_day(outcome, arrivals, DAYS))


def show(title: str, found: list[Figures]) -> None:
    rows = [
        [
            f"{row.family}, {row.cold_start:.0f} s",
            row.policy,
            f"{row.late_percent:.2f}",
            f"{row.wait_p99:.2f}",
            f"{row.peak} of {row.need}",
            f"{row.spare_percent:.0f}",
            row.turns,
        ]
        for row in found
    ]
    header = ["family, start", "policy", "late %", "wait p99 s", "peak of need", "spare %", "turns"]
    measure.table(title, header, rows)


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="python bench/scaling.py", description=__doc__).parse_args(
        arguments
    )
    once, days = list(measure_once([*POLICIES])), list(measure_days())
    late = f"late is over {LATE_SECONDS} s of waiting; spare is beside an oracle"
    show(f"Scaling, simulated: {late}", once)
    show(f"The last of {DAYS} days that are alike, each {SECONDS // 60} minutes long", days)
    measure.save(
        "scaling",
        {
            "seconds": SECONDS,
            "figures": [asdict(row) for row in once],
            "days": [asdict(row) for row in days],
        },
    )


if __name__ == "__main__":
    main()
