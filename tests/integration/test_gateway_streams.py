"""Streamed answers over both of the gateway's paths: who gets what, when, and how it ends."""

import asyncio
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from sluice_api import names, wire
from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from tests.support.event_stream import DONE, EventStream, data_of, text_of
from tests.support.gateway_process import Client, GatewayProcess, service
from tests.support.stub_worker import Behaviour, StubWorker, until

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
TASKS = [Task.TEXT_GENERATION, Task.CHAT]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), []) as gateway:
        yield gateway


@pytest.fixture
def worker() -> Iterator[StubWorker]:
    with StubWorker(writes()) as stub:
        yield stub


@pytest.fixture
async def gateway(process: GatewayProcess, worker: StubWorker) -> AsyncIterator[GatewayProcess]:
    await process.follow([])
    await process.follow([service("gen", [worker.url])])
    yield process
    assert '"level":"error"' not in process.log


@pytest.fixture(params=["fast", "ordinary"])
def path(request: pytest.FixtureRequest) -> str:
    """Which of the gateway's two ways a connection takes."""
    kind: str = request.param
    return kind


def writes(**more: Any) -> Behaviour:
    return Behaviour(tasks=list(TASKS), **more)


async def connect(gateway: GatewayProcess, path: str) -> Client:
    client = await gateway.client()
    if path == "ordinary":
        await client.get("/livez")  # From here on the connection is uvicorn's.
    return client


def chat(text: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "gen", "messages": messages, "stream": True, "temperature": 0} | more


def completion(text: str | list[str], **more: Any) -> dict[str, Any]:
    return {"model": "gen", "prompt": text, "stream": True, "temperature": 0} | more


def fresh() -> str:
    return secrets.token_hex(6)


async def followers(gateway: GatewayProcess, count: int) -> None:
    async def seen() -> bool:
        told = (await gateway.get("/internal/services", admin=True)).json()["parts"]["Flights"]
        return f"{count} waiting" in told

    await until(seen, what=f"{count} waiting")


async def idle(gateway: GatewayProcess) -> None:
    """Nothing of any stream is left."""

    async def seen() -> bool:
        (endpoint,) = (await gateway.services())["gen"]["endpoints"]
        open_streams = await gateway.metric("sluice_gateway_streams", service="gen")
        return endpoint["inFlight"] == 0 and open_streams == 0

    await until(seen, what="the stream is let go")


# What comes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
async def test_stream(gateway: GatewayProcess, worker: StubWorker, path: str, route: str) -> None:
    worker.behaviour.words = 12
    body = chat(fresh()) if route == CHAT else completion(fresh())
    async with await connect(gateway, path) as client:
        stream = await EventStream.open(client, route, body, x_request_id="mine")
        assert stream.status == 200
        headers = stream.headers
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-cache"
        assert headers["x-accel-buffering"] == "no"
        assert headers["transfer-encoding"] == "chunked"
        assert headers["x-request-id"] == "mine"
        assert headers["cache-status"] == "Sluice; fwd=miss"
        assert headers["x-sluice-revision"] == "r1"
        events = await stream.rest()
        assert stream.complete and events[-1] == f"data: {DONE}"
        chunks = data_of(events)
        assert all(chunk["choices"] for chunk in chunks), "the usage chunk was not asked for"
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert text_of(events).endswith(" 10 11")
        # The connection goes on as any other.
        assert (await client.post(route, body | {"stream": False})).status == 200
    assert worker.seen[-1].headers[names.WANTS_ITEM] == "1"
    assert b": item" not in stream.raw


