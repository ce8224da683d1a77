"""Scaling decisions in simulated time: ours beside Knative's autoscaler and an HPA on concurrency.

Six families of load, three start times, the same arrivals for every policy. The peers are written
from their published algorithms (Knative: docs of its autoscaler, config-autoscaler defaults;
HPA v2: its documentation) and get what they cannot measure in reality for free: exact concurrency
of every replica and of the queue, without delay. Nothing else of them is modelled.
"""

import argparse
import math
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise

import measure

from sluice_operator.scaling.rules import Rules
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
COLD_STARTS = (2.0, 15.0, 60.0)


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


POLICIES: dict[str, Callable[[Replica], Policy]] = {
    "sluice": lambda replica: Recommended(Rules(max_replicas=MAX_REPLICAS), replica),
    "knative": Knative,
    "hpa": ConcurrencyHpa,
}


@dataclass(frozen=True)
class Figures:
    """One policy on one family with one start time."""

    family: str
    cold_start: float
    policy: str
    requests: int
    late_percent: float
    wait_p99: float
    peak: int
    peak_over_need: float
    spare_percent: float
    changes: int
    turns: int


def oracle(load: Load, replica: Replica) -> tuple[float, int]:
    """Replica-seconds and peak of one who knows the load and starts replicas beforehand."""
    needs = [math.ceil(load(second) / (replica.capacity * PLANNED)) for second in range(SECONDS)]
    return float(sum(needs)), max(needs)


def figures(family: str, cold_start: float, policy: str, outcome: Outcome, total: int) -> Figures:
    replica = Replica(cold_start=cold_start)
    seconds, need = oracle(FAMILIES[family][0], replica)
    waits = sorted([*outcome.waits, *([math.inf] * outcome.unanswered)])
    return Figures(
        family=family,
        cold_start=cold_start,
        policy=policy,
        requests=total,
        late_percent=round(100 * outcome.late(LATE_SECONDS) / total, 2),
        wait_p99=round(waits[int(0.99 * len(waits))], 3),
        peak=outcome.peak,
        peak_over_need=round(outcome.peak / need, 2),
        spare_percent=round(100 * (outcome.replica_seconds / seconds - 1), 1),
        changes=sum(a != b for (_, a), (_, b) in pairwise(outcome.orders)),
        turns=outcome.turns,
    )


def measure_all() -> list[Figures]:
    found = []
    for family, (load, peak) in FAMILIES.items():
        arrivals = poisson_arrivals(load, SECONDS, peak, seed=7)
        for cold_start in COLD_STARTS:
            replica = Replica(cold_start=cold_start)
            for name, make in POLICIES.items():
                outcome = simulate(make(replica), arrivals, SECONDS, replica)
                found.append(figures(family, cold_start, name, outcome, len(arrivals)))
    return found


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="python bench/scaling.py", description=__doc__).parse_args(
        arguments
    )
    found = measure_all()
    header = ["family, start", "policy", "late %", "wait p99 s", "peak", "peak ÷ need"]
    rows = [
        [
            f"{row.family}, {row.cold_start:.0f} s",
            row.policy,
            f"{row.late_percent:.2f}",
            f"{row.wait_p99:.2f}",
            row.peak,
            f"{row.peak_over_need:.2f}",
            f"{row.spare_percent:.0f}",
            row.turns,
        ]
        for row in found
    ]
    measure.table(
        f"Scaling, simulated: late is over {LATE_SECONDS} s of waiting; spare is beside an oracle",
        [*header, "spare %", "turns"],
        rows,
    )
    measure.save("scaling", {"seconds": SECONDS, "figures": [asdict(row) for row in found]})


if __name__ == "__main__":
    main()
