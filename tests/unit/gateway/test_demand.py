"""Demand: one record an interval, at once when it matters, and counters that start anew."""

import json

from sluice_api import wire
from sluice_api.tasks import Task
from sluice_gateway.demand import MAX_BUFFERED_RECORDS, STEP_FLOOR, DemandFeed, Sighting, Tally


class Watched:
    """A service as the feed sees it."""

    namespace = "default"
    name = "emb"
    revision = "r1"

    def __init__(self) -> None:
        self.urgent: list[int] = []
        self.tally = Tally(0.0, lambda: self.urgent.append(self.tally.arrivals))
        self.tasks = [Task.EMBEDDINGS]
        self.ready_endpoints = 0
        self.in_flight = 0
        self.held = 0
        self.seen: list[Sighting] = []

    version = 0
    settled = True

    def sightings(self) -> list[Sighting]:
        return self.seen

    def oldest_held_seconds(self, now: float) -> float:
        return 1.5 if self.held else 0.0


def test_record() -> None:
    service = Watched()
    feed = DemandFeed("g-1", lambda: [service])
    service.tally.arrived()
    service.tally.completed(0.25, 3)
    service.tally.cache_hits += 1
    service.held = 2
    (record,) = feed.records(service, 1.0)
    assert record == wire.Demand(
        sequence=1,
        gateway="g-1",
        namespace="default",
        service="emb",
        revision="r1",
        interval_seconds=1.0,
        arrivals=1,
        held=2,
        oldest_held_seconds=1.5,
        completions=1,
        service_seconds=0.25,
        work_units=3,
        cache_hits=1,
        tasks=[Task.EMBEDDINGS],
        wake=True,
    )
    service.ready_endpoints = 1
    (record,) = feed.records(service, 1.0)
    assert record.wake is False


def test_step_of_arrivals_is_told_at_once() -> None:
    service = Watched()
    for _ in range(STEP_FLOOR - 1):
        service.tally.arrived()
    assert service.urgent == []
    service.tally.arrived()
    assert service.urgent == [STEP_FLOOR]


async def test_stream_gets_each_record_once_and_counters_restart() -> None:
    service = Watched()
    feed = DemandFeed("g-1", lambda: [service])
    async with feed.subscribe() as lines:
        service.tally.arrived()
        feed.urgent(service)
        service.tally.arrived()
        service.tally.arrived()
        service.tally.started -= 1
        feed.urgent(service)
        records = [json.loads(await anext(lines)) for _ in range(2)]
        feed.close()
        assert [line async for line in lines] == []
    assert [record["arrivals"] for record in records] == [1, 2]
    assert [record["sequence"] for record in records] == [1, 2]
    assert repr(feed) == "<DemandFeed 2 records, 0 subscribers>"


async def test_subscriber_that_does_not_read_is_dropped() -> None:
    service = Watched()
    feed = DemandFeed("g-1", lambda: [service])
    async with feed.subscribe() as slow:
        for _ in range(MAX_BUFFERED_RECORDS + 1):
            service.tally.started -= 1
            feed.urgent(service)
        assert [line async for line in slow] == []
    assert "0 subscribers" in repr(feed)
