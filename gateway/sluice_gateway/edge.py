"""What the client connections of one process share, whichever protocol serves them.

``app`` makes one :class:`Edge`; ``protocol`` and ``fallback`` register their connections with it,
take their limits and request ids from it, and have it enforce their times.
"""

import asyncio
import itertools
import secrets
import time
from email.utils import formatdate
from typing import Final, Protocol

from sluice_api.errors import ApiError
from sluice_gateway.dispatch import Dispatcher
from sluice_gateway.settings import EdgeLimits

SWEEP_SECONDS: Final = 0.25


class Timed(Protocol):
    """A connection whose times are enforced from outside."""

    @property
    def idle(self) -> bool:
        """No request is coming in or being answered."""
        ...

    def enforce_times(self, now: float) -> None: ...

    def cut_short(self, error: ApiError) -> None:
        """The process ends before the answer does."""
        ...


class Connections:
    """What the connections of one server share: the limits, the clock's text, request ids.

    Args:
        limits: sizes and times a client is held to.
    """

    def __init__(self, limits: EdgeLimits) -> None:
        self.limits = limits
        self.connections: set[Timed] = set()
        self.draining = False
        self.date = b""
        prefix = secrets.token_hex(6)
        self._ids = (b"%b-%x" % (prefix.encode(), number) for number in itertools.count(1))
        self._sweeping: asyncio.TimerHandle | None = None
        self._date_second = 0

    def __repr__(self) -> str:
        state = " draining" if self.draining else ""
        return f"<{type(self).__name__} {len(self.connections)} connections{state}>"

    def new_id(self) -> bytes:
        return next(self._ids)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep(loop)

    def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Enforce the times of all connections; cheaper than a timer for each request."""
        now = time.monotonic()
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            self.date = b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
        for connection in list(self.connections):
            connection.enforce_times(now)
        self._sweeping = loop.call_later(SWEEP_SECONDS, self._sweep, loop)


class Edge(Connections):
    """The connections of applications, and the way in."""

    def __init__(self, dispatcher: Dispatcher, limits: EdgeLimits) -> None:
        super().__init__(limits)
        self.dispatcher = dispatcher
