"""The response cache: in process first, then Redis, and never in the way of an answer.

The main path asks for answers by keys from ``keys.py`` and stores what the workers say. Whatever
Redis does – slow, stopped, full, lying – is a miss with a counted cause, never an error. Below the
keyed answers stand *aliases*: whole rendered answers by exact request body, so that a repeated
request costs one look into a dict.
"""

import random
import time
from binascii import hexlify
from collections.abc import Callable
from typing import Final, NamedTuple

from sluice_api import names
from sluice_api.call import Item
from sluice_gateway import envelope
from sluice_gateway.keys import SECRET_BYTES, Keyring, TenantScope
from sluice_gateway.local_cache import LocalCache
from sluice_gateway.redis_pipeline import Failure, RedisPipeline

MAX_TTL_SECONDS: Final = 30 * 86400.0

_PREFIX: Final = names.REDIS_CACHE_PREFIX.encode()
_JITTER: Final = 0.1
"""Share by which a time to live is varied, so that what was stored together expires apart."""
_ITEM_BYTES: Final = 200
"""What an item's key and objects take beside the text itself."""
_ALIAS_BYTES: Final = 230


class Hit(NamedTuple):
    """An answer from the cache. Age and remaining time to live in seconds."""

    item: Item
    age_seconds: float
    ttl_seconds: float
    layer: str


class Alias(NamedTuple):
    """A whole answer to one exact body.

    Attributes:
        answer: the rendered body of the answer.
        headers: lines that go with it, beside those of every answer.
        binding: what the service was bound to; the answer holds only while that is still so.
        created: seconds since the epoch, like ``expires``.
    """

    answer: bytes
    binding: object
    created: float
    expires: float
    content_type: bytes
    headers: bytes


Hits = list[Hit | None]


