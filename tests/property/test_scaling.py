"""What must hold of every scaling decision, whatever gateways and workers report."""

import math
from dataclasses import replace
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from sluice_operator.scaling.recommend import Recommender, Rule, WorkerCounts
from sluice_operator.scaling.rules import Rules
from sluice_operator.scaling.simulation import Recommended, Replica, poisson_arrivals, simulate
from tests.support.demand_records import Gateway

RULES = st.builds(
    lambda low, span, initial, concurrency, idle: Rules(
        min_replicas=low,
        max_replicas=max(1, low + span),
        initial_replicas=min(initial, max(1, low + span)),
        concurrency=concurrency,
        idle_after=idle,
    ),
    st.integers(0, 5),
    st.integers(0, 20),
    st.integers(0, 3),
    st.none() | st.integers(1, 16),
    st.none() | st.floats(1.0, 600.0),
)

COUNT = st.integers(0, 500)
SECOND = st.fixed_dictionaries(
    {
        "elapsed": st.sampled_from([0.05, 0.3, 1.0, 1.0, 1.0, 4.0, 20.0, 400.0]),
        "speaking": st.lists(st.sampled_from(["one", "two"]), unique=True),
        "counts": st.fixed_dictionaries(
            {},
            optional={
                "arrivals": COUNT,
                "held": COUNT,
                "in_flight": COUNT,
                "completions": COUNT,
                "service_seconds": st.floats(0.0, 100.0),
                "oldest_held_seconds": st.floats(0.0, 60.0),
                "cache_hits": COUNT,
                "interval_seconds": st.floats(0.01, 30.0),
                "wake": st.booleans(),
            },
        ),
        "ready": st.integers(0, 30),
        "failed": st.sampled_from([0, 0, 0, 1, 3]),
        "unschedulable": st.sampled_from([0, 0, 0, 2]),
    }
)


@settings(max_examples=200, deadline=None)
@given(RULES, st.booleans(), st.lists(SECOND, max_size=40))
def test_whatever_is_reported(rules: Rules, proven: bool, seconds: list[dict]) -> None:  # type: ignore[type-arg]
    recommender = Recommender(rules, 0.0, proven=proven)
    gateways = {"one": Gateway("one"), "two": Gateway("two")}
    now, ordered, last_seen = 0.0, rules.min_replicas, dict[str, float]()
    for second in seconds:
        now += second["elapsed"]
        for name in second["speaking"]:
            recommender.observe(gateways[name].record(**second["counts"]), now)
            last_seen[name] = now
        ready = min(ordered, second["ready"])
        workers = WorkerCounts(
            ordered, ready, ordered - ready, second["failed"], second["unschedulable"]
        )
        decision = recommender.decide(workers, now)

        assert rules.min_replicas <= decision.desired <= rules.max_replicas
        assert decision.reason
        stuck = second["unschedulable"] or (second["failed"] and not ready)
        if stuck and ordered:
            assert decision.desired <= ordered, "no further orders while replicas are stuck"
        silent = any(now - seen > 5.0 for seen in last_seen.values() if now - seen <= 300.0)
        if silent or not last_seen:
            assert decision.desired >= ordered, "missing data never lowers"
        if decision.desired == 0 and ordered:
            assert decision.rule is Rule.IDLE
        ordered = decision.desired


def steady(rate: int, *, capacity: float, hits: int = 0, seconds: int = 120) -> int:
    """The number that a constant load settles at."""
    recommender, gateway = Recommender(Rules(max_replicas=1000), 0.0, proven=True), Gateway()
    recommender.started(1.0)
    ordered = 1
    for second in range(1, seconds + 1):
        recommender.observe(gateway.served(rate, capacity=capacity, cache_hits=hits), second)
        ordered = recommender.decide(WorkerCounts(ordered, ordered), second).desired
    return ordered


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.integers(0, 400), st.floats(1.0, 200.0))
def test_more_demand_never_means_fewer_replicas(rate: int, more: int, capacity: float) -> None:
    few, many = steady(rate, capacity=capacity), steady(rate + more, capacity=capacity)
    assert few <= many
    assert few * capacity >= rate, "and always enough to carry it"
    assert few <= rate / capacity / 0.7 + 1, "and not many more"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100), st.integers(0, 10_000))
def test_cache_hits_do_not_count(rate: int, hits: int) -> None:
    assert steady(rate, capacity=20.0, hits=hits) == steady(rate, capacity=20.0)


@settings(max_examples=100, deadline=None)
@given(RULES, st.lists(SECOND, max_size=40), st.floats(0.0, 500.0))
def test_foresight_only_raises(rules: Rules, seconds: list[dict], usual: float) -> None:  # type: ignore[type-arg]
    foreseeing = Recommender(rules, 0.0, proven=True)
    reactive = Recommender(replace(rules, foresight=False), 0.0, proven=True)
    gateways = {"one": Gateway("one"), "two": Gateway("two")}
    now, ordered = 0.0, rules.min_replicas
    for second in seconds:
        now += second["elapsed"]
        for name in second["speaking"]:
            record = gateways[name].record(**second["counts"])
            foreseeing.observe(record, now)
            reactive.observe(record, now)
        ready = min(ordered, second["ready"])
        workers = WorkerCounts(ordered, ready, ordered - ready)
        without = reactive.decide(workers, now)
        decision = foreseeing.decide(workers, now, usual=lambda ahead: usual)
        assert decision.desired >= without.desired
        ordered = decision.desired


def test_noise_makes_no_foresight_order_more() -> None:
    """Of given draws: noise has no bound, and one of some hundred orders one more than this."""
    beyond: list[int] = []
    for need, cold_start in product(range(2, 13), (5.0, 60.0, 240.0)):
        replica = Replica(cold_start=cold_start, slots=1)  # 10 requests a second
        rate = 0.95 * need * replica.capacity * 0.8
        arrivals = poisson_arrivals(lambda _: rate, 600, rate, seed=need)  # noqa: B023
        policy = Recommended(Rules(max_replicas=100), replica)
        outcome = simulate(policy, arrivals, 600, replica, replicas=need)
        beyond.append(outcome.peak - max(need + 1, math.floor(1.3 * need)))
        assert outcome.turns <= 2
    assert sum(more > 0 for more in beyond) <= 1 and max(beyond) <= 1
