"""Every route of the contract as any HTTP client sees it: what it answers, what it refuses and how.

The routes that OpenAI's and Triton's own clients know are asked by those as well, in the files
beside this one.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from sluice_api.tasks import Task
from tests.support.conformance import Cases
from tests.support.gateway_process import Client, GatewayProcess, Reply, service
from tests.support.stub_worker import STUB_ANSWERS, Behaviour, StubWorker, vector_of

Case = Callable[[Client], Awaitable[None]]
CASES: Cases[Case] = Cases()

TASKS = [
    Task.TOKEN_CLASSIFICATION,
    Task.RELATION_EXTRACTION,
    Task.QUESTION_ANSWERING,
    Task.FILL_MASK,
    Task.RERANK,
    Task.TRANSLATION,
    Task.SUMMARIZATION,
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with (
        StubWorker() as encoder,
        StubWorker(Behaviour(tasks=TASKS)) as tasks,
        StubWorker(Behaviour(tasks=[Task.ZERO_SHOT])) as zero,
        StubWorker(Behaviour(tasks=[Task.TEXT_GENERATION, Task.CHAT])) as writer,
    ):
        table = [
            service("emb", [encoder.url]),
            service("emb", [encoder.url], namespace="team"),
            service("nlp", [tasks.url]),
            service("zero", [zero.url]),
            service("gen", [writer.url]),
            service("asleep", [], tasks=[Task.SUMMARIZATION]),
            service("hidden", [encoder.url], public=False),
        ]
        with GatewayProcess(tmp_path_factory.mktemp("gateway"), table) as process:
            for name in ("nlp", "zero", "gen"):
                asyncio.run(process.ready(name))
            asyncio.run(process.ready("emb"))
            yield process


@pytest.fixture
async def client(gateway: GatewayProcess) -> AsyncIterator[Client]:
    async with await gateway.client() as connection:
        yield connection


def text() -> str:
    return secrets.token_hex(4)


def fails(reply: Reply, status: int, code: str, param: str | None = None) -> None:
    """The answer is this error of the catalogue, in the shape of its route."""
    told = reply.json()
    inner = told["error"] if isinstance(told.get("error"), dict) else told
    assert (reply.status, inner["code"], inner["param"]) == (status, code, param)
    assert inner["request_id"] == reply.headers["x-request-id"]
    assert reply.headers["x-should-retry"] in ("true", "false")
    message = inner.get("message") or inner["detail"]
    assert param is None or param in message, "it says which field"


# The routes of one shape --------------------------------------------------------------------------

QUESTION = {"question": "Who?", "context": "Ann."}
LISTED: dict[str, tuple[str, Any, dict[str, Any] | None]] = {
    "/v1/classify": ("emb", "a text", None),
    "/v1/tokens/classify": ("nlp", "a text", STUB_ANSWERS[Task.TOKEN_CLASSIFICATION]),
    "/v1/relations": ("nlp", "a text", STUB_ANSWERS[Task.RELATION_EXTRACTION]),
    "/v1/answer": ("nlp", QUESTION, STUB_ANSWERS[Task.QUESTION_ANSWERING]),
    "/v1/fill-mask": ("nlp", "a [MASK]", STUB_ANSWERS[Task.FILL_MASK]),
    "/v1/translate": ("nlp", "a text", STUB_ANSWERS[Task.TRANSLATION]),
    "/v1/summarize": ("nlp", "a text", STUB_ANSWERS[Task.SUMMARIZATION]),
}
"""Route → a model, an input, and what the stub says to every input."""


def _several(given: Any) -> list[Any]:
    return [given, {**given, "question": "Where?"}] if isinstance(given, dict) else [given, text()]


def _listed(path: str, model: str, given: Any, said: dict[str, Any] | None) -> None:
    route = f"POST {path}"

    @CASES.case(route, "answers one input")
    async def _(client: Client) -> None:
        reply = await client.post(path, {"model": model, "input": given})
        (entry,) = reply.json()["data"]
        assert (reply.status, reply.json()["model"], entry["index"]) == (200, model, 0)
        assert said is None or said.items() <= entry.items()
        usage = reply.json()["usage"]
        assert usage["total_tokens"] >= usage["prompt_tokens"]
        assert reply.headers["x-sluice-revision"] == "r1"

    @CASES.case(route, "answers a list in its order")
    async def _(client: Client) -> None:
        several = _several(given)
        told = (await client.post(path, {"model": model, "input": several})).json()
        assert [entry["index"] for entry in told["data"]] == [0, 1]
        assert told["usage"]["total_tokens"] == sum(entry["tokens"] for entry in told["data"])

    @CASES.case(route, "again, from the cache")
    async def _(client: Client) -> None:
        body = {"model": model, "input": _several(given)}
        first, second = [await client.post(path, body) for _ in range(2)]
        assert second.headers["cache-status"].startswith("Sluice; hit")
        assert first.json()["data"] == second.json()["data"]

    @CASES.case(route, "refuses a member that it does not know")
    async def _(client: Client) -> None:
        reply = await client.post(path, {"model": model, "input": given, "inputs": 1})
        fails(reply, 400, "unknown_field", "inputs")

    @CASES.case(route, "refuses a parameter that it does not know")
    async def _(client: Client) -> None:
        body = {"model": model, "input": given, "parameters": {"nonsense": 1}}
        fails(await client.post(path, body), 400, "unknown_field", "parameters.nonsense")

    @CASES.case(route, "refuses what is missing")
    async def _(client: Client) -> None:
        fails(await client.post(path, {"model": model}), 400, "missing_field", "input")

    @CASES.case(route, "refuses an empty list")
    async def _(client: Client) -> None:
        fails(await client.post(path, {"model": model, "input": []}), 400, "invalid_field", "input")

    @CASES.case(route, "refuses a model for something else")
    async def _(client: Client) -> None:
        reply = await client.post(path, {"model": "gen", "input": given})
        fails(reply, 400, "task_not_supported", "model")

    @CASES.case(route, "refuses an unknown model")
    async def _(client: Client) -> None:
        reply = await client.post(path, {"model": "none", "input": given})
        fails(reply, 404, "model_not_found", "model")

    @CASES.case(route, "refuses what is no JSON")
    async def _(client: Client) -> None:
        fails(await client.post(path, b"{"), 400, "invalid_json")


for _path, (_model, _given, _said) in LISTED.items():
    _listed(_path, _model, _given, _said)


@CASES.case("POST /v1/classify", "takes labels of the caller's own")
async def _(client: Client) -> None:
    body = {"model": "zero", "input": "abc", "parameters": {"labels": ["x", "y"]}}
    (entry,) = (await client.post("/v1/classify", body)).json()["data"]
    assert {label["label"] for label in entry["labels"]} == {"x", "y"}
    scores = [label["score"] for label in entry["labels"]]
    assert scores == sorted(scores, reverse=True)


@CASES.case("POST /v1/classify", "asks for labels where the model has none")
async def _(client: Client) -> None:
    reply = await client.post("/v1/classify", {"model": "zero", "input": "abc"})
    fails(reply, 400, "missing_field", "parameters.labels")


@CASES.case("POST /v1/classify", "finds the only model of the task without its name")
async def _(client: Client) -> None:
    body = {"input": "abc", "parameters": {"labels": ["x", "y"]}}
    assert (await client.post("/v1/classify", body)).json()["model"] == "zero"


@CASES.case("POST /v1/answer", "refuses a question without its context")
async def _(client: Client) -> None:
    reply = await client.post("/v1/answer", {"model": "nlp", "input": {"question": "Who?"}})
    fails(reply, 400, "missing_field", "input.context")


@CASES.case("POST /v1/tokens/classify", "refuses an aggregation that there is not")
async def _(client: Client) -> None:
    body = {"model": "nlp", "input": "x", "parameters": {"aggregation": "some"}}
    reply = await client.post("/v1/tokens/classify", body)
    fails(reply, 400, "invalid_field", "parameters.aggregation")


@CASES.case("POST /v1/translate", "does not keep what was drawn")
async def _(client: Client) -> None:
    body = {"model": "nlp", "input": "x", "parameters": {"temperature": 0.7}}
    reply = await client.post("/v1/translate", body)
    assert reply.headers["cache-status"] == "Sluice; fwd=bypass; detail=sampled"


@CASES.case("POST /v1/summarize", "is held for a model that sleeps, and told when to come back")
async def _(client: Client) -> None:
    body = {"model": "asleep", "input": "x"}
    reply = await client.post("/v1/summarize", body, x_sluice_deadline_ms="100")
    fails(reply, 503, "starting")
    assert int(reply.headers["retry-after"]) >= 1 and reply.headers["x-should-retry"] == "true"


# Rerank, in Cohere's shape ------------------------------------------------------------------------

RERANK = "POST /v1/rerank"


def _documents(**more: Any) -> dict[str, Any]:
    return {"model": "nlp", "query": "q", "documents": ["one", "two", "three"]} | more


@CASES.case(RERANK, "scores every document")
async def _(client: Client) -> None:
    told = (await client.post("/v1/rerank", _documents())).json()
    assert sorted(result["index"] for result in told["results"]) == [0, 1, 2]
    assert all(result["relevance_score"] == 0.5 for result in told["results"])


@CASES.case(RERANK, "answers the best only")
async def _(client: Client) -> None:
    told = (await client.post("/v1/rerank", _documents(top_n=2))).json()
    assert len(told["results"]) == 2


@CASES.case(RERANK, "returns the documents")
async def _(client: Client) -> None:
    told = (await client.post("/v1/rerank", _documents(return_documents=True))).json()
    found = {result["index"]: result["document"]["text"] for result in told["results"]}
    assert found == {0: "one", 1: "two", 2: "three"}


@CASES.case(RERANK, "takes documents with more about them")
async def _(client: Client) -> None:
    body = _documents(documents=["one", {"text": "two", "title": "2"}])
    assert len((await client.post("/v1/rerank", body)).json()["results"]) == 2


@CASES.case(RERANK, "shares scores whatever is returned")
async def _(client: Client) -> None:
    query = text()
    await client.post("/v1/rerank", _documents(query=query))
    again = await client.post("/v1/rerank", _documents(query=query, top_n=1))
    assert again.headers["cache-status"].startswith("Sluice; hit")


for _name, _more, _code, _param in (
    ("no documents", {"documents": []}, "invalid_field", "documents"),
    ("an empty query", {"query": ""}, "invalid_field", "query"),
    ("none of the best", {"top_n": 0}, "invalid_field", "top_n"),
    ("a document that is none", {"documents": [1]}, "invalid_field", "documents[0]"),
):

    @CASES.case(RERANK, f"refuses {_name}")
    async def _(client: Client, more: Any = _more, code: str = _code, param: str = _param) -> None:
        fails(await client.post("/v1/rerank", _documents(**more)), 400, code, param)


# The two small APIs -------------------------------------------------------------------------------


@CASES.case("POST /classify", "answers 0 or 1 for each label")
async def _(client: Client) -> None:
    told = (await client.post("/classify", {"model": "emb", "text": "abc"})).json()
    assert told == {"text": "abc", "prediction": [0, 1], "label": "spam", "score": 0.75}


@CASES.case("POST /classify", "refuses a list")
async def _(client: Client) -> None:
    reply = await client.post("/classify", {"model": "emb", "text": ["abc"]})
    fails(reply, 400, "invalid_field", "text")
    assert reply.headers["content-type"] == "application/problem+json"


@CASES.case("POST /classify", "needs the name where several could be meant")
async def _(client: Client) -> None:
    fails(await client.post("/classify", {"text": "abc"}), 400, "model_required", "model")


@CASES.case("POST /classify", "refuses a model that classifies by the caller's labels only")
async def _(client: Client) -> None:
    reply = await client.post("/classify", {"model": "zero", "text": "abc"})
    fails(reply, 400, "task_not_supported", "model")


@CASES.case("POST /predict", "answers one text")
async def _(client: Client) -> None:
    told = (await client.post("/predict", {"model": "emb", "text": "abc"})).json()
    assert told == {"predictions": [1], "labels": ["spam"], "scores": [0.75]}


@CASES.case("POST /predict", "answers a list")
async def _(client: Client) -> None:
    told = (await client.post("/predict", {"model": "emb", "text": ["abc", "ab"]})).json()
    assert told["predictions"] == [1, 0] and told["labels"] == ["spam", "ham"]


@CASES.case("POST /predict", "refuses an empty list")
async def _(client: Client) -> None:
    reply = await client.post("/predict", {"model": "emb", "text": []})
    fails(reply, 400, "invalid_field", "text")


@CASES.case("POST /predict", "shares its answers with the other classification routes")
async def _(client: Client) -> None:
    given = text()
    await client.post("/v1/classify", {"model": "emb", "input": given})
    reply = await client.post("/predict", {"model": "emb", "text": given})
    assert reply.headers["cache-status"].startswith("Sluice; hit")


# Models, health, documents ------------------------------------------------------------------------


@CASES.case("GET /v1/models", "lists what the caller may use, and nothing else")
async def _(client: Client) -> None:
    told = (await client.get("/v1/models")).json()
    assert [card["id"] for card in told["data"]] == [
        *("asleep", "emb", "gen", "nlp", "zero", "team/emb"),
    ]


@CASES.case("GET /v1/models", "tells task, revision and state")
async def _(client: Client) -> None:
    cards = {card["id"]: card for card in (await client.get("/v1/models")).json()["data"]}
    assert (cards["emb"]["state"], cards["asleep"]["state"]) == ("ready", "asleep")
    assert cards["zero"]["tasks"] == ["zero-shot"] and cards["zero"]["revision"] == "r1"


@CASES.case("GET /v1/models/{id}", "finds one of another namespace, escaped or not")
async def _(client: Client) -> None:
    for name in ("team/emb", "team%2Femb"):
        card = (await client.get(f"/v1/models/{name}")).json()
        assert (card["id"], card["owned_by"]) == ("team/emb", "team")


@CASES.case("GET /v1/models/{id}", "does not tell that a model of others exists")
async def _(client: Client) -> None:
    hidden, none = [await client.get(f"/v1/models/{name}") for name in ("hidden", "hiddem")]
    for reply in (hidden, none):
        fails(reply, 404, "model_not_found", "model")
    assert hidden.json()["error"]["message"] == none.json()["error"]["message"].replace(
        "hiddem", "hidden"
    )


for _path, _told in (
    ("/livez", {"live": True}),
    ("/readyz", {"ready": True}),
    ("/v2/health/live", {"live": True}),
    ("/v2/health/ready", {"ready": True}),
):

    @CASES.case(f"GET {_path}", "answers")
    async def _(client: Client, path: str = _path, told: Any = _told) -> None:
        reply = await client.get(path)
        assert (reply.status, reply.json()) == (200, told)

    @CASES.case(f"HEAD {_path}", "answers without a body")
    async def _(client: Client, path: str = _path) -> None:
        reply = await client.get(path, "HEAD")
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")

    @CASES.case(f"POST {_path}", "is refused, with what is allowed")
    async def _(client: Client, path: str = _path) -> None:
        reply = await client.post(path, {})
        fails(reply, 405, "method_not_allowed")
        assert reply.headers["allow"] == "GET, HEAD, OPTIONS"


@CASES.case("GET /openapi.json", "describes every route")
async def _(client: Client) -> None:
    told = (await client.get("/openapi.json")).json()
    assert told["openapi"].startswith("3.1") and {*LISTED, "/v1/rerank"} <= told["paths"].keys()


@CASES.case("GET /docs", "shows every route")
async def _(client: Client) -> None:
    page = (await client.get("/docs")).body.decode()
    assert all(path in page for path in (*LISTED, "/v2/models/{name}/infer"))


# Headers that every route knows -------------------------------------------------------------------

EMBEDDINGS = "POST /v1/embeddings"


@CASES.case(EMBEDDINGS, "Cache-Control: no-store")
async def _(client: Client) -> None:
    body = {"model": "emb", "input": text()}
    for _ in range(2):
        reply = await client.post("/v1/embeddings", body, cache_control="no-store")
        assert reply.headers["cache-status"] == "Sluice; fwd=bypass; detail=no-store"


@CASES.case(EMBEDDINGS, "Cache-Control: no-cache")
async def _(client: Client) -> None:
    body = {"model": "emb", "input": text()}
    await client.post("/v1/embeddings", body)
    reply = await client.post("/v1/embeddings", body, cache_control="no-cache")
    assert reply.headers["cache-status"].startswith("Sluice; fwd=request")
    assert "hit" in (await client.post("/v1/embeddings", body)).headers["cache-status"]


@CASES.case(EMBEDDINGS, "Cache-Control: max-age")
async def _(client: Client) -> None:
    body = {"model": "emb", "input": text()}
    await client.post("/v1/embeddings", body)
    for age, found in (("60", "hit"), ("0", "fwd=stale")):
        reply = await client.post("/v1/embeddings", body, cache_control=f"max-age={age}")
        assert found in reply.headers["cache-status"]


@CASES.case(EMBEDDINGS, "Cache-Control: only-if-cached")
async def _(client: Client) -> None:
    body = {"model": "emb", "input": text()}
    asked = {"cache_control": "only-if-cached"}
    fails(await client.post("/v1/embeddings", body, **asked), 504, "not_cached")
    await client.post("/v1/embeddings", body)
    assert (await client.post("/v1/embeddings", body, **asked)).status == 200


@CASES.case(EMBEDDINGS, "X-Sluice-Deadline-Ms")
async def _(client: Client) -> None:
    body = {"model": "emb", "input": text()}
    assert (await client.post("/v1/embeddings", body, x_sluice_deadline_ms="60000")).status == 200
    reply = await client.post("/v1/embeddings", body, x_sluice_deadline_ms="soon")
    fails(reply, 400, "invalid_field", "x-sluice-deadline-ms")


@CASES.case(EMBEDDINGS, "Server-Timing")
async def _(client: Client) -> None:
    reply = await client.post("/v1/embeddings", {"model": "emb", "input": text()})
    timing = reply.headers["server-timing"]
    assert [part.split(";")[0] for part in timing.split(", ")] == ["queue", "worker", "total"]


@CASES.case(EMBEDDINGS, "Idempotency-Key")
async def _(client: Client) -> None:
    body, key = {"model": "emb", "input": text()}, text()
    first, second = [
        await client.post("/v1/embeddings", body, idempotency_key=key) for _ in range(2)
    ]
    assert first.body == second.body and second.headers["idempotent-replayed"] == "true"
    other = {"model": "emb", "input": text()}
    reply = await client.post("/v1/embeddings", other, idempotency_key=key)
    fails(reply, 422, "idempotency_key_reused", "Idempotency-Key")


@CASES.case(EMBEDDINGS, "a model of another namespace")
async def _(client: Client) -> None:
    told = (await client.post("/v1/embeddings", {"model": "team/emb", "input": "x"})).json()
    assert told["model"] == "team/emb"
    assert told["data"][0]["embedding"] == pytest.approx(vector_of("x").tolist(), abs=1e-7)


@CASES.case("any other path", "is not there")
async def _(client: Client) -> None:
    fails(await client.get("/v1/nothing"), 404, "route_not_found")
    reply = await client.get("/nothing")
    fails(reply, 404, "route_not_found")
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(("route", "behaviour"), CASES, ids=str)
async def test_route(client: Client, route: str, behaviour: str) -> None:
    await CASES[route, behaviour](client)
