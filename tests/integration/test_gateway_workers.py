"""Workers that are slow, full, ill or gone: what the callers of the gateway see of it."""

import asyncio
import contextlib
import json
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from sluice_api import wire
from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from tests.support.gateway_process import Client, GatewayProcess, Reply, request, service
from tests.support.stub_process import StubProcess
from tests.support.stub_worker import DIGEST, Behaviour, StubWorker, until, vector_of

PATH = "/v1/embeddings"


class Gateway(GatewayProcess):
    """Passes requests on as they come where ``keeps`` is off: nothing is looked up or stored."""

    keeps = True

    async def follow(self, services: list[wire.Service], *, ready: bool = True) -> None:
        for spec in services:
            spec.cache.enabled = self.keeps
        await super().follow(services, ready=ready)


BOTH_WAYS = pytest.mark.parametrize("gateway", ["kept", "passed on"], indirect=True)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("gateway"), []) as gateway:
        yield gateway


@pytest.fixture
async def gateway(process: Gateway, request: pytest.FixtureRequest) -> AsyncIterator[Gateway]:
    process.keeps = getattr(request, "param", "kept") == "kept"
    await process.follow([])
    yield process
    assert '"level":"error"' not in process.log


def ask(text: str) -> dict[str, Any]:
    return {"model": "emb", "input": text}


def right(reply: Reply, text: str) -> bool:
    return reply.status == 200 and reply.json()["data"][0]["embedding"] == vector_of(text).tolist()


class Load:
    """Unique questions over a few connections until stopped; every answer is checked."""

    def __init__(self, gateway: GatewayProcess, connections: int = 8) -> None:
        self._gateway = gateway
        self._connections = connections
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.right = 0
        self.wrong: list[Reply] = []
        self.slowest = 0.0

    async def __aenter__(self) -> "Load":
        for number in range(self._connections):
            self._tasks.append(asyncio.create_task(self._run(number)))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _run(self, number: int) -> None:
        async with await self._gateway.client() as client:
            while not self._stop.is_set():
                text = f"{secrets.token_hex(8)} {number}"
                began = time.monotonic()
                reply = await client.post(PATH, ask(text))
                self.slowest = max(self.slowest, time.monotonic() - began)
                if right(reply, text):
                    self.right += 1
                else:
                    self.wrong.append(reply)

    async def more(self, count: int = 100, seconds: float = 60.0) -> None:
        """Wait for ``count`` more right answers."""
        target = self.right + count
        await until(lambda: self.right >= target or bool(self.wrong), seconds, "no answers")
        assert not self.wrong, self.wrong[:3]


@BOTH_WAYS
async def test_killed_worker_costs_no_request(gateway: GatewayProcess) -> None:
    with StubProcess() as one, StubProcess() as two:
        await gateway.follow([service("emb", [one.url, two.url])])
        async with Load(gateway) as load:
            await load.more()
            one.signal(signal.SIGKILL)
            await load.more()
            await gateway.ready("emb", 1)
    assert not load.wrong


@BOTH_WAYS
async def test_only_worker_restarted_costs_no_request(gateway: GatewayProcess) -> None:
    with contextlib.ExitStack() as workers:
        first = workers.enter_context(StubProcess())
        await gateway.follow([service("emb", [first.url])])
        async with Load(gateway) as load:
            await load.more()
            first.signal(signal.SIGKILL)
            await gateway.ready("emb", 0)
            workers.enter_context(StubProcess(first.port))
            await load.more()
    assert not load.wrong


@BOTH_WAYS
async def test_stopped_worker_costs_no_request(gateway: GatewayProcess) -> None:
    with StubProcess() as one, StubProcess() as two:
        await gateway.follow([service("emb", [one.url, two.url])])
        async with Load(gateway) as load:
            await load.more()
            one.signal(signal.SIGSTOP)
            await gateway.ready("emb", 1)
            await load.more()
            one.signal(signal.SIGCONT)
            await gateway.ready("emb", 2)
            await load.more()
    assert not load.wrong
    assert load.slowest < 30


