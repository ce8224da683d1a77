"""Throwing away everything of a service or a tenant, on all gateways at once.

An invalidation is an epoch (``epochs.py``): this gateway goes by it at once, and writes it into one
small hash in Redis. Every gateway has a connection of its own over which Redis says that the hash
has changed (client-side tracking, RESP3), and reads it anew. What Redis forgets, the gateways write
again. ``app`` runs the one :class:`Invalidations`; ``control.admin`` calls it.
"""

import asyncio
import logging
import random
import time
from typing import Any, Final

import hiredis

from sluice_api import names
from sluice_api.errors import ApiError
from sluice_gateway.cache import ResponseCache
from sluice_gateway.epochs import MAX_AGE_MS, MAX_KEPT
from sluice_gateway.redis_address import Address
from sluice_gateway.redis_commands import command
from sluice_gateway.redis_link import Failure
from sluice_gateway.redis_store import Store

KEY: Final = names.REDIS_EPOCHS_KEY.encode()
HEARTBEAT_SECONDS: Final = 1.0
SILENT_SECONDS: Final = 3.0
"""Redis has not answered a heartbeat for so long: the connection is dead."""
PUBLISH_SECONDS: Final = 3.0
"""How long whoever invalidates waits for Redis to know of it."""
MAX_FIELDS: Final = 2 * MAX_KEPT
"""More than gateways that hear of each other let it become."""

_RAISE: Final = b"""
for i = 1, #ARGV - 1, 2 do
  local at = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '0') or 0
  if tonumber(ARGV[i + 1]) > at then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
redis.call('PEXPIRE', KEYS[1], ARGV[#ARGV])
return 1
"""
"""Fields and epochs, then how long the hash lives on: an epoch is never taken back."""

_DROP: Final = b"""
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return 1
"""
"""Fields and what they were seen to hold: one that was raised meanwhile stays."""

_PAUSES_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
_CONNECT_SECONDS: Final = 1.0

log = logging.getLogger(__name__)


class Invalidations:
    """The epochs of one gateway, kept the same as everybody's.

    Args:
        store: where epochs are shared; None where this process is alone.
        grace_seconds: how long the cache goes on as it is while nothing can be heard.
    """

    def __init__(self, cache: ResponseCache, store: Store | None, grace_seconds: float) -> None:
        self._cache = cache
        self._epochs = cache.epochs
        self._store = store
        self._grace = grace_seconds
        self._deaf_timer: asyncio.TimerHandle | None = None
        self.hearing = store is None
        self.heard = 0
        """Changes by others that have arrived."""

    def __repr__(self) -> str:
        return f"<Invalidations {'hearing' if self.hearing else 'deaf'}, {self._epochs!r}>"

    async def run(self) -> None:
        """Listen until cancelled; without Redis there is nothing to be heard."""
        if self._store is None:
            await asyncio.get_running_loop().create_future()
            return
        failures = 0
        self._lost()
        while True:
            try:
                await self._listen(self._store)
            except (OSError, TimeoutError, hiredis.HiredisError, _Refused) as error:
                if self.hearing:
                    failures = 0
                    log.warning("invalidations are not heard", extra={"cause": str(error)})
            self._lost()
            pause = _PAUSES_SECONDS[min(failures, len(_PAUSES_SECONDS) - 1)]
            failures += 1
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load

    async def throw_away(self, *, service: str = "", tenant: bytes = b"") -> None:
        """Have no answer of ``service`` (``namespace/name``) or ``tenant`` (scope) given any more.

        Returns when this gateway goes by it and, where there is Redis, the others are told.

        Raises:
            ApiError: ``cache_unreachable``: this gateway goes by it and keeps trying to tell.
        """
        now_ms = int(time.time() * 1000)
        fields: list[bytes] = []
        if service:
            fields += self._epochs.fields("service", service.encode())
        if tenant:
            fields += self._epochs.fields("tenant", tenant)
        at = self._epochs.advance(now_ms, fields)
        self._epochs.prune(now_ms)
        if self._store is not None and not await self._publish(self._store, fields, at):
            raise ApiError(
                "cache_unreachable",
                "This gateway gives none of the answers any more, but Redis could not be told.",
                retry_after=1.0,
            )

    # Telling --------------------------------------------------------------------------------------

    async def _publish(self, store: Store, fields: list[bytes], at: int) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PUBLISH_SECONDS
        words = _raising(dict.fromkeys(fields, at))
        while True:
            answer: asyncio.Future[Any] = loop.create_future()
            store.call(KEY, [words], answer.set_result)
            reply = await answer
            if not isinstance(reply, Failure) and reply == [1]:
                return True
            if loop.time() > deadline:
                return False
            await asyncio.sleep(0.1)

    # Hearing --------------------------------------------------------------------------------------

    async def _listen(self, store: Store) -> None:
        """One connection, until it is lost."""
        address = await store.locate(KEY)
        async with asyncio.timeout(_CONNECT_SECONDS):
            conversation = await _open(address)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                for words in _greeting(address):
                    await conversation.ask(words)
            await self._read(conversation)
            self._found()
            while True:
                if await conversation.changed(HEARTBEAT_SECONDS):
                    await self._read(conversation)
        finally:
            conversation.close()

    async def _read(self, conversation: "_Conversation") -> None:
        """Take over what the hash says, put into it what it lacks, and leave out what is needless.

        What is left out is so only once Redis has what stands in its place.
        """
        async with asyncio.timeout(SILENT_SECONDS):
            told = await conversation.ask(command("HGETALL", KEY))
            known = _epochs_of(told)
            for field, at in known.items():
                self.heard += self._epochs.raise_to(at, (field,))
            now_ms = int(time.time() * 1000)
            self._epochs.prune(now_ms)
            if lacking := self._epochs.missing(known, now_ms):
                await conversation.ask(_raising(lacking))
            needless = {field: at for field, at in known.items() if field not in self._epochs}
            if needless:
                await conversation.ask(command("EVAL", _DROP, 1, KEY, *_pairs(needless)))

    def _found(self) -> None:
        self.hearing = True
        if self._deaf_timer is not None:
            self._deaf_timer.cancel()
            self._deaf_timer = None
        self._cache.hear(True)

    def _lost(self) -> None:
        self.hearing = False
        if self._deaf_timer is None:
            loop = asyncio.get_running_loop()
            self._deaf_timer = loop.call_later(self._grace, self._cache.hear, False)


