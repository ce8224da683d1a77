"""Many clients that are slow on purpose, and one who is not: it gets all of its answers."""

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from sluice_gateway import descriptors
from tests.support.gateway_process import GatewayProcess, request, service
from tests.support.stub_worker import StubWorker, until

PATH = "/v1/embeddings"
CROWD = 2000
CUT = "sluice_gateway_connections_cut_total"
SLOW = {
    "sends nothing": b"",
    "sends half a head": b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\nx: ",
    "sends half a body": b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\ncontent-length: 900\r\n\r\n{",
    "sends half a chunk": b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\n"
    b"transfer-encoding: chunked\r\n\r\n3e8\r\n{",
    "asks for a page, then half of one": b"GET /livez HTTP/1.1\r\nhost: t\r\n\r\nGET /live",
}


@pytest.fixture(scope="module", autouse=True)
def files() -> Iterator[None]:
    """Leave to open as many sockets as there are in a crowd, for this process and the gateway."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = descriptors.connections(CROWD + 500)
    assert possible >= CROWD + 500, f"only {possible} sockets can be open: raise `ulimit -Hn`"
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
async def crowd() -> AsyncIterator[list[asyncio.Transport]]:
    """Who is to be let go of at the end."""
    transports: list[asyncio.Transport] = []
    yield transports
    for transport in transports:
        transport.abort()


class Silent(asyncio.Protocol):
    """One of the crowd. ``closed`` counts those whose connection the gateway has ended."""

    closed = 0

    def __init__(self, first: bytes) -> None:
        self._first = first

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._first)

    def connection_lost(self, exc: Exception | None) -> None:
        Silent.closed += 1


async def gather(port: int, count: int, crowd: list[asyncio.Transport]) -> None:
    """Open ``count`` connections that are slow in one way or another, some at a time."""
    loop = asyncio.get_running_loop()
    ways = list(SLOW.values())
    for start in range(0, count, 100):
        made = await asyncio.gather(
            *[
                loop.create_connection(partial(Silent, ways[number % len(ways)]), "127.0.0.1", port)
                for number in range(start, min(start + 100, count))
            ]
        )
        crowd += [transport for transport, _ in made]


def body(text: str) -> dict[str, str]:
    return {"model": "emb", "input": text}


async def test_a_legitimate_client_beside_thousands_of_slow_ones(
    worker: StubWorker, tmp_path: Path, crowd: list[asyncio.Transport]
) -> None:
    options = ("--head-timeout", "10m", "--body-timeout", "10m")
    with GatewayProcess(tmp_path, [service("emb", [worker.url])], *options) as gateway:
        await gateway.ready("emb")
        await gather(gateway.port, CROWD, crowd)
        await until(
            lambda: _connections(gateway, CROWD), seconds=180, what="they are not all connected"
        )
        async with await gateway.client() as client:
            for number in range(100):
                assert (await client.post(PATH, body(f"kept {number}"))).status == 200
        for number in range(50):  # a connection each, on both ports
            assert (await gateway.post(PATH, body(f"new {number}"))).status == 200
        assert (await gateway.get("/readyz")).status == 200
        assert (await gateway.get("/readyz", admin=True)).status == 200
        assert await gateway.metric(CUT) == 0


async def _connections(gateway: GatewayProcess, count: int) -> bool:
    return await gateway.metric("sluice_gateway_connections") >= count


async def test_who_is_slow_makes_room_for_who_is_not(
    worker: StubWorker, tmp_path: Path, crowd: list[asyncio.Transport]
) -> None:
    options = ("--max-connections", "200", "--head-timeout", "10m", "--body-timeout", "10m")
    Silent.closed = 0
    with GatewayProcess(tmp_path, [service("emb", [worker.url])], *options) as gateway:
        await gateway.ready("emb")
        async with await gateway.client() as kept:
            assert (await kept.post(PATH, body("before"))).status == 200
            await gather(gateway.port, 190, crowd)
            assert (await kept.post(PATH, body("meanwhile"))).status == 200  # last active
            await gather(gateway.port, 300, crowd)
            for number in range(30):
                assert (await gateway.post(PATH, body(f"new {number}"))).status == 200
        assert await gateway.metric("sluice_gateway_connections") <= 200
        assert await gateway.metric(CUT, cause="evicted") >= 290
        await until(lambda: Silent.closed >= 290)


async def test_who_is_being_answered_is_never_put_out(worker: StubWorker, tmp_path: Path) -> None:
    options = ("--max-connections", "5")
    with GatewayProcess(tmp_path, [service("emb", [worker.url])], *options) as gateway:
        await gateway.ready("emb")
        await until(lambda: _idle(gateway))
        worker.behaviour.hang = True
        busy = [await gateway.client() for _ in range(5)]
        for number, client in enumerate(busy):
            client.send(request(PATH, body(f"busy {number}"), cache_control="no-store"))
        await until(lambda: worker.running == 5)
        async with await gateway.client() as refused:
            reply = await refused.reply()
            assert (reply.status, reply.json()["error"]["code"]) == (503, "too_many_connections")
            assert reply.headers["retry-after"] == "1" and reply.headers["connection"] == "close"
            assert await refused.closed()
        worker.behaviour.hang = False
        for client in busy:
            client.close()
        await until(lambda: worker.running == 0)
        await until(lambda: _idle(gateway))
        assert (await gateway.post(PATH, body("after"))).status == 200


async def _idle(gateway: GatewayProcess) -> bool:
    return await gateway.metric("sluice_gateway_connections") <= 1  # the one that asks


async def test_bodies_that_come_slowly_are_bounded_together(
    worker: StubWorker, tmp_path: Path
) -> None:
    options = ("--max-receiving-mib", "1", "--body-timeout", "10m")
    with GatewayProcess(tmp_path, [service("emb", [worker.url])], *options) as gateway:
        await gateway.ready("emb")
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\ncontent-length: 900000\r\n\r\n"
        slow = [await gateway.client() for _ in range(4)]
        for number, client in enumerate(slow):
            if number % 2:
                await client.get("/livez")  # on the ordinary edge
            client.send(head + b"x" * 400_000)
        replies = [asyncio.ensure_future(client.reply()) for client in slow]
        await asyncio.wait(replies, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        refused = [reply.result() for reply in replies if reply.done()]
        assert refused
        for reply in refused:
            assert (reply.status, reply.json()["error"]["code"]) == (503, "receiving_too_much")
        assert (await gateway.post(PATH, body("small"))).status == 200
        for client, reply in zip(slow, replies, strict=True):
            reply.cancel()
            client.close()
        await asyncio.gather(*replies, return_exceptions=True)
        await until(lambda: _idle(gateway))
        large = {"model": "emb", "input": ["y" * 1000] * 900}
        assert (await gateway.post(PATH, large)).status == 200  # the room is free again


async def test_phases_that_take_too_long_end_and_are_counted(
    worker: StubWorker, tmp_path: Path
) -> None:
    options = ("--head-timeout", "300ms", "--body-timeout", "300ms", "--write-timeout", "300ms")
    with GatewayProcess(tmp_path, [service("emb", [worker.url])], *options) as gateway:
        await gateway.ready("emb")
        for way, first in SLOW.items():
            async with await gateway.client() as client:
                client.send(first)
                if "page" in way:
                    assert (await client.reply()).status == 200
                if first:
                    assert (await client.reply()).status == 408, way
                assert await client.closed(), way
        wide = request(PATH, {"model": "emb", "input": ["wide"] * 2000})
        for asked in (wide, b"GET /openapi.json HTTP/1.1\r\nhost: t\r\n\r\n"):
            before = await gateway.metric(CUT, cause="stalled")
            async with await gateway.client() as client:
                client.reader._transport.pause_reading()  # type: ignore[attr-defined]
                client.send(asked * 300)
                await until(partial(_counted, gateway, "stalled", before + 1), seconds=60)
        assert await gateway.metric(CUT, cause="idle") == 1
        assert await gateway.metric(CUT, cause="request_timeout") == 4


async def _counted(gateway: GatewayProcess, cause: str, count: float) -> bool:
    return await gateway.metric(CUT, cause=cause) >= count
