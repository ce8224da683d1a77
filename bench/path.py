"""The gateway's path in one process, without sockets: what a request costs in Python alone.

The bytes of a request go into the edge's protocol; what is written to the worker, or to Redis, is
answered at once. So a change of a few microseconds shows, on a busy machine too: calls of functions
do not depend on it at all, instructions (where the kernel lets them be counted) hardly. Requests
come :data:`ABREAST` in a turn of the loop, each on a connection of its own. Of streams, an event is
what is counted, with its share of beginning and end. ``--calls`` lists the functions, ``--costs``
what each of ours costs; ``--only`` takes the paths whose name has a word.
"""

import argparse
import asyncio
import ctypes
import fcntl
import gc
import os
import platform
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

import hiredis
import measure
import msgspec
import streams
import uvloop
from function_costs import inclusive
from peers.proxies import (
    ANSWER,
    CHAT,
    DIGEST,
    EMBEDDINGS,
    REVISION,
    TEXT,
    access_options,
    body,
    readiness,
    service,
)
from uvicorn.server import ServerState

from sluice_api import names, wire
from sluice_api.shapes.generated import DONE, item_event, write_item
from sluice_api.tasks import Task
from sluice_gateway import process, settings
from sluice_gateway.app import Gateway
from sluice_gateway.protocol import FastProtocol
from sluice_gateway.redis_link import Link
from sluice_gateway.redis_pipeline import RedisPipeline
from sluice_gateway.upstream import Connection, Pool

WORKERS: Final = ["127.0.0.1:1", "127.0.0.1:2"]
WARM: Final = 1_000
TRACED: Final = 50
COSTED: Final = 300
ABREAST: Final = 8


@dataclass(frozen=True)
class Path:
    """What is measured.

    Attributes:
        same: each request asks what the first did.
        events: of the stream that is asked for; 0 for plain answers.
    """

    name: str
    lines: str = ""
    options: tuple[str, ...] = ()
    same: bool = False
    events: int = 0

    @property
    def task(self) -> Task:
        return Task.CHAT if self.events else Task.EMBEDDINGS

    def reply(self) -> list[bytes]:
        """What a worker answers, in the pieces in which it comes."""
        if not self.events:
            return [_REPLY]
        return [_STREAM, *[_EVENT] * (self.events - 1), _EVENT + _END]


_REDIS: Final = ("--redis-url", "redis://bench")
_OWN_ID: Final = "x-request-id: %(n)032x\r\n"
PATHS: Final = (
    Path("passed on (no-store)", "cache-control: no-store\r\n"),
    Path("passed on, each with an id of its own", "cache-control: no-store\r\n" + _OWN_ID),
    Path(
        "passed on, each with an id and from a client of its own",
        "cache-control: no-store\r\nx-forwarded-for: 10.0.0.%(n)d\r\n" + _OWN_ID,
    ),
    Path("looked up, joined, stored in memory"),
    Path("the same, each with an id of its own", _OWN_ID),
    Path("looked up, joined, stored in memory and Redis", options=_REDIS),
    Path("found in Redis", options=(*_REDIS, "--cache-mib", "0"), same=True),
    Path("found in memory", same=True),
    Path("an event of a stream, passed on", same=True, events=200),
)

_PERF_EVENT_OPEN: Final = 298  # On x86-64.
_ENABLE: Final = 0x2400


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=2_000, help="requests per measurement")
    parser.add_argument("--calls", action="store_true", help="list the functions that are called")
    parser.add_argument(
        "--costs", action="store_true", help="list the instructions of functions of ours"
    )
    parser.add_argument("--only", default="", help="measure paths whose name contains this")
    options = parser.parse_args(arguments)
    found = []
    instructions = _Instructions()  # One for all: processors have few counters.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for path in PATHS:
            if options.only in path.name:
                measured = runner.run(_measure(path, options, instructions))
                found.append({"path": path.name, **measured})
    measure.table(
        "A request in process, without sockets",
        ["path", "µs CPU", "instructions", "calls of Python", "of C"],
        [
            [
                row["path"],
                f"{row['cpu_us']:.1f}",
                f"{row['instructions']:,.0f}" if row["instructions"] else "–",
                f"{row['python']:.0f}",
                f"{row['c']:.0f}",
            ]
            for row in found
        ],
    )
    measure.save("path", {"paths": found})


