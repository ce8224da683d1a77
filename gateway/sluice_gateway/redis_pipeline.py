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
from sluice_gateway.redis_address import Address, parse_address
from sluice_gateway.redis_link import Failure, Link, OnReplies
from sluice_gateway.redis_writes import WriteQueue

__all__ = ["Failure", "OnReplies", "RedisPipeline"]

_log = logging.getLogger(__name__)

BUDGET_SECONDS: Final = 0.025
CONNECT_SECONDS: Final = 1.0
HEARTBEAT_SECONDS: Final = 1.0
WRITE_PAUSE_SECONDS: Final = 1.0
"""How long nothing is written after Redis refused a write (full, read-only)."""

_START_SECONDS: Final = 0.25
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

_PROBE: Final = redis_commands.command("GET", names.REDIS_CACHE_PREFIX + "probe")


class RedisPipeline:
    """A shared store that answers within its budget or not at all.

    Args:
        url: see :func:`parse_address`.
        faults: told the cause of every call that failed, and of every refused command.
        budget_seconds: how long a reply may take.
        pauses_seconds: before the first, second, … attempt to connect after a failure.

    Raises:
        ValueError: the URL cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        faults: Callable[[str], None],
        budget_seconds: float = BUDGET_SECONDS,
        pauses_seconds: tuple[float, ...] = PAUSES_SECONDS,
    ) -> None:
        self._address = parse_address(url)
        self._faults = faults
        self._budget = budget_seconds
        self._pauses = pauses_seconds
        self._link: Link | None = None
        self._writes: WriteQueue | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self._writes_from = 0.0

    async def start(self) -> None:
        """Begin to connect; returns after the first attempt, or a quarter of a second."""
        self._keeper = asyncio.create_task(self._keep(), name="redis keeper")
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._tried.wait()
        except TimeoutError:
            pass

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
        """Read ``keys`` in one round trip.

        Args:
            on_replies: called once, within the budget or at once: with a value, None or a
                :class:`Failure` per key, or with one failure for all.
        """
        self._send(b"".join(map(redis_commands.get, keys)), len(keys), on_replies, write=False)

    def call(self, key: bytes, commands: list[bytes], on_replies: OnReplies) -> None:
        """Run ``commands`` (see :func:`redis_commands.command`) in one round trip, in order.

        They are no transaction, and may have been run although no reply came. A script that is
        not there yet is a :class:`Failure` ``noscript``.

        Args:
            key: one that they are about; all their keys must be in its slot (in Redis Cluster, the
                same ``{tag}``).
            on_replies: as for :meth:`get`.
        """
        self._send(b"".join(commands), len(commands), on_replies, write=True)

    def _send(self, commands: bytes, count: int, on_replies: OnReplies, *, write: bool) -> None:
        link = self._link
        if (
            link is None
            or link.full(count)
            or not link.send(commands, count, on_replies, write=write)
        ):
            cause = "busy" if self.up else "down"
            self._faults(cause)
            on_replies(Failure(cause))

    def set(self, key: bytes, value: bytes, ttl_seconds: float) -> None:
        """Write without waiting. A write that does not fit is dropped and counted."""
        command = redis_commands.set_for(key, value, ttl_seconds)
        if self._writes is None or not self.takes_writes:
            self._faults("down")
        elif not self._writes.put(command):
            self._faults("busy")

    def distrust(self) -> None:
        """A reply was not what it should have been: drop the connection, and what it still owes."""
        if self._link is not None:
            self._link.drop("desync")

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
                    extra={"redis": self._address.shown, "cause": cause},
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
        _log.info("redis is up", extra={"redis": self._address.shown})
        try:
            cause = await _beat(link)
        finally:
            link.drop("closed")
            self._link = self._writes = None
        return cause, loop.time() - began

    async def _connect(self) -> Link:
        """A link over which Redis has let us in and answered a read in time."""
        loop = asyncio.get_running_loop()
        address = self._address
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
            await _ask(link, _greeting(address))
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
        if cause in _OF_ONE_COMMAND:
            pass
        elif write or cause in _OF_WRITES:
            self._writes_from = time.monotonic() + WRITE_PAUSE_SECONDS
        elif self._link is not None:
            self._link.drop(cause)
        return Failure(cause)

    def __repr__(self) -> str:
        return f"<RedisPipeline {self._address.shown} {self._link or 'down'}>"


class _Unusable(Exception):
    """Redis is there but does not serve us; the argument is the cause."""


async def _beat(link: Link) -> str:
    """Keep asking until the link is lost; returns why. Finds a stopped Redis before users do."""
    while True:
        await asyncio.wait([link.lost], timeout=HEARTBEAT_SECONDS)
        if link.lost.done():
            return link.lost.result()
        link.send(_PROBE, 1, _ignore, write=False)


def _greeting(address: Address) -> list[bytes]:
    """What to say first; the last of it is the read that proves that Redis serves us."""
    commands = []
    if address.password is not None:
        who = (address.username,) if address.username else ()
        commands.append(redis_commands.command("AUTH", *who, address.password))
    if address.db:
        commands.append(redis_commands.command("SELECT", str(address.db)))
    return [*commands, redis_commands.command("CLIENT", "SETNAME", "sluice-gateway"), _PROBE]


async def _ask(link: Link, commands: list[bytes]) -> None:
    """Send ``commands`` and wait for their replies. Raises :class:`_Unusable` on a refusal."""
    answer: asyncio.Future[list[Any] | Failure] = asyncio.get_running_loop().create_future()
    if not link.send(b"".join(commands), len(commands), answer.set_result, write=False):
        raise _Unusable("disconnected")
    replies = await answer
    for reply in replies if isinstance(replies, list) else [replies]:
        if isinstance(reply, Failure) and reply.cause not in _OF_ONE_COMMAND:
            raise _Unusable(reply.cause)


def _ignore(replies: list[Any] | Failure) -> None:
    """Nobody waits for a write; what went wrong has been counted."""
