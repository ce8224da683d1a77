"""The work queue: nothing twice at once, nothing forgotten, failures ever more rarely."""

import asyncio
import itertools
from collections import Counter

import pytest
from prometheus_client import CollectorRegistry

from sluice_operator.api_errors import NotFound, NotLeader, Throttled, Unavailable
from sluice_operator.instruments import Instruments
from sluice_operator.state import Key
from sluice_operator.work_queue import LONGEST_PAUSE_SECONDS, Reconcile, WorkQueue, pause_seconds
from tests.support.virtual_time import in_virtual_time

A, B, C = (Key("team", name) for name in "abc")


def queue_of(reconcile: Reconcile, workers: int = 2) -> WorkQueue:
    return WorkQueue(reconcile, workers, Instruments(CollectorRegistry()))


class Recorder:
    """Reconciles by noting when; can be told to take its time or to fail."""

    def __init__(self) -> None:
        self.began: list[tuple[float, Key]] = []
        self.running: Counter[Key] = Counter()
        self.most_at_once = 0
        self.takes = 0.0
        self.answers: list[float | Exception | None] = []

    async def __call__(self, key: Key) -> float | None:
        self.began.append((asyncio.get_running_loop().time(), key))
        self.running[key] += 1
        assert self.running[key] == 1, "one key is done by two workers"
        self.most_at_once = max(self.most_at_once, self.running.total())
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.running[key] -= 1
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def times(self) -> list[float]:
        first = self.began[0][0]
        return [round(at - first, 3) for at, _ in self.began]


@in_virtual_time
async def test_a_key_added_twice_is_done_once() -> None:
    recorder = Recorder()
    queue = queue_of(recorder)
    queue.open([A, B])
    queue.add(A)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(queue.run())
        await asyncio.sleep(1)
        running.cancel()
    assert [key for _, key in recorder.began] == [A, B]
    assert queue.idle


@in_virtual_time
async def test_a_key_added_while_it_runs_is_done_again_and_never_beside_itself() -> None:
    recorder = Recorder()
    recorder.takes = 5
    queue = queue_of(recorder, workers=4)
    queue.open([A])
    async with asyncio.TaskGroup() as group:
        running = group.create_task(queue.run())
        await asyncio.sleep(1)
        queue.add(A)
        queue.add(A, urgent=True)
        await asyncio.sleep(20)
        running.cancel()
    assert recorder.times() == [0, 5]


@in_virtual_time
async def test_as_many_run_side_by_side_as_there_are_workers() -> None:
    recorder = Recorder()
    recorder.takes = 1
    queue = queue_of(recorder, workers=3)
    queue.open(Key("team", str(number)) for number in range(9))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(queue.run())
        await asyncio.sleep(60)
        running.cancel()
    assert recorder.most_at_once == 3
    assert len(recorder.began) == 9


@in_virtual_time
async def test_urgent_keys_overtake() -> None:
    recorder = Recorder()
    queue = queue_of(recorder, workers=1)
    queue.open([A, B, C])
    queue.add(C, urgent=True)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(queue.run())
        await asyncio.sleep(1)
        running.cancel()
    assert [key for _, key in recorder.began] == [C, A, B]


@in_virtual_time
async def test_what_is_to_be_looked_at_again_comes_back_once() -> None:
    recorder = Recorder()
    recorder.answers = [7.0]
    queue = queue_of(recorder)
    queue.open([A])
    async with asyncio.TaskGroup() as group:
        running = group.create_task(queue.run())
        await asyncio.sleep(100)
        running.cancel()
    assert recorder.times() == [0, 7]


@in_virtual_time
async def test_an_event_comes_before_the_time_to_look_again() -> None:
    recorder = Recorder()
    recorder.answers = [50.0]
    queue = queue_of(recorder)
    queue.open([A])
    async with asyncio.TaskGroup() as group:
        running = group.create_task(queue.run())
        await asyncio.sleep(3)
        queue.add(A)
        await asyncio.sleep(100)
        running.cancel()
    assert recorder.times() == [0, 3]


@in_virtual_time
async def test_failures_come_back_ever_more_rarely_and_success_forgets_them() -> None:
    recorder = Recorder()
    broken = Unavailable("patch", "deployments", "no answer")
    recorder.answers = [broken, broken, broken, ValueError("a bug"), None]
    queue = queue_of(recorder)
    queue.open([A])
    async with asyncio.TaskGroup() as group:
        running = group.create_task(queue.run())
        await asyncio.sleep(100)
        running.cancel()
    times = recorder.times()
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert len(gaps) == 4
    for gap, whole in zip(gaps, (0.2, 0.4, 0.8, 1.6), strict=True):
        assert 0.74 * whole <= gap <= 1.26 * whole


@in_virtual_time
async def test_what_was_deleted_meanwhile_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    recorder.answers = [NotFound("patch", "a", "gone"), Unavailable("patch", "a", "silent"), None]
    queue = queue_of(recorder)
    queue.open([A])
    with caplog.at_level("INFO"):
        async with asyncio.TaskGroup() as group:
            running = group.create_task(queue.run())
            await asyncio.sleep(10)
            running.cancel()
    told = [r.levelname for r in caplog.records if r.message == "reconcile failed"]
    assert told == ["INFO", "WARNING"]


@in_virtual_time
async def test_events_do_not_undo_the_pause_of_a_failing_key() -> None:
    recorder = Recorder()
    recorder.answers = [Unavailable("patch", "deployments", "")] * 100
    queue = queue_of(recorder)
    queue.open([A])
    async with asyncio.TaskGroup() as group:
        running = group.create_task(queue.run())
        for _ in range(1000):
            queue.add(A)
            await asyncio.sleep(0.01)
        running.cancel()
    assert len(recorder.began) <= 16


@in_virtual_time
async def test_throttling_is_obeyed() -> None:
    recorder = Recorder()
    recorder.answers = [Throttled("patch", "deployments", "too many requests", 9.0)]
    queue = queue_of(recorder)
    queue.open([A])
    async with asyncio.TaskGroup() as group:
        running = group.create_task(queue.run())
        await asyncio.sleep(100)
        running.cancel()
    assert recorder.times() == [0, 9]


@in_virtual_time
async def test_a_closed_queue_forgets_and_takes_nothing_until_it_is_opened_again() -> None:
    recorder = Recorder()
    recorder.answers = [3.0, NotLeader()]
    queue = queue_of(recorder)
    queue.open([A])
    async with asyncio.TaskGroup() as group:
        running = group.create_task(queue.run())
        await asyncio.sleep(1)
        queue.add(B, after=2)
        queue.close()
        queue.add(C)
        await asyncio.sleep(50)
        assert [key for _, key in recorder.began] == [A]
        queue.open([B])
        await asyncio.sleep(50)
        running.cancel()
    assert [key for _, key in recorder.began] == [A, B]


@in_virtual_time
async def test_it_is_known_when_nothing_runs_any_more() -> None:
    recorder = Recorder()
    recorder.takes = 5
    queue = queue_of(recorder)
    queue.open([A])
    async with asyncio.TaskGroup() as group:
        running = group.create_task(queue.run())
        await asyncio.sleep(1)
        assert queue.age() == 0
        assert not await queue.finished(1.0)
        assert await queue.finished(10.0)
        running.cancel()


@pytest.mark.parametrize("failures", [1, 5, 20, 10_000])
def test_pauses_grow_to_a_minute_and_no_further(failures: int) -> None:
    assert pause_seconds(failures, 0.0) < pause_seconds(failures, 1.0)
    assert pause_seconds(failures, 1.0) <= 1.25 * LONGEST_PAUSE_SECONDS
