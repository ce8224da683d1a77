"""An API server whose connections are cut anywhere, the TLS handshake included, as at its restart.

What must not happen: a socket closed twice, so that a number another connection has got meanwhile
is closed or read in its place.
"""

import asyncio
import contextlib
import random
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from sluice_gateway.cluster.api import ApiServer, Unreachable
from tests.support.event_loops import on_uvloop
from tests.support.front_proxies import Authority

CALLERS = 8
CALLS = 40
NEIGHBOURS = 4


@on_uvloop
async def test_connections_that_are_cut_hurt_no_others(tmp_path: Path) -> None:
    authority = Authority()
    (tmp_path / "ca.crt").write_text(authority.pem)
    (tmp_path / "token").write_text("token")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority.server("127.0.0.1", tmp_path))
    with _servers(tls) as (api_port, echo_port):
        await _cut(ApiServer("127.0.0.1", api_port, tmp_path), echo_port)


@contextlib.contextmanager
def _servers(tls: ssl.SSLContext) -> Iterator[tuple[int, int]]:
    """The ports of an API server that is cut, and of an echo.

    Both in a thread: what they do to a connection comes at any moment of the client's.
    """
    ports: Future[tuple[int, int]] = Future()
    over = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(tls, ports, over)), daemon=True)
    thread.start()
    try:
        yield ports.result(30)
    finally:
        over.set()
        thread.join(30)


async def _serve(
    tls: ssl.SSLContext, ports: "Future[tuple[int, int]]", over: threading.Event
) -> None:
    behind = await asyncio.start_server(_watch, "127.0.0.1", 0, ssl=tls)
    cutter = Cutter(_port(behind))
    cutting = await asyncio.start_server(cutter.relay, "127.0.0.1", 0)
    echoing = await asyncio.start_server(_echo, "127.0.0.1", 0)
    ports.set_result((_port(cutting), _port(echoing)))
    await asyncio.to_thread(over.wait)
    for server in (behind, cutting, echoing):
        server.close()


def _port(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


async def _cut(api: ApiServer, port: int) -> None:
    outcomes: Counter[str] = Counter()
    calling = [asyncio.create_task(_call(api, outcomes)) for _ in range(CALLERS)]
    neighbours = [
        asyncio.create_task(_talk(port, f"neighbour {n}", calling)) for n in range(NEIGHBOURS)
    ]
    await asyncio.gather(*calling, *neighbours)
    assert outcomes == {"cut": CALLERS * CALLS}
    assert all(neighbour.result() > 0 for neighbour in neighbours)


async def _call(api: ApiServer, outcomes: Counter[str]) -> None:
    for _ in range(CALLS):
        try:
            async with contextlib.aclosing(api.lines("/watch", {}, 30.0)) as lines:
                async for _ in lines:
                    pass
            outcomes["ended"] += 1
        except Unreachable:
            outcomes["cut"] += 1
        except RuntimeError as error:  # "File descriptor 13 is used by transport …"
            outcomes[str(error)[:15]] += 1


async def _talk(port: int, name: str, calling: "list[asyncio.Task[None]]") -> int:
    """Short connections as long as others call; how many had their own words back."""
    talked = 0
    while not all(task.done() for task in calling):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        said = f"{name}, {talked}\n".encode()
        writer.write(said)
        assert await asyncio.wait_for(reader.readline(), 30) == said
        writer.close()
        talked += 1
    return talked


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    writer.close()


async def _watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A watch without an end."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"3\r\n{}\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.001)


class Cutter:
    """Relays to ``port`` and resets a connection after a number of bytes drawn for it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._draw = random.Random(1)
        self._relaying: set[asyncio.Task[Any]] = set()
        """Kept: asyncio lets go of the task of a connection that its client has left."""

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relaying.add(task)
        task.add_done_callback(self._relaying.discard)
        left = self._draw.choice([0, self._draw.randrange(3000)])
        if left:
            behind, beyond = await asyncio.open_connection("127.0.0.1", self._port)
            pumping = asyncio.create_task(self._pump(reader, beyond))
            while left > 0 and (data := await behind.read(left)):
                writer.write(data)
                left -= len(data)
            pumping.cancel()
            beyond.transport.abort()
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """To the client's end, which is the end of both: it leaves what takes it too long."""
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.transport.abort()
