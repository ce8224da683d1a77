"""Every task of an encoder's head, from its example manifest to the right answer by the gateway.

One ``sluice up`` serves the example models of ``sluice example-model``; the pages in ``docs/tasks``
are run against it.
"""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sluice_api.tasks import Task
from sluice_worker.examples.__main__ import EXAMPLES
from sluice_worker.loader import load
from tests.support import model_calls, trained
from tests.support.bad_input import Case, cases
from tests.support.http_calls import Reply, post
from tests.support.task_pages import ROOT, RUN_BY, TaskPage, answered, put, request_of
from tests.support.tensor_calls import check_metadata, infer, tensor
from tests.support.up_process import UpProcess, running_up, write

TASKS = {
    "token-classification": "tagger",
    "question-answering": "reader",
    "fill-mask": "masked",
    "rerank": "reranker",
    "relation-extraction": "relator",
}
"""Task → the trained model that stands in the place of the manifest's folder."""

ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "ner": ("/v1/tokens/classify", {"input": "Tom lives in Bern ."}),
    "reader": ("/v1/answer", {"input": {"question": "Who was it ?", "context": "It is Tom ."}}),
    "masked": ("/v1/fill-mask", {"input": "[MASK] is the capital of peru ."}),
    "relations": (
        "/v1/relations",
        {"input": {"text": "tom founded acme .", "entities": [{"start": 0, "end": 3}]}},
    ),
    "reranker": ("/v1/rerank", {"query": "money problems", "documents": ["the price is unpaid"]}),
}
"""Service → a route of its task, and a request to it."""

EXPECTED: dict[str, dict[str, Any]] = {
    "token-classification": {"input": "Maria Lopez has left Bern ."},
    "question-answering": {"input": {"question": "Who was it ?", "context": "It was Ivo ."}},
    "fill-mask": {"input": "the capital of france is [MASK] ."},
    "rerank": {"query": "crashes and bugs", "documents": ["the screen does not load"]},
    "relation-extraction": {
        "input": {
            "text": "karl founded tectum .",
            "entities": [{"start": 0, "end": 4}, {"start": 13, "end": 19}],
        }
    },
}
"""Task → a request that is to be answered before anybody asks."""


