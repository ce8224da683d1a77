"""Several processes as one: sums of pages, services and demand, shares of limits, the link."""

import asyncio
import socket
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from sluice_api import exposition, metric_names, wire
from sluice_gateway.demand import STEP_FLOOR, DemandFeed
from sluice_gateway.processes import child as one_child
from sluice_gateway.processes.demand import Track, Tracks
from sluice_gateway.processes.link import Ask, Down, Link, Put, Ready, Remove, Tick, Told, Up
from sluice_gateway.processes.shares import own_share, share_of
from sluice_gateway.processes.slot import (
    MAX_PAUSE_SECONDS,
    SILENT_TICKS,
    START_TICKS,
    Gone,
    Slot,
    pause_before_restart,
)
from sluice_gateway.processes.sums import (
    COMMON_GAUGES,
    OWN_GAUGES,
    lasting,
    merge_services,
    read_page,
    sum_pages,
    write_page,
)
from sluice_gateway.settings import Settings

# Metrics ------------------------------------------------------------------------------------------

PAGE = """\
# HELP a_total Things.
# TYPE a_total counter
a_total{service="x"} 2.0
# HELP b Bytes.
# TYPE b gauge
b 5.0
"""


def test_a_page_is_written_as_it_was_read() -> None:
    registry = CollectorRegistry()
    exposition.counter(metric_names.GATEWAY_CACHE_FAULTS, registry).labels("timeout").inc(3)
    exposition.histogram(metric_names.GATEWAY_FIRST_EVENT, registry)
    exposition.gauge(metric_names.GATEWAY_CONNECTIONS, registry).set(float("inf"))
    page = exposition.expose(registry).decode()
    assert write_page(read_page(page)) == page


def test_counters_are_sums_and_outlive_their_process() -> None:
    more = PAGE.replace("2.0", "40.0") + '# HELP c New.\n# TYPE c counter\nc{l="1 2"} 1.0\n'
    one, other = read_page(PAGE), read_page(more)
    total = sum_pages([one, other])
    assert total["a_total"].samples == {'a_total{service="x"}': 42}
    assert total["b"].samples == {"b": 10}
    assert total["c"].samples == {'c{l="1 2"}': 1}
    assert one["a_total"].samples == {'a_total{service="x"}': 2}  # They are read again.
    after = sum_pages([one, lasting(other)])
    assert after["a_total"].samples == {'a_total{service="x"}': 42}
    assert after["b"].samples == {"b": 5}


def test_what_all_look_at_is_not_counted_twice() -> None:
    def page(endpoints: float, redis: float) -> str:
        return (
            f"# HELP {metric_names.GATEWAY_ENDPOINTS.name} W.\n"
            f"# TYPE {metric_names.GATEWAY_ENDPOINTS.name} gauge\n"
            f'{metric_names.GATEWAY_ENDPOINTS.name}{{state="ready"}} {endpoints}\n'
            f"# HELP {metric_names.GATEWAY_REDIS_UP.name} R.\n"
            f"# TYPE {metric_names.GATEWAY_REDIS_UP.name} gauge\n"
            f"{metric_names.GATEWAY_REDIS_UP.name} {redis}\n"
            f"# TYPE {metric_names.GATEWAY_DISCOVERY_AGE.name} gauge\n"
            f"{metric_names.GATEWAY_DISCOVERY_AGE.name} 1.0\n"
        )

    total = sum_pages([read_page(page(3, 1)), read_page(page(4, 0))])
    assert list(total[metric_names.GATEWAY_ENDPOINTS.name].samples.values()) == [4]
    assert list(total[metric_names.GATEWAY_REDIS_UP.name].samples.values()) == [0]
    assert metric_names.GATEWAY_DISCOVERY_AGE.name not in total


SUMMED_GAUGES = {
    metric_names.GATEWAY_BODY_BYTES.name,
    metric_names.GATEWAY_STREAMS.name,
    metric_names.GATEWAY_CACHE_BYTES.name,
    metric_names.GATEWAY_IN_FLIGHT.name,
    metric_names.GATEWAY_WAITING.name,
    metric_names.GATEWAY_QUEUE_TENANTS.name,
    metric_names.GATEWAY_CONNECTIONS.name,
}
SUPERVISORS = {metric_names.GATEWAY_PROCESSES.name}


