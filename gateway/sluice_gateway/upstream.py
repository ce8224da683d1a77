"""Connections to one worker: kept alive, pooled, and suspicious of every byte that comes back.

``forward`` sends prepared bytes through a :class:`Pool` and is told exactly once how it ended. A
worker's answer is hostile input: sizes are bounded, framing is llhttp's strict one, a second answer
nobody asked for poisons the connection. An answer counts once complete; only who asked for
server-sent events (a :class:`StreamReceiver`) is handed them as they come.
"""

import asyncio
import logging
import time
from typing import Final, Protocol, cast, runtime_checkable

import httptools

from sluice_gateway.timers import Timer, TimerWheel
from sluice_gateway.worker_answer import (
    AnswerForm,
    UpstreamAnswer,
    form_of,
    read_answer,
    spelling_of,
)

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_BODY_BYTES: Final = 128 * 1024 * 1024
MAX_BYTES: Final = MAX_HEAD_BYTES + MAX_BODY_BYTES
"""Of all that comes of an answer, whose body may be framed in chunks."""
EVENT_STREAM: Final = b"text/event-stream"
CONNECT_SECONDS: Final = 1.0
"""Unless the pool is told otherwise."""
COMPLETE_SECONDS: Final = 10.0
"""From an answer's first byte to its last."""
IDLE_SECONDS: Final = 4.0
"""Shorter than the 5 s after which uvicorn closes an idle connection."""

log = logging.getLogger(__name__)


class Receiver(Protocol):
    """Who is told how a request to a worker ended; exactly one call, unless it was aborted."""

    def answered(self, answer: UpstreamAnswer) -> None: ...

    def broke(self, cause: str) -> None:
        """``connect`` refused, ``stale`` idle connection, ``reset``, ``garbage``, ``slow`` in the
        middle of the answer, or ``silent``: not within the time allowed for its first byte."""
        ...


@runtime_checkable
class StreamReceiver(Receiver, Protocol):
    """Who wants a stream of events as it comes; any other answer comes whole, as to everybody.

    ``began`` comes once, then ``part`` each time that bytes arrive, then ``ended``, in whose place
    ``broke`` may come at any time.
    """

    def began(self, answer: UpstreamAnswer) -> None:
        """A stream begins; ``answer`` has no body."""
        ...

    def part(self, data: bytes) -> None:
        """More of the stream, cut anywhere."""
        ...

    def ended(self) -> None:
        """The worker has framed the end of the stream properly."""
        ...


