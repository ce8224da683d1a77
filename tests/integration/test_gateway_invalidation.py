"""Throwing away what is cached, through the admin port: on every gateway, whatever Redis does."""

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice_api import wire
from sluice_gateway.epochs import MAX_KEPT
from sluice_gateway.invalidation import MAX_FIELDS
from tests.support.gateway_process import Client, GatewayProcess, Reply, service
from tests.support.redis_server import RedisServer, running_redis
from tests.support.stub_worker import StubWorker, until

PATH = "/v1/embeddings"
HEARING = "sluice_gateway_cache_hearing"
_numbers = itertools.count()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def gateways(
    worker: StubWorker, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[GatewayProcess]]:
    folder = tmp_path_factory.mktemp("gateways")
    table = [service(name, [worker.url]) for name in ("one", "two")]
    table += [service("shared", [worker.url], cache=wire.CacheRules(sharing="service"))]
    options = ("--redis-url", redis.tcp_url, "--cache-secret", str(folder / "secret"))
    options += ("--cache-unheard-for", "200ms", "--redis-timeout", "5s")
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    with (
        GatewayProcess(folder / "a", table, *options) as first,
        GatewayProcess(folder / "b", table, *options) as second,
    ):
        yield [first, second]


async def ready(gateways: list[GatewayProcess]) -> None:
    for gateway in gateways:
        for name in ("one", "two", "shared"):
            await gateway.ready(name)
        await hearing(gateway, True)


async def hearing(gateway: GatewayProcess, wanted: bool) -> None:
    async def reached() -> bool:
        return await gateway.metric(HEARING) == wanted

    await until(reached, 60, f"hearing {wanted}")


async def invalidate(gateway: GatewayProcess, **what: str) -> Reply:
    async with await Client.open(gateway.admin_port) as client:
        return await client.post("/internal/cache/invalidate", what)


async def hit(gateway: GatewayProcess, name: str, text: str) -> bool:
    """Whether it is in the cache, in whatever layer."""
    reply = await gateway.post(
        PATH, {"model": name, "input": text}, cache_control="only-if-cached, max-stale"
    )
    assert reply.status in (200, 504)
    return reply.status == 200


async def keep(gateways: list[GatewayProcess], name: str) -> str:
    """Have an answer in the memory of every gateway, as a whole answer too."""
    text = f"text {next(_numbers)}"
    body = {"model": name, "input": text}
    for gateway in gateways:

        async def held(gateway: GatewayProcess = gateway) -> bool:
            replies = [await gateway.post(PATH, body) for _ in range(2)]
            return all("; hit" in reply.headers["cache-status"] for reply in replies)

        await until(held, 60, "held")
    return text


async def gone(gateways: list[GatewayProcess], name: str, text: str) -> None:
    for gateway in gateways:

        async def is_gone(gateway: GatewayProcess = gateway) -> bool:
            return not await hit(gateway, name, text)

        await until(is_gone, 60, "gone")


async def test_one_service_is_forgotten_everywhere_and_the_other_is_not(
    gateways: list[GatewayProcess],
) -> None:
    await ready(gateways)
    one, two = await keep(gateways, "one"), await keep(gateways, "two")
    reply = await invalidate(gateways[0], service="one")
    assert (reply.status, reply.json()) == (200, {"invalidated": True, "known": True})
    assert not await hit(gateways[0], "one", one), "here at once"
    await gone(gateways, "one", one)
    for gateway in gateways:
        assert await hit(gateway, "two", two)
    again = await keep(gateways, "one")
    assert all([await hit(gateway, "one", again) for gateway in gateways])


async def test_a_tenant_is_forgotten_in_all_services(gateways: list[GatewayProcess]) -> None:
    await ready(gateways)
    one, two = await keep(gateways, "one"), await keep(gateways, "two")
    assert (await invalidate(gateways[1], tenant="somebody")).status == 200
    assert await hit(gateways[0], "one", one)
    assert (await invalidate(gateways[1], tenant="anonymous")).status == 200
    await gone(gateways, "one", one)
    await gone(gateways, "two", two)


async def test_what_belongs_to_a_service_is_not_its_callers_to_forget(
    gateways: list[GatewayProcess],
) -> None:
    await ready(gateways)
    one, shared = await keep(gateways, "one"), await keep(gateways, "shared")
    assert (await invalidate(gateways[0], tenant="anonymous")).status == 200
    await gone(gateways, "one", one)
    assert all([await hit(gateway, "shared", shared) for gateway in gateways])


async def test_what_redis_forgets_the_gateways_remember(
    gateways: list[GatewayProcess], redis: RedisServer
) -> None:
    await ready(gateways)
    text = await keep(gateways, "one")
    await invalidate(gateways[0], service="one")
    await gone(gateways, "one", text)
    with redis.client() as client:
        known = client.hgetall("sluice:epochs")
        assert known and all(b"one" not in field for field in known)
        client.flushall()
        await until(lambda: client.hgetall("sluice:epochs").items() >= known.items(), 60, "again")


