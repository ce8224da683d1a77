"""The loop on real lanes with a toy engine: work-conserving, fair, isolating, honest."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from sluice_api.errors import ApiError
from sluice_worker.backlog import Job
from sluice_worker.cost import CostModel, Load, WideGain
from sluice_worker.lanes import Lanes
from sluice_worker.lifecycle import FAILURES_IN_A_ROW, Progress
from sluice_worker.loop import Loop, Rules
from sluice_worker.metrics import Metrics
from tests.support.event_loops import eventually
from tests.support.worker_fakes import NOT_A_NUMBER, POISON, ToyEngine, unit

SECONDS_PER_TOKEN = 0.001
PROOF = unit("proof")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FixedGain(WideGain):
    """A toy's batches take no time, so what they gain is set, not learnt."""

    def __init__(self, gain: float) -> None:
        super().__init__(gain, threads=8)

    def observe(self, narrow_seconds: float, wide_seconds: float) -> None:
        pass


class Bench:
    """One loop and the parts a test looks at."""

    def __init__(self, *, threads: int = 1, width: int = 1, max_backlog: float = 10.0) -> None:
        self.engine = ToyEngine()
        self.threads_used: list[int] = []
        self.clock = Clock()
        self.lanes = Lanes(
            self.engine, threads=threads, width=width, set_threads=self.threads_used.append
        )
        cost = CostModel()
        for tokens in (10, 100, 1000):
            cost.observe(Load(tokens, tokens * tokens), SECONDS_PER_TOKEN * tokens)
        self.loop = Loop(
            self.lanes,
            cost,
            FixedGain(1.8),
            Rules(0.1, 8, max_backlog),
            Metrics(),
            Progress(),
            proof=PROOF,
            clock=self.clock,
        )

    def submit(self, *texts: str, left: float = 60.0) -> Job:
        return self.loop.submit([unit(text) for text in texts], self.clock.now + left)

    async def entered(self, batches: int = 1) -> None:
        """Wait until so many more batches have begun."""
        for _ in range(batches):
            assert await asyncio.to_thread(self.engine.entered.acquire, timeout=60)

    async def idle(self) -> None:
        """Wait until nothing is left to compute."""
        await eventually(lambda: not (self.loop.backlog.waiting or self.loop.running))


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def build(**options: float) -> Bench:
        made.append(Bench(**options))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for bench in made:
        bench.engine.gate.set()
        bench.lanes.close()


Make = Callable[..., Bench]


async def soon(future: Awaitable[object]) -> object:
    return await asyncio.wait_for(future, 60)


async def test_a_list_is_exploded_and_gathered_in_order(make: Make) -> None:
    bench = make()
    arrays = await soon(bench.submit("a", "bbb", "cc").done)
    assert [array[0] for array in arrays] == [1, 3, 2]  # type: ignore[attr-defined]


async def test_while_a_batch_runs_the_next_one_forms(make: Make) -> None:
    bench = make()
    bench.engine.gate.clear()
    first = bench.submit("first")
    await bench.entered()
    others = [bench.submit(text) for text in ("x", "yy", "zzz")]
    bench.engine.gate.set()
    await soon(asyncio.gather(first.done, *(job.done for job in others)))
    assert bench.engine.batches == [["first"], ["x", "yy", "zzz"]]


async def test_requests_of_one_turn_run_together(make: Make) -> None:
    bench = make()
    jobs = [bench.submit(text) for text in ("a", "b")]
    await soon(asyncio.gather(*(job.done for job in jobs)))
    assert bench.engine.batches == [["a", "b"]]


async def test_size_and_budget_bound_a_batch(make: Make) -> None:
    bench = make()
    await soon(bench.submit(*(f"{n:02d}" for n in range(20))).done)
    assert [len(batch) for batch in bench.engine.batches] == [8, 8, 4]
    budget = bench.loop.budget()
    assert budget <= 100  # 0.1 s at 1 ms a token
    await soon(bench.submit("a" * 60, "b" * 60).done)
    assert [len(batch) for batch in bench.engine.batches[3:]] == [1, 1]


async def test_alone_takes_all_threads_and_a_queue_one_each(make: Make) -> None:
    bench = make(threads=2, width=2)
    await soon(bench.submit("alone").done)
    assert bench.threads_used == [2]
    bench.engine.gate.clear()
    job = bench.submit(*("q" * 50 + str(n) for n in range(4)))
    await bench.entered(3)  # the lone one before, then two side by side
    assert bench.threads_used == [2, 1, 1]
    bench.engine.gate.set()
    await soon(job.done)


