"""Translation, summaries and written relations through a real gateway and real workers."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sluice_api.tasks import Task
from sluice_worker.examples import summarization, translation
from tests.support import http_calls
from tests.support.bad_input import Case, cases
from tests.support.http_calls import Reply
from tests.support.task_pages import RUN_BY, TaskPage
from tests.support.tensor_calls import check_metadata, infer, tensor
from tests.support.trained import (
    Models,
    summing_up_score,
    translating_score,
    writing_relations_score,
)
from tests.support.up_process import UpProcess, running_up, write
from tests.support.worker_process import WorkerProcess, wait_for
from tests.support.writers import END, build_tiny_writer

MODELS = {
    "translation": "translator",
    "summarization": "summarizer",
    "written-relations": "relation_writer",
}
"""Page → the trained model that stands in the place of its manifest's folder."""

EXPECTED: dict[str, tuple[str, dict[str, Any]]] = {
    "translation": (
        "/v1/translate",
        {"input": "the old king likes the moon .", "parameters": {"target": "ka"}},
    ),
    "summarization": ("/v1/summarize", {"input": "anna went to the market in the morning ."}),
    "written-relations": ("/v1/relations", {"input": "Omar works for Corvus today ."}),
}
"""Page → a request that is to be answered before anybody asks, and its route."""

SENTENCES = translation.data()[1]


@pytest.fixture(scope="module")
def up(trained_models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    folder = tmp_path_factory.mktemp("writing")
    manifests = []
    for name, model in MODELS.items():
        page = TaskPage(name)
        service = page.service(getattr(trained_models, model))
        expected = {"task": page.task, "body": EXPECTED[name][1]}
        service["spec"]["cache"] = {"sharing": "service", "precompute": [expected]}
        manifests.append(service)
    write(folder / "services.yaml", *manifests)
    with running_up(folder / "state", folder / "services.yaml") as process:
        process.until_ready()
        process.until(lambda: len(process.ready_workers()) == 3, "three workers", 120)
        yield process


def post(up: UpProcess, path: str, body: Any, **headers: str) -> Reply:
    return http_calls.post(up.url + path, body, **headers)


def translate(up: UpProcess, text: Any, **parameters: Any) -> Reply:
    parameters = {"target": "bo", **parameters}
    body = {"model": "translator", "input": text, "parameters": parameters}
    return post(up, "/v1/translate", body)


def test_every_service_does_what_it_learnt(up: UpProcess) -> None:
    def asked(model: str) -> Any:
        return lambda path, body: post(up, path, {"model": model, **body})

    for language in translation.TOYS:
        assert translating_score(asked("translator"), language) >= 0.9
    assert summing_up_score(asked("summarizer")) >= 0.9
    assert writing_relations_score(asked("facts")) >= 0.85


def test_models_name_their_tasks(up: UpProcess) -> None:
    with urllib.request.urlopen(up.url + "/v1/models", timeout=60) as response:
        listed = {entry["id"]: entry["tasks"] for entry in json.load(response)["data"]}
    tasks = {name.rpartition("/")[2]: tasks for name, tasks in listed.items()}
    assert tasks["translator"] == ["translation"]
    assert tasks["summarizer"] == ["summarization"]
    assert tasks["facts"] == ["relation-extraction"]


def test_each_text_is_cached_by_itself_and_by_its_language(up: UpProcess) -> None:
    first, second, third = (f"{text} {text}" for text in SENTENCES[:3])
    before = translate(up, [first, second])
    assert before.status == 200
    again = translate(up, second)
    assert "hit" in again.headers["cache-status"]
    assert again["data"][0]["text"] == before["data"][1]["text"]
    mixed = translate(up, [first, third])
    assert mixed["data"][0]["text"] == before["data"][0]["text"]
    assert mixed["usage"]["completion_tokens"] == sum(
        entry["completion_tokens"] for entry in mixed["data"]
    )
    other = translate(up, second, target="ka")
    assert "hit" not in other.headers["cache-status"]
    assert other["data"][0]["text"] != again["data"][0]["text"]


def test_an_answer_in_which_chance_had_a_part_is_never_stored(up: UpProcess) -> None:
    text = SENTENCES[4]
    answers = [translate(up, text, temperature=2.0) for _ in range(6)]
    assert {answer.status for answer in answers} == {200}
    assert all("hit" not in answer.headers["cache-status"] for answer in answers)
    assert len({answer["data"][0]["text"] for answer in answers}) > 1
    certain = [translate(up, text, temperature=0, seed=number) for number in range(2)]
    assert "hit" in certain[1].headers["cache-status"]


@pytest.mark.parametrize(
    "case", cases({Task.TRANSLATION: "translator", Task.SUMMARIZATION: "summarizer"})
)
def test_bad_input_is_refused_by_name(up: UpProcess, case: Case) -> None:
    case.check(post(up, case.path, case.body))


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"input": {"text": "a", "entities": []}}, "invalid_field", "input.entities"),
        (
            {"input": "a", "parameters": {"entities_from": "translator"}},
            "task_not_supported",
            "parameters.entities_from",
        ),
    ],
)
def test_a_model_that_finds_entities_is_given_none(
    up: UpProcess, more: dict[str, Any], code: str, param: str
) -> None:
    answer = post(up, "/v1/relations", {"model": "facts", **more})
    assert (answer["error"]["code"], answer["error"]["param"]) == (code, param)