def test_every_gauge_is_known_to_be_a_sum_or_not() -> None:
    gauges = {
        metric.name
        for metric in metric_names.ALL
        if metric.kind == "gauge" and metric.name.startswith("sluice_gateway_")
    }
    # A new one: is it of one process (sum), or a view of what all share (COMMON_GAUGES)?
    assert gauges == SUMMED_GAUGES | SUPERVISORS | COMMON_GAUGES.keys() | OWN_GAUGES


# Services -----------------------------------------------------------------------------------------


def seen(state: str, waiting: int, in_flight: int, **more: Any) -> dict[str, Any]:
    endpoint = {"url": "http://w:1", "state": state, "inFlight": in_flight, "message": state}
    return {
        "namespace": "default", "name": "emb", "state": state, "message": state,
        "waiting": waiting, "endpoints": [endpoint], "canary": None,
    } | more  # fmt: skip


def test_requests_are_summed_and_what_is_not_well_shows() -> None:
    told = [
        {"services": [seen("ready", 1, 2)]},
        {"services": [seen("starting", 4, 0, canary=seen("ready", 1, 1))]},
    ]
    (merged,) = merge_services(told)
    assert (merged["state"], merged["waiting"]) == ("starting", 5)
    (endpoint,) = merged["endpoints"]
    assert (endpoint["state"], endpoint["inFlight"]) == ("starting", 2)
    assert merged["canary"]["waiting"] == 1
    (alike,) = merge_services([told[0], told[0]])
    assert (alike["state"], alike["waiting"], alike["canary"]) == ("ready", 2, None)


def test_who_waits_is_summed_by_priority() -> None:
    counts = ({"high": 1, "normal": 0}, {"high": 2, "normal": 5})
    told = [{"services": [seen("ready", 0, 0, waitingByPriority=count)]} for count in counts]
    (merged,) = merge_services(told)
    assert merged["waitingByPriority"] == {"high": 3, "normal": 5}


# Demand -------------------------------------------------------------------------------------------


def record(**fields: Any) -> wire.Demand:
    known = {
        "sequence": 1, "gateway": "g", "namespace": "default", "service": "emb",
        "revision": "r1", "interval_seconds": 1.0,
    }  # fmt: skip
    return wire.Demand(**{**known, **fields})


def worker(address: str, in_flight: int = 0, *, ready: bool = True) -> wire.WorkerSeen:
    return wire.WorkerSeen(address=address, ready=ready, in_flight=in_flight)


def spec(revision: str = "r1", canary: str | None = None) -> wire.Service:
    trial = wire.Canary(revision=canary, weight=10) if canary else None
    return wire.Service(name="emb", revision=revision, canary=trial)


def tracks() -> tuple[Tracks, list[Track]]:
    steps: list[Track] = []
    made = Tracks(steps.append)
    made.put(spec(), 0.0)
    return made, steps


def test_demand_is_the_sum_of_what_the_children_tell() -> None:
    known, _ = tracks()
    feed = DemandFeed("all", known.all)
    for child in (1, 2):
        known.take(
            child,
            [
                record(
                    arrivals=3, completions=2, service_seconds=0.5, work_units=4, cache_hits=1,
                    held=child, oldest_held_seconds=float(child), in_flight=5, ready_endpoints=1,
                    answer_digests={"r1": "d"}, workers=[worker("w", 5), worker("w", 0)],
                )
            ],
            10.0,
        )  # fmt: skip
    (track,) = known.all()
    (told,) = feed.records(track, 11.0)
    assert (told.arrivals, told.completions, told.work_units, told.cache_hits) == (6, 4, 8, 2)
    assert (told.service_seconds, told.held, told.in_flight) == (1.0, 3, 10)
    assert told.oldest_held_seconds == 3.0  # The oldest has aged since it was told.
    assert told.ready_endpoints == 1 and told.answer_digests == {"r1": "d"}
    # Workers may share an address; each is one worker, with the requests of both children.
    assert told.workers == [worker("w", 10), worker("w", 0)]
    track.tally.reset(11.0)
    known.forget(1)
    (told,) = feed.records(track, 12.0)
    assert (told.arrivals, told.held, told.in_flight) == (0, 2, 5)


