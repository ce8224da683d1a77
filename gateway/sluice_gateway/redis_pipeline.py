"""Redis on the hot path: one connection, implicit pipelining, and a breaker around it.

``cache.py`` reads and writes answers through it; :meth:`RedisPipeline.call` is for whoever else
needs a reply within the same budget. A link (``redis_link.py``) that is up has proven, within the
budget of a request, that Redis serves; any doubt drops it, and from then on every call fails at
once. One background task makes the next link, so that no request ever probes. redis-py is ten times
slower here and re-uses connections after cancelled commands; it serves everything that is not hot.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from sluice_api import names
from sluice_gateway import redis_commands
from sluice_gateway.redis_address import Address
from sluice_gateway.redis_link import (
    MAX_PENDING,
    MAX_PENDING_BYTES,
    Failure,
    Link,
    OnReplies,
)
from sluice_gateway.redis_places import Cluster, Place, parse_place
from sluice_gateway.redis_store import START_SECONDS, wait_at_most
from sluice_gateway.redis_writes import WriteQueue

__all__ = ["Failure", "OnReplies", "RedisPipeline"]

_log = logging.getLogger(__name__)

BUDGET_SECONDS: Final = 0.025
CONNECT_SECONDS: Final = 1.0
HEARTBEAT_SECONDS: Final = 1.0
WRITE_PAUSE_SECONDS: Final = 1.0
"""How long nothing is written after Redis refused a write (full, read-only)."""

PAUSES_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Between attempts to connect; the last one for ever. A returned Redis is in use 2 s later."""
_PROVEN_SECONDS: Final = 2.0
"""A link that lived this long was good: the next one is tried without a pause."""

_CAUSES: Final = {
    "ASK": "ask",
    "BUSY": "busy_script",
    "CLUSTERDOWN": "clusterdown",
    "LOADING": "loading",
    "MASTERDOWN": "masterdown",
    "MISCONF": "misconf",
    "MOVED": "moved",
    "NOAUTH": "noauth",
    "NOPERM": "noperm",
    "NOREPLICAS": "noreplicas",
    "NOSCRIPT": "noscript",
    "OOM": "oom",
    "READONLY": "readonly",
    "WRONGPASS": "wrongpass",
    "WRONGTYPE": "wrong_type",
}
"""First word of a refusal → cause; anything else is ``refused``."""
_OF_ONE_COMMAND: Final = {"ask", "moved", "noscript", "wrong_type"}
"""Refusals that say nothing about the next command."""
_OF_WRITES: Final = {"misconf", "noreplicas", "oom", "readonly"}
"""Refusals after which reads still serve."""

_ELSEWHERE: Final = {"ask", "clusterdown", "moved"}

_ROLE: Final = redis_commands.command("ROLE")
PROBE: Final = redis_commands.command("GET", names.REDIS_CACHE_PREFIX + "probe")


