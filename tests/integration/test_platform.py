"""The whole platform on real parts: files in, right answers out, by every route.

One ``sluice up`` with a real Redis serves a ticket classifier trained on the spot, the same trained
on shuffled labels (the control that must fail), a model of natural language inference trained on
the spot, and the real MiniLM; all but the control by the example manifests of their pages.
"""

import base64
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from sluice_api.tasks import Task
from tests.support import models
from tests.support.bad_input import Case, cases
from tests.support.http_calls import Reply
from tests.support.http_calls import post as post_to
from tests.support.minilm import embeddings
from tests.support.redis_server import running_redis
from tests.support.task_pages import RUN_BY, TaskPage
from tests.support.tensor_calls import check_metadata, infer, tensor
from tests.support.trained import Models, inferring_score
from tests.support.up_process import UpProcess, manifest, running_up, write

LEARNT, HELD_OUT = models.tickets()
TEXTS = [text for text, _ in HELD_OUT]
DEPARTMENTS = [department for _, department in HELD_OUT]


@pytest.fixture(scope="module")
def up(
    trained_models: Models, shuffled_models: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[UpProcess]:
    folder = tmp_path_factory.mktemp("platform")
    one = {"minReplicas": 1, "maxReplicas": 1}
    control = {"uri": f"file://{shuffled_models.classifier}"}
    write(
        folder / "services.yaml",
        TaskPage("classification").service(trained_models.classifier),
        TaskPage("zero-shot").service(trained_models.inferrer),
        TaskPage("embeddings").service(),
        manifest("shuffled", model=control, scaling=one),
    )
    with running_redis() as redis:
        options = ("--redis-url", redis.unix_url)
        with running_up(folder / "state", folder / "services.yaml", *options) as process:
            process.until_ready()
            process.until(lambda: len(process.ready_workers()) == 4, "four workers", 120)
            yield process


def post(up: UpProcess, path: str, body: Any, **headers: str) -> Reply:
    return post_to(up.url + path, body, **headers)


def accuracy(predicted: list[str]) -> float:
    return float(np.mean([a == b for a, b in zip(predicted, DEPARTMENTS, strict=True)]))


def test_held_out_tickets_are_classified_right(up: UpProcess) -> None:
    answer = post(up, "/v1/classify", {"model": "tickets", "input": TEXTS})
    assert accuracy([element["label"] for element in answer["data"]]) >= 0.95
    assert [element["index"] for element in answer["data"]] == list(range(len(TEXTS)))


def test_the_control_with_shuffled_labels_is_not(up: UpProcess) -> None:
    answer = post(up, "/v1/classify", {"model": "shuffled", "input": TEXTS})
    assert accuracy([element["label"] for element in answer["data"]]) < 0.6


def test_every_route_says_the_same(up: UpProcess) -> None:
    texts = TEXTS[:6]
    data = post(up, "/v1/classify", {"model": "tickets", "input": texts})["data"]
    predicted = post(up, "/predict", {"model": "tickets", "text": texts})
    assert predicted["labels"] == [element["label"] for element in data]
    assert predicted["predictions"] == [element["labels"][0]["id"] for element in data]
    tensor = {"name": "text", "shape": [6], "datatype": "BYTES", "data": texts}
    inferred = post(up, "/v2/models/tickets/infer", {"inputs": [tensor], "id": "42"})
    outputs = {output["name"]: output for output in inferred["outputs"]}
    assert outputs["label"]["data"] == predicted["labels"]
    assert outputs["score"]["data"] == predicted["scores"]
    one = post(up, "/classify", {"model": "tickets", "text": texts[0]})
    assert one["label"] == predicted["labels"][0]
    assert one["prediction"].index(1) == predicted["predictions"][0]
    # Four routes, one set of answers: all but the first found them in the cache.
    for later in (predicted, inferred, one):
        assert "hit" in later.headers["cache-status"]


@pytest.mark.parametrize("page", RUN_BY["test_platform"])
def test_the_page_of_the_task_shows_what_happens(up: UpProcess, page: str) -> None:
    # The weights of embeddings are given, those of the others are trained on this machine.
    TaskPage(page).check(up.url, near=1e-3 if page == "embeddings" else 0.2)


def test_minilm_equals_transformers(up: UpProcess) -> None:
    texts = ["a cat", "the parcel never arrived, where is it?", "x " * 200]
    answer = post(
        up, "/v1/embeddings", {"model": "minilm", "input": texts, "encoding_format": "base64"}
    )
    ours = [array("f", base64.b64decode(element["embedding"])) for element in answer["data"]]
    for expected, mine in zip(embeddings(texts), ours, strict=True):
        assert np.abs(np.array(mine) - expected).max() <= 1e-5


def test_the_openai_client_reads_it(up: UpProcess) -> None:
    with openai.OpenAI(base_url=f"{up.url}/v1", api_key="none") as client:
        vectors = client.embeddings.create(
            model="minilm", input=["where is my parcel?", "my package is late", "a ripe banana"]
        )
        parcel, package, banana = (np.array(entry.embedding) for entry in vectors.data)
        assert parcel @ package > parcel @ banana + 0.2
        ids = client.embeddings.create(model="minilm", input=[[101, 2073, 102]], dimensions=64)
        assert len(ids.data[0].embedding) == 64
        assert {model.id for model in client.models.list()} == {
            "tickets", "shuffled", "zero-shot", "minilm"
        }  # fmt: skip
        with pytest.raises(openai.NotFoundError, match="nobody"):
            client.embeddings.create(model="nobody", input="x")
        with pytest.raises(openai.BadRequestError, match="does not do embeddings"):
            client.embeddings.create(model="tickets", input="x")


def test_zero_shot_knows_topics_by_any_of_their_names(up: UpProcess) -> None:
    def asked(path: str, body: dict[str, Any]) -> Reply:
        return post(up, path, {"model": "zero-shot", **body})

    assert inferring_score(asked) >= 0.85
    assert inferring_score(asked, multi_label=True) >= 0.8


def test_zero_shot_by_descriptions(up: UpProcess) -> None:
    described = {
        "billing": "payments, charges, invoices and refunds",
        "delivery": "shipping, parcels and tracking",
    }
    text = "I was charged twice this month and want my money back."
    body = {"model": "minilm", "input": text, "parameters": {"labels": described}}
    [entry] = post(up, "/v1/classify", body)["data"]
    assert entry["label"] == "billing"
    assert sum(each["score"] for each in entry["labels"]) == pytest.approx(1, abs=1e-6)


def test_tensors_hold_the_same_answers(up: UpProcess) -> None:
    text = "my parcel has not arrived"
    vector = post(up, "/v1/embeddings", {"model": "minilm", "input": text})["data"][0]["embedding"]
    assert infer(up.url, "minilm", tensor("text", text))["embedding"] == pytest.approx(vector)
    labels = ["money", "parcels", "bugs"]
    found = infer(up.url, "zero-shot", tensor("text", text, "the app stops"), labels=labels)
    assert found["label"] == ["parcels", "bugs"]
    assert sorted(found["labels"][:3]) == sorted(labels)
    found = infer(up.url, "tickets", tensor("text", text), top_k=1)
    assert (found["label"], found["labels"]) == (["shipping"], ["shipping"])


def test_tensors_are_described(up: UpProcess) -> None:
    check_metadata(up.url, "tickets", "classification")
    check_metadata(up.url, "zero-shot", "zero-shot", "classification")
    check_metadata(up.url, "minilm", "embeddings", "zero-shot")


def test_only_missing_inputs_of_a_list_are_computed(up: UpProcess) -> None:
    known = post(up, "/v1/classify", {"model": "tickets", "input": ["first text", "second"]})
    more = post(up, "/v1/classify", {"model": "tickets", "input": ["new one", "second", "third"]})
    assert more["data"][1]["labels"] == known["data"][1]["labels"]
    assert 'detail="1 of 3"' in more.headers["cache-status"]
    again = post(up, "/v1/classify", {"model": "tickets", "input": ["third", "first text"]})
    assert again.headers["cache-status"].startswith("Sluice; hit")
    assert again["usage"]["total_tokens"] == sum(entry["tokens"] for entry in again["data"])


@pytest.mark.parametrize(
    "case",
    cases(
        {Task.EMBEDDINGS: "minilm", Task.CLASSIFICATION: "tickets", Task.ZERO_SHOT: "zero-shot"},
    ),
)
def test_bad_input_is_refused_by_name(up: UpProcess, case: Case) -> None:
    case.check(post(up, case.path, case.body))
