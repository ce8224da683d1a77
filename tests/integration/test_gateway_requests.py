"""Requests through a real gateway process to workers on real sockets: what comes back, and why.

Every test that takes ``ask`` runs twice: on the fast edge, and on a connection that uvicorn has
taken over, where the ordinary FastAPI routes answer.
"""

import base64
import secrets
from array import array
from collections.abc import AsyncIterator, Iterator

import pytest

from sluice_api import wire
from sluice_api.tasks import Task
from tests.support.gateway_process import Client, GatewayProcess, Reply, service
from tests.support.stub_worker import Behaviour, StubWorker, until, vector_of


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), []) as gateway:
        yield gateway


@pytest.fixture
def worker() -> Iterator[StubWorker]:
    # A digest of its own gives each test its own space of cache keys.
    with StubWorker(Behaviour(digest=f"sha256:{secrets.token_hex(32)}")) as stub:
        yield stub


@pytest.fixture
async def gateway(worker: StubWorker, process: GatewayProcess) -> GatewayProcess:
    await process.follow([])
    await process.follow([service("emb", [worker.url])])
    return process


@pytest.fixture(params=["fast", "fallback"])
async def ask(gateway: GatewayProcess, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """One keep-alive connection to the gateway."""
    async with await gateway.client() as client:
        if request.param == "fallback":
            assert (await client.get("/livez")).status == 200
        yield client


def vectors(reply: Reply) -> list[list[float]]:
    assert reply.status == 200, reply
    return [entry["embedding"] for entry in reply.json()["data"]]


async def test_single_input_is_computed_then_found(ask: Client, worker: StubWorker) -> None:
    body = {"model": "emb", "input": "hello"}
    first, second, third = [await ask.post("/v1/embeddings", body) for _ in range(3)]
    assert vectors(first) == [vector_of("hello").tolist()]
    assert first.headers["cache-status"] == "Sluice; fwd=miss; stored"
    assert second.body == third.body == first.body
    for reply in (second, third):
        assert reply.headers["cache-status"].startswith("Sluice; hit; ttl=")
        assert "age" in reply.headers
    assert worker.computed == 1


async def test_list_sends_only_what_is_missing_and_keeps_order(
    ask: Client, worker: StubWorker
) -> None:
    await ask.post("/v1/embeddings", {"model": "emb", "input": ["b", "d"]})
    texts = ["a", "b", "c", "d", "a"]
    reply = await ask.post("/v1/embeddings", {"model": "emb", "input": texts})
    assert vectors(reply) == [vector_of(text).tolist() for text in texts]
    assert [entry["index"] for entry in reply.json()["data"]] == [0, 1, 2, 3, 4]
    assert reply.json()["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert 'fwd=partial; stored; collapsed; detail="2 of 5"' in reply.headers["cache-status"]
    assert worker.inputs == {"a": 1, "b": 1, "c": 1, "d": 1}


async def test_missing_base64_request_is_forwarded_byte_for_byte(
    ask: Client, worker: StubWorker
) -> None:
    body = b'{ "input" : ["x","y"], "encoding_format":"base64","model":"emb" }'
    reply = await ask.post("/v1/embeddings", body)
    assert worker.seen[-1].body == body
    decoded = [array("f", base64.b64decode(text)).tolist() for text in vectors(reply)]  # type: ignore[arg-type]
    assert decoded == [vector_of("x").tolist(), vector_of("y").tolist()]


async def test_routes_share_items(ask: Client, worker: StubWorker) -> None:
    await ask.post("/v1/classify", {"model": "emb", "input": ["abc", "de"]})
    small = await ask.post("/classify", {"text": "abc"})
    assert small.json() == {"text": "abc", "prediction": [0, 1], "label": "spam", "score": 0.75}
    many = await ask.post("/predict", {"text": ["abc", "de"], "model": "default/emb"})
    assert many.json()["predictions"] == [1, 0]
    v2 = await ask.post(
        "/v2/models/emb/infer",
        {
            "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["de"]}],
            "parameters": {"task": "classification"},
        },
    )
    assert v2.json()["outputs"][0]["data"] == ["ham"]
    assert worker.computed == 2


async def test_two_texts_that_look_alike_never_share(ask: Client, worker: StubWorker) -> None:
    texts: list[object] = ["1", "1 ", "\u0061\u0301", "\u00e1", [1], "[1]"]
    for text in texts:
        reply = await ask.post("/v1/embeddings", {"model": "emb", "input": text})
        assert vectors(reply) == [vector_of(text).tolist()]  # type: ignore[arg-type]
    assert worker.computed == len(texts)


async def test_parameters_separate_answers(ask: Client, worker: StubWorker) -> None:
    for parameters in ({}, {"top_k": 1}, {"top_k": 2}, {"truncate": True}, {"truncate": False}):
        await ask.post("/v1/classify", {"model": "emb", "input": "x", "parameters": parameters})
    assert worker.computed == 4


@pytest.mark.parametrize(
    ("header", "lookups", "status"),
    [
        ("no-store", 2, "Sluice; fwd=bypass; detail=no-store"),
        ("no-cache", 2, "Sluice; fwd=request; stored"),
        ("max-age=0", 1, "Sluice; hit"),
        ("max-age=3600", 1, "Sluice; hit"),
    ],
)
async def test_cache_control(
    ask: Client, worker: StubWorker, header: str, lookups: int, status: str
) -> None:
    body = {"model": "emb", "input": "cc"}
    await ask.post("/v1/embeddings", body)
    reply = await ask.post("/v1/embeddings", body, cache_control=header)
    if header == "max-age=0":  # The clock decides whether anything is younger than nothing.
        assert reply.status == 200
        return
    assert worker.computed == lookups
    assert reply.headers["cache-status"].startswith(status)


async def test_only_if_cached(ask: Client, worker: StubWorker) -> None:
    body = {"model": "emb", "input": "oic"}
    reply = await ask.post("/v1/embeddings", body, cache_control="only-if-cached")
    assert (reply.status, reply.json()["error"]["code"]) == (504, "not_cached")
    unstored = await ask.post("/v1/embeddings", body, cache_control="only-if-cached, no-store")
    assert "is not stored (no-store)" in unstored.json()["error"]["message"]
    assert worker.computed == 0
    await ask.post("/v1/embeddings", body)
    reply = await ask.post("/v1/embeddings", body, cache_control="only-if-cached")
    assert reply.status == 200


async def test_request_id_is_echoed_if_it_is_one(ask: Client, worker: StubWorker) -> None:
    body = {"model": "emb", "input": "id"}
    given = await ask.post("/v1/embeddings", body, x_request_id="abc-1.2")
    assert given.headers["x-request-id"] == "abc-1.2"
    assert worker.seen[-1].headers["x-request-id"] == "abc-1.2"
    made = await ask.post("/v1/embeddings", body, x_request_id="a b<c>")
    assert made.headers["x-request-id"] not in ("", "a b<c>")
    other = await ask.post("/v1/embeddings", {"model": "none", "input": "id"})
    assert other.json()["error"]["request_id"] == other.headers["x-request-id"]


async def test_worker_is_told_deadline_tenant_and_trace(ask: Client, worker: StubWorker) -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    await ask.post(
        "/v1/embeddings",
        {"model": "emb", "input": "ctx"},
        x_sluice_deadline_ms="20000",
        traceparent=trace,
        authorization="Bearer sk-secret",
    )
    seen = worker.seen[-1].headers
    assert 8_000 < int(seen["x-sluice-deadline-ms"]) <= 20_000, "of the 30 s that the service gives"
    assert seen["traceparent"] == trace
    assert seen["x-sluice-tenant"] and "anonymous" not in seen["x-sluice-tenant"]
    assert "authorization" not in seen


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/v1/embeddings", b"{", 400, "invalid_json", None),
        ("/v1/embeddings", b"", 400, "invalid_json", None),
        ("/v1/embeddings", b"[]", 400, "invalid_json", None),
        ("/v1/embeddings", b"\xff", 400, "invalid_json", None),
        ("/v1/embeddings", b"[" * 100_000, 400, "invalid_json", None),
        ("/v1/embeddings", {"input": "x", "model": "no"}, 404, "model_not_found", "model"),
        ("/v1/embeddings", {"input": "x", "model": "a/b/c"}, 404, "model_not_found", "model"),
        ("/v1/embeddings", {"input": [], "model": "emb"}, 400, "invalid_field", "input"),
        ("/v1/embeddings", {"input": "x", "temprature": 1}, 400, "unknown_field", "temprature"),
        ("/classify", {"text": 7}, 400, "invalid_field", "text"),
        ("/v2/models/no/infer", {"inputs": []}, 400, "invalid_field", "inputs"),
    ],
)
async def test_refusals(
    ask: Client, path: str, body: object, status: int, code: str, param: str | None
) -> None:
    reply = await ask.post(path, body)
    told = reply.json()
    told = told["error"] if path.startswith("/v1/") else told
    assert (reply.status, told["code"], told["param"]) == (status, code, param)
    shape = "application/json" if path.startswith("/v1/") else "application/problem+json"
    assert reply.headers["content-type"] == shape
    assert reply.headers["x-should-retry"] == "false"
    assert (await ask.post("/v1/embeddings", {"model": "emb", "input": "x"})).status == 200


async def test_worker_refusal_names_the_callers_own_field(ask: Client) -> None:
    await ask.post("/predict", {"text": ["fine", "good"], "model": "emb"})
    reply = await ask.post("/predict", {"text": ["fine", "good", "too long"], "model": "emb"})
    assert reply.status == 400
    assert (reply.json()["code"], reply.json()["param"]) == ("input_too_long", "text[2]")
    assert reply.json()["detail"].startswith("text[2]: has 9 tokens")
    alone = await ask.post("/classify", {"text": "too long", "model": "emb"})
    assert alone.json()["param"] == "text"
    whole = await ask.post("/v1/classify", {"input": ["too long", "x"], "model": "emb"})
    assert whole.json()["error"]["param"] == "input[0]"


async def test_private_service_does_not_exist_for_anonymous(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    await gateway.follow(
        [service("emb", [worker.url]), service("secret", [worker.url], public=False, tenants=["t"])]
    )
    reply = await gateway.post("/v1/embeddings", {"model": "secret", "input": "x"})
    assert (reply.status, reply.json()["error"]["code"]) == (404, "model_not_found")
    listed = (await gateway.get("/v1/models")).json()["data"]
    assert [entry["id"] for entry in listed] == ["emb"]
    assert (await gateway.get("/v1/models/secret")).status == 404


async def test_model_may_be_left_out_only_when_it_is_clear(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    assert (await gateway.post("/v1/embeddings", {"input": "x"})).status == 200
    await gateway.follow([service("emb", [worker.url]), service("more", [worker.url])])
    reply = await gateway.post("/v1/embeddings", {"input": "x"})
    assert (reply.status, reply.json()["error"]["code"]) == (400, "model_required")
    assert "required, because emb, more do embeddings" in reply.json()["error"]["message"]


async def test_model_left_out_means_the_one_that_is_made_for_the_task(
    gateway: GatewayProcess,
) -> None:
    reranker = Behaviour(tasks=[Task.RERANK, Task.CLASSIFICATION])
    classifier = Behaviour(tasks=[Task.CLASSIFICATION])
    with StubWorker(reranker) as also, StubWorker(classifier) as meant:
        await gateway.follow([service("also", [also.url]), service("meant", [meant.url])])
        await gateway.ready("also")
        await gateway.ready("meant")
        reply = await gateway.post("/classify", {"text": "x"})
        assert reply.status == 200
        assert (also.computed, meant.computed) == (0, 1)


async def test_model_left_out_where_nothing_does_the_task(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(tasks=[Task.EMBEDDINGS, Task.ZERO_SHOT])) as worker:
        await gateway.follow([service("emb", [worker.url])])
        for _ in range(2):  # The second answer is remembered, and the same.
            reply = await gateway.post("/classify", {"text": "x"})
            assert (reply.status, reply.json()["code"]) == (400, "task_not_supported")
            assert reply.json()["detail"].startswith(
                "None of the services you may call does classification; for zero-shot"
                " classification, use POST /v1/classify with parameters.labels."
            )
        named = await gateway.post("/predict", {"text": "x", "model": "emb"})
        assert named.json()["code"] == "task_not_supported"
        assert "use POST /v1/classify with parameters.labels" in named.json()["detail"]


async def test_task_that_the_model_does_not_do(gateway: GatewayProcess) -> None:
    with StubWorker(Behaviour(tasks=[Task.EMBEDDINGS])) as only:
        await gateway.follow([service("emb", [only.url])])
        reply = await gateway.post("/v1/classify", {"model": "emb", "input": "x"})
    assert (reply.status, reply.json()["error"]["code"]) == (400, "task_not_supported")


async def test_bare_names_are_of_the_callers_namespace(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    await gateway.follow([service("emb", [worker.url], namespace="other")])
    assert (await gateway.post("/v1/embeddings", {"model": "emb", "input": "x"})).status == 404
    reply = await gateway.post("/v1/embeddings", {"model": "other/emb", "input": "x"})
    assert reply.status == 200
    assert reply.json()["model"] == "other/emb"
    assert (await gateway.get("/v1/models/other/emb")).json()["id"] == "other/emb"
    body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["de"]}]}
    assert (await gateway.post("/v2/models/other/emb/infer", body)).status == 200


async def test_cache_switched_off_computes_every_time(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    await gateway.follow([])
    await gateway.follow([service("emb", [worker.url], cache=wire.CacheRules(enabled=False))])
    body = {"model": "emb", "input": "off"}
    for _ in range(2):
        reply = await gateway.post("/v1/embeddings", body)
        assert reply.headers["cache-status"] == "Sluice; fwd=bypass; detail=off"
    assert worker.computed == 2


async def test_worker_of_another_digest_than_the_tables_gets_nothing(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    pinned = service("emb", [worker.url], answer_digest=worker.behaviour.digest)
    await gateway.follow([pinned])
    worker.behaviour.hang_probes = True  # Or one finds it out before the request does.
    worker.behaviour.digest = "sha256:" + "cd" * 32
    reply = await gateway.post("/v1/embeddings", {"model": "emb", "input": "swap"})
    assert reply.headers["cache-status"] == "Sluice; fwd=miss"  # and not: stored
    worker.behaviour.hang_probes = False

    async def refused() -> bool:
        (endpoint,) = (await gateway.services())["emb"]["endpoints"]
        return endpoint["state"] == "mismatch" and "digest" in endpoint["message"]

    await until(refused, 60, "that it is asked who it is, and refused")
    with StubWorker(Behaviour(digest=pinned.answer_digest)) as right:
        pinned.endpoints.append(wire.Endpoint(url=right.url, revision="r1"))
        gateway.write([pinned])
        await gateway.ready("emb", 1)
        for number in range(8):
            reply = await gateway.post("/v1/embeddings", {"model": "emb", "input": f"s{number}"})
            assert reply.headers["cache-status"] == "Sluice; fwd=miss; stored"
        assert right.computed == 8


async def test_learnt_digest_follows_a_worker_that_was_replaced(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    body = {"model": "emb", "input": "replaced"}
    for _ in range(3):
        await gateway.post("/v1/embeddings", body)
    with StubWorker(Behaviour(digest="sha256:" + "ee" * 32)) as new:
        await gateway.follow([service("emb", [new.url])])
        reply = await gateway.post("/v1/embeddings", body)
        assert reply.headers["cache-status"] == "Sluice; fwd=miss; stored"
        assert new.computed == 1


async def test_new_revision_never_finds_the_old_answers(
    gateway: GatewayProcess, worker: StubWorker
) -> None:
    body = {"model": "emb", "input": "rollout"}
    for _ in range(3):
        await gateway.post("/v1/embeddings", body)
    assert worker.computed == 1
    with StubWorker(Behaviour(revision="r2", digest="sha256:" + "ef" * 32)) as new:
        await gateway.follow([service("emb", [new.url], revision="r2")])
        reply = await gateway.post("/v1/embeddings", body)
        assert reply.headers["cache-status"] == "Sluice; fwd=miss; stored"
        assert new.computed == 1


async def test_control_surface(gateway: GatewayProcess) -> None:
    card = (await gateway.get("/v1/models/emb")).json()
    assert (card["state"], card["revision"]) == ("ready", "r1")
    assert card["tasks"] == ["embeddings", "classification"]
    assert (await gateway.get("/v2/health/ready")).json() == {"ready": True}
    assert (await gateway.get("/v2/models/emb/ready")).json() == {"name": "emb", "ready": True}
    assert (await gateway.get("/v2/models/emb")).json()["outputs"][0]["name"] == "embedding"
    assert (await gateway.get("/readyz")).json() == {"ready": True}
    assert (await gateway.get("/readyz", admin=True)).json()["synced"] is True
    paths = (await gateway.get("/openapi.json")).json()["paths"]
    assert "/v1/embeddings" in paths and "/v2/models/{name}/infer" in paths
    docs = (await gateway.get("/docs")).body
    assert b"/v1/embeddings" in docs and b"http" not in docs.replace(b"http-equiv", b"")
    assert (await gateway.get("/metrics")).status == 404  # the admin port only
    assert (await gateway.get("/internal/demand")).status == 404


async def test_metrics_count_requests_and_lookups(gateway: GatewayProcess) -> None:
    unrouted = await gateway.metric("sluice_gateway_requests_total", service="", status="404")
    for _ in range(3):
        await gateway.post("/v1/embeddings", {"model": "emb", "input": ["m", "n"]})
    await gateway.post("/v1/embeddings", {"model": "nobody", "input": "x"})
    count = gateway.metric
    name = "sluice_gateway_requests_total"
    assert await count(name, service="emb", route="/v1/embeddings", status="200") == 3
    assert await count(name, service="", status="404") == unrouted + 1
    assert await count("sluice_gateway_cache_lookups_total", result="miss") == 2
    assert await count("sluice_gateway_request_duration_seconds_count", service="emb") == 3
    assert await count("sluice_gateway_endpoints", service="emb", state="ready") == 1
