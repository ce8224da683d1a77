"""A whole gateway under load while its Redis is stopped, killed, full, emptied, absent or lying.

The gateway keeps nothing in process here, so every request asks Redis. Each answer is computed from
its input alone, so the load itself tells right from wrong; no request may fail, and what Redis does
not give must have been computed by the worker.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import fault_proxy
from tests.support.event_loops import on_uvloop
from tests.support.fault_proxy import Fault, running_proxy
from tests.support.gateway_process import GatewayProcess, Reply, service
from tests.support.redis_server import RedisServer, running_redis
from tests.support.stub_worker import StubWorker, until, vector_of

CONNECTIONS = 8
PATIENT = 20.0
"""Seconds that no request may reach, on however busy a machine; who waits for Redis hangs."""
UP, FAULTS = "sluice_gateway_redis_up", "sluice_gateway_cache_faults_total"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


class Load:
    """Requests from a few connections in a loop, mostly for the same texts, each answer checked."""

    def __init__(self, gateway: GatewayProcess, seed: int) -> None:
        self.gateway = gateway
        self.rng = random.Random(seed)
        self.results: Counter[str] = Counter()
        self.slowest = 0.0
        self.stopped = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._connection())

    async def _connection(self) -> None:
        async with await self.gateway.client() as client:
            while not self.stopped:
                fresh = self.rng.random() < 0.2
                text = f"text {self.rng.getrandbits(60) if fresh else self.rng.randrange(100)}"
                began = time.monotonic()
                reply = await client.post("/v1/embeddings", asking(text))
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.results[check(text, reply)] += 1

    async def more(self, result: str, count: int = 100) -> None:
        """Wait for ``count`` more answers that were a ``hit`` or a ``miss``."""
        goal = self.results[result] + count
        await until(lambda: self.results[result] >= goal, 60, f"{count} × {result}: {self.results}")


def asking(text: str) -> dict[str, Any]:
    return {"model": "stub", "input": text}


def check(text: str, reply: Reply) -> str:
    """Fail unless ``reply`` is the answer to ``text``; ``hit`` or ``miss``."""
    assert reply.status == 200, reply
    (data,) = reply.json()["data"]
    assert data["embedding"] == list(vector_of(text)), f"not the answer to {text!r}: {reply}"
    return "hit" if "; hit" in reply.headers["cache-status"] else "miss"


def gateway_with(redis_url: str, folder: Path, worker: StubWorker) -> GatewayProcess:
    folder.mkdir(exist_ok=True)
    options = ("--redis-url", redis_url, "--cache-secret", str(folder.parent / "cache.key"))
    table = [service("stub", [worker.url])]
    return GatewayProcess(folder, table, "--cache-mib", "0", *options)


@asynccontextmanager
async def loaded(redis_url: str, folder: Path) -> AsyncIterator[tuple[GatewayProcess, Load]]:
    """A gateway under load. The load must have gone well when the block ends."""
    with StubWorker() as worker, gateway_with(redis_url, folder / "one", worker) as gateway:
        await gateway.ready("stub")
        load = Load(gateway, seed=len(redis_url))
        running = asyncio.create_task(load.run())
        try:
            yield gateway, load
        finally:
            load.stopped = True
            await running
        assert load.slowest < PATIENT
        computed = worker.computed
        assert computed <= load.results["miss"], "what is asked twice at once is computed once"


async def counted(gateway: GatewayProcess, faults: int) -> bool:
    return await gateway.metric(FAULTS) >= faults


async def is_up(gateway: GatewayProcess, wanted: bool) -> None:
    async def reached() -> bool:
        return bool(await gateway.metric(UP)) == wanted

    await until(reached, 60, f"redis_up {wanted}")


@on_uvloop
async def test_stopped_under_load(server: RedisServer, tmp_path: Path) -> None:
    async with loaded(server.unix_url, tmp_path) as (gateway, load):
        for _ in range(2):
            await load.more("hit")
            server.freeze()
            try:
                await is_up(gateway, False)
                await load.more("miss")
            finally:
                server.thaw()
            await is_up(gateway, True)
            await load.more("hit")
        assert await gateway.metric(FAULTS, cause="timeout") >= 1


@on_uvloop
async def test_killed_and_restarted_under_load(server: RedisServer, tmp_path: Path) -> None:
    async with loaded(server.tcp_url, tmp_path) as (gateway, load):
        for _ in range(2):
            await load.more("hit")
            await asyncio.to_thread(server.kill)
            await is_up(gateway, False)
            await load.more("miss")
            await asyncio.to_thread(server.start)
            await is_up(gateway, True)
            await load.more("hit")
        assert await gateway.metric(FAULTS, cause="down") >= 1


@on_uvloop
async def test_full_under_load(server: RedisServer, tmp_path: Path) -> None:
    with server.client() as client:
        async with loaded(server.unix_url, tmp_path) as (gateway, load):
            await load.more("hit")
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", 1)
            await load.more("hit")
            await load.more("miss")
            assert await gateway.metric(FAULTS, cause="oom") >= 1
            await is_up(gateway, True)


@on_uvloop
async def test_absent_at_start_and_found_later(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    async with loaded(server.unix_url, tmp_path) as (gateway, load):
        assert (await gateway.get("/readyz")).status == 200
        await load.more("miss")
        await asyncio.to_thread(server.start)
        try:
            await load.more("hit")
            await is_up(gateway, True)
        finally:
            server.close()


@pytest.mark.parametrize(
    "make",
    [
        fault_proxy.swap,
        fault_proxy.flip_anywhere,
        fault_proxy.cut_stream,
        fault_proxy.drop_some,
        fault_proxy.repeat_some,
        fault_proxy.retype,
    ],
)
@on_uvloop
async def test_lying_under_load(
    server: RedisServer, tmp_path: Path, make: Callable[[random.Random], Fault]
) -> None:
    async with (
        running_proxy(server.path) as proxy,
        loaded(proxy.url, tmp_path) as (gateway, load),
    ):
        await load.more("hit")
        proxy.fault = make(random.Random(1))
        await until(lambda: proxy.faulted >= 5, 60, "five lies")
        await until(partial(counted, gateway, 5), 60, "five faults")  # once its replies are read
        await load.more("miss")
        proxy.fault = None
        await load.more("hit")


@on_uvloop
async def test_emptied_with_hot_texts(server: RedisServer, tmp_path: Path) -> None:
    """A storm of misses reaches the worker once per text, however many ask."""
    texts = [f"hot {number}" for number in range(5)]
    with StubWorker() as worker, gateway_with(server.unix_url, tmp_path / "a", worker) as gateway:
        await gateway.ready("stub")
        await stored(server, gateway, *texts)
        await until_hit(gateway, texts[0])
        worker.behaviour.hold = True
        with server.client() as client:
            client.flushall()
        worker.inputs.clear()
        asked = [asyncio.create_task(ask(gateway, text)) for text in texts * 40]
        await until(lambda: all_wait(gateway, len(asked)), what="all ask at once")
        worker.behaviour.hold = False
        await asyncio.gather(*asked)
        assert worker.inputs == Counter(texts)


@on_uvloop
async def test_gateways_share_answers_by_their_secret(server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "stranger").mkdir()
    with (
        StubWorker() as worker,
        gateway_with(server.unix_url, tmp_path / "one", worker) as one,
        gateway_with(server.unix_url, tmp_path / "two", worker) as two,
        gateway_with(server.unix_url, tmp_path / "stranger" / "three", worker) as stranger,
    ):
        for gateway in (one, two, stranger):
            await gateway.ready("stub")
        assert await ask(one, "shared") == "miss"
        await stored(server, one, "shared")
        await until_hit(two, "shared")
        assert await ask(stranger, "shared") == "miss"


async def all_wait(gateway: GatewayProcess, count: int) -> bool:
    told = (await gateway.get("/internal/services", admin=True)).json()["parts"]["Flights"]
    return f"{count} waiting" in told


async def ask(gateway: GatewayProcess, text: str) -> str:
    return check(text, await gateway.post("/v1/embeddings", asking(text)))


async def until_hit(gateway: GatewayProcess, text: str) -> None:
    """Ask until Redis answers: on a busy machine it may be late, and then it is not waited for."""

    async def hit() -> bool:
        return await ask(gateway, text) == "hit"

    await until(hit, 60, "a hit")


async def stored(server: RedisServer, gateway: GatewayProcess, *texts: str) -> None:
    """Ask until Redis holds all answers: nobody waits for that, and while it is late, none is."""

    async def all_are() -> bool:
        for text in texts:
            await ask(gateway, text)
        return server.answers() == len(texts)

    await until(all_are, 60, f"{len(texts)} answers stored")
