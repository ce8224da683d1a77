"""Relations between given entities: equal to the classifier's own word on the marked text."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from sluice_worker.loaded import LoadedModel
from sluice_worker.loader import load
from sluice_worker.models.description import Markers
from sluice_worker.models.errors import ModelRejected
from sluice_worker.tasks.entity_markers import Mention, mark
from sluice_worker.tasks.relations_pairs import says_no_relation
from tests.support import models, trained
from tests.support.model_calls import ask, asking

ROUTE = "/v1/relations"
LABELS = ("founder_of", "no_relation", "works_for", "part_of")
TYPED = {"head": ["@ * {label} * ", " @"], "tail": ["# ^ {label} ^ ", " #"]}
TEXT = "my parcel was lost, and since monday the courier and my profile are not there"
SPANS = [(0, 9), (37, 48), (53, 63)]
ENTITIES = [
    {"start": start, "end": end, "label": label, "text": TEXT[start:end], "score": 0.9}
    for (start, end), label in zip(SPANS, ("thing", "who", "thing"), strict=True)
]


def related(model: LoadedModel, value: Any, **parameters: Any) -> dict[str, Any]:
    answer = ask(model, ROUTE, {"input": value, "parameters": parameters})
    [entry] = answer["data"]
    result: dict[str, Any] = entry
    return result


# marking -----------------------------------------------------------------------------------------

BRACKETS = Markers(("[", "]"), ("<", ">"))


@pytest.mark.parametrize(
    ("head", "tail", "marked"),
    [
        ((0, 1), (2, 3), "[a] <b> c"),
        ((2, 3), (0, 1), "<a> [b] c"),
        ((0, 3), (2, 3), "[a <b>] c"),
        ((0, 1), (0, 3), "<[a] b> c"),
        ((0, 3), (0, 3), "[<a b>] c"),
        ((0, 2), (2, 5), "[a ]<b c>"),
    ],
)
def test_markers_nest_as_their_entities_do(
    head: tuple[int, int], tail: tuple[int, int], marked: str
) -> None:
    found = mark("a b c", Mention(*head, None), Mention(*tail, None), BRACKETS, margin=99)
    assert found.text == marked
    first = min(marked.index("["), marked.index("<"))
    assert (found.start, found.end) == (first, max(marked.index("]"), marked.index(">")) + 1)
    assert found.whole


def test_far_context_is_left_out_between_words() -> None:
    text = "one two three four five six seven"
    start = text.index("four")
    found = mark(
        text, Mention(start, start + 4, None), Mention(start, start + 4, None), BRACKETS, margin=7
    )
    assert found.text == "three [<four>] five"
    assert not found.whole


@pytest.mark.parametrize("label", ["no_relation", "No Relation", "NA", "n/a", "Other", "none"])
def test_words_for_no_relation(label: str) -> None:
    assert says_no_relation(label)
    assert not says_no_relation(f"{label} of these")


# equal to the classifier -------------------------------------------------------------------------


def save(
    folder: Path, *, markers: dict[str, Any] | None = None, problem_type: str | None = None
) -> Path:
    models.build_tiny(folder, "bert", labels=LABELS, problem_type=problem_type)
    if markers is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"entity_markers": markers}))
    return folder


@torch.inference_mode()
def their_logits(folder: Path, texts: list[str]) -> list[torch.Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    kind = transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(folder).eval()
    return [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]


def marked_by_hand(head: int, tail: int) -> str:
    """TEXT with typed markers, written without our code."""
    text = TEXT
    for index in sorted((head, tail), reverse=True):
        start, end = SPANS[index]
        opening, closing = TYPED["head" if index == head else "tail"]
        opening = opening.replace("{label}", ENTITIES[index]["label"])
        text = text[:start] + opening + text[start:end] + closing + text[end:]
    return text


def test_every_pair_equals_the_classifier(tmp_path: Path) -> None:
    folder = save(tmp_path, markers=TYPED)
    model = load(f"file://{folder}", device="cpu")
    assert list(model.tasks) == [Task.RELATION_EXTRACTION, Task.CLASSIFICATION]
    answer = related(model, {"text": TEXT, "entities": ENTITIES})
    assert [(e["label"], e["start"], e["end"], e["text"]) for e in answer["entities"]] == [
        (e["label"], e["start"], e["end"], e["text"]) for e in ENTITIES
    ]
    pairs = list(itertools.permutations(range(3), 2))
    logits = their_logits(folder, [marked_by_hand(*pair) for pair in pairs])
    expected = {}
    for pair, row in zip(pairs, logits, strict=True):
        scores = row.softmax(-1)
        if LABELS[int(scores.argmax())] != "no_relation":
            expected[pair] = (LABELS[int(scores.argmax())], float(scores.max()))
    found = {(r["head"], r["tail"]): (r["label"], r["score"]) for r in answer["relations"]}
    assert found.keys() == expected.keys()
    for pair, (label, score) in found.items():
        assert label == expected[pair][0]
        assert score == pytest.approx(expected[pair][1], abs=1e-5)
    scores = [r["score"] for r in answer["relations"]]
    assert scores == sorted(scores, reverse=True)


def test_labels_decided_one_by_one_hold_from_one_half(tmp_path: Path) -> None:
    folder = save(tmp_path, markers=TYPED, problem_type="multi_label_classification")
    model = load(f"file://{folder}", device="cpu")
    [logits] = their_logits(folder, [marked_by_hand(0, 1)])
    value = {"text": TEXT, "entities": ENTITIES, "pairs": [[0, 1]]}
    for threshold in (None, 0.0, 0.3):
        held = torch.sigmoid(logits) >= (0.5 if threshold is None else threshold)
        expected = {LABELS[i] for i in held.nonzero()[:, 0]} - {"no_relation"}
        relations = related(model, value, threshold=threshold)["relations"]
        assert {r["label"] for r in relations} == expected
        assert all((r["head"], r["tail"]) == (0, 1) for r in relations)


# what it means -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt(trained_models: trained.Models) -> LoadedModel:
    return load(f"file://{trained_models.relator}", device="cpu")


def test_relations_of_held_out_sentences_are_found(learnt: LoadedModel) -> None:
    assert trained.relating_score(asking(learnt)) >= 0.9


def test_the_control_with_shuffled_relations_fails_that_bar(
    shuffled_models: trained.Models,
) -> None:
    control = shuffled_models.relator
    assert trained.relating_score(asking(load(f"file://{control}", device="cpu"))) < 0.5


FACT = "anna berg founded acme ."
FOUNDED = {"text": FACT, "entities": [{"start": 0, "end": 9}, {"start": 18, "end": 22}]}


def test_markers_are_found_among_the_tokens(learnt: LoadedModel) -> None:
    assert list(learnt.tasks) == [Task.RELATION_EXTRACTION, Task.CLASSIFICATION]
    assert learnt.engine.name == "packed"
    answer = related(learnt, FOUNDED)
    assert "chunks" not in answer, "the whole text was read"
    [relation] = answer["relations"]
    assert (relation["head"], relation["tail"], relation["label"]) == (0, 1, "founder_of")
    assert related(learnt, FOUNDED, threshold=1.0)["relations"] == []


def test_of_a_long_text_a_pair_is_read_with_what_is_around_it(learnt: LoadedModel) -> None:
    filler = "nobody knew about the rest of it . " * 60
    for before in (filler, ""):
        text = f"{before}{FACT} {filler}"
        at = len(before)
        entities = [{"start": at, "end": at + 9}, {"start": at + 18, "end": at + 22}]
        answer = related(learnt, {"text": text, "entities": entities, "pairs": [[0, 1]]})
        assert answer["tokens"] == learnt.max_input_tokens
        assert answer["chunks"] == 1
        assert "skipped" not in answer
        assert [e["text"] for e in answer["entities"]] == ["anna berg", "acme"]


def test_pairs_too_far_apart_are_named(learnt: LoadedModel) -> None:
    text = f"{FACT} {'nobody knew about it . ' * 60}{FACT}"
    second = len(text) - len(FACT)
    entities = [*FOUNDED["entities"], {"start": second, "end": second + 9}]
    answer = related(learnt, {"text": text, "entities": entities})
    assert sorted(map(tuple, answer["skipped"])) == [(0, 2), (1, 2), (2, 0), (2, 1)]


def test_no_pair_no_relation(learnt: LoadedModel) -> None:
    answer = related(learnt, {"text": FACT, "entities": []})
    assert (answer["entities"], answer["relations"], answer["tokens"]) == ([], [], 0)
    assert related(learnt, {**FOUNDED, "pairs": []})["relations"] == []


# what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "param", "message"),
    [
        ("a text", "input.entities", "finds none itself"),
        ({"text": ""}, "input.text", "empty"),
        ({"text": "ab", "entities": [{"start": 1, "end": 3}]}, "input.entities[0]", "has 2"),
        ({"text": "ab", "entities": [{"start": 1, "end": 1}]}, "input.entities[0]", "1 to 1"),
        (
            {"text": "ab", "entities": [{"start": 0, "end": 1, "text": "b"}]},
            "input.entities[0].text",
            '"a"',
        ),
        ({**FOUNDED, "pairs": [[0, 0]]}, "input.pairs[0]", "two different"),
        ({**FOUNDED, "pairs": [[0, 2]]}, "input.pairs[0]", "2 entities"),
        ({**FOUNDED, "pairs": [[0, 1], [1, 0], [0, 1]]}, "input.pairs[2]", "a second time"),
        ({"text": FACT, "pairs": [[0, 1]]}, "input.pairs", "Leave pairs out, or give"),
        ({**FOUNDED, "pairs": [[0]]}, "input.pairs[0]", "2 whole numbers"),
        ({**FOUNDED, "relation": "x"}, "input.relation", "not known"),
        (
            {
                "text": "a " * 200,
                "entities": [{"start": 2 * i, "end": 2 * i + 1} for i in range(70)],
            },
            "input.entities",
            "4830 pairs",
        ),
    ],
)
def test_errors_name_field_value_and_fix(
    learnt: LoadedModel, value: Any, param: str, message: str
) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        related(learnt, value)
    assert caught.value.param == param


def test_no_other_service_is_asked_from_here(learnt: LoadedModel) -> None:
    with pytest.raises(ApiError, match="asked directly") as caught:
        related(learnt, "a text", entities_from="ner")
    assert caught.value.param == "parameters.entities_from"


def test_typed_markers_need_types(tmp_path: Path) -> None:
    model = load(f"file://{save(tmp_path, markers=TYPED)}", device="cpu")
    with pytest.raises(ApiError, match="what the entities are") as caught:
        related(model, FOUNDED)
    assert caught.value.param == "input.entities[0].label"


def test_a_classifier_without_markers_relates_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=r"entity_markers in config\.json"):
        load(f"file://{save(tmp_path)}", task=Task.RELATION_EXTRACTION, device="cpu")
