"""A revision on trial: its share, its own answers, and nobody who suffers from its faults."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sluice_api import names, wire
from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from tests.support.gateway_process import GatewayProcess, Reply
from tests.support.stub_worker import Behaviour, StubWorker, until

EMBEDDINGS = "/v1/embeddings"
STABLE, CANARY = "r1", "r2"
DIGESTS = {STABLE: "sha256:1", CANARY: "sha256:2"}


@pytest.fixture
def stable() -> Iterator[StubWorker]:
    with StubWorker(Behaviour(revision=STABLE, digest=DIGESTS[STABLE])) as worker:
        yield worker


@pytest.fixture
def canary() -> Iterator[StubWorker]:
    with StubWorker(Behaviour(revision=CANARY, digest=DIGESTS[CANARY])) as worker:
        yield worker


def service(
    workers: dict[str, list[StubWorker]], weight: int | None = None, revision: str = STABLE
) -> wire.Service:
    """The service at ``revision``, with the canary on trial when it has a weight."""
    trial = None
    if weight is not None:
        trial = wire.Canary(revision=CANARY, weight=weight, answer_digest=DIGESTS[CANARY])
        trial.tasks = [Task.EMBEDDINGS, Task.CLASSIFICATION]
    return wire.Service(
        name="emb",
        revision=revision,
        answer_digest=DIGESTS[revision],
        tasks=[Task.EMBEDDINGS, Task.CLASSIFICATION],
        public=True,
        endpoints=[
            wire.Endpoint(url=worker.url, revision=of)
            for of, some in workers.items()
            for worker in some
        ],
        canary=trial,
    )


class Platform:
    """A gateway, two workers, one service."""

    def __init__(self, folder: Path, stable: StubWorker, canary: StubWorker) -> None:
        self.workers = {STABLE: [stable], CANARY: [canary]}
        self.gateway = GatewayProcess(folder, [service(self.workers, 50)])

    async def follow(self, weight: int | None, revision: str = STABLE) -> None:
        await self.gateway.follow([service(self.workers, weight, revision)], ready=False)

    async def on_trial(self) -> None:
        """Wait until both revisions are ready."""

        async def both() -> bool:
            found = (await self.gateway.services())["emb"]
            tracks = [found, found["canary"]]
            return all(t and "ready" in [e["state"] for e in t["endpoints"]] for t in tracks)

        await until(both, 60, "both revisions")

    async def ask(self, text: Any, **headers: str) -> Reply:
        return await self.gateway.post(EMBEDDINGS, {"model": "emb", "input": text}, **headers)

    async def shares(self, count: int, prefix: str, **headers: str) -> Counter[str]:
        """Who answered so many different requests; all must be answered."""
        found: Counter[str] = Counter()
        async with await self.gateway.client() as client:
            for number in range(count):
                body = {"model": "emb", "input": f"{prefix} {number}"}
                reply = await client.post(EMBEDDINGS, body, **headers)
                assert reply.status == 200, reply
                found[reply.headers[names.REVISION]] += 1
        return found


@pytest.fixture
async def platform(tmp_path: Path, stable: StubWorker, canary: StubWorker) -> Any:
    made = Platform(tmp_path, stable, canary)
    with made.gateway:
        await made.on_trial()
        yield made


async def test_the_weight_is_the_share(
    platform: Platform, stable: StubWorker, canary: StubWorker
) -> None:
    halves = await platform.shares(400, "half")
    assert 140 <= halves[CANARY] <= 260  # Six standard deviations.
    assert (stable.computed, canary.computed) == (halves[STABLE], halves[CANARY])
    await platform.follow(0)
    assert (await platform.shares(50, "none"))[CANARY] == 0
    await platform.follow(100)
    assert (await platform.shares(50, "all"))[CANARY] == 50
    requests = "sluice_gateway_requests_total"
    assert await platform.gateway.metric(requests, track="canary") == halves[CANARY] + 50
    assert await platform.gateway.metric(requests, track="stable") == halves[STABLE] + 50


async def test_answers_of_two_revisions_never_mix(
    platform: Platform, stable: StubWorker, canary: StubWorker
) -> None:
    replies = [await platform.ask(["one", "two"]) for _ in range(40)]
    by_revision = Counter(reply.headers[names.REVISION] for reply in replies)
    assert by_revision[STABLE] and by_revision[CANARY]
    # Each revision has computed each input once, and kept it for itself.
    assert stable.inputs == canary.inputs == Counter(["one", "two"])
    # No trial, no choice: the shorter way to a known answer is taken again.
    await platform.follow(None)
    for _ in range(3):
        assert (await platform.ask(["one", "two"])).headers[names.REVISION] == STABLE
    assert stable.computed == 2


ILL: dict[str, dict[str, Any]] = {
    "answers 500": {"refuse": ApiError("internal_error", "ill")},
    "garbage": {"raw": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nnever"},
    "hangs up": {"raw": b""},
    "is going": {"phase": wire.Phase.DRAINING, "refuse": ApiError("draining", "going")},
}


async def test_nobody_suffers_from_an_ill_canary(platform: Platform, canary: StubWorker) -> None:
    well = canary.behaviour
    for name, fault in ILL.items():
        canary.behaviour = replace(well, **fault)
        assert await platform.shares(40, name) == {STABLE: 40}, name
        if name != "garbage":  # What is passed through unread may be anything.
            passed = await platform.shares(40, name, cache_control="no-store")
            assert passed == {STABLE: 40}, name
        canary.behaviour = well
        await platform.on_trial()
    retries = await platform.gateway.metric("sluice_gateway_retries_total", cause="canary")
    assert retries > 0


async def test_the_canarys_last_worker_goes_while_it_computes(
    platform: Platform, stable: StubWorker, canary: StubWorker
) -> None:
    await platform.follow(100)
    canary.behaviour.hang = True
    asked = [asyncio.create_task(platform.ask(f"slow {n}")) for n in range(8)]
    await until(lambda: canary.running == 8, 60, "the requests at the canary")
    canary.stop()
    replies = await asyncio.gather(*asked)
    assert {(r.status, r.headers[names.REVISION]) for r in replies} == {(200, STABLE)}
    assert stable.computed == 8


async def test_what_the_canary_refuses_for_its_input_is_refused(platform: Platform) -> None:
    await platform.follow(100)
    reply = await platform.ask("too long")
    assert reply.status == 400 and reply.json()["error"]["code"] == "input_too_long"


async def test_promotion_and_rollback_under_load(
    platform: Platform, stable: StubWorker, canary: StubWorker
) -> None:
    stable.behaviour.delay = canary.behaviour.delay = 0.02
    stop, statuses, turn = asyncio.Event(), Counter[int](), 0
    told: list[tuple[int, str]] = []  # In which turn each was asked, and who answered.

    async def load(number: int) -> None:
        async with await platform.gateway.client() as client:
            count = 0
            while not stop.is_set():
                count += 1
                body, asked = {"model": "emb", "input": f"load {number} {count}"}, turn
                reply = await client.post(EMBEDDINGS, body)
                statuses[reply.status] += 1
                told.append((asked, reply.headers.get(names.REVISION, "")))

    def answered() -> list[str]:
        """By whom those were that have been asked in this turn."""
        return [revision for asked, revision in told if asked == turn]

    async def follow(weight: int | None, revision: str = STABLE) -> set[str]:
        """Who answers from then on; what was under way may be answered as before."""
        nonlocal turn
        await platform.follow(weight, revision)
        turn += 1
        await until(lambda: len(answered()) >= 20, 60, "answers")
        return set(answered())

    tasks = [asyncio.create_task(load(number)) for number in range(6)]
    await until(lambda: len(answered()) >= 20, 60, "answers")
    for _ in range(3):
        assert await follow(None, CANARY) == {CANARY}, "promoted"
        assert await follow(None, STABLE) == {STABLE}, "rolled back"
        await follow(50)  # on trial again
    stop.set()
    await asyncio.gather(*tasks)
    assert set(statuses) == {200}
    assert stable.computed + canary.computed == statuses.total()
    states = (await platform.gateway.services())["emb"]
    assert [e["state"] for e in (*states["endpoints"], *states["canary"]["endpoints"])] == [
        "ready",
        "ready",
    ]


async def test_a_roll_out_while_a_list_waits_mixes_nothing(
    platform: Platform, stable: StubWorker, canary: StubWorker
) -> None:
    await platform.follow(None)
    assert (await platform.ask("known")).headers[names.REVISION] == STABLE
    workers, platform.workers = platform.workers, {}
    await platform.follow(None)  # asleep
    asked = asyncio.create_task(platform.ask(["known", "unknown"]))

    async def held() -> bool:
        waiting: int = (await platform.gateway.services())["emb"]["waiting"]
        return waiting == 1

    await until(held, 60, "the request to be held")
    platform.workers = workers
    await platform.follow(None, CANARY)
    reply = await asked
    assert (reply.status, reply.headers[names.REVISION]) == (200, CANARY)
    # What the old revision had answered before is of no use to the new one.
    assert canary.inputs == Counter(["known", "unknown"])


async def test_the_demand_of_both_is_told_apart(platform: Platform) -> None:
    records: list[wire.Demand] = []
    reading = asyncio.create_task(platform.gateway.demand(records))
    await until(lambda: bool(records), 60, "the first record")
    shares = await platform.shares(60, "demand")

    def arrivals() -> Counter[str]:
        found: Counter[str] = Counter()
        for record in records:
            found[record.revision] += record.arrivals
        return found

    await until(lambda: arrivals() == shares, 60, f"{shares}")
    for revision in (STABLE, CANARY):
        # What is told of a rest before an interval has no workers.
        seen = next(r.workers for r in reversed(records) if r.revision == revision and r.workers)
        assert [(each.ready, each.answer_digest) for each in seen] == [(True, DIGESTS[revision])]
    reading.cancel()
