"""Whatever waits: budgets hold, the most urgent runs, nobody starves, every unit runs once."""

import asyncio
import heapq

from hypothesis import given
from hypothesis import strategies as st

from sluice_worker.backlog import Backlog, Job
from sluice_worker.batching import PATIENCE_SECONDS, choose, due_times
from sluice_worker.engines.base import Unit

LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=60)


def computed(lengths: list[int], padded: bool) -> int:
    return len(lengths) * max(lengths) if padded else sum(lengths)


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 40), st.booleans())
def test_a_batch_holds_the_first_and_keeps_the_budget(
    lengths: list[int], budget: int, max_size: int, padded: bool
) -> None:
    chosen = choose(lengths, budget=budget, max_size=max_size, padded=padded)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= max_size
    assert len(chosen) == 1 or computed([lengths[i] for i in chosen], padded) <= budget


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 40))
def test_a_packed_batch_leaves_no_room_for_the_next(
    lengths: list[int], budget: int, max_size: int
) -> None:
    chosen = choose(lengths, budget=budget, max_size=max_size, padded=False)
    full = len(chosen) in (max_size, len(lengths))
    assert full or sum(lengths[: len(chosen) + 1]) > budget


ARRIVALS = st.lists(
    st.tuples(st.floats(0, 100), st.floats(0.001, 3600), st.floats(0.0001, 0.5)), min_size=2
)


@given(ARRIVALS)
def test_nobody_is_overtaken_by_who_came_much_later(
    arrivals: list[tuple[float, float, float]],
) -> None:
    waiting = [
        (due_times(arrival, arrival + left, [cost])[0], arrival) for arrival, left, cost in arrivals
    ]
    heapq.heapify(waiting)
    last_to_come = 0.0
    while waiting:
        _, arrival = heapq.heappop(waiting)
        assert last_to_come <= arrival + PATIENCE_SECONDS + 1e-9
        last_to_come = max(last_to_come, arrival)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.integers(1, 80)), min_size=1, max_size=12),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 300),
    st.integers(1, 16),
    st.booleans(),
    st.data(),
)
def test_every_unit_that_is_wanted_runs_exactly_once(
    requests: list[list[tuple[int, int]]],
    budget: int,
    max_size: int,
    padded: bool,
    data: st.DataObject,
) -> None:
    loop = asyncio.new_event_loop()
    try:
        backlog, jobs = Backlog(), []
        for number, request in enumerate(requests):
            units = [Unit((mark,) * size, None, bytes((mark, size))) for mark, size in request]
            job = Job(len(units), 1e9, loop.create_future())
            dues = due_times(number * 0.1, 1e9, [0.01] * len(units))
            backlog.add(job, units, [0.01] * len(units), dues, number * 0.1)
            jobs.append((job, {unit.key for unit in units}))
        left = data.draw(st.sets(st.integers(0, len(jobs) - 1)))
        for number in left:
            backlog.abandon(jobs[number][0])
        wanted = set().union(*(keys for n, (_, keys) in enumerate(jobs) if n not in left))
        ran: list[bytes] = []
        while batch := backlog.take(budget=budget, max_size=max_size, padded=padded):
            for entry in batch:
                ran.append(entry.unit.key)
                backlog.finish(entry)
        assert sorted(ran) == sorted(wanted)
        assert backlog.waiting == 0
        assert backlog.cost_seconds == 0
    finally:
        loop.close()