async def _measure(
    path: Path, options: argparse.Namespace, instructions: "_Instructions"
) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    with measure.folder() as folder:
        table = folder / "services.yaml"
        table.write_bytes(
            msgspec.json.encode(wire.ServiceTable(services=[service("bench", WORKERS, path.task)]))
        )
        access, headers = access_options(folder)
        given = ["--discovery", f"static:{table}", "--slow-start", "0s", *access, *path.options]
        gateway = Gateway(settings.read(given, {}))
        assert gateway.keys is not None
        gateway.keys.begin()
        with _Workers(path.task) as workers, _Redis():
            gateway.discovery.begin(gateway.services)
            gateway.edge.start(loop)
            await gateway.cache.start()
            await _ready(gateway)
            client = _Client()
            protocols = [
                FastProtocol(gateway.edge, ServerState(), lambda: asyncio.Protocol())
                for _ in range(ABREAST)
            ]
            for protocol in protocols:
                protocol.connection_made(client)  # type: ignore[arg-type]
            lines = path.lines + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            reply = path.reply()

            async def ask(requests: list[bytes]) -> None:
                for start in range(0, len(requests), ABREAST):
                    turn = requests[start : start + ABREAST]
                    due = client.answers + len(turn)
                    for protocol, request in zip(protocols, turn, strict=False):
                        protocol.data_received(request)
                    while True:
                        while workers.asked:
                            connection = workers.asked.pop()
                            for piece in reply:
                                connection.data_received(piece)
                        if client.answers == due:
                            break
                        await asyncio.sleep(0)

            try:
                requests = _Requests(lines, path)
                return await _take(ask, requests, client, options, instructions)
            finally:
                gateway.edge.close()
                await gateway.services.close()
                await gateway.cache.close()
                gateway.wheel.close()


