"""Several gateways that are asked the same at once: one computes, the others wait, not for ever."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis.client import Monitor

from sluice_api import wire
from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from tests.support.gateway_process import GatewayProcess, Reply, request, service
from tests.support.redis_server import RedisServer, running_redis
from tests.support.stub_worker import Behaviour, StubWorker, until, vector_of

PATH = "/v1/embeddings"
CHAT = "/v1/chat/completions"
LEASES = "sluice_gateway_cache_leases_total"
TAUGHT_SECONDS = 3.0
_numbers = itertools.count()


@pytest.fixture(scope="module")
def worker() -> Iterator[StubWorker]:
    with StubWorker(behaviour()) as stub:
        yield stub


def behaviour() -> Behaviour:
    return Behaviour(tasks=[Task.EMBEDDINGS, Task.CHAT])


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@contextmanager
def running(
    folder: Path, name: str, worker: StubWorker, redis: RedisServer, timeout: str = "5s"
) -> Iterator[GatewayProcess]:
    (folder / name).mkdir()
    # On a busy machine Redis may well need more than the 25 ms after which everybody goes alone.
    options = (
        *("--redis-url", redis.tcp_url, "--redis-timeout", timeout),
        *("--cache-secret", str(folder / "secret")),
    )
    with GatewayProcess(folder / name, table(worker), *options) as gateway:
        yield gateway


def table(worker: StubWorker) -> list[wire.Service]:
    return [service(name, [worker.url]) for name in ("emb", "gen")]


@pytest.fixture(scope="module")
def pair(
    worker: StubWorker, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[GatewayProcess]]:
    folder = tmp_path_factory.mktemp("pair")
    with running(folder, "a", worker, redis) as one, running(folder, "b", worker, redis) as two:
        asyncio.run(teach([one, two], worker))
        yield [one, two]


async def teach(gateways: list[GatewayProcess], worker: StubWorker) -> None:
    """Have gateways see what an answer takes: so long, and more, they wait for another's."""
    for gateway in gateways:
        await ready(gateway)
    worker.behaviour.delay = TAUGHT_SECONDS
    chats = [{"model": "gen", "messages": [{"role": "user", "content": fresh()}]} for _ in gateways]
    await asyncio.gather(
        *(ask(gateway, fresh()) for gateway in gateways),
        *(gateway.post(CHAT, body) for gateway, body in zip(gateways, chats, strict=True)),
    )
    worker.behaviour = behaviour()


@pytest.fixture
async def gateways(
    pair: list[GatewayProcess], worker: StubWorker
) -> AsyncIterator[list[GatewayProcess]]:
    for gateway in pair:
        await ready(gateway)
    yield pair
    worker.behaviour = behaviour()


async def ready(gateway: GatewayProcess) -> None:
    for name in ("emb", "gen"):
        await gateway.ready(name, seconds=60)

    async def up() -> bool:
        return await gateway.metric("sluice_gateway_redis_up") == 1

    await until(up, 60, "redis up")


def fresh() -> str:
    return f"text {next(_numbers)}"


async def ask(gateway: GatewayProcess, text: str) -> Reply:
    return await gateway.post(PATH, {"model": "emb", "input": text})


def is_right(reply: Reply, text: str) -> bool:
    return reply.status == 200 and reply.json()["data"][0]["embedding"] == list(vector_of(text))


async def counted(gateway: GatewayProcess, outcome: str) -> float:
    return await gateway.metric(LEASES, outcome=outcome)


async def lead(gateway: GatewayProcess, worker: StubWorker, text: str) -> "asyncio.Task[Reply]":
    """Ask, and return once the worker computes."""
    before = len(worker.seen)
    task = asyncio.create_task(ask(gateway, text))
    await until(lambda: len(worker.seen) > before, 60, "the worker is asked")
    return task


