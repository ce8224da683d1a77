"""What both edges do with a stream as time passes: heartbeats, clients that take nothing."""

import asyncio
import time
from typing import Any, cast

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from sluice_gateway.control.streaming import MAX_WAITING_BYTES, EventStream, StreamCaller
from sluice_gateway.edge import Connections, Edge
from sluice_gateway.fallback import GuardedProtocol
from sluice_gateway.protocol import HEARTBEAT, HEARTBEAT_SECONDS, FastProtocol
from sluice_gateway.request import Answer, Request
from sluice_gateway.settings import EdgeLimits
from sluice_gateway.unsent import ANSWER_PACE

BODY = b'{"messages":[]}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n" % len(BODY)
ANSWER = Answer(200, b"text/event-stream", b"", b"data: 1\n\n")


class Transport:
    """Remembers what was written, and how it was closed."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = ""
        self.unsent = 0

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return bool(self.closed)

    def close(self) -> None:
        self.closed = self.closed or "closed"

    def abort(self) -> None:
        self.closed = self.closed or "aborted"

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def set_protocol(self, protocol: object) -> None: ...

    def get_extra_info(self, name: str) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Exchange:
    def __init__(self) -> None:
        self.causes: list[str] = []
        self.resumed = 0
        self.cancelled = 0

    def cut_off(self, cause: str) -> None:
        self.causes.append(cause)

    def resume(self) -> None:
        self.resumed += 1

    def cancel(self) -> None:
        self.cancelled += 1


class Dispatcher:
    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.requests: list[Request] = []

    def handle(self, request: Request) -> Exchange:
        self.requests.append(request)
        return self.exchange


def streaming() -> tuple[FastProtocol, Transport, Exchange]:
    """A connection whose answer has begun to stream."""
    exchange, transport = Exchange(), Transport()
    dispatcher = Dispatcher(exchange)
    edge = Edge(cast(Any, dispatcher), EdgeLimits())
    protocol = FastProtocol(edge, ServerState(), cast(Any, None))
    protocol.connection_made(cast(Any, transport))
    protocol.data_received(HEAD + BODY)
    assert dispatcher.requests[0].caller.begin(ANSWER)
    assert transport.written.endswith(b"transfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
    return protocol, transport, exchange


def test_a_silent_stream_shows_that_it_lives() -> None:
    protocol, transport, _ = streaming()
    now = time.monotonic()
    protocol.enforce_times(now + HEARTBEAT_SECONDS - 1)
    assert HEARTBEAT not in transport.written
    protocol.enforce_times(now + HEARTBEAT_SECONDS + 1)
    assert transport.written.count(HEARTBEAT) == 1
    protocol.enforce_times(now + HEARTBEAT_SECONDS + 1.25)
    protocol.end()
    assert transport.written.endswith(b"0\r\n\r\n") and not transport.closed


def test_a_client_that_takes_nothing_is_cut_off() -> None:
    protocol, transport, exchange = streaming()
    protocol.pause_writing()
    assert protocol.send(b"data: 2\n\n") is False
    now = time.monotonic()
    protocol.enforce_times(now + EdgeLimits().write_seconds - 1)
    assert not transport.closed
    protocol.enforce_times(now + EdgeLimits().write_seconds + 1)
    assert (exchange.causes, transport.closed) == (["stalled"], "aborted")
    assert not transport.written.endswith(b"0\r\n\r\n")


def ordinary() -> tuple[GuardedProtocol, Transport]:
    """A connection on the ordinary edge."""
    config = Config(app=cast(Any, None), http=GuardedProtocol, log_config=None)
    config.load()
    loop = asyncio.get_running_loop()
    protocol = GuardedProtocol(Connections(EdgeLimits()), config, ServerState(), {}, loop)
    transport = Transport()
    protocol.connection_made(transport)
    return protocol, transport


@pytest.mark.parametrize("edge", ["fast", "ordinary"])
async def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(edge: str) -> None:
    protocol, transport = streaming()[:2] if edge == "fast" else ordinary()
    transport.unsent = 10_000_000
    protocol.pause_writing()
    now, limit = time.monotonic(), EdgeLimits().write_seconds
    for _ in range(10):  # ten times as long as it may take nothing
        now += limit - 1
        transport.unsent -= int(limit) * ANSWER_PACE
        protocol.enforce_times(now)
    assert not transport.closed
    protocol.enforce_times(now + limit - 1)
    assert not transport.closed
    protocol.enforce_times(now + limit + 1)
    assert transport.closed == "aborted"


class Link:
    """An ordinary connection, as an event stream sees it."""

    def __init__(self) -> None:
        self.broken: list[bool] = []
        self.stalled_since: float | None = None

    def break_off(self, *, at_once: bool = False) -> None:
        self.broken.append(at_once)


async def test_an_ordinary_stream_shows_that_it_lives_too() -> None:
    caller, exchange = StreamCaller(), Exchange()
    assert caller.begin(ANSWER)
    stream = EventStream(caller, cast(Any, exchange), {}, 30.0)
    assert caller.take() == (ANSWER.body, False)
    stream.enforce_times(caller.last + HEARTBEAT_SECONDS - 1)
    assert caller.take() == (b"", False)
    stream.enforce_times(caller.last + HEARTBEAT_SECONDS + 1)
    assert caller.take() == (HEARTBEAT, False)


async def test_an_ordinary_client_that_takes_nothing_is_cut_off() -> None:
    caller, exchange, link = StreamCaller(), Exchange(), Link()
    stream = EventStream(caller, cast(Any, exchange), {}, 30.0)
    stream._connection = cast(Any, link)
    link.stalled_since = 100.0
    stream.enforce_times(129.0)
    assert (exchange.causes, link.broken) == ([], [])
    stream.enforce_times(131.0)
    assert (exchange.causes, link.broken) == (["stalled"], [True])


async def test_what_waits_for_asgi_is_bounded() -> None:
    caller = StreamCaller()
    assert caller.send(b"x" * MAX_WAITING_BYTES)
    assert not caller.send(b"x")
    assert caller.take() == (b"x" * (MAX_WAITING_BYTES + 1), True)
    assert caller.send(b"x")
