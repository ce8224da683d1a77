"""A proxy between a client and a real Redis that lies about the values it hands on.

It understands just enough of RESP2 to take the reply stream apart. ``fault`` gets each reply that
carries a value, whole, and returns the bytes to send instead; everything else passes unharmed, so
that a connection always comes up before it goes wrong.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

Fault = Callable[[bytes], bytes]
MAX_KEPT = 5000


class FaultProxy:
    """One listening Unix socket; ``faulted`` counts the replies that were changed."""

    def __init__(self, path: Path, upstream: Path) -> None:
        self.path = path
        self.fault: Fault | None = None
        self.delay_seconds: Callable[[], float] = lambda: 0.0
        self.faulted = 0
        self.connections = 0
        self._upstream = upstream
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(str(self._upstream))
        self._writers.add(up_writer)
        forth = asyncio.create_task(_copy(reader, up_writer))
        back = asyncio.create_task(self._answer(up_reader, writer))
        try:
            await asyncio.wait([forth, back], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in (forth, back):
                part.cancel()
            await asyncio.gather(forth, back, return_exceptions=True)
            self._end(writer, up_writer)

    def _end(self, *writers: asyncio.StreamWriter) -> None:
        for writer in writers:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._end(*self._writers)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        buffer = b""
        while data := await reader.read(1 << 20):
            replies, buffer = split_replies(buffer + data)
            await asyncio.sleep(self.delay_seconds())
            writer.write(b"".join(map(self._pass, replies)))
            await writer.drain()

    def _pass(self, reply: bytes) -> bytes:
        if self.fault is None or not reply.startswith(b"$") or reply.startswith(b"$-1"):
            return reply
        changed = self.fault(reply)
        self.faulted += changed != reply
        return changed


@asynccontextmanager
async def running_proxy(upstream: Path) -> AsyncIterator[FaultProxy]:
    with TemporaryDirectory() as folder:
        proxy = FaultProxy(Path(folder) / "proxy.sock", upstream)
        server = await asyncio.start_unix_server(proxy._accept, str(proxy.path))
        try:
            yield proxy
        finally:
            server.close()
            await proxy._close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


def split_replies(buffer: bytes) -> tuple[list[bytes], bytes]:
    """The whole replies at the beginning of ``buffer`` (no arrays), and the rest."""
    replies: list[bytes] = []
    start = 0
    while (end := buffer.find(b"\r\n", start)) >= 0:
        end += 2
        if buffer[start : start + 1] == b"$" and (length := int(buffer[start + 1 : end])) >= 0:
            end += length + 2
        if end > len(buffer):
            break
        replies.append(buffer[start:end])
        start = end
    return replies, buffer[start:]


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def value_of(reply: bytes) -> bytes:
    return reply[reply.index(b"\r\n") + 2 : -2]


# Faults that leave the reply well formed --------------------------------------------------------


def flip_in_value(rng: random.Random) -> Fault:
    return lambda reply: bulk(_flipped(value_of(reply), rng))


def cut_value(rng: random.Random) -> Fault:
    def fault(reply: bytes) -> bytes:
        value = value_of(reply)
        return bulk(value[: rng.randrange(len(value))])

    return fault


def swap(rng: random.Random) -> Fault:
    """Answer with a value that was asked for under some other key, on whatever connection."""
    seen: list[bytes] = []

    def fault(reply: bytes) -> bytes:
        others = [other for other in seen[-20:] if other != reply]
        seen.append(reply)
        del seen[:-MAX_KEPT]
        return rng.choice(others) if others else reply

    return fault


def retype(rng: random.Random) -> Fault:
    forms = [b":7\r\n", b"+OK\r\n", b"*1\r\n$1\r\na\r\n", b"*0\r\n", b"$0\r\n\r\n", b"$-1\r\n"]
    return lambda _: rng.choice(forms)


def age_format(rng: random.Random) -> Fault:
    """As if an older or newer version had written it."""
    return lambda reply: bulk(bytes([rng.choice([0, 1, 255])]) + value_of(reply)[1:])


def refuse(message: bytes) -> Fault:
    return lambda _: b"-" + message + b"\r\n"


# Faults of the stream ---------------------------------------------------------------------------


def flip_anywhere(rng: random.Random) -> Fault:
    return lambda reply: _flipped(reply, rng)


def cut_stream(rng: random.Random) -> Fault:
    return lambda reply: reply[: rng.randrange(len(reply))]


def drop_some(rng: random.Random) -> Fault:
    return lambda reply: b"" if rng.random() < 0.2 else reply


def repeat_some(rng: random.Random) -> Fault:
    return lambda reply: reply * 2 if rng.random() < 0.2 else reply


def flood(_: random.Random) -> Fault:
    return lambda _: b"$536870912\r\n" + bytes(4_000_000)


def _flipped(data: bytes, rng: random.Random) -> bytes:
    position = rng.randrange(len(data) * 8)
    changed = bytearray(data)
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)
