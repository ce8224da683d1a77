"""The fast edge: HTTP/1.1 for the inference routes, without a task or a header object per request.

uvicorn makes one :class:`FastProtocol` per connection and keeps owning sockets, signals and
shutdown. A connection that asks for anything but an inference route is handed to uvicorn's own
protocol with the bytes read so far, and stays there (``fallback``). Requests of one connection are
answered one after the other; what a client sends ahead waits in a bounded buffer.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from sluice_api.errors import ApiError
from sluice_gateway.chunks import ChunkedBody
from sluice_gateway.edge import STATUS_LINES, UNCOUNTED_BYTES, Edge, refusal
from sluice_gateway.fallback import GuardedProtocol
from sluice_gateway.head import Head
from sluice_gateway.idempotency import Pending
from sluice_gateway.incoming import Incoming
from sluice_gateway.known_heads import HeadForm
from sluice_gateway.request import Answer, Request
from sluice_gateway.unsent import Unsent

MAX_AHEAD_BYTES: Final = 256 * 1024
"""What a connection may send beyond the request that is being answered."""

MAX_LAST_BYTES: Final = 1024
"""Of a head that is remembered: who keeps a connection sends the same one again and again."""

HEARTBEAT_SECONDS: Final = 15.0
"""A stream that is silent for so long says that it lives, or proxies on the way would cut it."""
HEARTBEAT: Final = b": still here\n\n"

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


def make_fast(
    edge: Edge,
    config: Config,
    server_state: ServerState,
    app_state: dict[str, Any],
    _loop: asyncio.AbstractEventLoop | None = None,
) -> "FastProtocol":
    """A protocol for a new connection; uvicorn calls it, ``edge`` being bound before."""
    return FastProtocol(
        edge,
        server_state,
        lambda: GuardedProtocol(edge, config, server_state, app_state, _loop),
    )


class FastProtocol(Incoming, asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_body", "_chunks", "_close_after", "_connections", "_discarding", "_exchange", "_fallback",
        "_form", "_handing", "_head", "_id", "_need", "_paused", "_state", "_streaming",
        "_transport", "_unsent", "_used", "_write_paused", "busy",
    )  # fmt: skip

    _edge: Edge

    def __init__(
        self, edge: Edge, state: ServerState, fallback: Callable[[], asyncio.Protocol]
    ) -> None:
        super().__init__(edge)
        self._state = state
        self._connections: set[Any] = state.connections  # uvicorn waits until it is empty
        self._fallback = fallback
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._head: Head | None = None  # of the request that is coming in or being answered
        self._form: HeadForm | None = None  # of the last one that came whole
        self._body = bytearray()
        self._need = 0  # bytes of the body still to come
        self._chunks: ChunkedBody | None = None
        self._exchange: Pending | None = None
        self._id = b""
        self._handing = False
        self._paused = False
        self._write_paused = False
        self._unsent: Unsent | None = None  # while so much is that nothing more is written
        self._discarding = False
        self._streaming = False  # the answer that is going out is a stream
        self._close_after = False
        self._used = False  # a request has come in full
        self.busy = False

    def __repr__(self) -> str:
        phase = "busy" if self.busy else "body" if self._head else "head" if self._ahead else "idle"
        return f"<FastProtocol {phase}>"

    @property
    def idle(self) -> bool:
        return not self.busy and self._head is None

    @property
    def owing_since(self) -> float | None:
        return None if self.busy or self._write_paused else self._since

    # asyncio.Protocol ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it
        self._since = time.monotonic()
        if not self._edge.has_room():
            self._reject(ApiError("too_many_connections", "There is no room.", retry_after=1.0))
            self._transport.close()
            return
        self._connections.add(self)
        self._edge.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_body_go()
        self._connections.discard(self)
        self._edge.connections.discard(self)
        if self._exchange is not None:
            self._exchange.cancel()
            self._exchange = None
        self._close_after = True

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        if self.busy or self._write_paused:
            self._ahead += data
            if len(self._ahead) > MAX_AHEAD_BYTES:
                self._pause()
            return
        if self._ahead:
            data = self._ahead + data
            self._ahead = b""
        elif (form := self._form) is not None and self._head is None:
            head = form.head if data.startswith(form.raw) else form.read(data)
            # All of it and no more; anything else is looked at anew.
            if head is not None and len(data) - len(form.raw) == head.content_length:
                self._empty_lines = 0
                self._head = head
                try:
                    self._complete(data[len(form.raw) :])
                except ApiError as error:
                    self._reject(error)
                return
        self._advance(data)

    def pause_writing(self) -> None:
        """The client takes its answers too slowly: nothing more is read until it catches up."""
        self._write_paused = True
        self._since = now = time.monotonic()
        self._unsent = Unsent(self._transport, now)
        self._pause()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._unsent = None
        self._since = time.monotonic()
        asyncio.get_running_loop().call_soon(self._resume)

    def shutdown(self) -> None:
        """uvicorn shuts down: finish what was asked, then close."""
        self._close_after = True
        if not self.busy and self._head is None and not self._partial:
            self._transport.close()

    # A request coming in --------------------------------------------------------------------------

    def _advance(self, data: bytes) -> None:
        """Take ``data`` as what follows; ends when it is used up or a request is being answered."""
        try:
            while data and not self.busy and not self._write_paused:
                if self._discarding or self._transport.is_closing():
                    return
                data = self._take_head(data) if self._head is None else self._take_body(data)
        except ApiError as error:
            self._reject(error)
            return
        if data:
            self._ahead = data + self._ahead

    def _take_head(self, data: bytes) -> bytes:
        """Take a head, and begin to take its body. Returns what follows; nothing, if it is kept."""
        taken = self._read_head(data)
        if taken is None:
            return b""
        head, raw, rest = taken
        if head.route is None:
            self._hand_over(raw + rest)
            return b""
        self._head = head
        length = head.content_length
        if length > self._edge.limits.body_bytes:
            raise self._edge.too_large(length)
        if not head.chunked and len(rest) == length:  # The usual case: all of it, no more.
            if len(raw) <= MAX_LAST_BYTES:
                if self._form is None:
                    self._form = HeadForm(raw, head, self._edge.limits.body_bytes)
                else:
                    self._form.take(raw, head)
            self._complete(rest)
            return b""
        self._since = time.monotonic()
        self._edge.dispatcher.check_caller(head)  # Nobody unknown fills memory with a body.
        if head.chunked:
            self._chunks = ChunkedBody()
        elif length <= len(rest):
            self._complete(rest[:length])
            return rest[length:]
        else:
            self._need = length
        if head.expect_continue and not rest:
            self._edge.dispatcher.check(head)  # What is refused anyway need not be sent.
            self._transport.write(_CONTINUE)
        return rest

    def _take_body(self, data: bytes) -> bytes:
        if self._chunks is not None:
            self._hold(len(data))
            self._chunks.feed(data, self._edge.limits.body_bytes)
            if not self._chunks.complete:
                return b""
            body, rest = self._chunks.body, self._chunks.rest
            self._chunks = None
            self._complete(body)
            return rest
        part = data[: self._need]
        self._hold(len(part))
        self._body += part
        self._need -= len(part)
        if self._need == 0:
            body = bytes(self._body)
            self._body = bytearray()
            self._complete(body)
        return data[len(part) :]

    def _complete(self, body: bytes) -> None:
        """The request is here in full: dispatch it."""
        head = self._head
        assert head is not None
        edge = self._edge
        if self._held:
            self._let_body_go()
        counted = edge.count(len(body)) if len(body) > UNCOUNTED_BYTES else None
        self._id = head.request_id or edge.new_id()
        self.busy = self._used = True
        self._since = now = time.monotonic()
        self._handing = True
        request = Request(head, body, self, self._id, now, False, None, b"", counted)
        exchange = edge.dispatcher.handle(request)
        self._handing = False
        if self.busy:
            self._exchange = exchange

    def _hand_over(self, data: bytes) -> None:
        """Not an inference route: uvicorn's own protocol takes the connection from here."""
        self._connections.discard(self)
        self._edge.connections.discard(self)
        protocol = self._fallback()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(data)

    # An answer going out --------------------------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        """Called by the exchange, once per request."""
        head = self._head
        assert head is not None
        transport = self._transport
        if transport.is_closing():
            self._release()
            return
        edge = self._edge
        closing = self._close_after or edge.draining or not head.keep_alive
        more = b"connection: close\r\n" if closing else b""
        if edge.cors is not None:
            more += edge.cors.lines(head.origin)
        transport.write(
            b"".join(
                (
                    STATUS_LINES[answer.status],
                    edge.date,
                    b"content-type: ",
                    answer.content_type,
                    b"\r\ncontent-length: %d\r\nx-request-id: " % len(answer.body),
                    self._id,
                    b"\r\n",
                    answer.headers,
                    more,
                    b"\r\n",
                    answer.body,
                )
            )
        )
        self._answered(closing)

    def begin(self, answer: Answer) -> bool:
        """The head of a stream, and the first of it."""
        head = self._head
        assert head is not None
        if self._transport.is_closing():
            return False
        self._streaming = True
        closing = self._closing(head) or not head.takes_chunks
        more = b"transfer-encoding: chunked\r\n" if head.takes_chunks else b""
        if closing:
            more += b"connection: close\r\n"
        if self._edge.cors is not None:
            more += self._edge.cors.lines(head.origin)
        self._transport.write(
            b"%b%bcontent-type: %b\r\nx-request-id: %b\r\n%b%b\r\n"
            % (
                STATUS_LINES[answer.status],
                self._edge.date,
                answer.content_type,
                self._id,
                answer.headers,
                more,
            )
        )
        self._close_after = closing
        return self.send(answer.body)

    def send(self, data: bytes) -> bool:
        assert self._head is not None
        if self._transport.is_closing():
            return False  # The exchange learns of it from the loop.
        if self._head.takes_chunks:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._since = time.monotonic()
        self._transport.write(data)
        return not self._write_paused

    def end(self) -> None:
        head = self._head
        assert head is not None
        if head.takes_chunks and not self._transport.is_closing():
            self._transport.write(b"0\r\n\r\n")
        self._answered(self._closing(head))

    def break_off(self, data: bytes) -> None:
        """Without the last chunk no client takes the stream for complete."""
        if data:
            self.send(data)
        self._release()
        self._close_after = True
        self._ahead = b""
        if data:
            self._transport.close()
        else:
            self._transport.abort()

    def _closing(self, head: Head) -> bool:
        """Whether this is the connection's last answer."""
        return self._close_after or self._edge.draining or not head.keep_alive

    def _release(self) -> None:
        """The request is answered, as far as it will be."""
        self._head = None
        self._exchange = None
        self._streaming = False
        self.busy = False

    def _answered(self, closing: bool) -> None:
        """The answer has been written whole: close, or go on with what was sent ahead."""
        self._head = None  # As in _release; every request ends here.
        self._exchange = None
        self._streaming = self.busy = False
        self._state.total_requests += 1
        if closing:
            self._close_after = True
            self._ahead = b""
            self._transport.close()
            return
        self._since = time.monotonic()
        if self._ahead and not self._handing:
            # From the loop, so that a long pipeline of cached answers does not nest.
            asyncio.get_running_loop().call_soon(self._resume)

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        """Go on with a stream, or with what was sent ahead."""
        if self._streaming and self._exchange is not None and not self._write_paused:
            self._exchange.resume()
        if self.busy or self._write_paused or self._transport.is_closing():
            return
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        data, self._ahead = self._ahead, b""
        self._advance(data)

    def _reject(self, error: ApiError) -> None:
        """Answer what is not a valid request, and close: what follows it cannot be trusted."""
        self._edge.cut(error.code)
        self._transport.write(refusal(self._edge, error, self._head, self._origin))
        self._let_body_go()
        self._body = bytearray()
        self._chunks = None
        self._close_after = True
        self._head = None
        self._ahead = b""
        # Closing with unread bytes would reset the connection and lose the answer: say that no more
        # will come, and read on until the client closes or its time is up.
        self._discarding = True
        self._since = time.monotonic()
        self._transport.write_eof()

    def evict(self) -> None:
        self._transport.close()

    def cut_short(self, error: ApiError) -> None:
        """The process ends: whoever still waits is told."""
        if self._exchange is not None:
            self._exchange.fail(error)
        elif self._head is not None:  # Its body is still coming.
            self._reject(error)

    # Time -----------------------------------------------------------------------------------------

    def enforce_times(self, now: float) -> None:
        """Close, with an answer where one is due, a connection that takes too long."""
        limits, spent = self._edge.limits, now - self._since
        if self._discarding:
            if spent > limits.linger_seconds:
                self._transport.abort()
        elif self._write_paused or self._transport.is_closing():
            self._enforce_taking(now)
        elif self._streaming:
            if spent > HEARTBEAT_SECONDS:
                self.send(HEARTBEAT)
        elif self.busy:
            return
        elif self._head is not None:
            if limits.body_is_late(spent, self._held):
                self._reject(ApiError("request_timeout", "The body did not arrive in time."))
        elif self._ahead:
            if spent > limits.head_seconds:
                self._reject(ApiError("request_timeout", "The headers did not arrive in time."))
        elif spent > (limits.keep_alive_seconds if self._used else limits.head_seconds):
            self._edge.cut("idle")
            self._transport.close()

    def _enforce_taking(self, now: float) -> None:
        """Cut off a client that takes nothing of what is written to it, or too little."""
        if self._unsent is None:
            self._unsent = Unsent(self._transport, now)
        self._unsent.look(now)
        seconds = self._edge.limits.write_seconds
        if self._unsent.is_stalled(now, seconds) or (
            not self._streaming and self._unsent.is_late(now, seconds)
        ):
            self._stalled()

    def _stalled(self) -> None:
        """The client has taken nothing for too long."""
        self._edge.cut("stalled")
        if self._streaming and self._exchange is not None:
            self._exchange.cut_off("stalled")
        self._transport.abort()