GARBAGE = {
    "not HTTP": b"hello\r\n\r\n",
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\ncontent-le",
    "no length": b"HTTP/1.1 200 OK\r\n\r\n{}",
    "early close": b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{",
    "bad length": b"HTTP/1.1 200 OK\r\ncontent-length: abc\r\n\r\n{}",
    "huge length": b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n{}",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{} ",
    "bad chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "huge head": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\ncontent-length: 2\r\n\r\n{}",
    "two answers": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}" * 2,
    "another's answer": b"HTTP/1.1 200 OK\r\nx-request-id: zzz\r\ncontent-length: 2\r\n\r\n{}",
    "not JSON": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
    "not UTF-8": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xfe",
    "wrong shape": b'HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{"data":[]}',
    "odd status": b"HTTP/1.1 777 X\r\ncontent-length: 2\r\n\r\n{}",
    "redirect": b"HTTP/1.1 302 X\r\nlocation: http://x/\r\ncontent-length: 0\r\n\r\n",
    "upgrade": b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_from_the_only_worker(gateway: GatewayProcess, name: str) -> None:
    with StubWorker(Behaviour(raw=GARBAGE[name])) as worker:
        await gateway.follow([service("emb", [worker.url])])
        reply = await gateway.post(PATH, ask("g"), x_sluice_deadline_ms="60000")
        assert (reply.status, reply.json()["error"]["code"]) == (502, "upstream_failed"), reply
        assert reply.headers["x-should-retry"] == "true"
        worker.behaviour.raw = None
        text = f"after {name}"
        assert right(await gateway.post(PATH, ask(text)), text)


@BOTH_WAYS
async def test_garbage_from_one_of_two_workers_is_not_seen(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(raw=GARBAGE["bad chunk"])) as ill, StubWorker() as well:
        await gateway.follow([service("emb", [ill.url, well.url])])

        async def out() -> bool:
            endpoints = (await gateway.services())["emb"]["endpoints"]
            return bool({e["url"]: e["state"] for e in endpoints}[ill.url] == "ejected")

        async with Load(gateway, 4) as load:
            await load.more(200)
            await until(out)  # While it is on trial, for a moment it is not.
        assert await gateway.metric("sluice_gateway_ejections_total", service="emb") >= 1
    assert not load.wrong


@BOTH_WAYS
async def test_error_storm_of_one_worker_is_bounded(gateway: GatewayProcess) -> None:
    error = ApiError("internal_error", "Broken.")
    with StubWorker(Behaviour(refuse=error)) as ill, StubWorker() as one, StubWorker() as two:
        await gateway.follow([service("emb", [ill.url, one.url, two.url])])
        async with Load(gateway, 4) as load:
            await load.more(300)
        assert not load.wrong
        assert len(ill.seen) < 60


async def test_equal_questions_are_computed_once(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(hold=True)) as worker:
        await gateway.follow([service("emb", [worker.url])])
        asked = [asyncio.create_task(gateway.post(PATH, ask("same"))) for _ in range(20)]
        await joined(gateway, 20)
        worker.behaviour.hold = False
        replies = await asyncio.gather(*asked)
        assert all(right(reply, "same") for reply in replies)
        assert worker.computed == 1
        statuses = sorted(reply.headers["cache-status"] for reply in replies)
        assert statuses.count("Sluice; fwd=miss; stored") == 1
        assert statuses.count("Sluice; fwd=miss; collapsed") == 19


@BOTH_WAYS
async def test_client_gone_stops_the_worker(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(hang=True)) as worker:
        await gateway.follow([service("emb", [worker.url])])
        for fallback in (False, True):
            client = await gateway.client()
            if fallback:
                await client.get("/livez")
            client.send(request(PATH, ask("gone")))
            await until(lambda: worker.running == 1)
            client.close()
            await until(lambda: worker.running == 0, what="upstream not aborted")
        assert worker.aborted == 2
        (endpoint,) = (await gateway.services())["emb"]["endpoints"]
        assert endpoint["inFlight"] == 0


async def test_leader_gone_does_not_stop_the_followers(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(hold=True)) as worker:
        await gateway.follow([service("emb", [worker.url])])
        leader = await gateway.client()
        leader.send(request(PATH, ask("shared")))
        await until(lambda: worker.running == 1)
        follower = asyncio.create_task(gateway.post(PATH, ask("shared")))
        await joined(gateway, 2)
        leader.close()
        await joined(gateway, 1)
        worker.behaviour.hold = False
        assert right(await follower, "shared")
        assert worker.computed == 1 and worker.aborted == 0


async def joined(gateway: GatewayProcess, waiting: int) -> None:
    async def seen() -> bool:
        told = (await gateway.get("/internal/services", admin=True)).json()["parts"]["Flights"]
        return f"{waiting} waiting" in told

    await until(seen)


async def test_leaders_short_deadline_is_not_the_followers(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(hold=True)) as worker:
        await gateway.follow([service("emb", [worker.url])])
        leader = asyncio.create_task(gateway.post(PATH, ask("late"), x_sluice_deadline_ms="4000"))
        await until(lambda: worker.running == 1)
        follower = asyncio.create_task(gateway.post(PATH, ask("late")))
        await joined(gateway, 2)
        reply = await leader
        assert (reply.status, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
        worker.behaviour.hold = False
        assert right(await follower, "late")
        assert worker.computed == 1


async def test_neighbours_bad_input_does_not_fail_the_follower(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(hold=True)) as worker:
        await gateway.follow([service("emb", [worker.url])])
        body = {"model": "emb", "input": ["good", "too long"]}
        leader = asyncio.create_task(gateway.post(PATH, body))
        await until(lambda: worker.running == 1)
        follower = asyncio.create_task(gateway.post(PATH, ask("good")))
        await joined(gateway, 3)
        worker.behaviour.hold = False
        assert (await leader).status == 400
        assert right(await follower, "good")


async def test_passed_on_requests_are_counted(process: Gateway, gateway: Gateway) -> None:
    process.keeps = False
    with StubWorker() as worker:
        await gateway.follow([service("emb", [worker.url])])
        labels = {"service": "emb", "route": PATH}
        before = await gateway.metric("sluice_gateway_requests_total", **labels)
        for fallback in (False, True):
            async with await gateway.client() as client:
                if fallback:
                    await client.get("/livez")
                for number in range(5):
                    reply = await client.post(PATH, ask(f"c{number}"))
                    assert reply.headers["cache-status"] == "Sluice; fwd=bypass; detail=off"
        assert await gateway.metric("sluice_gateway_requests_total", **labels) == before + 10
        (endpoint,) = (await gateway.services())["emb"]["endpoints"]
        assert endpoint["inFlight"] == 0


@BOTH_WAYS
async def test_deadline(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(hang=True)) as worker:
        await gateway.follow([service("emb", [worker.url])])
        began = time.monotonic()
        reply = await gateway.post(PATH, ask("d"), x_sluice_deadline_ms="300")
        assert (reply.status, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert 0.29 < time.monotonic() - began < 60
        await until(lambda: worker.aborted == 1)
        limits = wire.LimitRules(timeout_seconds=0.2)
        await gateway.follow([service("emb", [worker.url], limits=limits)])
        assert (await gateway.post(PATH, ask("d"))).status == 504


@BOTH_WAYS
async def test_worker_gets_no_more_than_it_can_hold(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(limit=2, delay=0.05)) as worker:
        await gateway.follow([service("emb", [worker.url])])
        texts = [f"w{number}" for number in range(12)]
        replies = await asyncio.gather(*[gateway.post(PATH, ask(text)) for text in texts])
        assert all(right(reply, text) for reply, text in zip(replies, texts, strict=True))
        assert worker.peak == 2


@BOTH_WAYS
async def test_full_queue_is_refused_at_once(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(limit=1, hold=True)) as worker:
        limits = wire.LimitRules(waiting=2)
        await gateway.follow([service("emb", [worker.url], limits=limits)])
        running = [asyncio.create_task(gateway.post(PATH, ask(f"q{n}"))) for n in range(3)]

        async def queued() -> bool:
            return bool((await gateway.services())["emb"]["waiting"] == 2)

        await until(queued)
        reply = await gateway.post(PATH, ask("one too many"))
        assert not any(task.done() for task in running), "at once, not when there is a place"
        assert (reply.status, reply.json()["error"]["code"]) == (429, "overloaded")
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.headers["x-should-retry"] == "true"
        worker.behaviour.hold = False
        assert {r.status for r in await asyncio.gather(*running)} == {200}


@BOTH_WAYS
async def test_workers_own_refusal_goes_to_another_or_back_to_the_queue(
    gateway: GatewayProcess,
) -> None:
    full = ApiError("overloaded", "Full.", retry_after=0.2)
    with StubWorker(Behaviour(refuse=full)) as busy, StubWorker() as free:
        await gateway.follow([service("emb", [busy.url, free.url])])
        async with Load(gateway, 4) as load:
            await load.more(100)
        assert not load.wrong
        await gateway.follow([service("emb", [busy.url])])
        alone = asyncio.create_task(gateway.post(PATH, ask("patient")))
        seen = len(busy.seen)
        await until(lambda: len(busy.seen) > seen + 1)
        busy.behaviour.refuse = None
        assert right(await alone, "patient")
        busy.behaviour.refuse = ApiError("overloaded", "Full.", retry_after=60)
        reply = await gateway.post(PATH, ask("hasty"), x_sluice_deadline_ms="30000")
        assert (reply.status, reply.json()["error"]["code"]) == (429, "overloaded")
        assert reply.headers["retry-after-ms"] == "60000"


async def test_sleeping_service_holds_requests_and_wakes(gateway: GatewayProcess) -> None:
    await gateway.follow([service("emb", [])])
    assert (await gateway.get("/v1/models/emb")).json()["state"] == "asleep"
    async with await Client.open(gateway.admin_port) as stream:
        stream.send(b"GET /internal/demand HTTP/1.1\r\nhost: t\r\n\r\n")
        await stream.reader.readuntil(b"\r\n\r\n")
        held = [asyncio.create_task(gateway.post(PATH, ask(f"z{n}"))) for n in range(5)]
        record = await next_demand(stream, lambda r: r.get("wake", False))
        assert record.get("oldest_held_seconds", 0.0) < 0.1, "at once, not at the next second"
        assert record["held"] >= 1 and record["service"] == "emb"
        assert (await gateway.get("/v1/models/emb")).json()["state"] == "starting"
        with StubWorker() as worker:
            gateway.write([service("emb", [worker.url])])
            for number, reply in enumerate(await asyncio.gather(*held)):
                assert right(reply, f"z{number}")


async def next_demand(stream: Client, wanted: Any) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            size = int(await stream.reader.readline(), 16)
            chunk = await stream.reader.readexactly(size)
            await stream.reader.readline()
            for line in chunk.splitlines():
                record: dict[str, Any] = json.loads(line)
                if wanted(record):
                    return record


async def test_start_that_takes_too_long(gateway: GatewayProcess) -> None:
    limits = wire.LimitRules(start_timeout_seconds=0.3)
    await gateway.follow([service("emb", [], limits=limits)])
    reply = await gateway.post(PATH, ask("x"))
    assert (reply.status, reply.json()["error"]["code"]) == (503, "starting")
    assert int(reply.headers["retry-after"]) >= 1


async def test_sleeping_service_is_answered_from_the_cache(gateway: GatewayProcess) -> None:
    digest = f"sha256:{secrets.token_hex(32)}"
    with StubWorker(Behaviour(digest=digest)) as worker:
        await gateway.follow([service("emb", [worker.url], answer_digest=digest)])
        await gateway.post(PATH, ask("kept"))
    tasks = worker.behaviour.tasks
    await gateway.follow([service("emb", [], answer_digest=digest, tasks=tasks)])
    reply = await gateway.post(PATH, ask("kept"))
    assert right(reply, "kept")
    assert reply.headers["cache-status"].startswith("Sluice; hit")


@BOTH_WAYS
async def test_removed_endpoint_finishes_what_it_has(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(hold=True)) as old, StubWorker() as new:
        await gateway.follow([service("emb", [old.url])])
        running = asyncio.create_task(gateway.post(PATH, ask("running")))
        await until(lambda: old.running == 1)
        await gateway.follow([service("emb", [new.url])])
        for number in range(5):
            assert right(await gateway.post(PATH, ask(f"n{number}")), f"n{number}")
        old.behaviour.hold = False
        assert right(await running, "running")
        assert len(old.seen) == 1


async def test_removed_service_tells_those_who_wait(gateway: GatewayProcess) -> None:
    await gateway.follow([service("emb", [])])
    held = asyncio.create_task(gateway.post(PATH, ask("x")))

    async def waiting() -> bool:
        return bool((await gateway.services())["emb"]["waiting"] == 1)

    await until(waiting)
    await gateway.follow([])
    for reply in (await held, await gateway.post(PATH, ask("y"))):
        error = reply.json()["error"]
        assert (reply.status, error["code"], error["param"]) == (404, "model_not_found", "model")


@BOTH_WAYS
@pytest.mark.parametrize("end", ["breaks", "is full", "fails"])
async def test_who_comes_back_from_a_worker_learns_that_the_service_was_removed(
    gateway: GatewayProcess, end: str
) -> None:
    with StubWorker(Behaviour(hold=True)) as worker:
        await gateway.follow([service("emb", [worker.url])])
        running = asyncio.create_task(gateway.post(PATH, ask(f"comes back: {end}")))
        await until(lambda: worker.running == 1)
        await gateway.follow([])
        if end == "breaks":
            worker.behaviour.raw = b""
        else:
            code = "overloaded" if end == "is full" else "internal_error"
            worker.behaviour.refuse = ApiError(code, "No.")
        worker.behaviour.hold = False
        reply = await running
    error = reply.json()["error"]
    assert (reply.status, error["code"], error["param"]) == (404, "model_not_found", "model")


@BOTH_WAYS
async def test_worker_that_drains_gets_nothing_new(gateway: GatewayProcess) -> None:
    with StubWorker() as leaving, StubWorker() as staying:
        await gateway.follow([service("emb", [leaving.url, staying.url])])
        leaving.behaviour.phase = wire.Phase.DRAINING
        leaving.behaviour.refuse = ApiError("draining", "Leaving.")
        async with Load(gateway, 4) as load:
            await load.more(100)
        assert not load.wrong
        assert len(leaving.seen) < 30


@BOTH_WAYS
async def test_worker_that_closes_idle_connections_costs_nothing(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(keep_alive=False)) as worker:
        await gateway.follow([service("emb", [worker.url])])
        async with Load(gateway, 4) as load:
            await load.more(200)
    assert not load.wrong


@BOTH_WAYS
async def test_idle_connections_that_are_all_dead_cost_nothing(gateway: GatewayProcess) -> None:
    behaviour = Behaviour(reusable=False, hold=True)
    with StubWorker(behaviour) as worker:
        await gateway.follow([service("emb", [worker.url])])
        first = [asyncio.create_task(gateway.post(PATH, ask(f"first {n}"))) for n in range(4)]
        await until(lambda: worker.running == 4, what="several connections")
        behaviour.hold = False
        for number, reply in enumerate(await asyncio.gather(*first)):
            assert right(reply, f"first {number}")
        before = await gateway.metric("sluice_gateway_retries_total")
        assert right(await gateway.post(PATH, ask("next")), "next")
        assert await gateway.metric("sluice_gateway_retries_total") == before


async def test_a_failed_model_refuses_at_once_and_still_answers_from_the_cache(
    gateway: GatewayProcess,
) -> None:
    failure = wire.Failure(reason="ModelNotFound", message="No such file.", retry_after_seconds=9)
    with StubWorker() as worker:
        await gateway.follow([service("emb", [worker.url], answer_digest=DIGEST)])
        assert right(await gateway.post(PATH, ask("known")), "known")
    asleep = service("emb", [], answer_digest=DIGEST)
    await gateway.follow([asleep])
    held = asyncio.create_task(gateway.post(PATH, ask("held")))
    await until(lambda: _waiting(gateway, 1), what="held")
    asleep.failure = failure
    await gateway.follow([asleep])
    for reply in (await held, await gateway.post(PATH, ask("new"))):
        assert (reply.status, reply.headers["retry-after"]) == (503, "9")
        assert reply.headers["x-should-retry"] == "true"
        error = reply.json()["error"]
        assert error["code"] == "model_failed" and "No such file." in error["message"]
    assert right(await gateway.post(PATH, ask("known")), "known")
    card = (await gateway.get("/v1/models/emb")).json()
    assert (card["state"], card["reason"]) == ("failed", "ModelNotFound")
    assert card["message"] == "No such file."
    with StubWorker() as worker:
        cured = service("emb", [worker.url], answer_digest=DIGEST, failure=failure)
        await gateway.follow([cured])
        assert right(await gateway.post(PATH, ask("cured")), "cured")


async def test_a_model_that_no_request_wakes_refuses_at_once(gateway: GatewayProcess) -> None:
    dormancy = wire.Dormancy(reason="ScalingOff", message="Its scaling is off.")
    asleep = service("emb", [])
    await gateway.follow([asleep])
    assert (await gateway.get("/v2/models/emb/ready")).status == 200
    held = asyncio.create_task(gateway.post(PATH, ask("held")))
    await until(lambda: _waiting(gateway, 1), what="held")
    asleep.dormancy = dormancy
    await gateway.follow([asleep])
    for reply in (await held, await gateway.post(PATH, ask("new"))):
        assert (reply.status, reply.headers["x-should-retry"]) == (503, "false")
        error = reply.json()["error"]
        assert error["code"] == "asleep" and "Its scaling is off." in error["message"]
        assert "kubectl scale inferenceservice" in error["message"]
    card = (await gateway.get("/v1/models/emb")).json()
    assert (card["state"], card["reason"]) == ("asleep", "ScalingOff")
    assert card["message"] == "Its scaling is off."
    assert (await gateway.get("/v2/models/emb/ready")).status == 503
    with StubWorker() as worker:
        await gateway.follow([service("emb", [worker.url], dormancy=dormancy)])
        assert right(await gateway.post(PATH, ask("new")), "new")


async def test_a_worker_of_another_revision_is_named_as_the_reason(
    gateway: GatewayProcess,
) -> None:
    with StubWorker(Behaviour(revision="r9")) as worker:
        limits = wire.LimitRules(start_timeout_seconds=0.5)
        await gateway.follow([service("emb", [worker.url], limits=limits)], ready=False)
        reply = await gateway.post(PATH, ask("x"))
        assert (reply.status, reply.json()["error"]["code"]) == (503, "starting")
        assert "another revision" in reply.json()["error"]["message"]
        assert "another revision" in (await gateway.get("/v1/models/emb")).json()["message"]
        (endpoint,) = (await gateway.services())["emb"]["endpoints"]
        assert "r1" in endpoint["message"] and "r9" in endpoint["message"]


async def test_what_holds_a_start_up_is_told_after_the_hold(gateway: GatewayProcess) -> None:
    delay = wire.Delay(reason="Unschedulable", message="No machine has room.")
    limits = wire.LimitRules(start_timeout_seconds=0.5)
    await gateway.follow([service("emb", [], limits=limits, delay=delay)])
    card = (await gateway.get("/v1/models/emb")).json()
    assert (card["state"], card["reason"]) == ("starting", "Unschedulable")
    assert card["message"] == "No machine has room."
    reply = await gateway.post(PATH, ask("x"))
    assert (reply.status, reply.json()["error"]["code"]) == (503, "starting")
    assert reply.json()["error"]["message"].startswith("No machine has room.")
    with StubWorker() as worker:
        await gateway.follow([service("emb", [worker.url], delay=delay)])
        card = (await gateway.get("/v1/models/emb")).json()
        assert (card["state"], card["reason"], card["message"]) == ("ready", "", "")


async def _waiting(gateway: GatewayProcess, count: int) -> bool:
    return bool((await gateway.services())["emb"]["waiting"] == count)


NO_INT64 = (
    b'{"object":"list","model":"qa","data":[{"index":0,"answers":[{"text":"a","score":0.5,'
    b'"start":9223372036854775808,"end":1}],"tokens":3}],"usage":{"prompt_tokens":3,"total_tokens":3}}'
)


@pytest.mark.parametrize("edge", ["fast", "ordinary"])
async def test_numbers_that_no_tensor_holds_are_the_failure_of_their_worker(
    gateway: GatewayProcess, edge: str
) -> None:
    question, context = (
        {"name": name, "shape": [1], "datatype": "BYTES", "data": [f"{name} {edge}"]}
        for name in ("question", "context")
    )
    asked = {"inputs": [question, context], "parameters": {"binary_data_output": True}}
    path = "/v2/models/qa/infer"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    behaviour = Behaviour(tasks=[Task.QUESTION_ANSWERING])
    async with contextlib.AsyncExitStack() as stack:
        worker = stack.enter_context(StubWorker(behaviour))
        await gateway.follow([service("qa", [worker.url])])
        behaviour.raw = head % len(NO_INT64) + NO_INT64
        for headers in ({}, {"idempotency_key": f"no-int64-{edge}"}):
            clients = [await stack.enter_async_context(await gateway.client()) for _ in range(3)]
            for client in clients:
                if edge == "ordinary":
                    assert (await client.get("/livez")).status == 200
            for client in clients:
                client.send(request(path, asked, **headers))
            for client in clients:
                reply = await client.reply()
                assert (reply.status, reply.json()["code"]) == (502, "upstream_failed"), reply
        behaviour.raw = None
        assert (await gateway.post(path, asked)).status == 200
    count = "sluice_gateway_requests_total"
    assert await gateway.metric(count, status="502") >= 3
