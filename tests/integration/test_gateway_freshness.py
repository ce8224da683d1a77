"""Answers near and past their end, and refusals that are repeated: through a whole gateway.

The services differ in their cache rules. What is fresh for a twentieth of a second and stale for an
hour is stale whenever a test gets to look at it.
"""

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from sluice_api import wire
from sluice_api.errors import ApiError
from tests.support.gateway_process import GatewayProcess, Reply, service
from tests.support.stub_worker import Behaviour, StubWorker, until, vector_of

PATH = "/v1/embeddings"
HOUR = 3600.0
NOTHING_STALE = {"stale_while_revalidate_seconds": 0.0, "stale_if_error_seconds": 0.0}
RULES = {
    "renewed": wire.CacheRules(ttl_seconds=0.05, stale_while_revalidate_seconds=HOUR),
    "spare": wire.CacheRules(
        ttl_seconds=0.05, stale_while_revalidate_seconds=0, stale_if_error_seconds=HOUR
    ),
    "strict": wire.CacheRules(ttl_seconds=0.05, **NOTHING_STALE),
    "long": wire.CacheRules(ttl_seconds=60, **NOTHING_STALE),
}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def table(worker: StubWorker) -> list[wire.Service]:
    return [service(name, [worker.url], cache=rules) for name, rules in RULES.items()]


@pytest.fixture(scope="module")
def process(
    table: list[wire.Service], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), table) as gateway:
        yield gateway


@pytest.fixture
async def gateway(process: GatewayProcess, worker: StubWorker) -> AsyncIterator[GatewayProcess]:
    for name in RULES:
        await process.ready(name)
    yield process
    worker.behaviour = Behaviour()


def fresh_text() -> str:
    return f"text {next(_numbers)}"


async def ask(gateway: GatewayProcess, name: str, text: Any, control: str = "") -> Reply:
    headers = {"cache_control": control} if control else {}
    return await gateway.post(PATH, {"model": name, "input": text}, **headers)


async def make_stale(gateway: GatewayProcess, name: str, text: str) -> None:
    """Have the answer to ``text`` stored, and wait until it is not fresh any more."""
    assert (await ask(gateway, name, text)).status == 200

    async def gone() -> bool:
        return (await ask(gateway, name, text, "only-if-cached, max-stale=0")).status == 504

    await until(gone, 60, "stale")


def status(reply: Reply) -> str:
    return reply.headers["cache-status"]


def is_right(reply: Reply, text: str) -> bool:
    return reply.status == 200 and reply.json()["data"][0]["embedding"] == list(vector_of(text))


# Stale while revalidate -------------------------------------------------------------------------


