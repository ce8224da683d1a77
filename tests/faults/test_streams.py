"""Streams whose worker is killed or stopped, whose Redis or gateway goes: never a false end."""

import asyncio
import json
import secrets
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sluice_api import wire
from sluice_api.tasks import Task
from tests.support.event_stream import DONE, EventStream
from tests.support.gateway_process import Client, GatewayProcess, service
from tests.support.redis_server import RedisServer, running_redis
from tests.support.stub_process import StubProcess
from tests.support.stub_worker import Behaviour, StubWorker, until

CHAT = "/v1/chat/completions"
TASKS = ["text-generation", "chat"]
CUT = "sluice_gateway_streams_cut_total"


def chat(text: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "gen", "messages": messages, "stream": True, "temperature": 0} | more


async def connect(gateway: GatewayProcess, *, ordinary: bool) -> Client:
    client = await gateway.client()
    if ordinary:
        await client.get("/livez")
    return client


def writes(**more: Any) -> Behaviour:
    return Behaviour(tasks=[Task.TEXT_GENERATION, Task.CHAT], **more)


async def all_wait(gateway: GatewayProcess, count: int) -> bool:
    told = (await gateway.get("/internal/services", admin=True)).json()["parts"]["Flights"]
    return f"{count} waiting" in told


def last_error(events: list[str]) -> str:
    code: str = json.loads(events[-1].removeprefix("data: "))["error"]["code"]
    return code


@pytest.mark.parametrize("ordinary", [False, True])
async def test_worker_killed_in_the_middle(tmp_path: Path, ordinary: bool) -> None:
    with (
        StubProcess(tasks=TASKS, words=100_000, pace=0.02) as killed,
        StubWorker(writes()) as other,
        GatewayProcess(tmp_path, [service("gen", [killed.url])]) as gateway,
    ):
        await gateway.ready("gen")
        clients = [await connect(gateway, ordinary=ordinary) for _ in range(6)]
        # Two questions, three who ask each; one of them wants no stream.
        bodies = [chat("a"), chat("a"), chat("b"), chat("b")]
        streams = [
            await EventStream.open(client, CHAT, body)
            for client, body in zip(clients, bodies, strict=False)
        ]
        plain = [
            asyncio.create_task(client.post(CHAT, chat(text, stream=False)))
            for client, text in zip(clients[4:], "ab", strict=True)
        ]
        for stream in streams:
            for _ in range(5):
                await stream.event()
        await until(partial(all_wait, gateway, 6), what="all six wait for the two answers")
        killed.signal(signal.SIGKILL)
        for stream in streams:
            events = await stream.rest()
            assert last_error(events) == "upstream_failed" and not stream.complete
            assert f"data: {DONE}" not in events
        assert [reply.status for reply in await asyncio.gather(*plain)] == [502, 502]
        assert await gateway.metric(CUT, service="gen", cause="upstream_failed") == 4
        assert await gateway.metric("sluice_gateway_streams") == 0
        await gateway.follow([service("gen", [other.url])])
        async with await connect(gateway, ordinary=ordinary) as client:
            again = await EventStream.open(client, CHAT, chat("a"))
            assert again.headers["cache-status"] == "Sluice; fwd=miss"
            await again.text()
        for client in clients:
            client.close()
        assert '"level":"error"' not in gateway.log


@pytest.mark.parametrize("ordinary", [False, True])
async def test_worker_stopped_in_the_middle(tmp_path: Path, ordinary: bool) -> None:
    limits = wire.LimitRules(token_timeout_seconds=1.0)
    with (
        StubProcess(tasks=TASKS, words=100_000, pace=0.002) as stopped,
        GatewayProcess(tmp_path, [service("gen", [stopped.url], limits=limits)]) as gateway,
    ):
        await gateway.ready("gen")
        async with await connect(gateway, ordinary=ordinary) as client:
            stream = await EventStream.open(client, CHAT, chat("a"))
            await stream.event()
            stopped.signal(signal.SIGSTOP)
            events = await stream.rest()
        assert last_error(events) in ("deadline_exceeded", "upstream_failed")
        assert not stream.complete


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


@pytest.mark.parametrize("ordinary", [False, True])
async def test_another_gateway_replays_from_redis(
    tmp_path: Path, redis: RedisServer, ordinary: bool
) -> None:
    secret = tmp_path / "secret"
    options = ("--redis-url", redis.unix_url, "--cache-secret", str(secret))
    options += ("--redis-timeout", "5s")  # However busy the machine is.
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with (
        StubWorker(writes(words=30)) as worker,
        GatewayProcess(folders[0], [service("gen", [worker.url])], *options) as one,
        GatewayProcess(folders[1], [service("gen", [worker.url])], *options) as two,
    ):
        texts = []
        for gateway in (one, two):
            await gateway.ready("gen")
            async with await connect(gateway, ordinary=ordinary) as client:
                stream = await EventStream.open(client, CHAT, chat("kept"))
                texts.append(await stream.text())
                status = stream.headers["cache-status"]
            if gateway is one:
                await until(lambda: redis.answers() == 1)
        assert status.startswith("Sluice; hit")
        assert texts[0] == texts[1]
        assert len(worker.seen) == 1


