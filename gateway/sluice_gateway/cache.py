"""The response cache: in process first, then Redis, and never in the way of an answer.

The main path asks for answers by keys from ``keys.py`` and stores what the workers say. Whatever
Redis does – slow, stopped, full, lying – is a miss with a counted cause, never an error. Below the
keyed answers stand *aliases*: whole rendered answers by exact request body, so that a repeated
request costs one look into a dict.
"""

import random
import time
from binascii import hexlify
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Final

import msgspec

from sluice_api import names
from sluice_api.call import Item
from sluice_api.errors import ApiError
from sluice_api.wire import CacheRules
from sluice_gateway import envelope
from sluice_gateway.envelope import Entry
from sluice_gateway.epochs import Epochs
from sluice_gateway.freshness import EARLY
from sluice_gateway.keys import SECRET_BYTES, Keyring, TenantScope
from sluice_gateway.lease import Leases
from sluice_gateway.local_cache import LocalCache
from sluice_gateway.redis_link import Failure
from sluice_gateway.redis_store import START_SECONDS, Store
from sluice_gateway.sealing import Sealer

MAX_TTL_SECONDS: Final = 30 * 86400.0
REFUSAL_SECONDS: Final = 15.0
"""How long a worker's refusal of an input is repeated without asking it again."""
UNHEARD_SECONDS: Final = 1.0
"""How long an answer is kept in process while other gateways' invalidations cannot be heard."""

_PREFIX: Final = names.REDIS_CACHE_PREFIX.encode()
_JITTER: Final = 0.1
"""Share by which a time to live is varied, so that what was stored together expires apart."""
_ITEM_BYTES: Final = 200
"""What an item's key and objects take beside the text itself."""
_ALIAS_BYTES: Final = 270
_REFUSAL_BYTES: Final = 600
_NO_ITEM: Final = Item(b"", 0)


class Hit(msgspec.Struct, frozen=True):
    """An answer from the cache. Times in seconds.

    Attributes:
        ttl_seconds: how long it is fresh; negative when it is stale.
        seconds: what it took to compute; 0 when unknown.
        refusal: a worker's word that this input has no answer; ``item`` is empty then.
    """

    item: Item
    age_seconds: float
    ttl_seconds: float
    layer: str
    seconds: float = 0.0
    refusal: ApiError | None = None


class Refusal(msgspec.Struct, frozen=True):
    """What a worker said to an input that it cannot take; for the tenant who asked, in process."""

    error: ApiError
    scope: bytes
    created: float
    expires: float


