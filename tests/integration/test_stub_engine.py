"""The stub engine speaks the worker's protocol, keeps its times, and drains as a worker does."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil
import pytest

from sluice_api import names, wire
from tests.support.stub_engine.engine import Behaviour, behaviour_of, vector_of
from tests.support.stub_worker import until
from tests.support.worker_process import listening_socket

PROGRAM = Path(__file__).parents[1] / "support/stub_engine/engine.py"


class Stub:
    def __init__(self, process: "subprocess.Popen[str]", port: int, admin_port: int) -> None:
        self.process = process
        self.embeddings = f"http://127.0.0.1:{port}/v1/embeddings"
        self.admin = f"http://127.0.0.1:{admin_port}"


@contextmanager
def running(words: str, **environment: str) -> Iterator[Stub]:
    with listening_socket() as one, listening_socket() as two:
        ports = one.getsockname()[1], two.getsockname()[1]
    told = {
        names.ENV_MODEL_URI: f"hf://stub/{words}",
        names.ENV_MODEL_NAME: "emb",
        names.ENV_REVISION: "r1",
        names.ENV_WORKER_PORT: str(ports[0]),
        names.ENV_WORKER_ADMIN_PORT: str(ports[1]),
        names.ENV_DRAIN_GRACE: "0s",
        **environment,
    }
    process = subprocess.Popen(
        [sys.executable, "-P", str(PROGRAM)],
        env=os.environ | told,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Stub(process, *ports)
    finally:
        process.kill()
        process.communicate(timeout=60)


async def readiness(session: aiohttp.ClientSession, stub: Stub) -> wire.Readiness | None:
    try:
        async with session.get(f"{stub.admin}/readyz") as answer:
            found = msgspec.json.decode(await answer.read(), type=wire.Readiness)
            assert (answer.status == 200) == (found.phase is wire.Phase.READY)
            return found
    except aiohttp.ClientConnectionError:
        return None


async def until_phase(session: aiohttp.ClientSession, stub: Stub, phase: wire.Phase) -> Any:
    seen: list[wire.Readiness] = []

    async def reached() -> bool:
        seen[:] = filter(None, [await readiness(session, stub)])
        return bool(seen) and seen[0].phase is phase

    await until(reached, 60, f"phase {phase}")
    return seen[0]


async def until_in_flight(session: aiohttp.ClientSession, stub: Stub, count: int) -> None:
    async def reached() -> bool:
        found = await readiness(session, stub)
        assert found is not None
        assert found.capacity is not None
        return found.capacity.in_flight == count

    await until(reached, 60, f"{count} requests in flight")


async def ask(session: aiohttp.ClientSession, stub: Stub, text: str) -> tuple[int, Any]:
    async with session.post(stub.embeddings, json={"input": text}) as answer:
        return answer.status, (await answer.json(), answer.headers)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("", Behaviour()),
        ("hf://stub/plain", Behaviour()),
        ("hf://stub/ms20-slots8-start0", Behaviour(0.02, 8, 0.0)),
        ("hf://stub/download-exit64", Behaviour(download=True, exit_code=64)),
    ],
)
def test_the_address_says_how_it_behaves(uri: str, expected: Behaviour) -> None:
    assert behaviour_of(uri) == expected


async def test_answers_follow_from_the_input_and_carry_what_a_worker_says() -> None:
    with running("ms10-start0") as stub:
        async with aiohttp.ClientSession() as session:
            ready = await until_phase(session, stub, wire.Phase.READY)
            assert (ready.model, ready.revision, ready.dimensions) == ("emb", "r1", 4)
            status, (body, headers) = await ask(session, stub, "hello")
            assert status == 200
            assert body["data"][0]["embedding"] == pytest.approx(list(vector_of("hello")))
            assert headers[names.ANSWER_DIGEST] == ready.answer_digest
            assert headers[names.REVISION] == "r1"
            assert headers[names.SERVICE_TIME] == "0.002500"
            assert wire.parse_capacity(headers[names.CAPACITY]) == wire.Capacity(limit=4)
            async with session.post(f"{stub.embeddings}/lost", json={}) as answer:
                assert answer.status == 404
            async with session.get(f"{stub.admin}/metrics") as answer:
                counted = await answer.text()
            line = 'sluice_worker_requests_total{route="/v1/embeddings",status="200"} 1\n'
            assert line in counted
        assert psutil.Process(stub.process.pid).memory_info().rss < 40 * 2**20


async def test_more_requests_than_slots_wait_their_turn() -> None:
    with running("ms200-slots2-start0") as stub:
        async with aiohttp.ClientSession() as session:
            await until_phase(session, stub, wire.Phase.READY)
            began = time.monotonic()
            answers = await asyncio.gather(*(ask(session, stub, str(i)) for i in range(6)))
            seconds = time.monotonic() - began
        assert {status for status, _ in answers} == {200}
        assert seconds >= 0.6, "three rounds of two"


async def test_who_leaves_frees_the_slot() -> None:
    with running("ms60000-slots1-start0") as stub:
        async with aiohttp.ClientSession() as session:
            await until_phase(session, stub, wire.Phase.READY)
            pending = [asyncio.create_task(ask(session, stub, str(i))) for i in range(3)]
            await until_in_flight(session, stub, 3)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            await until_in_flight(session, stub, 0)


async def test_the_drain_hook_and_the_signal() -> None:
    with running("ms500-start0") as stub:
        async with aiohttp.ClientSession() as session:
            await until_phase(session, stub, wire.Phase.READY)
            asked = asyncio.create_task(ask(session, stub, "last"))
            await until_in_flight(session, stub, 1)
            async with session.get(stub.admin + names.DRAIN_PATH) as answer:
                assert await answer.json() == {"unfinished": 0}, "the hook did not wait"
            assert (await asked)[0] == 200
        stub.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(stub.process.wait, 10) == 0


async def test_a_download_shows_its_progress_and_an_end_its_reason() -> None:
    with running("start4000-download-exit65") as stub:
        async with aiohttp.ClientSession() as session:
            found = await until_phase(session, stub, wire.Phase.DOWNLOADING)
            assert 0 <= found.progress < 1
            status, _ = await ask(session, stub, "early")
            assert status == 503
        assert await asyncio.to_thread(stub.process.wait, 20) == names.EXIT_MODEL_DOWNLOAD_FAILED
        assert stub.process.stderr is not None
        last = stub.process.stderr.read().strip().splitlines()[-1]
        assert last == "the stub was told to end with this: emb"
