"""uvicorn's own HTTP protocol, held to the same limits as the fast edge.

Connections that ask for the control surface end up here (``protocol`` hands them over); the admin
port uses it alone. What uvicorn does not bound – head size, number of headers, time to send them –
is bounded by overriding its parser callbacks.
"""

import asyncio
import time
from typing import Any, Final, Protocol, Self

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from sluice_api.errors import ApiError, render
from sluice_gateway.edge import Connections
from sluice_gateway.head import MAX_HEAD_BYTES, MAX_HEADERS

_STATUS: Final = {400: b"400 Bad Request", 408: b"408 Request Timeout"}
_TOO_LARGE: Final = b"431 Request Header Fields Too Large"


CONNECTION: Final = "sluice.connection"
"""Among the extensions of an ASGI scope: the :class:`Connection` behind the request."""


class Streaming(Protocol):
    """An answer that goes out in parts."""

    def lost(self) -> None:
        """The connection is gone."""
        ...

    def enforce_times(self, now: float) -> None: ...

    def cut_short(self, error: ApiError) -> None: ...


def make_guarded(
    edge: Connections,
    config: Config,
    server_state: ServerState,
    app_state: dict[str, Any],
    _loop: asyncio.AbstractEventLoop | None = None,
) -> "GuardedProtocol":
    """A protocol for a port without inference routes; uvicorn calls it, ``edge`` bound before."""
    return GuardedProtocol(config, server_state, app_state, _loop).guarded_by(edge)


class Connection:
    """What ASGI does not offer to one who streams an answer.

    Args:
        cycle: uvicorn's, of this request; requests may wait behind it.
    """

    def __init__(self, protocol: "GuardedProtocol", cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle

    @property
    def is_lost(self) -> bool:
        return self._cycle.disconnected

    def attach(self, streaming: Streaming | None) -> None:
        """Tell ``streaming`` what happens to the connection, until told otherwise."""
        self._protocol.streaming = streaming

    def break_off(self, *, at_once: bool = False) -> None:
        """Close without the last chunk, so that nobody takes the answer for complete."""
        self._cycle.disconnected = True  # uvicorn takes no more of it, and misses nothing.
        transport = self._protocol.transport
        if at_once:
            transport.abort()
        else:
            transport.close()


class GuardedProtocol(HttpToolsProtocol):
    """One client connection in uvicorn's hands."""

    _edge: Connections
    streaming: Streaming | None = None
    """Set by who streams an answer over it, for as long as that takes."""
    _head_bytes = 0  # received while the head is incomplete
    _header_bytes = 0
    _in_head = False
    _head_since = 0.0

    def guarded_by(self, edge: Connections) -> Self:
        """Have ``edge`` enforce the times of this connection."""
        self._edge = edge
        return self

    @property
    def idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]
        super().connection_made(transport)
        self._edge.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._edge.connections.discard(self)
        super().connection_lost(exc)
        if self.streaming is not None:
            self.streaming.lost()

    def data_received(self, data: bytes) -> None:
        if not self._in_head:
            self._head_bytes = 0
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._too_large():
                self._send(ApiError("headers_too_large", "The head is larger than is accepted."))

    def on_message_begin(self) -> None:
        self._in_head = True
        self._header_bytes = 0
        self._head_since = time.monotonic()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._too_large():
            raise ValueError("head too large")  # llhttp stops; uvicorn calls send_400_response.
        self._in_head = False
        super().on_headers_complete()
        self.scope["extensions"] = {CONNECTION: Connection(self, self.cycle)}  # type: ignore[dict-item]

    def send_400_response(self, msg: str) -> None:
        if self._too_large():
            self._send(ApiError("headers_too_large", "The head is larger than is accepted."))
        else:
            self._send(ApiError("bad_http", "The request could not be parsed."))

    def enforce_times(self, now: float) -> None:
        """Times of body and keep-alive are enforced by the routes and by uvicorn."""
        if self.streaming is not None:
            self.streaming.enforce_times(now)
        elif self._in_head and now - self._head_since > self._edge.limits.head_seconds:
            self._send(ApiError("request_timeout", "The headers did not arrive in time."))

    def cut_short(self, error: ApiError) -> None:
        """The process ends: who still follows a stream is told."""
        if self.streaming is not None:
            self.streaming.cut_short(error)

    def _too_large(self) -> bool:
        return self._in_head and (
            max(self._head_bytes, self._header_bytes) > MAX_HEAD_BYTES
            or len(self.headers) > MAX_HEADERS
        )

    def _send(self, error: ApiError) -> None:
        rendered = render(error, path="/v1", request_id=self._edge.new_id().decode())
        headers = b"".join(b"%b: %b\r\n" % (n.encode(), v.encode()) for n, v in rendered.headers)
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n%b"
            % (
                _STATUS.get(rendered.status, _TOO_LARGE),
                len(rendered.body),
                headers,
                rendered.body,
            )
        )
        self.transport.close()