class Alias(msgspec.Struct, frozen=True, eq=False):
    """A whole answer to one exact body.

    Attributes:
        answer: the rendered body of the answer.
        headers: lines that go with it, beside those of every answer.
        binding: what the service was bound to; the answer holds only while that is still so.
        created: seconds since the epoch, like ``expires``, until when it is fresh.
        epoch: of its service and tenant; with another one it is void.
    """

    answer: bytes
    binding: object
    created: float
    expires: float
    content_type: bytes
    headers: bytes
    epoch: bytes


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
        redis: Store | None,
        faults: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.epochs = Epochs(keyring)
        sealers = [Sealer(mac) for mac in keyring.sealing] if redis is not None else []
        self._secrets = [(sealer, _half(number)) for number, sealer in enumerate(sealers)]
        """What opens the values of each secret of the ring, and which part of a key names them."""
        self.has_memory = l1_bytes > 0
        """Answers are kept in process, too."""
        self._local: LocalCache[Entry | Refusal | Alias] = LocalCache(l1_bytes)
        self._redis = redis
        self._hears = True
        self.leases = Leases(redis, sealers[0]) if redis is not None else None
        """Who computes what, among all gateways; None where this one is alone."""
        self._faults = faults
        self._clock = clock
        self._random = random.Random().random  # noqa: S311 - spreads expiry, guards nothing

    async def start(self, seconds: float = START_SECONDS) -> None:
        """Begin to use Redis; returns after ``seconds`` at most, whether it is there or not."""
        if self._redis is not None:
            await self._redis.start(seconds)

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.close()

    @property
    def l1_bytes(self) -> int:
        """Bytes held in process now."""
        return self._local.used_bytes

    @property
    def l1_evictions(self) -> int:
        """Entries that had to make room in process so far."""
        return self._local.evictions

    @property
    def redis_up(self) -> bool:
        """Redis is configured and answers in time."""
        return self._redis is not None and self._redis.up

    def hear(self, hears: bool) -> None:
        """Whether invalidations by other gateways reach this one, as of now.

        While they do not, what is in process may be what somebody has thrown away: it is dropped,
        and what comes is kept for :data:`UNHEARD_SECONDS` only.
        """
        self._hears = hears
        if not hears:
            self._local.clear()

    # Answers by key -------------------------------------------------------------------------------

    def local(self, key: bytes, now: float, scope: bytes = b"") -> Hit | None:
        """The answer to ``key`` if the process itself has it; refusals for ``scope`` only."""
        found = self._local.get(key, now)
        if type(found) is Entry:
            return _hit(found, now, "l1")
        if type(found) is Refusal and found.scope == scope:
            age, ttl = max(0.0, now - found.created), found.expires - now
            return Hit(_NO_ITEM, age, ttl, "l1", refusal=found.error)
        return None

    def fetch(
        self,
        keys: list[bytes],
        on_done: Callable[[Hits], None],
        scope: bytes = b"",
        owner: bytes = b"",
    ) -> Callable[[], None]:
        """Look all ``keys`` up, in process and then in Redis in one round trip.

        What the process has and is stale is asked for in Redis as well: another gateway may have
        renewed it.

        Args:
            on_done: called exactly once, within the budget of the pipeline and perhaps before this
                returns, with a hit or None per key. It must not raise.
            scope: who asks; refusals are given to nobody else.
            owner: in whose share of the process's memory the answers are kept.

        Returns:
            A function after which ``on_done`` is not called any more.
        """
        now = self._clock()
        hits: Hits = []
        asked: list[tuple[int, Sealer, bytes]] = []
        names: list[bytes] = []
        for index, key in enumerate(keys):
            hit = self.local(key, now, scope) if self.has_memory else None
            hits.append(hit)
            if hit is None or hit.ttl_seconds <= 0:
                for sealer, half in self._secrets:
                    part = key[half]
                    asked.append((index, sealer, part))
                    names.append(_redis_key(part))
        if self._redis is None or not names:
            on_done(hits)
            return _nothing
        lookup = _Lookup(keys, hits, asked, on_done, owner)
        self._redis.get(names, partial(self._replied, lookup))
        return lookup.cancel

    def _replied(self, lookup: "_Lookup", replies: list[Any] | Failure) -> None:
        """Also when nobody waits any more: what Redis had is kept for the next caller."""
        if isinstance(replies, list):
            self._read(lookup, replies)
        on_done, lookup.on_done = lookup.on_done, None
        if on_done is not None:
            on_done(lookup.hits)

    def _read(self, lookup: "_Lookup", replies: list[Any]) -> None:
        """Take what is proven out of the replies of Redis."""
        now = self._clock()
        hits = lookup.hits
        for (index, sealer, part), reply in zip(lookup.asked, replies, strict=True):
            if reply is None or type(reply) is Failure:
                continue  # Not there, or named and counted by the pipeline.
            entry = envelope.unseal(sealer, part, reply, now)
            if not isinstance(entry, Entry):
                self._doubt(entry, part)
                continue
            known = hits[index]
            if known is None or entry.fresh - now > known.ttl_seconds:
                hits[index] = _hit(entry, now, "redis")
                self._keep(lookup.keys[index], entry, now, lookup.owner)

    def _doubt(self, fault: envelope.Fault, part: bytes) -> None:
        self._faults(fault)
        if fault == "not_proven" and self._redis is not None:
            # Either the value or the order of replies is not what it should be. The order would
            # stay wrong, so nothing more is read from this connection.
            self._redis.distrust(_redis_key(part))

    def store(
        self,
        key: bytes,
        item: Item,
        rules: CacheRules,
        now: float,
        seconds: float = 0.0,
        owner: bytes = b"",
    ) -> bool:
        """Keep the answer to ``key`` here and, without waiting for it, in Redis.

        Args:
            seconds: what it took to compute.
            owner: in whose share of the process's memory it is kept.

        Returns:
            False when it is not to be kept by anybody: it is too large, or of no duration.
        """
        # Never longer than the service allows; spread, so that what came together leaves apart.
        ttl = rules.ttl_seconds * (1 - _JITTER * self._random())
        if ttl > MAX_TTL_SECONDS:
            ttl = MAX_TTL_SECONDS
        if not ttl > 0 or len(item.json) > envelope.MAX_ENTRY_BYTES:
            return False
        life = ttl + _stale_seconds(rules)
        entry = Entry(item, now, now + ttl, now + life, seconds)
        self._keep(key, entry, now, owner)
        redis = self._redis
        if redis is not None and redis.takes_writes:
            sealer, half = self._secrets[0]
            part = key[half]
            value = envelope.seal(sealer, part, entry)
            if value is not None:
                redis.set(_redis_key(part), value, life)
        return True

    def refuse(
        self, key: bytes, error: ApiError, scope: bytes, now: float, owner: bytes = b""
    ) -> None:
        """Repeat a worker's ``error`` to who asks for ``key`` again soon, in this scope only."""
        refusal = Refusal(error, scope, now, now + REFUSAL_SECONDS)
        size = len(key) + len(error.message) + _REFUSAL_BYTES
        self._put(key, refusal, size, refusal.expires, now, owner)

    def _keep(self, key: bytes, entry: Entry, now: float, owner: bytes) -> None:
        if not self.has_memory:
            return
        size = len(key) + len(entry.item.json) + _ITEM_BYTES
        self._put(key, entry, size, entry.expires, now, owner)

    def _put(
        self,
        key: Hashable,
        value: Entry | Refusal | Alias,
        size: int,
        expires: float,
        now: float,
        owner: bytes,
    ) -> None:
        if not self._hears:
            expires = min(expires, now + UNHEARD_SECONDS)
        self._local.put(key, value, size, expires, now, owner)

    # Whole answers by body ------------------------------------------------------------------------

    def alias(self, route: str, scope: TenantScope, body: bytes, now: float) -> Alias | None:
        """The whole answer to exactly this body, if it is still held.

        The caller must compare ``binding`` with what the service is bound to now, and ``epoch``.
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
        epoch: bytes = b"",
        seconds: float = 0.0,
        owner: bytes = b"",
    ) -> None:
        """Hold the whole ``answer`` to ``body``, in process only.

        It ends a little before it ``expires``: near its end an answer goes by the items it is made
        of, one of whose readers renews it. How early depends on ``seconds``, what it took.
        """
        if len(answer) > envelope.MAX_ENTRY_BYTES:
            return
        now = self._clock()
        since = now if created is None else created
        found = Alias(answer, binding, since, expires, content_type, headers, epoch)
        size = len(body) + len(answer) + _ALIAS_BYTES
        until = expires - EARLY * seconds
        self._put((route, scope.wire, body), found, size, until, now, owner)

    def __repr__(self) -> str:
        deaf = "" if self._hears else " deaf"
        return f"<ResponseCache{deaf} {self._local!r}, {self._redis!r}>"


class _Lookup(msgspec.Struct, eq=False):
    """One caller that waits for the replies of Redis.

    Attributes:
        on_done: None when nobody waits any more.
        asked: what each reply is for: index in ``keys``, what opens it, the part of the key that it
            is named by.
    """

    keys: list[bytes]
    hits: Hits
    asked: list[tuple[int, Sealer, bytes]]
    on_done: Callable[[Hits], None] | None
    owner: bytes

    def cancel(self) -> None:
        self.on_done = None


def _hit(entry: Entry, now: float, layer: str) -> Hit:
    age = now - entry.created
    if age < 0:
        age = 0.0  # Another gateway's clock is ahead of ours.
    return Hit(entry.item, age, entry.fresh - now, layer, entry.seconds)


def _stale_seconds(rules: CacheRules) -> float:
    """How long an answer is of some use after its time."""
    stale = rules.stale_while_revalidate_seconds
    if stale < rules.stale_if_error_seconds:
        stale = rules.stale_if_error_seconds
    return stale if stale < MAX_TTL_SECONDS else MAX_TTL_SECONDS


def _half(secret: int) -> slice:
    """Where in a key the part is that belongs to one secret of the ring."""
    return slice(secret * SECRET_BYTES, (secret + 1) * SECRET_BYTES)


def _redis_key(part: bytes) -> bytes:
    return _PREFIX + hexlify(part)


def _nothing() -> None:
    """Cancels what is already done."""
