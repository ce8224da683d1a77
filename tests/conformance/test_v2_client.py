"""Triton's client, the reference of the Open Inference Protocol, as it is, against the gateway.

What it does not show, such as the shape of errors, is asked over plain HTTP.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from sluice_api import wire
from sluice_api.tasks import Task
from tests.support.conformance import Cases
from tests.support.gateway_process import GatewayProcess, service
from tests.support.http_calls import Reply, get, post
from tests.support.stub_worker import Behaviour, StubWorker, vector_of

Case = Callable[[Any, str], None]
"""Given Triton's client and the address of the gateway."""
CASES: Cases[Case] = Cases()
case = CASES.case

TASKS = [
    Task.TOKEN_CLASSIFICATION,
    Task.QUESTION_ANSWERING,
    Task.FILL_MASK,
    Task.RERANK,
    Task.TRANSLATION,
    Task.SUMMARIZATION,
]


FAILURE = wire.Failure(reason="OutOfMemory", message="No room.", retry_after_seconds=60.0)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with (
        StubWorker() as worker,
        StubWorker(Behaviour(tasks=TASKS)) as others,
        StubWorker(Behaviour(tasks=[Task.CHAT])) as writer,
    ):
        table = [
            service("emb", [worker.url]),
            service("emb", [worker.url], namespace="team"),
            service("config", [], namespace="team"),
            service("nlp", [others.url]),
            service("gen", [writer.url]),
            service("asleep", []),
            service("failed", [], failure=FAILURE),
        ]
        with GatewayProcess(tmp_path_factory.mktemp("gateway"), table) as process:
            for name in ("emb", "nlp", "gen"):
                asyncio.run(process.ready(name))
            yield process


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{gateway.port}") as made:
        yield made


@pytest.fixture
def base(gateway: GatewayProcess) -> str:
    return f"http://127.0.0.1:{gateway.port}"


def tensor(
    *values: str, name: str = "text", shape: list[int] | None = None, binary: bool = False
) -> Any:
    """An input tensor of texts."""
    array = np.array(values, dtype=object).reshape(shape or [len(values)])
    made = triton.InferInput(name, list(array.shape), "BYTES")
    return made.set_data_from_numpy(array, binary_data=binary)


