"""A stream over the ordinary routes: what the exchange sends, given to ASGI as fast as it takes it.

``inference`` answers with an :class:`EventStream` where the exchange begins a stream. It keeps to
the rules of the fast edge: what waits is bounded, who takes nothing is cut off, silence is filled
with heartbeats, and an incomplete stream does not look complete.
"""

import asyncio
import time
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sluice_api.errors import ApiError
from sluice_gateway.fallback import CONNECTION, Connection
from sluice_gateway.idempotency import Pending
from sluice_gateway.protocol import HEARTBEAT, HEARTBEAT_SECONDS
from sluice_gateway.request import Answer

MAX_WAITING_BYTES: Final = 64 * 1024
"""What may wait here beside uvicorn's own buffer before the stream is held up."""


class StreamCaller:
    """The caller of one exchange: a future for the answer, and a buffer if that is a stream."""

    def __init__(self) -> None:
        self.result: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.streams = False
        self.ended = False
        self.broken = False
        self.changed = asyncio.Event()
        self.last = 0.0  # when something was sent last
        self._parts: list[bytes] = []
        self._waiting = 0
        self._full = False

    def answer(self, answer: Answer) -> None:
        if not self.result.done():
            self.result.set_result(answer)

    def begin(self, answer: Answer) -> bool:
        self.streams = True
        self.answer(answer)
        return self.send(answer.body)

    def send(self, data: bytes) -> bool:
        self.last = time.monotonic()
        self._parts.append(data)
        self._waiting += len(data)
        self._full = self._waiting > MAX_WAITING_BYTES
        self.changed.set()
        return not self._full

    def end(self) -> None:
        self.ended = True
        self.changed.set()

    def break_off(self, data: bytes) -> None:
        if data:
            self._parts.append(data)
        self.broken = True
        self.changed.set()

    def take(self) -> tuple[bytes, bool]:
        """What waits, and whether the exchange was told that it is too much."""
        data, self._parts = b"".join(self._parts), []
        self._waiting = 0
        was_full, self._full = self._full, False
        return data, was_full


class EventStream(Response):
    """The answer to one request, as long as its exchange goes on."""

    def __init__(
        self,
        caller: StreamCaller,
        exchange: Pending,
        headers: dict[str, str],
        write_seconds: float,
    ) -> None:
        super().__init__(None, 200, headers)
        del self.headers["content-length"]
        self._caller = caller
        self._exchange = exchange
        self._write_seconds = write_seconds
        self._connection: Connection | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection = scope["extensions"][CONNECTION]
        self._connection = connection
        connection.attach(self)
        if connection.is_lost:
            self.lost()
        try:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            await self._stream(send, connection)
        finally:
            connection.attach(None)
            self._exchange.cancel()  # Does nothing once it is answered.

    async def _stream(self, send: Send, connection: Connection) -> None:
        caller = self._caller
        while True:
            caller.changed.clear()
            ended, broken = caller.ended, caller.broken
            data, was_full = caller.take()
            if data or ended:
                message = {"type": "http.response.body", "body": data, "more_body": not ended}
                await send(message)
            if ended:
                return
            if broken:
                connection.break_off()
                return
            if was_full:
                self._exchange.resume()
            await caller.changed.wait()

    # From the connection --------------------------------------------------------------------------

    def lost(self) -> None:
        self._exchange.cancel()
        self._caller.ended = True
        self._caller.changed.set()

    def enforce_times(self, now: float) -> None:
        connection = self._connection
        if connection is not None and connection.stalled_since is not None:
            if now - connection.stalled_since > self._write_seconds:
                self._exchange.cut_off("stalled")
                connection.break_off(at_once=True)
        elif now - self._caller.last > HEARTBEAT_SECONDS:
            self._caller.send(HEARTBEAT)

    def cut_short(self, error: ApiError) -> None:
        self._exchange.fail(error)