async def test_alone_takes_one_thread_where_more_do_not_pay(make: Make) -> None:
    bench = make(threads=2, width=2)
    bench.loop.wide = FixedGain(0.2)
    for number in range(5):
        await soon(bench.submit(f"alone {number}").done)
    assert bench.threads_used == [1] * 5


async def test_a_queue_takes_all_threads_where_that_beats_the_lanes(make: Make) -> None:
    bench = make(threads=2, width=2)
    bench.loop.wide = FixedGain(3.0)
    await soon(bench.submit(*("q" * 50 + str(n) for n in range(6))).done)
    assert set(bench.threads_used) == {2}


async def test_nothing_starts_beside_a_wide_batch(make: Make) -> None:
    bench = make(threads=2, width=2)
    bench.engine.gate.clear()
    first = bench.submit("wide")
    await bench.entered()
    second = bench.submit("later")
    await asyncio.sleep(0)
    assert not bench.lanes.available
    assert bench.engine.batches == [["wide"]]
    bench.engine.gate.set()
    await soon(asyncio.gather(first.done, second.done))


async def test_equal_units_are_computed_once(make: Make) -> None:
    bench = make()
    bench.engine.gate.clear()
    jobs = [bench.submit("same"), bench.submit("same", "same")]
    await bench.entered()
    jobs.append(bench.submit("same"))
    bench.engine.gate.set()
    await soon(asyncio.gather(*(job.done for job in jobs)))
    assert bench.engine.batches == [["same"]]


async def test_what_its_caller_left_is_not_computed(make: Make) -> None:
    bench = make()
    bench.engine.gate.clear()
    first = bench.submit("first")
    await bench.entered()
    leaver = bench.submit("left", "too")
    stayer = bench.submit("stays")
    bench.loop.abandon(leaver)
    bench.engine.gate.set()
    await soon(asyncio.gather(first.done, stayer.done))
    assert bench.engine.batches == [["first"], ["stays"]]
    assert leaver.done.cancelled()


@pytest.mark.parametrize("bad", [POISON, NOT_A_NUMBER])
async def test_a_bad_input_fails_alone(make: Make, bad: str) -> None:
    bench = make()
    jobs = [bench.submit("good"), bench.submit(bad), bench.submit("fine")]
    good, poisoned, fine = await asyncio.gather(*(job.done for job in jobs), return_exceptions=True)
    assert isinstance(poisoned, ApiError) and poisoned.code == "internal_error"
    assert not isinstance(good, BaseException) and good[0][0] == 4
    assert not isinstance(fine, BaseException) and fine[0][0] == 4
    await bench.idle()
    assert bench.loop.progress.failures_in_a_row == 0


async def test_who_fails_by_itself_says_nothing_about_the_engine(make: Make) -> None:
    bench = make()
    for _ in range(FAILURES_IN_A_ROW):
        with pytest.raises(ApiError):
            await soon(bench.submit(POISON).done)
        await bench.idle()
    assert bench.loop.progress.failures_in_a_row == 0
    assert bench.engine.batches == [[POISON], ["proof"]] * FAILURES_IN_A_ROW


async def test_failures_of_the_engine_are_counted_until_a_success(make: Make) -> None:
    bench = make()
    bench.engine.broken = True
    for expected in (1, 2, 3):
        with pytest.raises(ApiError):
            await soon(bench.submit("good").done)
        await bench.idle()
        assert bench.loop.progress.failures_in_a_row == expected
    bench.engine.broken = False
    await soon(bench.submit("good").done)
    assert bench.loop.progress.failures_in_a_row == 0


async def test_lanes_that_fail_side_by_side_have_the_engine_proved_alone(make: Make) -> None:
    bench = make(threads=2, width=2)
    bench.engine.gate.clear()
    jobs = [bench.submit(POISON + letter * 90) for letter in "ab"]
    await bench.entered(2)
    bench.engine.gate.set()
    await asyncio.gather(*(job.done for job in jobs), return_exceptions=True)
    await bench.idle()
    assert bench.engine.batches[2:] in ([["proof"]], [["proof"], ["proof"]])
    assert bench.loop.progress.failures_in_a_row == 0


async def test_progress_is_noted_while_work_waits_and_forgotten_when_idle(make: Make) -> None:
    bench = make()
    progress = bench.loop.progress
    assert progress.waiting_since is None
    bench.engine.gate.clear()
    job = bench.submit("a")
    assert progress.waiting_since == bench.clock.now
    bench.engine.gate.set()
    await soon(job.done)
    assert progress.waiting_since is None


