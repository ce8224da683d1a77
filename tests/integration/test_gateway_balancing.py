"""Who goes first, and who is asked: priorities, prefixes, zones, hedges, limits of each phase."""

import asyncio
import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sluice_api import wire
from sluice_api.api_keys import make_key
from sluice_api.key_file import KeyEntry, KeyFile, TenantEntry, write_key_file
from sluice_api.tasks import Task
from tests.support.event_stream import DONE, EventStream
from tests.support.gateway_process import GatewayProcess, Reply, request, service
from tests.support.stub_worker import Behaviour, StubWorker, until, vector_of

PATH = "/v1/embeddings"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("gateway")
    # Without slow start, so that what is asserted of shares does not hang on how long a test takes.
    with GatewayProcess(folder, [], "--zone", "here", "--slow-start", "0s") as gateway:
        yield gateway


@pytest.fixture
async def gateway(process: GatewayProcess) -> AsyncIterator[GatewayProcess]:
    await process.follow([])
    yield process
    assert '"level":"error"' not in process.log


def ask(text: str = "", model: str = "emb") -> dict[str, Any]:
    return {"model": model, "input": text or secrets.token_hex(8)}


def right(reply: Reply, text: str) -> bool:
    return reply.status == 200 and reply.json()["data"][0]["embedding"] == vector_of(text).tolist()


