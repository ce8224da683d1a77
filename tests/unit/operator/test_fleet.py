"""The fleet: wakes at once, holds on what it does not know, explains, forgets, costs little."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from sluice_api import names, wire
from sluice_operator.awareness import LOOK_SECONDS, MISSED_SECONDS, Gateways
from sluice_operator.fleet import Fleet
from sluice_operator.state import Key, Observed, Wanted
from tests.support.demand_records import Gateway
from tests.support.observed_services import observed, pod, spec_revision
from tests.support.virtual_time import in_virtual_time

KEY = Key("default", "minilm")
REVISION = spec_revision()
OTHER = spec_revision(model__maxInputTokens=128)


class Watched:
    """A fleet, what it asked to be reconciled, and a cluster that does as it is told."""

    def __init__(self, **changes: Any) -> None:
        self.changed: list[Key] = []
        self.now = 0.0
        self.seen: Observed | None = None
        self.fleet = Fleet(
            self.changed.append,
            lambda key: self.seen,
            clock=lambda: self.now,
            wall=lambda: 1_800_000_000 + self.now,
            decided=lambda rule: self.rules.append(rule),
        )
        self.rules: list[str] = []
        self.gateway = Gateway()
        self.changes = changes

    def reconcile(self, replicas: dict[str, int] | None = None, **more: Any) -> dict[str, Wanted]:
        self.seen = observed(replicas=replicas, ready=more.pop("ready", replicas), **more)
        return self.fleet.decide(self.seen, self.now)

    def tell(self, *, gateway: Gateway | None = None, **counts: Any) -> None:
        revision = counts.pop("revision", REVISION)
        record = (gateway or self.gateway).record(**counts)
        record.revision = revision
        self.fleet.observe(record, self.now)

    def serve(self, seconds: int, rate: int, capacity: float = 40.0) -> None:
        for _ in range(seconds):
            self.now += 1
            record = self.gateway.served(rate, capacity=capacity)
            record.revision = REVISION
            self.fleet.observe(record, self.now)


PROVEN = {
    "revision": REVISION,
    "revisions": [{"name": REVISION, "proven": True, "desiredReplicas": 1}],
}


def test_a_new_service_proves_itself() -> None:
    wanted = Watched().reconcile()
    assert wanted == {REVISION: Wanted(1, "initial", "the revision proves itself")}


def test_a_service_made_anew_under_its_name_proves_itself_again() -> None:
    watched = Watched()
    watched.reconcile({REVISION: 1}, status=PROVEN)
    watched.serve(200, 0)
    assert watched.reconcile({REVISION: 1}, status=PROVEN)[REVISION].desired == 0
    wanted = watched.reconcile({REVISION: 1}, metadata__uid="u-2")
    assert wanted == {REVISION: Wanted(1, "initial", "the revision proves itself")}


@pytest.mark.parametrize("number", [0, 1, 4])
@pytest.mark.parametrize("mode", ["hpa", "direct"])
def test_what_somebody_else_ordered_is_not_taken_for_our_own(number: int, mode: str) -> None:
    entry = {"name": REVISION, "proven": True, "desiredReplicas": 2}
    status = {"revision": REVISION, "revisions": [entry]}
    told = []
    for owners in ({names.SCALER_FIELD_MANAGER}, {"kubectl"}, set()):
        watched = Watched()
        managers = {f"minilm-{REVISION}": frozenset(owners)}
        seen = observed(
            replicas={REVISION: number}, ready={REVISION: 2}, status=status, scaling__mode=mode
        )
        wanted = watched.fleet.decide(replace(seen, replicas_managers=managers), 0.0)
        told.append(wanted[REVISION].desired)
    assert told == [number, 2, 2]


def test_a_wake_is_asked_for_at_once_and_to_the_right_number() -> None:
    watched = Watched()
    assert watched.reconcile(status=PROVEN)[REVISION].desired == 0
    watched.serve(3, 0)
    assert watched.changed == []
    watched.tell(held=50, arrivals=50, wake=True, interval_seconds=0.01)
    assert watched.changed == [KEY]
    wanted = watched.reconcile(status=PROVEN)[REVISION]
    assert (wanted.desired, wanted.rule) == (1, "wake"), "nothing is known yet of what one does"


def test_a_wake_knows_what_a_replica_did_before() -> None:
    watched = Watched()
    watched.reconcile({REVISION: 1}, status=PROVEN, scaling__maxReplicas=20)
    watched.serve(5, 30)
    watched.fleet.tick(watched.now)
    watched.serve(100, 0)
    assert watched.reconcile({REVISION: 0}, status=PROVEN, scaling__maxReplicas=20)
    watched.tell(held=600, arrivals=600, wake=True, interval_seconds=0.05)
    wanted = watched.reconcile({REVISION: 0}, status=PROVEN, scaling__maxReplicas=20)
    assert wanted[REVISION].desired > 1


def test_the_rule_that_set_a_number_stays_with_it() -> None:
    watched = Watched()
    watched.reconcile(status=PROVEN)
    watched.tell(held=1, arrivals=1, wake=True)
    first = watched.reconcile({REVISION: 0}, status=PROVEN)
    again = watched.reconcile({REVISION: 1}, status=PROVEN)
    assert first == again, "the next decision is 'steady', which would only write status anew"


def test_a_new_operator_goes_on_telling_what_the_one_before_told() -> None:
    told = {"desired": 2, "rule": "arrivals", "reason": "61.0 req/s, a replica does 40.0"}
    wanted = Watched().reconcile({REVISION: 2}, status=PROVEN | {"scaling": told})
    assert wanted == {REVISION: Wanted(**told)}


def test_nothing_is_lowered_without_data() -> None:
    watched = Watched()
    for _ in range(500):
        watched.now += 1
        watched.fleet.tick(watched.now)
        assert watched.reconcile({REVISION: 3}, status=PROVEN)[REVISION].desired == 3
    assert watched.fleet.explain()[0]["rule"] == "hold"


def test_an_unheard_gateway_holds_what_the_others_would_lower() -> None:
    watched = Watched()
    watched.reconcile({REVISION: 3}, status=PROVEN)
    watched.fleet.set_gateways(Gateways(1, 1, 1))
    watched.serve(120, 1)
    assert watched.reconcile({REVISION: 3}, status=PROVEN)[REVISION].desired == 3
    watched.fleet.set_gateways(Gateways(2, 0, 2))
    watched.serve(31, 1)
    assert watched.reconcile({REVISION: 3}, status=PROVEN)[REVISION].desired == 1


def test_a_gateway_whose_pod_has_gone_holds_nothing() -> None:
    watched = Watched()
    watched.reconcile({REVISION: 3}, status=PROVEN)
    watched.tell(gateway=Gateway("gone"), arrivals=100)
    watched.fleet.forget_gateway("gone")
    watched.serve(31, 1)
    assert watched.reconcile({REVISION: 3}, status=PROVEN)[REVISION].desired == 1


def test_the_tick_asks_for_a_reconcile_only_when_a_number_changes() -> None:
    watched = Watched()
    watched.reconcile({REVISION: 1}, status=PROVEN)
    watched.serve(5, 10)
    watched.fleet.tick(watched.now)
    assert watched.changed == []
    watched.serve(2, 100)
    watched.fleet.tick(watched.now)
    assert watched.changed == [KEY]


def test_a_number_asked_for_counts_before_the_deployment_shows_it() -> None:
    watched = Watched()
    watched.reconcile({REVISION: 1}, status=PROVEN)
    watched.serve(5, 100)
    more = watched.reconcile({REVISION: 1}, status=PROVEN)[REVISION].desired
    assert more > 1
    watched.serve(1, 0)
    assert watched.reconcile({REVISION: 1}, status=PROVEN)[REVISION].desired == more


def test_a_service_at_rest_is_not_looked_at() -> None:
    watched = Watched()
    watched.reconcile(status=PROVEN)
    assert "0 awake" in repr(watched.fleet)
    watched.tell(cache_hits=7)
    assert "0 awake" in repr(watched.fleet)
    watched.tell(arrivals=1, held=1, wake=True)
    assert "1 awake" in repr(watched.fleet)


def test_a_replica_that_does_not_lead_looks_at_what_was_touched() -> None:
    watched = Watched()
    watched.seen = observed(replicas={REVISION: 2}, ready={REVISION: 2}, status=PROVEN)
    watched.fleet.touch(KEY)
    watched.fleet.tick(1.0)
    assert [entry["desired"] for entry in watched.fleet.explain()] == [2]
    watched.seen = None
    watched.fleet.touch(KEY)
    watched.fleet.tick(2.0)
    assert watched.fleet.explain() == []


def test_a_new_revision_proves_itself_and_then_follows() -> None:
    watched = Watched()
    changes = {"model__maxInputTokens": 128, "scaling__maxReplicas": 20}
    watched.reconcile({REVISION: 4}, status=PROVEN, scaling__maxReplicas=20)
    watched.serve(5, 100)
    both = {REVISION: 4, OTHER: 1}
    one = watched.reconcile(both, ready={REVISION: 4}, status=PROVEN, generation=2, **changes)
    assert (one[REVISION].desired, one[OTHER].desired) == (4, 1)
    many = watched.reconcile(both, status=PROVEN, generation=2, **changes)
    assert many[OTHER] == Wanted(4, "rollout", many[OTHER].reason)


def test_a_revision_that_takes_over_keeps_the_demand_of_the_one_before() -> None:
    watched = Watched()
    changes = {"model__maxInputTokens": 128, "scaling__maxReplicas": 20}
    watched.reconcile({REVISION: 4}, status=PROVEN, scaling__maxReplicas=20)
    watched.serve(40, 100)
    both = {REVISION: 4, OTHER: 4}
    watched.reconcile(both, status=PROVEN, generation=2, **changes)
    switched = PROVEN | {"revision": OTHER}
    wanted = watched.reconcile(both, status=switched, generation=2, **changes)
    assert list(wanted) == [OTHER]
    assert wanted[OTHER].desired == 4


def test_a_canary_has_its_own_demand_and_is_awake_while_the_stable_one_is() -> None:
    watched = Watched()
    trial = {"model": {"maxInputTokens": 128}, "weight": 25}
    more = {"rollout__canary": trial, "scaling__maxReplicas": 20}
    both = {REVISION: 4, OTHER: 0}
    wanted = watched.reconcile(both, status=PROVEN, **more)
    assert wanted[OTHER].desired == 1, "a quarter of four"
    both = {REVISION: 4, OTHER: 1}
    watched.reconcile(both, status=PROVEN, **more)
    for _ in range(90):
        watched.serve(1, 100)
        watched.tell(revision=OTHER)
    wanted = watched.reconcile(both, status=PROVEN, **more)
    assert (wanted[REVISION].desired, wanted[OTHER].desired) == (4, 1)
    for _ in range(5):
        watched.serve(1, 100)
        record = watched.gateway.served(100, capacity=40.0)
        record.revision = OTHER
        watched.fleet.observe(record, watched.now)
    assert watched.reconcile(both, status=PROVEN, **more)[OTHER].desired >= 3


def test_what_only_tells_of_workers_is_no_demand() -> None:
    watched = Watched()
    watched.reconcile({REVISION: 4}, status=PROVEN)
    for _ in range(60):
        watched.serve(1, 100)
        watched.tell(revision=OTHER, workers_only=True)
    assert watched.reconcile({REVISION: 4}, status=PROVEN)[REVISION].desired == 4


def test_modes_without_decisions_have_the_floor() -> None:
    wanted = Watched().reconcile(
        {REVISION: 5}, status=PROVEN, scaling__mode="off", scaling__minReplicas=2
    )
    assert (wanted[REVISION].desired, wanted[REVISION].rule) == (2, "fixed")
    assert Watched().reconcile({REVISION: 5}, status=PROVEN, paused=True) == {}


def test_a_spec_of_another_version_leaves_the_numbers_as_they_are() -> None:
    watched = Watched()
    before = watched.reconcile({REVISION: 2}, status=PROVEN)
    after = watched.reconcile({REVISION: 2}, status=PROVEN, generation=2, model__future="x")
    assert after == before


def test_what_gateways_tell_of_workers_is_summed_and_told_once() -> None:
    watched = Watched()
    watched.reconcile({REVISION: 1}, status=PROVEN)
    other = Gateway("gateway-2")
    seen = wire.WorkerSeen(address="10.0.0.1", ready=True, in_flight=2, answer_digest="sha256:a")
    watched.tell(workers=[seen], in_flight=2)
    assert watched.changed == [KEY]
    watched.tell(gateway=other, workers=[seen], in_flight=2)
    learnt = watched.fleet.learnt(KEY)
    assert learnt.workers["10.0.0.1"].in_flight == 4
    assert learnt.answer_digests == {REVISION: "sha256:a"}
    told = len(watched.changed)
    busier = wire.WorkerSeen(address="10.0.0.1", ready=True, in_flight=3, answer_digest="sha256:a")
    watched.tell(workers=[busier], in_flight=3)
    assert len(watched.changed) == told, "load is not worth a reconcile"
    watched.fleet.forget_gateway("gateway-2")
    assert watched.fleet.learnt(KEY).workers["10.0.0.1"].in_flight == 3


def test_it_is_known_how_many_gateways_do_not_know_a_service() -> None:
    watched = Watched()
    assert watched.fleet.learnt(KEY).unaware == 0
    watched.fleet.set_gateways(Gateways(2, 0, 2))
    assert watched.fleet.learnt(KEY).unaware == 2
    watched.reconcile()
    assert watched.fleet.learnt(KEY).unaware == 2
    watched.tell()
    assert watched.fleet.learnt(KEY).unaware == 1
    watched.tell()
    assert watched.fleet.learnt(KEY).unaware == 1
    watched.tell(gateway=Gateway("gateway-2"))
    assert watched.fleet.learnt(KEY).unaware == 0
    watched.fleet.forget_gateway("gateway-2")
    assert watched.fleet.learnt(KEY).unaware == 1
    watched.fleet.set_gateways(Gateways(1, 1, 1))
    assert watched.fleet.learnt(KEY).unaware == 0


def test_a_gateway_that_goes_by_another_revision_does_not_know_the_one_that_answers() -> None:
    watched = Watched()
    watched.fleet.set_gateways(Gateways(1, 0, 1))
    watched.reconcile({REVISION: 1}, status=PROVEN)
    # It did not understand the edit, say; the workers of the other revision it sees all the same.
    watched.tell(revision=OTHER)
    watched.tell(workers_only=True)
    assert (watched.fleet.learnt(KEY).aware, watched.fleet.learnt(KEY).unaware) == (0, 1)
    watched.tell()
    assert (watched.fleet.learnt(KEY).aware, watched.fleet.learnt(KEY).unaware) == (1, 0)


def pass_looks(watched: Watched, seconds: float) -> list[Key]:
    """Tick for so long; what was to be reconciled meanwhile."""
    before, until = len(watched.changed), watched.now + seconds
    while watched.now < until:
        watched.now += 1
        watched.fleet.tick(watched.now)
    return watched.changed[before:]


def resting(**more: Any) -> Watched:
    """A service that sleeps, as an operator sees it that has just begun."""
    watched = Watched()
    watched.reconcile({REVISION: 0}, status=ASLEEP | more, scaling__mode="off")
    return watched


ASLEEP = {
    "revision": REVISION,
    "revisions": [{"name": REVISION, "proven": True, "desiredReplicas": 0}],
}


def test_that_no_gateway_knows_a_service_is_told_once_it_has_lasted() -> None:
    watched = resting()
    watched.fleet.set_gateways(Gateways(1, 0, 0))
    assert pass_looks(watched, 600) == [], "a gateway that starts has nothing to know"
    watched.fleet.set_gateways(Gateways(1, 0, 1))
    assert pass_looks(watched, MISSED_SECONDS) == []
    assert not watched.fleet.learnt(KEY).unknown
    assert pass_looks(watched, LOOK_SECONDS) == [KEY]
    assert watched.fleet.learnt(KEY).unknown
    assert pass_looks(watched, 600) == []
    # None is left, and nobody has known it for all that.
    watched.fleet.set_gateways(Gateways(0, 0, 0))
    pass_looks(watched, 600)
    assert watched.fleet.learnt(KEY).unknown
    watched.fleet.set_gateways(Gateways(1, 0, 1))
    watched.tell()
    assert not watched.fleet.learnt(KEY).unknown
    assert pass_looks(watched, LOOK_SECONDS) == [KEY]
    assert pass_looks(watched, 600) == []


def test_gateways_that_are_replaced_or_fall_silent_are_no_news() -> None:
    watched = resting()
    watched.fleet.set_gateways(Gateways(1, 0, 1))
    watched.tell()
    pass_looks(watched, 60)
    before = len(watched.changed)
    for number in range(20):
        watched.fleet.forget_gateway(watched.gateway.name)
        watched.fleet.set_gateways(Gateways(0, 1, 0))
        pass_looks(watched, MISSED_SECONDS - LOOK_SECONDS)
        watched.fleet.set_gateways(Gateways(1, 0, 1))
        pass_looks(watched, MISSED_SECONDS - LOOK_SECONDS)
        watched.gateway = Gateway(f"gateway-{number}-restarted")
        watched.tell()
        pass_looks(watched, 1)
    assert watched.changed[before:] == []


def test_a_new_operator_goes_on_telling_that_no_gateway_knows_a_service() -> None:
    condition = {"type": "Ready", "status": "False", "reason": "UnknownToGateways"}
    watched = resting(conditions=[condition])
    assert watched.fleet.learnt(KEY).unknown
    watched.fleet.set_gateways(Gateways(1, 0, 1))
    watched.tell()
    assert pass_looks(watched, LOOK_SECONDS) == [KEY]
    assert not watched.fleet.learnt(KEY).unknown


def test_whoever_waits_for_a_gateway_is_looked_at_when_one_knows_it() -> None:
    watched = resting()
    assert watched.fleet.learnt(KEY).unaware == 0
    watched.fleet.set_gateways(Gateways(0, 2, 0))
    assert watched.fleet.learnt(KEY).unaware == 2, "one may be heard in a moment"
    assert pass_looks(watched, 60) == []
    watched.fleet.set_gateways(Gateways(1, 1, 1))
    watched.tell()
    assert pass_looks(watched, LOOK_SECONDS) == [KEY]
    assert (watched.fleet.learnt(KEY).aware, watched.fleet.learnt(KEY).unaware) == (1, 0)
    assert pass_looks(watched, 60) == []


def test_start_times_are_learnt_from_pods() -> None:
    watched = Watched()
    slow = pod("a", REVISION, ready=True, ready_at="2026-11-23T10:00:20Z")
    watched.reconcile({REVISION: 1}, ready={}, pods=[slow], status=PROVEN)
    watched.reconcile({REVISION: 1}, ready={}, pods=[slow], status=PROVEN)
    assert watched.fleet.explain()[0]["coldStartSeconds"] == 20.0


def test_orders_that_find_no_room_are_given_back_when_the_load_has_gone() -> None:
    watched = Watched()
    stuck = pod("stuck", REVISION, phase="Pending")
    stuck["status"]["conditions"].append(
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    )
    fine = pod("fine", REVISION, ready=True)
    more = {"ready": {}, "pods": [fine, stuck], "status": PROVEN}
    watched.reconcile({REVISION: 2}, **more)
    watched.serve(5, 60)
    assert watched.reconcile({REVISION: 2}, **more)[REVISION].desired == 2
    watched.serve(2, 200)
    blocked = watched.reconcile({REVISION: 2}, **more)[REVISION]
    assert (blocked.desired, blocked.rule) == (2, "blocked")
    watched.serve(75, 5)
    freed = watched.reconcile({REVISION: 2}, **more)[REVISION]
    assert freed.desired == 1
    watched.now += 1


def test_signals_are_missing_while_a_gateway_is_unheard() -> None:
    watched = Watched()
    watched.reconcile({REVISION: 1}, status=PROVEN)
    watched.serve(10, 20)
    (signal,) = watched.fleet.signals(KEY)
    assert signal.revision == REVISION
    assert signal.traffic is not None
    assert 19 <= signal.traffic.arrivals_10s <= 21
    watched.fleet.set_gateways(Gateways(1, 1, 1))
    assert watched.fleet.signals(KEY)[0].traffic is None
    assert watched.fleet.signals(Key("default", "unknown")) == ()


def test_records_of_a_service_nobody_knows_are_not_kept_for_ever() -> None:
    watched = Watched()
    watched.tell(arrivals=1)
    assert "1 services" in repr(watched.fleet)
    watched.now = 500.0
    watched.fleet.tick(watched.now)
    assert "0 services" in repr(watched.fleet)


def weeks_of_mornings(days: int) -> tuple[Watched, str]:
    """Days on each of which somebody asks for ten minutes, and what was to be written at last."""
    watched = Watched()
    watched.reconcile({REVISION: 1}, status=PROVEN)
    for day in range(days):
        watched.now = day * 86_400.0
        watched.serve(600, 30)
        for _ in range(8):
            watched.now += 600.0
            watched.fleet.tick(watched.now)
    return watched, watched.fleet.learnt(KEY).week


def rest_until(watched: Watched, moment: float) -> None:
    """Asleep, heard of until ``moment``."""
    watched.now = moment - 3.0
    watched.tell()
    watched.now = moment
    watched.tell()


def test_a_sleeping_service_is_woken_when_it_is_usually_asked() -> None:
    watched, _ = weeks_of_mornings(3)
    assert watched.reconcile({REVISION: 0}, status=PROVEN)[REVISION].desired == 0
    rest_until(watched, 3 * 86_400.0 - 1200.0)
    watched.changed.clear()
    watched.fleet.tick(watched.now)
    assert watched.changed == [], "far too early"
    rest_until(watched, 3 * 86_400.0 - 30.0)
    watched.fleet.tick(watched.now)
    assert watched.changed == [KEY]
    wanted = watched.reconcile({REVISION: 0}, status=PROVEN)[REVISION]
    assert (wanted.desired, wanted.rule) == (1, "season")
    assert "came at this time on other days" in wanted.reason


def test_the_week_is_handed_to_the_status_once_an_hour_and_by_nobody_who_sleeps() -> None:
    watched, week = weeks_of_mornings(1)
    assert week
    assert watched.changed.count(KEY) >= 1
    for hour in range(48):
        watched.now += 3600.0
        watched.fleet.tick(watched.now)
        assert watched.fleet.learnt(KEY).week == week, f"nobody asked in hour {hour}"


def test_an_operator_goes_on_with_the_week_of_the_one_before() -> None:
    _, week = weeks_of_mornings(3)
    follower = Watched()
    follower.now = 3 * 86_400.0 - 30.0
    status = PROVEN | {"scaling": {"week": week}}
    assert follower.reconcile({REVISION: 0}, status=status)[REVISION].desired == 0, "no data yet"
    rest_until(follower, follower.now)
    wanted = follower.reconcile({REVISION: 0}, status=status)[REVISION]
    assert (wanted.desired, wanted.rule) == (1, "season")
    assert follower.fleet.learnt(KEY).week == week, "which need not be written again"


def test_a_newer_week_that_somebody_else_wrote_is_kept() -> None:
    watched, week = weeks_of_mornings(1)
    begin, slot, letters = week.split(".")
    newer = f"{begin}.{int(slot) + 1}.{letters}"
    watched.reconcile({REVISION: 0}, status=PROVEN | {"scaling": {"week": newer}})
    assert watched.fleet.learnt(KEY).week == newer
    watched.reconcile({REVISION: 0}, status=PROVEN | {"scaling": {"week": week}})
    assert watched.fleet.learnt(KEY).week == newer, "an old one does not come back"


def test_a_canary_has_no_season_of_its_own() -> None:
    watched = Watched()
    trial = {"rollout__canary": {"weight": 10, "model": {"maxInputTokens": 128}}}
    watched.reconcile({REVISION: 1, OTHER: 1}, status=PROVEN, **trial)
    for day in range(4):
        watched.now = day * 86_400.0
        for _ in range(60):
            watched.now += 10.0
            watched.tell(revision=OTHER, arrivals=100)
    for _ in range(20):
        watched.now += 600.0
        watched.fleet.tick(watched.now)
    assert watched.fleet.learnt(KEY).week == ""


@in_virtual_time
async def test_the_running_fleet_wakes_it_in_time_and_not_before() -> None:
    _, week = weeks_of_mornings(3)
    loop, wall = asyncio.get_running_loop(), 1_800_000_000 + 3 * 86_400.0 - 900.0
    began, woken = loop.time(), asyncio.get_running_loop().create_future()

    def changed(key: Key) -> None:
        if not woken.done():
            woken.set_result(loop.time() - began)

    fleet = Fleet(changed, lambda _: None, loop.time, lambda: wall + loop.time() - began)
    status = PROVEN | {"scaling": {"week": week}}
    fleet.decide(observed(replicas={REVISION: 0}, status=status), loop.time())
    gateway = Gateway()

    async def speak() -> None:
        while True:
            record = gateway.record()
            record.revision = REVISION
            fleet.observe(record, loop.time())
            await asyncio.sleep(3.0)

    tasks = [asyncio.create_task(fleet.run()), asyncio.create_task(speak())]
    # Ten seconds of a start that nobody has seen, a minute before, and at most ten of not looking.
    assert 900 - 70 <= await woken <= 900 - 59
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_each_change_of_a_number_is_counted_once_with_its_rule() -> None:
    watched = Watched()
    watched.reconcile(status=PROVEN)
    assert watched.rules == [], "what stood there before is no change"
    watched.tell(held=1, arrivals=1, wake=True)
    watched.reconcile({REVISION: 0}, status=PROVEN)
    watched.reconcile({REVISION: 1}, status=PROVEN)
    assert watched.rules == ["wake"]
    watched.serve(200, 0)
    watched.reconcile({REVISION: 1}, status=PROVEN)
    assert watched.rules == ["wake", "idle"]
