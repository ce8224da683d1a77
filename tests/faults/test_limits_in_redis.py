"""Limits in a real Redis: the script counts as the model that the properties are proven with.

And whatever Redis says instead, a bucket goes on with its part.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from sluice_api import names
from sluice_api.key_file import Limits
from sluice_api.rates import Rate, parse_rate
from sluice_gateway.limits import TenantLimits
from sluice_gateway.redis_cluster import open_store, slot_of
from sluice_gateway.shared_limits import SCRIPT, SharedLimits
from tests.support.redis_fleets import running_cluster, running_sentinel_set, wait_for
from tests.support.redis_server import RedisServer, running_redis
from tests.support.stub_worker import until


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


@pytest.fixture(autouse=True)
def emptied(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")


def settle(server: RedisServer, rate: Rate, taken: float, key: str = "b") -> float:
    with server.client() as client:
        words = (repr(rate.per_second / 1000), rate.burst, repr(taken))
        told = client.eval(SCRIPT, 2, "gateways", key, "me", 5000, *words)
    return float(told[1])


def test_the_script_counts_as_the_model(server: RedisServer) -> None:
    """A rate so low that the time between two calls does not matter."""
    rate, rng = Rate("", 1e-6, 100), random.Random(4)
    expected = 100.0
    for _ in range(50):
        taken = rng.choice([0, 1, 2.5, 7])
        expected -= taken
        assert settle(server, rate, taken) == pytest.approx(expected, abs=0.01)
    assert expected < 0, "debts are counted too"


def test_the_script_fills_by_time_up_to_the_burst(server: RedisServer) -> None:
    rate = Rate("", 6.0, 10)
    assert settle(server, rate, 30) == -20
    levels = [settle(server, rate, 0)]
    while levels[-1] < 10:
        time.sleep(0.02)
        levels.append(settle(server, rate, 0))
    assert levels == sorted(levels)
    assert sum(-20 < level < 10 for level in levels) >= 2, "and not at once"
    assert settle(server, rate, 0) == 10


def test_a_value_that_is_none_of_ours_is_a_full_bucket(server: RedisServer) -> None:
    rate = Rate("", 1e-6, 10)
    with server.client() as client:
        for value in ("", "x", "1", "a b", "5 " + "9" * 40):
            client.set("b", value)
            assert settle(server, rate, 1) <= 9
        client.set("b", "5 99999999999999")  # A clock that was ahead.
        assert settle(server, rate, 1) == 4


@asynccontextmanager
async def gateway(
    server: RedisServer | str, name: str, faults: list[str]
) -> AsyncIterator[SharedLimits]:
    """The limits of one gateway, with a server or what a URL names."""
    url = server if isinstance(server, str) else server.unix_url
    # No fault because a busy machine kept Redis from answering within 25 ms.
    store = open_store(url, faults=lambda cause: None, budget_seconds=5)
    await store.start()
    limits = SharedLimits(
        store,
        gateways=1,
        identity=name,
        hide=lambda words: words[:4],
        failed=faults.append,
    )
    running = asyncio.create_task(limits.run())
    try:
        yield limits
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await limits.close()
        await store.close()


RATES = Limits(requests=parse_rate("40/h"))


async def test_gateways_are_counted_while_they_are_there(server: RedisServer) -> None:
    faults: list[str] = []
    async with gateway(server, "one", faults) as one:
        assert one.of("t", RATES)
        await until(lambda: one.sharing.is_up, 60, "shared")
        async with gateway(server, "two", faults) as two:
            two.of("t", RATES)
            await until(lambda: one.sharing.gateways == 2 == two.sharing.gateways, 60, "two")
        await until(lambda: one.sharing.gateways == 1, 60, "one again")
    assert faults == []


async def test_the_scripts_loss_is_no_fault(server: RedisServer) -> None:
    faults: list[str] = []
    async with gateway(server, "one", faults) as one:
        limits = one.of("t", RATES)
        assert limits is not None and limits.requests is not None
        await until(lambda: one.sharing.is_up, 60, "shared")
        with server.client() as client:
            client.script_flush()
            limits.take_request(asyncio.get_running_loop().time())
            await until(lambda: client.exists("sluice:{limits}:" + b"t\0re".hex()) == 1, 60, "")
    assert faults == []


@pytest.mark.parametrize("value", ["full", "type"])
async def test_what_redis_refuses_is_counted_and_stops_nobody(
    server: RedisServer, value: str
) -> None:
    faults: list[str] = []
    async with gateway(server, "one", faults) as one:
        limits = one.of("t", RATES)
        assert limits is not None
        await until(lambda: one.sharing.is_up, 60, "shared")
        with server.client() as client:
            if value == "full":
                client.config_set("maxmemory", 1)
            else:
                client.delete("sluice:{limits}:gateways")
                client.set("sluice:{limits}:gateways", "x")
            await until(lambda: not one.sharing.is_up, 60, "not shared")
            assert limits.take_request(asyncio.get_running_loop().time())
            client.config_set("maxmemory", 0)
            client.delete("sluice:{limits}:gateways")
        await until(lambda: one.sharing.is_up, 60, "shared again")
    assert faults


async def test_limits_stay_as_long_as_they_are_the_same(server: RedisServer) -> None:
    async with gateway(server, "one", []) as one:
        first = one.of("t", RATES)
        assert one.of("t", Limits(requests=parse_rate("40/h"))) is first
        second = one.of("t", Limits(requests=parse_rate("50/h")))
        assert second is not first
        assert one.of("t", None) is None
        one.of("u", RATES)
        one.keep({"v"})
        assert repr(one).endswith("0 buckets>")


async def test_a_changed_limit_gives_no_fresh_burst(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()
    now = asyncio.get_running_loop().time()
    async with gateway(server, "one", []) as one, gateway(server, "two", []) as two:
        both = [one.of("t", RATES), two.of("t", RATES)]
        await until(lambda: all(each.sharing.gateways == 2 for each in (one, two)), 60, "counted")
        for limits in both:
            assert limits is not None and limits.requests is not None
            while not limits.requests.take(1, now):
                pass
        await until(lambda: not one.sharing.touched and not two.sharing.touched, 60, "settled")
        changed = [each.of("t", Limits(requests=parse_rate("80/h:80"))) for each in (one, two)]
        for limits in changed:
            assert limits is not None and limits.requests is not None
            assert limits.requests.take(1, now), "used up before, and still"
        async with gateway(server, "three", []) as three:
            late = three.of("t", Limits(requests=parse_rate("80/h:80")))
            assert late is not None and late.requests is not None
            bucket = late.requests
            bucket.spend(1)  # To be settled: Redis tells what is left of the old limit.
            await until(lambda: three.sharing.is_up and bucket.left(now) < 10, 60, "used up")


@contextmanager
def moving(kind: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """The URL of a Redis that is somewhere else once the function was called."""
    if kind == "cluster":
        with running_cluster() as nodes:
            yield nodes.url, lambda: nodes.migrate(slot_of(names.REDIS_LIMITS_PREFIX.encode()))
        return
    with running_sentinel_set() as servers:

        def held(server: RedisServer) -> list[bytes | None]:
            with server.client() as client:
                found = client.keys(f"{names.REDIS_LIMITS_PREFIX}*")
                return [client.get(name) for name in sorted(found) if b"gateways" not in name]

        def fail() -> None:
            wait_for(lambda: held(servers.first) == held(servers.second), "the replica")
            servers.first.kill()

        yield servers.url, fail


@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
async def test_limits_are_shared_again_where_redis_is_then(kind: str) -> None:
    """What was used before and meanwhile counts."""
    faults: list[str] = []
    with moving(kind) as (url, move):
        async with gateway(url, "one", faults) as one, gateway(url, "two", faults) as two:
            both = [one.of("t", RATES), two.of("t", RATES)]
            await until(
                lambda: all(each.sharing.gateways == 2 for each in (one, two)), 60, "counted"
            )

            def use(limits: TenantLimits | None, count: int) -> None:
                assert limits is not None
                for _ in range(count):
                    limits.take_request(time.monotonic())

            def left() -> int:
                bucket = both[1] and both[1].requests
                assert bucket is not None
                bucket.spend(0)  # To be told again: the other's may not have come when it was.
                return bucket.left(time.monotonic())

            use(both[0], 12)
            use(both[1], 1)
            await until(lambda: two.sharing.is_up and left() == 27, 60, "shared")
            await asyncio.to_thread(move)
            use(both[0], 5)
            await until(lambda: bool(faults) and one.sharing.is_up, 60, "shared again")
            await until(lambda: not one.sharing.touched, 60, "told")
            use(both[1], 1)
            await until(lambda: two.sharing.is_up and left() == 21, 60, "what both have used")