class Connection(asyncio.Protocol):
    """One connection; at most one request at a time. Also the handle to abort that request."""

    __slots__ = (
        "_answer",
        "_awaiting",
        "_begun",
        "_body",
        "_bytes",
        "_complete",
        "_expected_id",
        "_framed",
        "_head_done",
        "_headers",
        "_keep_alive",
        "_outgoing",
        "_parser",
        "_paused",
        "_pool",
        "_receiver",
        "_reused",
        "_stream",
        "_streams",
        "_surplus",
        "_timer",
        "_transport",
        "connecting",
        "idle_since",
        "on_body",
        "on_header",
    )

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._headers: dict[bytes, bytes] = {}
        self._answer: UpstreamAnswer | None = None  # once its head is here
        self._body: list[bytes] = []
        # The parser calls them for each header and part; methods of ours would cost five times as
        # much.
        self.on_header = self._headers.__setitem__
        self.on_body = self._body.append
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._stream: StreamReceiver | None = None
        self._expected_id = b""
        self._outgoing = b""
        self._timer: Timer | None = None
        self._awaiting = False  # The timer is for the first byte.
        self._reused = False
        self._paused = False
        self._bytes = 0  # that came since the request was sent
        self.connecting: asyncio.Task[None] | None = None
        self.idle_since = 0.0
        self._reset()

    def __repr__(self) -> str:
        if self._transport is None:
            state = "connecting" if self.connecting else "closed"
        else:
            state = "idle" if self._receiver is None else "busy"
        return f"<Connection {self._pool.address} {state}>"

    def _reset(self) -> None:
        self._headers.clear()
        self._answer = None
        self._body.clear()
        self._head_done = False
        self._keep_alive = False
        self._framed = False  # by a length
        self._streams = False  # It says that it is a stream of events.
        self._complete = False
        self._surplus = False
        self._stream = None
        self._begun = False

    @property
    def phase(self) -> str:
        """What is waited for, as errors call it."""
        if self._transport is None:
            return "connect"
        return "answer" if self._bytes else "first-byte"

    def send(
        self,
        receiver: Receiver,
        data: bytes,
        request_id: bytes,
        first_byte_seconds: float | None = None,
    ) -> None:
        """Send one request. Before the connection stands, it is kept until it does."""
        self._receiver = receiver
        self._expected_id = request_id
        if first_byte_seconds is not None:
            self._awaiting = True
            self._timer = self._pool.wheel.after(first_byte_seconds, self._silent)
        if self._transport is None:
            self._outgoing = data
        else:
            self._reused = True
            self._transport.write(data)

    def serves(self, receiver: Receiver) -> bool:
        """Whether ``receiver``'s request is the one in progress."""
        return self._receiver is receiver

    def hand_over(self, receiver: Receiver) -> None:
        """Have ``receiver`` told of the request in progress instead."""
        self._receiver = receiver

    def abort(self) -> None:
        """Give up on the request in progress: the worker sees the connection close."""
        self._receiver = None
        self._close()

    def pause(self) -> None:
        """Let the worker wait: nothing more is read until :meth:`resume`."""
        if self._transport is not None and not (self._paused or self._transport.is_closing()):
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    # asyncio.Protocol --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it
        self.connecting = None
        if self._receiver is None:  # aborted in the meantime
            self._transport.abort()
        else:
            self._transport.write(self._outgoing)
            self._outgoing = b""

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:
            self._close()  # Bytes nobody asked for: whatever follows cannot be trusted.
            return
        if not self._bytes and (form := self._pool.form) is not None:
            answer = form.read(data, self._expected_id)
            if answer is not None:
                self._release()
                receiver.answered(answer)
                return
        # The form of the answer is not known, or it comes in pieces.
        self._bytes += len(data)
        if self._bytes > MAX_BYTES:
            self._break("garbage")
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._break("garbage")
            return
        if self._stream is not None and not self._surplus:
            self._pass_on(self._stream)
            return
        if self._awaiting and self._head_done:
            self._cancel_timer()
        if self._complete:
            if self._surplus:
                self._break("garbage")
            else:
                self._finish(data if self._bytes == len(data) else b"")
            return
        if not self._head_done and self._bytes > MAX_HEAD_BYTES:
            self._break("garbage")
            return
        if self._timer is None:
            self._timer = self._pool.wheel.after(COMPLETE_SECONDS, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._pool.forget(self)
        if self._receiver is not None:
            self._break("reset" if self._bytes or not self._reused else "stale")

    # httptools -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            self._surplus = True

    def on_headers_complete(self) -> None:
        if self._surplus:
            return
        self._head_done = True
        self._keep_alive = self._parser.should_keep_alive()  # llhttp forgets it at the end.
        headers, status = self._headers, self._parser.get_status_code()
        spelling = spelling_of(tuple(headers))
        length = headers.get(spelling.content_length)
        if length is None:
            # Without a length the end cannot be told from a crash.
            if spelling.transfer_encoding not in headers and status >= 200:
                raise ValueError("no length")
        elif int(length) > MAX_BODY_BYTES:
            raise ValueError("too long")
        echoed = headers.get(spelling.request_id)
        # A probe names no id; the worker makes one up then.
        if echoed is not None and self._expected_id and echoed != self._expected_id:
            raise ValueError("answer to another request")
        # Now: what comes behind a body in chunks is no part of the head.
        self._answer = read_answer(status, headers, b"", spelling)
        self._streams = headers.get(spelling.content_type, b"").startswith(EVENT_STREAM)
        self._framed = length is not None
        if self._streams and status == 200 and isinstance(self._receiver, StreamReceiver):
            self._stream = self._receiver

    def on_message_complete(self) -> None:
        if self._surplus:
            return
        if self._parser.get_status_code() < 200:
            self._reset()  # 100 or 103: the real answer is still to come.
        else:
            self._complete = True

    # ---------------------------------------------------------------------------------------------

    def _pass_on(self, stream: StreamReceiver) -> None:
        """Hand over what has come of a stream, and its end. The receiver may abort at any point."""
        if not self._begun:
            self._begun = True
            if not self._awaiting:
                self._cancel_timer()  # A stream takes as long as it takes.
            assert self._answer is not None
            stream.began(self._answer)
        if self._body and self._receiver is stream:
            if self._awaiting:
                self._cancel_timer()  # Its head tells nothing: it comes before the first token.
            stream.part(self._take_body())
        if self._complete and self._receiver is stream:
            self._release()
            stream.ended()

    def _finish(self, whole: bytes) -> None:
        """The answer is complete: in ``whole``, if it came in one piece."""
        receiver, answer = self._receiver, self._answer
        assert receiver is not None
        assert answer is not None
        if whole and self._expected_id and self._keep_alive and self._framed and not self._streams:
            self._pool.learn(whole, answer)
        answer.body = self._take_body()
        self._answer = None
        self._release()
        receiver.answered(answer)

    def _take_body(self) -> bytes:
        """What has come of the body since it was taken last."""
        parts = self._body
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        return body

    def _release(self) -> None:
        """The request is over: the connection is kept for another, or closed."""
        self._receiver = None
        if self._paused:
            self.resume()
        if self._timer is not None:
            self._cancel_timer()
        if self._pool.retired or (self._bytes and not self._keep_alive):
            self._close()
            return
        if self._bytes:  # Otherwise the parser saw nothing of the answer.
            self._reset()
            self._bytes = 0
        self.idle_since = time.monotonic()
        self._pool.idle.append(self)

    def _too_slow(self) -> None:
        self._break("slow")

    def _silent(self) -> None:
        self._break("silent")

    def _break(self, cause: str) -> None:
        receiver, self._receiver = self._receiver, None
        self._close()
        if receiver is not None:
            receiver.broke(cause)

    def refused(self) -> None:
        """The connection could not be made."""
        self.connecting = None
        self._break("connect")

    def _cancel_timer(self) -> None:
        self._awaiting = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._cancel_timer()
        if self.connecting is not None:
            self.connecting.cancel()
            self.connecting = None
        if self._transport is not None:
            self._transport.abort()
        self._pool.forget(self)


class Pool:
    """The connections to one address. How many there are is bounded by the endpoint's leases.

    Args:
        connect_seconds: for a connection to be made.
    """

    def __init__(
        self, host: str, port: int, wheel: TimerWheel, connect_seconds: float = CONNECT_SECONDS
    ) -> None:
        self.host = host
        self.port = port
        self.host_header = f"[{host}]:{port}".encode() if ":" in host else f"{host}:{port}".encode()
        self.wheel = wheel
        self.connect_seconds = connect_seconds
        self.retired = False
        self.form: AnswerForm | None = None
        """Of the answers that come; None until one is known."""
        self._learnable = 0
        self.openings: dict[bytes, bytes] = {}
        """How requests begin, by path, as :meth:`opening` has made them."""
        self.idle: list[Connection] = []
        self._all: set[Connection] = set()

    def opening(self, path: bytes) -> bytes:
        """Make how a request for ``path`` begins, up to the length of its body."""
        opening = self.openings[path] = (
            b"POST %b HTTP/1.1\r\nhost: %b\r\n"
            b"content-type: application/json\r\ncontent-length: " % (path, self.host_header)
        )
        return opening

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"<Pool {self.address} {len(self._all)} open {len(self.idle)} idle>"

    def send(
        self,
        receiver: Receiver,
        data: bytes,
        request_id: bytes,
        first_byte_seconds: float | None = None,
        connect_seconds: float | None = None,
        *,
        fresh: bool = False,
    ) -> Connection:
        """Send a request on an idle connection, or on a new one; the result can abort it.

        Args:
            fresh: on a new one.
            first_byte_seconds: until the answer begins, or the first event of a stream.
            connect_seconds: less than the pool's own, where waiting for it would be in vain.
        """
        if self.idle and not fresh:
            connection = self.idle.pop()
            connection.send(receiver, data, request_id, first_byte_seconds)
            return connection
        connection = Connection(self)
        self._all.add(connection)
        connection.send(receiver, data, request_id, first_byte_seconds)
        connection.connecting = asyncio.get_running_loop().create_task(
            self._connect(connection, connect_seconds or self.connect_seconds),
            name=f"connect {self.address}",
        )
        return connection

    async def _connect(self, connection: Connection, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                await loop.create_connection(lambda: connection, self.host, self.port)
        except (OSError, TimeoutError):
            connection.refused()

    def learn(self, whole: bytes, answer: UpstreamAnswer) -> None:
        """Know the form of ``answer`` from now on; ``whole`` is what came."""
        self._learnable += 1
        if self._learnable & (self._learnable - 1) == 0:
            # Ever more rarely: where each answer has another form, none is worth the look.
            self.form = form_of(whole, answer.digest) or self.form

    def forget(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)

    def expire(self, now: float) -> None:
        """Close what has been idle for too long; called about once a second."""
        for connection in [c for c in self.idle if now - c.idle_since > IDLE_SECONDS]:
            connection.abort()

    def retire(self) -> None:
        """No new requests will come: close what is idle now, the rest when it is done."""
        self.retired = True
        for connection in list(self.idle):
            connection.abort()

    def close(self) -> None:
        """Abort everything."""
        self.retired = True
        for connection in list(self._all):
            connection.abort()
