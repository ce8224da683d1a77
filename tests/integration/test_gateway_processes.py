"""Several gateway processes on one port: one admin port, one sum, none lost with another."""

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from sluice_api import wire
from tests.support.gateway_process import ROOT, Client, GatewayProcess, service
from tests.support.redis_server import running_redis
from tests.support.stub_worker import Behaviour, StubWorker

PATH = "/v1/embeddings"
PROCESSES = 3
REQUESTS = "sluice_gateway_requests_total"


@pytest.fixture(scope="module")
def options() -> tuple[str, ...]:
    return ("--processes", str(PROCESSES))


def body(text: str) -> dict[str, str]:
    return {"model": "emb", "input": text}


def children(gateway: GatewayProcess) -> list[psutil.Process]:
    assert gateway.process is not None
    return psutil.Process(gateway.process.pid).children()


async def server_of(gateway: GatewayProcess, client: Client) -> psutil.Process:
    """The child at the other end of a connection that has been answered."""
    port = client.writer.get_extra_info("sockname")[1]
    async with asyncio.timeout(60):
        while True:  # A list that changes while the kernel tells it may lack some.
            for child in children(gateway):
                with contextlib.suppress(psutil.NoSuchProcess):
                    for connection in child.net_connections("tcp"):
                        if connection.raddr and connection.raddr.port == port:
                            return child
            await asyncio.sleep(0.01)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def spread(gateway: GatewayProcess) -> AsyncIterator[list[Client]]:
    """Connections of which not all are at one process."""
    clients: list[Client] = []
    try:
        seen: set[psutil.Process] = set()
        while len(seen) < 2:
            assert len(clients) < 500, "one process takes all connections"
            fresh = [await gateway.client() for _ in range(8)]
            clients += fresh
            for client in fresh:
                assert (await client.get("/livez")).status == 200
                seen.add(await server_of(gateway, client))
        yield clients
    finally:
        for client in clients:
            client.close()


async def ready(gateway: GatewayProcess) -> None:
    async def all_there() -> bool:
        return await gateway.metric("sluice_gateway_processes") == PROCESSES

    await until(all_there)
    await gateway.ready("emb", seconds=60)


