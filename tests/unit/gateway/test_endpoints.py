"""Who gets requests: only who proved it, and nobody who fails too much or is someone else."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api import names, wire
from sluice_gateway.balance import Rules
from sluice_gateway.endpoint import Endpoint, Lease, State
from sluice_gateway.endpoints import EndpointSet
from sluice_gateway.timers import TimerWheel
from sluice_gateway.worker_answer import UpstreamAnswer, read_answer

NOW = 1000.0


class Nobody:
    lost = 0

    def __init__(self, affinity: int | None = None) -> None:
        self.affinity = affinity

    def endpoint_lost(self) -> None:
        self.lost += 1


def ready(revision: str = "r", digest: str = "d", limit: int = 4) -> wire.Readiness:
    return wire.Readiness(
        phase=wire.Phase.READY,
        model="m",
        revision=revision,
        answer_digest=digest,
        capacity=wire.Capacity(limit=limit),
    )


def follow(
    endpoints: EndpointSet, table: list[wire.Endpoint], revision: str, digest: str
) -> tuple[list[Endpoint], list[Endpoint]]:
    """Follow the table as a service does. Returns the endpoints that came and those that went."""
    gone = list(endpoints.give_up(table, revision).values())
    came = endpoints.apply(table, revision, digest, {})
    for endpoint in gone:
        endpoint.retire()
    return came, gone


async def make(count: int, digest: str = "d") -> tuple[EndpointSet, list[Endpoint]]:
    wheel = TimerWheel(asyncio.get_running_loop())
    endpoints = EndpointSet(wheel, lambda: None)
    table = [wire.Endpoint(url=f"http://127.0.0.1:{n + 1}", revision="r") for n in range(count)]
    follow(endpoints, table, "r", digest)
    return endpoints, list(endpoints.all.values())


async def test_nobody_is_ready_before_a_probe() -> None:
    endpoints, (one, _) = await make(2)
    assert endpoints.choose(Nobody(), frozenset(), NOW) is None
    one.proved(ready(), NOW)
    assert endpoints.ready == [one]
    assert repr(endpoints) == "<EndpointSet 1 of 2 ready>"


@pytest.mark.parametrize(
    ("told", "why"), [(ready(revision="other"), "revision"), (ready(digest="e"), "digest")]
)
async def test_mismatch_gets_no_traffic(told: wire.Readiness, why: str) -> None:
    endpoints, (one,) = await make(1)
    one.proved(told, NOW)
    assert one.state is State.MISMATCH and why in one.message
    assert endpoints.ready == []
    one.proved(ready(), NOW)
    assert one.state is State.READY


async def test_lease_counts_once() -> None:
    endpoints, (one,) = await make(1)
    one.proved(ready(limit=1), NOW)
    lease = endpoints.choose(Nobody(), frozenset(), NOW)
    assert lease is not None and endpoints.choose(Nobody(), frozenset(), NOW) is None
    lease.release()
    lease.release()
    assert one.in_flight == 0


async def test_broken_connection_must_be_proved_anew() -> None:
    endpoints, (one, two) = await make(2)
    one.proved(ready(), NOW)
    two.proved(ready(), NOW)
    nudged: list[int] = []
    one.nudge = lambda: nudged.append(1)
    before = one.incarnation
    one.failed(NOW, "reset", prove=True)
    assert one.state is State.STARTING and endpoints.ready == [two] and nudged
    one.proved(ready(), NOW)
    assert one.incarnation > before


async def test_ejection_backs_off_and_spares_the_rest() -> None:
    _, all_of_them = await make(4)
    for endpoint in all_of_them:
        endpoint.proved(ready(), NOW)
    for endpoint in all_of_them:
        for _ in range(10):
            endpoint.failed(NOW, "status_500", prove=False)
    assert [e.state for e in all_of_them].count(State.EJECTED) == 2  # half of them at most
    one = all_of_them[0]
    first = one.out_until - NOW
    one.proved(ready(), NOW + first / 2)
    assert one.state is State.EJECTED
    one.proved(ready(), one.out_until)
    assert one.state is State.READY
    one.failed(NOW + 10, "status_500", prove=False)  # It was on trial: once is enough.
    assert one.out_until - (NOW + 10) == 2 * first
    one.proved(ready(), one.out_until)
    for _ in range(8):
        one.succeeded()
    for _ in range(3):
        one.failed(NOW + 20, "status_500", prove=False)
    assert one.out_until - (NOW + 20) == first


async def test_only_endpoint_is_never_ejected() -> None:
    _, (one,) = await make(1)
    one.proved(ready(), NOW)
    for _ in range(10):
        one.failed(NOW, "status_500", prove=False)
    assert one.state is State.READY


async def test_those_that_start_are_nobody_to_take_over() -> None:
    _, (one, two, _, _) = await make(4)
    one.proved(ready(), NOW)
    for _ in range(10):
        one.failed(NOW, "status_500", prove=False)
    assert one.state is State.READY  # The three others serve nobody yet.
    two.proved(ready(), NOW)
    one.failed(NOW, "status_500", prove=False)
    assert one.state is State.EJECTED


async def test_what_the_last_one_failed_long_ago_is_not_held_against_it() -> None:
    _, (one, two) = await make(2)
    one.proved(ready(), NOW)
    for _ in range(1000):
        one.failed(NOW, "status_500", prove=False)
    for _ in range(12):
        one.succeeded()
    two.proved(ready(), NOW)
    one.failed(NOW, "status_500", prove=False)
    assert one.state is State.READY


async def test_what_breaks_at_a_worker_that_has_left_puts_nobody_out() -> None:
    endpoints, (one, two, three) = await make(3)
    for endpoint in (one, two, three):
        endpoint.proved(ready(), NOW)
    table = [wire.Endpoint(url=each.url, revision="r") for each in (two, three)]
    follow(endpoints, table, "r", "d")
    before = endpoints.version
    for _ in range(5):
        one.failed(NOW, "reset", prove=True)
    one.not_ready("draining")
    assert one.state is State.GONE and endpoints.version == before and not endpoints.ejections


async def test_unresponsive_endpoint_gives_its_requests_back() -> None:
    endpoints, (one,) = await make(1)
    one.proved(ready(), NOW)
    holder = Nobody()
    assert endpoints.choose(holder, frozenset(), NOW) is not None
    one.unresponsive("silent")
    assert holder.lost == 1 and one.state is State.STARTING


async def test_table_decides_who_exists() -> None:
    endpoints, (one, two) = await make(2)
    for endpoint in (one, two):
        endpoint.proved(ready(), NOW)
    came, gone = follow(endpoints, [wire.Endpoint(url=two.url, revision="r")], "r", "d")
    assert (came, gone) == ([], [one])
    assert one.state is State.GONE and endpoints.ready == [two]
    one.proved(ready(), NOW)  # a probe that was on its way
    assert one.state is State.GONE


async def test_new_revision_of_the_service_puts_out_the_old_workers_at_once() -> None:
    endpoints, (one,) = await make(1)
    one.proved(ready(), NOW)
    table = [wire.Endpoint(url=one.url, revision="r")]
    follow(endpoints, table, "r2", "")
    assert one.state is State.MISMATCH and endpoints.ready == []
    follow(endpoints, table, "r", "d")
    assert one.state is State.READY


async def test_learnt_digest_binds_while_somebody_has_it() -> None:
    endpoints, (one, two) = await make(2)
    endpoints.digest_learnt = True
    one.proved(ready(), NOW)
    two.proved(ready(digest="e"), NOW)
    assert two.state is State.MISMATCH
    one.not_ready("gone")
    two.proved(ready(digest="e"), NOW)
    assert two.state is State.READY


async def test_a_roll_out_is_one_change_and_never_a_moment_without_ready_endpoints() -> None:
    changes: list[int] = []
    wheel = TimerWheel(asyncio.get_running_loop())
    endpoints = EndpointSet(wheel, lambda: changes.append(len(endpoints.ready)))
    old = wire.Endpoint(url="http://127.0.0.1:1", revision="r")
    new = wire.Endpoint(url="http://127.0.0.1:2", revision="r2")
    follow(endpoints, [old, new], "r", "")
    one, two = endpoints.all.values()
    one.proved(ready(), NOW)
    two.proved(ready(revision="r2"), NOW)
    assert two.state is State.MISMATCH
    changes.clear()
    follow(endpoints, [old, new], "r2", "")
    assert changes == [1] and endpoints.ready == [two]


async def test_a_mismatch_is_told_once_with_both_values(
    caplog: pytest.LogCaptureFixture,
) -> None:
    endpoints, (one,) = await make(1)
    for _ in range(3):
        one.proved(ready(digest="e"), NOW)
    one.proved(ready(revision="other"), NOW)
    digest, revision = [record.__dict__["reason"] for record in caplog.records]
    assert "digest e," in digest and "has d" in digest
    assert "revision r," in revision and "worker other" in revision
    assert endpoints.mismatch() == "A worker answers, but for another revision of the model."


async def test_an_endpoint_is_of_the_services_revision_unless_it_says_otherwise() -> None:
    endpoints, _ = await make(0)
    follow(endpoints, [wire.Endpoint(url="http://127.0.0.1:1")], "r7", "")
    (one,) = endpoints.all.values()
    one.proved(ready(revision="r7"), NOW)
    assert one.state is State.READY


async def test_a_roll_out_has_the_new_endpoints_probed_at_once() -> None:
    endpoints, (one,) = await make(1)
    nudged: list[int] = []
    one.nudge = lambda: nudged.append(1)
    table = [wire.Endpoint(url=one.url, revision="r")]
    follow(endpoints, table, "r", "d")
    assert not nudged
    follow(endpoints, table, "r2", "d")
    assert nudged


# Room, load, circuit breaker, slow start, zones, prefixes -----------------------------------------


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["lease", "release", "proved", "gone"]), st.integers(0, 3)),
        st.tuples(st.sampled_from(["failed", "lost", "full", "heard"]), st.integers(0, 3)),
        st.tuples(st.just("later"), st.integers(0, 3)),
    ),
    max_size=60,
)


@given(STEPS)
async def test_what_is_counted_by_steps_is_what_counting_anew_gives(
    steps: list[tuple[str, int]],
) -> None:
    endpoints, all_of_them = await make(4)
    now = NOW
    leases: list[Lease] = []
    for number, (step, which) in enumerate(steps):
        endpoint = all_of_them[which]
        if step == "lease" and (lease := endpoints.choose(Nobody(), frozenset(), now)):
            leases.append(lease)
        elif step == "release" and leases:
            leases.pop(which % len(leases)).release()
        elif step == "proved":
            endpoint.proved(ready(limit=1 + number % 3), now)
        elif step == "gone":
            endpoint.not_ready("leaving")
        elif step == "failed":
            endpoint.failed(now, "status_500", prove=number % 2 == 0)
        elif step == "lost":
            endpoint.unresponsive("silent")
        elif step == "full":
            endpoint.full(0.5 + which, now)
        elif step == "heard":
            endpoint.heard(answer(limit=1 + number % 5), now)
        elif step == "later":
            now += which
        found = {e for e in all_of_them if e.state is State.READY}
        assert set(endpoints.ready) == found
        assert endpoints.load == sum(e.in_flight for e in found)
        assert endpoints.slots == sum(e.limit for e in found)
        roomy = {e for e in found if e.in_flight < e.limit and e.blocked_until <= now}
        assert endpoints.has_room(now) == bool(roomy)
        chosen = endpoints.choose(Nobody(), frozenset(), now)
        assert (chosen is not None) == bool(roomy)
        if chosen is not None:
            assert chosen.endpoint in roomy
            chosen.release()


def answer(limit: int) -> UpstreamAnswer:
    header = wire.Capacity(limit=limit).header()
    return read_answer(200, {names.CAPACITY.encode(): header.encode()}, b"")


async def test_one_that_fails_a_part_of_its_requests_is_out_as_well() -> None:
    endpoints, (one, two) = await make(2)
    one.proved(ready(), NOW)
    two.proved(ready(), NOW)
    for _ in range(20):
        if one.state is State.EJECTED:
            break
        one.failed(NOW, "status_500", prove=False)
        one.succeeded(), one.succeeded()  # Never two failures in a row.
    assert one.state is State.EJECTED
    assert endpoints.ejections == {"status_500": 1}


async def test_rare_failures_put_nobody_out() -> None:
    _, (one, two) = await make(2)
    one.proved(ready(), NOW)
    two.proved(ready(), NOW)
    for _ in range(100):
        one.failed(NOW, "status_500", prove=False)
        for _ in range(5):
            one.succeeded()
    assert one.state is State.READY


async def test_back_from_being_out_it_is_on_trial() -> None:
    _, (one, two) = await make(2)
    one.proved(ready(), NOW)
    two.proved(ready(), NOW)
    for _ in range(3):
        one.failed(NOW, "status_500", prove=False)
    pause = one.out_until - NOW
    one.proved(ready(), NOW + pause)
    assert one.warmth(NOW + pause) < 1.0
    one.failed(NOW + pause, "reset", prove=False)
    assert one.state is State.EJECTED and one.out_until - (NOW + pause) == 2 * pause
    assert one.message == "reset; out for 2 s"


async def test_full_endpoints_are_asked_again_at_the_time_that_they_named() -> None:
    endpoints, (one, two) = await make(2)
    for endpoint, seconds in ((one, 2.0), (two, 60.0)):
        endpoint.proved(ready(), NOW)
        endpoint.full(seconds, NOW)
    one.full(0.5, NOW)  # Of two times, the later holds.
    assert endpoints.unblocked_at() == NOW + 2
    assert not endpoints.has_room(NOW + 1.9)
    assert endpoints.has_room(NOW + 2)
    assert endpoints.unblocked_at() == NOW + 5  # Nobody is left alone for a minute.
    lease = endpoints.choose(Nobody(), frozenset((one.incarnation,)), NOW + 2)
    assert lease is None


async def test_a_fresh_endpoint_gets_its_share_over_time() -> None:
    endpoints, (old, new) = await make(2)
    old.proved(ready(limit=1000), NOW)
    new.proved(ready(limit=1000), NOW + 100)
    begin = share(endpoints, new, NOW + 100)
    halfway = share(endpoints, new, NOW + 105)
    assert begin < 0.1 < halfway < 0.4 < share(endpoints, new, NOW + 110) < 0.6


async def test_one_that_lost_a_connection_is_not_fresh_but_one_that_was_away_is() -> None:
    _, (one,) = await make(1)
    one.proved(ready(), NOW)
    one.failed(NOW + 100, "reset", prove=True)
    one.proved(ready(), NOW + 100)
    assert one.warmth(NOW + 100) == 1.0
    one.unresponsive("the connection was refused")
    one.proved(ready(), NOW + 101)
    assert one.warmth(NOW + 101) == 0.1


def share(endpoints: EndpointSet, endpoint: Endpoint, now: float) -> float:
    """Of 1000 requests that come and go one by one."""
    count = 0
    for _ in range(1000):
        lease = endpoints.choose(Nobody(), frozenset(), now)
        assert lease is not None
        count += lease.endpoint is endpoint
        lease.release()
    return count / 1000


async def test_workers_of_the_own_zone_come_first_while_they_have_room() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    rules = Rules(zone="a", slow_start_seconds=0.0)
    endpoints = EndpointSet(wheel, lambda: None, rules)
    table = [
        wire.Endpoint(url=f"http://127.0.0.1:{n}", revision="r", zone=zone)
        for n, zone in enumerate("aabb", 1)
    ]
    follow(endpoints, table, "r", "d")
    for endpoint in endpoints.all.values():
        endpoint.proved(ready(limit=4), NOW)
    zones = []
    while lease := endpoints.choose(Nobody(), frozenset(), NOW):
        zones.append(lease.endpoint.zone)
    assert zones[:4] == ["a"] * 4, "up to half of what they hold"
    assert "b" in zones[4:10] and len(zones) == 16
    moved = [wire.Endpoint(url=entry.url, revision="r", zone="c") for entry in table]
    follow(endpoints, moved, "r", "d")
    assert {endpoint.zone for endpoint in endpoints.ready} == {"c"}


async def test_a_prefix_has_a_home_up_to_the_bound() -> None:
    endpoints, all_of_them = await make(4)
    for endpoint in all_of_them:
        endpoint.proved(ready(limit=100), NOW)
    later = NOW + 60
    first = endpoints.choose(Nobody(7), frozenset(), later)
    assert first is not None
    home = first.endpoint
    first.release()
    for _ in range(20):
        lease = endpoints.choose(Nobody(7), frozenset(), later)
        assert lease is not None and lease.endpoint is home
        lease.release()
    assert endpoints.prefixes == {"home": 21}
    leases = [endpoints.choose(Nobody(7), frozenset(), later) for _ in range(100)]
    assert all(leases)
    most = max(endpoint.in_flight for endpoint in all_of_them)
    assert home.in_flight == most <= 1.25 * 100 / 4 + 1
    assert endpoints.prefixes["elsewhere"] > 50
    failed = frozenset((home.incarnation,))
    other = endpoints.choose(Nobody(7), failed, later)
    assert other is not None and other.endpoint is not home


async def test_a_home_that_leaves_is_looked_for_no_more() -> None:
    endpoints, all_of_them = await make(3)
    for endpoint in all_of_them:
        endpoint.proved(ready(limit=100), NOW)
    later = NOW + 60
    first = endpoints.choose(Nobody(7), frozenset(), later)
    assert first is not None
    first.endpoint.not_ready("leaving")
    for _ in range(20):
        lease = endpoints.choose(Nobody(7), frozenset(), later)
        assert lease is not None and lease.endpoint is not first.endpoint
        lease.release()
    assert endpoints.prefixes == {"home": 21}, "it has another home"
