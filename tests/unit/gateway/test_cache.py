"""The two layers as one cache: who answers, for how long, and what is never shared."""

import time
import tracemalloc
from collections.abc import Iterator

import pytest

from sluice_api import metric_names
from sluice_api.call import Item
from sluice_gateway.cache import Hits, ResponseCache
from sluice_gateway.keys import TenantScope
from sluice_gateway.metrics import Metrics
from tests.support.event_loops import on_uvloop
from tests.support.redis_server import RedisServer, running_redis
from tests.support.response_cache import (
    ANNA,
    RING,
    item_of,
    key_of,
    look,
    open_cache,
    rules,
    settled,
)

ROUTE = "/v1/embeddings"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def local_cache(clock: Clock, l1_bytes: int = 1 << 20) -> ResponseCache:
    return ResponseCache(RING, l1_bytes=l1_bytes, redis=None, faults=pytest.fail, clock=clock)


def test_a_stored_answer_is_found_with_its_age() -> None:
    clock = Clock()
    cache = local_cache(clock)
    key = key_of("a")
    cache.store(key, item_of("a"), rules(100), clock.now)
    hit = cache.local(key, clock.now + 30)
    assert hit is not None and hit.layer == "l1" and hit.item == item_of("a")
    assert hit.age_seconds == 30 and 60 <= hit.ttl_seconds <= 70
    assert cache.local(key_of("b"), clock.now) is None


def test_what_had_to_make_room_is_counted() -> None:
    clock = Clock()
    cache, metrics = local_cache(clock, l1_bytes=8192), Metrics()
    metrics.watch_counter(metric_names.GATEWAY_CACHE_EVICTIONS, lambda: cache.l1_evictions)
    assert b"\nsluice_gateway_cache_l1_evictions_total 0.0" in metrics.page()
    for number in range(100):
        cache.store(key_of(str(number)), item_of("a"), rules(100), clock.now)
    assert cache.l1_evictions > 50
    shown = b"\nsluice_gateway_cache_l1_evictions_total %d.0" % cache.l1_evictions
    assert shown in metrics.page()
    # A counter without labels: several processes add theirs up.
    assert b"# TYPE sluice_gateway_cache_l1_evictions_total counter" in metrics.page()


def test_times_to_live_are_spread_below_what_is_allowed() -> None:
    clock = Clock()
    cache = local_cache(clock)
    lives = []
    for number in range(300):
        cache.store(key_of(str(number)), Item(b"{}", 1), rules(100), clock.now)
        hit = cache.local(key_of(str(number)), clock.now)
        assert hit is not None
        lives.append(hit.ttl_seconds)
    assert 90 <= min(lives) < 92 and 98 < max(lives) <= 100


@pytest.mark.parametrize("ttl_seconds", [0, -1])
def test_no_time_to_live_is_not_kept(ttl_seconds: float) -> None:
    cache = local_cache(Clock())
    cache.store(key_of("a"), item_of("a"), rules(ttl_seconds), Clock().now)
    assert cache.local(key_of("a"), Clock().now) is None


def test_without_redis_a_lookup_is_answered_before_it_returns() -> None:
    clock = Clock()
    cache = local_cache(clock)
    cache.store(key_of("a"), item_of("a"), rules(100), clock.now)
    heard: list[Hits] = []
    cache.fetch([key_of("a"), key_of("b")], heard.append)()
    assert [[hit and hit.item for hit in hits] for hits in heard] == [[item_of("a"), None]]


def test_tenants_do_not_share() -> None:
    clock = Clock()
    cache = local_cache(clock)
    cache.store(key_of("a"), item_of("a"), rules(100), clock.now)
    assert cache.local(key_of("a", scope=TenantScope.of("bert")), clock.now) is None
    assert cache.local(key_of("a", scope=TenantScope.service_wide("lab", "emb")), clock.now) is None


# Redis ------------------------------------------------------------------------------------------


@on_uvloop
async def test_what_redis_had_is_kept_in_process(server: RedisServer) -> None:
    async with open_cache(server.unix_url, l1_bytes=1 << 20) as (first, _):
        await settled(first, "shared")
    async with open_cache(server.unix_url, l1_bytes=1 << 20) as (second, faults):
        layers = [(await look(second, "shared"))[0] for _ in range(2)]
        assert [hit and hit.layer for hit in layers] == ["redis", "l1"]
        assert {hit and hit.item for hit in layers} == {item_of("shared")}
        assert second.l1_bytes > 0 and not faults


