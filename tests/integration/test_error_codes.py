"""Every code of the error catalogue is met on the wire: which request gets it.

One table, so that a code that nobody can meet, or that is written in another way than its
neighbours, is found here. A code that is added needs a line.
"""

import asyncio
import contextlib
import re
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, NamedTuple

import pytest

from sluice_api import wire
from sluice_api.errors import CATALOGUE, ApiError
from sluice_api.tasks import Task
from tests.support.gateway_process import ROOT, Client, GatewayProcess, Reply, request, service
from tests.support.keys_file import KeysFile, bearer
from tests.support.stub_worker import Behaviour, StubWorker, until

EMBEDDINGS: Final = "/v1/embeddings"
CHAT: Final = "/v1/chat/completions"
PAGE: Final = "https://page.example"
FAILURE: Final = wire.Failure(reason="OutOfMemory", message="No room.", retry_after_seconds=60.0)


class Site(NamedTuple):
    """Gateways with different settings before the same workers.

    Attributes:
        open: has Redis' address, where nobody listens.
        strict: with few connections, small bodies and little time.
        keyed: with keys; ``key`` may have little.
        holding: a worker that holds what it is asked; ``writing``: its streams.
    """

    open: GatewayProcess
    strict: GatewayProcess
    keyed: GatewayProcess
    key: dict[str, str]
    holding: StubWorker
    writing: StubWorker


