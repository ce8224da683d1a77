"""The backlog's bookkeeping: order, computing once, leaving, coming back."""

import asyncio

import pytest

from sluice_worker.backlog import Backlog, Entry, Job
from sluice_worker.engines.base import Unit


def unit(name: str, tokens: int = 10) -> Unit:
    return Unit((1,) * tokens, None, name.encode())


def queued(backlog: Backlog, *names: str, due: float = 1.0, now: float = 0.0) -> Job:
    job = Job(len(names), 100.0, asyncio.get_running_loop().create_future())
    backlog.add(job, [unit(n) for n in names], [0.5] * len(names), [due] * len(names), now)
    return job


def take(backlog: Backlog, budget: int = 1000) -> list[Entry]:
    return backlog.take(budget=budget, max_size=100, padded=False)


def names(entries: list[Entry]) -> list[str]:
    return [entry.unit.key.decode() for entry in entries]


async def test_the_earliest_due_comes_first_and_equals_in_order_of_arrival() -> None:
    backlog = Backlog()
    queued(backlog, "b", "c", due=2.0)
    queued(backlog, "a", due=1.0)
    queued(backlog, "d", due=2.0)
    assert names(take(backlog, budget=20)) == ["a", "b"]
    assert names(take(backlog)) == ["c", "d"]
    assert take(backlog) == []


async def test_equal_units_wait_once_and_are_delivered_to_all() -> None:
    backlog = Backlog()
    one, other = queued(backlog, "x", "x"), queued(backlog, "y", "x")
    assert len(backlog) == 2
    assert backlog.cost_seconds == 1.0
    entry = take(backlog, budget=10)[0]
    assert [(w.job, w.position) for w in entry.waiters] == [(one, 0), (one, 1), (other, 1)]


async def test_a_running_unit_is_joined_until_it_is_finished() -> None:
    backlog = Backlog()
    queued(backlog, "x")
    (entry,) = take(backlog)
    queued(backlog, "x")
    assert take(backlog) == []
    assert len(entry.waiters) == 2
    backlog.finish(entry)
    queued(backlog, "x")
    assert names(take(backlog)) == ["x"]


async def test_an_urgent_twin_pulls_a_unit_forward() -> None:
    backlog = Backlog()
    queued(backlog, "a", due=1.0)
    queued(backlog, "x", due=5.0)
    queued(backlog, "x", due=0.5)
    assert names(take(backlog, budget=10)) == ["x"]
    assert names(take(backlog)) == ["a"]
    assert take(backlog) == []


async def test_what_only_a_leaver_wanted_is_skipped() -> None:
    backlog = Backlog()
    leaver = queued(backlog, "mine", "shared")
    queued(backlog, "shared")
    backlog.abandon(leaver)
    assert backlog.waiting == 1
    assert backlog.cost_seconds == pytest.approx(0.5)
    assert names(take(backlog)) == ["shared"]
    queued(backlog, "mine")  # it left no trace: an equal unit is computed
    assert names(take(backlog)) == ["mine"]


async def test_a_unit_of_a_failed_batch_comes_back_alone() -> None:
    backlog = Backlog()
    queued(backlog, "a", "b", "c")
    first, second, _ = take(backlog)
    backlog.again(first)
    backlog.again(second)
    queued(backlog, "d", due=0.0)
    assert names(take(backlog)) == ["d"]
    assert names(take(backlog)) == ["a"]
    assert names(take(backlog)) == ["b"]


async def test_work_that_is_due_later_holds_nobody_up() -> None:
    backlog = Backlog()
    for second in range(10):
        queued(backlog, f"unit {second}", due=float(second))
    assert backlog.later_than(20.0) == 0
    assert backlog.later_than(6.5) == pytest.approx(3 * 0.5)
    assert backlog.later_than(-1.0) == pytest.approx(backlog.cost_seconds)
    queued(backlog, "unit 9", due=0.0)  # pulled forward
    assert backlog.later_than(6.5) == pytest.approx(2 * 0.5)
    take(backlog)
    assert backlog.later_than(-1.0) == 0


async def test_a_job_resolves_with_its_arrays_in_order() -> None:
    job = Job(2, 1.0, asyncio.get_running_loop().create_future())
    job.deliver(1, "second", 0.2)  # type: ignore[arg-type]
    assert not job.done.done()
    job.deliver(0, "first", 0.1)  # type: ignore[arg-type]
    assert await job.done == ["first", "second"]
    assert job.service_seconds == pytest.approx(0.3)
    assert "0 of 2 units missing" in repr(job)


async def test_the_status_line() -> None:
    backlog = Backlog()
    queued(backlog, "a", "b")
    assert repr(backlog) == "<Backlog 2 units waiting, 1.000 s of work>"


async def test_a_running_unit_that_nobody_wants_is_told_and_not_joined() -> None:
    class Told(Unit):
        told = 0

        def withdraw(self) -> None:
            Told.told += 1

    backlog = Backlog()
    told = Told((1,), None, b"x")
    jobs = [Job(1, 100.0, asyncio.get_running_loop().create_future()) for _ in range(2)]
    for job in jobs:
        backlog.add(job, [told], [0.5], [1.0], 0.0)
    (entry,) = take(backlog)
    backlog.abandon(jobs[0])
    assert Told.told == 0
    backlog.abandon(jobs[1])
    assert Told.told == 1
    queued(backlog, "x")
    (anew,) = take(backlog)
    assert anew is not entry
    backlog.finish(entry)
    queued(backlog, "x")
    assert take(backlog) == [], "the end of the withdrawn one made its twin forgotten"
