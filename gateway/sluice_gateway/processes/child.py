"""One child of a supervisor: an ordinary gateway whose second port is the link to its parent.

``python -m sluice_gateway.processes.child LINK LISTENER ARGUMENTS…``: two inherited descriptors and
what the supervisor itself was told. Services come over the link instead of from discovery, demand
and admin answers go over it. Without its parent a child drains and ends.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from starlette.types import ASGIApp, Message

from sluice_api import wire
from sluice_api.settings import SettingsError
from sluice_gateway import process, settings
from sluice_gateway.app import Gateway
from sluice_gateway.discovery import Table
from sluice_gateway.logs import configure
from sluice_gateway.processes.link import (
    MAX_FRAME_BYTES,
    Answered,
    Ask,
    Down,
    Link,
    Put,
    Ready,
    Remove,
    Replace,
    Tick,
    Ticked,
    Told,
)
from sluice_gateway.processes.shares import own_share
from sluice_gateway.settings import Settings

ASK_SECONDS: Final = 10.0
"""An admin route may take so long; the supervisor does not wait longer either."""
MAX_ANSWER_BYTES: Final = MAX_FRAME_BYTES - 1024 * 1024
"""Of an admin route; a larger one is an error."""

log = logging.getLogger(__name__)


class Parent:
    """The supervisor as a child sees it: the source of services, and whom demand is told.

    Args:
        end: this side of the link.
        on_tick: called each second.
        on_ask: called for each request of the admin port.
    """

    def __init__(
        self,
        end: socket.socket,
        on_tick: Callable[[int], None],
        on_ask: Callable[[Ask], None],
    ) -> None:
        self.synced = asyncio.Event()
        self.read_at = time.monotonic()
        self._end = end
        self._on_tick = on_tick
        self._on_ask = on_ask
        self._table: Table | None = None
        self._link: Link | None = None
        self._lost = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Parent {self._link!r}>"

    # A source of services -------------------------------------------------------------------------

    def begin(self, table: Table) -> None:
        self._table = table

    async def run(self, table: Table) -> None:
        """Follow the supervisor. Raises ConnectionError when it is gone."""
        self._link = await Link.over(self._end, Down, self._take, self._lost.set)
        await self._lost.wait()
        raise ConnectionError("the supervisor is gone")

    # What it is told ------------------------------------------------------------------------------

    def ready(self) -> None:
        self._send(Ready())

    def demand(self, records: list[wire.Demand], regular: bool) -> None:
        self._send(Told(records, regular))

    def answer(self, answer: Answered) -> None:
        self._send(answer)

    # ----------------------------------------------------------------------------------------------

    def _send(self, message: Ready | Ticked | Told | Answered) -> None:
        if self._link is not None:
            self._link.send(message)

    def _take(self, message: Down) -> None:
        self.read_at = time.monotonic()
        table = self._table
        assert table is not None
        match message:
            case Tick(number):
                self._on_tick(number)
                self._send(Ticked())
            case Ask():
                self._on_ask(message)
            case Put(spec):
                table.put(spec)
            case Remove(namespace, name):
                table.remove(namespace, name)
            case Replace(services):
                table.replace(wire.ServiceTable(services=services))
                self.synced.set()


class Child:
    """A gateway and its parent, put together. Must be made inside the running event loop."""

    def __init__(self, given: Settings, end: socket.socket) -> None:
        self._asks: set[asyncio.Task[None]] = set()
        self.parent = Parent(end, self._tick, self._asked)
        self.gateway = Gateway(given, discovery=self.parent, on_demand=self.parent.demand)

    def __repr__(self) -> str:
        return f"<Child {self.parent!r}, {len(self._asks)} asks>"

    async def serve(self, listener: socket.socket) -> bool:
        """Serve until asked to stop; False when it stopped by itself."""
        await self.gateway.serve(listener, None, lambda _url: self.parent.ready())
        return not self.gateway.failed

    def _tick(self, number: int) -> None:
        self.gateway.feed.tick(number, time.monotonic())

    def _asked(self, ask: Ask) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(ask), name=f"ask {ask.path}")
        self._asks.add(task)
        task.add_done_callback(self._asks.discard)

    async def _answer(self, ask: Ask) -> None:
        self.parent.answer(await answer_of(self.gateway.admin_app, ask))


async def answer_of(app: ASGIApp, ask: Ask) -> Answered:
    """What ``app`` answers, in time and of a size that can be told; an error otherwise."""
    try:
        async with asyncio.timeout(ASK_SECONDS):
            answer = await ask_app(app, ask)
    except TimeoutError:
        return Answered(ask.number, 504, [], b"")
    if len(answer.body) > MAX_ANSWER_BYTES:
        log.error("admin answer too large", extra={"path": ask.path, "bytes": len(answer.body)})
        return Answered(ask.number, 500, [], b"")
    return answer


async def ask_app(app: ASGIApp, ask: Ask) -> Answered:
    """What ``app`` answers, called as a server would call it."""
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": ask.method,
        "scheme": "http",
        "path": ask.path,
        "raw_path": ask.path.encode(),
        "query_string": ask.query,
        "root_path": "",
        "headers": ask.headers,
        "client": None,
        "server": None,
        "state": {},
    }
    sent: list[Message] = []
    received = False

    async def receive() -> Message:
        nonlocal received
        if received:
            await asyncio.Event().wait()  # The supervisor waits as long as it takes.
        received = True
        return {"type": "http.request", "body": ask.body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start = next(message for message in sent if message["type"] == "http.response.start")
    parts = [message.get("body", b"") for message in sent if message is not start]
    return Answered(ask.number, start["status"], list(start["headers"]), b"".join(parts))


def main(arguments: list[str]) -> None:
    """Run until SIGTERM, or until the parent is gone."""
    number, link, listener, *given = arguments
    try:
        own = own_share(settings.read(given, os.environ))
        configure(own.log_level, child=int(number))
        end, public = socket.socket(fileno=int(link)), socket.socket(fileno=int(listener))

        async def serve() -> bool:
            child = Child(replace(own, fd=int(listener)), end)
            process.freeze()
            return await child.serve(public)

        well = process.run(serve)
    except (SettingsError, ValueError) as error:
        process.exit_misconfigured(error)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