def test_rest_that_ended_is_told_with_what_ended_it() -> None:
    known, _ = tracks()
    known.take(1, [record(interval_seconds=3.0), record(arrivals=2, held=2)], 1.0)
    (track,) = known.all()
    assert (track.tally.arrivals, track.held) == (2, 2)


def test_workers_of_other_revisions_are_told_apart() -> None:
    known, _ = tracks()
    others = record(revision="r2", workers_only=True, workers=[worker("new", ready=False)])
    known.take(1, [record(workers=[worker("old")]), others], 0.0)
    (track,) = known.all()
    found = {sighting.revision: sighting.workers for sighting in track.sightings()}
    assert found == {"r1": [worker("old")], "r2": [worker("new", ready=False)]}
    assert track.settled  # As with one gateway, only its own workers count.


def test_a_revision_on_trial_has_a_track_of_its_own() -> None:
    known, _ = tracks()
    known.put(spec(canary="r2"), 0.0)
    known.take(1, [record(arrivals=1)], 0.0)
    known.take(1, [record(revision="r2", arrivals=5)], 0.0)
    known.take(1, [record(revision="gone", arrivals=7)], 0.0)
    assert [(t.revision, t.tally.arrivals) for t in known.all()] == [("r1", 8), ("r2", 5)]
    known.put(spec("r2"), 0.0)  # Promoted: it goes on as it is.
    assert [(t.revision, t.tally.arrivals) for t in known.all()] == [("r2", 5)]
    known.remove(("default", "emb"))
    assert known.take(1, [record(arrivals=1)], 0.0) is None


def test_a_step_is_seen_in_the_sum() -> None:
    known, steps = tracks()
    half = STEP_FLOOR // 2
    known.take(1, [record(arrivals=half)], 0.0)
    assert not steps
    known.take(2, [record(arrivals=half)], 0.0)
    assert steps == known.all()


def test_version_rises_with_what_is_said_of_workers_only() -> None:
    known, _ = tracks()
    (track,) = known.all()
    known.take(1, [record(workers=[worker("w")])], 0.0)
    before = track.version
    known.take(1, [record(workers=[worker("w")], arrivals=1)], 1.0)
    assert track.version == before
    known.take(1, [record(workers=[worker("w", ready=False)])], 2.0)
    assert track.version > before and not track.settled


# Limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("waiting", "processes", "share"), [(1000, 4, 250), (5, 4, 2), (0, 4, 0)])
def test_the_queue_is_shared_out(waiting: int, processes: int, share: int) -> None:
    whole = wire.Service(name="emb", revision="r1", limits=wire.LimitRules(waiting=waiting))
    assert share_of(whole, processes).limits.waiting == share
    assert whole.limits.waiting == waiting