def code(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.json()["error"]["code"]


async def held(gateway: GatewayProcess, count: int) -> None:
    async def seen() -> bool:
        return bool((await gateway.services())["emb"]["waiting"] == count)

    await until(seen, 60, f"{count} waiting")


def writes(**more: Any) -> Behaviour:
    return Behaviour(tasks=[Task.TEXT_GENERATION, Task.CHAT], **more)


# The queue ----------------------------------------------------------------------------------------


async def test_low_priority_gives_way_and_nobody_claims_more_than_is_allowed(
    gateway: GatewayProcess,
) -> None:
    with StubWorker(Behaviour(limit=1, hang=True)) as worker:
        await gateway.follow([service("emb", [worker.url])])
        first = await gateway.client()
        first.send(request(PATH, ask("first")))
        await until(lambda: worker.running == 1)
        waiting = []
        for text, priority in (("low", "low"), ("normal", "normal"), ("high", "high")):
            headers = {"x_sluice_priority": priority}
            waiting.append(asyncio.create_task(gateway.post(PATH, ask(text), **headers)))
            await held(gateway, len(waiting))
        told = (await gateway.services())["emb"]
        assert told["waitingByPriority"] == {"high": 0, "normal": 2, "low": 1}
        assert told["waitingTenants"] == 2, "one, in two classes"
        worker.behaviour.hang = False
        first.close()
        replies = await asyncio.gather(*waiting)
        assert {reply.status for reply in replies} == {200}
        for reply in replies:
            waited = re.match(r"queue;dur=([\d.]+), worker", reply.headers["server-timing"])
            assert waited is not None and float(waited[1]) > 0
        order = [json.loads(seen.body)["input"][0] for seen in worker.seen]
        assert order == ["first", "normal", "high", "low"]
        name = "sluice_gateway_queue_wait_seconds_count"
        assert await gateway.metric(name, service="emb", priority="low") == 1
        assert await gateway.metric(name, service="emb", priority="normal") == 2


async def joins(gateway: GatewayProcess) -> float:
    return await gateway.metric("sluice_gateway_cache_lookups_total", result="joined")


async def departures(gateway: GatewayProcess) -> float:
    return await gateway.metric("sluice_gateway_requests_total", status="499")


async def _rises(
    count: Callable[[GatewayProcess], Awaitable[float]], gateway: GatewayProcess, before: float
) -> bool:
    return await count(gateway) > before


@pytest.mark.parametrize("leaves", [False, True])
async def test_who_waits_for_a_less_urgent_one_makes_it_as_urgent(
    gateway: GatewayProcess, leaves: bool
) -> None:
    """Also where who asked first has left meanwhile, and somebody else waits on."""
    last, shared, other = (f"{name} {leaves}" for name in ("last", "shared", "other"))
    with StubWorker(Behaviour(limit=1, hang=True)) as worker:
        await gateway.follow([service("emb", [worker.url])])
        first = await gateway.client()
        first.send(request(PATH, ask("begun")))
        await until(lambda: worker.running == 1)
        waiting = []
        for text, priority in ((last, "low"), (shared, "low"), (other, "normal")):
            headers = {"x_sluice_priority": priority}
            waiting.append(asyncio.create_task(gateway.post(PATH, ask(text), **headers)))
            await held(gateway, len(waiting))
        if leaves:
            joined, left = await joins(gateway), await departures(gateway)
            also = asyncio.create_task(gateway.post(PATH, ask(shared), x_sluice_priority="low"))
            await until(partial(_rises, joins, gateway, joined), 60, "two wait for one")
            waiting[1].cancel()
            await until(partial(_rises, departures, gateway, left), 60, "the first is gone")
            waiting[1] = also
        waiting.append(asyncio.create_task(gateway.post(PATH, ask(shared))))

        async def raised() -> bool:
            told = (await gateway.services())["emb"]
            return bool(told["waitingByPriority"] == {"high": 0, "normal": 2, "low": 1})

        await until(raised, 60, "raised")
        worker.behaviour.hang = False
        first.close()
        assert {reply.status for reply in await asyncio.gather(*waiting)} == {200}
        order = [json.loads(seen.body)["input"][0] for seen in worker.seen]
        assert order == ["begun", other, shared, last]


async def test_tenants_take_turns_and_one_may_claim_more(tmp_path: Path) -> None:
    found = {name: make_key() for name in ("flood", "other", "urgent")}
    entries = [
        TenantEntry(
            name,
            ("default",),
            keys=(KeyEntry(key.id, key.sha256),),
            priority="high" if name == "urgent" else "normal",
        )
        for name, key in found.items()
    ]
    path = tmp_path / "keys.yaml"
    path.write_text(write_key_file(KeyFile(tuple(entries))))
    with (
        StubWorker(Behaviour(limit=1, hang=True)) as worker,
        GatewayProcess(
            tmp_path, [service("emb", [worker.url])], "--auth", "keys", "--keys-file", str(path)
        ) as gateway,
    ):
        await gateway.ready("emb")

        async def send(tenant: str, text: str, **headers: str) -> Reply:
            key = f"Bearer {found[tenant].text}"
            return await gateway.post(PATH, ask(text), authorization=key, **headers)

        first = await gateway.client()
        key = f"Bearer {found['flood'].text}"
        first.send(request(PATH, ask("first"), authorization=key))
        await until(lambda: worker.running == 1)
        waiting = []
        for tenant, text in (*(("flood", f"flood {n}") for n in range(4)), ("other", "other")):
            # Neither of the two may claim what it asks for.
            waiting.append(asyncio.create_task(send(tenant, text, x_sluice_priority="high")))
            await held(gateway, len(waiting))
        waiting.append(asyncio.create_task(send("urgent", "urgent", x_sluice_priority="high")))
        await held(gateway, len(waiting))
        worker.behaviour.hang = False
        first.close()
        assert {reply.status for reply in await asyncio.gather(*waiting)} == {200}
        order = [json.loads(seen.body)["input"][0] for seen in worker.seen]
        assert order[:4] == ["first", "urgent", "flood 0", "other"]
        assert order[4:] == ["flood 1", "flood 2", "flood 3"]


async def test_a_priority_that_does_not_exist_is_refused(gateway: GatewayProcess) -> None:
    await gateway.follow([service("emb", [])])
    reply = await gateway.post(PATH, ask(), x_sluice_priority="urgent")
    assert code(reply) == (400, "invalid_field")
    message = reply.json()["error"]["message"]
    assert "x-sluice-priority: got 'urgent', needs one of high, normal, low." in message


async def test_a_worker_that_becomes_ready_is_given_what_waits_at_the_next_probe(
    gateway: GatewayProcess,
) -> None:
    with StubWorker(Behaviour(phase=wire.Phase.LOADING)) as worker:
        await gateway.follow([service("emb", [worker.url])], ready=False)
        oldest = asyncio.create_task(gateway.post(PATH, ask("oldest")))
        await held(gateway, 1)
        probes = worker.probes
        worker.behaviour.phase = wire.Phase.READY
        await until(lambda: len(worker.seen) == 1)
        # A probe that was on its way, and the one that saw it; they are 50 ms apart.
        assert worker.probes - probes <= 2
        assert right(await oldest, "oldest")


async def test_a_bound_on_the_queue_alone(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(limit=1, hang=True)) as worker:
        limits = wire.LimitRules(queue_timeout_seconds=0.1)
        await gateway.follow([service("emb", [worker.url], limits=limits)])
        running = await gateway.client()
        running.send(request(PATH, ask()))
        await until(lambda: worker.running == 1)
        reply = await gateway.post(PATH, ask())
        assert code(reply) == (429, "overloaded")
        assert "(phase: queue)" in reply.json()["error"]["message"]
        assert "retry-after" in reply.headers
        assert worker.running == 1 and len(worker.seen) == 1
        running.close()
        assert await gateway.metric("sluice_gateway_expired_total", phase="queue") == 1


# Which worker -------------------------------------------------------------------------------------


async def test_a_conversation_stays_where_its_first_turn_was_computed(
    gateway: GatewayProcess,
) -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(StubWorker(writes())) for _ in range(4)]
        await gateway.follow([service("gen", [worker.url for worker in workers])])
        used = set()
        for number in range(12):
            messages = [{"role": "user", "content": f"Question {number}"}]
            before = [len(worker.seen) for worker in workers]
            for _ in range(4):
                body = {"model": "gen", "messages": messages, "temperature": 0}
                reply = await gateway.post(CHAT, body)
                answer = reply.json()["choices"][0]["message"]["content"]
                messages += [
                    {"role": "assistant", "content": answer},
                    {"role": "user", "content": "And then?"},
                ]
            asked = [
                len(worker.seen) - count for worker, count in zip(workers, before, strict=True)
            ]
            assert sorted(asked) == [0, 0, 0, 4], "all turns at one worker"
            used.add(asked.index(4))
        assert len(used) > 1, "but not all conversations"
        found = await gateway.metric(
            "sluice_gateway_prefix_choices_total", service="gen", result="home"
        )
        assert found == 48


