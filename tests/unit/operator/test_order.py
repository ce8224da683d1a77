"""Watch events come out in the order in which they were read, however they are brought."""

import asyncio
import random
from typing import Any

from sluice_operator.order import MOST_TURNS, QUIET_TURNS, InOrder


def event(version: int, change: str = "MODIFIED") -> Any:
    metadata = {"name": f"pod-{version}", "resourceVersion": str(version)}
    return {"type": change, "object": {"kind": "Pod", "metadata": metadata}}


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(taken: list[Any], count: int) -> None:
    async with asyncio.timeout(60):
        while len(taken) < count:  # noqa: ASYNC110
            await asyncio.sleep(0)


def versions(taken: list[Any]) -> list[int]:
    return [int(each["object"]["metadata"]["resourceVersion"]) for each in taken]


async def test_what_is_overtaken_on_the_way_is_taken_first() -> None:
    taken: list[Any] = []
    order = InOrder(taken.append)
    order.add(event(9, change="DELETED"))
    await turns(QUIET_TURNS // 2)
    assert taken == [], "an earlier one may be on its way"
    order.add(event(7))
    await turns(QUIET_TURNS // 2)
    assert taken == [], "and another one"
    order.add(event(8))
    await until(taken, 3)
    assert versions(taken) == [7, 8, 9]
    assert repr(order) == "<InOrder, 0 events held>"


async def test_each_of_many_that_are_brought_side_by_side_is_taken_once_and_in_order() -> None:
    taken: list[Any] = []
    order = InOrder(taken.append)
    chance = random.Random(4)

    async def bring(versions: list[int]) -> None:
        """As kopf does those of one object."""
        await turns(2)
        for version in versions:
            await turns(3)
            order.add(event(version))

    for began in range(0, 3000, 30):
        read = list(range(began, began + 30))
        chance.shuffle(read)
        async with asyncio.TaskGroup() as group:
            for one in (read[:15], read[15:28], read[28:]):
                group.create_task(bring(sorted(one)))
        await until(taken, began + 30)
    assert versions(taken) == list(range(3000))


async def test_nothing_is_held_back_for_long_however_much_comes() -> None:
    taken: list[Any] = []
    order = InOrder(taken.append)
    for version in range(2 * MOST_TURNS):
        order.add(event(version))
        await turns(1)
    assert len(taken) >= MOST_TURNS - 1


async def test_one_that_cannot_be_taken_in_keeps_no_other_out() -> None:
    taken: list[Any] = []

    def take(event: Any) -> None:
        if versions([event]) == [2]:
            raise KeyError("spec")
        taken.append(event)

    order = InOrder(take)
    for version in (1, 2, 3):
        order.add(event(version))
    await until(taken, 2)
    assert versions(taken) == [1, 3]


async def test_an_old_version_that_comes_late_is_still_handed_on() -> None:
    """A watch that lists anew brings what was brought before."""
    taken: list[Any] = []
    order = InOrder(taken.append)
    order.add(event(9))
    await until(taken, 1)
    order.add(event(2))
    await until(taken, 2)
    assert versions(taken) == [9, 2]