@contextmanager
def followers(redis: RedisServer) -> Iterator[Callable[[], Awaitable[None]]]:
    """Gives a function that waits until a gateway looks how another's lease stands."""

    def wait(monitor: Monitor) -> None:
        deadline = time.monotonic() + 60
        for told in monitor.listen():
            if told["command"].startswith("GET ") and told["command"].endswith(":lease"):
                return
            assert time.monotonic() < deadline, "nobody follows"

    with redis.client() as client, client.monitor() as monitor:
        yield lambda: asyncio.to_thread(wait, monitor)


async def test_what_one_gateway_computes_the_other_waits_for(
    gateways: list[GatewayProcess], worker: StubWorker, redis: RedisServer
) -> None:
    text = fresh()
    worker.behaviour.hold = True
    before = await counted(gateways[1], "followed")
    leading = await lead(gateways[0], worker, text)
    with followers(redis) as followed:
        following = [asyncio.create_task(ask(gateways[1], text)) for _ in range(10)]
        await followed()
    worker.behaviour.hold = False
    replies = await asyncio.gather(*following)
    assert all(is_right(reply, text) for reply in (await leading, *replies))
    assert worker.inputs[text] == 1
    assert await counted(gateways[0], "led") >= 1
    assert await counted(gateways[1], "followed") == before + 1
    # Who came only when the answer was there has it from the cache.
    told = {reply.headers["cache-status"].split("; ")[1].split("=")[0] for reply in replies}
    assert told <= {"fwd", "hit"} and "fwd" in told
    assert (await ask(gateways[1], text)).headers["cache-status"].startswith("Sluice; hit")


async def test_the_leader_s_failure_is_everybody_s(
    gateways: list[GatewayProcess], worker: StubWorker, redis: RedisServer
) -> None:
    text = fresh()
    worker.behaviour.hold = True
    worker.behaviour.refuse = ApiError("internal_error", "Broken.")
    leading = await lead(gateways[0], worker, text)
    with followers(redis) as followed:
        following = asyncio.create_task(ask(gateways[1], text))
        await followed()
    worker.behaviour.hold = False
    reply = await following
    assert (await leading).status == reply.status == 502
    assert reply.json()["error"]["code"] == "upstream_failed"
    assert await counted(gateways[1], "failed") == 1
    asked = [seen for seen in worker.seen if text.encode() in seen.body]
    assert len(asked) == 1


async def test_a_plain_request_waits_for_another_gateway_s_stream(
    gateways: list[GatewayProcess], worker: StubWorker, redis: RedisServer
) -> None:
    """And a stream waits for nobody: it is computed here at once."""
    body = {"model": "gen", "messages": [{"role": "user", "content": fresh()}], "temperature": 0}
    worker.behaviour.hold_at = 2
    before = len(worker.seen)
    async with await gateways[0].client() as client:
        client.send(request(CHAT, {**body, "stream": True}))
        await until(lambda: len(worker.seen) > before, 60, "the worker is asked")
        async with await gateways[1].client() as other:
            other.send(request(CHAT, {**body, "stream": True}))
            await until(lambda: len(worker.seen) > before + 1, 60, "no stream waits")
            before_that = await counted(gateways[1], "followed")
            worker.behaviour.hold_at = None
            assert (await other.reply()).body.endswith(b"data: [DONE]\n\n")
        assert (await client.reply()).body.endswith(b"data: [DONE]\n\n")
    assert await counted(gateways[1], "followed") == before_that
    assert len(worker.seen) == before + 2

    body["messages"] = [{"role": "user", "content": fresh()}]
    worker.behaviour.hold_at = 2
    async with await gateways[0].client() as client:
        client.send(request(CHAT, {**body, "stream": True}))
        await until(lambda: len(worker.seen) > before + 2, 60, "the worker is asked")
        with followers(redis) as followed:
            plain = asyncio.create_task(gateways[1].post(CHAT, body))
            await followed()
        worker.behaviour.hold_at = None
        assert (await plain).status == 200
        await client.reply()
    assert len(worker.seen) == before + 3


