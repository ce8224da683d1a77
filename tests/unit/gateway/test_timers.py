"""The timer wheel on a real loop: never early, once, and not after cancel."""

import asyncio
import time

from sluice_gateway.timers import (
    GRACE_SECONDS,
    RESOLUTION_SECONDS,
    STANDSTILL_SECONDS,
    Grace,
    TimerWheel,
)
from tests.support.event_loops import on_uvloop, stand_still


async def test_fires_in_time_and_once() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    fired: list[float] = []
    began = time.monotonic()
    for delay in (0.05, 0.0, 0.02):
        wheel.after(delay, lambda delay=delay: fired.append(delay))  # type: ignore[misc]
    done = asyncio.Event()
    wheel.after(0.08, done.set)
    await asyncio.wait_for(done.wait(), 60)
    assert time.monotonic() - began >= 0.08
    assert fired == [0.0, 0.02, 0.05]
    assert repr(wheel) == "<TimerWheel 0 pending>"


async def test_never_early() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    late: list[float] = []
    done = asyncio.Event()
    for number in range(50):
        moment = time.monotonic() + number * 0.001

        def fire(moment: float = moment) -> None:
            late.append(time.monotonic() - moment)
            if len(late) == 50:
                done.set()

        wheel.at(moment, fire)
    await asyncio.wait_for(done.wait(), 60)
    assert min(late) >= 0


async def test_cancelled_does_not_fire() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    fired: list[str] = []
    timer = wheel.after(0.01, lambda: fired.append("cancelled"))
    timer.cancel()
    timer.cancel()
    done = asyncio.Event()
    wheel.after(3 * RESOLUTION_SECONDS, done.set)
    await asyncio.wait_for(done.wait(), 60)
    assert fired == []


async def test_broken_callback_stops_nobody(caplog: object) -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    done = asyncio.Event()
    wheel.after(0.0, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    wheel.after(0.03, done.set)
    await asyncio.wait_for(done.wait(), 60)


async def test_close_drops_everything() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    fired: list[int] = []
    wheel.after(0.0, lambda: fired.append(1))
    wheel.close()
    await asyncio.sleep(3 * RESOLUTION_SECONDS)
    assert fired == []


class Entry:
    def __init__(self, done: asyncio.Event) -> None:
        self.fire = done.set


async def test_what_stands_in_a_slot_fires_unless_it_is_taken_out() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    moment = time.monotonic() + 3 * RESOLUTION_SECONDS
    done, never = asyncio.Event(), asyncio.Event()
    gone = Entry(never)
    wheel.slot(moment)[gone] = None
    wheel.slot(moment)[Entry(done)] = None
    del wheel.slot(moment)[gone]
    await asyncio.wait_for(done.wait(), 60)
    assert time.monotonic() >= moment
    assert not never.is_set()


async def test_a_slot_that_is_over_is_not_given_again() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    moment = time.monotonic() + RESOLUTION_SECONDS
    for _ in range(3):  # The same moment, in time and then too late: it comes all the same.
        done = asyncio.Event()
        wheel.slot(moment)[Entry(done)] = None
        await asyncio.wait_for(done.wait(), 60)


@on_uvloop
async def test_what_came_while_the_process_stood_still_came_in_time() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    fired: list[str] = []
    answer = wheel.after(RESOLUTION_SECONDS, lambda: fired.append("late"))
    await stand_still(2 * STANDSTILL_SECONDS, answer.cancel)
    assert fired == []
    nothing = asyncio.Event()
    wheel.after(RESOLUTION_SECONDS, nothing.set)
    await stand_still(2 * STANDSTILL_SECONDS, lambda: None)
    await asyncio.wait_for(nothing.wait(), 60)  # What never came is late all the same.


def test_a_moment_is_given_after_a_standstill_and_never_twice_in_a_row() -> None:
    grace = Grace()
    assert grace.seconds(1000.0) == 0, "nothing was expected"
    grace.expect(1000.0)
    assert grace.seconds(1000.0 + STANDSTILL_SECONDS) == 0, "no more than busy"
    grace.expect(1000.0)
    assert grace.seconds(1000.0 + 2 * STANDSTILL_SECONDS) == 2 * STANDSTILL_SECONDS
    grace.expect(1000.0)
    assert grace.seconds(1100.0) == 0, "it was given one"
    grace.expect(1000.0)
    assert grace.seconds(1100.0) == GRACE_SECONDS