class ResponseCache:
    """Answers by key, and whole answers by body. Times are seconds since the epoch.

    Args:
        l1_bytes: bound on what the process keeps; 0 keeps nothing.
        redis: the shared layer; None leaves the process alone with its own.
        faults: told the cause of every cache operation that failed and became a miss.
        clock: for what happens without a caller: replies of Redis, and jitter-free tests.
    """

    def __init__(
        self,
        keyring: Keyring,
        *,
        l1_bytes: int,
        redis: RedisPipeline | None,
        faults: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keyring = keyring
        self._secrets = range(len(keyring.proving))
        self._local: LocalCache[envelope.Opened | Alias] = LocalCache(l1_bytes)
        self._redis = redis
        self._faults = faults
        self._clock = clock
        self._random = random.Random().random  # noqa: S311 - spreads expiry, guards nothing

    async def start(self) -> None:
        """Begin to use Redis. Returns soon, whether it is there or not."""
        if self._redis is not None:
            await self._redis.start()

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.close()

    @property
    def l1_bytes(self) -> int:
        """Bytes held in process now."""
        return self._local.used_bytes

    @property
    def redis_up(self) -> bool:
        """Redis is configured and answers in time."""
        return self._redis is not None and self._redis.up

    # Answers by key -------------------------------------------------------------------------------

    def local(self, key: bytes, now: float) -> Hit | None:
        """The answer to ``key`` if the process itself has it."""
        found = self._local.get(key, now)
        return _hit(found, now, "l1") if type(found) is envelope.Opened else None

    def fetch(
        self,
        keys: list[bytes],
        on_done: Callable[[Hits], None],
    ) -> Callable[[], None]:
        """Look all ``keys`` up, in process and then in Redis in one round trip.

        Args:
            on_done: called exactly once, within the budget of the pipeline and perhaps before this
                returns, with a hit or None per key. It must not raise.

        Returns:
            A function after which ``on_done`` is not called any more.
        """
        now = self._clock()
        hits = [self.local(key, now) for key in keys]
        if self._redis is None or None not in hits:
            on_done(hits)
            return _nothing
        lookup = _Lookup(self, keys, hits, on_done)
        parts = []
        for index, hit in enumerate(hits):
            if hit is None:
                for number in self._secrets:
                    part = _part(keys[index], number)
                    parts.append(_redis_key(part))
                    lookup.asked.append((index, number, part))
        self._redis.get(parts, lookup.replied)
        return lookup.cancel

    def read(self, lookup: "_Lookup", replies: list[object]) -> None:
        """Take what is proven out of the replies of Redis."""
        now = self._clock()
        for (index, number, part), reply in zip(lookup.asked, replies, strict=True):
            if reply is None or isinstance(reply, Failure):
                continue  # Not there, or named and counted by the pipeline.
            opened = envelope.unseal(self._keyring.proving[number], part, reply, now)
            if not isinstance(opened, envelope.Opened):
                self._doubt(opened)
            elif lookup.hits[index] is None:
                lookup.hits[index] = _hit(opened, now, "redis")
                self._keep(lookup.keys[index], opened, now)

    def _doubt(self, fault: envelope.Fault) -> None:
        self._faults(fault)
        if fault == "not_proven" and self._redis is not None:
            # Either the value or the order of replies is not what it should be. The order would
            # stay wrong, so nothing more is read from this connection.
            self._redis.distrust()

    def store(self, key: bytes, item: Item, ttl_seconds: float, now: float) -> None:
        """Keep the answer to ``key`` here and, without waiting for it, in Redis."""
        # Never longer than the service allows; spread, so that what came together leaves apart.
        spread = 1 - _JITTER * self._random()
        ttl = min(ttl_seconds * spread, MAX_TTL_SECONDS)
        if not ttl > 0 or len(item.json) > envelope.MAX_ENTRY_BYTES:
            return
        self._keep(key, envelope.Opened(item, now, now + ttl), now)
        if self._redis is not None and self._redis.takes_writes:
            part = _part(key, 0)
            value = envelope.seal(self._keyring.proving[0], part, item, now, now + ttl)
            if value is not None:
                self._redis.set(_redis_key(part), value, ttl)

    def _keep(self, key: bytes, opened: envelope.Opened, now: float) -> None:
        size = len(key) + len(opened.item.json) + _ITEM_BYTES
        self._local.put(key, opened, size, opened.expires, now)

    # Whole answers by body ------------------------------------------------------------------------

    def alias(self, route: str, scope: TenantScope, body: bytes, now: float) -> Alias | None:
        """The whole answer to exactly this body, if it is still held.

        The caller must compare ``binding`` with what the service is bound to now.
        """
        found = self._local.get((route, scope.wire, body), now)
        return found if type(found) is Alias else None

    def remember(
        self,
        route: str,
        scope: TenantScope,
        body: bytes,
        answer: bytes,
        binding: object,
        expires: float,
        *,
        created: float | None = None,
        content_type: bytes = b"application/json",
        headers: bytes = b"",
    ) -> None:
        """Hold the whole ``answer`` to ``body``, in process only."""
        if len(answer) > envelope.MAX_ENTRY_BYTES:
            return
        now = self._clock()
        since = now if created is None else created
        found = Alias(answer, binding, since, expires, content_type, headers)
        size = len(body) + len(answer) + _ALIAS_BYTES
        self._local.put((route, scope.wire, body), found, size, expires, now)

    def __repr__(self) -> str:
        return f"<ResponseCache {self._local!r}, {self._redis!r}>"


class _Lookup:
    """One caller that waits for the replies of Redis.

    Attributes:
        asked: what each reply is for: index in ``keys``, number of the secret, that part of the
            key.
    """

    __slots__ = ("_cache", "_on_done", "asked", "hits", "keys")

    def __init__(
        self, cache: ResponseCache, keys: list[bytes], hits: Hits, on_done: Callable[[Hits], None]
    ) -> None:
        self._cache = cache
        self.keys = keys
        self.hits = hits
        self.asked: list[tuple[int, int, bytes]] = []
        self._on_done: Callable[[Hits], None] | None = on_done

    def cancel(self) -> None:
        self._on_done = None

    def replied(self, replies: list[object] | Failure) -> None:
        """Also when nobody waits any more: what Redis had is kept for the next caller."""
        if isinstance(replies, list):
            self._cache.read(self, replies)
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(self.hits)


def _hit(opened: envelope.Opened, now: float, layer: str) -> Hit:
    # Another gateway's clock may be ahead of ours.
    age = max(0.0, now - opened.created)
    return Hit(opened.item, age, opened.expires - now, layer)


def _part(key: bytes, secret: int) -> bytes:
    """The part of ``key`` that belongs to one secret of the ring: an entry's name in Redis."""
    return key[secret * SECRET_BYTES : (secret + 1) * SECRET_BYTES]


def _redis_key(part: bytes) -> bytes:
    return _PREFIX + hexlify(part)


def _nothing() -> None:
    """Cancels what is already done."""
