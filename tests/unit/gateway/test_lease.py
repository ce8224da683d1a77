"""Leases in a real Redis: one holder, an end by token only, failures only gateways can tell."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sluice_api.errors import ApiError
from sluice_gateway.keys import Keyring
from sluice_gateway.lease import Leases, State
from sluice_gateway.redis_pipeline import RedisPipeline
from sluice_gateway.sealing import Sealer
from tests.support.event_loops import on_uvloop
from tests.support.redis_server import RedisServer, running_redis
from tests.support.response_cache import key_of

RING = Keyring(bytes(range(32)))
FAILURE = ApiError("upstream_failed", "Broken.", retry_after=2.0)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


@asynccontextmanager
async def gateways(server: RedisServer) -> AsyncIterator[tuple[Leases, Leases]]:
    """Two gateways that share a secret."""
    pipelines = [
        RedisPipeline(server.unix_url, faults=pytest.fail, budget_seconds=5) for _ in range(2)
    ]
    for pipeline in pipelines:
        await pipeline.start()
    first, second = (Leases(pipeline, Sealer(RING.sealing[0])) for pipeline in pipelines)
    try:
        yield first, second
    finally:
        for pipeline in pipelines:
            await pipeline.close()


async def take(leases: Leases, *keys: bytes, seconds: float = 60) -> list[bool | None]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    leases.take(list(keys), seconds, future.set_result)
    return list(await future)


async def look(leases: Leases, *keys: bytes) -> list[State]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    leases.look(list(keys), future.set_result)
    return list(await future)


@on_uvloop
async def test_one_of_two_gets_it_and_the_other_sees_it(server: RedisServer) -> None:
    a, b, c = (key_of(name) for name in ("la", "lb", "lc"))
    async with gateways(server) as (first, second):
        assert await take(first, a, b) == [True, True]
        assert await take(second, b, c) == [False, True]
        assert await look(second, a, b, c, key_of("ld")) == ["held", "held", "held", "gone"]
        first.free(a)
        await look(first, a)  # Behind what was sent before.
        assert await take(second, a) == [True]


@on_uvloop
async def test_who_has_lost_it_ends_nothing(server: RedisServer) -> None:
    key = key_of("lost")
    async with gateways(server) as (first, second):
        assert await take(first, key) == [True]
        with server.client() as client:
            client.flushall()
        assert await take(second, key) == [True]
        first.fail(key, FAILURE)
        await look(first, key)
        assert await look(second, key) == ["held"]
        first.free(key)
        await look(first, key)
        assert await look(second, key) == ["held"]


@on_uvloop
async def test_who_is_done_before_redis_has_answered_holds_nothing(server: RedisServer) -> None:
    ends: list[Callable[[Leases, bytes], None]] = [
        Leases.free,
        Leases.done,
        lambda leases, key: leases.fail(key, FAILURE),
    ]
    async with gateways(server) as (first, second):
        for number, end in enumerate(ends):
            key = key_of(f"early {number}")
            answered = asyncio.ensure_future(take(first, key))
            await asyncio.sleep(0)  # Asked, and not answered.
            end(first, key)
            await answered
            assert repr(first) == "<Leases 0 held>"
            await look(first, key)  # Behind what was sent before.
            (state,) = await look(second, key)
            if end is Leases.free:
                assert state == "gone"
            elif end is not Leases.done:
                assert isinstance(state, ApiError)
            with server.client() as client:
                (left,) = [client.pttl(name) for name in client.keys(f"*{key.hex()}*")] or [-2]
                assert left <= 1000  # of the 60 s that were asked for


@on_uvloop
async def test_what_is_held_or_asked_for_here_is_not_asked_for_again(server: RedisServer) -> None:
    key = key_of("twice")
    async with gateways(server) as (first, second):
        assert await asyncio.gather(take(first, key), take(first, key)) == [[True], [False]]
        assert await take(first, key) == [False]
        first.free(key)
        assert repr(first) == "<Leases 0 held>"
        await look(first, key)
        assert await take(second, key) == [True]
        assert await take(first, key) == [False]
        assert repr(first) == "<Leases 0 held>"


@on_uvloop
async def test_a_failure_is_told_as_it_was(server: RedisServer) -> None:
    key = key_of("failing")
    async with gateways(server) as (first, second):
        await take(first, key)
        first.fail(key, FAILURE)
        await look(first, key)
        (state,) = await look(second, key)
        assert isinstance(state, ApiError)
        assert (state.code, state.message) == ("upstream_failed", "Broken.")
        assert state.retry_after == 2.0


@on_uvloop
async def test_nobody_else_can_tell_failures(server: RedisServer) -> None:
    key, other = key_of("forged"), key_of("other")
    async with gateways(server) as (first, second):
        await take(first, other)
        first.fail(other, FAILURE)
        await look(first, other)
        with server.client() as client:
            (name,) = client.keys("*{*" + other.hex() + "*}:lease")
            told = client.get(name)
            here = name.replace(other.hex().encode(), key.hex().encode())
            for value in (told, b"f", b"f" + bytes(200), b"x", b"", b"\xff" * 50):
                client.set(here, value)
                assert await look(second, key) == ["gone"], value


@on_uvloop
async def test_without_redis_nobody_knows() -> None:
    faults: list[str] = []
    pipeline = RedisPipeline("redis://127.0.0.1:1", faults=faults.append)
    leases = Leases(pipeline, Sealer(RING.sealing[0]))
    assert not leases.available
    assert await take(leases, key_of("a"), key_of("b")) == [None, None]
    assert await look(leases, key_of("a")) == ["gone"]
    assert repr(leases) == "<Leases 0 held>"
