"""Extractive QA against the model's own head, written out the slow way, and a reader that learnt.

transformers 5 has no pipeline for it any more, so the reference stands here: its former rules in
plain loops over what ``AutoModelForQuestionAnswering`` says of every token.
"""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sluice_api.errors import ApiError
from sluice_api.tasks import Task
from sluice_worker.loaded import LoadedModel
from sluice_worker.loader import load
from sluice_worker.models.tokenizer import Tokenizer
from tests.support import models, trained
from tests.support.model_calls import ask, asking

ROUTE = "/v1/answer"
CONTEXTS = [
    *models.random_texts(6, seed=8, longest=30),
    "Ünï my profile was hacked-again ! \U0001f680 ok",
]
QUESTION = "what is late?"


def answered(model: LoadedModel, inputs: Any, **parameters: Any) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = ask(model, ROUTE, {"input": inputs, "parameters": parameters})[
        "data"
    ]
    return answer


def about(*contexts: str, question: str = QUESTION) -> list[dict[str, str]]:
    return [{"question": question, "context": context} for context in contexts]


# against the head --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bert", "roberta", "byte-level", "deberta-v2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    byte_level = request.param == "byte-level"
    models.build_tiny(folder, "roberta" if byte_level else request.param, head="span")
    if byte_level:
        models.save_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> tuple[Any, Any]:
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours(folder: Path) -> LoadedModel:
    return load(f"file://{folder}", device="cpu")


@torch.inference_mode()
def reference(
    theirs: tuple[Any, Any], context: str, *, top_k: int, longest: int, no_answer: bool
) -> list[tuple[int, int, float]]:
    """(start, end, score) of the best answers, by trying every span."""
    question, (model, tokenizer) = QUESTION, theirs
    encoded = tokenizer(question, context, return_offsets_mapping=True)
    inputs = {k: torch.tensor([v]) for k, v in encoded.items() if k != "offset_mapping"}
    output = model(**inputs)
    own = [place for place, part in enumerate(encoded.sequence_ids()) if part == 1]
    kept = [0, *own]
    starts = torch.softmax(output.start_logits[0, kept].double(), 0).numpy()
    ends = torch.softmax(output.end_logits[0, kept].double(), 0).numpy()
    words = encoded.word_ids()
    spans: list[tuple[float, int, int]] = []
    for i, first in enumerate(own):
        for j, last in enumerate(own[i : i + longest], start=i):
            spans.append((float(starts[1 + i] * ends[1 + j]), first, last))
    spans.sort(key=lambda span: -span[0])
    found: dict[tuple[int, int], float] = {}
    for score, first, last in spans:
        while first - 1 in own and words[first - 1] == words[first]:
            first -= 1
        while last + 1 in own and words[last + 1] == words[last]:
            last += 1
        place = (encoded["offset_mapping"][first][0], encoded["offset_mapping"][last][1])
        found[place] = max(score, found.get(place, 0.0))
    if no_answer:
        found[0, 0] = float(starts[0] * ends[0])
    best = sorted(found.items(), key=lambda item: -item[1])[:top_k]
    return [(start, end, score) for (start, end), score in best]


@pytest.mark.parametrize(
    ("top_k", "longest", "no_answer"), [(1, 15, False), (5, 4, True), (20, 1, True)]
)
def test_answers_equal_the_reference(
    theirs: tuple[Any, Any], ours: LoadedModel, top_k: int, longest: int, no_answer: bool
) -> None:
    answers = answered(
        ours, about(*CONTEXTS), top_k=top_k, max_answer_tokens=longest, no_answer=no_answer
    )
    for context, entry in zip(CONTEXTS, answers, strict=True):
        expected = reference(theirs, context, top_k=top_k, longest=longest, no_answer=no_answer)
        assert [(a["start"], a["end"]) for a in entry["answers"]] == [e[:2] for e in expected]
        for answer, (start, end, score) in zip(entry["answers"], expected, strict=True):
            assert answer["score"] == pytest.approx(score, abs=1e-5)
            assert answer["text"] == context[start:end]


def test_the_nearest_spans_win() -> None:
    from sluice_worker.tasks.question_answering import best_spans

    chooser = np.random.default_rng(2)
    starts, ends = chooser.random(9), chooser.random(9)
    expected = sorted(
        ((i, j, starts[i] * ends[j]) for i in range(9) for j in range(i, min(9, i + 3))),
        key=lambda span: -span[2],
    )
    words = np.arange(9)
    assert best_spans(starts, ends, words, 3, 7) == [pytest.approx(span) for span in expected[:7]]
    assert len(best_spans(starts, ends, words, 3, 1000)) == len(expected)
    assert best_spans(starts[:0], ends[:0], words[:0], 3, 5) == []
    # Many spans in one word count once, however few are wanted.
    words = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1])
    best = {(0, 0): 0.0, (0, 1): 0.0, (1, 1): 0.0}
    for first, last, score in expected:
        pair = int(words[first]), int(words[last])
        best[pair] = max(best[pair], score)
    assert {
        (i, j): score for i, j, score in best_spans(starts, ends, words, 3, 3)
    } == pytest.approx(best)


