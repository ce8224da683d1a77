"""What is passed on as it came, and each way in which that does not go as usual.

Broken connections, lost workers, refusals for lack of room, callers who leave, deadlines: asked of
both ways in ``test_gateway_workers``. Here stands what only this way could get wrong: it has left
no exchange behind that would know better.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from sluice_api import names, wire
from sluice_api.errors import ApiError
from tests.support.gateway_process import Client, GatewayProcess, request, service
from tests.support.keys_file import KeysFile, bearer
from tests.support.stub_worker import DIGEST, Behaviour, StubWorker, until, vector_of

PATH = "/v1/embeddings"
OTHER_DIGEST = "sha256:" + "cd" * 32


def passed_on(urls: list[str], **fields: Any) -> wire.Service:
    """A service whose answers nobody keeps, so that nothing is looked up for them."""
    return service("emb", urls, cache=wire.CacheRules(enabled=False), **fields)


def ask(text: str) -> dict[str, Any]:
    return {"model": "emb", "input": text}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), []) as gateway:
        yield gateway


@pytest.fixture
async def gateway(process: GatewayProcess) -> AsyncIterator[GatewayProcess]:
    await process.follow([])
    yield process
    assert '"level":"error"' not in process.log


async def asking(gateway: GatewayProcess, worker: StubWorker, text: str) -> Client:
    """A connection whose request is at the worker, which holds it."""
    client = await gateway.client()
    client.send(request(PATH, ask(text)))
    await until(lambda: worker.running == 1, what="the request at the worker")
    return client


async def _in_flight(gateway: GatewayProcess) -> int:
    return sum(e["inFlight"] for e in (await gateway.services())["emb"]["endpoints"])


def answer(digest: str) -> bytes:
    """What a worker writes that has loaded ``digest``; empty: it does not say."""
    body = b'{"object":"list","data":[],"model":"emb"}'
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    told = f"{names.ANSWER_DIGEST}: {digest}\r\n" if digest else ""
    return f"{head}{told}\r\n".encode() + body


async def test_a_worker_that_answers_with_another_digest_is_put_out(
    gateway: GatewayProcess,
) -> None:
    """It says that it has loaded what it should; its answers say otherwise."""
    with StubWorker(Behaviour(raw=answer(OTHER_DIGEST))) as ill, StubWorker() as well:
        await gateway.follow([passed_on([ill.url, well.url], answer_digest=DIGEST)])
        before = await _put_out(gateway)
        async with await gateway.client() as client:

            async def out() -> bool:
                assert (await client.post(PATH, ask("x"))).status == 200
                return await _put_out(gateway) > before

            await until(out, what="the worker out")
        assert len(ill.seen) < 10


async def test_a_worker_that_tells_no_digest_stays(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(raw=answer(""))) as silent, StubWorker() as other:
        await gateway.follow([passed_on([silent.url, other.url], answer_digest=DIGEST)])
        before = await _put_out(gateway)
        async with await gateway.client() as client:

            async def asked() -> bool:
                assert (await client.post(PATH, ask("x"))).status == 200
                return len(silent.seen) >= 20

            await until(asked, what="answers of it")
        assert await _put_out(gateway) == before


async def _put_out(gateway: GatewayProcess) -> float:
    return await gateway.metric("sluice_gateway_ejections_total", service="emb", cause="digest")


async def test_the_answer_is_of_the_revision_that_was_asked(gateway: GatewayProcess) -> None:
    with (
        StubWorker(Behaviour(hold=True)) as old,
        StubWorker(Behaviour(revision="r2", digest=OTHER_DIGEST)) as new,
    ):
        await gateway.follow([passed_on([old.url], answer_digest=DIGEST)])
        async with await asking(gateway, old, "of r1") as client:
            after = passed_on([new.url], revision="r2", answer_digest=OTHER_DIGEST)
            await gateway.follow([after])
            assert (await gateway.post(PATH, ask("of r2"))).headers[names.REVISION] == "r2"
            old.behaviour.hold = False
            reply = await client.reply()
        assert (reply.status, reply.headers[names.REVISION]) == (200, "r1")
        assert reply.json()["data"][0]["embedding"] == vector_of("of r1").tolist()
        assert [b"of r1" in seen.body for seen in new.seen] == [False]


async def test_so_is_an_answer_with_another_digest(gateway: GatewayProcess) -> None:
    behaviour = Behaviour(hold=True)
    with StubWorker(behaviour) as old, StubWorker(Behaviour(revision="r2")) as new:
        await gateway.follow([passed_on([old.url], answer_digest=DIGEST)])
        async with await asking(gateway, old, "of r1") as client:
            await gateway.follow([passed_on([new.url], revision="r2", answer_digest=DIGEST)])
            behaviour.raw, behaviour.hold = answer(OTHER_DIGEST), False
            reply = await client.reply()
        assert (reply.status, reply.headers[names.REVISION]) == (200, "r1")


async def test_what_breaks_with_its_revision_begins_again_with_the_next(
    gateway: GatewayProcess,
) -> None:
    behaviour = Behaviour(hold=True)
    with StubWorker(behaviour) as old, StubWorker(Behaviour(revision="r2")) as new:
        await gateway.follow([passed_on([old.url])])
        async with await asking(gateway, old, "again") as client:
            await gateway.follow([passed_on([new.url], revision="r2")])
            behaviour.raw, behaviour.hold = b"", False
            reply = await client.reply()
        assert (reply.status, reply.headers[names.REVISION]) == (200, "r2")
        assert reply.json()["data"][0]["embedding"] == vector_of("again").tolist()
        assert (len(old.seen), len(new.seen)) == (1, 1)
        assert await _in_flight(gateway) == 0


async def test_a_service_that_is_removed_still_answers(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(hold=True)) as worker:
        await gateway.follow([passed_on([worker.url])])
        async with await asking(gateway, worker, "last") as client:
            await gateway.follow([])
            assert (await gateway.post(PATH, ask("more"))).status == 404
            worker.behaviour.hold = False
            reply = await client.reply()
            assert reply.json()["data"][0]["embedding"] == vector_of("last").tolist()
    with StubWorker(Behaviour(hold=True)) as worker:
        await gateway.follow([passed_on([worker.url])])
        async with await asking(gateway, worker, "lost") as client:
            await gateway.follow([])
            worker.behaviour.raw, worker.behaviour.hold = b"", False
            error = (await client.reply()).json()["error"]
            assert error["code"] == "model_not_found", error


REFUSED = {
    "input_too_long": ApiError("input_too_long", "input: has 9 tokens, at most 8.", param="input"),
    "deadline_exceeded": ApiError("deadline_exceeded", "The deadline passed while it waited."),
}


@pytest.mark.parametrize("code", REFUSED)
async def test_what_a_worker_refuses_for_good_is_not_asked_elsewhere(
    gateway: GatewayProcess, code: str
) -> None:
    error = REFUSED[code]
    with StubWorker(Behaviour(refuse=error)) as one, StubWorker(Behaviour(refuse=error)) as two:
        await gateway.follow([passed_on([one.url, two.url])])
        async with await gateway.client() as client:
            for number in range(8):
                reply = await client.post(PATH, ask(f"{code} {number}"))
                told = reply.json()["error"]
                assert (reply.status, told["code"], told["param"]) == (
                    error.status,
                    code,
                    error.param,
                )
                assert told["message"].startswith(error.message)
        assert len(one.seen) + len(two.seen) == 8
        assert await _in_flight(gateway) == 0


async def test_a_worker_with_nothing_to_say_is_named_by_the_phase(gateway: GatewayProcess) -> None:
    limits = wire.LimitRules(first_byte_timeout_seconds=0.2)
    with StubWorker(Behaviour(hang=True)) as worker:
        await gateway.follow([passed_on([worker.url], limits=limits)])
        reply = await gateway.post(PATH, ask("x"))
        assert (reply.status, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert "(phase: first-byte)" in reply.json()["error"]["message"]
        await until(lambda: worker.aborted == len(worker.seen), what="the worker told")


async def test_a_connection_goes_on_after_whatever_happened(gateway: GatewayProcess) -> None:
    """What is sent ahead is answered in its order, each by its own way."""
    behaviour = Behaviour(hold=True)
    with StubWorker(behaviour) as worker:
        await gateway.follow([passed_on([worker.url])])
        async with await asking(gateway, worker, "first") as client:
            client.send(request(PATH, ask("too long")) + request(PATH, ask("third")))
            behaviour.hold = False
            assert (await client.reply()).json()["data"][0]["embedding"] == (
                vector_of("first").tolist()
            )
            assert (await client.reply()).status == 400
            assert (await client.reply()).json()["data"][0]["embedding"] == (
                vector_of("third").tolist()
            )


@pytest.fixture
def key(tmp_path: Path) -> dict[str, str]:
    """Of a tenant that may have two inputs computed."""
    file = KeysFile(tmp_path / "keys.json")
    file.tenant("few", "default", inputs="2/h", requests="1000/s")
    shown = bearer(file.key("few"))
    file.write()
    return shown


def keyed(folder: Path, *services: wire.Service) -> GatewayProcess:
    options = ("--auth", "keys", "--keys-file", str(folder / "keys.json"))
    return GatewayProcess(folder, [*services], *options)


async def test_what_a_tenant_may_not_use_reaches_no_worker(
    tmp_path: Path, key: dict[str, str]
) -> None:
    with StubWorker() as worker, keyed(tmp_path, passed_on([worker.url])) as gateway:
        await gateway.ready("emb")
        assert await _code(gateway, key, "a", "b", "c") == "too_many_inputs"
        assert await _code(gateway, key, "a", "b") == ""
        assert await _code(gateway, key, "c") == "rate_limited"
        assert len(worker.seen) == 1
        assert await _in_flight(gateway) == 0
        denied = "sluice_gateway_denials_total"
        assert await gateway.metric(denied, tenant="few", code="rate_limited") == 1


async def test_what_begins_again_is_charged_and_demanded_once(
    tmp_path: Path, key: dict[str, str]
) -> None:
    behaviour = Behaviour(hold=True)
    records: list[wire.Demand] = []
    with (
        StubWorker(behaviour) as old,
        StubWorker(Behaviour(revision="r2")) as new,
        keyed(tmp_path, passed_on([old.url])) as gateway,
    ):
        await gateway.ready("emb")
        reading = asyncio.create_task(gateway.demand(records))
        await until(lambda: bool(records), what="the first record")
        async with await gateway.client() as client:
            client.send(request(PATH, ask("a"), **key))
            await until(lambda: old.running == 1, what="the request at the worker")
            await gateway.follow([passed_on([new.url], revision="r2")])
            behaviour.raw, behaviour.hold = b"", False
            assert (await client.reply()).headers[names.REVISION] == "r2"
        assert await _code(gateway, key, "b") == ""
        assert await _code(gateway, key, "c") == "rate_limited"

        def arrived(least: int) -> bool:
            return sum(record.arrivals for record in records) >= least

        await until(lambda: arrived(2), what="the demand")
        assert not arrived(3)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _code(gateway: GatewayProcess, key: dict[str, str], *texts: str) -> str:
    """The code that a request for ``texts`` is refused with; empty where it is answered."""
    reply = await gateway.post(PATH, {"model": "emb", "input": [*texts]}, **key)
    code: str = reply.json().get("error", {}).get("code", "")
    assert (reply.status == 200) == (not code)
    return code


async def test_who_waits_at_the_end_of_the_grace_is_told(tmp_path: Path) -> None:
    with StubWorker(Behaviour(hang=True)) as worker:
        options = ("--drain-grace", "200ms", "--drain-delay", "0ms")
        with GatewayProcess(tmp_path, [passed_on([worker.url])], *options) as gateway:
            await gateway.ready("emb")
            async with await asking(gateway, worker, "x") as client:
                stopping = asyncio.create_task(asyncio.to_thread(gateway.terminate))
                reply = await client.reply()
                assert (reply.status, reply.json()["error"]["code"]) == (503, "draining")
                assert await stopping == 0
        await until(lambda: worker.aborted == 1, what="the worker told")
