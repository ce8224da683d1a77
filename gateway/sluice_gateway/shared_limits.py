"""Limits that all gateways share: what each took is told to Redis, which tells what is left.

One task of ``app`` settles the buckets of ``limits`` in the background, those that run low first;
no request ever waits for it. Redis counts the gateways too, each of which may use what is left up
to its part. While Redis is slow or gone, each goes on with its part of the whole limit.
"""

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from sluice_api import names
from sluice_api.key_file import Limits
from sluice_api.rates import Rate
from sluice_gateway.limits import Bucket, Sharing, TenantLimits
from sluice_gateway.redis_commands import command
from sluice_gateway.redis_link import Failure
from sluice_gateway.redis_store import Store, wait_at_most

HEARTBEAT_SECONDS: Final = 1.0
"""A gateway says so often that it is there, and settles what is not urgent five times as often."""
GONE_SECONDS: Final = 5.0
"""A gateway that was silent for so long is not counted any more."""
MAX_BATCH: Final = 100
"""Buckets in one call, so that Redis is kept from others for a millisecond at most."""
MAX_GATEWAYS: Final = 10_000

_GATEWAYS: Final = names.REDIS_LIMITS_PREFIX.encode() + b"gateways"
_NOBODY: Final = names.REDIS_LIMITS_PREFIX.encode() + b"gone"
_SETTLE_SECONDS: Final = 0.2
_PAUSE_SECONDS: Final = 0.01
_SHARE_OF_TIME: Final = 0.2
"""Of its own time at most: with thousands of busy tenants, each is settled less often."""
_RETRY_SECONDS: Final = 0.2

SCRIPT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('PEXPIRE', KEYS[1], 60000)
local told = {tostring(redis.call('ZCARD', KEYS[1]))}
for i = 2, #KEYS do
  local first = 3 * i - 3
  local rate, burst = tonumber(ARGV[first]), tonumber(ARGV[first + 1])
  local taken = tonumber(ARGV[first + 2])
  local level, at = burst, now
  local kept = redis.call('GET', KEYS[i])
  if kept then
    local a, b = string.match(kept, '^(%S+) (%S+)$')
    level, at = tonumber(a) or burst, tonumber(b) or now
  end
  if now > at then level = math.min(burst, level + (now - at) * rate) end
  level = math.min(level, burst) - taken
  local life = math.min((burst - level) / rate, 86400000) + 10000
  local keep = string.format('%.6f %.3f', level, math.max(now, at))
  redis.call('SET', KEYS[i], keep, 'PX', math.ceil(life))
  told[i] = string.format('%.6f', level)
