"""One drain for a process, whoever asks for it first; and answers that reach who still sends."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from sluice_worker import exchange
from sluice_worker.app import application
from sluice_worker.lifecycle import Lifecycle
from sluice_worker.metrics import Metrics
from sluice_worker.routes import Worker
from sluice_worker.server import Draining, Server
from sluice_worker.settings import read_settings
from tests.support.stub_worker import until


def worker(drain_timeout: str = "45s") -> Worker:
    settings = read_settings(
        ["--model", "toy://model", "--drain-grace", "0s", "--drain-timeout", drain_timeout], {}
    )
    return Worker(settings, Lifecycle("toy", "abc", time.monotonic()), Metrics())


async def test_the_hook_waits_for_the_last_answer_and_the_signal_finds_it_done() -> None:
    busy = worker()
    busy.begin()
    draining = Draining(busy)
    hook = asyncio.create_task(from_a_thread(draining))
    await until(lambda: busy.lifecycle.draining)
    assert "under way" in repr(draining)
    assert not hook.done()
    busy.end()
    assert await asyncio.wait_for(hook, 60) == 0
    assert not busy.accepting
    await asyncio.wait_for(draining.finish(), 60)


async def test_the_time_limit_ends_the_wait_and_the_rest_is_told() -> None:
    stuck = worker(drain_timeout="10ms")
    stuck.begin()
    assert await asyncio.wait_for(from_a_thread(Draining(stuck)), 60) == 1


async def test_a_caller_that_leaves_does_not_stop_the_drain() -> None:
    busy = worker()
    busy.begin()
    draining = Draining(busy)
    impatient = asyncio.create_task(draining.finish())
    await until(lambda: busy.lifecycle.draining)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    busy.end()
    await asyncio.wait_for(draining.finish(), 60)
    assert "over" in repr(draining)


async def from_a_thread(draining: Draining) -> int:
    """Call it as the admin port does: from the event loop of another thread."""
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def run() -> None:
        left = asyncio.run(draining.from_elsewhere())
        loop.call_soon_threadsafe(lambda: done.done() or done.set_result(left))

    threading.Thread(target=run, daemon=True).start()
    return await done


@asynccontextmanager
async def serving(served: Worker) -> AsyncIterator[tuple[asyncio.StreamReader, socket.socket]]:
    """A connection to the application port of ``served``."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(application(served))
        running = asyncio.create_task(server.serve(sockets=[listening]))
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        try:
            yield reader, writer.get_extra_info("socket")
        finally:
            writer.transport.abort()
            server.should_exit = True
            await running


@pytest.mark.parametrize("reason", ["body_too_large", "draining"])
async def test_who_is_refused_before_the_body_is_here_can_send_on(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """A gateway that writes when the connection is reset would take the worker for ill."""
    monkeypatch.setattr(exchange, "LINGER_SECONDS", 60.0)
    served = worker()
    served.intake = cast(Any, object())
    if reason == "draining":
        served.lifecycle.drain()
        served.accepting = False
    loop, size = asyncio.get_running_loop(), 64 * 2**20
    async with serving(served) as (reader, raw):
        head = f"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\ncontent-length: {size}\r\n\r\n"
        raw = raw.dup()
        raw.setblocking(False)
        await loop.sock_sendall(raw, head.encode())
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        assert b"connection: close" in answer
        length = int(answer.partition(b"content-length: ")[2].split()[0])
        assert f'"{reason}"'.encode() in await asyncio.wait_for(reader.readexactly(length), 60)
        for _ in range(8):  # More than all buffers on the way hold, so it is read.
            await asyncio.wait_for(loop.sock_sendall(raw, bytes(2**20)), 60)
        raw.close()
