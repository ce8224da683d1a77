"""Requests of many readings behind a proxy: what it lets through, the gateway reads as it did.

A proxy shares its connections to the gateway among clients. Were a request's end seen elsewhere by
the two, what is behind it would be carried out for nobody, or answered to the next client.
"""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from tests.support.gateway_process import Client, GatewayProcess, request
from tests.support.http_fronts import FRONTS, running_front
from tests.support.smuggling import POST, VECTORS, hidden_by_a_length
from tests.support.stub_worker import StubWorker, vector_of

PATH = "/v1/embeddings"
AT_ONCE = 130
SECONDS = 60.0


@pytest.fixture(scope="module")
def options() -> tuple[str, ...]:
    return ("--body-timeout", "3s")


@pytest.fixture(params=FRONTS)
async def front(
    request: pytest.FixtureRequest,
    gateway: GatewayProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[int]:
    folder = tmp_path_factory.mktemp(request.param)
    with running_front(request.param, folder, gateway.port) as port:
        yield port


def asked(text: str) -> bytes:
    return request(PATH, {"model": "emb", "input": text}, cache_control="no-store")


async def told(port: int, data: bytes) -> bytes:
    """Everything that comes back until the proxy closes."""
    async with asyncio.timeout(SECONDS), await Client.open(port) as client:
        client.send(data)
        try:
            return await client.reader.read(-1)
        except ConnectionError:
            return b""


async def test_nothing_is_read_in_two_ways(front: int, worker: StubWorker) -> None:
    attacks = {
        **{name: data + asked(f"behind {name}") for name, data in VECTORS.items()},
        **hidden_by_a_length(lambda name: asked(f"behind {name}")),
    }
    assert len(attacks) >= 350
    harmless = POST + b"content-length: 3\r\n\r\nabc" + asked("behind nothing bad")
    assert b"HTTP/1.1 200" in await told(front, harmless), "what is behind is passed on"
    assert b"behind nothing bad" in worker.seen[-1].body
    names = list(attacks)
    for start in range(0, len(names), AT_ONCE):
        group = names[start : start + AT_ONCE]
        seen = len(worker.seen)
        answers = await asyncio.gather(*[told(front, attacks[name]) for name in group])
        async with await Client.open(front) as client:
            for number in range(5):  # Of somebody else, over the same connections to the gateway.
                text = f"innocent {start} {number}"
                client.send(asked(text))
                reply = await client.reply(timeout=SECONDS)
                assert (reply.status, group) == (200, group)
                assert reply.json()["data"][0]["embedding"] == vector_of(text).tolist(), group
        done = b"\n".join(each.body for each in worker.seen[seen:]).decode("latin-1")
        for name, answer in zip(group, answers, strict=True):
            # What the worker was asked for is what the proxy has forwarded, and so passed on.
            carried_out = len(re.findall(re.escape(f'"behind {name}"'), done))
            assert carried_out <= len(re.findall(rb"HTTP/1\.1 200", answer)), (name, answer)
