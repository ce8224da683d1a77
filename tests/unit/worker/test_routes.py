"""Every route of the application and the admin port, through the ASGI applications."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from sluice_api import names
from sluice_api.errors import CATALOGUE
from sluice_api.wire import Phase, Readiness, parse_capacity
from sluice_worker.app import administration, application
from sluice_worker.lifecycle import Lifecycle
from sluice_worker.metrics import Metrics
from sluice_worker.routes import Worker
from sluice_worker.settings import read_settings
from sluice_worker.startup import connect
from sluice_worker.warmup import warm_up
from tests.support.worker_fakes import POISON, ToyEngine, toy_model


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    def code(self) -> str:
        """The catalogue's code, in either shape of errors."""
        answer = self.json()
        inner = answer.get("error")  # On /v2 it is a text beside the code.
        return str(inner["code"] if isinstance(inner, dict) else answer["code"])


class Client:
    """Calls an application as uvicorn does; ``gone`` is set to hang up."""

    def __init__(self, worker: Worker, engine: ToyEngine) -> None:
        self.worker = worker
        self.engine = engine
        self.gone = asyncio.Event()

    async def call(
        self,
        method: str,
        path: str,
        body: Any = b"",
        *,
        admin: bool = False,
        headers: dict[str, str] | None = None,
        chunks: list[bytes] | None = None,
    ) -> Reply | None:
        """The reply; None when the application saw the client leave and sent nothing."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        parts = list(chunks) if chunks is not None else [data]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if parts:
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts)}
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        raw = [(n.encode(), v.encode()) for n, v in (headers or {}).items()]
        scope = {"type": "http", "method": method, "path": path, "headers": raw}
        serve = administration(self.worker) if admin else application(self.worker)
        await asyncio.wait_for(serve(scope, receive, send), 60)  # type: ignore[arg-type]
        if not sent:
            return None
        start, *bodies = sent
        told = b"".join(message.get("body", b"") for message in bodies)
        given = {name.decode(): value.decode() for name, value in start["headers"]}
        assert int(given["content-length"]) == len(told)
        assert not bodies[-1].get("more_body", False), "it was ended"
        return Reply(start["status"], given, told)

    async def get(self, path: str, *, admin: bool = False) -> Reply:
        reply = await self.call("GET", path, admin=admin)
        assert reply is not None
        return reply

    async def post(self, path: str, body: Any, **options: Any) -> Reply:
        reply = await self.call("POST", path, body, **options)
        assert reply is not None
        return reply


def starting_worker() -> Worker:
    settings = read_settings(
        [
            "--model",
            "toy://model",
            "--name",
            "toy",
            "--revision",
            "abc",
            "--max-body-bytes",
            "4096",
        ],
        {},
    )
    return Worker(settings, Lifecycle("toy", "abc", time.monotonic()), Metrics())


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    worker, engine = starting_worker(), ToyEngine()
    model = toy_model(engine)
    warmth = warm_up(
        engine, model.canary, dtype="float32", threads=1, set_threads=lambda count: None
    )
    connect(worker, model, warmth)
    worker.lifecycle.report(Phase.READY)
    engine.batches.clear()
    assert worker.intake is not None
    yield Client(worker, engine)
    engine.gate.set()
    worker.intake.close()
    worker.intake.loop.lanes.close()


EMBED = {"input": ["ab", "xyz"]}


async def test_an_answer_carries_what_the_gateway_needs(client: Client) -> None:
    reply = await client.post("/v1/embeddings", EMBED, headers={names.REQUEST_ID: "mine-1"})
    assert reply.status == 200
    assert [entry["embedding"] for entry in reply.json()["data"]] == [[2.0, 195.0], [3.0, 363.0]]
    assert reply.json()["model"] == "toy"
    assert reply.headers[names.REQUEST_ID] == "mine-1"
    assert reply.headers[names.ANSWER_DIGEST] == "sha256:toy"
    assert reply.headers[names.REVISION] == "abc"
    assert float(reply.headers[names.SERVICE_TIME]) > 0
    capacity = parse_capacity(reply.headers[names.CAPACITY])
    assert capacity is not None and capacity.limit >= 2 and capacity.in_flight == 0


async def test_errors_carry_them_too(client: Client) -> None:
    reply = await client.post("/v1/embeddings", b"{")
    assert (reply.status, reply.code()) == (400, "invalid_json")
    assert {names.REQUEST_ID, names.ANSWER_DIGEST, names.CAPACITY} <= set(reply.headers)
    assert reply.json()["error"]["request_id"] == reply.headers[names.REQUEST_ID]


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "line\nbreak", "ü"])
async def test_a_harmful_request_id_is_replaced(client: Client, given: str) -> None:
    reply = await client.post("/v1/embeddings", EMBED, headers={names.REQUEST_ID: given})
    assert reply.headers[names.REQUEST_ID] != given
    assert len(reply.headers[names.REQUEST_ID]) == 32


@pytest.mark.parametrize("model", ["toy", "team/toy", None])
async def test_the_answer_names_the_model_as_it_was_asked_for(
    client: Client, model: str | None
) -> None:
    reply = await client.post("/v1/embeddings", {**EMBED, "model": model})
    assert reply.json()["model"] == (model or "toy")


@pytest.mark.parametrize("model", ["other", ""])
async def test_another_services_name_is_not_answered(client: Client, model: str) -> None:
    reply = await client.post("/v1/embeddings", {**EMBED, "model": model})
    assert (reply.status, reply.code()) == (404, "model_not_found")


async def test_the_v2_route_serves_the_first_task(client: Client) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hi"]}
    reply = await client.post("/v2/models/toy/infer", {"id": "7", "inputs": [tensor]})
    assert reply.status == 200
    assert reply.json()["id"] == "7"
    assert reply.json()["outputs"][0]["data"] == [2.0, 209.0]
    named = await client.post("/v2/models/team/toy/infer", {"inputs": [tensor]})
    assert named.json()["model_name"] == "team/toy"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/embeddings", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/metrics", 404, "route_not_found"),
        ("GET", "/v3/anything", 404, "route_not_found"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("POST", "/v1/classify", 400, "missing_field"),
        ("POST", "/v2/models/other/infer", 400, "missing_field"),
    ],
)
async def test_refusals(client: Client, method: str, path: str, status: int, code: str) -> None:
    reply = await client.call(method, path, b"{}")
    assert reply is not None
    assert (reply.status, reply.code()) == (status, code)


async def test_what_an_error_sends_to_is_here_or_is_said_to_be_the_gateways(client: Client) -> None:
    sent_to = {
        path.replace("{id}", "toy")
        for kind in CATALOGUE.values()
        for path in re.findall(r"(?<!gateway's )(?<!\w)/[a-z0-9/{}._]+", kind.fix)
    }
    assert sent_to == {"/v1/models", "/v1/models/toy"}
    for path in sent_to:
        assert (await client.get(path)).status == 200, path


async def test_a_task_the_model_does_not_do(client: Client) -> None:
    reply = await client.post("/classify", {"text": "hello"})
    assert (reply.status, reply.code()) == (400, "task_not_supported")
    assert reply.headers["content-type"] == "application/problem+json"


async def test_received_bytes_are_counted_whatever_was_promised(client: Client) -> None:
    promised = await client.post("/v1/embeddings", b"", headers={"content-length": "5000"})
    streamed = await client.post("/v1/embeddings", b"", chunks=[b"x" * 3000, b"x" * 3000])
    for reply in (promised, streamed):
        assert (reply.status, reply.code()) == (413, "body_too_large")
        assert reply.headers["connection"] == "close"


async def test_a_body_in_pieces_is_put_together(client: Client) -> None:
    reply = await client.post("/v1/embeddings", b"", chunks=[b'{"inp', b'ut": "a', b'b"}'])
    assert reply.json()["data"][0]["embedding"] == [2.0, 195.0]


async def test_compressed_bodies_are_refused(client: Client) -> None:
    reply = await client.post("/v1/embeddings", b"..", headers={"content-encoding": "gzip"})
    assert (reply.status, reply.code()) == (415, "unsupported_media_type")


async def test_a_deadline_that_cannot_be_met_is_refused_at_once(client: Client) -> None:
    reply = await client.post("/v1/embeddings", EMBED, headers={names.DEADLINE_MS: "0"})
    assert (reply.status, reply.code()) == (504, "deadline_exceeded")
    assert client.engine.batches == []


async def test_a_deadline_that_passes_while_waiting_ends_the_request(client: Client) -> None:
    client.engine.gate.clear()
    reply = await client.post("/v1/embeddings", EMBED, headers={names.DEADLINE_MS: "50"})
    assert (reply.status, reply.code()) == (504, "deadline_exceeded")
    assert client.worker.exchanges == 0


async def test_a_malformed_deadline_is_refused(client: Client) -> None:
    reply = await client.post("/v1/embeddings", EMBED, headers={names.DEADLINE_MS: "soon"})
    assert (reply.status, reply.code()) == (400, "invalid_field")


async def test_a_client_that_leaves_withdraws_its_units(client: Client) -> None:
    client.engine.gate.clear()
    running = asyncio.create_task(client.post("/v1/embeddings", {"input": "runs"}))
    assert await asyncio.to_thread(client.engine.entered.acquire, timeout=60)
    leaver = Client(client.worker, client.engine)
    leaving = asyncio.create_task(leaver.call("POST", "/v1/embeddings", {"input": "leaves"}))
    assert client.worker.intake is not None
    backlog = client.worker.intake.loop.backlog
    async with asyncio.timeout(60):
        while not backlog.waiting:  # noqa: ASYNC110 - the backlog tells nobody
            await asyncio.sleep(0.001)
    leaver.gone.set()
    assert await leaving is None
    assert backlog.waiting == 0
    client.engine.gate.set()
    assert (await running).status == 200
    assert [batch for batch in client.engine.batches if "leaves" in batch] == []
    page = (await client.get("/metrics", admin=True)).body.decode()
    assert 'sluice_worker_requests_total{route="/v1/embeddings",status="499"} 1.0' in page


async def test_a_model_that_fails_is_our_error_and_says_nothing_internal(client: Client) -> None:
    reply = await client.post("/v1/embeddings", {"input": POISON})
    assert (reply.status, reply.code()) == (500, "internal_error")
    assert b"poison" not in reply.body


@pytest.mark.parametrize("admin", [True, False])
async def test_probes_of_a_ready_worker(client: Client, admin: bool) -> None:
    assert (await client.get("/livez", admin=admin)).status == 200
    ready = await client.get("/readyz", admin=admin)
    assert ready.status == 200
    readiness = msgspec.json.decode(ready.body, type=Readiness)
    assert readiness.phase is Phase.READY
    assert readiness.answer_digest == "sha256:toy"
    assert readiness.tasks == ["embeddings"]
    assert readiness.capacity is not None and readiness.capacity.limit >= 2


async def test_probes_and_requests_while_starting() -> None:
    worker = starting_worker()
    worker.lifecycle.report(Phase.LOADING, 0.5, "reading weights")
    client = Client(worker, ToyEngine())
    ready = await client.get("/readyz")
    assert ready.status == 503
    assert (ready.json()["phase"], ready.json()["progress"]) == ("loading", 0.5)
    assert (await client.get("/livez")).status == 200
    reply = await client.post("/v1/embeddings", EMBED)
    assert (reply.status, reply.code()) == (503, "starting")
    assert reply.headers[names.SHOULD_RETRY] == "true"
    assert float(reply.headers["retry-after"]) >= 1


async def test_draining_ends_readiness_first_and_acceptance_later(client: Client) -> None:
    client.worker.lifecycle.drain()
    assert (await client.get("/readyz")).status == 503
    assert (await client.get("/livez")).status == 200
    reply = await client.post("/v1/embeddings", EMBED)
    assert reply.status == 200
    assert reply.headers["connection"] == "close"
    client.worker.accepting = False
    reply = await client.post("/v1/embeddings", EMBED)
    assert (reply.status, reply.code()) == (503, "draining")


async def test_the_drain_hook_answers_what_is_left(client: Client) -> None:
    reply = await client.get(names.DRAIN_PATH, admin=True)
    assert (reply.status, reply.code()) == (503, "starting")

    async def drain() -> int:
        return 3

    client.worker.drain = drain
    reply = await client.get(names.DRAIN_PATH, admin=True)
    assert (reply.status, reply.json()) == (200, {"unfinished": 3})
    head = await client.call("HEAD", names.DRAIN_PATH, admin=True)
    assert head is not None
    assert head.status == 405
    assert (await client.get(names.DRAIN_PATH)).status == 404, "only on the admin port"


async def test_overload_flips_no_probe(client: Client) -> None:
    assert client.worker.intake is not None
    client.worker.intake.loop.reserved.seconds = 1e6
    reply = await client.post("/v1/embeddings", EMBED)
    assert (reply.status, reply.code()) == (429, "overloaded")
    assert float(reply.headers["retry-after"]) == pytest.approx(1e6)
    assert (await client.get("/readyz")).status == 200
    assert (await client.get("/livez")).status == 200


async def test_nothing_stays_reserved_whatever_becomes_of_a_request(client: Client) -> None:
    assert client.worker.intake is not None
    loop = client.worker.intake.loop
    await client.post("/v1/embeddings", EMBED)
    await client.post("/v1/embeddings", {"input": [[1, 2]]})  # the toy refuses it when tokenising
    await client.post("/v1/embeddings", {"input": POISON})
    await client.post("/v1/embeddings", EMBED, headers={names.DEADLINE_MS: "0"})
    client.gone.set()
    await client.call("POST", "/v1/embeddings", EMBED)
    assert loop.reserved.seconds == 0
    assert loop.requests == 0
    assert client.worker.exchanges == 0


async def test_models_and_v2_metadata(client: Client) -> None:
    (entry,) = (await client.get("/v1/models")).json()["data"]
    assert (entry["id"], entry["state"], entry["tasks"]) == ("toy", "ready", ["embeddings"])
    assert entry["created"] == client.worker.created <= time.time()
    assert (await client.get("/v1/models/toy")).json() == entry
    assert (await client.get("/v2")).status == 200
    assert (await client.get("/v2/health/live")).status == 200
    assert (await client.get("/v2/health/ready")).status == 200
    assert (await client.get("/v2/models/toy/ready")).status == 200
    metadata = (await client.get("/v2/models/toy")).json()
    assert metadata["outputs"][0]["name"] == "embedding"
    for path, code in (("toy/config", "route_not_found"), ("config", "model_not_found")):
        refused = await client.get(f"/v2/models/{path}")
        assert (refused.status, refused.json()["code"]) == (404, code)


async def test_the_metrics_page_counts_requests_and_inputs(client: Client) -> None:
    await client.post("/v1/embeddings", EMBED)
    page = (await client.get("/metrics", admin=True)).body.decode()
    assert 'sluice_worker_requests_total{route="/v1/embeddings",status="200"} 1.0' in page
    assert 'sluice_worker_inputs_total{task="embeddings"} 2.0' in page
    assert 'sluice_worker_tokens_total{task="embeddings"} 5.0' in page
    assert "sluice_worker_ready 1.0" in page
    assert 'model="toy://model"' in page
