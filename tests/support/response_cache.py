"""Builders around a real ResponseCache: keys, answers that say whose they are, awaited lookups."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sluice_api.call import Item
from sluice_api.wire import CacheRules
from sluice_gateway.cache import Hits, ResponseCache
from sluice_gateway.keys import Keyring, TenantScope, item_key
from sluice_gateway.redis_cluster import open_store

RING = Keyring(bytes(range(32)))
ANNA = TenantScope.of("anna")


def key_of(text: str, ring: Keyring = RING, scope: TenantScope = ANNA) -> bytes:
    return item_key(
        ring,
        scope,
        revision="0123456789",
        answer_digest="sha256:ab",
        task="classification",
        parameters=b"{}",
        item=text,
    )


def item_of(text: str) -> Item:
    """An answer that names its question, of a size that varies with it."""
    padding = "x" * (hash_of(text) % 1500)
    return Item(b'{"label":"%b","padding":"%b","tokens":3}' % (text.encode(), padding.encode()), 3)


def hash_of(text: str) -> int:
    return sum(text.encode()) * 7919


def rules(ttl_seconds: float, stale_seconds: float = 0.0) -> CacheRules:
    """Kept for so long, and stale for so long after that."""
    return CacheRules(
        ttl_seconds=ttl_seconds,
        stale_while_revalidate_seconds=stale_seconds,
        stale_if_error_seconds=stale_seconds,
    )


@asynccontextmanager
async def open_cache(
    url: str | None,
    *,
    l1_bytes: int = 0,
    ring: Keyring = RING,
    budget_seconds: float = 5.0,
    pauses_seconds: tuple[float, ...] | None = None,
) -> AsyncIterator[tuple[ResponseCache, Counter[str]]]:
    """A started cache and its count of faults.

    By default without L1, so that Redis is asked, and with a budget that a busy machine keeps.
    """
    faults: Counter[str] = Counter()

    def count(cause: str) -> None:
        faults[cause] += 1

    options = {} if pauses_seconds is None else {"pauses_seconds": pauses_seconds}
    redis = (
        None
        if url is None
        else open_store(url, faults=count, budget_seconds=budget_seconds, **options)
    )
    cache = ResponseCache(ring, l1_bytes=l1_bytes, redis=redis, faults=count)
    await cache.start(seconds=60.0)
    try:
        yield cache, faults
    finally:
        await cache.close()


async def look(cache: ResponseCache, *texts: str, ring: Keyring = RING) -> Hits:
    """Fetch the answers to ``texts``. Fails when they are not delivered exactly once."""
    await asyncio.sleep(0)  # Writes leave at the end of a turn of the loop, behind its reads.
    done: asyncio.Future[Hits] = asyncio.get_running_loop().create_future()
    cache.fetch([key_of(text, ring) for text in texts], done.set_result)
    return await done


async def settled(cache: ResponseCache, *texts: str) -> None:
    """Store the answers to ``texts`` and wait until Redis has them.

    What is not there is stored again: with a short budget a busy machine may cost the link, and
    with it what was on its way.
    """
    deadline = time.monotonic() + 60
    missing = list(texts)
    while missing:
        for text in missing:
            cache.store(key_of(text), item_of(text), rules(3600), time.time())
        assert time.monotonic() < deadline, "not stored"
        await asyncio.sleep(0.005)
        hits = await look(cache, *texts)
        missing = [text for text, hit in zip(texts, hits, strict=True) if hit is None]
