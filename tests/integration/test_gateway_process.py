"""The gateway as a process: starting, options, the table on disk, draining, time limits."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway_process import ROOT, Client, GatewayProcess, request, service
from tests.support.stub_worker import Behaviour, StubWorker, until, vector_of

PATH = "/v1/embeddings"
BODY = {"model": "emb", "input": "x"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLUICE_")}
    return subprocess.run(
        [sys.executable, "-m", "sluice_gateway", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=ROOT,
        env=clean | environment,
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.yaml"
    path.write_text("services: []\n")
    return path


def test_taken_port_is_a_clear_error(table: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for option in ("--port", "--admin-port"):
            other = "--admin-port" if option == "--port" else "--port"
            ended = run("--discovery", f"static:{table}", option, port, other, "0")
            assert ended.returncode == 78
            assert port in ended.stderr and option in ended.stderr
            assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "--discovery"),
        (["--discovery", "etcd:x"], "static:FILE"),
        (["--discovery", "static:/nowhere.yaml"], "/nowhere.yaml"),
        (["--discovery", "static:TABLE", "--host", "0.0.0.0"], "--allow-anonymous-network"),
        (["--discovery", "static:TABLE", "--port", "99999"], "--port"),
        (["--discovery", "static:TABLE", "--redis-url", "http://x"], "redis"),
    ],
)
def test_what_cannot_be_is_refused(table: Path, options: list[str], told: str) -> None:
    options = [option.replace("TABLE", str(table)) for option in options]
    ended = run("--port", "0", "--admin-port", "0", *options)
    assert ended.returncode == 78
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def test_bad_environment_is_refused(table: Path) -> None:
    ended = run(SLUICE_GATEWAY_DISCOVERY=f"static:{table}", SLUICE_GATEWAY_PORT="abc")
    assert ended.returncode == 78
    assert "SLUICE_GATEWAY_PORT" in ended.stderr


@pytest.fixture
def inherited(table: Path) -> Iterator[tuple[int, int]]:
    """A gateway on sockets that this process has opened; their ports."""
    public, admin = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    with public, admin:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "sluice_gateway", "--discovery", f"static:{table}",
                "--fd", str(public.fileno()), "--admin-fd", str(admin.fileno()),
            ],
            pass_fds=(public.fileno(), admin.fileno()),
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )  # fmt: skip
        yield public.getsockname()[1], admin.getsockname()[1]
        process.terminate()
        assert process.wait(60) == 0
        assert process.stdout is not None
        process.stdout.close()


async def test_sockets_may_come_from_the_parent(inherited: tuple[int, int]) -> None:
    for port in inherited:
        async with await Client.open(port) as client:
            assert (await client.get("/livez")).json() == {"live": True}


@pytest.fixture
def worker() -> Iterator[StubWorker]:
    with StubWorker() as stub:
        yield stub


async def test_broken_table_keeps_the_last_good_one(worker: StubWorker, tmp_path: Path) -> None:
    with GatewayProcess(tmp_path, [service("emb", [worker.url])]) as gateway:
        await gateway.ready("emb")
        for broken in ("{", "services: [{name: x}]", 'services: [{name: "a/b", revision: r}]'):
            gateway.table.write_text(broken)

            async def complained(text: str = broken) -> bool:
                told = (await gateway.get("/internal/services", admin=True)).json()["parts"]
                return "failing" in told["StaticDiscovery"]

            await until(complained)
            assert (await gateway.post(PATH, BODY)).status == 200
            assert await gateway.metric("sluice_gateway_discovery_age_seconds") >= 0
        assert "the last good one stays" in gateway.log
        await gateway.follow([service("other", [worker.url])])
        assert (await gateway.post(PATH, BODY)).status == 404


async def test_yaml_table_is_followed(worker: StubWorker, tmp_path: Path) -> None:
    with GatewayProcess(tmp_path, []) as gateway:
        gateway.table.write_text(
            "services:\n- name: emb\n  revision: r1\n  public: true\n"
            f"  endpoints:\n  - {{url: '{worker.url}', revision: r1}}\n"
        )
        began = time.monotonic()
        async with await gateway.client() as client:
            while (await client.post(PATH, BODY)).status != 200:
                assert time.monotonic() - began < 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_drain_finishes_what_was_asked(tmp_path: Path, number: int) -> None:
    with (
        StubWorker(Behaviour(hold=True)) as worker,
        GatewayProcess(tmp_path, [service("emb", [worker.url])]) as gateway,
    ):
        await gateway.ready("emb")
        idle = await gateway.client()
        assert (await idle.post("/v1/embeddings", {})).status == 400
        busy = await gateway.client()
        busy.send(request(PATH, BODY))
        slow = await gateway.client()
        await slow.get("/livez")
        slow.send(request(PATH, {"model": "emb", "input": "fallback"}))
        await until(lambda: worker.running == 2)
        assert gateway.process is not None
        gateway.process.send_signal(number)
        assert await idle.closed()
        with pytest.raises(ConnectionError):
            await refused(gateway)
        worker.behaviour.hold = False
        reply = await busy.reply()
        assert reply.json()["data"][0]["embedding"] == vector_of("x").tolist()
        assert reply.headers["connection"] == "close"
        assert (await slow.reply()).status == 200
        assert gateway.process.wait(60) == 0
        assert "stopped" in gateway.log and "cut off" not in gateway.log
        for client in (idle, busy, slow):
            client.close()


async def refused(gateway: GatewayProcess) -> None:
    """Connect until that is refused."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        (await gateway.client()).close()
        await asyncio.sleep(0.01)