@pytest.fixture(scope="module")
def up(
    trained_models: trained.Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[UpProcess]:
    folder = tmp_path_factory.mktemp("encoders")
    manifests = []
    for task, model in TASKS.items():
        manifest = TaskPage(task).service(getattr(trained_models, model))
        expected = {"task": task, "body": EXPECTED[task]}
        manifest["spec"]["cache"] = {"sharing": "service", "precompute": [expected]}
        manifests.append(manifest)
    write(folder / "services.yaml", *manifests)
    with running_up(folder / "state", folder / "services.yaml") as process:
        process.until_ready(300)  # Five workers start side by side, on however few processors.
        process.until(lambda: len(process.ready_workers()) == len(TASKS), "all workers", 300)
        yield process


def ask(up: UpProcess, path: str, body: Any, **headers: str) -> Reply:
    return post(up.url + path, body, **headers)


def test_every_service_does_what_it_learnt(up: UpProcess) -> None:
    def of(model: str) -> trained.Post:
        return lambda path, body: ask(up, path, {"model": model, **body})

    assert trained.tagging_score(of("ner")) >= 0.95
    assert trained.reading_score(of("reader")) >= 0.85
    assert trained.filling_score(of("masked")) >= 0.9
    assert trained.ranking_score(of("reranker")) >= 0.85
    assert trained.relating_score(of("relations")) >= 0.9
    assert trained.relating_found_score(of("relations"), "ner") >= 0.9


def test_models_name_their_tasks(up: UpProcess) -> None:
    with urllib.request.urlopen(up.url + "/v1/models", timeout=60) as response:
        listed = {entry["id"]: entry["tasks"] for entry in json.load(response)["data"]}
    assert listed["ner"] == ["token-classification"]
    assert listed["reader"] == ["question-answering"]
    assert listed["masked"] == ["fill-mask"]
    assert listed["reranker"] == ["rerank", "classification"]
    assert listed["relations"] == ["relation-extraction", "classification"]


def test_without_a_name_the_task_tells_the_service(up: UpProcess) -> None:
    for path, body in ASKED.values():
        assert ask(up, path, body).status == 200


# the cache ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_what_is_expected_is_answered_before_anybody_asks(up: UpProcess, task: str) -> None:
    model = TaskPage(task).answer["model"]
    path, _ = ASKED[model]

    def asked() -> Reply:
        return ask(up, path, {"model": model, **EXPECTED[task]}, cache_control="only-if-cached")

    up.until(lambda: asked().status == 200, f"the answer of {model}", 60)
    assert asked().headers["cache-status"].startswith("Sluice; hit")


@pytest.mark.parametrize(("model", "asked"), ASKED.items(), ids=list(ASKED))
def test_a_repeated_question_is_answered_from_the_cache(
    up: UpProcess, model: str, asked: tuple[str, dict[str, Any]]
) -> None:
    path, body = asked
    first = ask(up, path, {"model": model, **body}, cache_control="no-cache")
    second = ask(up, path, {"model": model, **body})
    assert first.status == 200, first
    assert "hit" in second.headers["cache-status"]
    assert second == first


def test_of_a_list_only_what_is_new_is_computed(up: UpProcess) -> None:
    texts = [f"{name} flew from Oslo to Bern ." for name in ("Tom", "Nina", "Ivo")]
    path, model = "/v1/tokens/classify", "ner"
    ask(up, path, {"model": model, "input": texts[:2]})
    mixed = ask(up, path, {"model": model, "input": [texts[2], texts[1]]})
    assert mixed.headers["cache-status"].startswith("Sluice; fwd=partial")
    assert [entry["entities"][0]["text"] for entry in mixed["data"]] == ["Ivo", "Nina"]
    error = ask(up, path, {"model": model, "input": [texts[0], "Tom " * 40_000]})
    assert (error.status, error["error"]["param"]) == (400, "input[1]")


def test_every_question_about_a_query_shares_its_scores(up: UpProcess) -> None:
    documents = ["the server is very slow", "the box got lost", "the refund is too high"]
    body = {"model": "reranker", "query": "crashes and bugs"}
    whole = ask(up, "/v1/rerank", {**body, "documents": documents})
    assert whole["results"][0]["index"] == 0
    best = ask(up, "/v1/rerank", {**body, "documents": documents[::-1], "top_n": 1})
    assert "hit" in best.headers["cache-status"]
    assert best["results"][0]["index"] == 2
    assert best["usage"] == whole["usage"]
    new = "the server crashes again and again"
    more = ask(up, "/v1/rerank", {**body, "documents": [new, *documents], "return_documents": True})
    assert 'detail="3 of 4"' in more.headers["cache-status"]
    assert {result["document"]["text"] for result in more["results"]} == {new, *documents}
    other = ask(up, "/v1/rerank", {**body, "query": "money problems", "documents": documents})
    assert "hit" not in other.headers["cache-status"]


def test_a_long_text_comes_back_whole_through_the_gateway(up: UpProcess) -> None:
    text = " ".join(["Nobody has seen Maria Lopez since Monday ."] * 60)
    reply = ask(up, "/v1/tokens/classify", {"model": "ner", "input": text})
    [entry] = reply["data"]
    assert entry["chunks"] > 3
    assert [entity["text"] for entity in entry["entities"]] == ["Maria Lopez"] * 60
    assert all(text[e["start"] : e["end"]] == e["text"] for e in entry["entities"])


# the tensor protocol -----------------------------------------------------------------------------


def test_tensors_hold_the_same_answers(up: UpProcess) -> None:
    found = infer(up.url, "ner", tensor("text", "It rains .", "Nina lives in Lima ."))
    assert (found["input"], found["text"]) == ([1, 1], ["Nina", "Lima"])
    question, context = "Who was it ?", "The winner is Nina ."
    found = infer(up.url, "reader", tensor("question", question), tensor("context", context))
    assert (found["text"], found["start"], found["end"]) == (["Nina"], [14], [18])
    found = infer(up.url, "masked", tensor("text", "the capital of peru is [MASK] ."), top_k=2)
    assert found["text"][0] == "lima"
    documents = ["the app crashes", "the courier is late"]
    found = infer(
        up.url, "reranker", tensor("query", "where is the package"), tensor("text", *documents)
    )
    assert found["relevance_score"][1] > found["relevance_score"][0]


def test_tensors_are_described(up: UpProcess) -> None:
    check_metadata(up.url, "ner", "token-classification")
    check_metadata(up.url, "reader", "question-answering")
    check_metadata(up.url, "masked", "fill-mask")
    check_metadata(up.url, "reranker", "rerank", "classification")
    check_metadata(up.url, "relations", "classification")


# what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    cases(
        {
            Task.TOKEN_CLASSIFICATION: "ner",
            Task.QUESTION_ANSWERING: "reader",
            Task.FILL_MASK: "masked",
            Task.RELATION_EXTRACTION: "relations",
            Task.RERANK: "reranker",
        }
    ),
)
def test_bad_input_is_refused_by_name(up: UpProcess, case: Case) -> None:
    case.check(ask(up, case.path, case.body))


