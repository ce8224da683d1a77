"""What the gateway serves beside inference, over real sockets: V2, documents, small pages."""

import copy
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sluice_api import names
from sluice_api.routes import POST_ROUTES, SHAPES, V2_SUFFIX
from sluice_api.tasks import Task
from tests.support.gateway_process import GatewayProcess, Reply, service
from tests.support.stub_worker import Behaviour, StubWorker

V2_INPUT = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["ham", "spam!"]}


@pytest.fixture(scope="module")
def worker() -> Iterator[StubWorker]:
    with StubWorker(Behaviour(digest=f"sha256:{secrets.token_hex(32)}")) as stub:
        yield stub


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, worker: StubWorker
) -> Iterator[GatewayProcess]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    tasks = [Task.TEXT_GENERATION, Task.CHAT]
    with StubWorker(Behaviour(tasks=tasks)) as writer:
        table = [service("emb", [worker.url]), service("gen", [writer.url])]
        with GatewayProcess(folder, table) as process:
            yield process


@pytest.fixture
async def document(gateway: GatewayProcess) -> dict[str, Any]:
    await gateway.ready("emb")
    await gateway.ready("gen")
    found: dict[str, Any] = (await gateway.get("/openapi.json")).json()
    return found


def body_schema(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The named schema, closed: a member that is not documented is a failure."""
    components = copy.deepcopy(document["components"])
    for schema in components["schemas"].values():
        if schema.get("type") == "object":
            schema.setdefault("additionalProperties", False)
    return {"$ref": f"#/components/schemas/{name}", "components": components}


def check(document: dict[str, Any], path: str, reply: Reply, method: str = "post") -> None:
    """The answer is what the document says of its path and status."""
    responses = document["paths"][path][method]["responses"]
    content = responses.get(str(reply.status), responses.get("default"))["content"]
    schema = content[reply.headers["content-type"]]["schema"]
    name = schema["$ref"].rpartition("/")[2]
    jsonschema.validate(
        reply.json(), body_schema(document, name), cls=jsonschema.Draft202012Validator
    )


USER = {"role": "user", "content": "Hi"}
ASKED: list[tuple[str, dict[str, Any], int]] = [
    ("/v1/embeddings", {"model": "emb", "input": ["a", "b"]}, 200),
    ("/v1/embeddings", {"model": "emb", "input": "a", "encoding_format": "base64"}, 200),
    ("/v1/embeddings", {"model": "emb", "input": [1, 2]}, 200),
    ("/v1/embeddings", {"model": "none", "input": "a"}, 404),
    ("/v1/embeddings", {"model": "emb"}, 400),
    ("/v1/classify", {"model": "emb", "input": ["a", "b"]}, 200),
    ("/v1/classify", {"model": "emb", "input": "too long"}, 400),
    ("/classify", {"model": "emb", "text": "a"}, 200),
    ("/classify", {"model": "emb", "texts": "a"}, 400),
    ("/predict", {"model": "emb", "text": ["a", "b"]}, 200),
    ("/predict", {"model": "none", "text": "a"}, 404),
    ("/v1/completions", {"model": "gen", "prompt": ["a", "b"], "n": 2}, 200),
    ("/v1/completions", {"model": "none", "prompt": "a"}, 404),
    ("/v1/completions", {"model": "emb"}, 400),
    ("/v1/chat/completions", {"model": "gen", "messages": [USER]}, 200),
    ("/v1/chat/completions", {"model": "emb"}, 400),
    ("/v2/models/{name}/infer", {"inputs": [V2_INPUT], "id": "7"}, 200),
    (
        "/v2/models/{name}/infer",
        {"inputs": [V2_INPUT], "parameters": {"task": "classification"}},
        200,
    ),
    ("/v2/models/{name}/infer", {"inputs": []}, 400),
]


@pytest.mark.parametrize(("path", "body", "status"), ASKED)
async def test_answers_are_what_the_document_says(
    gateway: GatewayProcess, document: dict[str, Any], path: str, body: dict[str, Any], status: int
) -> None:
    reply = await gateway.post(path.replace("{name}", "emb"), body)
    assert reply.status == status, reply
    check(document, path, reply)
    request = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    name = request["schema"]["$ref"].rpartition("/")[2]
    validator = jsonschema.Draft202012Validator(body_schema(document, name))
    # What is wrong with the body itself is wrong by its schema too; the rest only we can know.
    if "texts" in body or body.keys() == {"model"}:
        assert not validator.is_valid(body)
    else:
        validator.validate(body)


async def test_what_is_asked_with_get_is_documented_too(
    gateway: GatewayProcess, document: dict[str, Any]
) -> None:
    paths = [path for path, operations in document["paths"].items() if "get" in operations]
    for path in paths:
        for name in ("emb", "none") if "{" in path else ("",):
            asked = path.replace("{name}", name).replace("{model}", name)
            reply = await gateway.get(asked)
            assert reply.status == (404 if name == "none" else 200), asked
            check(document, path, reply, "get")
    assert len(paths) == 9


async def test_every_route_is_documented(document: dict[str, Any]) -> None:
    assert SHAPES.keys() == {*POST_ROUTES, V2_SUFFIX}
    assert document["paths"].keys() >= POST_ROUTES.keys()
    components = document["components"]["schemas"]
    for shape in SHAPES.values():
        assert components[shape.request.__name__]["additionalProperties"] is False
    identities = []
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "HTTPValidationError" not in str(operation), path
            assert len(operation["responses"]) >= 2, path
            parameters = operation.get("parameters", [])
            named = {entry["name"] for entry in parameters if entry["in"] == "path"}
            assert named == {part[1:-1] for part in path.split("/") if part.startswith("{")}
            identities.append(operation["operationId"])
    assert len(identities) == len(set(identities))
    assert not [name for name in components if "Validation" in name]


async def test_what_inference_routes_read_beside_the_body_is_documented(
    document: dict[str, Any],
) -> None:
    for path in POST_ROUTES:
        parameters = document["paths"][path]["post"]["parameters"]
        headers = {each["name"].lower() for each in parameters if each["in"] == "header"}
        assert headers >= {
            *(names.IDEMPOTENCY_KEY, names.DEADLINE_MS, names.PRIORITY, names.REQUEST_ID),
            "cache-control",
        }
    (scheme,) = document["components"]["securitySchemes"]
    assert document["components"]["securitySchemes"][scheme]["scheme"] == "bearer"
    assert document["security"] == [{scheme: []}, {}]  # Some gateways ask for a key, some do not.


async def test_a_version_is_the_revision(gateway: GatewayProcess, document: dict[str, Any]) -> None:
    body = {"inputs": [V2_INPUT]}
    plain = await gateway.post("/v2/models/emb/infer", body)
    for name in ("emb", "default/emb", "default%2Femb"):
        versioned = await gateway.post(f"/v2/models/{name}/versions/r1/infer", body)
        assert versioned.status == 200
        assert versioned.json()["outputs"] == plain.json()["outputs"]
    for path in ("", "/ready"):
        assert (await gateway.get(f"/v2/models/emb/versions/r1{path}")).status == 200
        assert (await gateway.get(f"/v2/models/emb/versions/2{path}")).status == 404
    other = await gateway.post("/v2/models/emb/versions/2/infer", body)
    assert (other.status, other.json()["code"]) == (404, "model_not_found")
    assert "'r1'" in other.json()["detail"] and "'2'" in other.json()["detail"]
    check(document, "/v2/models/{name}/versions/{version}/infer", other)


async def test_metadata_has_the_outputs_of_every_task(
    gateway: GatewayProcess, document: dict[str, Any]
) -> None:
    told = (await gateway.get("/v2/models/emb")).json()
    shapes = {output["name"]: output["shape"] for output in told["outputs"]}
    assert shapes == {
        "embedding": [-1, 4],
        "label": [-1],
        "score": [-1],
        "labels": [-1, -1],
        "scores": [-1, -1],
    }
    for task in (Task.EMBEDDINGS, Task.CLASSIFICATION):
        body = {"inputs": [V2_INPUT], "parameters": {"task": task}}
        for output in (await gateway.post("/v2/models/emb/infer", body)).json()["outputs"]:
            assert len(output["shape"]) == len(shapes[output["name"]])


async def test_small_pages(gateway: GatewayProcess) -> None:
    front = await gateway.get("/")
    assert front.status == 200
    for path in (front.json()["docs"], front.json()["openapi"], front.json()["models"]):
        assert (await gateway.get(path)).status == 200
    docs = (await gateway.get("/docs")).body.decode()
    assert "Vectors of texts" in docs and "<td></td>" not in docs
    for path in ("/", "/livez", "/v1/models", "/v2/models/emb", "/docs"):
        head = await gateway.get(path, method="HEAD")
        full = await gateway.get(path)
        assert (head.status, head.headers["content-length"]) == (200, str(len(full.body))), path


async def test_cache_status_of_what_is_too_old_or_not_there(gateway: GatewayProcess) -> None:
    await gateway.ready("emb")
    body = {"model": "emb", "input": "aged"}
    refused = await gateway.post("/v1/embeddings", body, cache_control="only-if-cached")
    assert refused.status == 504
    assert refused.headers["cache-status"] == "Sluice; detail=only-if-cached"
    assert "fwd=miss" in (await gateway.post("/v1/embeddings", body)).headers["cache-status"]
    again = await gateway.post("/v1/embeddings", body, cache_control="max-age=0")
    assert again.headers["cache-status"] == "Sluice; fwd=stale; stored"