class RedisPipeline:
    """One server as a ``redis_store.Store``.

    Args:
        place: where it is, or its URL (see :func:`parse_place`).
        probe: a command that the server can answer if it can serve.
        on_moved: told when the server says that something is elsewhere.
        faults: told the cause of every call that failed, and of every refused command.
        budget_seconds: how long a reply may take.
        pauses_seconds: before the first, second, … attempt to connect after a failure.

    Raises:
        ValueError: the URL cannot be used.
    """

    def __init__(
        self,
        place: str | Place,
        *,
        faults: Callable[[str], None],
        budget_seconds: float = BUDGET_SECONDS,
        pauses_seconds: tuple[float, ...] = PAUSES_SECONDS,
        probe: bytes = PROBE,
        on_moved: Callable[[], None] | None = None,
    ) -> None:
        self._place = _one(place) if isinstance(place, str) else place
        self._probe = probe
        self._on_moved = on_moved
        self._faults = faults
        self._budget = budget_seconds
        self._pauses = pauses_seconds
        self._link: Link | None = None
        self._writes: WriteQueue | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self._writes_from = 0.0

    async def start(self, seconds: float = START_SECONDS) -> None:
        """Begin to connect; returns after the first attempt, or after so many seconds."""
        self._keeper = asyncio.create_task(self._keep(), name="redis keeper")
        await wait_at_most(self._tried, seconds)

    async def close(self) -> None:
        """Fail what is pending and disconnect."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

    @property
    def up(self) -> bool:
        """Redis answered in time, and nothing has gone wrong since."""
        return self._link is not None and self._link.usable

    @property
    def takes_writes(self) -> bool:
        """A value that is sealed now has a chance to be stored."""
        # Not the loop's clock: to ask for the running loop costs a system call.
        link = self._link
        return link is not None and link.usable and time.monotonic() >= self._writes_from

    def get(self, keys: list[bytes], on_replies: OnReplies) -> None:
        self._send(b"".join(map(redis_commands.get, keys)), len(keys), on_replies, write=False)

    def call(self, key: bytes, commands: list[bytes], on_replies: OnReplies) -> None:
        self._send(b"".join(commands), len(commands), on_replies, write=True)

    def _send(self, commands: bytes, count: int, on_replies: OnReplies, *, write: bool) -> None:
        link = self._link
        if (
            link is None
            or link.pending + count > MAX_PENDING
            or link.pending_bytes > MAX_PENDING_BYTES
            or not link.send(commands, count, on_replies, write=write)
        ):
            cause = "busy" if self.up else "down"
            self._faults(cause)
            on_replies(Failure(cause))

    def set(self, key: bytes, value: bytes, ttl_seconds: float) -> None:
        writes = self._writes
        if writes is None or not self.takes_writes:
            self._faults("down")
        elif not writes.put(redis_commands.set_for(key, value, ttl_seconds)):
            self._faults("busy")

    def distrust(self, key: bytes) -> None:
        if self._link is not None:
            self._link.drop("desync")

    async def locate(self, key: bytes) -> Address:
        return await self._place.locate()

    # Making links ---------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Have a proven link, whenever there can be one. Runs until cancelled."""
        failures = 0
        while True:
            cause, lived_seconds = await self._hold()
            failures = 0 if lived_seconds >= _PROVEN_SECONDS else failures + 1
            if lived_seconds or failures == 1:
                _log.warning(
                    "redis is down, answering without it",
                    extra={"redis": self._place.shown, "cause": cause},
                )
            if failures:
                pause = self._pauses[min(failures, len(self._pauses)) - 1]
                # Gateways that lost Redis together must not come back together.
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311

    async def _hold(self) -> tuple[str, float]:
        """Try to make one link and use it to its end; returns why it ended and its seconds."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            link = await self._connect()
        except _Unusable as refusal:
            return str(refusal), 0.0
        except Exception as error:  # Whatever it is, the answer is to try again later.
            return type(error).__name__, 0.0
        finally:
            self._tried.set()
        self._link, self._writes = link, WriteQueue(link)
        _log.info("redis is up", extra={"redis": self._place.shown})
        try:
            cause = await _beat(link, self._probe)
        finally:
            link.drop("closed")
            self._link = self._writes = None
        return cause, loop.time() - began

    async def _connect(self) -> Link:
        """A link over which Redis has let us in and answered a read in time."""
        loop, moves = asyncio.get_running_loop(), self._place.moves
        address = await self._place.locate()
        make = partial(
            Link,
            budget_seconds=self._budget,
            on_refused=self._refused,
            on_failed=self._faults,
        )
        async with asyncio.timeout(CONNECT_SECONDS):
            link: Link
            if address.path is not None:
                _, link = await loop.create_unix_connection(make, address.path)
            else:
                _, link = await loop.create_connection(
                    make, address.host, address.port, ssl=address.tls
                )
        try:
            greeting = _greeting(address, self._probe)
            replies = await _ask(link, [*greeting, _ROLE] if moves else greeting)
            if moves and not _is_master(replies[-1]):
                raise _Unusable("not_master")
        except BaseException:
            link.drop("unusable")
            raise
        return link

    def _refused(self, message: str, write: bool) -> Failure:
        """Count a refusal and decide what it means for the commands after it."""
        cause = _CAUSES.get(message.partition(" ")[0], "refused")
        if cause == "noscript":
            return Failure(cause)  # Its caller expects it, and sends the script.
        self._faults(cause)
        if cause in _ELSEWHERE and self._on_moved is not None:
            self._on_moved()
        if cause in _OF_ONE_COMMAND:
            pass
        elif cause == "readonly" and self._place.moves and self._link is not None:
            self._link.drop(cause)  # Another one is the master now.
        elif write or cause in _OF_WRITES:
            self._writes_from = time.monotonic() + WRITE_PAUSE_SECONDS
        elif self._link is not None:
            self._link.drop(cause)
        return Failure(cause)

    def __repr__(self) -> str:
        return f"<RedisPipeline {self._place.shown} {self._link or 'down'}>"


class _Unusable(Exception):
    """Redis is there but does not serve us; the argument is the cause."""


async def _beat(link: Link, probe: bytes) -> str:
    """Keep asking until the link is lost; returns why. Finds a stopped Redis before users do."""
    while True:
        await asyncio.wait([link.lost], timeout=HEARTBEAT_SECONDS)
        if link.lost.done():
            return link.lost.result()
        link.send(probe, 1, _ignore, write=False)


def _greeting(address: Address, probe: bytes) -> list[bytes]:
    """What to say first; the last of it proves that Redis serves us."""
    commands = []
    if address.password is not None:
        who = (address.username,) if address.username else ()
        commands.append(redis_commands.command("AUTH", *who, address.password))
    if address.db:
        commands.append(redis_commands.command("SELECT", str(address.db)))
    return [*commands, redis_commands.command("CLIENT", "SETNAME", "sluice-gateway"), probe]


async def _ask(link: Link, commands: list[bytes]) -> list[Any]:
    """Send ``commands`` and wait for their replies. Raises :class:`_Unusable` on a refusal."""
    answer: asyncio.Future[list[Any] | Failure] = asyncio.get_running_loop().create_future()
    if not link.send(b"".join(commands), len(commands), answer.set_result, write=False):
        raise _Unusable("disconnected")
    replies = await answer
    if isinstance(replies, Failure):
        raise _Unusable(replies.cause)
    for reply in replies:
        if isinstance(reply, Failure) and reply.cause not in _OF_ONE_COMMAND:
            raise _Unusable(reply.cause)
    return replies


def _is_master(role: object) -> bool:
    return isinstance(role, list) and role[:1] == [b"master"]


def _one(url: str) -> Place:
    place = parse_place(url)
    if isinstance(place, Cluster):
        raise ValueError("A cluster is more than one server.")
    return place


def _ignore(replies: list[Any] | Failure) -> None:
    """Nobody waits for a write; what went wrong has been counted."""
