"""uvicorn's own HTTP protocol behind the strictness and the limits of the fast edge.

Connections that ask for the control surface end up here (``protocol`` hands them over); the admin
port uses it alone. Requests are read as the fast edge reads them, head by ``head`` and body by
``chunks``, and only what passed goes on to uvicorn: so both edges refuse the same, and nothing that
uvicorn would be lax about reaches it.
"""

import re
import time
from typing import Any, Final, Protocol

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from sluice_api.errors import ApiError
from sluice_gateway.chunks import ChunkedBody
from sluice_gateway.edge import Connections, refusal
from sluice_gateway.head import Head
from sluice_gateway.incoming import Incoming
from sluice_gateway.unsent import Unsent

CONNECTION: Final = "sluice.connection"
"""Among the extensions of an ASGI scope: the :class:`Connection` behind the request."""

_UPGRADE = re.compile(rb"\r\nupgrade:[^\r]*", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:[^\r]*", re.IGNORECASE)


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
    _loop: Any = None,
) -> "GuardedProtocol":
    """A protocol for a port without inference routes; uvicorn calls it, ``edge`` bound before."""
    return GuardedProtocol(edge, config, server_state, app_state, _loop)


class Connection:
    """What ASGI does not offer to one who answers.

    Args:
        cycle: uvicorn's, of this request; requests may wait behind it.
        head: of the request.
    """

    def __init__(
        self, protocol: "GuardedProtocol", cycle: RequestResponseCycle, head: Head
    ) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self.head = head

    @property
    def is_lost(self) -> bool:
        return self._cycle.disconnected

    @property
    def stalled_since(self) -> float | None:
        return self._protocol.stalled_since

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


