"""Bodies count from their first byte until nothing holds them, however their exchange ends."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from sluice_api import wire
from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from tests.support.gateway_process import Client, GatewayProcess, Reply, request, service
from tests.support.stub_worker import Behaviour, StubWorker, until

EMBED, CHAT = "/v1/embeddings", "/v1/chat/completions"
LARGE = "x" * 300_000
OPTIONS = ("--max-receiving-mib", "1")


def behaviour() -> Behaviour:
    return Behaviour(tasks=[Task.EMBEDDINGS, Task.CHAT], words=3)


@pytest.fixture(scope="module")
def worker() -> Iterator[StubWorker]:
    with StubWorker(behaviour()) as stub:
        yield stub


@pytest.fixture(scope="module")
def running(
    worker: StubWorker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    services = [
        service("m", [worker.url]),
        service("asleep", []),
        service("late", [], limits=wire.LimitRules(start_timeout_seconds=0.5)),
    ]
    with GatewayProcess(tmp_path_factory.mktemp("bodies"), services, *OPTIONS) as started:
        yield started


@pytest.fixture
async def gateway(running: GatewayProcess, worker: StubWorker) -> AsyncIterator[GatewayProcess]:
    worker.behaviour = behaviour()
    await running.ready("m")
    yield running
    worker.behaviour = behaviour()
    await empty(running)


async def held(gateway: GatewayProcess) -> float:
    return await gateway.metric("sluice_gateway_body_bytes")


async def empty(gateway: GatewayProcess) -> None:
    """Asks seldom: each time makes garbage, and its collector must not be what lets go."""
    for attempt in range(40):
        if await held(gateway) == 0:
            return
        await asyncio.sleep(min(1.0, 0.05 * attempt))
    raise AssertionError(f"{await held(gateway)} bytes of bodies still count")


async def counting(gateway: GatewayProcess, count: int) -> None:
    async def there() -> bool:
        return await held(gateway) >= count * len(LARGE)

    await until(there, 60, f"{count} bodies count")


def embedding(text: str, model: str = "m") -> dict[str, object]:
    return {"model": model, "input": text + LARGE}


def chat(text: str, *, stream: bool = False) -> dict[str, object]:
    messages = [{"role": "user", "content": text + LARGE}]
    return {"model": "m", "messages": messages, "temperature": 0, "stream": stream}


@pytest.fixture(params=["fast", "ordinary"])
async def connect(
    request: pytest.FixtureRequest, gateway: GatewayProcess
) -> Callable[[], Awaitable[Client]]:
    async def connected() -> Client:
        client = await gateway.client()
        if request.param == "ordinary":
            assert (await client.get("/livez")).status == 200
        return client

    return connected


Connect = Callable[[], Awaitable[Client]]


async def ask(connect: Connect, path: str, body: object, **headers: str) -> Reply:
    async with await connect() as client:
        return await client.post(path, body, **headers)


async def test_bodies_that_wait_are_bounded_together(
    gateway: GatewayProcess, connect: Connect
) -> None:
    waiting = [await connect() for _ in range(3)]
    for number, client in enumerate(waiting):
        client.send(request(EMBED, embedding(f"bounded {number}", "asleep")))
        await counting(gateway, number + 1)
    async with await connect() as refused:
        reply = await refused.post(EMBED, embedding("one too many", "asleep"))
    assert (reply.status, reply.json()["error"]["code"]) == (503, "receiving_too_much")
    assert int(reply.headers["retry-after"]) >= 1
    small = await ask(connect, EMBED, {"model": "m", "input": "small ones still pass"})
    assert small.status == 200
    for client in waiting:
        client.close()
    await empty(gateway)
    assert (await ask(connect, EMBED, embedding("room again"))).status == 200


async def test_nothing_counts_once_it_is_answered(
    gateway: GatewayProcess, worker: StubWorker, connect: Connect
) -> None:
    for _ in range(2):  # Computed, then found.
        assert (await ask(connect, EMBED, embedding("answered"))).status == 200
        await empty(gateway)
    first, second, streamed = (secrets.token_hex(8) for _ in range(3))
    for key in (first, first, second):
        reply = await ask(connect, EMBED, embedding("repeated"), idempotency_key=key)
        assert reply.status == 200
        await empty(gateway)
    sampled = {**chat("sampled"), "temperature": 1}
    assert (await ask(connect, CHAT, sampled)).status == 200
    await empty(gateway)
    for given in ({}, {"idempotency_key": streamed}):
        for body in (chat(f"told {given}", stream=True), {**sampled, "stream": True}):
            assert (await ask(connect, CHAT, body, **given)).status in (200, 422)
            await empty(gateway)


async def test_nothing_counts_once_it_has_failed(
    gateway: GatewayProcess, worker: StubWorker, connect: Connect
) -> None:
    assert (await ask(connect, EMBED, embedding("nobody", "unknown"))).status == 404
    assert (await ask(connect, EMBED, {"model": "m", "inptu": LARGE})).status == 400
    await empty(gateway)
    late = await ask(connect, EMBED, embedding("held", "late"))
    assert late.status in (503, 504)
    await empty(gateway)
    worker.behaviour.refuse = ApiError("internal_error", "Broken.")
    for body in (embedding("broken"), embedding("broken again")):
        assert (await ask(connect, EMBED, body)).status >= 500
    assert (await ask(connect, CHAT, chat("broken", stream=True))).status >= 500
    await empty(gateway)


@pytest.mark.parametrize("streamed", [False, True])
async def test_nothing_counts_once_its_callers_have_gone(
    gateway: GatewayProcess, worker: StubWorker, connect: Connect, streamed: bool
) -> None:
    """Who joins holds its own body, and for as long that of whom it joined."""
    worker.behaviour.hang = True
    clients = [await connect() for _ in range(2)]
    text = secrets.token_hex(8)
    for number, client in enumerate(clients):
        client.send(request(CHAT, chat(text, stream=streamed)))
        await counting(gateway, number + 1)
    clients[0].close()
    clients[1].close()
    await empty(gateway)
    worker.behaviour.hang, worker.behaviour.hold = False, True
    key = secrets.token_hex(8)
    clients = [await connect() for _ in range(2)]
    for number, client in enumerate(clients):
        client.send(request(CHAT, chat(key, stream=streamed), idempotency_key=key))
        await counting(gateway, number + 1)
    for client in clients:
        client.close()
    worker.behaviour.hold = False  # A plain answer to a key is finished for who asks again.
    await empty(gateway)


async def test_the_leader_goes_and_who_joined_is_answered(
    gateway: GatewayProcess, worker: StubWorker, connect: Connect
) -> None:
    worker.behaviour.hold = True
    first, second = await connect(), await connect()
    text = secrets.token_hex(8)
    for number, client in enumerate((first, second)):
        client.send(request(EMBED, embedding(text)))
        await counting(gateway, number + 1)
    first.close()
    worker.behaviour.hold = False
    assert (await second.reply()).status == 200
    second.close()
    await empty(gateway)


async def test_nothing_counts_once_a_start_was_waited_for(
    worker: StubWorker, tmp_path: Path
) -> None:
    """What waits for a start begins again, for only then it is known what it is answered by."""
    worker.behaviour = behaviour()
    with GatewayProcess(tmp_path, [service("woken", [])], *OPTIONS) as gateway:
        clients = [await gateway.client() for _ in range(3)]
        for number, client in enumerate(clients):
            client.send(request(EMBED, embedding(f"woken {number}", "woken")))
            await counting(gateway, number + 1)
        await gateway.follow([service("woken", [worker.url])])
        for client in clients:
            assert (await client.reply()).status == 200
            client.close()
        await empty(gateway)
