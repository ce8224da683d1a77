"""What this gateway sees of every service, told to whoever decides how many workers there are.

The main path counts in a :class:`Tally` per service; a :class:`DemandFeed` turns the tallies into
one record per service and revision each second, and at once where waiting a second would cost: a
service is asked for that has no worker, or arrivals step up. Answers from the cache are no demand.
A service at rest is told of every three seconds only, for the whole time at once: most services
rest most of the time, and there may be thousands. ``control.admin`` streams the feed.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, Protocol
from zlib import crc32

import msgspec

from sluice_api import wire
from sluice_api.tasks import Task

INTERVAL_SECONDS: Final = 1.0
URGENT_PAUSE_SECONDS: Final = 0.1
"""The least time between two records of a service that are sent out of turn."""
REST_TICKS: Final = 3
"""Seconds between the records of a service at rest; readers take five without one for silence."""
UNATTENDED_SECONDS: Final = 15.0
"""For so long nobody has read; a restart of the operator and a change of its leader take less."""
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
        "rested_since",
        "service_seconds",
        "started",
        "step_at",
        "version",
        "work_units",
    )

    def __init__(self, now: float, on_step: Callable[[], None]) -> None:
        self.on_step = on_step
        self.step_at = STEP_FLOOR
        self.answer_digests: dict[str, str] = {}
        self.version = -1
        """Of the service's endpoints, when they were last told."""
        self.rested_since: float | None = None
        """Since when nothing was told because there was nothing to tell."""
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


class Sighting(NamedTuple):
    """The workers of one revision and what they say they can do."""

    revision: str
    tasks: list[Task]
    workers: list[wire.WorkerSeen]


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
    @property
    def version(self) -> int: ...
    @property
    def settled(self) -> bool: ...
    def sightings(self) -> list[Sighting]: ...
    def oldest_held_seconds(self, now: float) -> float: ...


class DemandFeed:
    """Makes the records and hands each to every subscriber.

    Args:
        gateway: identity of this process.
        services: called for the services there are now.
        listener: told of each service's records as well, and whether they were in turn.
        attended: told False when nobody has read for a while, and True when somebody does again.
    """

    def __init__(
        self,
        gateway: str,
        services: Callable[[], Iterable[Observed]],
        listener: Callable[[list[wire.Demand], bool], None] | None = None,
        attended: Callable[[bool], None] | None = None,
    ) -> None:
        self._gateway = gateway
        self._services = services
        self._listener = listener
        self._on_attended = attended
        self._attended = True
        self._read_at = time.monotonic()
        self._sequence = 0
        self._subscribers: set[asyncio.Queue[bytes | None]] = set()
        self._joined = False

    def __repr__(self) -> str:
        return f"<DemandFeed {self._sequence} records, {len(self._subscribers)} subscribers>"

    async def run(self) -> None:
        """Publish every service once a second, on a grid that does not drift."""
        due = time.monotonic() + INTERVAL_SECONDS
        tick = 0
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + INTERVAL_SECONDS, time.monotonic())
            tick += 1
            self.tick(tick, time.monotonic())

    def tick(self, number: int, now: float) -> None:
        """Publish what there is to tell at the ``number``-th second."""
        everybody, self._joined = self._joined, False
        services = list(self._services())
        if not services:
            self._send(b"\n")  # The reader must hear that this lives.
        for service in services:
            turn = crc32(service.name.encode()) % REST_TICKS == number % REST_TICKS
            if everybody or turn or not _rests(service):
                self._publish(service, now, regular=True)
            elif self._subscribers or self._listener is not None:
                tally = service.tally
                if tally.rested_since is None:
                    tally.rested_since = tally.started
                tally.reset(now)
        if self._subscribers:
            self._read_at = now
        self._judge(now - self._read_at < UNATTENDED_SECONDS)

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
        self._joined = True  # It is told of every service within a second.
        self._judge(attended=True)
        try:
            yield _lines(queue)
        finally:
            self._subscribers.discard(queue)

    def close(self) -> None:
        """End all streams."""
        for queue in list(self._subscribers):
            self._end(queue)

    def _judge(self, attended: bool) -> None:
        if self._on_attended is not None and attended != self._attended:
            self._attended = attended
            self._on_attended(attended)

    def _publish(self, service: Observed, now: float, *, regular: bool) -> None:
        tally = service.tally
        records = self.records(service, now)
        if self._listener is not None:
            self._listener(records, regular)
        if regular:
            tally.step_at = max(STEP_FLOOR, STEP_FACTOR * tally.arrivals)
        else:
            tally.step_at *= STEP_FACTOR
        tally.rested_since = None
        tally.version = service.version
        tally.reset(now)
        if self._subscribers:
            self._send(b"\n".join(_encode(record) for record in records) + b"\n")

    def _send(self, data: bytes) -> None:
        for queue in list(self._subscribers):
            try:
                queue.put_nowait(data)
            except asyncio.QueueFull:
                self._end(queue)

    def records(self, service: Observed, now: float) -> list[wire.Demand]:
        """What there is to tell of ``service``: the rest before the interval, the interval that
        ends ``now``, and the workers of other revisions than the one that answers."""
        tally = service.tally
        records = []
        since = tally.started
        if tally.rested_since is not None:
            if _counted(tally):
                # A step after a long rest must not look like a few requests in a long time.
                records.append(self._record(service, tally.started - tally.rested_since))
            else:
                since = tally.rested_since
        record = self._record(service, now - since)
        record.arrivals = tally.arrivals
        record.held = service.held
        record.oldest_held_seconds = round(service.oldest_held_seconds(now), 6)
        record.completions = tally.completions
        record.service_seconds = round(tally.service_seconds, 6)
        record.in_flight = service.in_flight
        record.work_units = tally.work_units
        record.cache_hits = tally.cache_hits
        record.ready_endpoints = service.ready_endpoints
        record.answer_digests = tally.answer_digests
        record.tasks = service.tasks
        record.wake = service.held > 0 and service.ready_endpoints == 0
        records.append(record)
        for sighting in service.sightings():
            if sighting.revision == service.revision:
                record.workers = sighting.workers
            else:
                records.append(self._of_another_revision(service, sighting, now - since))
        return records

    def _of_another_revision(
        self, service: Observed, sighting: Sighting, seconds: float
    ) -> wire.Demand:
        """Workers before their turn in a roll-out, or after it: nobody else can see them."""
        record = self._record(service, seconds)
        record.revision = sighting.revision
        record.workers_only = True
        record.tasks = sighting.tasks
        record.workers = sighting.workers
        for worker in sighting.workers:
            if worker.answer_digest:
                record.answer_digests = {sighting.revision: worker.answer_digest}
        return record

    def _record(self, service: Observed, seconds: float) -> wire.Demand:
        """A record of nothing."""
        self._sequence += 1
        return wire.Demand(
            sequence=self._sequence,
            gateway=self._gateway,
            namespace=service.namespace,
            service=service.name,
            revision=service.revision,
            interval_seconds=round(seconds, 6),
        )

    def _end(self, queue: "asyncio.Queue[bytes | None]") -> None:
        self._subscribers.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)


async def _lines(queue: "asyncio.Queue[bytes | None]") -> AsyncIterator[bytes]:
    while (line := await queue.get()) is not None:
        yield line


def _counted(tally: Tally) -> bool:
    return bool(tally.arrivals or tally.completions or tally.cache_hits)


def _rests(service: Observed) -> bool:
    """Nothing happens, and what was told of its workers still holds."""
    tally = service.tally
    return (
        not _counted(tally)
        and tally.version == service.version
        and not service.held
        and not service.in_flight
        and service.settled
    )