async def test_while_redis_is_away_memory_is_not_trusted_for_long(
    gateways: list[GatewayProcess], redis: RedisServer
) -> None:
    await ready(gateways)
    text = await keep(gateways, "two")
    redis.kill()
    try:
        for gateway in gateways:
            await hearing(gateway, False)
        await gone(gateways, "two", text)
        reply = await invalidate(gateways[0], service="one")
        assert reply.status == 503 and reply.json()["code"] == "cache_unreachable"
    finally:
        redis.start()
    await ready(gateways)
    with redis.client() as client:
        await until(lambda: len(client.hgetall("sluice:epochs")) >= 1, 60, "told afterwards")


async def test_a_hash_that_hides_what_was_thrown_away_is_not_hearing(
    gateways: list[GatewayProcess], redis: RedisServer
) -> None:
    await ready(gateways)
    stuffing = {f"{number:064x}": "1" for number in range(MAX_FIELDS + 1)}
    with redis.client() as client:
        try:
            client.hset("sluice:epochs", mapping=stuffing)
            for gateway in gateways:
                await hearing(gateway, False)
        finally:
            client.delete("sluice:epochs")
    await ready(gateways)
    await keep(gateways, "two")


async def test_what_is_needless_is_taken_out_of_redis_and_stays_void(
    gateways: list[GatewayProcess], redis: RedisServer
) -> None:
    await ready(gateways)
    kept = await keep(gateways, "two")
    await invalidate(gateways[0], service="one")
    now = int(time.time() * 1000)
    ancient = {f"a{number:063x}": "1" for number in range(100)}
    many = {f"b{number:063x}": str(now - 10_000) for number in range(MAX_KEPT)}
    with redis.client() as client:
        client.hset("sluice:epochs", mapping=ancient | many)
        await until(lambda: client.hlen("sluice:epochs") <= MAX_KEPT // 2, 60, "left out")
    await ready(gateways)
    await gone(gateways, "two", kept)
    await keep(gateways, "two")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_field", "service"),
        ({"namespace": "default"}, "missing_field", "service"),
        ({"service": 3}, "invalid_field", "service"),
        ({"model": "one"}, "unknown_field", "model"),
        (b"not json", "invalid_json", None),
        (b'{"service": "\xff"}', "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
    ],
)
async def test_what_is_not_understood_is_refused(
    gateways: list[GatewayProcess], body: object, code: str, param: str | None
) -> None:
    async with await Client.open(gateways[0].admin_port) as client:
        reply = await client.post("/internal/cache/invalidate", body)
    assert reply.status == 400, reply.body
    assert (reply.json()["code"], reply.json()["param"]) == (code, param)
    assert "`" not in reply.json()["detail"]
    assert reply.headers["content-type"] == "application/problem+json"


def command(gateway: GatewayProcess, *options: str) -> "subprocess.CompletedProcess[str]":
    url = f"http://127.0.0.1:{gateway.admin_port}"
    return subprocess.run(
        [sys.executable, "-m", "sluice_cli", "cache", "invalidate", "--admin-url", url, *options],
        capture_output=True,
        text=True,
        timeout=60,
    )


async def test_the_command_line_throws_away_too(gateways: list[GatewayProcess]) -> None:
    await ready(gateways)
    text = await keep(gateways, "one")
    done = await asyncio.to_thread(command, gateways[0], "--service", "one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "invalidated\n", "")
    await gone(gateways, "one", text)
    done = await asyncio.to_thread(command, gateways[0], "--service", "noe")
    assert (done.returncode, done.stdout) == (0, "invalidated\n")
    assert done.stderr == "The gateway knows no service default/noe.\n"


async def test_the_command_line_says_what_is_in_the_way(gateways: list[GatewayProcess]) -> None:
    nothing = await asyncio.to_thread(command, gateways[0])
    assert nothing.returncode == 1 and "--service, --tenant" in nothing.stderr
    where = ("--admin-url", "http://127.0.0.1:1", "--tenant", "anna")
    nobody = await asyncio.to_thread(command, gateways[0], *where)
    assert nobody.returncode == 1 and "admin port of a gateway" in nobody.stderr
    port = gateways[0].port
    where = ("--admin-url", f"http://127.0.0.1:{port}", "--tenant", "anna")
    elsewhere = await asyncio.to_thread(command, gateways[0], *where)
    assert elsewhere.returncode == 1 and elsewhere.stderr and "Traceback" not in elsewhere.stderr


async def test_without_redis_a_gateway_forgets_alone(worker: StubWorker, tmp_path: Path) -> None:
    with GatewayProcess(tmp_path, [service("one", [worker.url])]) as gateway:
        await gateway.ready("one")
        assert await gateway.metric(HEARING) == 1
        text = await keep([gateway], "one")
        assert (await invalidate(gateway, service="one", namespace="default")).status == 200
        assert not await hit(gateway, "one", text)