@pytest.mark.parametrize("ordinary", [False, True])
async def test_redis_gone_in_the_middle_costs_nothing(
    tmp_path: Path, redis: RedisServer, ordinary: bool
) -> None:
    with (
        StubWorker(writes(words=30, hold_at=10)) as worker,
        GatewayProcess(
            tmp_path, [service("gen", [worker.url])], "--redis-url", redis.unix_url
        ) as gateway,
    ):
        await gateway.ready("gen")
        async with await connect(gateway, ordinary=ordinary) as client:
            stream = await EventStream.open(client, CHAT, chat("a"))
            await stream.event()
            redis.kill()
            worker.behaviour.hold_at = None
            text = await stream.text()
            again = await EventStream.open(client, CHAT, chat("a"))
            assert again.headers["cache-status"].startswith("Sluice; hit"), "in process"
            assert await again.text() == text


@pytest.mark.parametrize("ordinary", [False, True])
async def test_drain_lets_streams_finish(tmp_path: Path, ordinary: bool) -> None:
    with (
        StubWorker(writes(words=50, pace=0.02)) as worker,
        GatewayProcess(tmp_path, [service("gen", [worker.url])]) as gateway,
    ):
        await gateway.ready("gen")
        async with await connect(gateway, ordinary=ordinary) as client:
            stream = await EventStream.open(client, CHAT, chat("a"))
            await stream.event()
            assert gateway.process is not None
            gateway.process.send_signal(signal.SIGTERM)
            await stream.text()
            assert await client.closed()
        assert gateway.process.wait(60) == 0
        assert "cut off" not in gateway.log


@pytest.mark.parametrize("ordinary", [False, True])
async def test_the_end_of_the_grace_is_told(tmp_path: Path, ordinary: bool) -> None:
    with (
        StubWorker(writes(words=10_000, pace=0.02)) as worker,
        GatewayProcess(tmp_path, [service("gen", [worker.url])], "--drain-grace", "1s") as gateway,
    ):
        await gateway.ready("gen")
        async with await connect(gateway, ordinary=ordinary) as client:
            stream = await EventStream.open(client, CHAT, chat("a"))
            await stream.event()
            assert gateway.process is not None
            gateway.process.send_signal(signal.SIGTERM)
            events = await stream.rest()
            assert last_error(events) == "draining" and not stream.complete
        assert gateway.process.wait(60) == 0
        assert '"count":1' in gateway.log
        await until(lambda: worker.running == 0, what="the worker writes on")


async def test_many_who_come_and_go(tmp_path: Path) -> None:
    """Everybody gets the same bytes or a part of them, and nothing is left at the end."""
    with (
        StubWorker(writes(words=60, pace=0.01)) as worker,
        GatewayProcess(tmp_path, [service("gen", [worker.url])]) as gateway,
    ):
        await gateway.ready("gen")
        texts = [secrets.token_hex(4) for _ in range(4)]
        whole: dict[str, set[bytes]] = {text: set() for text in texts}
        parts: list[tuple[str, bytes]] = []
        stayed = {text: asyncio.Event() for text in texts}

        async def follow(number: int) -> None:
            text = texts[number % len(texts)]
            await asyncio.sleep(0.013 * (number % 17))
            async with await connect(gateway, ordinary=number % 2 == 0) as client:
                stream = await EventStream.open(client, CHAT, chat(text))
                followed = "hit" not in stream.headers["cache-status"]  # And not told again.
                if number % 3 == 0:
                    for _ in range(5 + number % 7):
                        await stream.event()
                    await stayed[text].wait()  # Or nobody would be left, and the worker stop.
                    if followed:
                        parts.append((text, stream.raw))
                    return
                stayed[text].set()
                await stream.text()
                if followed:
                    whole[text].add(stream.raw)

        await asyncio.gather(*[follow(number) for number in range(60)])
        for text in texts:
            assert len(whole[text]) == 1, "all who followed one stream got the same bytes"
            (bytes_sent,) = whole[text]
            assert all(bytes_sent.startswith(part) for asked, part in parts if asked == text)
        assert len(worker.seen) == len(texts)
        await until(lambda: worker.running == 0)
        told = (await gateway.get("/internal/services", admin=True)).json()["parts"]
        assert told["Flights"] == "<Flights 0 under way, 0 waiting>"
