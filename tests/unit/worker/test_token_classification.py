"""Token classification: a tagger that learnt finds entities, and every number is the pipeline's."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from sluice_worker.examples import token_classification
from sluice_worker.loaded import LoadedModel
from sluice_worker.loader import load
from sluice_worker.models.errors import ModelRejected
from tests.support import models, trained
from tests.support.model_calls import ask, asking

ROUTE = "/v1/tokens/classify"
LABELS = ("B-PER", "I-PER", "O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "DATE")
AGGREGATIONS = ("none", "simple", "first", "average", "max")
ODD = [
    "the parcel",
    " the parcel went to Bern .",
    "Grüße, «the delivery» \U0001f680 is late!",
    "ÀÉÎ my profile was hacked-again\tand\nagain",
    "x" * 70,
    "e\u0301cole, Mari\u0301a \ufb01ne \u00bd \uff21\uff22",
    "日本の東京 and 서울, مرحبا नमस्ते",
    "👩\u200d👩\u200d👧 ok 🇩🇪🇫🇷 don't—stop…now!",
]
SENTENCES = [sentence.text for sentence in token_classification.data()[1]]
TEXTS = [*models.random_texts(12, seed=4, longest=20), *ODD]


def entities(model: LoadedModel, texts: Any, **parameters: Any) -> list[list[dict[str, Any]]]:
    answer = ask(model, ROUTE, {"input": texts, "parameters": parameters})
    return [entry["entities"] for entry in answer["data"]]


# equal to the pipeline ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bert", "roberta", "byte-level", "pieces", "deberta-v2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose answers differ from token to token.

    Which seed gives one is tried out: torch draws other numbers on other processors, and training
    a tokenizer breaks ties in another order each time.
    """
    own = {"byte-level": models.save_byte_tokenizer, "pieces": models.save_piece_tokenizer}
    architecture = "roberta" if request.param in own else request.param
    for seed in range(40):
        folder = tmp_path_factory.mktemp("tagger")
        models.build_tiny(folder, architecture, head="token", labels=LABELS, spread=0.4, seed=seed)
        if request.param in own:
            own[request.param](folder)
        if differ(entities(load(f"file://{folder}", device="cpu"), TEXTS, aggregation="max")):
            return folder
    raise AssertionError("no seed gave a model whose answers differ")


def differ(found: list[list[dict[str, Any]]]) -> bool:
    """Whether there is enough to compare: more groups than texts, of several labels."""
    labels = [entity["label"] for text in found for entity in text if entity["label"] != "LOC"]
    return len(labels) > 2 * len(found) and len(set(labels)) > 1


