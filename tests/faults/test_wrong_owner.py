"""Whose answer is it? Many tenants, many keys, a Redis that lies, callers that leave.

Each answer names its tenant and its question. A proxy in between swaps, delays and cuts replies,
all of it at once, while half of the lookups are given up half-way; nobody may ever be handed
anything but their own.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from sluice_api.call import Item
from sluice_gateway.cache import Hits, ResponseCache
from sluice_gateway.keys import TenantScope
from tests.support import fault_proxy
from tests.support.event_loops import eventually, on_uvloop
from tests.support.fault_proxy import Fault, running_proxy
from tests.support.redis_server import RedisServer, running_redis
from tests.support.response_cache import RING, key_of, open_cache, rules

TENANTS = [TenantScope.of(f"tenant {number}") for number in range(20)]
QUESTIONS = [f"question {number}" for number in range(40)]
LOOKUPS = 20_000


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


def answer(tenant: TenantScope, question: str) -> Item:
    text = b'{"owner":"%b","question":"%b","tokens":1}' % (tenant.wire, question.encode())
    return Item(text, 1)


def mixed(rng: random.Random) -> Fault:
    """Swap most, cut some within what is well formed, leave some alone."""
    swap, cut = fault_proxy.swap(rng), fault_proxy.cut_value(rng)

    def fault(reply: bytes) -> bytes:
        draw = rng.random()
        return swap(reply) if draw < 0.02 else cut(reply) if draw < 0.03 else reply

    return fault


class Storm:
    """Lookups of one or several questions of one tenant, half of which are given up."""

    def __init__(self, cache: ResponseCache, rng: random.Random) -> None:
        self.cache = cache
        self.rng = rng
        self.wrong: list[str] = []
        self.results: Counter[str] = Counter()
        self.heard: Counter[int] = Counter()
        self.cancelled: set[int] = set()

    def ask(self, number: int) -> Callable[[], None]:
        tenant = self.rng.choice(TENANTS)
        questions = self.rng.sample(QUESTIONS, self.rng.choice((1, 1, 1, 5)))

        def on_done(hits: Hits) -> None:
            self.heard[number] += 1
            for question, hit in zip(questions, hits, strict=True):
                self.results["miss" if hit is None else "hit"] += 1
                if hit is not None and hit.item != answer(tenant, question):
                    self.wrong.append(f"{tenant.wire!r} {question}: {hit.item!r}")

        keys = [key_of(question, scope=tenant) for question in questions]
        return self.cache.fetch(keys, on_done)

    async def run(self, lookups: int) -> None:
        number = 0
        while number < lookups:
            await eventually(lambda: self.cache.redis_up, 20)  # A lie has cost the connection.
            leaves = {number + i: self.ask(number + i) for i in range(50)}
            number += 50
            if self.rng.random() < 0.6:
                await asyncio.sleep(self.rng.random() * 0.002)
            for mine in self.rng.sample(sorted(leaves), 25):
                if mine not in self.heard:
                    leaves[mine]()
                    self.cancelled.add(mine)
        await eventually(lambda: len(self.heard) == lookups - len(self.cancelled), 60)


@on_uvloop
async def test_nobody_is_handed_anothers_answer(server: RedisServer) -> None:
    rng = random.Random(7)
    async with (
        running_proxy(server.path) as proxy,
        open_cache(proxy.url, budget_seconds=1.0, pauses_seconds=(0.0, 0.001)) as (cache, faults),
    ):
        now = time.time()
        for tenant in TENANTS:
            for question in QUESTIONS:
                key = key_of(question, RING, tenant)
                cache.store(key, answer(tenant, question), rules(3600), now)
        with server.client() as client:
            await eventually(lambda: client.dbsize() == len(TENANTS) * len(QUESTIONS), 60)
        proxy.fault = mixed(rng)
        proxy.delay_seconds = lambda: rng.random() * 0.003
        storm = Storm(cache, rng)
        await storm.run(LOOKUPS)
        assert not storm.wrong, storm.wrong[:3]
        assert set(storm.heard.values()) == {1} and not storm.cancelled & storm.heard.keys()
        assert storm.results["hit"] > 500 and storm.results["miss"] > 500, storm.results
        assert len(storm.cancelled) > 1000 and proxy.faulted > 100
        assert faults["not_proven"] > 20, faults
