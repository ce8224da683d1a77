"""Classification: a classifier that learnt is right, and every number equals transformers'."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import transformers

from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from sluice_worker.loaded import LoadedModel
from sluice_worker.loader import load
from sluice_worker.models.errors import ModelRejected
from tests.support import models
from tests.support.model_calls import ask
from tests.support.trained import Models

ROUTE = "/v1/classify"


@pytest.fixture(scope="module")
def folder(trained_models: Models) -> Path:
    return trained_models.classifier


@pytest.fixture(scope="module")
def classifier(folder: Path) -> LoadedModel:
    return load(f"file://{folder}", device="cpu")


def accuracy(model: LoadedModel) -> float:
    _, held_out = models.tickets()
    answers = ask(model, ROUTE, {"input": [text for text, _ in held_out]})["data"]
    right = [a["label"] == label for a, (_, label) in zip(answers, held_out, strict=True)]
    return float(np.mean(right))


def test_held_out_tickets_reach_their_department(classifier: LoadedModel) -> None:
    assert accuracy(classifier) >= 0.95


def test_the_control_with_shuffled_labels_fails_that_bar(shuffled_models: Models) -> None:
    control = shuffled_models.classifier
    assert accuracy(load(f"file://{control}", device="cpu")) < 0.6


def test_what_was_loaded(classifier: LoadedModel) -> None:
    assert list(classifier.tasks) == [Task.CLASSIFICATION]
    assert classifier.labels == models.DEPARTMENTS
    assert classifier.dimensions is None


@pytest.mark.parametrize(
    "problem_type",
    ["single_label_classification", "multi_label_classification", "regression"],
)
def test_scores_equal_the_pipeline(tmp_path: Path, problem_type: str) -> None:
    labels = ("red", "green", "blue")
    folder = models.build_tiny(tmp_path, "bert", labels=labels, problem_type=problem_type)
    texts = models.random_texts(12, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = transformers.pipeline("text-classification", model=str(folder), device="cpu")
        expected = [pipeline(text, top_k=None) for text in texts]
    answers = ask(load(f"file://{folder}", device="cpu"), ROUTE, {"input": texts})["data"]
    for answer, theirs in zip(answers, expected, strict=True):
        assert [entry["label"] for entry in answer["labels"]] == [e["label"] for e in theirs]
        for entry, other in zip(answer["labels"], theirs, strict=True):
            assert entry["score"] == pytest.approx(other["score"], abs=1e-5)
            assert labels[entry["id"]] == entry["label"]
        assert answer["label"] == answer["labels"][0]["label"]
        assert answer.get("multi_label", False) == (problem_type == "multi_label_classification")


def test_top_k_shortens_the_list(classifier: LoadedModel) -> None:
    body = {"input": "the invoice is too high", "parameters": {"top_k": 2}}
    [answer] = ask(classifier, ROUTE, body)["data"]
    assert len(answer["labels"]) == 2
    assert answer["labels"][0]["score"] >= answer["labels"][1]["score"]


def test_the_small_apis_speak_the_models_order(classifier: LoadedModel) -> None:
    text = "my parcel has not arrived"
    shipping = models.DEPARTMENTS.index("shipping")
    prediction = ask(classifier, "/classify", {"text": text})["prediction"]
    assert prediction == [int(index == shipping) for index in range(4)]
    answer = ask(classifier, "/predict", {"text": [text, "the app crashes"]})
    assert answer["predictions"] == [shipping, models.DEPARTMENTS.index("technical")]


def test_one_label_is_a_probability_by_itself(tmp_path: Path) -> None:
    model = load(f"file://{models.build_tiny_bert(tmp_path, labels=('relevant',))}", device="cpu")
    [answer] = ask(model, ROUTE, {"input": "the app"})["data"]
    assert 0 < answer["score"] < 1


def test_too_long_is_an_error_unless_asked(classifier: LoadedModel) -> None:
    long = "the app crashes " * 200
    with pytest.raises(ApiError) as caught:
        ask(classifier, ROUTE, {"input": long})
    assert caught.value.code == "input_too_long"
    [answer] = ask(classifier, ROUTE, {"input": long, "parameters": {"truncate": True}})["data"]
    assert answer["truncated"] is True
    assert answer["label"] == "technical"


def test_a_task_the_model_cannot_do_is_refused_at_load(folder: Path) -> None:
    with pytest.raises(ModelRejected, match="offers classification"):
        load(f"file://{folder}", task=Task.EMBEDDINGS, device="cpu")
    assert load(f"file://{folder}", task=Task.CLASSIFICATION, device="cpu").labels


def test_labels_and_head_must_agree(tmp_path: Path) -> None:
    folder = models.build_tiny_bert(tmp_path, labels=("a", "b"))
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"1": "b"', '"1": "b", "2": "c"'))
    with pytest.raises(ModelRejected, match=r"2 outputs, config\.json names 3"):
        load(f"file://{folder}", device="cpu")