@pytest.fixture(scope="module")
def tagger(folder: Path) -> LoadedModel:
    return load(f"file://{folder}", device="cpu")


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_entities_equal_the_pipeline(folder: Path, tagger: LoadedModel, aggregation: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = transformers.pipeline("token-classification", model=str(folder), device="cpu")
        expected = [
            pipeline(text, aggregation_strategy=aggregation, ignore_labels=["LOC"])
            for text in TEXTS
        ]
    found = entities(tagger, TEXTS, aggregation=aggregation, ignore_labels=["LOC"])
    assert sum(map(len, found)) >= len(TEXTS), "there must be something to compare"
    for text, ours, theirs in zip(TEXTS, found, expected, strict=True):
        key = "entity" if aggregation == "none" else "entity_group"
        assert [(e["label"], e["start"], e["end"]) for e in ours] == [
            (e[key], e["start"], e["end"]) for e in theirs
        ], text
        for one, other in zip(ours, theirs, strict=True):
            assert one["score"] == pytest.approx(float(other["score"]), abs=1e-5)
            assert one["text"] == text[one["start"] : one["end"]]


def test_neighbours_change_nothing(tagger: LoadedModel) -> None:
    together = entities(tagger, TEXTS, ignore_labels=[])
    for text, mixed in zip(TEXTS, together, strict=True):
        [alone] = entities(tagger, text, ignore_labels=[])
        assert [(e["label"], e["start"], e["end"]) for e in alone] == [
            (e["label"], e["start"], e["end"]) for e in mixed
        ]


def test_every_label_can_be_asked_for(tagger: LoadedModel) -> None:
    [answer] = entities(tagger, TEXTS[0], aggregation="none", ignore_labels=[])
    assert "".join(TEXTS[0].split()) == "".join("".join(e["text"].split()) for e in answer)


# what it means -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt(trained_models: trained.Models) -> LoadedModel:
    return load(f"file://{trained_models.tagger}", device="cpu")


def test_entities_of_held_out_sentences_are_found(learnt: LoadedModel) -> None:
    assert trained.tagging_score(asking(learnt)) >= 0.95


def test_the_control_with_shuffled_labels_fails_that_bar(shuffled_models: trained.Models) -> None:
    control = shuffled_models.tagger
    assert trained.tagging_score(asking(load(f"file://{control}", device="cpu"))) < 0.5


def test_what_was_loaded(learnt: LoadedModel) -> None:
    assert list(learnt.tasks) == [Task.TOKEN_CLASSIFICATION]
    assert learnt.labels == token_classification.LABELS
    assert learnt.engine.name == "packed"


# long texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [None, 0, 40])
def test_a_long_text_is_read_in_windows(learnt: LoadedModel, stride: int | None) -> None:
    """Entities that a window's edge would cut are found whole, at their exact place, once."""
    sentences = SENTENCES[:40]
    text = " ".join(sentences)
    body = {"input": text, "parameters": {"stride": stride}}
    [answer] = ask(learnt, ROUTE, body)["data"]
    assert answer["chunks"] > 2
    found = {(e["label"], e["start"], e["end"]) for e in answer["entities"]}
    assert len(found) == len(answer["entities"])
    expected, start = set(), 0
    for sentence in sentences:
        [alone] = entities(learnt, sentence)
        expected |= {(e["label"], e["start"] + start, e["end"] + start) for e in alone}
        start += len(sentence) + 1
    share = len(found & expected) / len(expected)
    assert share >= (0.97 if stride != 0 else 0.9)
    assert all(e["text"] == text[e["start"] : e["end"]] for e in answer["entities"])


def test_windows_decide_where_they_know_most(learnt: LoadedModel) -> None:
    """Beyond the first and last window's edges nothing is lost: scores near equal the pipeline's
    own on the part that one window sees whole."""
    sentences = SENTENCES[:30]
    [answer] = entities(learnt, " ".join(sentences), aggregation="none")
    [beginning] = entities(learnt, " ".join(sentences[:8]), aggregation="none")
    same = [(e["start"], e["label"]) for e in answer if e["end"] < 100]
    assert same == [(e["start"], e["label"]) for e in beginning if e["end"] < 100]


def test_far_too_long_is_refused(learnt: LoadedModel) -> None:
    for text in ("Anna " * 20_000, "x" * 400_000):
        with pytest.raises(ApiError) as caught:
            entities(learnt, ["Anna", text])
        assert (caught.value.code, caught.value.param) == ("input_too_long", "input[1]")


# what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "param", "message"),
    [
        ({"ignore_labels": ["PRE"]}, "parameters.ignore_labels", '"PRE"'),
        ({"stride": 5000}, "parameters.stride", "less than the"),
        ({"stride": -1}, "parameters.stride", "-1"),
        ({"aggregation": "mean"}, "parameters.aggregation", '"average"'),
        ({"truncate": True}, "parameters.truncate", "not known"),
    ],
)
def test_errors_name_the_parameter(
    learnt: LoadedModel, parameters: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        entities(learnt, "Anna", **parameters)
    assert caught.value.param == param


@pytest.mark.parametrize("value", ["", [], ["a", ""], 3, [3], None])
def test_empty_and_wrong_inputs_are_refused(learnt: LoadedModel, value: Any) -> None:
    with pytest.raises(ApiError) as caught:
        entities(learnt, value)
    assert (caught.value.param or "").startswith("input")


def test_blanks_have_no_entities(learnt: LoadedModel) -> None:
    assert entities(learnt, [" ", "Anna lives in Bern"])[0] == []


def test_a_tagger_cannot_be_made_a_classifier(trained_models: trained.Models) -> None:
    with pytest.raises(ModelRejected, match=r"token-classification.*ForSequenceClassification"):
        load(f"file://{trained_models.tagger}", task=Task.CLASSIFICATION, device="cpu")


def test_scores_are_probabilities(learnt: LoadedModel) -> None:
    for found in entities(learnt, SENTENCES[:20]):
        assert all(0 < e["score"] <= 1 for e in found)
        assert np.all(np.diff([e["start"] for e in found]) > 0)