async def test_what_the_metrics_and_the_demand_say_is_what_the_client_counted(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    await ready(gateway)
    before = await gateway.metric(REQUESTS, service="emb", status="200")
    records: list[wire.Demand] = []
    reading = asyncio.create_task(gateway.demand(records))
    await until(lambda: _true(bool(records)))  # Who is told from now on is told all.
    async with spread(gateway) as clients:
        replies = await asyncio.gather(
            *(client.post(PATH, body(f"sum {n}")) for n, client in enumerate(clients))
        )
        assert {reply.status for reply in replies} == {200}
        # The same again is in the cache of some of them, and no demand there.
        again = await asyncio.gather(
            *(client.post(PATH, body(f"sum {n}")) for n, client in enumerate(clients))
        )
        hits = sum("; hit" in reply.headers["cache-status"] for reply in again)
        total = 2 * len(clients)
        assert await gateway.metric(REQUESTS, service="emb", status="200") == before + total
        assert await gateway.metric("sluice_gateway_connections") >= len(clients)

        async def told() -> bool:
            return sum(r.arrivals + r.cache_hits for r in records) >= total

        await until(told)
    reading.cancel()
    assert sum(record.cache_hits for record in records) == hits == len(clients)
    assert sum(record.arrivals for record in records) == len(clients)
    assert sum(record.completions for record in records) == len(clients)
    assert len({record.gateway for record in records}) == 1
    sequences = [record.sequence for record in records]
    assert sequences == sorted(set(sequences))
    last = [record for record in records if record.service == "emb"][-1]
    assert last.ready_endpoints == 1 and len(last.workers) == 1


async def test_requests_held_by_several_processes_are_told_as_one_wake(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    services = [service("emb", [worker.url]), service("asleep", [])]
    await gateway.follow(services, ready=False)
    await ready(gateway)
    records: list[wire.Demand] = []
    reading = asyncio.create_task(gateway.demand(records))
    async with spread(gateway) as clients:
        for client in clients:
            client.send(_held())

        async def all_held() -> bool:
            return any(r.service == "asleep" and r.held == len(clients) for r in records)

        await until(all_held)
        woken = [record for record in records if record.wake]
        assert {record.service for record in woken} == {"asleep"}
        listed = (await gateway.services())["asleep"]
        assert listed["waiting"] == len(clients)
        # A service that is taken out is so for all of them.
        await gateway.follow(services[:1], ready=False)
        assert {(await client.reply()).status for client in clients} == {404}
    reading.cancel()


def _held() -> bytes:
    content = b'{"model":"asleep","input":"x"}'
    return (
        f"POST {PATH} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    ).encode() + content


async def test_the_admin_port_knows_the_supervisor_and_every_process(
    gateway: GatewayProcess,
) -> None:
    await ready(gateway)
    told = (await gateway.get("/internal/services", admin=True)).json()
    assert {f"Edge of process {n + 1}" for n in range(PROCESSES)} <= told["parts"].keys()
    assert all(f"Process {n + 1}" in told["parts"] for n in range(PROCESSES))
    assert [entry["name"] for entry in told["services"]] == ["emb"]
    assert len(told["services"][0]["endpoints"]) == 1
    detail = await gateway.get("/readyz", admin=True)
    assert (detail.status, detail.json()["ready"]) == (200, True)
    assert (await gateway.get("/nothing", admin=True)).status == 404
    assert (await gateway.get("/metrics", admin=True, method="POST")).status == 405
    page = (await gateway.get("/metrics", admin=True)).body.decode().split("\n")
    heads = [line for line in page if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))


async def test_what_one_process_is_told_on_the_admin_port_all_do(gateway: GatewayProcess) -> None:
    await ready(gateway)
    async with spread(gateway) as clients:
        one_each = list({await server_of(gateway, client): client for client in clients}.values())
        assert len(one_each) > 1

        async def hits() -> list[bool]:
            replies = [await client.post(PATH, body("kept")) for client in one_each]
            return ["; hit" in reply.headers["cache-status"] for reply in replies]

        await hits()
        assert all(await hits())
        async with await Client.open(gateway.admin_port) as admin:
            told = await admin.post("/internal/cache/invalidate", {"service": "emb"})
            assert told.status == 200, told.body
            refused = await admin.post("/internal/cache/invalidate", {})
            assert refused.status == 400 and b"missing_field" in refused.body
        assert not any(await hits())


async def test_a_killed_process_takes_its_own_connections_along_and_nothing_else(
    gateway: GatewayProcess,
) -> None:
    await ready(gateway)
    ends = await gateway.metric("sluice_gateway_process_ends_total")
    async with spread(gateway) as clients:
        servers = [await server_of(gateway, client) for client in clients]
        victim = servers[0]
        counted = await gateway.metric(REQUESTS, service="emb")
        answered = {"others": 0, "victim's": 0}
        over = asyncio.Event()

        async def ended() -> bool:
            return await gateway.metric("sluice_gateway_process_ends_total") == ends + 1

        async def ask_on(number: int, client: Client) -> None:
            turn = 0
            while not over.is_set():
                turn += 1
                try:
                    reply = await client.post(PATH, body(f"{number} {turn}"))
                except (ConnectionError, asyncio.IncompleteReadError):
                    assert servers[number] == victim, gateway.log
                    return
                assert reply.status == 200
                answered["victim's" if servers[number] == victim else "others"] += 1

        async with asyncio.TaskGroup() as group:
            for number, client in enumerate(clients):
                group.create_task(ask_on(number, client))
            await until(lambda: _true(answered["others"] > 50 and answered["victim's"] > 5))
            victim.kill()
            at_the_kill = answered["others"]
            for number in range(20):  # New connections never notice.
                assert (await gateway.post(PATH, body(f"new {number}"))).status == 200
            await until(lambda: _true(answered["others"] > at_the_kill + 50))
            await until(ended)
            await ready(gateway)
            over.set()
    assert await ended()
    assert len(children(gateway)) == PROCESSES
    # What the others counted is all there, and what was seen of the dead one has not gone back.
    assert await gateway.metric(REQUESTS, service="emb") >= counted + answered["others"] + 20


async def _true(value: bool) -> bool:
    return value


async def test_sigterm_drains_every_process(tmp_path: Path) -> None:
    with StubWorker(Behaviour(hold=True)) as slow:
        options = ("--processes", "2", "--drain-delay", "200ms")
        with GatewayProcess(tmp_path, [service("emb", [slow.url])], *options) as gateway:
            await gateway.ready("emb", seconds=60)
            clients = [await gateway.client() for _ in range(8)]
            for number, client in enumerate(clients):
                client.send(_plain(f"drain {number}"))

            await until(lambda: _true(slow.running == len(clients)))
            pids = [child.pid for child in children(gateway)]
            assert gateway.process is not None
            gateway.process.send_signal(signal.SIGTERM)
            await until(lambda: _refused(gateway))
            slow.behaviour.hold = False
            replies = await asyncio.gather(*(client.reply() for client in clients))
            assert {reply.status for reply in replies} == {200}
            assert await asyncio.to_thread(gateway.process.wait, 30) == 0
            assert not any(psutil.pid_exists(pid) for pid in pids)
            for client in clients:
                client.close()


async def test_a_gateway_that_drains_takes_no_new_connections(
    worker: StubWorker, tmp_path: Path
) -> None:
    options = ("--processes", "2", "--drain-delay", "0ms", "--drain-grace", "120s")
    with GatewayProcess(tmp_path, [service("emb", [worker.url])], *options) as gateway:
        await gateway.ready("emb", seconds=60)
        assert gateway.process is not None
        client = await gateway.client()
        worker.behaviour.hang = True
        try:
            client.send(_plain("held while the others go"))
            await until(lambda: _true(worker.running == 1))
            gateway.process.send_signal(signal.SIGTERM)
            await until(lambda: _refused(gateway))
            assert gateway.process.poll() is None and worker.running == 1
        finally:
            worker.behaviour.hang = False
            client.close()  # With it goes the last that was waited for.
        assert await asyncio.to_thread(gateway.process.wait, 30) == 0


async def _refused(gateway: GatewayProcess) -> bool:
    try:
        client = await gateway.client()
    except ConnectionRefusedError:
        return True
    client.close()
    return False


def _plain(text: str) -> bytes:
    content = f'{{"model":"emb","input":"{text}"}}'
    return (
        f"POST {PATH} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n{content}"
    ).encode()


async def test_children_end_with_a_supervisor_that_was_killed_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with GatewayProcess(tmp_path, [], "--processes", "2") as gateway:
        found = children(gateway)
        assert len(found) == 2 and gateway.process is not None
        gateway.process.kill()
        gone, alive = await asyncio.to_thread(psutil.wait_procs, found, 30)
        assert not alive and len(gone) == 2
    assert not list(temporary.iterdir())


async def test_processes_read_each_others_answers_without_being_given_a_secret(
    tmp_path: Path, worker: StubWorker
) -> None:
    with running_redis() as redis:
        options = ("--processes", "2", "--redis-url", redis.unix_url, "--cache-mib", "0")
        table = [service("emb", [worker.url], answer_digest=worker.behaviour.digest)]
        with GatewayProcess(tmp_path, table, *options) as gateway:
            await gateway.ready("emb", seconds=60)
            async with spread(gateway) as clients:
                assert (await clients[0].post(PATH, body("shared"))).status == 200

                async def all_find_it() -> bool:
                    replies = [await client.post(PATH, body("shared")) for client in clients]
                    return all("; hit" in reply.headers["cache-status"] for reply in replies)

                await until(all_find_it)
                asked = len(worker.seen)
                assert await all_find_it()
                assert len(worker.seen) == asked


async def test_two_signals_end_the_waiting(tmp_path: Path) -> None:
    table = [service("asleep", [])]
    with GatewayProcess(tmp_path, table, "--processes", "2") as gateway:
        async with await gateway.client() as client:
            client.send(_held())

            async def held() -> bool:
                return bool((await gateway.services())["asleep"]["waiting"])

            await until(held)
            assert gateway.process is not None

            async def draining() -> bool:
                return (await gateway.get("/readyz", admin=True)).status == 503

            # Also a child that has not run since the first of them hears both.
            found = children(gateway)
            for child in found:
                child.suspend()

            async def suspended() -> bool:
                return all(child.status() == psutil.STATUS_STOPPED for child in found)

            # One that has not run since may still be told of the lower number first: SIGTERM.
            await until(suspended)
            gateway.process.send_signal(signal.SIGTERM)
            await until(draining)
            gateway.process.send_signal(signal.SIGTERM)

            async def both_pending() -> bool:
                return all(_signals_pending(child) == 2 for child in found)

            await until(both_pending)
            for child in found:
                child.resume()
            assert await asyncio.to_thread(gateway.process.wait, 20) == 0


def _signals_pending(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"^ShdPnd:\s*(\w+)", status, re.MULTILINE)
    assert found is not None
    return int(found[1], 16).bit_count()


def refused(table: Path, *options: str) -> str:
    """What a gateway says that cannot start as it is told to."""
    table.write_text("services: []\n")
    command = (sys.executable, "-m", "sluice_gateway", "--discovery", f"static:{table}")
    ended = subprocess.run(
        [*command, "--processes", "2", *options],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert ended.returncode == 78 and "Traceback" not in ended.stderr
    return ended.stderr


def test_a_taken_port_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = refused(tmp_path / "table.yaml", "--port", port, "--admin-port", "0")
        assert port in told and "--port" in told


def test_what_no_process_can_start_with_is_said_once(tmp_path: Path) -> None:
    ports = ("--port", "0", "--admin-port", "0")
    told = refused(tmp_path / "table.yaml", *ports, "--redis-url", "http://x")
    assert told.count("sluice-gateway: ") == 1 and "redis" in told
