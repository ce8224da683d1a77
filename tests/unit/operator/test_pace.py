"""The pace: a burst, then so many a second, in turn."""

import asyncio

from sluice_operator.pace import Pace
from tests.support.virtual_time import in_virtual_time


def test_a_burst_is_free_and_then_it_costs_time() -> None:
    now = 0.0
    pace = Pace(10, 3, clock=lambda: now)
    assert [round(pace.reserve(), 3) for _ in range(5)] == [0, 0, 0, 0.1, 0.2]
    now = 100.0
    assert [round(pace.reserve(), 3) for _ in range(4)] == [0, 0, 0, 0.1]


@in_virtual_time
async def test_who_waits_is_served_in_turn_at_the_pace() -> None:
    loop = asyncio.get_running_loop()
    pace = Pace(10, 1, clock=loop.time)
    began, times = loop.time(), []

    async def take() -> None:
        await pace.take()
        times.append(round(loop.time() - began, 3))

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(take())
    assert times == [0, 0.1, 0.2, 0.3, 0.4]
