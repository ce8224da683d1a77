"""Streams with an ``Idempotency-Key``, on both edges: joined while they run, then replayed."""

import asyncio
import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from sluice_api.tasks import Task
from tests.support.gateway_process import Client, GatewayProcess, request, service
from tests.support.stub_worker import Behaviour, StubWorker, until

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def worker() -> Iterator[StubWorker]:
    with StubWorker(Behaviour(tasks=[Task.CHAT], words=6)) as stub:
        yield stub


@pytest.fixture(scope="module")
def gateway(
    worker: StubWorker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path_factory.mktemp("g"), [service("gen", [worker.url])]) as process:
        asyncio.run(process.ready("gen"))
        yield process


def sampled(key: str, **more: Any) -> bytes:
    """A request whose answer no cache keeps."""
    content = {"role": "user", "content": f"tell me of {key}"}
    body = {"model": "gen", "messages": [content], "temperature": 0.9, "stream": True} | more
    return request(PATH, body, idempotency_key=key)


async def sender(gateway: GatewayProcess, edge: str) -> Client:
    client = await gateway.client()
    if edge == "ordinary":
        await client.get("/livez")
    return client


@pytest.mark.parametrize("edge", ["fast", "ordinary"])
async def test_a_sampled_stream_is_joined_and_then_replayed(
    gateway: GatewayProcess, worker: StubWorker, edge: str
) -> None:
    key, seen = secrets.token_hex(4), len(worker.seen)
    before = await _joined(gateway)
    worker.behaviour.hold_at = 3
    first, second, third = [await sender(gateway, edge) for _ in range(3)]
    first.send(sampled(key))
    await until(lambda: len(worker.seen) == seen + 1)
    second.send(sampled(key))
    await until(lambda: _more_joined(gateway, before), what="nobody joined")
    worker.behaviour.hold_at = None
    replies = [await first.reply(), await second.reply()]
    assert replies[0].body == replies[1].body and replies[0].body.endswith(b"data: [DONE]\n\n")
    third.send(sampled(key))
    again = await third.reply()
    assert again.body == replies[0].body
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["content-type"] == "text/event-stream"
    assert len(worker.seen) == seen + 1
    third.send(sampled(key, stream=False))
    refused = await third.reply()
    assert (refused.status, json.loads(refused.body)["error"]["code"]) == (
        *(422, "idempotency_key_reused"),
    )
    for client in (first, second, third):
        client.close()


async def _joined(gateway: GatewayProcess) -> float:
    return await gateway.metric("sluice_gateway_idempotent_requests_total", outcome="joined")


async def _more_joined(gateway: GatewayProcess, before: float) -> bool:
    return await _joined(gateway) > before


async def test_a_stream_that_everybody_has_left_is_stopped(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    key, seen = secrets.token_hex(4), len(worker.seen)
    worker.behaviour.hold_at = 3
    clients = [await sender(gateway, edge) for edge in ("fast", "ordinary")]
    for client in clients:
        client.send(sampled(key))
        await client.reader.readuntil(b"data: ")
    assert len(worker.seen) == seen + 1
    for client in clients:
        client.close()
    await until(lambda: worker.running == 0, what="the worker writes on")
    worker.behaviour.hold_at = None
    async with await gateway.client() as client:
        client.send(sampled(key))
        assert b"[DONE]" in (await client.reply()).body
    assert len(worker.seen) == seen + 2