# pages, manifests, the command -------------------------------------------------------------------


@pytest.mark.parametrize("page", RUN_BY["test_encoder_tasks"])
def test_the_page_of_the_task_shows_what_happens(up: UpProcess, page: str) -> None:
    TaskPage(page).check(up.url)


def test_the_command_makes_a_model_that_a_worker_loads(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "sluice_cli", "example-model"]
    made = subprocess.run(
        [*command, "rerank", str(tmp_path / "model")], capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout == f"{tmp_path / 'model'}: a model for rerank\n"
    assert made.stderr == ""
    model = load(f"file://{tmp_path / 'model'}", device="cpu")
    body = {"query": "where is the package", "documents": ["the app crashes", "the box got lost"]}
    reply = model_calls.ask(model, "/v1/rerank", body)
    assert reply["results"][0]["index"] == 1
    everything = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, timeout=60, env={"COLUMNS": "400"}
    )
    assert all(model in everything.stdout for model in EXAMPLES), everything.stdout
    refused = subprocess.run(
        [*command, "dancing", str(tmp_path / "other")], capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 2
    assert "dancing" in refused.stderr and "rerank" in refused.stderr
    assert not (tmp_path / "other").exists()


# entities from another service, last: the services are others from here on -----------------------


def test_a_service_can_be_told_who_finds_its_entities(
    up: UpProcess, trained_models: trained.Models
) -> None:
    file = up.state.parent / "services.yaml"
    manifests = [*yaml.safe_load_all(file.read_text())]
    for manifest in manifests:
        if manifest["metadata"]["name"] == "relations":
            manifest["spec"]["entitiesFrom"] = "ner"
    workers = up.workers().keys()
    body = {"model": "relations", "input": "Tom was born in Oslo ."}
    assert ask(up, "/v1/relations", body)["error"]["param"] == "input.entities"
    write(file, *manifests)
    up.until(lambda: ask(up, "/v1/relations", body).status == 200, "the new rule")
    [entry] = ask(up, "/v1/relations", body)["data"]
    assert [entity["text"] for entity in entry["entities"]] == ["Tom", "Oslo"]
    assert [r["label"] for r in entry["relations"]] == ["born_in"]
    assert up.workers().keys() == workers  # It is the gateway's to know, so none was replaced.


def test_the_example_of_found_entities_answers_texts(
    up: UpProcess, trained_models: trained.Models
) -> None:
    path = ROOT / "manifests/examples/relations-of-found-entities.yaml"
    entities, births = yaml.safe_load_all(path.read_text())
    put(entities, "/tmp/sluice-token-classification", trained_models.tagger)
    put(births, "/tmp/sluice-relation-extraction", trained_models.relator)
    write(up.state.parent / "services.yaml", entities, births)

    def asked(path: str, body: dict[str, Any]) -> Reply:
        return ask(up, path, {"model": "births", **body})

    probe = {"input": "Ivo comes from Oslo ."}
    up.until(lambda: asked("/v1/relations", probe).status == 200, "both services", 300)
    command = request_of(path)
    assert command is not None
    [entry] = json.loads(answered(command, up.url))["data"]
    assert [entity["text"] for entity in entry["entities"]] == ["Nina", "New Haven"]
    assert [r["label"] for r in entry["relations"]] == ["born_in"]
    assert trained.relating_found_score(asked) >= 0.9
