"""Who gets requests: only who proved it, and nobody who fails too much or is someone else."""

import asyncio

import pytest

from sluice_api import wire
from sluice_gateway.endpoints import Endpoint, EndpointSet, State, split_url
from sluice_gateway.timers import TimerWheel

NOW = 1000.0


class Nobody:
    lost = 0

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
    endpoints = EndpointSet(wheel, lambda: None, lambda: None)
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
        for _ in range(10):
            endpoint.failed(NOW, "status_500", prove=False)
    assert [e.state for e in all_of_them].count(State.EJECTED) == 2  # half of them at most
    one = all_of_them[0]
    first = one.out_until - NOW
    one.proved(ready(), NOW + first / 2)
    assert one.state is State.EJECTED
    one.proved(ready(), one.out_until)
    assert one.state is State.READY
    for _ in range(3):
        one.failed(NOW + 10, "status_500", prove=False)
    assert one.out_until - (NOW + 10) == 2 * first
    one.proved(ready(), one.out_until)
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


def test_urls() -> None:
    assert split_url("http://127.0.0.1:80") == ("127.0.0.1", 80)
    assert split_url("http://[::1]:8080/") == ("::1", 8080)
    for bad in ("https://a:1", "http://a", "a:1", "http://a:b", "http://a:1/x", "http://:1"):
        with pytest.raises(ValueError, match="http://HOST:PORT"):
            split_url(bad)


async def test_a_roll_out_is_one_change_and_never_a_moment_without_ready_endpoints() -> None:
    changes: list[int] = []
    wheel = TimerWheel(asyncio.get_running_loop())
    endpoints = EndpointSet(wheel, lambda: changes.append(len(endpoints.ready)), lambda: None)
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