async def test_a_stale_answer_is_given_and_renewed_behind_its_back(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    text = fresh_text()
    await make_stale(gateway, "renewed", text)
    computed = worker.inputs[text]
    reply = await ask(gateway, "renewed", text)
    assert is_right(reply, text) and int(reply.headers["age"]) >= 0
    assert status(reply).startswith("Sluice; hit; ttl=-")
    assert status(reply).endswith("; detail=stale-while-revalidate")
    await until(lambda: worker.inputs[text] == computed + 1, 60, "renewed")

    async def counted() -> bool:
        outcome = "sluice_gateway_cache_renewals_total"
        return await gateway.metric(outcome, service="renewed", outcome="done") >= 1

    await until(counted, 60, "a renewal that is done")
    assert await gateway.metric("sluice_gateway_cache_lookups_total", result="stale") >= 1


async def test_many_readers_of_a_stale_answer_have_it_renewed_once(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    text = fresh_text()
    await make_stale(gateway, "renewed", text)
    before = worker.inputs[text]
    worker.behaviour.hold = True
    async with await gateway.client() as client:
        for _ in range(20):
            reply = await client.post(PATH, {"model": "renewed", "input": text})
            assert is_right(reply, text) and "; hit" in status(reply)
    worker.behaviour.hold = False
    await until(lambda: worker.inputs[text] > before, 60, "renewed")
    assert worker.inputs[text] == before + 1


async def test_what_is_renewed_waits_for_nobody_and_wakes_nobody(
    gateway: GatewayProcess, table: list[wire.Service]
) -> None:
    text = fresh_text()
    await make_stale(gateway, "renewed", text)
    asleep = [entry for entry in table if entry.name != "renewed"]
    asleep.append(
        service("renewed", [], cache=RULES["renewed"], answer_digest=await digest(gateway))
    )
    await gateway.follow(asleep, ready=False)
    try:
        assert "stale-while-revalidate" in status(await ask(gateway, "renewed", text))
        told = (await gateway.services())["renewed"]
        assert told["state"] == "asleep" and told["waiting"] == 0
        renewals = "sluice_gateway_cache_renewals_total"
        assert await gateway.metric(renewals, service="renewed", outcome="skipped") >= 1
    finally:
        await gateway.follow(table)


async def digest(gateway: GatewayProcess) -> str:
    return str((await gateway.services())["renewed"]["answerDigest"])


async def test_a_hot_answer_is_renewed_before_its_end(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    """Told that it takes a minute to compute, one of its readers does not wait for its end."""
    text = fresh_text()
    worker.behaviour.service_seconds = 60.0
    await ask(gateway, "long", text)

    async def renewed() -> bool:
        reply = await ask(gateway, "long", text)
        assert "; hit; ttl=-" not in status(reply), "too late: the machine stood still"
        return worker.inputs[text] >= 2

    await until(renewed, 60, "renewed early")


# Stale if error ---------------------------------------------------------------------------------


async def test_a_stale_answer_is_better_than_a_worker_that_fails(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    text = fresh_text()
    await make_stale(gateway, "spare", text)
    worker.behaviour.refuse = ApiError("internal_error", "Broken.")
    reply = await ask(gateway, "spare", text)
    assert is_right(reply, text) and "age" in reply.headers
    assert status(reply).startswith("Sluice; fwd=stale; ttl=-")
    assert status(reply).endswith("; detail=stale-if-error")
    assert (await ask(gateway, "spare", text, "stale-if-error=0")).status == 502
    assert (await ask(gateway, "spare", text, "no-cache")).status == 502
    assert (await ask(gateway, "spare", [text, fresh_text()])).status == 502, "one is not kept"


async def test_a_stale_answer_is_better_than_no_worker(
    gateway: GatewayProcess, table: list[wire.Service]
) -> None:
    text = fresh_text()
    await make_stale(gateway, "spare", text)
    failure = wire.Failure(reason="CrashLoop", message="It crashes", retry_after_seconds=5)
    failing = [entry for entry in table if entry.name != "spare"]
    digest = (await gateway.services())["spare"]["answerDigest"]
    failing.append(
        service("spare", [], cache=RULES["spare"], answer_digest=digest, failure=failure)
    )
    await gateway.follow(failing, ready=False)
    try:
        assert "stale-if-error" in status(await ask(gateway, "spare", text))
        refused = await ask(gateway, "spare", fresh_text())
        assert refused.status == 503 and refused.json()["error"]["code"] == "model_failed"
    finally:
        await gateway.follow(table)


async def test_a_caller_s_own_mistake_is_no_error_to_be_hidden(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    text = fresh_text()
    await make_stale(gateway, "spare", text)
    worker.behaviour.refuse = ApiError("invalid_field", "input: no.", param="input")
    assert (await ask(gateway, "spare", text)).status == 400


# The caller's words -----------------------------------------------------------------------------


async def test_the_caller_says_how_stale_is_too_stale(gateway: GatewayProcess) -> None:
    text = fresh_text()
    await make_stale(gateway, "spare", text)
    for control in ("only-if-cached", "only-if-cached, max-stale=0", "only-if-cached, max-age=600"):
        assert (await ask(gateway, "spare", text, control)).status == 504, control
    for control in ("only-if-cached, max-stale", "only-if-cached, max-stale=600"):
        assert is_right(await ask(gateway, "spare", text, control), text), control
    other = fresh_text()
    await make_stale(gateway, "spare", other)
    reply = await ask(gateway, "spare", other)
    assert "fwd=stale; stored" in status(reply)


async def test_the_caller_says_how_fresh_it_must_stay(gateway: GatewayProcess) -> None:
    text = fresh_text()
    for _ in range(3):  # The third one comes from the whole answers by body.
        await ask(gateway, "long", text)
    assert "; hit" in status(await ask(gateway, "long", text, "min-fresh=5"))
    reply = await ask(gateway, "long", text, "min-fresh=500")
    assert "fwd=stale; stored" in status(reply)


async def test_by_default_nothing_stale_is_given_where_the_owner_says_so(
    gateway: GatewayProcess,
) -> None:
    text = fresh_text()
    await make_stale(gateway, "strict", text)
    assert (await ask(gateway, "strict", text, "only-if-cached, max-stale")).status == 504


# Refusals ---------------------------------------------------------------------------------------


async def test_a_refused_input_is_refused_again_without_asking(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    text = f"too long {fresh_text()}"
    first = await ask(gateway, "long", text)
    again = await ask(gateway, "long", text)
    assert first.status == again.status == 400
    assert without_id(first) == without_id(again)
    assert again.json()["error"]["code"] == "input_too_long"
    assert status(again).startswith("Sluice; hit; ttl=") and "detail=refused" in status(again)
    assert worker.inputs[text] == 1
    assert (await ask(gateway, "long", text, "no-cache")).status == 400
    assert worker.inputs[text] == 2


async def test_in_a_list_and_by_another_route_the_field_is_the_caller_s(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    text = f"too long {fresh_text()}"
    await ask(gateway, "long", [fresh_text(), text])
    reply = await ask(gateway, "long", [fresh_text(), fresh_text(), text])
    assert reply.json()["error"]["param"] == "input[2]"
    assert reply.json()["error"]["message"].startswith("input[2]: has 9 tokens")
    assert worker.inputs[text] == 1


@pytest.mark.parametrize("code", ["internal_error", "unauthorized", "forbidden"])
async def test_what_may_pass_is_not_repeated(
    gateway: GatewayProcess, worker: StubWorker, code: str
) -> None:
    text = fresh_text()
    worker.behaviour.refuse = ApiError(code, "No.")
    assert (await ask(gateway, "long", text)).status >= 400
    worker.behaviour.refuse = None

    async def answered() -> bool:  # The worker may be out for a moment.
        return is_right(await ask(gateway, "long", text), text)

    await until(answered, 60, "answered")


def without_id(reply: Reply) -> Any:
    error = reply.json()["error"]
    del error["request_id"]
    return error