async def _ready(gateway: Gateway) -> None:
    async with asyncio.timeout(30):
        while len(gateway.services.all()[0].endpoints.ready) < len(WORKERS):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def _take(
    ask: Callable[[list[bytes]], Awaitable[None]],
    requests: "_Requests",
    client: "_Client",
    options: argparse.Namespace,
    instructions: "_Instructions",
) -> dict[str, Any]:
    each = requests.path.events or 1
    await ask(requests.make(WARM // each))
    if client.answers != WARM // each or not client.last.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"{client.answers} answers to {WARM} requests, the last: {client.last!r}")
    process.freeze()
    times, counts = [], []
    for _ in range(options.rounds):
        batch = requests.make(options.count // each)
        counted, began = instructions.read(), time.process_time()
        await ask(batch)
        times.append((time.process_time() - began) / len(batch) / each * 1e6)
        counts.append((instructions.read() - counted) / len(batch) / each)
        await asyncio.sleep(0.01)  # For the timers.
    gc.unfreeze()
    traced = requests.make(max(1, TRACED // each))
    calls = await _calls(lambda: ask(traced))
    traces = len(traced) * each
    if options.calls:
        print()
        for (kind, name), count in sorted(calls.items()):
            print(f"  {count / traces:6.2f} {kind:6} {name}")
    if options.costs:
        if not instructions.read():
            raise SystemExit("--costs: instructions cannot be counted here, use Linux on x86-64")
        measure.table(
            "Instructions a request, with what the function calls",
            ["instructions", "calls", "function"],
            [
                [f"{cost / COSTED:,.0f}", f"{count / COSTED:.2f}", name]
                for name, cost, count in await inclusive(
                    lambda: ask(requests.make(COSTED // each)), instructions.read
                )
            ],
        )
    return {
        "cpu_us": measure.median(times),
        "instructions": measure.median(counts),
        "python": sum(n for (kind, _), n in calls.items() if kind == "python") / traces,
        "c": sum(n for (kind, _), n in calls.items() if kind == "c") / traces,
    }


class _Requests:
    """Requests that differ in their texts, or do not."""

    def __init__(self, lines: str, path: Path) -> None:
        self.path = path
        self._lines = lines
        self._made = 0

    def make(self, count: int) -> list[bytes]:
        return [self._next() for _ in range(count)]

    def _next(self) -> bytes:
        self._made += 1
        content, target = body(f"{TEXT} {0 if self.path.same else self._made:09d}"), EMBEDDINGS
        if self.path.events:
            content, target = streams.BODY, CHAT
        lines = self._lines % {"n": self._made} if "%" in self._lines else self._lines
        return (
            f"POST {target} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            f"{lines}content-length: {len(content)}\r\n\r\n{content}"
        ).encode()


class _Client:
    """A transport that nobody reads from."""

    def __init__(self) -> None:
        self.answers = 0
        self.last = b""

    def write(self, data: bytes) -> None:
        if data.startswith(b"HTTP/"):
            self.answers += 1
            self.last = data

    def is_closing(self) -> bool:
        return False


class _Workers:
    """Every connection to a worker, while it is entered: probes are answered, the rest is kept."""

    def __init__(self, task: Task) -> None:
        self.asked: list[Connection] = []
        self._ready = _http(readiness(task), "")

    def __enter__(self) -> "_Workers":
        async def connect(_: Pool, connection: Connection, seconds: float) -> None:
            wire = _Wire(connection, self.asked, self._ready)
            connection.connection_made(wire)  # type: ignore[arg-type]

        self._before = Pool._connect, Pool.expire
        Pool._connect = connect  # type: ignore[method-assign]
        Pool.expire = lambda pool, now: None  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Pool._connect, Pool.expire = self._before  # type: ignore[method-assign]


class _Wire:
    """The transport of one of them."""

    def __init__(self, connection: Connection, asked: list[Connection], ready: bytes) -> None:
        self._connection = connection
        self._asked = asked
        self._ready = ready

    def write(self, data: bytes) -> None:
        if data.startswith(b"GET "):
            asyncio.get_running_loop().call_soon(self._connection.data_received, self._ready)
        else:
            self._asked.append(self._connection)

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None: ...


class _Redis:
    """What Redis would say, while it is entered: of gets and sets, in the next turn of the loop."""

    def __enter__(self) -> None:
        async def connect(pipeline: RedisPipeline) -> Link:
            link = Link(budget_seconds=10, on_refused=pipeline._refused, on_failed=pipeline._faults)
            link.connection_made(_RedisWire(link))  # type: ignore[arg-type]
            return link

        self._before = RedisPipeline._connect
        RedisPipeline._connect = connect  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        RedisPipeline._connect = self._before  # type: ignore[method-assign]


class _RedisWire:
    """The transport of the connection to it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._values: dict[bytes, bytes] = {}
        self._reader = hiredis.Reader()

    def write(self, data: bytes) -> None:
        self._reader.feed(data)
        replies = []
        while words := self._reader.gets():
            replies.append(self._reply(*words))
        asyncio.get_running_loop().call_soon(self._link.data_received, b"".join(replies))

    def _reply(self, command: bytes, key: bytes, *more: bytes) -> bytes:
        if command == b"SET":
            self._values[key] = more[0]
            return b"+OK\r\n"
        if command != b"GET":
            return b":0\r\n"
        value = self._values.get(key)
        return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)

    def abort(self) -> None: ...


def _http(content: str, lines: str) -> bytes:
    return (
        "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n{lines}\r\n{content}"
    ).encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_REPLY: Final = _http(
    ANSWER,
    f"{names.ANSWER_DIGEST}: {DIGEST}\r\n{names.REVISION}: {REVISION}\r\n"
    f"{names.CAPACITY}: 100000;0;0.000\r\n",
)


_STREAM: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_EVENT: Final = _chunk(
    b'data: {"id":"chatcmpl-0123456789abcdef01234567","object":"chat.completion.chunk",'
    b'"created":1700000000,"model":"bench","choices":[{"index":0,"delta":{"content":" word"},'
    b'"logprobs":null,"finish_reason":null}]}\n\n'
)
_ITEM: Final = write_item([b'{"text":" word"}'], 9, 200, sampled=True)
_END: Final = b"".join(map(_chunk, (item_event(_ITEM), DONE, b"")))


class _Instructions:
    """Instructions of this thread so far, outside the kernel; 0 where they cannot be counted."""

    def __init__(self) -> None:
        self._file = -1
        if sys.platform == "linux" and platform.machine() == "x86_64":
            # struct perf_event_attr: hardware, its size, instructions; neither kernel nor monitor.
            attributes = struct.pack("<IIQ", 0, 112, 1) + bytes(24) + struct.pack("<Q", 0b1100000)
            given = ctypes.create_string_buffer(attributes.ljust(112, b"\0"))
            self._file = ctypes.CDLL(None).syscall(_PERF_EVENT_OPEN, given, 0, -1, -1, 0)
        if self._file >= 0:
            fcntl.ioctl(self._file, _ENABLE, 0)

    def read(self) -> int:
        return int.from_bytes(os.read(self._file, 8), "little") if self._file >= 0 else 0


async def _calls(work: Callable[[], Awaitable[None]]) -> "Counter[tuple[str, str]]":
    """How often ``work`` calls what, by kind and name."""
    calls: Counter[tuple[str, str]] = Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            file = os.path.basename(frame.f_code.co_filename)
            calls["python", f"{file} {frame.f_code.co_qualname}"] += 1
        elif event == "c_call":
            calls["c", argument.__qualname__] += 1

    sys.setprofile(note)
    try:
        await work()
    finally:
        sys.setprofile(None)
    return calls


if __name__ == "__main__":
    main()