@on_uvloop
async def test_a_list_is_put_together_from_every_layer_in_order(server: RedisServer) -> None:
    async with open_cache(server.unix_url, l1_bytes=1 << 20) as (other, _):
        await settled(other, "far")
    async with open_cache(server.unix_url, l1_bytes=1 << 20) as (cache, _):
        await settled(cache, "near")
        hits = await look(cache, "near", "absent", "far", "near", "far")
        assert [hit and (hit.layer, hit.item) for hit in hits] == [
            ("l1", item_of("near")),
            None,
            ("redis", item_of("far")),
            ("l1", item_of("near")),
            ("redis", item_of("far")),
        ]


@on_uvloop
async def test_age_goes_on_from_one_gateway_to_the_next(server: RedisServer) -> None:
    async with open_cache(server.unix_url) as (cache, _):
        cache.store(key_of("old"), item_of("old"), rules(3600), time.time() - 1000)
        (hit,) = await look(cache, "old")
        assert hit is not None
        assert 1000 <= hit.age_seconds < 1010 and 2200 < hit.ttl_seconds < 2970


@on_uvloop
async def test_a_clock_that_is_behind_sees_no_negative_age(server: RedisServer) -> None:
    async with open_cache(server.unix_url) as (cache, _):
        cache.store(key_of("young"), item_of("young"), rules(3600), time.time() + 100)
        (hit,) = await look(cache, "young")
        assert hit is not None and hit.age_seconds == 0


@on_uvloop
async def test_who_cancels_hears_nothing(server: RedisServer) -> None:
    async with open_cache(server.unix_url) as (cache, faults):
        await settled(cache, "a")
        heard: list[Hits] = []
        cancel = cache.fetch([key_of("a")], heard.append)
        cancel()
        cancel()
        assert (await look(cache, "a"))[0] is not None  # The reply after the cancelled one's.
        assert heard == [] and not faults


@on_uvloop
async def test_too_large_an_answer_is_not_kept_anywhere(server: RedisServer) -> None:
    async with open_cache(server.unix_url, l1_bytes=1 << 24) as (cache, faults):
        cache.store(key_of("huge"), Item(b"x" * 300_000, 1), rules(60), time.time())
        assert await look(cache, "huge") == [None]
        assert cache.l1_bytes == 0 and not faults


@on_uvloop
async def test_says_how_it_is(server: RedisServer) -> None:
    async with open_cache(server.unix_url) as (cache, _):
        assert repr(cache) == (
            "<ResponseCache <LocalCache 0 entries of 0 owners, 0 of 0 bytes, 0 evicted>, "
            f"<RedisPipeline unix://{server.path}/0 <Link up, 0 replies and 0 bytes pending>>>"
        )
        assert cache.redis_up


# Aliases ----------------------------------------------------------------------------------------


def test_an_alias_answers_exactly_its_body_route_and_scope() -> None:
    clock = Clock()
    cache = local_cache(clock)
    binding = object()
    cache.remember(ROUTE, ANNA, b'{"input":"a"}', b"answer", binding, clock.now + 10)
    found = cache.alias(ROUTE, TenantScope.of("anna"), b'{"input":"a"}', clock.now + 9)
    assert found is not None and found.answer == b"answer" and found.binding is binding
    assert (found.created, found.expires) == (clock.now, clock.now + 10)
    assert cache.alias(ROUTE, ANNA, b'{"input":"a" }', clock.now) is None
    assert cache.alias("/predict", ANNA, b'{"input":"a"}', clock.now) is None
    assert (
        cache.alias(ROUTE, TenantScope.service_wide("lab", "emb"), b'{"input":"a"}', clock.now)
        is None
    )
    assert cache.alias(ROUTE, ANNA, b'{"input":"a"}', clock.now + 10) is None


def test_aliases_and_answers_share_one_bound() -> None:
    clock = Clock()
    cache = local_cache(clock, l1_bytes=100_000)
    for number in range(1000):
        cache.store(key_of(str(number)), item_of(str(number)), rules(60), clock.now)
        cache.remember(ROUTE, ANNA, b"%d" % number, bytes(500), None, clock.now + 60)
        assert cache.l1_bytes <= 100_000
    assert cache.l1_bytes > 90_000


def test_counted_bytes_are_what_the_process_takes() -> None:
    clock = Clock()
    cache = local_cache(clock, l1_bytes=1 << 28)
    tracemalloc.start()
    try:
        for number in range(5000):
            text = b"%08d" % number
            cache.store(text * 4, Item(text * 40, 1000 + number), rules(60), clock.now)
            cache.remember(ROUTE, ANNA, text * 40, text * 50, None, clock.now + 60)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.8 < taken / cache.l1_bytes < 1.1


def test_too_large_an_answer_has_no_alias() -> None:
    clock = Clock()
    cache = local_cache(clock, l1_bytes=1 << 24)
    cache.remember(ROUTE, ANNA, b"a", bytes(300_000), None, clock.now + 60)
    assert cache.alias(ROUTE, ANNA, b"a", clock.now) is None
