"""The fast edge finds the same requests in the same bytes, however they come."""

from itertools import pairwise
from typing import Any, cast

import pytest
from uvicorn.server import ServerState

from sluice_gateway.edge import Edge
from sluice_gateway.protocol import MAX_LAST_BYTES, FastProtocol
from sluice_gateway.request import Answer, Request
from sluice_gateway.settings import EdgeLimits

BODIES = [b'{"input":"a"}', b'{"input":"b"}', b'{"input":"c"}']


class Transport:
    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def write_eof(self) -> None: ...

    def is_closing(self) -> bool:
        return False


class Dispatcher:
    """Answers each request at once."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def handle(self, request: Request) -> None:
        self.requests.append(request)
        request.caller.answer(Answer(200, b"application/json", b"", b"{}"))

    def check_caller(self, head: object) -> None: ...


def connected(**limits: Any) -> tuple[FastProtocol, Dispatcher, Transport]:
    dispatcher, transport = Dispatcher(), Transport()
    edge = Edge(cast(Any, dispatcher), EdgeLimits(**limits))
    protocol = FastProtocol(edge, ServerState(), cast(Any, None))
    protocol.connection_made(cast(Any, transport))
    return protocol, dispatcher, transport


def request(body: bytes, lines: bytes = b"") -> bytes:
    return b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\n%bcontent-length: %d\r\n\r\n%b" % (
        lines,
        len(body),
        body,
    )


@pytest.mark.parametrize("lines", [b"", b"x-filler: %b\r\n" % (b"y" * MAX_LAST_BYTES)])
@pytest.mark.parametrize("size", [1, 7, 40, 70, 90, 150, 10_000])
async def test_requests_that_begin_alike_are_found_in_whatever_pieces(
    lines: bytes, size: int
) -> None:
    protocol, dispatcher, _ = connected()
    protocol.data_received(request(BODIES[0], lines))
    data = b"".join(request(body, lines) for body in BODIES)
    for begin, end in pairwise([*range(0, len(data), size), len(data)]):
        protocol.data_received(data[begin:end])
        protocol._resume()
    for _ in BODIES:
        protocol._resume()
    assert [each.body for each in dispatcher.requests] == [BODIES[0], *BODIES]
    assert len({each.id for each in dispatcher.requests}) == 4


async def test_a_head_like_the_last_with_a_body_of_another_length_is_read_on() -> None:
    protocol, dispatcher, _ = connected()
    whole = request(BODIES[0])
    protocol.data_received(whole)
    protocol.data_received(whole[:-4])
    assert len(dispatcher.requests) == 1
    protocol.data_received(whole[-4:])
    protocol.data_received(whole + whole[:20])
    protocol._resume()
    protocol.data_received(whole[20:])
    assert [each.body for each in dispatcher.requests] == [BODIES[0]] * 4


async def test_a_head_like_the_last_with_lines_of_its_own_has_them() -> None:
    protocol, dispatcher, _ = connected()
    for number, body in enumerate([BODIES[0], b"{}", b'{"input":"longer"}']):
        protocol.data_received(request(body, b"x-request-id: id-%d\r\n" % number))
    assert [each.body for each in dispatcher.requests] == [BODIES[0], b"{}", b'{"input":"longer"}']
    assert [each.id for each in dispatcher.requests] == [b"id-0", b"id-1", b"id-2"]


async def test_a_head_like_the_last_allows_no_larger_body() -> None:
    protocol, dispatcher, transport = connected(body_bytes=len(BODIES[0]))
    protocol.data_received(request(BODIES[0]))
    protocol.data_received(request(BODIES[0] + b" "))
    assert len(dispatcher.requests) == 1
    assert transport.written.count(b"HTTP/1.1 413") == 1


async def test_what_is_too_large_is_not_remembered() -> None:
    protocol, dispatcher, transport = connected(body_bytes=4)
    for _ in range(2):
        protocol.data_received(request(BODIES[0]))
    assert dispatcher.requests == []
    assert transport.written.count(b"HTTP/1.1 413") == 1
