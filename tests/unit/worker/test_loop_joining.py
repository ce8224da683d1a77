"""Batches that others join while they run: room, results one by one, failures, and their end."""

import asyncio
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest

from sluice_api.errors import ApiError
from sluice_worker.backlog import Job
from sluice_worker.cost import CostModel, Load, WideGain
from sluice_worker.engines.base import Array, Feed, Unit
from sluice_worker.lanes import Joinable, Lanes
from sluice_worker.lifecycle import Progress
from sluice_worker.loop import JOINING_SECONDS, Loop, Rules
from sluice_worker.metrics import Metrics
from tests.support.event_loops import eventually
from tests.support.worker_fakes import NOT_A_NUMBER, POISON, ToyEngine, unit

PROOF = unit("proof")


class StepEngine(ToyEngine):
    """Takes a step for each letter of a text, and each step only when the test allows it."""

    stepwise = True

    def __init__(self) -> None:
        super().__init__()
        self.allowed = threading.Semaphore(0)
        self.stepped = threading.Semaphore(0)
        self.sizes: list[int] = []

    def serve(self, feed: Feed) -> None:
        left: dict[int, tuple[Unit, int]] = {}
        while True:
            left |= {place: (each, len(each.ids)) for place, each in feed.take()}
            if not left:
                if feed.close():
                    return
                continue
            self.sizes.append(len(left))
            assert self.allowed.acquire(timeout=60), "the test allowed no further step"
            for place, (each, steps) in list(left.items()):
                text = "".join(map(chr, each.ids))
                if POISON in text:
                    raise RuntimeError("poisoned")
                left[place] = (each, steps - 1)
                if steps == 1:
                    del left[place]
                    feed.finish(place, self._result(text))
            self.stepped.release()

    def _result(self, text: str) -> Array:
        return np.array([np.nan if NOT_A_NUMBER in text else len(text)], np.float32)


class Bench:
    def __init__(self) -> None:
        self.engine = StepEngine()
        self.now = 1000.0
        self.lanes = Lanes(self.engine, threads=1, width=1, set_threads=lambda count: None)
        cost = CostModel()
        for tokens in (10, 100, 1000):
            cost.observe(Load(tokens, tokens * tokens), 0.001 * tokens)
        self.loop = Loop(
            self.lanes,
            cost,
            WideGain(1.0, threads=1),
            Rules(0.1, 3, 10.0),
            Metrics(),
            Progress(),
            proof=PROOF,
            clock=lambda: self.now,
        )

    def submit(self, text: str) -> Job:
        return self.loop.submit([unit(text)], self.now + 60)

    async def step(self, count: int = 1) -> None:
        """Allow some steps, and wait until their results are there."""
        for _ in range(count):
            self.engine.allowed.release()
            assert await asyncio.to_thread(self.engine.stepped.acquire, timeout=60)
            await asyncio.sleep(0)

    async def joined(self, units: int) -> None:
        """Let what was submitted join; then so many are in the batch, which waits for them."""
        await asyncio.sleep(0)
        [batch] = self.loop.running
        assert len(batch.left) == units

    async def finish(self, job: Job) -> float:
        """Allow steps until ``job`` is done; its result."""
        while not job.done.done():
            self.engine.allowed.release()
            await asyncio.wait([job.done], timeout=0.05)
        return float(job.done.result()[0][0])


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    made.engine.allowed.release(1000)
    made.engine.gate.set()
    made.lanes.close()


async def test_a_result_is_there_when_its_own_text_is_done(bench: Bench) -> None:
    short, long = bench.submit("a"), bench.submit("bbbb")
    await bench.step()
    assert (await asyncio.wait_for(short.done, 60))[0][0] == 1
    assert not long.done.done()
    assert await bench.finish(long) == 4
    assert bench.engine.sizes == [2, 1, 1, 1]


async def test_a_text_that_comes_later_joins(bench: Bench) -> None:
    long = bench.submit("bbbb")
    await bench.step()
    late = bench.submit("c")
    await bench.joined(2)
    await bench.step()
    await bench.step()
    assert late.done.done()
    assert not long.done.done()
    assert len(bench.loop.running) == 1
    assert await bench.finish(long) == 4
    assert max(bench.engine.sizes) == 2


async def test_there_is_room_for_so_many_and_then_for_who_takes_a_place(bench: Bench) -> None:
    jobs = [bench.submit(text) for text in ("a", "bb", "ccc", "dddd")]
    await asyncio.sleep(0.01)
    assert bench.loop.backlog.waiting == 1
    assert [await bench.finish(job) for job in jobs] == [1, 2, 3, 4]
    assert max(bench.engine.sizes) == 3
    assert bench.loop.backlog.waiting == 0


async def test_an_old_batch_comes_to_its_end(bench: Bench) -> None:
    long = bench.submit("bbbb")
    await bench.step()
    bench.now += JOINING_SECONDS
    late = bench.submit("c")
    await asyncio.sleep(0.01)
    assert bench.loop.backlog.waiting == 1
    assert await bench.finish(long) == 4
    assert await bench.finish(late) == 1
    assert max(bench.engine.sizes) == 1


async def test_who_brought_a_batch_down_fails_alone(bench: Bench) -> None:
    first = bench.submit("bbbb")
    await bench.step()
    poison = bench.submit(POISON)
    await bench.joined(2)
    bench.engine.allowed.release(100)
    assert (await asyncio.wait_for(first.done, 60))[0][0] == 4
    with pytest.raises(ApiError, match="failed on this input"):
        await asyncio.wait_for(poison.done, 60)
    await eventually(lambda: not bench.loop.running)
    # Each was tried again by itself, through the way on which nobody can join.
    assert sorted(bench.engine.batches) == sorted([["bbbb"], [POISON], ["proof"]])


async def test_a_result_that_is_no_number_fails_its_text(bench: Bench) -> None:
    odd = bench.submit(NOT_A_NUMBER)
    bench.engine.allowed.release(100)
    with pytest.raises(ApiError, match="failed on this input"):
        await asyncio.wait_for(odd.done, 60)


async def test_the_predicted_wait_shrinks_as_texts_leave(bench: Bench) -> None:
    jobs = [bench.submit(text) for text in ("a" * 10, "b" * 30)]
    await asyncio.sleep(0)
    waits = [bench.loop.predicted_wait(bench.now)]
    assert await bench.finish(jobs[0]) == 10
    waits.append(bench.loop.predicted_wait(bench.now))
    assert await bench.finish(jobs[1]) == 30
    waits.append(bench.loop.predicted_wait(bench.now))
    assert waits[0] > waits[1] > waits[2] == 0.0


async def test_a_batch_that_is_over_takes_nobody() -> None:
    delivered: list[int] = []
    batch = Joinable([unit("a")], lambda place, array: delivered.append(place))
    assert [place for place, _ in batch.take()] == [0]
    assert batch.offer(unit("b"))
    assert not batch.close(), "somebody came meanwhile"
    assert [place for place, _ in batch.take()] == [1]
    assert batch.close()
    assert not batch.offer(unit("c"))