class _Refused(Exception):
    """Redis does not do what is needed; the argument is its message."""


class _Conversation:
    """A RESP3 connection: one question at a time, and word of changes between."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._changed = False

    def close(self) -> None:
        self._writer.transport.abort()

    async def ask(self, words: bytes) -> Any:
        """The reply to one command. Raises OSError, or :class:`_Refused`."""
        self._writer.write(words)
        while True:
            reply = self._next()
            if reply is _INCOMPLETE:
                await self._receive()
            elif isinstance(reply, hiredis.ReplyError):
                raise _Refused(str(reply))
            else:
                return reply

    async def changed(self, seconds: float) -> bool:
        """Whether something changed, waited for so long; proves that the connection lives."""
        if not self._changed:
            try:
                async with asyncio.timeout(seconds):
                    await self._receive()
            except TimeoutError:
                pass
        async with asyncio.timeout(SILENT_SECONDS):
            await self.ask(command("PING"))
        changed, self._changed = self._changed, False
        return changed

    def _next(self) -> Any:
        """The next reply; pushes are noted in passing."""
        while isinstance(reply := self._parser.gets(), hiredis.PushNotification):
            self._changed = True
        return reply

    async def _receive(self) -> None:
        data = await self._reader.read(1 << 16)
        if not data:
            raise ConnectionResetError("disconnected")
        self._parser.feed(data)


_INCOMPLETE: Final = object()


async def _open(address: Address) -> _Conversation:
    if address.path is not None:
        return _Conversation(*await asyncio.open_unix_connection(address.path))
    opened = asyncio.open_connection(address.host, address.port, ssl=address.tls)
    return _Conversation(*await opened)


def _greeting(address: Address) -> list[bytes]:
    hello = ["HELLO", "3"]
    if address.password is not None:
        hello += ["AUTH", address.username or "default", address.password]
    commands = [command(*hello, "SETNAME", "sluice-gateway-epochs")]
    if address.db:
        commands.append(command("SELECT", str(address.db)))
    return [*commands, command("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", KEY)]


def _raising(epochs: dict[bytes, int]) -> bytes:
    return command("EVAL", _RAISE, 1, KEY, *_pairs(epochs), MAX_AGE_MS)


def _pairs(epochs: dict[bytes, int]) -> list[bytes | int]:
    return [word for field, at in epochs.items() for word in (field, at)]


def _epochs_of(told: Any) -> dict[bytes, int]:
    """What the hash holds, as far as it makes sense: others may write there.

    Raises :class:`_Refused` for one that cannot be the gateways' own.
    """
    if not isinstance(told, dict) or len(told) > MAX_FIELDS:
        # Not to be told from one that hides what was thrown away: as if nothing were heard.
        raise _Refused(f"{names.REDIS_EPOCHS_KEY} does not hold at most {MAX_FIELDS} epochs")
    latest = int(time.time() * 1000) + MAX_AGE_MS
    return {
        field: int(at)
        for field, at in told.items()
        if isinstance(field, bytes) and len(field) == 64 and _is_epoch(at, latest)
    }


def _is_epoch(at: object, latest: int) -> bool:
    return isinstance(at, bytes) and at.isdigit() and len(at) < 16 and int(at) < latest
