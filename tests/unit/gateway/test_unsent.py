"""Clients that take their answer slowly or not at all, over real connections; only time is ours."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from sluice_gateway.edge import Connections, Edge
from sluice_gateway.fallback import GuardedProtocol
from sluice_gateway.protocol import FastProtocol
from sluice_gateway.settings import EdgeLimits
from sluice_gateway.unsent import ANSWER_PACE, unsent_bytes
from tests.support.event_loops import eventually, on_uvloop

ANSWER_BYTES = 16 * 1024 * 1024
PATIENCE = EdgeLimits().write_seconds


class Connection:
    """One of our connections, whose answer is written, and the client at its other end."""

    def __init__(
        self,
        protocol: FastProtocol | GuardedProtocol,
        transport: asyncio.Transport,
        client: socket.socket,
        cuts: list[str],
    ) -> None:
        self._protocol = protocol
        self.transport = transport
        self._client = client
        self.cuts = cuts
        self._now = time.monotonic()

    async def take(self, size: int) -> None:
        """The client takes so much, and its machine has told ours."""
        before = unsent_bytes(self.transport)
        loop = asyncio.get_running_loop()
        while size > 0:
            size -= len(await loop.sock_recv(self._client, size))
        await eventually(lambda: unsent_bytes(self.transport) < before)

    def wait(self, seconds: float) -> None:
        """So much time passes."""
        self._now += seconds
        self._protocol.enforce_times(self._now)

    @property
    def is_open(self) -> bool:
        return not self.transport.is_closing()


@asynccontextmanager
async def connected(make: Callable[[list[str]], Any]) -> AsyncIterator[Connection]:
    """A client with little room of its own; our kernel holds as much as it does for anybody."""
    cuts: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listening.getsockname())
        accepted, _ = listening.accept()
        client.setblocking(False)
        accepted.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_accepted_socket(lambda: make(cuts), accepted)
        try:
            transport.write(b"x" * ANSWER_BYTES)
            await eventually(lambda: protocol._unsent is not None)
            yield Connection(protocol, cast(asyncio.Transport, transport), client, cuts)
        finally:
            transport.abort()


def fast(cuts: list[str]) -> FastProtocol:
    edge = Edge(cast(Any, None), EdgeLimits(), cut=cuts.append)
    return FastProtocol(edge, ServerState(), cast(Any, None))


def ordinary(cuts: list[str]) -> GuardedProtocol:
    config = Config(app=cast(Any, None), http=GuardedProtocol, log_config=None)
    config.load()
    loop = asyncio.get_running_loop()
    edge = Connections(EdgeLimits(), cut=cuts.append)
    return GuardedProtocol(edge, config, ServerState(), {}, loop)


EDGES = pytest.mark.parametrize("make", [fast, ordinary])


@EDGES
@on_uvloop
async def test_who_takes_a_little_is_waited_for(make: Callable[[list[str]], Any]) -> None:
    """The kernel takes no more from us meanwhile: it has much room of its own to fill."""
    async with connected(make) as connection:
        before = connection.transport.get_write_buffer_size()
        for _ in range(5):
            await connection.take(8 * 1024)
            connection.wait(PATIENCE - 1)
        assert connection.transport.get_write_buffer_size() == before
        assert connection.is_open and not connection.cuts
        connection.wait(PATIENCE + 1)
        assert not connection.is_open
        assert connection.cuts == ["stalled"]


@EDGES
@on_uvloop
async def test_who_takes_less_than_any_line_carries_is_not_waited_for_without_end(
    make: Callable[[list[str]], Any],
) -> None:
    async with connected(make) as connection:
        connection.wait(0)
        steps = 0
        while connection.is_open:
            await connection.take(8 * 1024)
            connection.wait(PATIENCE - 1)
            steps += 1
        allowed = PATIENCE + ANSWER_BYTES / ANSWER_PACE
        assert steps == allowed // (PATIENCE - 1) + 1


@EDGES
@on_uvloop
async def test_a_connection_that_closes_waits_no_longer_for_its_client(
    make: Callable[[list[str]], Any],
) -> None:
    async with connected(make) as connection:
        connection.transport.close()
        connection.wait(PATIENCE - 1)
        await connection.take(8 * 1024)
        connection.wait(PATIENCE - 1)
        assert not connection.cuts
        connection.wait(PATIENCE + 1)
        assert connection.cuts == ["stalled"]
