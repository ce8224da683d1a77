"""The one door between a cluster's network namespace and the tests.

A socket belongs to the network namespace that it was made in. So the tests make the listening
socket outside and hand it to the box, which accepts there and connects inside: every ordinary
client (a browser, the OpenAI client) reaches a pod or a Service at an address of 127.0.0.1. An end
or a reset on one side becomes the same on the other; an address that refuses becomes a reset.
"""

import asyncio
import socket

CHUNK_BYTES = 256 * 1024
CONNECT_SECONDS = 20.0


class Relay:
    """The forwarded addresses of one box."""

    def __init__(self) -> None:
        self._servers: dict[str, asyncio.Server] = {}

    def __repr__(self) -> str:
        return f"<Relay {', '.join(self._servers) or 'of nothing'}>"

    def address(self, host: str, port: int) -> tuple[str, int] | None:
        """Where `forward` was asked to listen for this before; None if it was not."""
        server = self._servers.get(f"{host}:{port}")
        return server.sockets[0].getsockname() if server else None

    async def forward(self, listener: socket.socket, host: str, port: int) -> None:
        """Take over a bound socket of the tests' side; names are those of the cluster's DNS."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _connect(reader, writer, host, port)

        listener.setblocking(False)
        server = await asyncio.start_server(serve, sock=listener, limit=CHUNK_BYTES, backlog=512)
        self._servers[f"{host}:{port}"] = server


async def _connect(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int
) -> None:
    try:
        opening = asyncio.open_connection(host, port, limit=CHUNK_BYTES)
        inner_reader, inner_writer = await asyncio.wait_for(opening, CONNECT_SECONDS)
    except (OSError, TimeoutError):
        _reset(writer)
        return
    try:
        async with asyncio.TaskGroup() as directions:
            directions.create_task(_copy(reader, inner_writer))
            directions.create_task(_copy(inner_reader, writer))
        writer.close()
        inner_writer.close()
    except* OSError:
        _reset(writer)
        _reset(inner_writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Let the peer see a broken connection, never a clean end."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        try:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        except OSError:
            pass
    writer.transport.abort()