def wanted(*names: str, binary: bool = False) -> list[Any]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def as_json(name: str = "text", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": [1], "datatype": "BYTES", "data": ["x"]} | more


# Health and metadata ------------------------------------------------------------------------------


@case("GET /v2/health/live", "is understood")
def _(client: Any, base: str) -> None:
    assert client.is_server_live()


@case("GET /v2/health/ready", "is understood")
def _(client: Any, base: str) -> None:
    assert client.is_server_ready()


@case("GET /v2", "names the server, its version and its extensions")
def _(client: Any, base: str) -> None:
    told = client.get_server_metadata()
    assert told["name"] == "sluice" and told["version"]
    assert told["extensions"] == ["binary_tensor_data"]


READY = "GET /v2/models/{name}/ready"
for _name, _version, _ready in (
    ("emb", "", True),
    ("emb", "r1", True),
    ("team/emb", "", True),
    ("asleep", "", True),  # It is woken by the request.
    ("nothing", "", False),
    ("emb", "r2", False),
    ("failed", "", False),
):

    @case(READY, f"of {_name} {_version}".strip())
    def _(
        client: Any, base: str, name: str = _name, version: str = _version, ready: bool = _ready
    ) -> None:
        assert client.is_model_ready(name, version) is ready


METADATA = "GET /v2/models/{name}"


@case(METADATA, "names inputs and outputs with datatypes and shapes")
def _(client: Any, base: str) -> None:
    told = client.get_model_metadata("emb")
    assert (told["name"], told["versions"], told["platform"]) == ("emb", ["r1"], "sluice")
    assert told["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    outputs = {output.pop("name"): output for output in told["outputs"]}
    tasks = {name: output.pop("parameters") for name, output in outputs.items()}
    assert tasks["embedding"] == {"tasks": ["embeddings"]}
    assert tasks["labels"] == {"tasks": ["classification"]}
    assert outputs["embedding"] == {"datatype": "FP32", "shape": [-1, 4]}
    assert outputs["labels"] == {"datatype": "BYTES", "shape": [-1, -1]}


@case(METADATA, "of a version")
def _(client: Any, base: str) -> None:
    assert client.get_model_metadata("emb", "r1")["name"] == "emb"
    with pytest.raises(triton.InferenceServerException, match="r2"):
        client.get_model_metadata("emb", "r2")


@case(METADATA, "of a model of another namespace")
def _(client: Any, base: str) -> None:
    assert client.get_model_metadata("team/emb")["name"] == "team/emb"


@case(METADATA, "of an unknown model")
def _(client: Any, base: str) -> None:
    with pytest.raises(triton.InferenceServerException) as caught:
        client.get_model_metadata("nothing")
    assert caught.value.status() == "404"


@case(METADATA, "does not take what Triton has there for a model")
def _(client: Any, base: str) -> None:
    with pytest.raises(triton.InferenceServerException) as caught:
        client.get_model_config("emb")
    assert caught.value.status() == "404"
    assert "nothing at /v2/models/emb/config" in caught.value.message()
    with pytest.raises(triton.InferenceServerException, match=r"nothing at .*/r1/stats"):
        client.get_inference_statistics("emb", "r1")
    for path in ("emb/trace/setting", "nothing/config", "team/emb/versions/r1/config"):
        _refused(get(f"{base}/v2/models/{path}"), "route_not_found", path)
    for verb in ("generate", "generate_stream", "versions/r1/generate"):
        told = post(f"{base}/v2/models/gen/{verb}", {"text_input": "x"})
        _refused(told, "route_not_found", f"/v2/models/gen/{verb}")


@case(METADATA, "of a model that is named as what Triton has behind names")
def _(client: Any, base: str) -> None:
    assert client.get_model_metadata("team/config")["name"] == "team/config"
    _refused(get(f"{base}/v2/models/config"), "model_not_found", "'config'")


# Inference ----------------------------------------------------------------------------------------

INFER = "POST /v2/models/{name}/infer"


def _embeds(shape: list[int], binary: bool) -> Case:
    def run(client: Any, base: str) -> None:
        values = ("one", "näïve – 東京", "one")
        inputs = [tensor(*values, shape=shape, binary=binary)]
        outputs = wanted("embedding", binary=binary)
        answer = client.infer("emb", inputs, outputs=outputs, request_id="7")
        found = answer.as_numpy("embedding")
        assert (found.dtype, found.shape) == (np.float32, (3, 4))
        np.testing.assert_allclose(found, [vector_of(value) for value in values], atol=1e-7)
        told = answer.get_response()
        assert (told["id"], told["model_name"]) == ("7", "emb")
        assert ("data" in told["outputs"][0]) is not binary

    return run


for _shape in ([3], [3, 1]):
    case(INFER, f"embeds texts of shape {_shape}")(_embeds(_shape, False))
    case(INFER, f"embeds texts of shape {_shape} as bytes")(_embeds(_shape, True))


@case(INFER, "answers as the client asks when nothing is set")
def _(client: Any, base: str) -> None:
    answer = client.infer("emb", [tensor("x", binary=True)])
    assert answer.as_numpy("embedding").tolist() == [vector_of("x").tolist()]
    assert answer.get_response()["outputs"][0]["parameters"] == {"binary_data_size": 16}


@case(INFER, "mixes outputs as bytes and as JSON")
def _(client: Any, base: str) -> None:
    outputs = [*wanted("label", binary=True), *wanted("score"), *wanted("scores", binary=True)]
    parameters = {"task": "classification"}
    answer = client.infer("emb", [tensor("abc", "de")], outputs=outputs, parameters=parameters)
    assert answer.as_numpy("label").tolist() == [b"spam", b"ham"]
    assert answer.as_numpy("score").tolist() == [0.75, 0.75]
    assert answer.as_numpy("scores").tolist() == [[0.75, 0.25], [0.75, 0.25]]


@case(INFER, "classifies, with the outputs that are asked for")
def _(client: Any, base: str) -> None:
    answer = client.infer(
        "emb",
        [tensor("abc", "de")],
        outputs=wanted("label", "scores"),
        parameters={"task": "classification"},
    )
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["label", "scores"]
    assert answer.as_numpy("label").tolist() == ["spam", "ham"]


@case(INFER, "answers with every output where none is named")
def _(client: Any, base: str) -> None:
    told = post(
        f"{base}/v2/models/emb/infer",
        {"inputs": [as_json()], "parameters": {"task": "classification"}},
    )
    assert [o["name"] for o in told["outputs"]] == ["label", "score", "labels", "scores"]


def _task(task: str, inputs: list[Any], outputs: dict[str, Any]) -> Case:
    def run(client: Any, base: str) -> None:
        for binary in (False, True):
            answer = client.infer(
                "nlp",
                inputs,
                outputs=wanted(*outputs, binary=binary),
                parameters={"task": task},
            )
            for name, values in outputs.items():
                found = answer.as_numpy(name).tolist()
                assert found == values or found == _encoded(values), (name, binary)

    return run


def _encoded(values: Any) -> Any:
    """Texts as Triton's client reads them from bytes."""
    if isinstance(values, list):
        return [_encoded(value) for value in values]
    return values.encode() if isinstance(values, str) else values


for _named, _inputs, _outputs in (
    (
        "token-classification",
        [tensor("a", "b")],
        {"input": [0, 1], "label": ["X", "X"], "start": [0, 0], "end": [1, 1], "text": ["a", "a"]},
    ),
    (
        "question-answering",
        [tensor("q", name="question"), tensor("c", name="context")],
        {"text": ["a"], "score": [0.5], "start": [0], "end": [1]},
    ),
    ("fill-mask", [tensor("[MASK]")], {"token": [[[1]]], "text": [[["a"]]], "score": [[[0.5]]]}),
    (
        "rerank",
        [tensor("q", name="query"), tensor("d", "e")],
        {"relevance_score": [0.5, 0.5]},
    ),
    ("translation", [tensor("a", "b")], {"text": ["b", "b"], "finish_reason": ["stop", "stop"]}),
    ("summarization", [tensor("a")], {"text": ["b"]}),
):
    case(INFER, f"does {_named}")(_task(_named, _inputs, _outputs))


@case(INFER, "takes the model's name in the body too, as KServe's client sends it")
def _(client: Any, base: str) -> None:
    body = {"id": "1", "model_name": "emb", "inputs": [as_json()]}
    for path in ("emb", "team%2Femb"):
        told = post(f"{base}/v2/models/{path}/infer", body)
        assert told.status == 200 and told["id"] == "1"


@case(INFER, "tells the task by the names of the inputs")
def _(client: Any, base: str) -> None:
    inputs = [as_json("query"), as_json()]
    told = post(f"{base}/v2/models/nlp/infer", {"inputs": inputs})
    assert [output["name"] for output in told["outputs"]] == ["relevance_score"]


for _name in ("emb", "team/emb"):

    @case(INFER, f"of {_name}")
    def _(client: Any, base: str, name: str = _name) -> None:
        answer = client.infer(name, [tensor("x")], outputs=wanted("embedding"))
        assert answer.as_numpy("embedding").tolist() == [vector_of("x").tolist()]


@case("POST /v2/models/{name}/versions/{version}/infer", "of the model's revision")
def _(client: Any, base: str) -> None:
    for binary in (False, True):
        inputs = [tensor("x", binary=binary)]
        outputs = wanted("embedding", binary=binary)
        answer = client.infer("emb", inputs, model_version="r1", outputs=outputs)
        assert answer.as_numpy("embedding").tolist() == [vector_of("x").tolist()]


@case("POST /v2/models/{name}/versions/{version}/infer", "refuses any other version")
def _(client: Any, base: str) -> None:
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer("emb", [tensor("x")], model_version="r2")
    assert caught.value.status() == "404" and "'r1'" in caught.value.message()


@case(INFER, "takes rows in lists of their own")
def _(client: Any, base: str) -> None:
    rows = as_json(shape=[2, 1], data=[["x"], ["y"]])
    told = post(f"{base}/v2/models/emb/infer", {"inputs": [rows]})
    assert told["outputs"][0]["data"] == [*vector_of("x"), *vector_of("y")]


@case(INFER, "shares its answers with the task's own route")
def _(client: Any, base: str) -> None:
    post(f"{base}/v1/embeddings", {"model": "emb", "input": "shared with v2"})
    told = post(f"{base}/v2/models/emb/infer", {"inputs": [as_json(data=["shared with v2"])]})
    assert told.headers["cache-status"].startswith("Sluice; hit")


@case(INFER, "is answered from the cache, as bytes too")
def _(client: Any, base: str) -> None:
    for _ in range(3):
        answer = client.infer("emb", [tensor("kept", binary=True)])
        assert answer.as_numpy("embedding").tolist() == [vector_of("kept").tolist()]


def _refused(reply: Reply, code: str, told: str) -> None:
    assert reply.status in (400, 404, 415) and reply["code"] == code
    assert told in reply["error"], reply["error"]
    assert reply["error"] == reply["detail"]
    assert reply.headers["content-type"] == "application/problem+json"


def _refuses(body: Any, code: str, told: str, model: str = "emb", **headers: str) -> Case:
    def run(client: Any, base: str) -> None:
        _refused(post(f"{base}/v2/models/{model}/infer", body, **headers), code, told)

    return run


for _name, _body, _code, _told in (
    ("no inputs", {}, "missing_field", "inputs"),
    ("an empty list of inputs", {"inputs": []}, "invalid_field", "inputs: got tensors named []"),
    ("an input of another name", {"inputs": [as_json("words")]}, "invalid_field", '["words"]'),
    ("an input twice", {"inputs": [as_json(), as_json()]}, "invalid_field", "inputs"),
    (
        "numbers where texts are due",
        {"inputs": [as_json(datatype="FP32", data=[1.5])]},
        *("invalid_field", 'inputs[0].datatype: got "FP32", allowed BYTES'),
    ),
    (
        "a datatype that there is not",
        {"inputs": [as_json(datatype="TEXT")]},
        *("invalid_field", "inputs[0].datatype"),
    ),
    (
        "a shape that does not fit",
        {"inputs": [as_json(shape=[2])]},
        *("invalid_field", "inputs[0].shape: got [2], allowed [1] for 1 elements"),
    ),
    (
        "a negative shape",
        {"inputs": [as_json(shape=[-1])]},
        *("invalid_field", "inputs[0].shape"),
    ),
    (
        "an empty tensor",
        {"inputs": [as_json(shape=[0], data=[])]},
        *("invalid_field", "inputs[0].shape"),
    ),
    (
        "an element that is no text",
        {"inputs": [as_json(data=[5])]},
        *("invalid_field", "inputs[0].data[0]: got 5"),
    ),
    ("an empty text", {"inputs": [as_json(data=[""])]}, "invalid_field", "empty"),
    (
        "another model's name in the body",
        {"inputs": [as_json()], "model_name": "nlp"},
        *("invalid_field", 'model_name: got "nlp", the path names "emb"'),
    ),
    (
        "a parameter of another task",
        {"inputs": [as_json()], "parameters": {"task": "embeddings", "top_k": 2}},
        *("invalid_field", "parameters.top_k"),
    ),
    (
        "an unknown parameter",
        {"inputs": [as_json()], "parameters": {"sequence_id": 1}},
        *("unknown_field", "parameters.sequence_id"),
    ),
    (
        "a parameter of a tensor",
        {"inputs": [as_json(parameters={"shared_memory_region": "x"})]},
        *("unknown_field", "inputs[0].parameters.shared_memory_region"),
    ),
    (
        "an output that there is not",
        {"inputs": [as_json()], "outputs": [{"name": "logits"}]},
        *("invalid_field", "outputs[0].name"),
    ),
    (
        "a wish for an output that there is not",
        {"inputs": [as_json()], "outputs": [{"name": "embedding", "parameters": {"top": 1}}]},
        *("unknown_field", "outputs[0].parameters.top"),
    ),
    (
        "a flag that is none",
        {"inputs": [as_json()], "parameters": {"binary_data_output": "yes"}},
        *("invalid_field", "parameters.binary_data_output"),
    ),
    (
        "bytes that are not there",
        {"inputs": [as_json(parameters={"binary_data_size": 5})]},
        *("invalid_field", "inputs[0].parameters.binary_data_size: got 5, 0 bytes are left"),
    ),
):
    case(INFER, f"refuses {_name}")(_refuses(_body, _code, _told))

case(INFER, "refuses a model without tensors")(
    _refuses({"inputs": [as_json()]}, "task_not_supported", "Of chat there are no tensors", "gen")
)
case(INFER, "refuses an unknown model")(
    _refuses({"inputs": [as_json()]}, "model_not_found", "There is no model 'none'", "none")
)
case(INFER, "refuses compressed bodies")(
    _refuses({}, "unsupported_media_type", "gzip", content_encoding="gzip")
)
case(INFER, "refuses a length of JSON beyond the body")(
    _refuses({"inputs": []}, "invalid_field", "got 999", inference_header_content_length="999")
)
case(INFER, "refuses a length of JSON that is none")(
    _refuses({}, "invalid_field", "got 'x'", inference_header_content_length="x")
)


@case(INFER, "refuses bytes that are no texts")
def _(client: Any, base: str) -> None:
    for data, told in ((b"\x01\0\0\0\xff", "is not UTF-8"), (b"\x09\0\0\0x", "goes beyond")):
        made = triton.InferInput("text", [1], "BYTES")
        made._raw_data, made._parameters = data, {"binary_data_size": len(data)}
        with pytest.raises(triton.InferenceServerException) as caught:
            client.infer("emb", [made])
        assert caught.value.status() == "400" and told in caught.value.message()


@case(INFER, "refuses numbers as bytes where texts are due")
def _(client: Any, base: str) -> None:
    made = triton.InferInput("text", [2], "FP32")
    made.set_data_from_numpy(np.array([1.5, 2.5], dtype=np.float32))
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer("emb", [made])
    assert 'got "FP32", allowed BYTES' in caught.value.message()


@case(INFER, "tells the client of an error in its own words")
def _(client: Any, base: str) -> None:
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer("emb", [tensor("x")], parameters={"labels": 5})
    assert caught.value.status() == "400"
    assert "parameters.labels: got 5, allowed a list of texts" in caught.value.message()
    assert "decoding" not in caught.value.message()


@pytest.mark.parametrize(("route", "behaviour"), CASES, ids=str)
def test_client(client: Any, base: str, route: str, behaviour: str) -> None:
    CASES[route, behaviour](client, base)
