"""Answers from the cache, over HTTP beside nginx, Varnish and LiteLLM; then the parts alone.

Over HTTP: one core for the subject, one request again and again, 32 connections (LiteLLM 4). nginx
keys by the body of a POST, Varnish caches GET by URL, which is easier.

The parts: keys, the layer in process, and Redis beside redis-py. One process on a core of its own,
Redis on the other, over a Unix socket. A Redis hit of ours is the whole of it: lookup, round trip,
proof of the value, the answer handed over; redis-py's is a bare GET of a value of the same size.
The clients take turns within a round; medians of the rounds.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import measure
import redis.asyncio
import uvloop
from peers import rounds
from peers.proxies import (
    LITELLM,
    SLUICE_OFF,
    backends,
    get,
    litellm,
    local_addresses,
    nginx_cache,
    same,
    sluice,
    varnish,
)
from peers.proxies import redis as redis_server
from peers.rounds import Peer

from sluice_api.call import Item
from sluice_api.wire import CacheRules
from sluice_gateway import envelope
from sluice_gateway.cache import Hits, ResponseCache
from sluice_gateway.envelope import Entry
from sluice_gateway.keys import Keyring, TenantScope, item_key, item_keys
from sluice_gateway.redis_pipeline import RedisPipeline
from sluice_gateway.sealing import Sealer

RULES = CacheRules(ttl_seconds=3600)
RING = Keyring.load(None)
SCOPE = TenantScope.of("anonymous")
TEXT = "The parcel arrived two days late and the box was open. What can you do for me?"
ITEM = Item(b'{"object":"embedding","embedding":"' + b"A" * 350 + b'","tokens":19}', 19)
FIELDS: dict[str, Any] = {
    "revision": "0123456789",
    "answer_digest": "sha256:" + "ab" * 32,
    "task": "embeddings",
    "parameters": b'{"dimensions":null,"truncate":false}',
}
VALUE = b"v" * 460
Run = Callable[[int], Awaitable[None]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--count", type=int, default=20_000, help="operations per measurement")
    parser.add_argument("--only", default="", help="measure peers whose name contains this")
    options = parser.parse_args(arguments)
    hits = over_http(options.rounds, options.seconds, options.only)
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {measure.SUBJECT_CORE})
    try:
        local, remote = parts(options.rounds, options.count)
    finally:
        os.sched_setaffinity(0, affinity)
    measure.save(
        "cache",
        {
            "hits": [peer.told() for peer in hits],
            "in_process_us": local,
            "redis": remote,
            "off": SLUICE_OFF,
        },
    )


# Over HTTP --------------------------------------------------------------------------------------


def over_http(count: int, seconds: float, only: str) -> list[Peer]:
    workers = local_addresses(2)
    with backends(workers), redis_server() as path:
        url = f"unix://{path}"
        chosen = [peer for peer in hit_peers(workers, url) if only in peer.name]
        rounds.run(chosen, count, seconds)
    measure.table(
        "Hits over HTTP: one core, closed loop", rounds.HEADER, rounds.rows(chosen, "nginx")
    )
    return chosen


def hit_peers(workers: list[str], url: str) -> list[Peer]:
    def theirs(cache: dict[str, object]) -> Callable[[], Any]:
        return lambda: litellm(workers, cache=cache)

    return [
        Peer("nginx", lambda: nginx_cache(workers), same),
        Peer("Varnish (GET by URL)", lambda: varnish(workers), get),
        Peer("Sluice, in process", lambda: sluice(workers, "--redis-url", url), same),
        # No memory of its own, so that every hit really comes from Redis.
        Peer(
            "Sluice, in Redis",
            lambda: sluice(workers, "--redis-url", url, "--cache-mib", "0"),
            same,
        ),
        Peer(
            f"{LITELLM}, in process",
            theirs({"type": "local"}),
            same,
            rounds=1,
            connections=4,
            least_seconds=5,
        ),
        Peer(
            f"{LITELLM}, in Redis",
            theirs({"type": "redis", "url": url}),
            same,
            rounds=1,
            connections=4,
            least_seconds=5,
        ),
    ]


# The parts --------------------------------------------------------------------------------------


def parts(times: int, count: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    local = in_process(times, count)
    measure.table(
        "In process, µs of CPU per call",
        ["call", "µs"],
        [[k, f"{v:.2f}"] for k, v in local.items()],
    )
    remote = uvloop.run(in_redis(times, count))
    measure.table(
        "In Redis: GET of a hit of about 500 bytes",
        ["client", "concurrent", "hits/s", "CPU µs", "× redis-py"],
        [
            [r["client"], r["concurrent"], f"{r['per_second']:,.0f}", f"{r['cpu_us']:.1f}", ratio]
            for r in remote
            for ratio in [f"{r['times_redis_py']:.1f}"]
        ],
    )
    return local, remote


# In process -------------------------------------------------------------------------------------


def in_process(rounds: int, count: int) -> dict[str, float]:
    """Microseconds of CPU per call, medians."""
    sealer = Sealer(RING.sealing[0])
    key = item_key(RING, SCOPE, item=TEXT, **FIELDS)
    value = envelope.seal(sealer, key, Entry(ITEM, 0.0, 1e12, 1e12))
    cache = ResponseCache(RING, l1_bytes=1 << 24, redis=None, faults=print)
    now = time.time()
    cache.store(key, ITEM, RULES, now)
    body = bytearray(b'{"model":"minilm","input":"%b"}' % (TEXT * 4).encode())
    cache.remember("/v1/embeddings", SCOPE, bytes(body), ITEM.json, None, now + 3600)
    fresh = [os.urandom(32) for _ in range(count)]
    small = ResponseCache(RING, l1_bytes=1 << 20, redis=None, faults=print)
    calls: dict[str, Callable[[int], object]] = {
        "key of one input": lambda _: item_key(RING, SCOPE, item=TEXT, **FIELDS),
        "keys of 100 inputs": lambda _: item_keys(RING, SCOPE, items=[TEXT] * 100, **FIELDS),
        "hit by key (L1)": lambda _: cache.local(key, now),
        "hit by body (alias)": lambda _: cache.alias("/v1/embeddings", SCOPE, bytes(body), now),
        "store, evicting": lambda number: small.store(fresh[number], ITEM, RULES, now),
        "seal": lambda _: envelope.seal(sealer, key, Entry(ITEM, 0.0, 1e12, 1e12)),
        "unseal": lambda _: envelope.unseal(sealer, key, value, now),
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times = count // 100 if "100" in name else count
            began = time.process_time()
            for number in range(times):
                call(number)
            samples[name].append((time.process_time() - began) / times * 1e6)
    return {name: measure.median(values) for name, values in samples.items()}


# Redis ------------------------------------------------------------------------------------------


async def in_redis(rounds: int, count: int) -> list[dict[str, Any]]:
    """Hits per second and CPU per hit of each client, one at a time and 64 at once."""
    with measure.folder() as folder:
        path = folder / "redis.sock"
        command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", ""]
        with measure.Process(command, measure.LOAD_CORE) as server:
            server.wait_for(path.exists)
            theirs = redis.asyncio.Redis(
                connection_pool=redis.asyncio.BlockingConnectionPool.from_url(
                    f"unix://{path}", max_connections=64
                )
            )
            pipeline = RedisPipeline(f"unix://{path}", faults=_fail, budget_seconds=5)
            cache = ResponseCache(RING, l1_bytes=0, redis=pipeline, faults=_fail)
            await cache.start()
            key = item_key(RING, SCOPE, item=TEXT, **FIELDS)
            cache.store(key, ITEM, RULES, time.time())
            await theirs.set("value", VALUE)
            clients: dict[str, Callable[[int], Run]] = {
                "redis-py asyncio + hiredis": lambda width: _theirs(theirs, width),
                "ours, bare GET": lambda width: _bare(pipeline, width),
                "ours, proven hit": lambda width: _proven(cache, key, width),
            }
            try:
                return [
                    row
                    for width in (1, 64)
                    for row in await _compare(clients, width, rounds, count)
                ]
            finally:
                await cache.close()
                await theirs.aclose()
                await theirs.connection_pool.disconnect()


async def _compare(
    clients: dict[str, Callable[[int], Run]], width: int, rounds: int, count: int
) -> list[dict[str, Any]]:
    wall: dict[str, list[float]] = {name: [] for name in clients}
    cpu: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(rounds):
        for name, client in clients.items():
            times = count if width > 1 else count // 8
            times = times // 4 if "redis-py" in name else times
            began, used = time.perf_counter(), time.process_time()
            await client(width)(times)
            wall[name].append((time.perf_counter() - began) / times)
            cpu[name].append((time.process_time() - used) / times)
    base = measure.median(wall["redis-py asyncio + hiredis"])
    return [
        {
            "client": name,
            "concurrent": width,
            "per_second": 1 / measure.median(wall[name]),
            "cpu_us": measure.median(cpu[name]) * 1e6,
            "times_redis_py": base / measure.median(wall[name]),
        }
        for name in clients
    ]


def _theirs(client: "redis.asyncio.Redis", width: int) -> Run:
    async def run(count: int) -> None:
        async def one() -> None:
            for _ in range(count // width):
                assert await client.get("value") == VALUE

        await asyncio.gather(*(one() for _ in range(width)))

    return run


def _bare(pipeline: RedisPipeline, width: int) -> Run:
    keys = [b"value"]

    def ask(on_done: Callable[[bool], None]) -> None:
        pipeline.get(keys, lambda replies: on_done(replies == [VALUE]))

    return _chains(ask, width)


def _proven(cache: ResponseCache, key: bytes, width: int) -> Run:
    def ask(on_done: Callable[[bool], None]) -> None:
        def take(hits: Hits) -> None:
            on_done(hits[0] is not None and hits[0].item == ITEM)

        cache.fetch([key], take)

    return _chains(ask, width)


def _chains(ask: Callable[[Callable[[bool], None]], None], width: int) -> Run:
    """``width`` chains of lookups, each begun by the answer to the one before it."""

    async def run(count: int) -> None:
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        begun = answered = 0

        def begin() -> None:
            nonlocal begun
            begun += 1
            ask(on_done)

        def on_done(right: bool) -> None:
            nonlocal answered
            assert right
            answered += 1
            if begun < count:
                begin()
            elif answered == count:
                finished.set_result(None)

        for _ in range(width):
            begin()
        await finished

    return run


def _fail(cause: str) -> None:
    raise RuntimeError(f"a fault in a benchmark: {cause}")


if __name__ == "__main__":
    main()
