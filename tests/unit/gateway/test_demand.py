"""Demand: one record an interval, at once when it matters, and counters that start anew."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from zlib import crc32

import msgspec
import pytest

from sluice_api import wire
from sluice_api.tasks import Task
from sluice_gateway.demand import (
    MAX_BUFFERED_RECORDS,
    REST_TICKS,
    STEP_FLOOR,
    UNATTENDED_SECONDS,
    DemandFeed,
    Sighting,
    Tally,
)
from sluice_gateway.services import Services
from sluice_gateway.timers import TimerWheel


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


async def test_a_new_service_is_told_of_at_once_and_only_once() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    feed = DemandFeed("g-1", lambda: services.tracks())
    services = Services(wheel, feed.urgent)
    async with feed.subscribe() as lines:
        for name in ("new", "new", "other"):
            services.put(wire.Service(namespace="team", name=name, revision="r1"))
        async with asyncio.timeout(60):
            told = [json.loads(await anext(lines))["service"] for _ in range(2)]
    assert told == ["new", "other"]
    await services.close()


async def test_it_is_noticed_when_nobody_has_read_for_long_and_when_somebody_does_again() -> None:
    told: list[bool] = []
    feed = DemandFeed("g-1", list, attended=told.append)
    made = time.monotonic()
    feed.tick(1, made + UNATTENDED_SECONDS - 1)
    assert told == []  # A new gateway is not read at once.
    async with feed.subscribe():
        feed.tick(2, made + 2 * UNATTENDED_SECONDS)
        assert told == []
    feed.tick(3, made + 3 * UNATTENDED_SECONDS - 1)
    assert told == []  # As long as an operator's restart takes.
    for tick in range(4, 6):
        feed.tick(tick, made + tick * UNATTENDED_SECONDS)
    assert told == [False]
    async with feed.subscribe():
        assert told == [False, True]


async def test_a_gateway_without_services_is_heard_all_the_same() -> None:
    feed = DemandFeed("g-1", list)
    async with feed.subscribe() as lines:
        feed.tick(1, 1.0)
        assert await anext(lines) == b"\n"


async def test_other_revisions_workers_are_told_apart_from_demand() -> None:
    service = Watched()
    service.seen = [
        Sighting("r1", [], [wire.WorkerSeen(address="10.0.0.1", ready=True)]),
        Sighting("r2", [], [wire.WorkerSeen(address="10.0.0.2")]),
    ]
    demand, other = DemandFeed("g-1", lambda: [service]).records(service, 1.0)
    assert (demand.revision, demand.workers_only) == ("r1", False)
    assert (other.revision, other.workers_only) == ("r2", True)


async def test_subscriber_that_does_not_read_is_dropped() -> None:
    service = Watched()
    feed = DemandFeed("g-1", lambda: [service])
    async with feed.subscribe() as slow:
        for _ in range(MAX_BUFFERED_RECORDS + 1):
            service.tally.started -= 1
            feed.urgent(service)
        assert [line async for line in slow] == []
    assert "0 subscribers" in repr(feed)


async def told(lines: AsyncIterator[bytes]) -> list[wire.Demand]:
    """The records published at one moment."""
    async with asyncio.timeout(60):
        data = await anext(lines)
    return [msgspec.json.decode(line, type=wire.Demand) for line in data.splitlines()]


TURN = crc32(b"emb") % REST_TICKS
"""The seconds at which a service called emb is told of while it rests, modulo three."""


async def test_a_service_at_rest_is_told_of_every_three_seconds_for_all_of_them() -> None:
    service = Watched()
    feed = DemandFeed("g-1", lambda: [service])
    async with feed.subscribe() as lines:
        for tick in range(TURN, TURN + 7):
            feed.tick(tick, float(tick))
        records = [(await told(lines))[0] for _ in range(3)]
    assert [record.interval_seconds for record in records[1:]] == [3.0, 3.0]
    assert [record.sequence for record in records] == [1, 2, 3]
    assert all(record.arrivals == 0 for record in records)


async def test_a_new_subscriber_is_told_of_everybody_within_a_second() -> None:
    services = [Watched() for _ in range(6)]
    for number, service in enumerate(services):
        service.name = f"s{number}"
    feed = DemandFeed("g-1", lambda: services)
    async with feed.subscribe() as lines:
        feed.tick(1, 1.0)
        names = {(await told(lines))[0].service for _ in services}
    assert len(names) == 6


async def test_what_happens_after_a_rest_is_not_spread_over_it() -> None:
    service = Watched()
    feed = DemandFeed("g-1", lambda: [service])
    async with feed.subscribe() as lines:
        feed.tick(0, 0.0)
        await told(lines)
        feed.tick(TURN + 1, 2.0)
        assert service.tally.rested_since == 0.0
        service.tally.started = time.monotonic() - 0.5  # As if that second had just passed.
        service.tally.rested_since = service.tally.started - 2.0
        for _ in range(STEP_FLOOR):
            service.tally.arrived()
        feed.urgent(service)
        # Two records at once: one of the rest, one of the step.
        rest, step = await told(lines)
    assert rest.arrivals == 0 and rest.interval_seconds == pytest.approx(2.0)
    assert step.arrivals == STEP_FLOOR and step.interval_seconds < 1.0
    assert step.sequence == rest.sequence + 1


@pytest.mark.parametrize(
    "change",
    [
        {"held": 1},
        {"in_flight": 1},
        {"settled": False},
        {"version": 7},
    ],
)
async def test_whatever_goes_on_is_told_each_second(change: dict[str, Any]) -> None:
    service = Watched()
    feed = DemandFeed("g-1", lambda: [service])
    async with feed.subscribe() as lines:
        feed.tick(0, 0.0)
        await told(lines)
        for name, value in change.items():
            setattr(service, name, value)
        feed.tick(TURN + 1, 1.0)
        (record,) = await told(lines)
    assert record.interval_seconds == 1.0


def test_workers_of_every_revision_are_told() -> None:
    service = Watched()
    service.seen = [
        Sighting("r1", [Task.EMBEDDINGS], [wire.WorkerSeen(address="10.0.0.1", ready=True)]),
        Sighting(
            "r2",
            [Task.CLASSIFICATION],
            [
                wire.WorkerSeen(address="10.0.0.2", phase=wire.Phase.LOADING, progress=0.5),
                wire.WorkerSeen(address="10.0.0.3", answer_digest="sha256:2"),
            ],
        ),
    ]
    service.tally.arrived()
    own, other = DemandFeed("g-1", lambda: [service]).records(service, 1.0)
    assert (own.revision, own.arrivals, len(own.workers)) == ("r1", 1, 1)
    assert (other.revision, other.arrivals, other.ready_endpoints) == ("r2", 0, 0)
    assert other.tasks == [Task.CLASSIFICATION]
    assert other.answer_digests == {"r2": "sha256:2"}
    assert [worker.progress for worker in other.workers] == [0.5, None]


async def test_the_record_of_a_rest_is_short() -> None:
    service = Watched()
    service.tasks = []
    feed = DemandFeed("gateway-7d9c5b9c4-abcde-12345678", lambda: [service])
    async with feed.subscribe() as lines:
        feed.tick(0, 1.0)
        assert len(await anext(lines)) < 200