async def test_workers_of_the_gateways_zone_come_first(gateway: GatewayProcess) -> None:
    with StubWorker() as near, StubWorker() as far:
        both = service("emb", [near.url, far.url])
        both.endpoints[0].zone, both.endpoints[1].zone = "here", "there"
        await gateway.follow([both])
        for _ in range(20):
            assert (await gateway.post(PATH, ask())).status == 200
        assert (len(near.seen), len(far.seen)) == (20, 0)
        near.behaviour.phase = wire.Phase.LOADING
        await gateway.ready("emb", 1)
        assert (await gateway.post(PATH, ask())).status == 200
        assert len(far.seen) == 1


@pytest.mark.parametrize("way", ["refuses", "hangs", "fails"])
async def test_a_dead_worker_attracts_no_requests_by_being_idle(
    gateway: GatewayProcess, way: str
) -> None:
    with contextlib.ExitStack() as stack:
        dead, *others = (stack.enter_context(StubWorker()) for _ in range(4))
        # Longer than those who do answer may stand still.
        limits = wire.LimitRules(first_byte_timeout_seconds=3.0)
        urls = [worker.url for worker in (dead, *others)]
        await gateway.follow([service("emb", urls, limits=limits)])
        if way == "refuses":
            dead.stop()
        elif way == "hangs":
            dead.behaviour.hang = True  # It still answers probes.
        else:
            dead.behaviour.raw = b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"
        for _ in range(25):
            texts = [secrets.token_hex(8) for _ in range(8)]
            replies = await asyncio.gather(*[gateway.post(PATH, ask(text)) for text in texts])
            assert all(right(reply, text) for reply, text in zip(replies, texts, strict=True))
        # Of 200: three or so until it is out, and one whenever it is on trial.
        assert len(dead.seen) <= 30
        if way != "refuses":
            cause = "silent" if way == "hangs" else "status_500"
            name = "sluice_gateway_ejections_total"
            assert await gateway.metric(name, service="emb", cause=cause) >= 1


async def test_a_worker_that_hangs_is_out_also_without_a_limit_of_its_own(
    gateway: GatewayProcess,
) -> None:
    with StubWorker(Behaviour(hang=True)) as hung, StubWorker() as well:
        limits = wire.LimitRules(timeout_seconds=0.4)
        await gateway.follow([service("emb", [hung.url, well.url], limits=limits)])

        async def out() -> bool:
            reply = await gateway.post(PATH, ask())
            assert reply.status in (200, 504), reply
            endpoints = (await gateway.services())["emb"]["endpoints"]
            return bool(endpoints[0]["state"] == "ejected")

        await until(out, 60)
        assert len(hung.seen) <= 5, "three, and those that were on their way"
        metric = "sluice_gateway_ejections_total"
        assert await gateway.metric(metric, service="emb", cause="silent") >= 1