@pytest.mark.parametrize("page", MODELS)
def test_what_is_expected_is_answered_before_anybody_asks(up: UpProcess, page: str) -> None:
    path, body = EXPECTED[page]

    def asked() -> Reply:
        named = {"model": TaskPage(page).answer["model"], **body}
        return post(up, path, named, cache_control="only-if-cached")

    up.until(lambda: asked().status == 200, f"the answer to {path}", 60)
    assert asked().headers["cache-status"].startswith("Sluice; hit")


def test_tensors_hold_the_same_answers(up: UpProcess) -> None:
    texts = SENTENCES[:2]
    found = infer(up.url, "translator", tensor("text", *texts), target="ka")
    assert found["text"] == [translation.translated(text, "ka") for text in texts]
    assert found["finish_reason"] == ["stop", "stop"]
    letter = summarization.data()[1][0][0]
    summary = post(up, "/v1/summarize", {"model": "summarizer", "input": letter})["data"][0]
    found = infer(up.url, "summarizer", tensor("text", letter))
    assert found["text"] == [summary["text"]]


def test_tensors_are_described(up: UpProcess) -> None:
    check_metadata(up.url, "translator", "translation")
    check_metadata(up.url, "summarizer", "summarization")


@pytest.mark.parametrize("page", RUN_BY["test_writing"])
def test_the_page_of_the_task_shows_what_happens(up: UpProcess, page: str) -> None:
    TaskPage(page).check(up.url)


# one worker by itself -----------------------------------------------------------------------


def never_ending(folder: Path) -> Path:
    """A T5, which has no last position, that never says that it has finished."""
    return build_tiny_writer(folder, "t5", generation={"suppress_tokens": [END]})


async def test_a_caller_who_leaves_ends_the_writing(tmp_path: Path) -> None:
    model = f"file://{never_ending(tmp_path)}"
    patient = ("--max-backlog", "10m", "--timeout", "10m", "--drain-grace", "0s")
    with WorkerProcess(model, *patient, name="t5") as worker:
        worker.wait_ready()

        def body(tokens: int) -> dict[str, Any]:
            return {"input": "please help", "parameters": {"max_tokens": tokens}}

        async with aiohttp.ClientSession() as session:
            url = f"{worker.url}/v1/summarize"
            began = time.monotonic()
            async with session.post(url, json=body(200)) as answer:
                entry = (await answer.json())["data"][0]
            seconds = time.monotonic() - began
            assert (entry["completion_tokens"], entry["finish_reason"]) == (200, "length")
            # Twenty times as much to write, and more to look back at in every step.
            leaving = asyncio.create_task(session.post(url, json=body(4000)))
            await asyncio.to_thread(wait_for, lambda: worker.metric("sluice_worker_running"))
            leaving.cancel()
            began = time.monotonic()
            await asyncio.to_thread(wait_for, lambda: worker.metric("sluice_worker_running") == 0)
            assert time.monotonic() - began < 15 * seconds
            async with session.post(url, json=body(3)) as answer:
                assert answer.status == 200