async def test_overload_is_refused_at_once_with_the_predicted_wait(make: Make) -> None:
    bench = make(max_backlog=1.0)
    bench.engine.gate.clear()
    accepted: list[Job] = []
    refusal: ApiError | None = None
    while refusal is None and len(accepted) < 1000:
        try:
            accepted.append(bench.submit(f"{len(accepted):0100d}"))  # 0.1 s each
        except ApiError as error:
            refusal = error
    assert refusal is not None and refusal.code == "overloaded"
    wait = refusal.retry_after
    assert wait is not None
    assert 1.0 < wait < 1.3
    assert wait == pytest.approx(0.1 * len(accepted), rel=0.15)
    assert bench.loop.capacity().backlog_seconds == pytest.approx(wait)
    refusals = bench.loop.metrics.refused.labels("overloaded")._value.get()
    assert refusals == 1
    bench.engine.gate.set()
    await soon(asyncio.gather(*(job.done for job in accepted)))
    bench.submit("welcome again")


async def test_a_long_list_does_not_crowd_out_a_short_request(make: Make) -> None:
    bench = make(max_backlog=1.0)
    bench.engine.gate.clear()
    long = bench.submit(*(f"{number:0100d}" for number in range(100)))  # 10 s
    short = bench.submit("short")
    with pytest.raises(ApiError, match="waiting already"):
        bench.submit(*(f"{number:0101d}" for number in range(100)))
    bench.engine.gate.set()
    await soon(asyncio.gather(long.done, short.done))
    place = next(n for n, batch in enumerate(bench.engine.batches) if "short" in batch)
    assert place < 20


async def test_a_batch_that_has_run_for_a_while_counts_for_less(make: Make) -> None:
    bench = make()
    bench.engine.gate.clear()
    bench.submit("x" * 500)
    await bench.entered()
    before = bench.loop.predicted_wait(bench.clock.now)
    assert before == pytest.approx(0.5, rel=0.15)
    assert bench.loop.predicted_wait(bench.clock.now + 0.3) == pytest.approx(before - 0.3)
    assert bench.loop.predicted_wait(bench.clock.now + 9.0) == 0


async def test_work_being_tokenised_counts(make: Make) -> None:
    bench = make(max_backlog=1.0)
    with bench.loop.admit(tokens=2000, units=1, deadline=bench.clock.now + 60):
        assert bench.loop.predicted_wait(bench.clock.now) == pytest.approx(2.0, rel=0.15)
        with pytest.raises(ApiError, match="waiting already"):
            bench.loop.admit(tokens=10, units=1, deadline=bench.clock.now + 60)
    assert bench.loop.predicted_wait(bench.clock.now) == 0


async def test_a_worker_that_has_computed_nothing_for_long_tries_what_it_thinks_too_much(
    make: Make,
) -> None:
    bench = make()
    with pytest.raises(ApiError):
        bench.loop.admit(tokens=2000, units=1, deadline=bench.clock.now + 1)
    bench.clock.now += 30
    with bench.loop.admit(tokens=2000, units=1, deadline=bench.clock.now + 1):
        pass
    bench.submit("a")
    await bench.idle()
    with pytest.raises(ApiError):  # It has just learnt again.
        bench.loop.admit(tokens=2000, units=1, deadline=bench.clock.now + 1)


async def test_two_lanes_answer_a_queue_in_half_the_time(make: Make) -> None:
    one, two = make(), make(threads=2, width=2)
    waits = []
    for bench in (one, two):
        bench.engine.gate.clear()
        for number in range(20):
            bench.submit(f"{number:090d}")
        waits.append(bench.loop.predicted_wait(bench.clock.now))
    assert waits[1] == pytest.approx(waits[0] / 2)


async def test_service_seconds_add_up_to_the_time_the_worker_was_busy(make: Make) -> None:
    bench = make()
    jobs = [bench.submit("aaaa"), bench.submit("bb", "cc")]
    await soon(asyncio.gather(*(job.done for job in jobs)))
    busy = bench.loop.metrics.batch_seconds._sum.get()
    assert sum(job.service_seconds for job in jobs) == pytest.approx(busy)


async def test_capacity_is_what_runs_plus_a_batch_of_requests(make: Make) -> None:
    bench = make(threads=2, width=2)
    for _ in range(200):
        bench.loop.unit_tokens.add(25)
        bench.loop.job_units.add(2)
    capacity = bench.loop.capacity()
    per_batch = min(8, bench.loop.budget() / 25) / 2
    assert capacity.limit == pytest.approx(3 * per_batch, abs=1)
    assert capacity.header().startswith(f"{capacity.limit};0;")
