"""What the connections of one server share: their times, enforced for all of them at once."""

import asyncio

from sluice_api.errors import ApiError
from sluice_gateway.edge import SWEEP_SECONDS, Connections
from sluice_gateway.settings import EdgeLimits
from sluice_gateway.timers import STANDSTILL_SECONDS
from tests.support.event_loops import eventually, on_uvloop, stand_still


class Waiting:
    """A connection that waits to be heard of, and notes whether it was whenever it is judged."""

    idle = True
    owing_since = None

    def __init__(self) -> None:
        self.heard = False
        self.judged: list[bool] = []

    def hear(self) -> None:
        self.heard = True

    def enforce_times(self, now: float) -> None:
        self.judged.append(self.heard)

    def evict(self) -> None: ...
    def cut_short(self, error: ApiError) -> None: ...


@on_uvloop
async def test_nobody_is_late_for_what_came_while_the_process_stood_still() -> None:
    connections, waiting = Connections(EdgeLimits()), Waiting()
    connections.connections.add(waiting)
    connections.start(asyncio.get_running_loop())
    await eventually(lambda: len(waiting.judged) > 1)
    seconds = SWEEP_SECONDS + 2 * STANDSTILL_SECONDS
    await stand_still(seconds, waiting.hear, meanwhile=waiting.judged.clear)
    await eventually(lambda: len(waiting.judged) > 1)
    connections.close()
    assert all(waiting.judged)
