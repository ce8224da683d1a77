"""What each task's inputs, parameters and answers are as tensors: the table behind the V2 route.

Inputs are texts, datatype BYTES, shape ``[n]``. ``n`` is the number of inputs, ``k`` what each has
as many of as the others. Tasks whose answers have no such shape are not here.

=====================  =====================  ======================================================
task                   inputs                 outputs
=====================  =====================  ======================================================
embeddings             text                   embedding ``[n, dimensions]``
classification,        text                   label ``[n]``, score ``[n]``, and labels and scores
zero-shot                                     ``[n, k]`` in order of score
token-classification   text                   one row an entity: input (its number), label, score,
                                              start, end, text
question-answering     question, context      the best answer: text, score, start, end ``[n]``
fill-mask              text                   token, text, score ``[n, masks, k]``
rerank                 query ``[1]``, text    relevance_score ``[n]``
translation,           text                   text ``[n]``, finish_reason ``[n]``
summarization
=====================  =====================  ======================================================
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import msgspec

from sluice_api.call import Input, Item
from sluice_api.errors import ApiError
from sluice_api.shapes import classify, embeddings, fill_mask, questions, rerank, texts, tokens
from sluice_api.tasks import Task

Datatype = Literal["BYTES", "FP32", "INT64"]
Texts = Mapping[str, list[str]]
"""The data of the input tensors by their names."""


class Output(NamedTuple):
    name: str
    datatype: Datatype
    rank: int


class Values(NamedTuple):
    """The content of one output tensor, in row-major order."""

    shape: list[int]
    data: Sequence[Any]


_read_written = msgspec.json.Decoder(texts.WrittenItem).decode


@dataclass(frozen=True, slots=True)
class View:
    """One task as tensors.

    Attributes:
        parameters: what a caller may ask, with its bounds; for a task without any, an empty struct.
        canonical: from those, and the input tensors, to the call's own parameters.
        inputs_of: the call's inputs.
        write: the content of ``outputs``, in the same order.
        sampled: whether those parameters have chance take part.
    """

    inputs: tuple[str, ...]
    parameters: type[msgspec.Struct]
    canonical: Callable[[Any, Texts], dict[str, Any]]
    inputs_of: Callable[[Texts], list[Input]]
    outputs: tuple[Output, ...]
    write: Callable[[list[Item]], list[Values]]
    sampled: Callable[[Any], bool] = lambda parameters: False


class EmbeddingsParameters(msgspec.Struct):
    dimensions: embeddings.Dimensions | None = None
    truncate: bool = False


class AnswerParameters(msgspec.Struct):
    """Without ``top_k``: a row has one answer."""

    max_answer_tokens: questions.AnswerTokens = 15
    no_answer: bool = False
    stride: tokens.Stride | None = None


class RerankParameters(msgspec.Struct):
    raw_scores: bool = False


def _members(parameters: msgspec.Struct, given: Texts) -> dict[str, Any]:
    return msgspec.structs.asdict(parameters)


def _classification(parameters: classify.ClassifyParameters, given: Texts) -> dict[str, Any]:
    return classify.canonical(parameters)[1]


def _answer(parameters: AnswerParameters, given: Texts) -> dict[str, Any]:
    return {"top_k": 1, **msgspec.structs.asdict(parameters)}


def _filling(parameters: fill_mask.FillMaskParameters, given: Texts) -> dict[str, Any]:
    return fill_mask.canonical(parameters)


def _writing(parameters: texts.WritingParameters, given: Texts) -> dict[str, Any]:
    return texts.canonical(parameters)[0]


def _draws(parameters: texts.WritingParameters) -> bool:
    return texts.canonical(parameters)[1]


def _ranking(parameters: RerankParameters, given: Texts) -> dict[str, Any]:
    query = given["query"]
    if len(query) != 1 or not query[0]:
        raise ApiError(
            "invalid_field",
            f"inputs: the tensor query has {len(query)} elements, allowed is one, not empty.",
            param="inputs",
        )
    return {"query": query[0], "raw_scores": parameters.raw_scores}


def _texts(given: Texts) -> list[Input]:
    return list(given["text"])


def _questions(given: Texts) -> list[Input]:
    asked, contexts = given["question"], given["context"]
    if len(asked) != len(contexts):
        raise ApiError(
            "invalid_field",
            f"inputs: question has {len(asked)} elements and context {len(contexts)}; each "
            "question needs its context.",
            param="inputs",
        )
    return [
        questions.question_of(question, context, f"inputs[{index}]" if len(asked) > 1 else "inputs")
        for index, (question, context) in enumerate(zip(asked, contexts, strict=True))
    ]


def _embeddings(items: list[Item]) -> list[Values]:
    vectors = [embeddings.vector_of(item) for item in items]
    return [Values([len(vectors), len(vectors[0])], list(chain.from_iterable(vectors)))]


def _labels(items: list[Item]) -> list[Values]:
    read = [classify.read_item(item.json) for item in items]
    count, ranked = len(read), [scored for item in read for scored in item.labels]
    wide = [count, len(read[0].labels)]
    return [
        Values([count], [item.label for item in read]),
        Values([count], [item.score for item in read]),
        Values(wide, [scored.label for scored in ranked]),
        Values(wide, [scored.score for scored in ranked]),
    ]


def _entities(items: list[Item]) -> list[Values]:
    rows = [
        (number, e.label, e.score, e.start, e.end, e.text)
        for number, item in enumerate(items)
        for e in tokens.read_item(item.json).entities
    ]
    return [Values([len(rows)], [row[column] for row in rows]) for column in range(6)]


def _written(items: list[Item]) -> list[Values]:
    read = [_read_written(item.json) for item in items]
    return [
        Values([len(read)], [item.text for item in read]),
        Values([len(read)], [item.finish_reason for item in read]),
    ]


def _answers(items: list[Item]) -> list[Values]:
    rows = []
    for item in items:
        # A context without a word has none; each question has its row all the same.
        best = next(iter(questions.read_item(item.json).answers), None)
        rows.append(
            ("", 0.0, 0, 0) if best is None else (best.text, best.score, best.start, best.end)
        )
    return [Values([len(rows)], [row[column] for row in rows]) for column in range(4)]


def _masks(items: list[Item]) -> list[Values]:
    read = [fill_mask.read_item(item.json).masks for item in items]
    counts = {len(masks) for masks in read}
    if len(counts) > 1:
        raise ApiError(
            "invalid_field",
            f"inputs[0].data: got texts with {' and '.join(map(str, sorted(counts)))} masks; in "
            "one tensor every text needs as many.",
            param="inputs[0].data",
        )
    found = [candidate for masks in read for mask in masks for candidate in mask]
    shape = [len(read), len(read[0]), len(read[0][0])]
    return [
        Values(shape, [candidate.token for candidate in found]),
        Values(shape, [candidate.text for candidate in found]),
        Values(shape, [candidate.score for candidate in found]),
    ]


def _relevance(items: list[Item]) -> list[Values]:
    return [Values([len(items)], [rerank.read_item(item.json).relevance_score for item in items])]


_CLASSIFICATION = View(
    ("text",),
    classify.ClassifyParameters,
    _classification,
    _texts,
    (
        Output("label", "BYTES", 1),
        Output("score", "FP32", 1),
        Output("labels", "BYTES", 2),
        Output("scores", "FP32", 2),
    ),
    _labels,
)


def _writes(parameters: type[texts.WritingParameters]) -> View:
    """A task that answers each text with another one."""
    return View(
        ("text",),
        parameters,
        _writing,
        _texts,
        (Output("text", "BYTES", 1), Output("finish_reason", "BYTES", 1)),
        _written,
        _draws,
    )


VIEWS: dict[Task, View] = {
    Task.EMBEDDINGS: View(
        ("text",),
        EmbeddingsParameters,
        _members,
        _texts,
        (Output("embedding", "FP32", 2),),
        _embeddings,
    ),
    Task.CLASSIFICATION: _CLASSIFICATION,
    Task.ZERO_SHOT: _CLASSIFICATION,
    Task.TOKEN_CLASSIFICATION: View(
        ("text",),
        tokens.TokensParameters,
        _members,
        _texts,
        (
            Output("input", "INT64", 1),
            Output("label", "BYTES", 1),
            Output("score", "FP32", 1),
            Output("start", "INT64", 1),
            Output("end", "INT64", 1),
            Output("text", "BYTES", 1),
        ),
        _entities,
    ),
    Task.QUESTION_ANSWERING: View(
        ("question", "context"),
        AnswerParameters,
        _answer,
        _questions,
        (
            Output("text", "BYTES", 1),
            Output("score", "FP32", 1),
            Output("start", "INT64", 1),
            Output("end", "INT64", 1),
        ),
        _answers,
    ),
    Task.FILL_MASK: View(
        ("text",),
        fill_mask.FillMaskParameters,
        _filling,
        _texts,
        (Output("token", "INT64", 3), Output("text", "BYTES", 3), Output("score", "FP32", 3)),
        _masks,
    ),
    Task.RERANK: View(
        ("query", "text"),
        RerankParameters,
        _ranking,
        _texts,
        (Output("relevance_score", "FP32", 1),),
        _relevance,
    ),
    Task.TRANSLATION: _writes(texts.TranslateParameters),
    Task.SUMMARIZATION: _writes(texts.SummarizeParameters),
}