def test_a_long_context_takes_little_memory() -> None:
    from sluice_worker.tasks.question_answering import best_spans

    tokens = 8192  # Every pair of them would be half a gigabyte.
    scores = np.full(tokens, 1 / tokens)
    tracemalloc.start()
    best_spans(scores, scores, np.arange(tokens), 15, 1)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100 << 20


def test_sentences_without_blanks_are_no_words(tmp_path: Path) -> None:
    """A tokenizer of pieces takes whatever stands between two blanks for one word."""
    from sluice_worker.tasks.question_answering import _words

    models.save_byte_tokenizer(tmp_path)
    content = (tmp_path / "tokenizer.json").read_text()
    tokenizer = Tokenizer(content, max_tokens=64, vocabulary=models.VOCABULARY)
    for text, parts in (
        ("東京は日本", ["東", "京", "は", "日", "本"]),
        ("ไทย ok", ["ไ", "ท", "ย", "ok"]),
        ("naïve Ελλάδα", ["naïve", "Ελλάδα"]),
        ("in東京now", ["in", "東", "京", "now"]),
    ):
        found = _words(tokenizer.locate(text, where="input")).places
        assert [text[start:end].strip() for start, end in found] == parts


# what it means -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt(trained_models: trained.Models) -> LoadedModel:
    return load(f"file://{trained_models.reader}", device="cpu")


def test_held_out_questions_are_answered_at_their_place(learnt: LoadedModel) -> None:
    assert trained.reading_score(asking(learnt)) >= 0.85


def test_the_control_with_shuffled_answers_fails_that_bar(shuffled_models: trained.Models) -> None:
    control = shuffled_models.reader
    assert trained.reading_score(asking(load(f"file://{control}", device="cpu"))) < 0.5


def test_no_answer_is_one_of_the_answers_only_where_asked_for(learnt: LoadedModel) -> None:
    inputs = about("It rained a little .", question="Who was it ?")
    [entry] = answered(learnt, inputs, no_answer=True, top_k=3)
    assert entry["answers"][0] == {
        "text": "",
        "score": pytest.approx(entry["answers"][0]["score"]),
        "start": 0,
        "end": 0,
    }
    assert entry["answers"][0]["score"] > 0.5
    [entry] = answered(learnt, inputs, top_k=3)
    assert all(answer["text"] for answer in entry["answers"])


def test_what_was_loaded(learnt: LoadedModel) -> None:
    assert list(learnt.tasks) == [Task.QUESTION_ANSWERING]
    assert learnt.engine.name == "packed"


# long contexts -----------------------------------------------------------------------------------


FILLERS = [
    sentence
    for _ in range(30)
    for sentence in (
        "It was a fine day .",
        "There was music .",
        "Nobody knew why .",
        "It rained a little .",
    )
]


@pytest.mark.parametrize("place", [0, 20, 40, 70, 100])
@pytest.mark.parametrize("stride", [None, 20])
def test_the_answer_is_found_wherever_it_stands(
    learnt: LoadedModel, place: int, stride: int | None
) -> None:
    """The model reads 128 tokens; the context has over 500 and one sentence that answers."""
    sentences = FILLERS[:120]
    sentences[place] = "The winner is Omar Haddad ."
    context = " ".join(sentences)
    inputs = about(context, question="Who was it ?")
    [entry] = answered(learnt, inputs, stride=stride, no_answer=True)
    start = context.index("Omar")
    [best] = entry["answers"]
    assert (best["text"], best["start"]) == ("Omar Haddad", start)
    assert entry["chunks"] > 4


def test_a_long_context_without_an_answer_has_none(learnt: LoadedModel) -> None:
    context = " ".join(FILLERS)
    [entry] = answered(learnt, about(context, question="Who was it ?"), no_answer=True)
    assert entry["answers"][0]["text"] == ""


# what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ("a text", "input"),
        ([], "input"),
        ({"question": "Who?"}, "input.context"),
        ({"question": "", "context": "a"}, "input.question"),
        ([{"question": "a", "context": ""}], "input[0].context"),
        ({"question": "a", "context": "b", "id": 1}, "input.id"),
        ({"question": "who " * 90, "context": "b"}, "input.question"),
        ({"question": "who", "context": "x" * 400_000}, "input.context"),
        ({"question": "who", "context": "it was " * 20_000}, "input.context"),
    ],
)
def test_wrong_inputs_are_refused_by_name(learnt: LoadedModel, value: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        answered(learnt, value)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"top_k": 0}, "parameters.top_k"),
        ({"max_answer_tokens": 0}, "parameters.max_answer_tokens"),
        ({"no_answer": "yes"}, "parameters.no_answer"),
        ({"stride": 120}, "parameters.stride"),
        ({"handle_impossible_answer": True}, "parameters.handle_impossible_answer"),
    ],
)
def test_wrong_parameters_are_refused_by_name(
    learnt: LoadedModel, parameters: dict[str, Any], param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        answered(learnt, about("It was late ."), **parameters)
    assert caught.value.param == param
