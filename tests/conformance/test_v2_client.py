"""Triton's client, the reference of the Open Inference Protocol, as it is, against the gateway."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from tests.support.gateway_process import GatewayProcess, service
from tests.support.stub_worker import StubWorker, vector_of


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with StubWorker() as worker:
        table = [
            service("emb", [worker.url]),
            service("emb", [worker.url], namespace="team"),
            service("asleep", []),
        ]
        with GatewayProcess(tmp_path_factory.mktemp("gateway"), table) as process:
            asyncio.run(process.ready("emb"))
            yield process


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{gateway.port}") as made:
        yield made


def texts(*values: str, shape: list[int] | None = None) -> list[Any]:
    """The input tensor, as JSON."""
    array = np.array(values, dtype=object).reshape(shape or [len(values)])
    tensor = triton.InferInput("text", list(array.shape), "BYTES")
    return [tensor.set_data_from_numpy(array, binary_data=False)]


def wanted(*names: str) -> list[Any]:
    return [triton.InferRequestedOutput(name, binary_data=False) for name in names]


def test_health(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("emb")
    assert client.is_model_ready("emb", "r1")
    assert client.is_model_ready("asleep"), "it is woken by the request"
    assert not client.is_model_ready("nothing")
    assert not client.is_model_ready("emb", "r2")


def test_metadata(client: Any) -> None:
    assert client.get_server_metadata()["name"] == "sluice"
    told = client.get_model_metadata("emb")
    assert (told["name"], told["versions"]) == ("emb", ["r1"])
    assert told["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert {output["name"] for output in told["outputs"]} >= {"embedding", "label", "scores"}


@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_embeddings(client: Any, shape: list[int]) -> None:
    values = ("one", "näïve – 東京", "one")
    inputs = texts(*values, shape=shape)
    answer = client.infer("emb", inputs, outputs=wanted("embedding"), request_id="7")
    found = answer.as_numpy("embedding")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [vector_of(value) for value in values], atol=1e-7)
    told = answer.get_response()
    assert (told["id"], told["model_name"]) == ("7", "emb")


def test_classification_with_the_outputs_asked_for(client: Any) -> None:
    answer = client.infer(
        "emb",
        texts("abc", "de"),
        outputs=wanted("label", "scores"),
        parameters={"task": "classification"},
    )
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["label", "scores"]
    assert answer.as_numpy("label").tolist() == ["spam", "ham"]
    assert answer.as_numpy("scores").tolist() == [[0.75, 0.25], [0.75, 0.25]]


@pytest.mark.parametrize("name", ["emb", "team/emb"])
def test_a_model_of_another_namespace(client: Any, name: str) -> None:
    answer = client.infer(name, texts("x"), outputs=wanted("embedding"))
    assert answer.as_numpy("embedding").tolist() == [vector_of("x").tolist()]


@pytest.mark.parametrize(
    ("model", "parameters", "status", "told"),
    [
        ("nothing", {}, "404", "There is no model 'nothing'."),
        ("emb", {"labels": 5}, "400", "parameters.labels: got 5, allowed a list of texts"),
        ("emb", {"task": "chat"}, "400", 'allowed "classification", "embeddings"'),
    ],
)
def test_refusals_are_read_by_the_client(
    client: Any, model: str, parameters: dict[str, Any], status: str, told: str
) -> None:
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer(model, texts("x"), outputs=wanted("embedding"), parameters=parameters)
    assert caught.value.status() == status
    assert told in caught.value.message()
    assert "decoding" not in caught.value.message()


def test_binary_tensors_are_refused_and_not_misread(client: Any) -> None:
    tensor = triton.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array(["x"], dtype=object), binary_data=True)
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer("emb", [tensor], outputs=wanted("embedding"))
    assert caught.value.status() == "400"
