"""What a supervisor and its children say to each other, over a pair of connected sockets.

Every message is one frame: four bytes of length, then msgpack. Lengths are bounded on both sides,
and so is what may wait to be read: a side that does not read any more is let go, never waited for.
``supervisor`` holds one end of each :class:`Link`, ``child`` the other.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec

from sluice_api import wire

MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""A table of 5 000 services with their workers takes a few mebibytes, a page of metrics thirty."""
MAX_UNREAD_BYTES: Final = 128 * 1024 * 1024
_LENGTH_BYTES: Final = 4


class Replace(msgspec.Struct, tag=True):
    """Down: these are all services there are."""

    services: list[wire.Service]


class Put(msgspec.Struct, tag=True):
    """Down: one service is new, or has changed."""

    service: wire.Service


class Remove(msgspec.Struct, tag=True):
    """Down: one service is no more."""

    namespace: str
    name: str


class Tick(msgspec.Struct, tag=True):
    """Down: a second has passed; tell the demand, and with it that you live."""

    number: int


class Ask(msgspec.Struct, tag=True):
    """Down: a request for the child's admin routes. ``number`` comes back with the answer."""

    number: int
    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Ready(msgspec.Struct, tag=True):
    """Up: the child serves."""


class Ticked(msgspec.Struct, tag=True):
    """Up: what :class:`Tick` asks for has been told."""


class Told(msgspec.Struct, tag=True):
    """Up: records of demand, of one service; ``regular`` unless they are told out of turn."""

    records: list[wire.Demand]
    regular: bool


class Answered(msgspec.Struct, tag=True):
    """Up: the answer to an :class:`Ask`."""

    number: int
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


Down = Replace | Put | Remove | Tick | Ask
Up = Ready | Ticked | Told | Answered

_encode = msgspec.msgpack.Encoder().encode


class Link(asyncio.Protocol):
    """One end. What comes in goes to ``on_message``; ``on_lost`` is called once, at the end.

    Args:
        kinds: the messages that may come in.
    """

    def __init__(
        self, kinds: Any, on_message: Callable[[Any], None], on_lost: Callable[[], None]
    ) -> None:
        self._decode = msgspec.msgpack.Decoder(kinds).decode
        self._on_message = on_message
        self._on_lost = on_lost
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def __repr__(self) -> str:
        state = "open" if self._transport is not None else "closed"
        return f"<Link {state}, {len(self._received)} bytes waiting>"

    @classmethod
    async def over(
        cls,
        end: socket.socket,
        kinds: Any,
        on_message: Callable[[Any], None],
        on_lost: Callable[[], None],
    ) -> "Link":
        """A link over a connected socket, which it owns from now on."""
        link = cls(kinds, on_message, on_lost)
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=end)
        return link

    def send(self, message: Down | Up) -> None:
        """Send, or close the link if the other side has stopped reading; nothing if it is gone."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        content = _encode(message)
        if len(content) > MAX_FRAME_BYTES:
            raise ValueError(f"a message of {len(content)} bytes, at most {MAX_FRAME_BYTES}")
        if transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            transport.abort()
            return
        transport.write(len(content).to_bytes(_LENGTH_BYTES, "big") + content)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        start = 0
        while len(received) - start >= _LENGTH_BYTES:
            content = start + _LENGTH_BYTES
            length = int.from_bytes(received[start:content], "big")
            if length > MAX_FRAME_BYTES:
                self._abort()
                return
            if len(received) - content < length:
                break
            start = content + length
            try:
                message = self._decode(received[content:start])
            except msgspec.DecodeError:
                self._abort()
                return
            self._on_message(message)
        del received[:start]

    def _abort(self) -> None:
        """The other side does not keep to the protocol: nothing that follows can be trusted."""
        self._received.clear()
        if self._transport is not None:
            self._transport.abort()