def test_memory_is_shared_out() -> None:
    given = Settings("static:x", processes=4, cache_bytes=1024)
    assert own_share(given).cache_bytes == 256
    assert own_share(given).limits.connections == -(-given.limits.connections // given.processes)
    assert own_share(given).limits.buffered_bytes >= given.limits.body_bytes


def test_restarts_come_ever_later_up_to_a_bound() -> None:
    pauses = [pause_before_restart(ends) for ends in range(1, 12)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 1 and pauses[-1] == MAX_PAUSE_SECONDS


# The link -----------------------------------------------------------------------------------------


class End:
    """What one side of a link hears."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.lost = asyncio.Event()

    async def over(self, end: socket.socket, kinds: Any) -> Link:
        return await Link.over(end, kinds, self.heard.put_nowait, self.lost.set)


async def test_messages_arrive_whole_and_in_order() -> None:
    ours, theirs = socket.socketpair()
    upper, lower = End(), End()
    up, down = await upper.over(ours, Up), await lower.over(theirs, Down)
    big = wire.Service(name="x" * 1_000_000, revision="r1")
    for message in (Tick(1), Put(big), Remove("a", "b")):
        up.send(message)
    assert [await lower.heard.get() for _ in range(3)] == [Tick(1), Put(big), Remove("a", "b")]
    down.send(Told([record(arrivals=2)], True))
    assert await upper.heard.get() == Told([record(arrivals=2)], True)
    up.close()
    async with asyncio.timeout(60):
        await lower.lost.wait()
    down.send(Ready())  # Nobody is there; nothing happens.


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x02{}",
        (lambda c: len(c).to_bytes(4, "big") + c)(msgspec.msgpack.encode({"type": "Nothing"})),
    ],
    ids=["too-long", "not-msgpack", "unknown"],
)
async def test_a_side_that_breaks_the_protocol_is_let_go(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    end = End()
    await end.over(ours, Up)
    with theirs:
        theirs.sendall(sent)
        async with asyncio.timeout(60):
            await end.lost.wait()
    assert end.heard.empty()


async def test_a_side_that_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sluice_gateway.processes.link.MAX_UNREAD_BYTES", 1_000_000)
    ours, theirs = socket.socketpair()
    end = End()
    link = await end.over(ours, Up)
    with theirs:
        for _ in range(10):
            link.send(Put(wire.Service(name="x" * 1_000_000, revision="r1")))
        async with asyncio.timeout(60):
            await end.lost.wait()


class Process:
    """A child that neither ends by itself nor reads."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        return await self.ended

    def send_signal(self, number: int) -> None:
        self.returncode = -number
        self.ended.set_result(self.returncode)


async def test_a_child_whose_link_is_lost_is_not_ready_and_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    links: asyncio.Queue[Link] = asyncio.Queue()

    async def start(slot: Slot, end: socket.socket) -> Process:
        links.put_nowait(await End().over(end.dup(), Down))
        return Process()

    monkeypatch.setattr(Slot, "_start", start)
    changes: list[bool] = []
    with socket.socket() as listener:
        slot = Slot(
            *(0, [], listener),
            on_joined=lambda slot: None,
            on_ready=lambda: changes.append(slot.ready.is_set()),
            on_told=lambda slot, told: None,
            on_gone=lambda slot: slot.stop(),
        )
        running = asyncio.create_task(slot.run())
        async with asyncio.timeout(60):
            link = await links.get()
            link.send(Ready())
            await slot.ready.wait()
            asking = asyncio.create_task(slot.ask("GET", "/metrics", b"", [], b""))
            await asyncio.sleep(0)
            link.close()
            with pytest.raises(Gone):
                await asking
            assert changes == [True, False]
            while not running.done():
                slot.tick(Tick(1))  # As often as a child may leave unanswered.
                await asyncio.sleep(0)
        assert running.result() == -9


@pytest.mark.parametrize(("heard", "ticks"), [(True, SILENT_TICKS), (False, START_TICKS)])
async def test_a_child_that_hangs_before_it_serves_is_ended(
    monkeypatch: pytest.MonkeyPatch, heard: bool, ticks: int
) -> None:
    links: asyncio.Queue[Link] = asyncio.Queue()
    joined, told = asyncio.Event(), asyncio.Event()

    async def start(slot: Slot, end: socket.socket) -> Process:
        links.put_nowait(await End().over(end.dup(), Down))
        return Process()

    monkeypatch.setattr(Slot, "_start", start)
    with socket.socket() as listener:
        slot = Slot(
            *(0, [], listener),
            on_joined=lambda slot: joined.set(),
            on_ready=lambda: None,
            on_told=lambda slot, message: told.set(),
            on_gone=lambda slot: slot.stop(),
        )
        running = asyncio.create_task(slot.run())
        async with asyncio.timeout(30):
            link = await links.get()
            await joined.wait()
            if heard:
                link.send(Told([], True))
                await told.wait()
            for _ in range(ticks):
                slot.tick(Tick(1))
                await asyncio.sleep(0)
            assert not running.done()
            link.close()
            slot.tick(Tick(1))
            assert await running == -9


async def test_an_admin_answer_that_is_too_large_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 1001})

    monkeypatch.setattr(one_child, "MAX_ANSWER_BYTES", 1000)
    told = await one_child.answer_of(app, Ask(7, "GET", "/metrics", b"", [], b""))
    assert (told.number, told.status, told.body) == (7, 500, b"")
