"""What the client connections of one process share, whichever protocol serves them.

``app`` makes one :class:`Edge`; ``protocol`` and ``fallback`` register their connections with it,
take their limits and request ids from it, and have it enforce their times.
"""

import asyncio
import heapq
import itertools
import secrets
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, Protocol

from sluice_api.errors import ApiError, render
from sluice_gateway.cors import Cors
from sluice_gateway.dispatch import Dispatcher
from sluice_gateway.head import Head
from sluice_gateway.settings import EdgeLimits
from sluice_gateway.timers import Grace

STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}
SWEEP_SECONDS: Final = 0.25
UNCOUNTED_BYTES: Final = 16 * 1024
"""Bodies up to this that came in one piece are bounded by how many may be answered at a time."""
EVICTED_AT_ONCE: Final = 0.01
"""Part of all connections; making room for many at a time, none of them costs much."""


class Timed(Protocol):
    """A connection whose times are enforced from outside."""

    @property
    def idle(self) -> bool:
        """No request is coming in or being answered."""
        ...

    @property
    def owing_since(self) -> float | None:
        """Since when the client is expected to send something; None while an answer is due."""
        ...

    def enforce_times(self, now: float) -> None: ...

    def evict(self) -> None:
        """Close, for others need the place."""
        ...

    def cut_short(self, error: ApiError) -> None:
        """The process ends before the answer does."""
        ...


class Counted:
    """A body that is here in full, and counts for as long as anything refers to this.

    The request has it, and whatever may still send the request to a worker has the request: so it
    counts until the body is really gone, however its exchange ends and whoever else waits for it.
    """

    __slots__ = ("_connections", "_size")

    def __init__(self, connections: "Connections", size: int) -> None:
        self._connections = connections
        self._size = size
        connections.buffered += size

    def __repr__(self) -> str:
        return f"<Counted {self._size} bytes>"

    def __del__(self) -> None:
        self._connections.buffered -= self._size


class Connections:
    """What the connections of one server share: the limits, the clock's text, request ids.

    Args:
        limits: sizes and times a client is held to.
        cors: which pages may call; None: none but the gateway's own.
        cut: told why a connection is ended by us; for the metrics.

    Attributes:
        buffered: bytes of all bodies that are coming in or being answered.
        new_id: makes a request id.
    """

    def __init__(
        self,
        limits: EdgeLimits,
        cors: Cors | None = None,
        cut: Callable[[str], None] = lambda cause: None,
    ) -> None:
        self.limits = limits
        self.cors = cors
        self.cut = cut
        self.connections: set[Timed] = set()
        self.buffered = 0
        self.draining = False
        self.date = b""
        self.new_id: Callable[[], bytes] = _ids(secrets.token_hex(6).encode()).__next__
        self._sweeping: asyncio.TimerHandle | None = None
        self._grace = Grace()
        self._date_second = 0

    def __repr__(self) -> str:
        state = " draining" if self.draining else ""
        return f"<{type(self).__name__} {len(self.connections)} connections{state}>"

    def has_room(self) -> bool:
        """Whether one more connection may be kept, after closing who has been slow for longest."""
        connections = self.connections
        if len(connections) < self.limits.connections:
            return True
        owing = [(since, id(c), c) for c in connections if (since := c.owing_since) is not None]
        for _, _, connection in heapq.nsmallest(
            max(1, int(len(connections) * EVICTED_AT_ONCE)), owing
        ):
            connections.discard(connection)
            connection.evict()
            self.cut("evicted")
        return len(connections) < self.limits.connections

    def too_large(self, size: int) -> ApiError:
        """What a body is refused with that says it has more bytes than are taken."""
        return ApiError(
            "body_too_large",
            f"The body has {size} bytes, at most {self.limits.body_bytes} are taken.",
        )

    def hold(self, size: int) -> None:
        """Keep so many bytes of an incomplete body. Raises ApiError; they count nevertheless."""
        self.buffered += size
        if self.buffered > self.limits.buffered_bytes:
            raise _no_room()

    def count(self, size: int) -> Counted | None:
        """Keep a whole body of so many bytes until it is answered. Raises ApiError."""
        if size <= UNCOUNTED_BYTES:
            return None
        if self.buffered + size > self.limits.buffered_bytes:
            raise _no_room()
        return Counted(self, size)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep(loop)

    def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Enforce the times of all connections; cheaper than a timer for each request."""
        now = time.monotonic()
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            self.date = b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
        wait = self._grace.seconds(now)
        for connection in [] if wait else list(self.connections):
            connection.enforce_times(now)
        self._grace.expect(now + (wait or SWEEP_SECONDS))
        self._sweeping = loop.call_later(wait or SWEEP_SECONDS, self._sweep, loop)


class Edge(Connections):
    """The connections of applications, and the way in."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        limits: EdgeLimits,
        cors: Cors | None = None,
        cut: Callable[[str], None] = lambda cause: None,
    ) -> None:
        super().__init__(limits, cors, cut)
        self.dispatcher = dispatcher


def _ids(prefix: bytes) -> Iterator[bytes]:
    """Ids that begin with ``prefix``, no two alike; all but the end of one is written for many."""
    ends = [b"%02x" % number for number in range(256)]
    for number in itertools.count():
        start = b"%b-%x" % (prefix, number)
        for end in ends:
            yield start + end


def _no_room() -> ApiError:
    return ApiError(
        "receiving_too_much",
        "The bodies that are coming in and those being answered leave no room for this one.",
        retry_after=1.0,
    )


def refusal(
    edge: Connections, error: ApiError, head: Head | None, origin: bytes | None = None
) -> bytes:
    """A whole answer to what is no request that could be served; the connection ends with it.

    Args:
        head: of the request, where as much as that could be read.
        origin: of the page that sent a head which could not.
    """
    path, given = (head.path, head.request_id) if head is not None else ("/v1", None)
    request_id = given or edge.new_id()
    rendered = render(error, path=path, request_id=request_id.decode("latin-1"))
    lines = b"".join(b"%b: %b\r\n" % (n.encode(), v.encode()) for n, v in rendered.headers)
    if edge.cors is not None:
        lines += edge.cors.lines(head.origin if head is not None else origin)
    return b"%b%bcontent-length: %d\r\nx-request-id: %b\r\n%bconnection: close\r\n\r\n%b" % (
        STATUS_LINES[rendered.status],
        edge.date,
        len(rendered.body),
        request_id,
        lines,
        b"" if head is not None and head.method == b"HEAD" else rendered.body,
    )
