"""Whatever Redis does, a lookup is answered in time and with the truth or a miss.

Stopped, killed, full, closed to us, emptied, slow: a real redis-server. Lying: a proxy in between
that swaps, cuts, flips, repeats and loses replies. Every answer names its question, so a wrong
delivery cannot pass unnoticed.
"""

import asyncio
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sluice_gateway.cache import Hits, ResponseCache
from sluice_gateway.keys import Keyring
from sluice_gateway.redis_pipeline import BUDGET_SECONDS
from tests.support import fault_proxy
from tests.support.event_loops import eventually, on_uvloop
from tests.support.fault_proxy import Fault, running_proxy
from tests.support.redis_server import RedisServer, running_redis
from tests.support.response_cache import item_of, key_of, look, open_cache, rules, settled

EAGER = (0.0, 0.001)
"""Pauses between connections where a test breaks hundreds of them."""
PATIENT = 20.0
"""Far above the budget of 25 ms, on however busy a machine; who waits for Redis waits for ever."""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


async def timed(cache: ResponseCache, *texts: str) -> tuple[Hits, float]:
    began = time.monotonic()
    hits = await look(cache, *texts)
    return hits, time.monotonic() - began


# A real server in trouble -----------------------------------------------------------------------


@on_uvloop
async def test_a_stopped_redis_costs_one_budget_and_then_nothing(server: RedisServer) -> None:
    async with open_cache(server.unix_url, budget_seconds=BUDGET_SECONDS) as (cache, faults):
        await settled(cache, "stopped")
        server.freeze()
        try:
            results = await asyncio.gather(*(timed(cache, "stopped") for _ in range(200)))
            assert all(hits == [None] and seconds < PATIENT for hits, seconds in results)
            assert faults["timeout"] >= 200 and not cache.redis_up
            for _ in range(2000):  # The breaker is open: misses come before fetch even returns.
                heard: list[Hits] = []
                cache.fetch([key_of("stopped")], heard.append)
                assert heard == [[None]]
            cache.store(key_of("lost"), item_of("lost"), rules(60), time.time())
        finally:
            server.thaw()
        await eventually(lambda: cache.redis_up)
        (hit,) = await look(cache, "stopped")
        assert hit is not None and hit.item == item_of("stopped")
        assert await look(cache, "lost") == [None]


@on_uvloop
async def test_a_stopped_redis_is_noticed_without_any_request(server: RedisServer) -> None:
    async with open_cache(server.unix_url, budget_seconds=BUDGET_SECONDS) as (cache, _):
        server.freeze()
        try:
            await eventually(lambda: not cache.redis_up)
        finally:
            server.thaw()


@on_uvloop
async def test_killed_and_restarted_again_and_again(server: RedisServer) -> None:
    async with open_cache(server.tcp_url, budget_seconds=BUDGET_SECONDS) as (cache, faults):
        for number in range(3):
            await settled(cache, f"round {number}")
            pending = [asyncio.ensure_future(timed(cache, "unknown")) for _ in range(50)]
            server.kill()
            assert all(hits == [None] and s < PATIENT for hits, s in await asyncio.gather(*pending))
            await eventually(lambda: not cache.redis_up)
            assert (await timed(cache, "anything"))[0] == [None]
            server.start()
            await eventually(lambda: cache.redis_up)
        assert faults["down"] >= 3


