"""What the cache needs of Redis, whichever kind of Redis it is."""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from sluice_gateway.redis_address import Address
from sluice_gateway.redis_link import OnReplies

START_SECONDS: Final = 0.5
"""A gateway begins without Redis rather than later."""


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Return once ``event`` is set, or after so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


class Store(Protocol):
    """A shared store that answers within its budget or not at all."""

    @property
    def up(self) -> bool:
        """It answers in time, as far as is known."""
        ...

    @property
    def takes_writes(self) -> bool:
        """A value that is sealed now has a chance to be stored."""
        ...

    async def start(self, seconds: float = START_SECONDS) -> None: ...
    async def close(self) -> None: ...

    def get(self, keys: list[bytes], on_replies: OnReplies) -> None:
        """Read ``keys`` in one round trip.

        Args:
            on_replies: called once, within the budget or at once: with a value, None or a
                :class:`Failure` per key, or with one failure for all.
        """
        ...

    def set(self, key: bytes, value: bytes, ttl_seconds: float) -> None:
        """Write without waiting. A write that does not fit is dropped and counted."""
        ...

    def call(self, key: bytes, commands: list[bytes], on_replies: OnReplies) -> None:
        """Run ``commands`` (see :func:`redis_commands.command`) in one round trip, in order.

        They are no transaction, and may have been run although no reply came. A script that is
        not there yet is a :class:`Failure` ``noscript``.

        Args:
            key: one that they are about; all their keys must be in its slot (in Redis Cluster, the
                same ``{tag}``).
            on_replies: as for :meth:`get`.
        """
        ...

    def distrust(self, key: bytes) -> None:
        """The reply for ``key`` was not what it should have been: drop the connection it came on,
        and what that still owes."""
        ...

    async def locate(self, key: bytes) -> Address:
        """Where ``key`` is now, for who needs a connection of their own. Raises OSError."""
        ...


Faults = Callable[[str], None]
"""Told the cause of every call that failed, and of every refused command."""
