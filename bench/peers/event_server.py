"""A worker that does nothing but stream: ``python event_server.py PORT EVENTS PACE READINESS``.

Every stream gets one event each PACE seconds, EVENTS in all; one timer serves all streams, so that
what is measured is the way there and not this.
"""

import asyncio
import sys
from typing import ClassVar

import uvloop

PORT, EVENTS, PACE = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
READINESS = sys.argv[4].encode()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef01234567","object":"chat.completion.chunk",'
    b'"created":1700000000,"model":"bench","choices":[{"index":0,"delta":{"content":" word"},'
    b'"logprobs":null,"finish_reason":null}]}\n\n'
)
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Stream(asyncio.Protocol):
    """One connection; knows just enough HTTP for the gateways beside which it stands."""

    open: ClassVar["set[Stream]"] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.received = b""
        self.left = 0

    def connection_lost(self, exc: Exception | None) -> None:
        Stream.open.discard(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        if head.startswith(b"GET"):
            self.received = body
            length = b"content-length: %d\r\n\r\n" % len(READINESS)
            self.transport.write(b"HTTP/1.1 200 OK\r\n" + length + READINESS)  # type: ignore[attr-defined]
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(body) >= length:
            self.received = body[length:]
            self.left = EVENTS
            self.transport.write(HEAD)  # type: ignore[attr-defined]
            Stream.open.add(self)

    def step(self) -> None:
        self.left -= 1
        self.transport.write(CHUNK if self.left else CHUNK + END)  # type: ignore[attr-defined]
        if not self.left:
            Stream.open.discard(self)


async def main() -> None:
    loop = asyncio.get_running_loop()
    await loop.create_server(Stream, "127.0.0.1", PORT, backlog=1024)
    due = loop.time()
    while True:
        due = max(due + PACE, loop.time())
        await asyncio.sleep(due - loop.time())
        for stream in list(Stream.open):
            stream.step()


if __name__ == "__main__":
    uvloop.run(main())
