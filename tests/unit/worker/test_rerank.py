"""Rerank: scores equal the cross-encoder's own, and what is meant comes first."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from sluice_worker.loaded import LoadedModel
from sluice_worker.loader import load
from sluice_worker.models.errors import ModelRejected
from tests.support import models, trained
from tests.support.model_calls import ask, asking

ROUTE = "/v1/rerank"
DOCUMENTS = models.random_texts(9, seed=6, longest=30)
QUERY = "who was charged twice?"


@pytest.fixture(scope="module", params=["bert", "roberta", "deberta-v2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reranker")
    return models.build_tiny(folder, request.param, labels=("relevant",))


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(f"file://{folder}", device="cpu")


@torch.inference_mode()
def their_logits(folder: Path, pairs: list[tuple[str, str]]) -> list[float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    kind = transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(folder).eval()
    return [float(model(**tokenizer(*pair, return_tensors="pt")).logits[0, 0]) for pair in pairs]


def test_scores_equal_the_cross_encoder(folder: Path, model: LoadedModel) -> None:
    expected = their_logits(folder, [(QUERY, document) for document in DOCUMENTS])
    body = {"query": QUERY, "documents": DOCUMENTS}
    for raw in (False, True):
        results = ask(model, ROUTE, {**body, "raw_scores": raw})["results"]
        scores = [result["relevance_score"] for result in results]
        assert scores == sorted(scores, reverse=True)
        assert sorted(result["index"] for result in results) == list(range(len(DOCUMENTS)))
        for result in results:
            logit = torch.tensor(expected[result["index"]])
            right = float(logit if raw else torch.sigmoid(logit))
            assert result["relevance_score"] == pytest.approx(right, abs=1e-5)


def test_a_long_document_counts_as_its_best_part(folder: Path, model: LoadedModel) -> None:
    """The windows are found from outside: each is a pair that fits by itself."""
    document = " ".join(DOCUMENTS * 3)
    [result] = ask(model, ROUTE, {"query": QUERY, "documents": [document], "raw_scores": True})[
        "results"
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    query = tokenizer(QUERY, add_special_tokens=False)["input_ids"]
    whole = tokenizer(document, add_special_tokens=False)["input_ids"]
    room = model.max_input_tokens - len(query) - tokenizer.num_special_tokens_to_add(pair=True)
    count = -(-(len(whole) - room // 4) // (room - room // 4))
    starts = [index * (len(whole) - room) // (count - 1) for index in range(count)]
    parts = [tokenizer.decode(whole[start : start + room]) for start in starts]
    assert result["chunks"] == count > 2
    best = max(their_logits(folder, [(QUERY, part) for part in parts]))
    assert result["relevance_score"] == pytest.approx(best, abs=1e-4)


@pytest.fixture(scope="module")
def learnt(trained_models: trained.Models) -> LoadedModel:
    return load(f"file://{trained_models.reranker}", device="cpu")


def test_what_is_meant_comes_first(learnt: LoadedModel) -> None:
    assert trained.ranking_score(asking(learnt)) >= 0.85


def test_the_control_with_shuffled_targets_fails_that_bar(shuffled_models: trained.Models) -> None:
    control = shuffled_models.reranker
    assert trained.ranking_score(asking(load(f"file://{control}", device="cpu"))) < 0.7


def test_results_are_cut_and_documents_returned_on_demand(learnt: LoadedModel) -> None:
    documents = [{"text": "my parcel is late", "id": 3}, "the app crashes", "the invoice is unpaid"]
    body = {"query": "where is the package", "documents": documents}
    whole = ask(learnt, ROUTE, body)
    cut = ask(learnt, ROUTE, {**body, "top_n": 1, "return_documents": True})
    [first] = cut["results"]
    assert (first["index"], first["document"]) == (0, {"text": "my parcel is late"})
    assert first["relevance_score"] == whole["results"][0]["relevance_score"]
    assert cut["usage"] == whole["usage"], "every document was read"


def test_what_was_loaded(learnt: LoadedModel) -> None:
    assert list(learnt.tasks) == [Task.RERANK, Task.CLASSIFICATION]
    assert learnt.engine.name == "packed"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": "who " * 100}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["a", ""]}, "documents[1]"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a", 3]}, "documents[1]"),
        ({"documents": ["a", "x" * 400_000]}, "documents[1]"),
        ({"top_n": 0}, "top_n"),
        ({"rank_fields": ["a"]}, "rank_fields"),
        ({"documents": ["a"] * 2049}, "documents"),
    ],
)
def test_errors_name_the_field(learnt: LoadedModel, change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        ask(learnt, ROUTE, {"query": "q", "documents": ["a", "b"]} | change)
    assert caught.value.param == param


def test_several_labels_make_no_reranker(tmp_path: Path) -> None:
    folder = models.build_tiny_bert(tmp_path, labels=("a", "b"))
    with pytest.raises(ModelRejected, match=r"rerank takes a cross-encoder .*id2label"):
        load(f"file://{folder}", task=Task.RERANK, device="cpu")
