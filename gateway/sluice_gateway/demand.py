"""What this gateway sees of every service, told to whoever decides how many workers there are.

The main path counts in a :class:`Tally` per service; a :class:`DemandFeed` turns the tallies into
one record per service each second, and at once where waiting a second would cost: a service is
asked for that has no worker, or arrivals step up. Answers from the cache are no demand.
``control.admin`` streams the feed.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final, Protocol

import msgspec

from sluice_api import wire
from sluice_api.tasks import Task

INTERVAL_SECONDS: Final = 1.0
URGENT_PAUSE_SECONDS: Final = 0.1
"""The least time between two records of a service that are sent out of turn."""
STEP_FACTOR: Final = 2
STEP_FLOOR: Final = 10
MAX_BUFFERED_RECORDS: Final = 20_000

_encode = msgspec.json.Encoder().encode


class Tally:
    """Counters of one service since the last record."""

    __slots__ = (
        "answer_digests",
        "arrivals",
        "cache_hits",
        "completions",
        "on_step",
        "service_seconds",
        "started",
        "step_at",
        "work_units",
    )

    def __init__(self, now: float, on_step: Callable[[], None]) -> None:
        self.on_step = on_step
        self.step_at = STEP_FLOOR
        self.answer_digests: dict[str, str] = {}
        self.reset(now)

    def reset(self, now: float) -> None:
        self.started = now
        self.arrivals = 0
        self.completions = 0
        self.service_seconds = 0.0
        self.work_units = 0
        self.cache_hits = 0

    def arrived(self) -> None:
        """A request needs a worker."""
        self.arrivals += 1
        if self.arrivals == self.step_at:
            self.on_step()

    def completed(self, service_seconds: float, units: int) -> None:
        """A worker answered ``units`` inputs and computed for so long."""
        self.completions += 1
        self.service_seconds += service_seconds
        self.work_units += units


class Observed(Protocol):
    """What the feed reads of a service."""

    namespace: str
    name: str
    tally: Tally

    @property
    def revision(self) -> str: ...
    @property
    def tasks(self) -> list[Task]: ...
    @property
    def ready_endpoints(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def held(self) -> int: ...
    def oldest_held_seconds(self, now: float) -> float: ...


class DemandFeed:
    """Makes the records and hands each to every subscriber.

    Args:
        gateway: identity of this process.
        services: called for the services there are now.
    """

    def __init__(self, gateway: str, services: Callable[[], Iterable[Observed]]) -> None:
        self._gateway = gateway
        self._services = services
        self._sequence = 0
        self._subscribers: set[asyncio.Queue[bytes | None]] = set()

    def __repr__(self) -> str:
        return f"<DemandFeed {self._sequence} records, {len(self._subscribers)} subscribers>"

    async def run(self) -> None:
        """Publish every service once a second, on a grid that does not drift."""
        due = time.monotonic() + INTERVAL_SECONDS
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + INTERVAL_SECONDS, time.monotonic())
            for service in self._services():
                self._publish(service, time.monotonic(), regular=True)

    def urgent(self, service: Observed) -> None:
        """Publish ``service`` out of turn, unless that was just done."""
        now = time.monotonic()
        if now - service.tally.started >= URGENT_PAUSE_SECONDS or service.tally.arrivals <= 1:
            self._publish(service, now, regular=False)

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[bytes]]:
        """Lines of NDJSON, from now on. The stream ends when the reader falls far behind."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_BUFFERED_RECORDS)
        self._subscribers.add(queue)
        try:
            yield _lines(queue)
        finally:
            self._subscribers.discard(queue)

    def close(self) -> None:
        """End all streams."""
        for queue in list(self._subscribers):
            self._end(queue)

    def _publish(self, service: Observed, now: float, *, regular: bool) -> None:
        tally = service.tally
        self._sequence += 1
        line = _encode(self.record(service, now)) + b"\n"
        if regular:
            tally.step_at = max(STEP_FLOOR, STEP_FACTOR * tally.arrivals)
        else:
            tally.step_at *= STEP_FACTOR
        tally.reset(now)
        for queue in list(self._subscribers):
            try:
                queue.put_nowait(line)
            except asyncio.QueueFull:
                self._end(queue)

    def record(self, service: Observed, now: float) -> wire.Demand:
        """The record of ``service`` for the interval that ends ``now``."""
        tally = service.tally
        return wire.Demand(
            sequence=self._sequence,
            gateway=self._gateway,
            namespace=service.namespace,
            service=service.name,
            revision=service.revision,
            interval_seconds=round(now - tally.started, 6),
            arrivals=tally.arrivals,
            held=service.held,
            oldest_held_seconds=round(service.oldest_held_seconds(now), 6),
            completions=tally.completions,
            service_seconds=round(tally.service_seconds, 6),
            in_flight=service.in_flight,
            work_units=tally.work_units,
            cache_hits=tally.cache_hits,
            ready_endpoints=service.ready_endpoints,
            answer_digests=tally.answer_digests,
            tasks=service.tasks,
            wake=service.held > 0 and service.ready_endpoints == 0,
        )

    def _end(self, queue: "asyncio.Queue[bytes | None]") -> None:
        self._subscribers.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)


async def _lines(queue: "asyncio.Queue[bytes | None]") -> AsyncIterator[bytes]:
    while (line := await queue.get()) is not None:
        yield line