async def test_a_leader_whose_caller_leaves_lets_the_others_go_on(
    gateways: list[GatewayProcess], worker: StubWorker
) -> None:
    text = fresh()
    worker.behaviour.hang = True
    before = len(worker.seen)
    async with await gateways[0].client() as client:
        client.send(request(PATH, {"model": "emb", "input": text}))
        await until(lambda: len(worker.seen) > before, 60, "the worker is asked")
        following = asyncio.create_task(ask(gateways[1], text))
        await asyncio.sleep(0)
    worker.behaviour.hang = False
    assert is_right(await following, text)


async def test_who_is_more_urgent_hurries_every_part_of_a_list(
    gateways: list[GatewayProcess], worker: StubWorker
) -> None:
    """One of the two inputs is computed elsewhere first, so they go to the worker one by one."""
    one, two = gateways
    mine, theirs = fresh(), fresh()

    async def wait(normal: int, low: int) -> None:
        async def seen() -> bool:
            told = (await one.services())["list"]["waitingByPriority"]
            return bool(told == {"high": 0, "normal": normal, "low": low})

        await until(seen, 60, f"{normal} normal and {low} low ones wait")

    with (
        StubWorker(Behaviour(limit=1, hang=True)) as here,
        StubWorker(Behaviour(hang=True)) as there,
    ):
        await one.follow([*table(worker), service("list", [here.url])])
        await two.follow([*table(worker), service("list", [there.url])])
        async with await one.client() as busy, await two.client() as other:
            busy.send(request(PATH, {"model": "list", "input": fresh()}))
            other.send(request(PATH, {"model": "list", "input": theirs}))
            await until(lambda: here.running == there.running == 1, 60, "both compute")
            both = {"model": "list", "input": [mine, theirs]}
            listed = asyncio.create_task(one.post(PATH, both, x_sluice_priority="low"))
            await wait(0, 1)
            other.close()
            await wait(0, 2)
            hurrying = asyncio.create_task(one.post(PATH, {"model": "list", "input": mine}))
            await wait(2, 0)
            here.behaviour.hang = False
        assert (await listed).status == (await hurrying).status == 200


async def test_a_refused_input_is_no_concern_of_the_others(
    gateways: list[GatewayProcess], worker: StubWorker
) -> None:
    text = f"too long {fresh()}"
    worker.behaviour.delay = 0.5
    leading = await lead(gateways[0], worker, text)
    reply = await ask(gateways[1], text)
    assert (await leading).status == reply.status == 400
    assert reply.json()["error"]["param"] == "input"


async def test_a_dead_leader_is_waited_for_no_longer_than_is_usual(
    gateways: list[GatewayProcess],
    worker: StubWorker,
    redis: RedisServer,
    tmp_path: Path,
) -> None:
    text = fresh()
    (tmp_path / "secret").write_text((gateways[0].folder.parent / "secret").read_text())
    with running(tmp_path, "c", worker, redis) as mortal:
        await ready(mortal)
        worker.behaviour.hang = True
        leading = await lead(mortal, worker, text)
        assert mortal.process is not None
        mortal.process.kill()
        worker.behaviour.hang = False
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await leading
        with redis.client() as client:
            assert client.keys("*:lease"), "nobody has freed it"
    assert is_right(await ask(gateways[1], text), text)
    assert await counted(gateways[1], "alone") + await counted(gateways[1], "led") >= 1


async def test_without_redis_everybody_computes(worker: StubWorker, tmp_path: Path) -> None:
    text = fresh()
    with running_redis() as redis, running(tmp_path, "d", worker, redis, "25ms") as gateway:
        await ready(gateway)
        redis.freeze()
        worker.behaviour.delay = 0.1
        assert is_right(await ask(gateway, text), text)
        redis.thaw()
    worker.behaviour = behaviour()
