"""The simulated service serves, queues, starts and stops replicas as it says."""

from itertools import pairwise

import pytest

from sluice_operator.scaling.simulation import (
    Replica,
    SimulatedService,
    View,
    poisson_arrivals,
    simulate,
)

REPLICA = Replica(slots=2, service_seconds=1.0, cold_start=5.0)


class Fixed:
    """A policy that always wants the same, and keeps what it was told."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.views: list[View] = []

    def __call__(self, view: View) -> int:
        self.views.append(view)
        return self.count


def test_slots_serve_first_in_first_out() -> None:
    outcome = simulate(Fixed(1), [0.0, 0.1, 0.2, 0.3], 10, REPLICA)
    assert outcome.waits == pytest.approx([0.0, 0.0, 0.8, 0.8])
    assert outcome.unanswered == 0
    assert outcome.replica_seconds == pytest.approx(10)


def test_a_new_replica_helps_after_its_start() -> None:
    outcome = simulate(Fixed(2), [0.5] * 40, 20, REPLICA, replicas=1)
    assert outcome.orders == [(0.0, 1), (1.0, 2)]
    began = sorted(0.5 + wait for wait in outcome.waits)
    assert sum(at < 6.0 for at in began) == 12, "two slots until the second is ready at 6 s"
    assert sum(6.0 <= at < 8.0 for at in began) == 8, "then four"


def test_every_arrival_is_answered_or_counted() -> None:
    arrivals = poisson_arrivals(lambda _: 5.0, 100, 5.0, seed=3)
    outcome = simulate(Fixed(1), arrivals, 100, REPLICA)
    assert len(outcome.waits) + outcome.unanswered == len(arrivals)
    assert outcome.unanswered > 200, "two a second of five"
    assert outcome.late(0.0) >= outcome.unanswered


def test_records_add_up_and_say_what_waits() -> None:
    policy, arrivals = Fixed(1), poisson_arrivals(lambda _: 3.0, 50, 3.0, seed=1)
    outcome = simulate(policy, arrivals, 50, REPLICA)
    records = [view.record for view in policy.views]
    assert sum(r.arrivals for r in records) == len(arrivals)
    assert sum(r.completions for r in records) == len(outcome.waits)
    assert records[-1].held == outcome.unanswered
    assert all((r.oldest_held_seconds > 0) == (r.held > 0) for r in records)
    assert all(r.in_flight <= REPLICA.slots for r in records)
    assert all(b.sequence == a.sequence + 1 for a, b in pairwise(records))


def test_a_sleeping_service_tells_at_once() -> None:
    policy = Fixed(1)
    simulate(policy, [3.2], 10, REPLICA, replicas=0)
    first = next(view for view in policy.views if view.record.arrivals)
    assert not policy.views[0].record.wake
    assert policy.views[0].workers.ordered == 0
    # The policy wanted one from the first second on, so it was starting already.
    assert first.workers.starting == 1
    asleep = SimulatedService(REPLICA, [3.2], 0)
    assert asleep.next_wake(4.0) == pytest.approx(3.25)
    assert asleep.run_until(3.25).record.wake


def test_what_starts_is_given_up_before_what_runs() -> None:
    service = SimulatedService(REPLICA, [], 1)
    service.order(3)
    service.run_until(1.0)
    service.order(1)
    view = service.run_until(2.0)
    assert (view.workers.ready, view.workers.starting) == (1, 0)


def test_arrivals_follow_the_load_and_the_seed() -> None:
    def load(now: float) -> float:
        return 10.0 if now < 500 else 50.0

    times = poisson_arrivals(load, 1000, 50.0, seed=2)
    assert times == poisson_arrivals(load, 1000, 50.0, seed=2)
    assert times != poisson_arrivals(load, 1000, 50.0, seed=3)
    assert sum(at < 500 for at in times) == pytest.approx(5_000, rel=0.1)
    assert sum(at >= 500 for at in times) == pytest.approx(25_000, rel=0.05)


def test_turns_count_changes_of_direction() -> None:
    outcome = simulate(Fixed(1), [], 1, REPLICA)
    outcome.orders = [(0.0, 1), (1.0, 2), (2.0, 3), (3.0, 2), (4.0, 4)]
    assert (outcome.turns, outcome.peak) == (2, 4)
