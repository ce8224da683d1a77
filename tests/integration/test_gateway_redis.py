"""The gateway with a real Redis: shared answers; a Redis in trouble is a miss and no error."""

import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway_process import GatewayProcess, service
from tests.support.redis_server import RedisServer
from tests.support.stub_worker import Behaviour, StubWorker, until, vector_of

PATH = "/v1/embeddings"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.close()


@pytest.fixture
def worker() -> Iterator[StubWorker]:
    with StubWorker(Behaviour(digest=f"sha256:{secrets.token_hex(32)}")) as stub:
        yield stub


def gateway(folder: Path, worker: StubWorker, redis: RedisServer) -> GatewayProcess:
    folder.mkdir()
    secret = str(folder.parent / "cache-secret")
    options = ("--redis-url", redis.tcp_url, "--cache-secret", secret)
    options += ("--redis-timeout", "2s")  # On a busy machine 25 ms may well be too short.
    return GatewayProcess(folder, [service("emb", [worker.url])], *options)


async def up(process: GatewayProcess) -> None:
    await process.ready("emb")

    async def redis_up() -> bool:
        return await process.metric("sluice_gateway_redis_up") == 1

    await until(redis_up)


async def test_gateways_share_answers_and_survive_redis(
    tmp_path: Path, worker: StubWorker, redis: RedisServer
) -> None:
    one = {"model": "emb", "input": ["a", "b"]}
    with gateway(tmp_path / "first", worker, redis) as first:
        await up(first)
        assert (await first.post(PATH, one)).status == 200

        await until(lambda: redis.answers() == 2)  # Storing is not waited for by the answer.
    with gateway(tmp_path / "second", worker, redis) as second:
        await up(second)
        reply = await second.post(PATH, {"model": "emb", "input": ["a", "c", "b"]})
        assert 'fwd=partial; stored; detail="2 of 3"' in reply.headers["cache-status"]
        found = [entry["embedding"] for entry in reply.json()["data"]]
        assert found == [vector_of(text).tolist() for text in ("a", "c", "b")]
        assert worker.computed == 3
        assert await second.metric("sluice_gateway_cache_lookups_total", result="redis") == 2

        redis.freeze()
        began = time.monotonic()
        for number in range(20):
            reply = await second.post(PATH, {"model": "emb", "input": f"stopped {number}"})
            assert reply.status == 200
        assert time.monotonic() - began < 30, "none of twenty waited for Redis"
        redis.thaw()
        redis.kill()
        for number in range(20):
            reply = await second.post(PATH, {"model": "emb", "input": f"killed {number}"})
            assert reply.status == 200
        assert '"level":"error"' not in second.log