class GuardedProtocol(Incoming, HttpToolsProtocol):
    """One client connection in uvicorn's hands."""

    def __init__(self, edge: Connections, *uvicorns: Any) -> None:
        HttpToolsProtocol.__init__(self, *uvicorns)
        Incoming.__init__(self, edge)
        self.streaming: Streaming | None = None
        """Set by who streams an answer over it, for as long as that takes."""
        self._head: Head | None = None  # of the request whose body is coming in
        self._parsed: Head | None = None  # of the request that uvicorn was given last
        self._need = 0  # bytes of the body still to come
        self._chunks: ChunkedBody | None = None
        self._refusal: tuple[ApiError, Head | None] | None = None  # due after what is answered
        self._discarding = False
        self._unsent: Unsent | None = None  # while so much is that nothing more is written

    def __repr__(self) -> str:
        phase = "body" if self._head else "head" if self._ahead else "idle" if self.idle else "busy"
        return f"<GuardedProtocol {phase}>"

    @property
    def idle(self) -> bool:
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.disconnected

    @property
    def owing_since(self) -> float | None:
        owes = self._head is not None or self.idle
        return self._since if owes and self.stalled_since is None else None

    @property
    def stalled_since(self) -> float | None:
        """When the client took some of an answer last; None while nothing waits for it."""
        return self._unsent.moved if self._unsent is not None else None

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]
        super().connection_made(transport)
        self._since = time.monotonic()
        self._edge.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._edge.connections.discard(self)
        self._let_body_go()
        super().connection_lost(exc)
        if self.streaming is not None:
            self.streaming.lost()

    def pause_writing(self) -> None:
        self._unsent = Unsent(self.transport, time.monotonic())
        super().pause_writing()

    def resume_writing(self) -> None:
        self._unsent = None
        super().resume_writing()

    # A request coming in --------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        if self._ahead:
            data, self._ahead = self._ahead + data, b""
        try:
            while data and not self._discarding and not self.transport.is_closing():
                data = self._take_head(data) if self._head is None else self._take_body(data)
        except ApiError as error:
            self._refuse(error)

    def _take_head(self, data: bytes) -> bytes:
        """Give uvicorn a head. Returns what follows it; keeps everything if it is not complete."""
        taken = self._read_head(data)
        if taken is None:
            return b""
        head, raw, rest = taken
        self._since = time.monotonic()
        if head.content_length > self._edge.limits.body_bytes:
            self._refuse(self._edge.too_large(head.content_length), head)
            return b""
        self._need = head.content_length
        self._chunks = ChunkedBody() if head.chunked else None
        self._parsed = head
        super().data_received(_plain(raw, head))
        if head.chunked or self._need:
            self._head = None if self._discarding else head
        else:
            self._received()
        return rest

    def _take_body(self, data: bytes) -> bytes:
        """Give uvicorn what belongs to the body. Returns what follows it."""
        if self._chunks is not None:
            self._hold(len(data))
            self._chunks.feed(data, self._edge.limits.body_bytes)
            rest = self._chunks.rest if self._chunks.complete else b""
            part = data[: len(data) - len(rest)]
            done = self._chunks.complete
        else:
            part = data[: self._need]
            self._hold(len(part))
            self._need -= len(part)
            rest = data[len(part) :]
            done = self._need == 0
        if done:
            self._head = self._chunks = None
            self._let_body_go()
            self._since = time.monotonic()
        super().data_received(part)
        if done:
            self._received()
        return rest

    def _received(self) -> None:
        """A request is here in full: if it is the connection's last, nothing more is read."""
        if self._parsed is not None and not self._parsed.keep_alive:
            self._discarding = True

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        assert self._parsed is not None
        connection = Connection(self, self.cycle, self._parsed)
        self.scope["extensions"] = {CONNECTION: connection}  # type: ignore[dict-item]

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError("bad_http", "The request could not be parsed."))

    # What is refused ------------------------------------------------------------------------------

    def _refuse(self, error: ApiError, head: Head | None = None) -> None:
        """Answer ``error`` after what is asked already, and close."""
        self._discarding = True
        self._ahead = b""
        self._let_body_go()
        broken, self._head = self._head, None
        self._refusal = (error, head or broken)
        if broken is not None and self.cycle is not None and not self.cycle.response_complete:
            # The request is being answered, or waits to be, and will never be complete.
            cycle = self.cycle
            cycle.disconnected = True
            cycle.message_event.set()
            waiting = [entry for entry in self.pipeline if entry[0] is cycle]
            for entry in waiting:
                self.pipeline.remove(entry)
            if cycle.response_started:
                self.transport.close()
            elif not waiting:
                self._send_refusal()
        elif self.idle:
            self._send_refusal()

    def on_response_complete(self) -> None:
        last = not self.pipeline
        unread = self._head is not None and self._parsed is self._head and last
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if last and self._refusal is not None:
            self._send_refusal()
        elif unread and self._head is not None and self._head.expect_continue:
            # It may send its body all the same, or not: where the next request begins is not known.
            self.transport.close()

    def _send_refusal(self) -> None:
        assert self._refusal is not None
        error, head = self._refusal
        if self.transport.is_closing():
            return
        self._edge.cut(error.code)
        self.transport.write(refusal(self._edge, error, head, self._origin))
        self._since = time.monotonic()
        self._unset_keepalive_if_required()
        self.transport.write_eof()  # As on the fast edge: closing now could lose the answer.

    def evict(self) -> None:
        self.transport.close()

    # Time -----------------------------------------------------------------------------------------

    def enforce_times(self, now: float) -> None:
        """Times between a complete request and its answer are those of its route."""
        limits, spent = self._edge.limits, now - self._since
        if self._unsent is None and self.transport.is_closing():
            self._unsent = Unsent(self.transport, now)
        if self._unsent is not None:
            self._unsent.look(now)
        if self.streaming is not None:
            self.streaming.enforce_times(now)
        elif self._unsent is not None:
            seconds = limits.write_seconds
            if self._unsent.is_stalled(now, seconds) or self._unsent.is_late(now, seconds):
                self._edge.cut("stalled")
                self.transport.abort()
        elif self._discarding:
            if self.idle and spent > limits.linger_seconds:
                self.transport.abort()
        elif self._head is not None:
            if limits.body_is_late(spent, self._held):
                self._refuse(ApiError("request_timeout", "The body did not arrive in time."))
        elif self._partial:
            if spent > limits.head_seconds:
                self._refuse(ApiError("request_timeout", "The headers did not arrive in time."))
        elif self.cycle is None and spent > limits.head_seconds:
            self._edge.cut("idle")
            self.transport.close()

    def cut_short(self, error: ApiError) -> None:
        """The process ends: who still waits, or follows a stream, is told."""
        cycle = self.cycle
        if self.streaming is not None:
            self.streaming.cut_short(error)
        elif not self.idle and not cycle.response_started:
            cycle.disconnected = True  # Nobody is there any more for who would have answered.
            cycle.message_event.set()
            self.transport.write(refusal(self._edge, error, self._parsed))
            self.transport.close()


def _plain(raw: bytes, head: Head) -> bytes:
    """A head as uvicorn is to see it: what is asked for from its path on, and nothing to ignore.

    An offer to upgrade may be ignored (RFC 9110 §7.8), but llhttp would stop reading at one.
    """
    line, rest = raw.split(b"\r\n", 1)
    method, _, version = line.split(b" ")
    target = b"/" if head.target == b"*" else head.target
    rest = _UPGRADE.sub(b"", b"\r\n" + rest)
    if not head.expect_continue:
        rest = _EXPECT.sub(b"", rest)
    return b"%b %b %b%b" % (method, target, version, rest)