def services(
    worker: StubWorker,
    holding: StubWorker,
    writing: StubWorker,
    ill: StubWorker,
    full: StubWorker,
) -> list[wire.Service]:
    # Its start may take as long as ever: a worker that a busy machine delays is waited for.
    impatient = wire.LimitRules(timeout_seconds=0.2)
    hasty = wire.LimitRules(start_timeout_seconds=0.2)
    return [
        service("emb", [worker.url]),
        service("other", [worker.url]),
        service("gen", [writing.url]),
        service("holding", [holding.url]),
        service("ill", [ill.url]),
        service("full", [full.url]),
        service("slow", [holding.url], limits=impatient),
        service("starting", [], limits=hasty),
        service("failed", [], failure=FAILURE),
        service("asleep", [], dormancy=wire.Dormancy(reason="ScalingOff", message="It is off.")),
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(StubWorker())
        holding = stack.enter_context(StubWorker(Behaviour(hang=True)))
        writing = stack.enter_context(StubWorker(Behaviour(tasks=[Task.CHAT])))
        ill = stack.enter_context(StubWorker(Behaviour(raw=b"nonsense\r\n\r\n")))
        busy = Behaviour(refuse=ApiError("overloaded", "Full.", retry_after=60))
        full = stack.enter_context(StubWorker(busy))
        nobody = stack.enter_context(socket.socket())
        nobody.bind(("127.0.0.1", 0))  # It does not listen.
        table = services(worker, holding, writing, ill, full)
        file = KeysFile(tmp_path_factory.mktemp("keys") / "keys.json")
        file.tenant("few", "default", inputs="1/h")
        key = bearer(file.key("few"))
        file.write()

        def gateway(name: str, *options: str) -> GatewayProcess:
            return stack.enter_context(
                GatewayProcess(tmp_path_factory.mktemp(name), table, *options)
            )

        redis = f"redis://127.0.0.1:{nobody.getsockname()[1]}"
        yield Site(
            gateway("open", "--redis-url", redis, "--cors-origins", PAGE, "--max-body-mib", "1"),
            gateway(
                *("strict", "--max-connections", "3", "--max-receiving-mib", "1"),
                *("--head-timeout", "5s"),
            ),
            gateway("keyed", "--auth", "keys", "--keys-file", str(file.path)),
            key,
            holding,
            writing,
        )


Provoke = Callable[[Site], Awaitable[Reply]]
PROVOKED: Final[dict[str, Provoke]] = {}

ELSEWHERE: Final = {
    "internal_error": "tests/unit/worker/test_routes.py::"
    "test_a_model_that_fails_is_our_error_and_says_nothing_internal",
    "no_operator": "tests/cluster/test_gateway_discovery.py::test_who_would_wait_in_vain_is_told",
    "forbidden": "tests/cluster/test_gateway_discovery.py::test_only_the_named_reader_sees_demand",
}
"""What needs a bug or a cluster, with the test that meets it."""


def provokes(code: str) -> Callable[[Provoke], Provoke]:
    """Have the request that a function sends be the one that gets ``code``."""

    def add(function: Provoke) -> Provoke:
        assert code not in PROVOKED
        PROVOKED[code] = function
        return function

    return add


def _posting(code: str, body: Any, path: str = EMBEDDINGS, **headers: str) -> None:
    @provokes(code)
    async def _(site: Site) -> Reply:
        return await site.open.post(path, body, **headers)


def _asking(code: str, path: str, method: str = "GET", **headers: str) -> None:
    @provokes(code)
    async def _(site: Site) -> Reply:
        async with await site.open.client() as client:
            return await client.get(path, method, **headers)


def embed(model: str, text: Any = "x") -> dict[str, Any]:
    return {"model": model, "input": text}


_posting("invalid_json", b"{")
_posting("invalid_field", embed("emb", 7))
_posting("missing_field", {"model": "emb"})
_posting("unknown_field", embed("emb") | {"inputs": "x"})
_posting("input_too_long", embed("emb", "too long"))
_posting("too_many_inputs", embed("emb", ["x"] * 100_000))
_posting("model_required", {"input": "x"})
_posting("task_not_supported", {"model": "emb", "query": "a", "documents": ["b"]}, "/v1/rerank")
_posting("model_not_found", embed("nothing"))
_posting("body_too_large", embed("emb", "x" * 2**21))
_posting("unsupported_media_type", embed("emb"), content_encoding="gzip")
_posting("expectation_failed", embed("emb"), expect="a-miracle")
_posting("not_cached", embed("emb", secrets.token_hex(8)), cache_control="only-if-cached")
_posting("overloaded", embed("full"))
_posting("starting", embed("starting"))
_posting("model_failed", embed("failed"))
_posting("asleep", embed("asleep"))
_posting("deadline_exceeded", embed("slow"))
_posting("upstream_failed", embed("ill"))
_asking("route_not_found", "/v1/nothing")
_asking("method_not_allowed", EMBEDDINGS)
_asking("headers_too_large", "/v1/models", x="y" * 40_000)
_asking(
    *("origin_not_allowed", EMBEDDINGS, "OPTIONS"),
    origin="https://other.example",
    access_control_request_method="POST",
)


@provokes("bad_http")
async def _(site: Site) -> Reply:
    async with await site.open.client() as client:
        client.send(b"POST /v1/embeddings HTTP/1.1\r\n\r\n")
        return await client.reply()


@provokes("unauthorized")
async def _(site: Site) -> Reply:
    return await site.keyed.post(EMBEDDINGS, embed("emb"))


@provokes("rate_limited")
async def _(site: Site) -> Reply:
    while (reply := await _fresh(site)).status == 200:
        pass
    return reply


async def _fresh(site: Site) -> Reply:
    return await site.keyed.post(EMBEDDINGS, embed("emb", secrets.token_hex(8)), **site.key)


@provokes("idempotency_key_reused")
async def _(site: Site) -> Reply:
    named = {"idempotency_key": secrets.token_hex(8)}
    assert (await site.open.post(EMBEDDINGS, embed("emb"), **named)).status == 200
    return await site.open.post(EMBEDDINGS, embed("emb", "another"), **named)


@provokes("idempotency_key_in_use")
async def _(site: Site) -> Reply:
    """Its stream has gone on for so long that its beginning is not kept any more."""
    behaviour = site.writing.behaviour
    behaviour.words, behaviour.padding, behaviour.hold_at = 40, 20_000, 39
    body = {"model": "gen", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    named = {"idempotency_key": secrets.token_hex(8)}
    async with await site.open.client() as first:
        first.send(request(CHAT, body, **named))
        received = 0
        while received < 700_000:
            received += len(await first.reader.read(100_000))
        return await site.open.post(CHAT, body, **named)


@provokes("request_timeout")
async def _(site: Site) -> Reply:
    async with await site.strict.client() as client:
        client.send(b"POST /v1/embeddings HTTP/1.1\r\n")
        return await client.reply()


@provokes("receiving_too_much")
async def _(site: Site) -> Reply:
    return await site.strict.post(EMBEDDINGS, embed("emb", "x" * 1_100_000))


@provokes("too_many_connections")
async def _(site: Site) -> Reply:
    async with _busy(site, 3), await site.strict.client() as client:
        return await client.reply()


@contextlib.asynccontextmanager
async def _busy(site: Site, count: int) -> AsyncIterator[None]:
    """So many connections whose requests are being answered."""
    worker = site.holding

    async def free() -> bool:
        return await site.strict.metric("sluice_gateway_connections") <= 1  # The one that asks.

    await until(free, what="no connection from before")
    clients = [await site.strict.client() for _ in range(count)]
    try:
        before = worker.running
        for number, client in enumerate(clients):
            client.send(request(EMBEDDINGS, embed("holding", str(number))))
        await until(lambda: worker.running >= before + count, what="the requests at the worker")
        yield
    finally:
        for client in clients:
            client.close()


@provokes("draining")
async def _(site: Site) -> Reply:
    """It waits at the end of the time that a process takes to end."""
    folder = site.open.folder / "ending"
    folder.mkdir()
    table = [service("emb", [site.holding.url])]
    with GatewayProcess(folder, table, "--drain-grace", "200ms") as ending:
        await ending.ready("emb")
        seen = len(site.holding.seen)
        async with await Client.open(ending.port) as client:
            client.send(request(EMBEDDINGS, embed("emb")))
            await until(lambda: len(site.holding.seen) > seen, what="the request at the worker")
            stopping = asyncio.create_task(asyncio.to_thread(ending.terminate))
            reply = await client.reply()
        assert await stopping == 0
        return reply


@provokes("cache_unreachable")
async def _(site: Site) -> Reply:
    async with await Client.open(site.open.admin_port) as client:
        return await client.post("/internal/cache/invalidate", {"service": "emb"})


def test_no_code_is_forgotten() -> None:
    assert {*PROVOKED, *ELSEWHERE} == {*CATALOGUE}
    assert not {*PROVOKED} & {*ELSEWHERE}


@pytest.mark.parametrize("code", PROVOKED)
async def test_a_code_is_met_on_the_wire(site: Site, code: str) -> None:
    for gateway in (site.open, site.strict, site.keyed):
        for name in ("emb", "gen", "holding", "slow", "ill", "full"):
            await gateway.ready(name)
    reply, kind = await PROVOKED[code](site), CATALOGUE[code]
    told = reply.json()
    inner = told["error"] if isinstance(told.get("error"), dict) else told
    assert (reply.status, inner["code"]) == (kind.status, code), reply
    assert reply.headers["x-should-retry"] == ("true" if kind.retryable else "false")
    assert ("retry-after" in reply.headers) == kind.retryable
    assert inner["request_id"] == reply.headers["x-request-id"]
    assert (inner.get("message") or inner["detail"]).endswith(kind.fix)


@pytest.mark.parametrize("code", ELSEWHERE)
def test_the_others_are_met_in_the_test_that_is_named(code: str) -> None:
    file, _, name = ELSEWHERE[code].partition("::")
    _, found, after = (ROOT / file).read_text().partition(f"def {name}(")
    assert found, f"there is no {ELSEWHERE[code]}"
    test = re.split(r"\n(?=[^\s)])", after, maxsplit=1)[0]
    assert code in test or f"== {CATALOGUE[code].status}" in test
