"""One drain for a process, whoever asks for it first."""

import asyncio
import threading
import time

from sluice_worker.lifecycle import Lifecycle
from sluice_worker.metrics import Metrics
from sluice_worker.routes import Worker
from sluice_worker.server import Draining
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