async def test_drain_delay_keeps_serving_but_is_not_ready(
    worker: StubWorker, tmp_path: Path
) -> None:
    table = [service("emb", [worker.url])]
    with GatewayProcess(tmp_path, table, "--drain-delay", "10m") as gateway:
        await gateway.ready("emb")
        client = await gateway.client()
        assert (await client.post(PATH, BODY)).status == 200
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGTERM)

        async def unready() -> bool:
            return (await gateway.get("/readyz")).status == 503

        await until(unready)
        reply = await client.post(PATH, BODY)
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert (await gateway.post(PATH, BODY)).status == 200
        assert gateway.terminate() == 0, "asked twice it does not wait"
        client.close()


async def test_grace_time_ends(tmp_path: Path) -> None:
    with (
        StubWorker(Behaviour(hang=True)) as worker,
        GatewayProcess(tmp_path, [service("emb", [worker.url])], "--drain-grace", "1s") as gateway,
    ):
        await gateway.ready("emb")
        clients = [await gateway.client() for _ in range(4)]
        for ordinary in clients[2:]:
            await ordinary.get("/livez")
        for number, client in enumerate(clients):
            asked = request(PATH, {"model": "emb", "input": f"late {number}"})
            client.send(asked if number % 2 else asked[:-5])
        await until(lambda: worker.running == 2)
        stopping = asyncio.create_task(asyncio.to_thread(gateway.terminate))
        for client in clients:
            reply = await client.reply()
            assert (reply.status, reply.json()["error"]["code"]) == (503, "draining")
            assert reply.headers["connection"] == "close" and await client.closed()
            client.close()
        assert await stopping == 0
        await until(lambda: worker.aborted == 2)
        assert '"count":4' in gateway.log


async def test_slow_clients(worker: StubWorker, tmp_path: Path) -> None:
    options = ("--head-timeout", "4s", "--body-timeout", "4s", "--keep-alive", "6s")

    async def is_late(gateway: GatewayProcess, sent: bytes, *, fallback: bool) -> None:
        async with await gateway.client() as client:
            if fallback:
                await client.get("/livez")
            client.send(sent)
            reply = await client.reply(timeout=60)
            assert (reply.status, reply.json()["error"]["code"]) == (408, "request_timeout")
            assert await client.closed() or fallback

    async def is_silent(gateway: GatewayProcess) -> None:
        async with await gateway.client() as client:
            assert await client.closed()

    async def is_quick(gateway: GatewayProcess) -> None:
        async with await gateway.client() as client:
            for _ in range(2):  # a connection that is used is kept
                assert (await client.post(PATH, BODY)).status == 200

    with GatewayProcess(tmp_path, [service("emb", [worker.url])], *options) as gateway:
        parts = (b"POST /v1/embeddings HTTP/1.1\r\nhost", request(PATH, BODY)[:-1])
        late = [
            is_late(gateway, sent, fallback=fallback)
            for fallback in (False, True)
            for sent in parts
        ]
        await asyncio.gather(*late, is_silent(gateway), is_quick(gateway))


async def test_demand_stream(worker: StubWorker, tmp_path: Path) -> None:
    with GatewayProcess(tmp_path, [service("emb", [worker.url])]) as gateway:
        await gateway.ready("emb")
        async with await Client.open(gateway.admin_port) as stream:
            stream.send(b"GET /internal/demand HTTP/1.1\r\nhost: t\r\n\r\n")
            await stream.reader.readuntil(b"\r\n\r\n")
            for text in ("a", "b", "b", ["a", "c", "d"]):
                await gateway.post(PATH, {"model": "emb", "input": text})
            records: list[dict[str, Any]] = []

            def told(count: str) -> int:
                return sum(record.get(count, 0) for record in records)  # Nothing is not told.

            async with asyncio.timeout(60):
                while told("completions") < 3:
                    size = int(await stream.reader.readline(), 16)
                    chunk = await stream.reader.readexactly(size + 2)
                    records += [json.loads(line) for line in chunk.splitlines() if line]
        assert (told("arrivals"), told("cacheHits"), told("workUnits")) == (3, 1, 4)
        assert records[-1]["readyEndpoints"] == 1
        assert records[-1]["answerDigests"] == {"r1": worker.behaviour.digest}
        assert records[-1]["tasks"] == ["embeddings", "classification"]
        sequences = [record["sequence"] for record in records]
        assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))


async def test_access_log_has_no_bodies(worker: StubWorker, tmp_path: Path) -> None:
    table = [service("emb", [worker.url])]
    with GatewayProcess(tmp_path, table, "--access-log") as gateway:
        await gateway.ready("emb")
        secret = "CANARY\r\n{"
        await gateway.post(PATH, {"model": "emb", "input": secret}, x_request_id="log-1")
        await gateway.post(PATH, {"model": secret, "input": secret})
        gateway.terminate()
        assert gateway.process is not None and gateway.process.stdout is not None
        lines = gateway.process.stdout.read().decode().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["status"] for entry in entries] == [200, 404]
    assert entries[0]["request_id"] == "log-1"
    assert entries[0]["service"] == "emb"
    assert "CANARY" not in "".join(lines) + gateway.log