end
return told
"""
"""A token bucket for each key but the first, which holds the gateways. Rates are per millisecond.
Times are Redis' own, so that the gateways' clocks do not matter."""

_SCRIPT_HASH: Final = hashlib.sha1(SCRIPT.encode()).hexdigest()  # noqa: S324 - Redis names it so

_log = logging.getLogger(__name__)


class SharedLimits:
    """The buckets of one process.

    Args:
        redis: None: each gateway has its part for itself, and :meth:`run` is not to be called.
        gateways: how many there are, where Redis cannot tell.
        identity: of this process, different from all others'.
        hide: makes names that say nothing of what is named, the same in all gateways.
        failed: told the cause of every settling that failed.
    """

    def __init__(
        self,
        redis: Store | None,
        *,
        gateways: int,
        identity: str,
        hide: Callable[[bytes], bytes],
        failed: Callable[[str], None],
    ) -> None:
        self._redis = redis
        self._identity = identity
        self._hide = hide
        self._failed = failed
        self._wake = asyncio.Event()
        self._wanted = asyncio.Event()
        self._next_round = 0.0
        self._pause = _PAUSE_SECONDS
        self._tenants: dict[str, TenantLimits] = {}
        self._names: dict[Bucket, bytes] = {}
        self.sharing = Sharing(gateways, self._wake.set if redis is not None else None)

    def __repr__(self) -> str:
        return f"<SharedLimits {self.sharing!r}, {len(self._names)} buckets>"

    def of(self, tenant: str, limits: Limits | None) -> TenantLimits | None:
        """The limits of ``tenant``; the very same as long as they do not change.

        Where they do, what is left of the old ones is left of the new ones, here and in Redis.
        """
        if limits is None or limits == Limits():
            self._tenants.pop(tenant, None)
            return None
        known = self._tenants.get(tenant)
        if known is None or known.limits != limits:
            before = known

            def make(kind: str, rate: Rate) -> Bucket:
                bucket = before.bucket(kind) if before is not None else None
                if bucket is not None:
                    bucket.change(rate, time.monotonic())
                    return bucket
                bucket = Bucket(rate, self.sharing, time.monotonic())
                hidden = self._hide(f"{tenant}\0{kind}".encode()).hex()
                self._names[bucket] = names.REDIS_LIMITS_PREFIX.encode() + hidden.encode()
                return bucket

            known = self._tenants[tenant] = TenantLimits(tenant, limits, make)
            self._wanted.set()
        return known

    def keep(self, tenants: set[str]) -> None:
        """Forget all others."""
        for gone in self._tenants.keys() - tenants:
            del self._tenants[gone]
        kept = {b for limits in self._tenants.values() for b in limits.buckets()}
        self._names = {bucket: name for bucket, name in self._names.items() if bucket in kept}
        for left in self.sharing.touched.keys() - kept:
            del self.sharing.touched[left]

    async def run(self) -> None:
        """Settle until cancelled."""
        await self._wanted.wait()  # Most gateways have no limits, and nothing to settle.
        assert self._redis is not None
        cause = ""
        while True:
            before, cause = cause, await self._turn(self._redis)
            self.sharing.is_up = not cause
            if cause:
                self._failed(cause)
            if cause and not before:
                _log.warning(
                    "limits are not shared, each gateway has its part",
                    extra={"cause": cause, "gateways": self.sharing.gateways},
                )
            elif before and not cause:
                _log.info("limits are shared", extra={"gateways": self.sharing.gateways})
            await self._rest(cause)

    async def close(self) -> None:
        """Not to be counted any more; silence would say the same a little later."""
        if self._redis is not None and self.sharing.is_up:
            await _ask(self._redis, command("ZREM", _GATEWAYS, self._identity))

    # ----------------------------------------------------------------------------------------------

    async def _turn(self, redis: Store) -> str:
        """Settle what is due. Returns why that failed, if it did."""
        self._wake.clear()
        began = time.monotonic()
        due = self._due(began)
        for start in range(0, max(1, len(due)), MAX_BATCH):
            if cause := await self._settle(redis, due[start : start + MAX_BATCH]):
                self.sharing.touched.update(dict.fromkeys(due[start + MAX_BATCH :]))
                return cause
        took = time.monotonic() - began
        self._pause = max(_PAUSE_SECONDS, took / _SHARE_OF_TIME - took)
        return ""

    async def _rest(self, cause: str) -> None:
        """Wait until something is due."""
        if cause:
            await asyncio.sleep(_RETRY_SECONDS)
            return
        await asyncio.sleep(self._pause)
        now = time.monotonic()
        touched = self.sharing.touched
        hungry = [bucket.next_settling for bucket in touched if bucket.is_hungry]
        until = min([self._next_round if touched else now + HEARTBEAT_SECONDS, *hungry])
        await wait_at_most(self._wake, until - now)

    def _due(self, now: float) -> list[Bucket]:
        """Those that wait for Redis, and all that were touched when it is time for them."""
        everybody = now >= self._next_round
        if everybody:
            self._next_round = now + _SETTLE_SECONDS
        touched = self.sharing.touched
        due = [
            bucket
            for bucket in touched
            if bucket.next_settling <= now and (everybody or bucket.is_hungry)
        ]
        for bucket in due:
            del touched[bucket]
        return due

    async def _settle(self, redis: Store, buckets: Sequence[Bucket]) -> str:
        """Tell what was taken from ``buckets``, and take what is left. Returns why it failed."""
        now = time.monotonic()
        keys = [_GATEWAYS, *(self._names.get(bucket, _NOBODY) for bucket in buckets)]
        words: list[bytes | str | int] = [self._identity, int(GONE_SECONDS * 1000)]
        for bucket in buckets:
            rate = bucket.rate
            words += [repr(rate.per_second / 1000), rate.burst, repr(bucket.settle(now))]
        told = await _run(redis, keys, words)
        if isinstance(told, Failure):
            for bucket in buckets:
                bucket.not_told()
                self.sharing.touched[bucket] = None
            return told.cause
        gateways, *levels = told
        self._count(int(min(max(gateways, 1), MAX_GATEWAYS)))
        now = time.monotonic()
        for bucket, level in zip(buckets, levels, strict=True):
            bucket.told(level, now)
        return ""

    def _count(self, gateways: int) -> None:
        if gateways != self.sharing.gateways:
            self.sharing.gateways = gateways
            for bucket in self._names:
                bucket.resize()


async def _run(
    redis: Store, keys: list[bytes], words: list[bytes | str | int]
) -> list[float] | Failure:
    """Run :data:`SCRIPT`; the number of gateways, and the level of each key but the first."""
    rest: list[bytes | str | int] = [len(keys), *keys, *words]
    reply = await _ask(redis, command("EVALSHA", _SCRIPT_HASH, *rest))
    if isinstance(reply, Failure) and reply.cause == "noscript":
        reply = await _ask(redis, command("EVAL", SCRIPT, *rest))
    if isinstance(reply, Failure):
        return reply
    try:
        told = [float(value) for value in reply]
    except (TypeError, ValueError):
        return Failure("garbled")
    good = len(told) == len(keys) and all(map(math.isfinite, told))
    return told if good else Failure("garbled")


async def _ask(redis: Store, words: bytes) -> Any:
    """The reply to one command, within the budget of the pipeline."""
    answered: asyncio.Future[list[Any] | Failure] = asyncio.get_running_loop().create_future()

    def reply(replies: list[Any] | Failure) -> None:
        if not answered.done():
            answered.set_result(replies)

    redis.call(_GATEWAYS, [words], reply)
    replies = await answered
    return replies if isinstance(replies, Failure) else replies[0]