async def test_an_impatient_client_makes_no_worker_look_ill(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(delay=0.3)) as one, StubWorker(Behaviour(delay=0.3)) as two:
        await gateway.follow([service("emb", [one.url, two.url])])
        for _ in range(8):
            reply = await gateway.post(PATH, ask(), x_sluice_deadline_ms="20")
            assert code(reply) == (504, "deadline_exceeded")
        await gateway.ready("emb", 2)


async def test_each_attempt_is_told_what_is_left_of_the_deadline(gateway: GatewayProcess) -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(StubWorker(Behaviour(hang=True))) for _ in range(2)]
        limits = wire.LimitRules(first_byte_timeout_seconds=0.2)
        await gateway.follow([service("emb", [each.url for each in workers], limits=limits)])
        reply = await gateway.post(PATH, ask(), x_sluice_deadline_ms="60000")
        assert code(reply) == (504, "deadline_exceeded")
        told = [int(each.seen[0].headers["x-sluice-deadline-ms"]) for each in workers]
        assert 200 <= max(told) - min(told) < 60_000 - min(told)
        assert max(told) <= 60_000


# Phases -------------------------------------------------------------------------------------------


async def test_nothing_before_the_first_byte_timeout(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(hang=True)) as silent:
        limits = wire.LimitRules(first_byte_timeout_seconds=0.1)
        await gateway.follow([service("emb", [silent.url], limits=limits)])
        reply = await gateway.post(PATH, ask())
        assert code(reply) == (504, "deadline_exceeded")
        assert "(phase: first-byte)" in reply.json()["error"]["message"]
        await until(lambda: silent.aborted == 1, what="upstream not aborted")
        assert await gateway.metric("sluice_gateway_expired_total", phase="first-byte") == 1


async def test_a_stream_without_a_first_event_goes_to_another_worker(
    gateway: GatewayProcess,
) -> None:
    limits = wire.LimitRules(first_byte_timeout_seconds=4.0)
    with StubWorker(writes(hold_at=0)) as silent, StubWorker(writes()) as well:
        await gateway.follow([service("gen", [silent.url, well.url], limits=limits)])
        for number in range(50):
            if silent.seen:
                break  # Before, it was not its turn.
            messages = [{"role": "user", "content": f"Hello {number}"}]
            body = {"model": "gen", "messages": messages, "stream": True, "temperature": 0}
            async with await gateway.client() as client:
                stream = await EventStream.open(client, CHAT, body)
                assert (await stream.rest())[-1] == f"data: {DONE}"
        assert len(silent.seen) >= 1, "it was asked as well"
        silent.behaviour.hold_at = None


@pytest.mark.parametrize("phase", ["between-tokens", "total"])
async def test_a_stream_that_stops_says_which_of_its_limits_that_was(
    gateway: GatewayProcess, phase: str
) -> None:
    limits = (
        wire.LimitRules(token_timeout_seconds=0.2)
        if phase == "between-tokens"
        else wire.LimitRules(stream_timeout_seconds=4.0)
    )
    pause = {"hold_at": 2} if phase == "between-tokens" else {"words": 1000, "pace": 0.02}
    with StubWorker(writes(**pause)) as worker:
        await gateway.follow([service("gen", [worker.url], limits=limits)])
        body = {
            "model": "gen",
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": True,
            "temperature": 0,
            "max_tokens": 1000,
        }
        async with await gateway.client() as client:
            stream = await EventStream.open(client, CHAT, body)
            last = (await stream.rest())[-1]
            assert '"code":"deadline_exceeded"' in last
            assert f"(phase: {phase})" in last
        worker.behaviour.hold_at = None


