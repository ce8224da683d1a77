"""Scaling decisions in moved time: steps, wakes, sleeps, silence, restarts, noise."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sluice_operator.scaling.needs import down_window, keep_alive, replicas_for
from sluice_operator.scaling.recommend import (
    Decision,
    Recommender,
    Rule,
    WorkerCounts,
)
from sluice_operator.scaling.rules import Rules, rules_of
from sluice_operator.scaling.simulation import (
    Outcome,
    Recommended,
    Replica,
    poisson_arrivals,
    simulate,
)
from tests.support.demand_records import Gateway
from tests.support.resources import service

REPLICA = Replica(slots=4, service_seconds=0.1, cold_start=1.0)  # 40 requests a second


class Running:
    """A service whose replicas become ready at once, driven second by second."""

    def __init__(self, rules: Rules, *, ordered: int = 1, proven: bool = True) -> None:
        self.recommender = Recommender(rules, 0.0, proven=proven)
        self.recommender.started(1.0)
        self.gateway = Gateway()
        self.ordered = ordered
        self.now = 0.0

    def second(self, rate: int = 0, **counts: int) -> Decision:
        self.now += 1.0
        record = self.gateway.served(rate, capacity=40.0, **counts)
        self.recommender.observe(record, self.now)
        return self.decide()

    def decide(self, **counts: int) -> Decision:
        workers = WorkerCounts(**{"ordered": self.ordered, "ready": self.ordered, **counts})
        decision = self.recommender.decide(workers, self.now)
        self.ordered = decision.desired
        return decision

    def seconds(self, count: int, rate: int = 0) -> list[Decision]:
        return [self.second(rate) for _ in range(count)]


def step(seed: int, low: int = 20, high: int = 120) -> Outcome:
    def load(now: float) -> float:
        return high if 60 <= now < 120 else low if now < 240 else 0

    arrivals = poisson_arrivals(load, 400, high, seed)
    return simulate(Recommended(Rules(max_replicas=40), REPLICA), arrivals, 400, REPLICA)


@pytest.mark.parametrize("seed", range(5))
def test_a_step_gets_what_it_needs_and_no_fleet(seed: int) -> None:
    outcome = step(seed)
    first = next((now, count) for now, count in outcome.orders if count > 1)
    assert first[0] <= 61.0, "ordered within a second of the step"
    assert first[1] >= 3, "and at once what the step needs"
    assert outcome.peak <= 5
    assert outcome.late(0.4) < 450, "of 7 200; waiting for the first order takes 1 s and a start"
    assert outcome.unanswered == 0


@pytest.mark.parametrize("seed", range(3))
def test_load_falls_and_replicas_go_within_a_minute_and_then_all(seed: int) -> None:
    orders = step(seed).orders
    one = next(now for now, count in orders if now > 120 and count == 1)
    zero = next(now for now, count in orders if count == 0)
    assert 150 <= one <= 180
    assert 299 <= zero <= 302, "60 s after the last request, with a start of one second"


@pytest.mark.parametrize("load", [20, 32, 48, 64, 96, 120])
def test_noise_makes_no_flapping(load: int) -> None:
    arrivals = poisson_arrivals(lambda _: load, 1200, load, seed=load)
    replica = Replica(cold_start=5.0)
    outcome = simulate(
        Recommended(Rules(max_replicas=40), replica), arrivals, 1200, replica, replicas=4
    )
    assert outcome.turns <= 1
    assert outcome.peak <= max(4, load / 32 + 2)


def test_an_oscillating_load_is_not_followed() -> None:
    arrivals = poisson_arrivals(lambda t: 100 if int(t) % 20 < 10 else 20, 600, 100, seed=1)
    outcome = simulate(Recommended(Rules(max_replicas=40), REPLICA), arrivals, 600, REPLICA)
    assert outcome.turns <= 2


def test_a_wake_orders_the_right_number_at_once() -> None:
    running = Running(Rules(min_replicas=0, max_replicas=20, idle_after=5.0))
    running.seconds(5, rate=20)  # learns what a replica does
    assert running.seconds(5)[-1].rule is Rule.IDLE
    assert running.ordered == 0
    running.now += 60.0
    record = running.gateway.record(interval_seconds=0.05, arrivals=200, held=200, wake=True)
    running.recommender.observe(record, running.now)
    decision = running.decide()
    assert decision.rule is Rule.WAKE
    # 200 in a blink are at least 172 a second: that takes 6 of 40 a second at 80 %, not 1.
    assert 6 <= decision.desired <= 10


def test_a_wake_is_not_for_what_came_before_the_sleep() -> None:
    running = Running(Rules(max_replicas=20, idle_after=2.0))
    running.seconds(30, rate=200)
    running.seconds(5)
    assert running.ordered == 0
    assert running.second(rate=1).desired == 1
    assert {d.desired for d in running.seconds(20, rate=1)} == {1}


def test_a_single_request_wakes_one() -> None:
    running = Running(Rules(max_replicas=20), ordered=0)
    record = running.gateway.record(interval_seconds=0.05, arrivals=1, held=1, wake=True)
    running.recommender.observe(record, 1.0)
    decision = running.decide()
    assert (decision.desired, decision.rule) == (1, Rule.WAKE)


def test_the_first_wake_ever_starts_one_because_nothing_is_known() -> None:
    running = Running(Rules(max_replicas=20), ordered=0)
    decision = running.second(held=50)
    assert (decision.desired, decision.rule) == (1, Rule.WAKE)
    assert decision.inputs.capacity is None


def test_asleep_and_not_asked_stays_asleep_whatever_the_cache_answers() -> None:
    running = Running(Rules(), ordered=0)
    for _ in range(200):
        decision = running.second(cache_hits=500)
        assert (decision.desired, decision.rule) == (0, Rule.STEADY)


def test_cache_hits_do_not_keep_a_service_awake() -> None:
    running = Running(Rules(idle_after=10.0))
    running.second(rate=10)
    decisions = [running.second(cache_hits=100) for _ in range(10)]
    assert [d.desired for d in decisions] == [1] * 9 + [0]


def test_a_long_request_keeps_a_service_awake() -> None:
    running = Running(Rules(idle_after=10.0))
    decisions = [running.second(in_flight=1) for _ in range(100)]
    assert {d.desired for d in decisions} == {1}


def test_no_wake_right_after_falling_asleep() -> None:
    running = Running(Rules(idle_after=2.0))
    running.seconds(20, rate=30)
    decisions = running.seconds(30)
    assert [d.desired for d in decisions] == [1] + [0] * 29


def test_a_lull_does_not_take_all_that_a_minute_needed() -> None:
    running = Running(Rules(max_replicas=20))
    running.seconds(120, rate=100)
    decisions = running.seconds(40)
    assert decisions[28].desired == 4
    # 20 s of 100 stand in the last minute: 33 a second, which one replica should not carry.
    assert decisions[39].desired == 2


def test_what_a_gateway_held_before_it_fell_silent_wakes_nobody() -> None:
    running = Running(Rules(), ordered=0)
    running.recommender.observe(running.gateway.record(held=5, wake=True), 1.0)
    running.now = 30.0
    assert running.decide().desired == 0


def test_minimum_replicas_never_sleep() -> None:
    running = Running(Rules(min_replicas=2), ordered=2)
    running.seconds(10, rate=10)
    assert {d.desired for d in running.seconds(2000)} == {2}


def test_silence_of_all_gateways_holds() -> None:
    running = Running(Rules(max_replicas=10, idle_after=5.0))
    running.seconds(15, rate=100)
    for _ in range(600):
        running.now += 1.0
        decision = running.decide()
        assert decision.desired == 4
    assert decision.hold
    assert decision.reason == "no gateway has reported", "it was forgotten, not believed to be idle"


def test_silence_of_one_gateway_holds_but_may_raise() -> None:
    running, other = Running(Rules(max_replicas=10)), Gateway("gateway-2")
    for _ in range(60):
        running.recommender.observe(other.served(60, capacity=40.0), running.now)
        running.second(rate=60)
    assert running.ordered == 4
    for _ in range(60):
        decision = running.second(rate=1)
    assert (decision.desired, decision.rule) == (4, Rule.HOLD)
    assert "1 of 2 gateways are silent" in decision.reason
    running.seconds(10, rate=200)
    assert running.ordered > 6
    running.recommender.forget("gateway-2")
    running.seconds(200, rate=10)
    assert running.ordered == 1


def test_a_gateway_that_comes_back_does_not_lower_at_once() -> None:
    running = Running(Rules(max_replicas=10, idle_after=5.0))
    running.seconds(30, rate=100)
    before = running.ordered
    running.now += 100.0
    decisions = running.seconds(4, rate=0)
    assert {d.desired for d in decisions} == {before}, "what came meanwhile nobody knows"


def test_after_a_restart_nothing_is_lowered_until_a_window_is_known() -> None:
    running = Running(Rules(max_replicas=10), ordered=6)
    decisions = running.seconds(29, rate=10)
    assert {d.desired for d in decisions} == {6}
    assert decisions[-1].rule is Rule.HOLD
    running.seconds(10, rate=10)
    assert running.ordered == 1


def test_before_any_gateway_has_reported_the_number_is_held() -> None:
    decision = Recommender(Rules(), 0.0, proven=True).decide(WorkerCounts(ordered=3, ready=3), 1.0)
    assert (decision.desired, decision.rule, decision.hold) == (3, Rule.HOLD, True)


def test_a_number_that_nothing_is_known_about_is_held_and_says_what_is_missing() -> None:
    running = Running(Rules(), proven=False)
    record = running.gateway.served(0, capacity=40.0)
    running.recommender.observe(record, 1.0)
    reasons = [running.decide(ready=ready).reason for ready in (0, 1)]
    assert reasons == ["no replica is ready yet", "ready, nobody has asked yet"]
    decision = running.second(held=1)
    assert (decision.rule, decision.reason) == (Rule.HOLD, "no answer has been seen to learn from")


def test_a_new_revision_proves_itself_and_then_sleeps() -> None:
    running = Running(Rules(initial_replicas=2, idle_after=10.0), ordered=0, proven=False)
    assert running.decide(ready=0).rule is Rule.INITIAL
    assert running.ordered == 2
    for _ in range(100):
        running.now += 1.0
        running.recommender.observe(running.gateway.record(), running.now)
        assert running.decide(ready=0, starting=2).desired == 2
    assert {d.desired for d in running.seconds(9)} == {2}
    assert running.seconds(2)[-1].desired == 0
    assert running.second().rule is Rule.STEADY


def test_initial_replicas_of_zero_start_with_the_first_request() -> None:
    running = Running(Rules(initial_replicas=0), ordered=0, proven=False)
    assert running.second().desired == 0
    assert running.second(held=1).desired == 1


@pytest.mark.parametrize("stuck", [{"ready": 0, "failed": 2}, {"ready": 1, "unschedulable": 1}])
def test_stuck_replicas_stop_further_orders_and_are_named(stuck: dict[str, int]) -> None:
    running = Running(Rules(max_replicas=20), ordered=2)
    running.seconds(5, rate=60)
    running.now += 1.0
    running.recommender.observe(running.gateway.served(300, capacity=40.0), running.now)
    decision = running.decide(**stuck)
    assert (decision.desired, decision.rule) == (2, Rule.BLOCKED)
    assert "would be wanted" in decision.reason


def test_one_that_fails_does_not_stop_the_growth_of_those_that_answer() -> None:
    running = Running(Rules(max_replicas=20), ordered=2)
    running.seconds(5, rate=60)
    running.now += 1.0
    running.recommender.observe(running.gateway.served(300, capacity=40.0), running.now)
    decision = running.decide(ready=1, failed=1)
    assert decision.desired > 2
    assert decision.rule in (Rule.ARRIVALS, Rule.BACKLOG)


def test_stuck_replicas_do_not_keep_a_sleeping_service_from_waking() -> None:
    running = Running(Rules(), ordered=0)
    running.recommender.observe(running.gateway.record(held=1, wake=True), 1.0)
    assert running.decide(ready=0, failed=1).desired == 1


def test_starting_replicas_count_so_that_orders_do_not_cascade() -> None:
    recommender, gateway = Recommender(Rules(max_replicas=50), 0.0, proven=True), Gateway()
    recommender.started(30.0)
    recommender.observe(gateway.served(40, capacity=40.0), 1.0)
    ordered, held = 1, 0
    for second in range(2, 30):
        held += 60
        record = gateway.record(
            arrivals=100, completions=40, service_seconds=1.0, held=held, oldest_held_seconds=9.0
        )
        recommender.observe(record, second)
        ordered = recommender.decide(WorkerCounts(ordered, 1, ordered - 1), second).desired
    assert ordered <= 5, "100 a second need 4 of 40; the backlog of 1 700 is not steady demand"


def test_capacity_is_not_misread_while_replicas_become_ready() -> None:
    # Found by simulation: dividing one replica's answers by four new ones ordered eighteen.
    recommender, gateway = Recommender(Rules(max_replicas=50), 0.0, proven=True), Gateway()
    recommender.observe(gateway.served(40, capacity=40.0), 1.0)
    full = {"arrivals": 120, "completions": 40, "service_seconds": 1.0, "held": 300}
    recommender.observe(gateway.record(**full, oldest_held_seconds=2.0), 2.0)
    recommender.decide(WorkerCounts(1, ready=1), 2.0)
    recommender.observe(gateway.record(**full, oldest_held_seconds=3.0), 3.0)
    assert recommender.decide(WorkerCounts(4, ready=4), 3.0).inputs.capacity == 40.0


def test_bounds_hold_even_when_nothing_is_known() -> None:
    recommender = Recommender(Rules(min_replicas=3, max_replicas=5), 0.0, proven=True)
    low = recommender.decide(WorkerCounts(ordered=1), 1.0)
    assert (low.desired, low.rule) == (3, Rule.FLOOR)
    high = recommender.decide(WorkerCounts(ordered=9), 1.0)
    assert (high.desired, high.rule) == (5, Rule.CEILING)


def test_a_floor_says_what_there_would_be_without_it() -> None:
    running = Running(Rules(min_replicas=1), ordered=0)
    decision = running.second()
    assert (decision.desired, decision.rule) == (1, Rule.FLOOR)
    assert decision.reason == "minReplicas is 1; without it there would be 0"


def test_rules_may_change_while_running() -> None:
    running = Running(Rules(max_replicas=2))
    running.seconds(30, rate=200)
    assert running.ordered == 2
    running.recommender.rules = Rules(max_replicas=20)
    assert running.second(rate=200).desired == 7


def test_a_concurrency_target_asks_for_more_room() -> None:
    plain, roomy = Running(Rules(max_replicas=20)), Running(Rules(max_replicas=20, concurrency=1))
    for _ in range(30):
        plain.second(rate=60, in_flight=6)
        roomy.second(rate=60, in_flight=6)
    assert plain.ordered == 2
    assert roomy.ordered == 6, "six at once on average, one for each replica"


def test_the_backlog_is_drained_but_bounded() -> None:
    assert replicas_for(0.0, 0, 40.0, 10.0) == 0
    assert replicas_for(32.0, 0, 40.0, 10.0) == 1
    assert replicas_for(33.0, 0, 40.0, 10.0) == 2
    assert replicas_for(32.0, 100, 40.0, 10.0) == 2
    assert replicas_for(32.0, 100_000, 40.0, 10.0) == 2, "at most as much again"
    assert replicas_for(0.0, 100_000, 40.0, 10.0) == 1
    assert replicas_for(310.0, 100_000, 40.0, 10.0) == 13, "three in ten more than 10"
    assert replicas_for(90.0, 100_000, 40.0, 10.0) == 4, "or one more"


def test_windows_follow_the_learnt_start_time() -> None:
    assert [down_window(s) for s in (1, 20, 1000)] == [30, 60, 300]
    assert [keep_alive(Rules(), s) for s in (1, 20, 1000)] == [60, 200, 1800]
    assert keep_alive(Rules(idle_after=7.0), 1000) == 7.0


def test_a_decision_reads_as_a_sentence() -> None:
    running = Running(Rules(max_replicas=20))
    running.seconds(5, rate=20)
    text = str(running.second(rate=200))
    assert text.startswith("1 → 6 (arrivals): ")
    assert "a replica does 40.0" in text


def test_rules_come_from_the_spec() -> None:
    assert rules_of(service()) == Rules()
    spec = {"minReplicas": 1, "maxReplicas": 9, "initialReplicas": 2, "idleAfter": "5m"}
    scaling = {**spec, "target": {"concurrency": 8}}
    assert rules_of(service(scaling=scaling)) == Rules(1, 9, 2, 8, 300.0)


def test_the_page_explains_every_rule() -> None:
    page = (Path(__file__).parents[3] / "docs/scaling.md").read_text()
    for rule in Rule:
        assert f"\n| `{rule}` | " in page


def test_a_node_that_starts_replicas_slowly_is_not_given_more_and_more_of_them() -> None:
    running = Running(Rules(max_replicas=100))
    running.seconds(5, rate=30)
    orders = []
    for second in range(50):
        running.now += 1.0
        # One replica, soon slowed down tenfold by the others' starts, and a queue that grows.
        does = 40 if second == 0 else 4
        record = running.gateway.record(
            arrivals=120,
            completions=does,
            service_seconds=1.0,
            held=116 * (second + 1),
            oldest_held_seconds=float(second + 1),
        )
        running.recommender.observe(record, running.now)
        decision = running.decide(ready=1, starting=running.ordered - 1)
        orders.append(decision.desired)
    assert max(orders) <= 6, orders


def test_replicas_that_have_not_started_are_given_back_when_the_load_has_gone() -> None:
    running = Running(Rules(max_replicas=20))
    running.seconds(5, rate=200)
    ordered = running.ordered
    assert ordered >= 5
    desired = []
    for _ in range(80):
        running.now += 1.0
        record = running.gateway.served(10, capacity=40.0)
        running.recommender.observe(record, running.now)
        desired.append(running.decide(ready=2, starting=max(0, running.ordered - 2)).desired)
        if desired[-1] == 2:
            break
    assert desired[-1] == 2
    assert len(desired) <= 25, "well before the window of what answers"


def test_a_climb_is_met_before_it_comes_and_says_so() -> None:
    running, reactive = Running(Rules(max_replicas=20)), Running(Rules(foresight=False))
    for each in (running, reactive):
        each.recommender.started(120.0)
        each.recommender.rules = Rules(max_replicas=20, foresight=each is running)
    decisions = []
    for second in range(420):
        before = running.ordered
        decision = running.second(20 + second // 3)
        reactive.second(20 + second // 3)
        if decision.desired > before:
            decisions.append(decision)
    assert running.ordered > reactive.ordered
    foreseen = next(decision for decision in decisions if decision.rule is Rule.TREND)
    assert "req/s and climbing" in foreseen.reason
    assert "when a replica has started, in 120 s" in foreseen.reason


def usual(rate: float) -> Callable[[float], float]:
    return lambda ahead: rate


def test_a_season_raises_and_is_named() -> None:
    running = Running(Rules(max_replicas=20))
    running.recommender.started(30.0)
    running.seconds(10, rate=20)
    workers = WorkerCounts(running.ordered, ready=running.ordered)
    decision = running.recommender.decide(workers, running.now, usual=usual(100.0))
    assert (decision.desired, decision.rule) == (4, Rule.SEASON)
    assert decision.reason == "100.0 req/s came at this time on other days"
    lower = running.recommender.decide(workers, running.now, usual=usual(1.0))
    assert (lower.desired, lower.rule) == (1, Rule.STEADY)


def test_a_season_wakes_and_keeps_awake_for_what_comes_within_a_start() -> None:
    running = Running(Rules(idle_after=10.0))
    running.seconds(20)
    assert running.ordered == 0
    for rate, desired in ((0.9, 0), (1.1, 1)):  # a start takes one second
        decision = running.recommender.decide(WorkerCounts(0), running.now, usual=usual(rate))
        assert decision.desired == desired
    assert decision.rule is Rule.SEASON
    awake = WorkerCounts(1, ready=1)
    for _ in range(20):
        running.now += 1.0
        running.recommender.observe(running.gateway.record(), running.now)
        assert running.recommender.decide(awake, running.now, usual=usual(1.1)).desired == 1
    assert running.recommender.decide(awake, running.now).rule is Rule.IDLE


def test_what_was_foreseen_stays_for_a_window_although_it_did_not_come() -> None:
    running = Running(Rules(max_replicas=20))
    running.seconds(60, rate=20)
    workers = WorkerCounts(1, ready=1)
    raised = running.recommender.decide(workers, running.now, usual=usual(100.0))
    assert raised.desired == 4
    running.ordered = 4
    assert {decision.desired for decision in running.seconds(29, rate=20)} == {4}
    assert running.seconds(5, rate=20)[-1].desired == 1


def test_nothing_is_foreseen_while_a_share_is_unknown() -> None:
    running = Running(Rules(max_replicas=20))
    running.recommender.started(30.0)
    running.seconds(10, rate=20)
    workers = WorkerCounts(1, ready=1)
    blind = running.recommender.decide(workers, running.now, unheard=1, usual=usual(1000.0))
    assert (blind.desired, blind.inputs.foreseen) == (1, 0)


def test_what_is_foreseen_is_bounded_like_everything() -> None:
    running = Running(Rules(max_replicas=3))
    running.recommender.started(30.0)
    running.seconds(10, rate=20)
    decision = running.recommender.decide(WorkerCounts(1, 1), running.now, usual=usual(1000.0))
    assert (decision.desired, decision.rule) == (3, Rule.CEILING)
    assert decision.reason.startswith("maxReplicas is 3; 1000.0 req/s came at this time")


def bursts(now: float) -> float:
    return 100.0 if now % 240 < 30 else 20.0


@pytest.mark.parametrize("cold_start", [5.0, 15.0])
def test_a_burst_that_comes_again_and_again_finds_its_replicas(cold_start: float) -> None:
    replica = Replica(cold_start=cold_start)
    arrivals = poisson_arrivals(bursts, 1800, 100.0, seed=3)
    late = {}
    for foresight in (True, False):
        policy = Recommended(Rules(max_replicas=40, foresight=foresight), replica)
        outcome = simulate(policy, arrivals, 1800, replica)
        late[foresight] = outcome.late(0.5)
        if foresight:
            assert outcome.peak <= 6
            assert not any(1000 < now < 1800 for now, _ in outcome.orders), "it is waited for"
    assert late[True] < 0.5 * late[False]


def test_replicas_that_are_cheap_to_start_wait_for_nobody() -> None:
    replica = Replica(cold_start=0.5)
    arrivals = poisson_arrivals(bursts, 1800, 100.0, seed=3)
    outcome = simulate(Recommended(Rules(max_replicas=40), replica), arrivals, 1800, replica)
    assert outcome.turns >= 10


def test_a_burst_that_does_not_come_again_is_waited_for_once() -> None:
    replica = Replica(cold_start=15.0)
    arrivals = poisson_arrivals(lambda t: bursts(t) if t < 1100 else 20.0, 1800, 100.0, seed=3)
    outcome = simulate(Recommended(Rules(max_replicas=40), replica), arrivals, 1800, replica)
    assert outcome.orders[-1][1] == 1
    assert outcome.orders[-1][0] <= 1100 + 300


def test_an_idle_time_that_was_asked_for_is_kept_whatever_comes_again() -> None:
    running = Running(Rules(max_replicas=20, idle_after=20.0))
    running.recommender.started(30.0)
    for _ in range(5):
        running.seconds(30, rate=30)
        assert running.seconds(20)[-1].desired == 0
        running.seconds(60)
        running.decide(ready=0)


@pytest.mark.parametrize("cold_start", [5.0, 60.0])
def test_a_backlog_orders_no_fleet(cold_start: float) -> None:
    def spike(now: float) -> float:
        return 300.0 if 100 <= now < 115 else 20.0

    replica = Replica(cold_start=cold_start)
    arrivals = poisson_arrivals(spike, 300, 300.0, seed=5)
    outcome = simulate(Recommended(Rules(max_replicas=100), replica), arrivals, 300, replica)
    assert outcome.peak <= 13, "300 a second need 10"
    assert outcome.unanswered == 0


def test_a_lone_request_now_and_then_is_no_habit_to_stay_awake_for() -> None:
    running = Running(Rules(max_replicas=20))
    running.recommender.started(2.0)
    for _ in range(6):
        assert running.second(rate=1).desired == 1
        assert running.seconds(62)[-1].desired == 0
        running.seconds(30)