async def test_events_come_as_they_are_written(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    worker.behaviour.hold_at = 3
    async with await connect(gateway, path) as client:
        stream = await EventStream.open(client, CHAT, chat(fresh()))
        for _ in range(3):
            assert await stream.event() is not None
        assert worker.running == 1
        worker.behaviour.hold_at = None
        assert (await stream.rest())[-1] == f"data: {DONE}"


async def test_usage_is_given_to_who_asks(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    body = chat(fresh(), stream_options={"include_usage": True})
    async with await connect(gateway, path) as client:
        for source in ("computed", "replayed"):
            stream = await EventStream.open(client, CHAT, body)
            events = await stream.rest()
            *chunks, last = data_of(events)
            assert last["choices"] == [] and last["usage"]["completion_tokens"] == 2, source
            assert all(chunk["usage"] is None for chunk in chunks)
    assert len(worker.seen) == 1


async def test_one_item_serves_streams_and_plain_answers(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    text = fresh()
    async with await connect(gateway, path) as client:
        computed = await (await EventStream.open(client, CHAT, chat(text))).text()
        plain = await client.post(CHAT, chat(text, stream=False))
        assert plain.headers["cache-status"].startswith("Sluice; hit")
        assert plain.json()["choices"][0]["message"]["content"] == computed
        for _ in range(3):  # The third is found by its whole body.
            replay = await EventStream.open(client, CHAT, chat(text))
            assert replay.headers["cache-status"].startswith("Sluice; hit")
            assert replay.headers["content-type"] == "text/event-stream"
            assert replay.headers["cache-control"] == "no-cache"
            assert await replay.text() == computed
        other = fresh()
        await client.post(CHAT, chat(other, stream=False))
        again = await EventStream.open(client, CHAT, chat(other))
        assert again.headers["cache-status"].startswith("Sluice; hit")
        await again.text()
    assert len(worker.seen) == 2


@pytest.mark.parametrize("fragment", [1, 7, 64])
async def test_worker_may_cut_its_bytes_anywhere(
    gateway: GatewayProcess, worker: StubWorker, path: str, fragment: int
) -> None:
    worker.behaviour.fragment = fragment
    text = fresh()
    async with await connect(gateway, path) as client:
        stream = await EventStream.open(client, COMPLETIONS, completion(text))
        assert await stream.text() == f"{len(text)} characters"
        assert b": item" not in stream.raw
        again = await EventStream.open(client, COMPLETIONS, completion(text))
        assert again.headers["cache-status"].startswith("Sluice; hit")


async def test_list_of_prompts_is_stored_by_prompt(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    one, two = fresh(), fresh()
    async with await connect(gateway, path) as client:
        stream = await EventStream.open(client, COMPLETIONS, completion([one, two]))
        await stream.text()
        for prompt in (one, two):
            reply = await client.post(COMPLETIONS, completion(prompt, stream=False))
            assert reply.headers["cache-status"].startswith("Sluice; hit")
    assert len(worker.seen) == 1


async def test_http_1_0_gets_it_without_chunks(gateway: GatewayProcess, path: str) -> None:
    async with await connect(gateway, path) as client:
        body = json.dumps(chat(fresh())).encode()
        client.send(f"POST {CHAT} HTTP/1.0\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        answer = await client.reader.read()
    head, _, events = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    if path == "fast":  # uvicorn frames in chunks whatever the version.
        assert b"transfer-encoding" not in head
        assert events.endswith(b"data: [DONE]\n\n")


# What is shared -----------------------------------------------------------------------------------


async def test_follower_gets_the_beginning_and_goes_along(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    worker.behaviour.words, worker.behaviour.hold_at = 12, 6
    body = chat(fresh())
    async with await connect(gateway, path) as one, await connect(gateway, path) as two:
        leader = await EventStream.open(one, CHAT, body)
        for _ in range(6):
            await leader.event()
        follower = await EventStream.open(two, CHAT, body)
        assert follower.headers["cache-status"] == "Sluice; fwd=miss; collapsed"
        for _ in range(6):
            await follower.event()
        worker.behaviour.hold_at = None
        await asyncio.gather(leader.rest(), follower.rest())
        assert leader.raw == follower.raw
        assert leader.complete and follower.complete
    assert len(worker.seen) == 1


async def test_plain_request_waits_for_the_item_of_a_stream(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    worker.behaviour.hold_at = 2
    text = fresh()
    async with await connect(gateway, path) as one, await connect(gateway, path) as two:
        leader = await EventStream.open(one, CHAT, chat(text))
        plain = asyncio.create_task(two.post(CHAT, chat(text, stream=False)))
        await followers(gateway, 2)
        worker.behaviour.hold_at = None
        reply = await plain
        assert reply.headers["cache-status"] == "Sluice; fwd=miss; collapsed"
        assert reply.json()["choices"][0]["message"]["content"] == await leader.text()
    assert len(worker.seen) == 1


async def test_stream_in_another_form_waits_for_the_item(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    worker.behaviour.hold_at = 2
    text = fresh()
    with_usage = chat(text, stream_options={"include_usage": True})
    async with await connect(gateway, path) as one, await connect(gateway, path) as two:
        leader = await EventStream.open(one, CHAT, chat(text))
        opening = asyncio.create_task(EventStream.open(two, CHAT, with_usage))
        await followers(gateway, 2)
        worker.behaviour.hold_at = None
        follower = await opening
        assert await follower.text() == await leader.text()
        assert b'"usage":{' in follower.raw and b'"usage"' not in leader.raw
    assert len(worker.seen) == 1


async def test_stream_joins_a_plain_computation(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    worker.behaviour.delay = 0.3
    text = fresh()
    async with await connect(gateway, path) as one, await connect(gateway, path) as two:
        plain = asyncio.create_task(one.post(CHAT, chat(text, stream=False)))
        await until(lambda: worker.running == 1)
        stream = await EventStream.open(two, CHAT, chat(text))
        content = (await plain).json()["choices"][0]["message"]["content"]
        assert await stream.text() == content
    assert len(worker.seen) == 1


async def test_leader_that_leaves_does_not_stop_the_others(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    worker.behaviour.hold_at = 3
    body = chat(fresh())
    one, two = await connect(gateway, path), await connect(gateway, path)
    leader = await EventStream.open(one, CHAT, body)
    await leader.event()
    follower = await EventStream.open(two, CHAT, body)
    await followers(gateway, 2)
    one.close()
    await followers(gateway, 1)
    worker.behaviour.hold_at = None
    assert (await follower.rest())[-1] == f"data: {DONE}"
    assert worker.aborted == 0 and len(worker.seen) == 1
    two.close()
    await idle(gateway)


async def test_last_one_gone_stops_the_worker(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    worker.behaviour.words, worker.behaviour.pace = 10_000, 0.01
    body = chat(fresh())
    one, two = await connect(gateway, path), await connect(gateway, path)
    for client in (one, two):
        stream = await EventStream.open(client, CHAT, body)
        await stream.event()
    one.close()
    two.close()
    await until(lambda: worker.running == 0, what="the worker writes on")
    sent = worker.events
    assert worker.aborted == 1
    await asyncio.sleep(0.1)
    assert worker.events <= sent + 1
    await idle(gateway)
    cut = await gateway.metric("sluice_gateway_streams_cut_total", cause="client_gone")
    assert cut >= 2


# What must not be shared --------------------------------------------------------------------------


async def test_sampled_streams_are_neither_kept_nor_shared(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    worker.behaviour.hold_at = 2
    body = chat(fresh(), temperature=0.7)
    async with await connect(gateway, path) as one, await connect(gateway, path) as two:
        first = await EventStream.open(one, CHAT, body)
        second = await EventStream.open(two, CHAT, body)
        for stream in (first, second):
            assert stream.headers["cache-status"] == "Sluice; fwd=bypass; detail=sampled"
        worker.behaviour.hold_at = None
        await asyncio.gather(first.text(), second.text())
        assert b": item" not in first.raw and b'"usage"' not in first.raw
        counted = await gateway.metric("sluice_gateway_tokens_total", service="gen")
        plain = await one.post(CHAT, body | {"stream": False})
        assert plain.headers["cache-status"] == "Sluice; fwd=bypass; detail=sampled"
        used = plain.json()["usage"]["total_tokens"]
        after = await gateway.metric("sluice_gateway_tokens_total", service="gen")
        assert after == counted + used
    assert len(worker.seen) == 3


async def test_sampled_answers_are_kept_where_the_service_says_so(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    await gateway.follow(
        [service("gen", [worker.url], cache=wire.CacheRules(generation="sampled"))]
    )
    worker.behaviour.draws = True
    drawn = chat(fresh(), temperature=0.7)
    open_to_the_model = chat(fresh())
    del open_to_the_model["temperature"]
    async with await connect(gateway, path) as client:
        for body in (drawn, open_to_the_model):
            first = await EventStream.open(client, CHAT, body)
            assert first.headers["cache-status"] == "Sluice; fwd=miss"
            text = await first.text()
            plain = await client.post(CHAT, body | {"stream": False})
            assert plain.headers["cache-status"].startswith("Sluice; hit")
            assert plain.json()["choices"][0]["message"]["content"] == text
        assert len(worker.seen) == 2
        await gateway.follow([service("gen", [worker.url])])
        for body in (drawn, open_to_the_model):
            again = await client.post(CHAT, body | {"stream": False})
            assert "fwd=" in again.headers["cache-status"]
    assert len(worker.seen) == 4


async def test_model_that_samples_by_default_is_found_out(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    worker.behaviour.draws = True
    body = chat(fresh())
    del body["temperature"]
    async with await connect(gateway, path) as client:
        first = await EventStream.open(client, CHAT, body)
        assert first.headers["cache-status"] == "Sluice; fwd=miss"
        await first.text()
        second = await EventStream.open(client, CHAT, body)
        assert second.headers["cache-status"] == "Sluice; fwd=bypass; detail=sampled"
        await second.text()
        greedy = await EventStream.open(client, CHAT, body | {"temperature": 0})
        assert greedy.headers["cache-status"] == "Sluice; fwd=miss"
        await greedy.text()
    assert len(worker.seen) == 3


async def test_until_a_models_defaults_are_known_nobody_shares(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    worker.behaviour.hold_at = 2
    body = chat(fresh())
    del body["temperature"]
    async with await connect(gateway, path) as one, await connect(gateway, path) as two:
        streams = [await EventStream.open(client, CHAT, body) for client in (one, two)]
        assert worker.running == 2
        worker.behaviour.hold_at = None
        for stream in streams:
            await stream.text()
        known = await EventStream.open(one, CHAT, body)
        assert known.headers["cache-status"].startswith("Sluice; hit")
        await known.text()


async def test_generated_answers_are_not_kept_where_the_service_says_so(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    rules = wire.CacheRules(generation="never")
    await gateway.follow([])
    await gateway.follow([service("gen", [worker.url], cache=rules)])
    body = chat(fresh())
    async with await connect(gateway, path) as client:
        for _ in range(2):
            stream = await EventStream.open(client, CHAT, body)
            assert stream.headers["cache-status"] == "Sluice; fwd=bypass; detail=never"
            await stream.text()
    assert len(worker.seen) == 2


async def test_digest_that_is_not_the_keys_is_not_stored(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    worker.behaviour.hang_probes = True  # Or one finds it out before the request does.
    keys, worker.behaviour.digest = worker.behaviour.digest, "sha256:" + "cd" * 32
    text = fresh()
    async with await connect(gateway, path) as client:
        await (await EventStream.open(client, CHAT, chat(text))).text()
        # As it was: what had been stored would be found now.
        worker.behaviour.hang_probes, worker.behaviour.digest = False, keys
        await gateway.ready("gen")
        again = await EventStream.open(client, CHAT, chat(text))
        assert again.headers["cache-status"] == "Sluice; fwd=miss"
        await again.text()


# What goes wrong ----------------------------------------------------------------------------------


async def broken(gateway: GatewayProcess, path: str, code: str, body: Any = None) -> EventStream:
    """Ask for a stream that must break off after it began, with ``code`` in its last event."""
    async with await connect(gateway, path) as client:
        stream = await EventStream.open(client, CHAT, body or chat(fresh()), x_request_id="mine")
        assert stream.status == 200
        events = await stream.rest()
    assert not stream.complete, "it must not look complete"
    assert f"data: {DONE}" not in events
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert (error["code"], error["request_id"]) == (code, "mine"), events
    return stream


async def test_worker_that_breaks_off(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    before = await gateway.metric("sluice_gateway_streams_cut_total", cause="upstream_failed")
    worker.behaviour.cut_at = 2
    body = chat(fresh())
    await broken(gateway, path, "upstream_failed", body)
    assert len(worker.seen) == 1, "what has begun is not tried again"
    count = gateway.metric
    assert await count("sluice_gateway_streams_cut_total", cause="upstream_failed") == before + 1
    worker.behaviour.cut_at = None
    await idle(gateway)
    async with await connect(gateway, path) as client:
        again = await EventStream.open(client, CHAT, body)
        assert again.headers["cache-status"] == "Sluice; fwd=miss", "nothing of it was kept"
        await again.text()


async def test_all_who_follow_learn_that_it_broke(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    worker.behaviour.hold_at, worker.behaviour.cut_at = 2, 3
    text = fresh()
    clients = [await connect(gateway, path) for _ in range(3)]
    streams = [await EventStream.open(client, CHAT, chat(text)) for client in clients[:2]]
    plain = asyncio.create_task(clients[2].post(CHAT, chat(text, stream=False)))
    await followers(gateway, 3)
    worker.behaviour.hold_at = None
    for stream in streams:
        events = await stream.rest()
        assert '"upstream_failed"' in events[-1] and not stream.complete
    assert (await plain).status == 502
    for client in clients:
        client.close()
    assert len(worker.seen) == 1


@pytest.mark.parametrize("code", ["internal_error", "overloaded", "deadline_exceeded"])
async def test_error_that_the_worker_writes_into_the_stream(
    gateway: GatewayProcess, worker: StubWorker, path: str, code: str
) -> None:
    worker.behaviour.fail_at = 2
    worker.behaviour.failure = ApiError(code, "It went wrong.")
    stream = await broken(gateway, path, code)
    assert stream.raw.count(b'data: {"error"') == 1
    assert b"It went wrong." in stream.raw


async def test_refusal_before_the_first_event_has_a_status(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    worker.behaviour.refuse = ApiError("invalid_field", "messages: no.", param="messages")
    async with await connect(gateway, path) as client:
        reply = await client.post(CHAT, chat(fresh()))
        assert (reply.status, reply.json()["error"]["param"]) == (400, "messages")
        unsupported = await client.post(CHAT, chat(fresh()) | {"model": "gen", "audio": 1})
        assert unsupported.json()["error"]["code"] == "unknown_field"


async def test_before_the_first_event_another_worker_is_tried(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    with StubWorker(writes(fail_at=0)) as ill:
        await gateway.follow([service("gen", [ill.url, worker.url])])
        async with await connect(gateway, path) as client:
            async with asyncio.timeout(60):
                while not ill.seen:  # Which worker a new prompt goes to is chance.
                    stream = await EventStream.open(client, CHAT, chat(fresh()))
                    assert (await stream.rest())[-1] == f"data: {DONE}"


NOT_A_STREAM = {
    "plain JSON": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "no end": b"data: {}\n\n",
    "after the end": b"data: [DONE]\n\ndata: {}\n\n",
    "bad item": b": item {}\n\ndata: [DONE]\n\n",
    "half an event": b"data: [DONE]\n\ndata: {",
    "endless event": b"data: " + b"x" * 17_000_000,
    "nothing": b"",
}


@pytest.mark.parametrize("name", NOT_A_STREAM)
async def test_stream_that_is_none(
    gateway: GatewayProcess, worker: StubWorker, path: str, name: str
) -> None:
    raw = NOT_A_STREAM[name]
    if not raw.startswith(b"HTTP"):
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked"
        chunk = b"%x\r\n%b\r\n" % (len(raw), raw) if raw else b""
        raw = head + b"\r\n\r\n" + chunk + b"0\r\n\r\n"
    worker.behaviour.raw = raw
    async with await connect(gateway, path) as client:
        stream = await EventStream.open(client, CHAT, chat(fresh()), x_sluice_deadline_ms="60000")
        if stream.status == 200:
            events = await stream.rest()
            assert '"upstream_failed"' in events[-1] and not stream.complete
        else:
            assert stream.status == 502


async def test_silence_between_events_has_a_limit(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    limits = wire.LimitRules(timeout_seconds=3.0)
    await gateway.follow([service("gen", [worker.url], limits=limits)])
    worker.behaviour.words, worker.behaviour.pace = 16, 0.2
    async with await connect(gateway, path) as client:
        slow = await EventStream.open(client, CHAT, chat(fresh()))
        began = time.monotonic()
        assert (await slow.rest())[-1] == f"data: {DONE}"
        assert time.monotonic() - began > 3.0, "longer than the limit, but never silent"
    worker.behaviour.pace, worker.behaviour.hold_at = 0.0, 3
    await broken(gateway, path, "deadline_exceeded")
    await until(lambda: worker.running == 0, what="the worker writes on")


async def test_deadline_of_the_caller_is_for_the_whole_stream(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    worker.behaviour.words, worker.behaviour.pace = 1000, 0.02
    body = chat(fresh())
    async with await connect(gateway, path) as one, await connect(gateway, path) as two:
        hasty = await EventStream.open(one, CHAT, body, x_sluice_deadline_ms="4000")
        patient = await EventStream.open(two, CHAT, body)
        events = await hasty.rest()
        assert '"deadline_exceeded"' in events[-1] and not hasty.complete
        assert await patient.event() is not None
        assert worker.running == 1, "another one still follows"


# Slow clients -------------------------------------------------------------------------------------


async def test_slow_client_holds_its_worker_up(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    worker.behaviour.words, worker.behaviour.padding = 400, 100_000  # 40 MB in all
    async with await connect(gateway, path) as client:
        stream = await EventStream.open(client, CHAT, chat(fresh(), temperature=1))
        sent = -1
        while sent != worker.events or not sent:
            sent = worker.events
            await asyncio.sleep(0.3)
        assert 0 < sent < 300, "the worker must wait, not the gateway's memory grow"
        events = await stream.rest(60)
        assert events[-1] == f"data: {DONE}" and stream.complete
    assert worker.events > 400


async def test_slow_client_does_not_hold_up_the_others(
    gateway: GatewayProcess, worker: StubWorker, path: str
) -> None:
    before = await gateway.metric("sluice_gateway_streams_cut_total", cause="slow")
    worker.behaviour.words, worker.behaviour.padding = 400, 100_000
    worker.behaviour.hold_at = 2
    body = chat(fresh())
    async with await connect(gateway, path) as one, await connect(gateway, path) as two:
        # The other one's buffers shall be full first, also where this process is slow to read.
        one.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await EventStream.open(one, CHAT, body)
        quick = await EventStream.open(two, CHAT, body)
        worker.behaviour.hold_at = None
        events = await quick.rest(60)
        assert events[-1] == f"data: {DONE}" and quick.complete
        count = gateway.metric
        assert await count("sluice_gateway_streams_cut_total", cause="slow") == before + 1


# Numbers ------------------------------------------------------------------------------------------


async def test_streams_are_counted(gateway: GatewayProcess, worker: StubWorker, path: str) -> None:
    count = gateway.metric
    tokens = await count("sluice_gateway_tokens_total", service="gen")
    worker.behaviour.hold_at = 3
    records: list[wire.Demand] = []
    listening = asyncio.create_task(gateway.demand(records))
    async with await connect(gateway, path) as client:
        stream = await EventStream.open(client, CHAT, chat(fresh()))
        await stream.event()
        assert await count("sluice_gateway_streams", service="gen") == 1
        assert await count("sluice_gateway_in_flight", service="gen") == 1
        await until(lambda: any(record.in_flight == 1 for record in records), what="in flight")
        worker.behaviour.hold_at = None
        await stream.text()
    await until(lambda: any(record.completions == 1 for record in records), what="completion")
    listening.cancel()
    done = next(record for record in records if record.completions)
    assert 0 < done.service_seconds < 600 and done.work_units == 1
    assert await count("sluice_gateway_streams", service="gen") == 0
    assert await count("sluice_gateway_stream_chunks_total", service="gen") >= 3
    assert await count("sluice_gateway_stream_first_event_seconds_count", service="gen") >= 1
    assert await count("sluice_gateway_tokens_total", service="gen") == tokens + 3