@on_uvloop
async def test_absent_at_start_and_found_later(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    began = time.monotonic()
    async with open_cache(server.unix_url) as (cache, faults):
        assert time.monotonic() - began < PATIENT, "it waited for Redis"
        assert await look(cache, "a") == [None]
        assert faults == {"down": 1} and not cache.redis_up
        server.start()
        try:
            await eventually(lambda: cache.redis_up)
            await settled(cache, "a")
        finally:
            server.close()


@on_uvloop
async def test_a_black_hole_does_not_hold_up_the_start() -> None:
    with socket.socket() as hole:  # Connects, in the kernel's queue, and nobody ever answers.
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        began = time.monotonic()
        url = f"redis://127.0.0.1:{hole.getsockname()[1]}"
        async with open_cache(url, budget_seconds=BUDGET_SECONDS) as (cache, _):
            assert time.monotonic() - began < PATIENT, "it waited for Redis"
            assert await look(cache, "a") == [None]


def test_full_memory_loses_writes_and_nothing_else() -> None:
    @on_uvloop
    async def run(server: RedisServer) -> None:
        async with open_cache(server.unix_url) as (cache, faults):
            await settled(cache, "before")
            with server.client() as client:
                client.config_set("maxmemory", 1)
            for number in range(1000):
                cache.store(key_of(str(number)), item_of(str(number)), rules(60), time.time())
                if number % 100 == 0:
                    assert (await look(cache, "before"))[0] is not None
            assert 1 <= faults["oom"] <= 200, "writing must pause once the server is full"
            assert cache.redis_up and set(faults) == {"oom"}

    with running_redis("--maxmemory-policy", "noeviction") as full:
        run(full)


@pytest.mark.parametrize(
    ("login", "cause"),
    [("", "noauth"), (":wrong@", "wrongpass"), ("app:wrong@", "wrongpass"), (":secret@", None)],
)
def test_let_in_or_not(login: str, cause: str | None) -> None:
    @on_uvloop
    async def run(server: RedisServer) -> None:
        url = server.tcp_url.replace("//", f"//{login}")
        async with open_cache(url) as (cache, faults):
            if cause is None:
                await settled(cache, "a")
            else:
                await eventually(lambda: faults[cause] >= 2)  # It goes on trying.
                assert not cache.redis_up and await look(cache, "a") == [None]

    with running_redis("--requirepass", "secret") as closed:
        run(closed)


@on_uvloop
async def test_a_replica_without_its_primary(tmp_path: Path) -> None:
    with running_redis() as server, server.client() as client:
        async with open_cache(server.unix_url) as (cache, faults):
            await settled(cache, "a")
            client.replicaof("127.0.0.1", 1)
            cache.store(key_of("b"), item_of("b"), rules(60), time.time())
            await eventually(lambda: faults["readonly"] == 1)
            assert (await look(cache, "a"))[0] is not None
            client.config_set("replica-serve-stale-data", "no")
            assert await look(cache, "a") == [None]
            assert faults["masterdown"] >= 1 and not cache.redis_up
            client.replicaof("no", "one")
            await eventually(lambda: cache.redis_up)


@on_uvloop
async def test_emptied_under_load(server: RedisServer) -> None:
    texts = [f"flush {number}" for number in range(50)]
    with server.client() as client:
        async with open_cache(server.unix_url) as (cache, faults):
            await settled(cache, *texts)
            client.flushall()
            assert await look(cache, *texts) == [None] * 50
            await settled(cache, *texts)
            assert not faults


@on_uvloop
async def test_slow_is_given_up_and_leaves_no_queue(server: RedisServer) -> None:
    async with open_cache(server.unix_url, budget_seconds=BUDGET_SECONDS) as (cache, faults):
        await settled(cache, "slow")
        for _ in range(3):
            await eventually(lambda: cache.redis_up)
            server.freeze()
            try:
                hits, seconds = await timed(cache, "slow")
            finally:
                server.thaw()  # Now it answers what nobody waits for any more.
            assert hits == [None] and seconds < PATIENT
        assert faults["timeout"] >= 3
        await eventually(lambda: cache.redis_up)
        await settled(cache, "slow")


@on_uvloop
async def test_our_own_standstill_is_not_taken_for_a_slow_redis(server: RedisServer) -> None:
    """After a standstill the loop looks at its timers before it looks at its sockets."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)

        def stand_still() -> None:
            loop.remove_reader(ours)
            time.sleep(1.5)

        # A second, which Redis itself will not need on any machine.
        async with open_cache(server.unix_url, budget_seconds=1.0) as (cache, faults):
            await settled(cache, "stall")
            loop.add_reader(ours, stand_still)
            lookup = asyncio.ensure_future(look(cache, "stall"))
            await asyncio.sleep(0)
            theirs.send(b"now")
            (hit,) = await lookup
            assert hit is not None and not faults


# Somebody else writes to Redis ------------------------------------------------------------------


@on_uvloop
async def test_values_moved_between_keys_in_redis_are_misses(server: RedisServer) -> None:
    texts = [f"mine {number}" for number in range(20)]
    with server.client() as client:
        client.flushall()
        async with open_cache(server.unix_url, pauses_seconds=EAGER) as (cache, faults):
            await settled(cache, *texts)
            stored = client.keys("sluice:cache:*")
            values = client.mget(stored)
            client.mset(dict(zip(stored, values[1:] + values[:1], strict=True)))
            for text in texts:
                await eventually(lambda: cache.redis_up)
                assert await look(cache, text) == [None]
            assert faults["not_proven"] == 20


@on_uvloop
async def test_a_key_of_another_type_is_a_miss_and_nothing_more(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()
        async with open_cache(server.unix_url) as (cache, faults):
            await settled(cache, "list", "other")
            for key in client.keys("sluice:cache:*"):
                client.delete(key)
                client.lpush(key, "x")
            assert await look(cache, "list", "other") == [None, None]
            assert faults == {"wrong_type": 2} and cache.redis_up


@on_uvloop
async def test_another_secret_shares_nothing_and_a_rotated_one_everything(
    server: RedisServer,
) -> None:
    new = Keyring(b"n" * 32)
    rotating = Keyring(b"n" * 32, bytes(range(32)))
    async with open_cache(server.unix_url) as (cache, _):
        await settled(cache, "rotated")
    async with open_cache(server.unix_url, ring=new) as (cache, faults):
        assert await look(cache, "rotated", ring=new) == [None]
    async with open_cache(server.unix_url, ring=rotating) as (cache, faults):
        (hit,) = await look(cache, "rotated", ring=rotating)
        assert hit is not None and hit.item == item_of("rotated")
        cache.store(key_of("young", rotating), item_of("young"), rules(60), time.time())
        await look(cache, "young", ring=rotating)
    async with open_cache(server.unix_url, ring=new) as (cache, faults):
        (hit,) = await look(cache, "young", ring=new)
        assert hit is not None and hit.item == item_of("young") and not faults


# A proxy that lies ------------------------------------------------------------------------------

WELL_FORMED = {
    "flip": (fault_proxy.flip_in_value, {"not_proven", "format", "truncated"}),
    "cut": (fault_proxy.cut_value, {"not_proven", "truncated"}),
    "swap": (fault_proxy.swap, {"not_proven"}),
    "retype": (fault_proxy.retype, {"wrong_type", "truncated"}),
    "format": (fault_proxy.age_format, {"format"}),
}


@pytest.mark.parametrize("name", WELL_FORMED)
@on_uvloop
async def test_three_thousand_lies_of_a_kind_are_three_thousand_misses(
    server: RedisServer, name: str
) -> None:
    """Five kinds: 15 000 changed replies, delivered by the hundreds on one connection."""
    make, causes = WELL_FORMED[name]
    texts = [f"{name} {number}" for number in range(500)]
    async with (
        running_proxy(server.path) as proxy,
        open_cache(proxy.url, budget_seconds=5, pauses_seconds=EAGER) as (cache, faults),
    ):
        await settled(cache, *texts)
        proxy.fault = make(random.Random(name))
        missed = 0
        for _ in range(6):
            await eventually(lambda: cache.redis_up)
            missed += _misses(texts, await look(cache, *texts))
        assert proxy.faulted >= 2990
        assert missed == proxy.faulted
        assert set(faults) - {"desync"} <= causes
        proxy.fault = None
        await eventually(lambda: cache.redis_up)
        assert _misses(texts, await look(cache, *texts)) == 0


@pytest.mark.parametrize(
    "make",
    [
        fault_proxy.flip_anywhere,
        fault_proxy.cut_stream,
        fault_proxy.drop_some,
        fault_proxy.repeat_some,
        fault_proxy.flood,
    ],
)
@on_uvloop
async def test_a_broken_stream_never_shifts_answers(
    server: RedisServer, make: Callable[[random.Random], Fault]
) -> None:
    rng = random.Random(make.__name__)
    texts = [f"stream {number}" for number in range(40)]
    async with (
        running_proxy(server.path) as proxy,
        open_cache(proxy.url, budget_seconds=BUDGET_SECONDS, pauses_seconds=EAGER) as (
            cache,
            faults,
        ),
    ):
        await settled(cache, *texts)
        proxy.fault = make(rng)
        missed = 0
        for _ in range(30):
            await eventually(lambda: cache.redis_up)
            asked = rng.sample(texts, 10)
            hits = await asyncio.gather(*(look(cache, text) for text in asked))
            missed += _misses(asked, [hit for (hit,) in hits])
        assert missed >= 30 and faults and proxy.connections >= 10


@pytest.mark.parametrize(
    ("message", "cause", "stays_up"),
    [
        (b"LOADING Redis is loading the dataset in memory", "loading", False),
        (b"MASTERDOWN Link with MASTER is down", "masterdown", False),
        (b"NOAUTH Authentication required.", "noauth", False),
        (b"CLUSTERDOWN Hash slot not served", "clusterdown", False),
        (b"BUSY Redis is busy running a script.", "busy_script", False),
        (b"NOPERM this user has no permissions", "noperm", False),
        (b"ERR something new", "refused", False),
        (b"MOVED 3999 127.0.0.1:6381", "moved", True),
        (b"ASK 3999 127.0.0.1:6381", "ask", True),
    ],
)
@on_uvloop
async def test_every_refusal_has_a_name(
    server: RedisServer, message: bytes, cause: str, stays_up: bool
) -> None:
    async with running_proxy(server.path) as proxy, open_cache(proxy.url) as (cache, faults):
        await settled(cache, "refused")
        proxy.fault = fault_proxy.refuse(message)
        assert await look(cache, "refused") == [None]
        assert faults[cause] >= 1 and cache.redis_up == stays_up


@on_uvloop
async def test_a_storm_of_cancelled_lookups_delivers_nothing_to_anybody_else(
    server: RedisServer,
) -> None:
    """CVE-2023-28858 in our terms: who leaves must not shift the replies of who stays."""
    rng = random.Random(7)
    texts = [f"storm {number}" for number in range(200)]
    heard: Counter[int] = Counter()
    wrong = 0
    async with (
        running_proxy(server.path) as proxy,
        open_cache(proxy.url, budget_seconds=5, pauses_seconds=EAGER) as (cache, faults),
    ):
        await settled(cache, *texts)
        proxy.delay_seconds = lambda: rng.random() * 0.003
        cancelled: set[int] = set()

        def ask(number: int) -> Callable[[], None]:
            text = rng.choice(texts)

            def on_done(hits: Hits) -> None:
                nonlocal wrong
                heard[number] += 1
                wrong += _misses([text], hits)

            return cache.fetch([key_of(text)], on_done)

        for turn in range(400):
            leaves = {turn * 50 + i: ask(turn * 50 + i) for i in range(50)}
            if turn % 3:
                await asyncio.sleep(rng.random() * 0.002)
            for number in rng.sample(sorted(leaves), 25):
                if number not in heard:
                    leaves[number]()
                    cancelled.add(number)
        stayed = set(range(20_000)) - cancelled
        await eventually(lambda: len(heard) == len(stayed), 60)
        assert len(cancelled) > 3000  # As many as leave before the loop has run at all.
        assert set(heard) == stayed and set(heard.values()) == {1}
        assert wrong == 0 and not faults


def _misses(texts: list[str], hits: Hits) -> int:
    """Count the misses; every hit must be the answer to its own question."""
    for text, hit in zip(texts, hits, strict=True):
        assert hit is None or hit.item == item_of(text), f"{text!r} got {hit!r}"
    return hits.count(None)
