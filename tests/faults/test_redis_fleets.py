"""A Sentinel set whose master dies, and a cluster whose slots move and whose nodes die.

Whatever happens meanwhile is a miss; afterwards answers are found where they are then.
"""

import asyncio
import re
import time
from collections.abc import Iterator

import pytest

from sluice_gateway.cache import ResponseCache
from sluice_gateway.invalidation import Invalidations
from sluice_gateway.redis_cluster import open_store, slot_of
from sluice_gateway.redis_places import Cluster, Fixed, Watched, parse_place, read_slots
from tests.support.event_loops import eventually, on_uvloop
from tests.support.redis_fleets import (
    RedisNodes,
    SentinelSet,
    running_cluster,
    running_sentinel_set,
)
from tests.support.response_cache import item_of, key_of, look, open_cache, rules, settled

TEXTS = [f"text {number}" for number in range(60)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[RedisNodes]:
    with running_cluster() as found:
        yield found


def redis_key(text: str) -> bytes:
    return b"sluice:cache:" + key_of(text).hex().encode()


async def found(cache: ResponseCache, *texts: str) -> int:
    """How many are there; each must be its own answer."""
    hits = await look(cache, *texts)
    assert all(h is None or h.item == item_of(t) for h, t in zip(hits, texts, strict=True))
    return len(texts) - hits.count(None)


def test_the_master_is_found_again_after_it_died() -> None:
    @on_uvloop
    async def run(servers: SentinelSet) -> None:
        async with open_cache(servers.url) as (cache, faults):
            await settled(cache, "before")
            with servers.second.client() as replica:
                await eventually(lambda: replica.dbsize() == 1, 60)
            servers.first.kill()
            assert await look(cache, "before") == [None], "a miss, and at once"
            await eventually(lambda: cache.redis_up, 60)
            assert await found(cache, "before") == 1
            await settled(cache, "after")
            with servers.second.client() as replica:
                assert replica.dbsize() == 2
            assert faults["readonly"] == 0

    with running_sentinel_set() as servers:
        run(servers)


def test_sentinels_with_tls_and_passwords() -> None:
    @on_uvloop
    async def run(servers: SentinelSet) -> None:
        wrong = servers.url.replace("sentinel_password=", "sentinel_password=x")
        async with open_cache(wrong, pauses_seconds=(60.0,)) as (cache, _):
            assert not cache.redis_up
        async with open_cache(servers.url) as (cache, faults):
            await settled(cache, "before")
            servers.first.kill()
            await eventually(lambda: cache.redis_up and await_second(servers), 60)
            await settled(cache, "after")
            assert await found(cache, "after") == 1
            assert faults["wrongpass"] == faults["noauth"] == 0
        async with open_cache(servers.url) as (cache, _):
            await listened(servers.url, cache)

    with running_sentinel_set(guarded=True) as servers:
        run(servers)


def await_second(servers: SentinelSet) -> bool:
    with servers.second.client() as client:
        return bool(client.execute_command("ROLE")[0] == b"master")


async def listened(url: str, cache: ResponseCache) -> None:
    """Invalidations are heard over a connection of their own."""
    store = open_store(url, faults=lambda _: None)
    await store.start()
    told = Invalidations(cache, store, 30.0)
    task = asyncio.create_task(told.run())
    try:
        await eventually(lambda: told.hearing, 60)
    finally:
        task.cancel()
        await store.close()


def test_a_cluster_with_tls_and_a_password() -> None:
    @on_uvloop
    async def run(nodes: RedisNodes) -> None:
        without_certificate = re.sub(r"&ssl_certfile.*", "", nodes.url)
        async with open_cache(without_certificate) as (cache, _):
            assert not cache.redis_up
        async with open_cache(nodes.url) as (cache, faults):
            await settled(cache, *TEXTS)
            assert await found(cache, *TEXTS, "absent") == len(TEXTS)
            assert "3 of 3 nodes up" in repr(cache) and not faults
            await listened(nodes.url, cache)

    with running_cluster(guarded=True) as nodes:
        run(nodes)


@on_uvloop
async def test_without_any_sentinel_there_is_no_redis_and_no_error() -> None:
    async with open_cache("redis+sentinel://127.0.0.1:1/cache") as (cache, faults):
        assert await look(cache, "a") == [None]
        assert not cache.redis_up and faults == {"down": 1}


@on_uvloop
async def test_answers_are_spread_over_the_nodes_and_a_list_is_read_from_all(
    nodes: RedisNodes,
) -> None:
    async with open_cache(nodes.url) as (cache, faults):
        await settled(cache, *TEXTS)
        assert await found(cache, *TEXTS, "absent") == len(TEXTS)
        for text in TEXTS[:5]:
            assert await found(cache, text) == 1
        sizes = []
        for node in nodes.nodes:
            with node.client() as client:
                sizes.append(client.dbsize())
        assert sum(sizes) == len(TEXTS) and min(sizes) > 5
        assert not faults


@on_uvloop
async def test_a_slot_that_moved_is_a_miss_and_then_found_where_it_is(nodes: RedisNodes) -> None:
    async with open_cache(nodes.url) as (cache, faults):
        assert await found(cache, "moving") == 0
        nodes.move(slot_of(redis_key("moving")))
        assert await found(cache, "moving") == 0
        assert faults["moved"] == 1 and cache.redis_up
        moving, deadline = nodes.owner(slot_of(redis_key("moving"))), time.monotonic() + 60
        while await found(cache, "moving") == 0:  # A write to where the slot was is lost.
            assert time.monotonic() < deadline, "not followed"
            cache.store(key_of("moving"), item_of("moving"), rules(3600), time.time())
        with moving.client() as client:
            assert client.exists(redis_key("moving"))


@on_uvloop
async def test_a_node_that_is_stopped_costs_only_its_own_keys(nodes: RedisNodes) -> None:
    async with open_cache(nodes.url, budget_seconds=3.0) as (cache, faults):
        await settled(cache, *TEXTS)
        victim = nodes.nodes[1]
        mine = [text for text in TEXTS if nodes.owner(slot_of(redis_key(text))) is victim]
        victim.freeze()
        try:
            assert await found(cache, *TEXTS) == len(TEXTS) - len(mine) > 0
            assert faults["timeout"] >= 1 and cache.redis_up
        finally:
            victim.thaw()

        await eventually(lambda: "3 of 3 nodes up" in repr(cache), 60)
        assert await found(cache, *TEXTS) == len(TEXTS)


@on_uvloop
async def test_an_invalidation_is_heard_through_a_cluster(nodes: RedisNodes) -> None:
    async with open_cache(nodes.url) as (one, _), open_cache(nodes.url) as (two, _):
        told = [
            Invalidations(cache, open_store(nodes.url, faults=lambda _: None), 30.0)
            for cache in (one, two)
        ]
        for each in told:
            assert each._store is not None
            await each._store.start()
        tasks = [asyncio.create_task(each.run()) for each in told]
        try:
            await eventually(lambda: all(each.hearing for each in told), 60)
            await told[0].throw_away(service="default/one")
            epoch = one.epochs.of("default/one", b"tenant:anna")
            assert epoch
            await eventually(lambda: two.epochs.of("default/one", b"tenant:anna") == epoch, 60)
            assert told[1].heard == 1 and "hearing" in repr(told[1])
        finally:
            for each, task in zip(told, tasks, strict=True):
                task.cancel()
                assert each._store is not None
                await each._store.close()


@on_uvloop
async def test_who_asks_where_redis_is_can_be_ended_at_any_moment(nodes: RedisNodes) -> None:
    """Or a gateway that should end would go on looking for its Redis, and never end."""
    cluster = parse_place(nodes.url)
    assert isinstance(cluster, Cluster)
    for turns in range(100):
        asking = asyncio.create_task(read_slots(cluster, "127.0.0.1", nodes.nodes[0].port))
        for _ in range(turns):
            await asyncio.sleep(0)
        if asking.done():
            break
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled(), f"the end was not heard after {turns} turns of the loop"


def test_slots_are_redis_own() -> None:
    assert slot_of(b"123456789") == 12739  # From the specification of Redis Cluster.
    assert slot_of(b"{user1000}.following") == slot_of(b"{user1000}.followers")
    assert slot_of(b"foo{}{bar}") != slot_of(b"{bar}")
    assert slot_of(b"{sluice:cache:ab}:lease") == slot_of(b"sluice:cache:ab")


def test_urls() -> None:
    watched = parse_place("rediss+sentinel://u:p%40ss@one:1,two/cache/3?ssl_cert_reqs=none")
    assert isinstance(watched, Watched)
    assert watched.sentinels == (("one", 1), ("two", 26379)) and watched.master == "cache"
    like = watched.like
    assert (like.username, like.password, like.db, like.tls is None) == ("u", "p@ss", 3, False)
    cluster = parse_place("redis+cluster://:secret@one,[::1]:7000")
    assert isinstance(cluster, Cluster)
    assert cluster.seeds == (("one", 6379), ("::1", 7000)) and cluster.like.password == "secret"
    assert isinstance(parse_place("redis://one"), Fixed)
    assert "p@ss" not in watched.shown + repr(watched) and "secret" not in repr(cluster)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+sentinel://:secret@one:1", "names no master"),
        ("redis+sentinel://:secret@one:x/cache", "Host 1 of the Redis URL"),
        ("redis+cluster://:secret@one,,two", "Host 2 of the Redis URL"),
        ("redis+cluster://:secret@one/3", "only database 0"),
        ("unix+cluster://:secret@one", "begins with 'unix'"),
        ("redis+cluster://:secret@one?retries=3", "not known: retries"),
    ],
)
def test_urls_that_cannot_be_used(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse_place(url)
    assert "secret" not in str(caught.value)
