"""What schemathesis makes of ``/openapi.json``: right bodies, nearly right ones, any path.

Whatever it sends, nothing fails on our side, and each answer is of a status, a type and a shape
that the document names. The examples are the same each time.
"""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance
from schemathesis.transport.serialization import Binary

from sluice_api import names
from sluice_api.errors import CATALOGUE
from sluice_api.routes import POST_ROUTES, V2_PREFIX, V2_SUFFIX, V2_VERSIONS
from sluice_api.tasks import Task
from tests.support.gateway_process import GatewayProcess, service
from tests.support.stub_worker import STUB_ANSWERS, Behaviour, StubWorker

EXAMPLES = 20
"""Of each kind for each operation."""

WRITES = [Task.TEXT_GENERATION, Task.CHAT]
MODELS = {"/v1/completions": "gen", "/v1/chat/completions": "gen"} | dict.fromkeys(
    ("/v1/embeddings", "/v1/classify", "/classify", "/predict"), "emb"
)
"""A model for each route, so that some of what is asked for is there; ``nlp`` for others."""

FITTING: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "tool_choice": None},
    "/v1/completions": {"prompt": "x", "stream_options": None},
    "/v2/models/{name}/infer": {
        "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["x"]}]
    },
}
"""Members of a body that a schema alone is unlikely to get right."""

ASKED_WITH_GET = (
    *("/v1/models", "/v1/models/{model}", "/livez", "/readyz"),
    *("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/{name}", "/v2/models/{name}/ready"),
)
JSON_BYTES = names.INFERENCE_JSON_BYTES.title()
V2_NAMED = V2_PREFIX + "{name}"
POSTED = (*POST_ROUTES, V2_NAMED + V2_SUFFIX, V2_NAMED + V2_VERSIONS + "{version}" + V2_SUFFIX)

pytestmark = pytest.mark.filterwarnings("default")  # Those of what schemathesis is built on.


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with (
        StubWorker() as encoder,
        StubWorker(Behaviour(tasks=list(STUB_ANSWERS))) as tasks,
        StubWorker(Behaviour(tasks=WRITES)) as writer,
    ):
        workers = {"emb": encoder, "nlp": tasks, "gen": writer}
        table = [service(name, [worker.url]) for name, worker in workers.items()]
        with GatewayProcess(tmp_path_factory.mktemp("gateway"), table) as process:
            for name in workers:
                asyncio.run(process.ready(name))
            yield process


@pytest.fixture(scope="module")
def document(gateway: GatewayProcess) -> Any:
    return schemathesis.openapi.from_url(f"http://127.0.0.1:{gateway.port}/openapi.json")


def check(case: Any, base: str, statuses: Counter[int]) -> None:
    """Ask, and hold the answer against the document."""
    response = case.call(base_url=base)
    statuses[response.status_code] += 1
    late = "deadline_exceeded" in response.text  # It may have asked for very little time.
    assert response.status_code < 500 or late, (case.as_curl_command(), response.text[:500])
    # A schema cannot say everything that makes a body wrong, such as that a text is not empty.
    excluded = [positive_data_acceptance, *([not_a_server_error] if late else [])]
    case.validate_response(response, excluded_checks=excluded)
    assert response.headers["x-request-id"]
    if response.status_code >= 400:
        told = response.json()
        code = told["error"]["code"] if case.path.startswith("/v1/") else told["code"]
        assert CATALOGUE[code].status == response.status_code


def explore(strategy: Any, base: str, prepare: Any = lambda case: None) -> Counter[int]:
    """Ask with examples of ``strategy``, the same each time. Returns how often which status."""
    statuses: Counter[int] = Counter()

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def run(case: Any) -> None:
        prepare(case)
        check(case, base, statuses)

    run()
    return statuses


@pytest.mark.parametrize("path", POSTED)
def test_posting(gateway: GatewayProcess, document: Any, path: str) -> None:
    base, operation = f"http://127.0.0.1:{gateway.port}", document[path]["POST"]
    model, numbers = MODELS.get(path, "nlp"), itertools.count()

    def address(case: Any) -> None:
        if "{name}" in path:
            case.path_parameters["name"] = model
            if isinstance(case.body, Binary):
                _as_bytes(case, FITTING[V2_NAMED + V2_SUFFIX])
                return
            case.headers.pop(JSON_BYTES, None)
        elif "model" in case.body:
            case.body["model"] = model
        case.body |= FITTING.get(path, {})
        if case.headers and "Idempotency-Key" in case.headers:
            case.headers["Idempotency-Key"] = f"{path}-{next(numbers)}"  # else most are used up

    right = schemathesis.GenerationMode.POSITIVE
    wrong = schemathesis.GenerationMode.NEGATIVE
    statuses = explore(operation.as_strategy(generation_mode=right), base, address)
    assert set(statuses) <= {200, 400, 404, 504}
    assert "{version}" in path or statuses[200], statuses
    statuses = explore(operation.as_strategy(generation_mode=wrong), base)
    assert set(statuses) <= {400, 404, 415, 422, 504}


def _as_bytes(case: Any, fitting: dict[str, Any]) -> None:
    """A body of random bytes becomes one whose tensor they are, written as text."""
    text = case.body.data.hex().encode() or b"none"
    data = len(text).to_bytes(4, "little") + text
    (tensor,) = fitting["inputs"]
    inputs = {name: value for name, value in tensor.items() if name != "data"}
    inputs["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": [inputs]}).encode()
    case.headers[JSON_BYTES] = str(len(head))
    case.body = Binary(head + data)


def test_tensors_may_be_bytes(document: Any) -> None:
    for path in (path for path in POSTED if path.startswith(V2_NAMED)):
        raw = document[path]["POST"].definition.raw
        for body in (raw["requestBody"], raw["responses"]["200"]):
            assert set(body["content"]) == {"application/json", "application/octet-stream"}
        assert JSON_BYTES in {parameter["name"] for parameter in raw["parameters"]}
        assert JSON_BYTES in raw["responses"]["200"]["headers"]


@pytest.mark.parametrize("path", ASKED_WITH_GET)
def test_asking(gateway: GatewayProcess, document: Any, path: str) -> None:
    base, operation = f"http://127.0.0.1:{gateway.port}", document[path]["GET"]
    statuses = explore(operation.as_strategy(), base)
    assert set(statuses) <= ({404} if "{" in path else {200})


def test_every_operation_is_explored(document: Any) -> None:
    labels = {result.ok().label for result in document.get_all_operations()}
    asked = {f"GET {path}" for path in ASKED_WITH_GET}
    assert labels == asked | {f"POST {path}" for path in POSTED}