async def test_the_deadline_of_a_request_names_what_it_waited_for(
    gateway: GatewayProcess,
) -> None:
    with StubWorker(Behaviour(limit=1, hang=True)) as worker:
        await gateway.follow([service("emb", [worker.url])])
        running = asyncio.create_task(gateway.post(PATH, ask("same"), x_sluice_deadline_ms="6000"))
        await until(lambda: worker.running == 1)
        shared, queued = await asyncio.gather(
            gateway.post(PATH, ask("same"), x_sluice_deadline_ms="200"),
            gateway.post(PATH, ask(), x_sluice_deadline_ms="200"),
        )
        found = {"first-byte": await running, "shared": shared, "queue": queued}
        for phase, reply in found.items():
            assert code(reply) == (504, "deadline_exceeded")
            assert f"(phase: {phase})" in reply.json()["error"]["message"]
        assert len(worker.seen) == 1


# Hedges -------------------------------------------------------------------------------------------


async def test_a_second_worker_answers_where_the_first_is_slow(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(hang=True)) as slow, StubWorker() as fast:
        limits = wire.LimitRules(hedge=wire.HedgeRules(after_seconds=0.05))
        await gateway.follow([service("emb", [slow.url, fast.url], limits=limits)])
        hedges, asked, won = "sluice_gateway_hedges_total", 0, 0.0
        async with asyncio.timeout(60):
            while not (slow.seen and won):  # Which of the two is asked first is chance.
                text, asked = secrets.token_hex(8), asked + 1
                assert right(await gateway.post(PATH, ask(text)), text)
                won = await gateway.metric(hedges, service="emb", outcome="won")
        await until(lambda: slow.aborted == len(slow.seen), what="the loser is stopped")
        assert len(fast.seen) == asked
        lost = await gateway.metric(hedges, service="emb", outcome="lost")
        # The slow one was asked first, or as the second, where the fast one stood still; then it
        # may have been let go before it had read what it was asked.
        assert len(slow.seen) <= won + lost <= asked
        endpoints = (await gateway.services())["emb"]["endpoints"]
        assert [endpoint["inFlight"] for endpoint in endpoints] == [0, 0]


async def test_the_first_worker_may_win_and_its_failure_is_no_loss(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(hold=True)) as one, StubWorker(Behaviour(hold=True)) as two:
        limits = wire.LimitRules(hedge=wire.HedgeRules(after_seconds=0.02))
        await gateway.follow([service("emb", [one.url, two.url], limits=limits)])
        answering = asyncio.create_task(gateway.post(PATH, ask("both")))
        await until(lambda: one.running + two.running == 2)
        one.behaviour.hold = False
        assert right(await answering, "both")
        await until(lambda: one.running + two.running == 0)
        assert (one.aborted, two.aborted) == (0, 1), "the other one is stopped"
        # Whichever breaks, the other answers, without another attempt.
        for broken, other in ((one, two), (two, one)):
            seen = len(one.seen) + len(two.seen)
            text = secrets.token_hex(8)
            broken.behaviour = Behaviour(hold=True, raw=b"nonsense")
            other.behaviour = Behaviour(hold=True)
            answering = asyncio.create_task(gateway.post(PATH, ask(text)))
            await until(lambda: one.running + two.running == 2)
            broken.behaviour.hold = False
            await until(lambda: one.running + two.running == 1)
            other.behaviour.hold = False
            assert right(await answering, text)
            assert len(one.seen) + len(two.seen) == seen + 2


async def test_what_is_written_by_chance_or_streamed_is_not_asked_twice(
    gateway: GatewayProcess,
) -> None:
    with StubWorker(writes(delay=0.2)) as one, StubWorker(writes(delay=0.2)) as two:
        limits = wire.LimitRules(hedge=wire.HedgeRules(after_seconds=0.02))
        await gateway.follow([service("gen", [one.url, two.url], limits=limits)])
        body = {"model": "gen", "messages": [{"role": "user", "content": "Hello"}]}
        assert (await gateway.post(CHAT, body)).status == 200
        assert len(one.seen) + len(two.seen) == 1


async def test_a_client_that_leaves_stops_both(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(hang=True)) as one, StubWorker(Behaviour(hang=True)) as two:
        limits = wire.LimitRules(hedge=wire.HedgeRules(after_seconds=0.02))
        await gateway.follow([service("emb", [one.url, two.url], limits=limits)])
        client = await gateway.client()
        client.send(request(PATH, ask()))
        await until(lambda: one.running + two.running == 2)
        client.close()
        await until(lambda: one.running + two.running == 0, what="upstream not aborted")
        assert (one.aborted, two.aborted) == (1, 1)
