"""Reads a streamed answer from a bare socket, event by event, and tells how it ended."""

import asyncio
import json
from typing import Any

from tests.support.gateway_process import Client, request

DONE = "[DONE]"


class EventStream:
    """One streamed answer as it comes.

    Attributes:
        raw: everything received of the body so far, without its framing.
        complete: the last chunk has come, or all bytes that were announced.
    """

    def __init__(self, client: Client, status: int, headers: dict[str, str]) -> None:
        self.client = client
        self.status = status
        self.headers = headers
        self._received = bytearray()
        self.complete = False
        self._taken = 0
        self._closed = False

    @property
    def raw(self) -> bytes:
        return bytes(self._received)

    @classmethod
    async def open(cls, client: Client, path: str, body: Any, **headers: str) -> "EventStream":
        client.send(request(path, body, **headers))
        return await cls.opened(client)

    @classmethod
    async def opened(cls, client: Client) -> "EventStream":
        """The answer to what was sent before."""
        async with asyncio.timeout(60):
            status, received = await client._head()
        return cls(client, status, received)

    async def event(self, timeout: float = 60.0) -> str | None:
        """The next event, without the framing; None at the end, whatever kind of end that is."""
        async with asyncio.timeout(timeout):
            while (end := self._received.find(b"\n\n", self._taken)) < 0 and not self._closed:
                await self._more()
        if end < 0:
            return None
        text = self._received[self._taken : end].decode()
        self._taken = end + 2
        return text

    async def rest(self, timeout: float = 60.0) -> list[str]:
        """All further events."""
        found = []
        while (event := await self.event(timeout)) is not None:
            found.append(event)
        return found

    async def text(self, timeout: float = 60.0) -> str:
        """The generated text of all further events, which must end as they should."""
        events = await self.rest(timeout)
        assert events[-1] == f"data: {DONE}", (events, self.complete)
        assert self.complete
        return text_of(events)

    async def _more(self) -> None:
        reader = self.client.reader
        try:
            if "content-length" in self.headers:
                self._received += await reader.readexactly(int(self.headers["content-length"]))
                self.complete = self._closed = True
                return
            size = int(await reader.readline() or b"-1", 16)
            if size > 0:
                self._received += await reader.readexactly(size)
            if size >= 0:
                assert await reader.readline() == b"\r\n"
            self.complete = size == 0
            self._closed = size <= 0
        except (asyncio.IncompleteReadError, ConnectionError):
            self._closed = True


def data_of(events: list[str]) -> list[Any]:
    """The JSON of the events, comments and the last one left aside."""
    return [
        json.loads(event.removeprefix("data: "))
        for event in events
        if event.startswith("data: ") and event != f"data: {DONE}"
    ]


def text_of(events: list[str]) -> str:
    """The text that chunks of either route put together, of the first choice."""
    parts = []
    for chunk in data_of(events):
        for choice in chunk["choices"]:
            if choice["index"] == 0:
                parts.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
    return "".join(parts)
