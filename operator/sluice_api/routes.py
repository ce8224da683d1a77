"""The inference routes, and which codec reads and writes each.

Gateway and worker serve this table and nothing beside it: adding a route is adding a codec and a
line here.
"""

from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from sluice_api.call import Call, CanonicalCodec, Codec, Input
from sluice_api.errors import ApiError
from sluice_api.shapes import (
    answers,
    chat,
    classify,
    completions,
    embeddings,
    fill_mask,
    questions,
    relations,
    rerank,
    small,
    texts,
    tokens,
    v2,
)
from sluice_api.tasks import Task

POST_ROUTES: dict[str, Codec] = {
    "/v1/embeddings": embeddings.CODEC,
    "/v1/classify": classify.CODEC,
    "/v1/tokens/classify": tokens.CODEC,
    "/v1/relations": relations.CODEC,
    "/v1/answer": questions.CODEC,
    "/v1/fill-mask": fill_mask.CODEC,
    "/v1/rerank": rerank.CODEC,
    "/classify": small.CLASSIFY_TEXT,
    "/predict": small.PREDICT,
    "/v1/completions": completions.CODEC,
    "/v1/chat/completions": chat.CODEC,
    "/v1/translate": texts.TRANSLATE,
    "/v1/summarize": texts.SUMMARIZE,
}
"""Path → codec, for the routes whose path is fixed."""

V2_PREFIX = "/v2/models/"
V2_SUFFIX = "/infer"
V2_VERSIONS = "/versions/"
"""Between a model's name and its version, where a path names one."""

V2_NOT_OFFERED = ("/config", "/stats", "/trace/setting", "/generate", "/generate_stream")
"""What some of Triton's extensions have behind a model's name: no part of the protocol, and nothing
that is served here."""


class Shape(NamedTuple):
    """What documents say of a route; its types are held against real answers by a test."""

    summary: str
    request: type[msgspec.Struct]
    answer: type[msgspec.Struct]


SHAPES: dict[str, Shape] = {
    "/v1/embeddings": Shape(
        "Vectors of texts, in OpenAI's shape",
        embeddings.EmbeddingsRequest,
        answers.EmbeddingsAnswer,
    ),
    "/v1/classify": Shape(
        "Labels of texts; with labels of the caller's own, zero-shot",
        classify.ClassifyRequest,
        answers.ClassifyAnswer,
    ),
    "/v1/tokens/classify": Shape(
        "Entities of texts, or the label of each token",
        tokens.TokensRequest,
        answers.TokensAnswer,
    ),
    "/v1/relations": Shape(
        "Relations between the entities of texts",
        relations.RelationRequest,
        answers.RelationsAnswer,
    ),
    "/v1/answer": Shape(
        "The parts of a context that answer a question",
        questions.QuestionRequest,
        answers.QuestionsAnswer,
    ),
    "/v1/fill-mask": Shape(
        "What stands behind the masks of texts",
        fill_mask.FillMaskRequest,
        answers.FillMaskAnswer,
    ),
    "/v1/rerank": Shape(
        "Documents by their relevance to a query, in Cohere's shape",
        rerank.RerankRequest,
        answers.RerankAnswer,
    ),
    "/classify": Shape(
        "One text: 0 or 1 for each label", small.ClassifyTextRequest, answers.ClassifyTextAnswer
    ),
    "/predict": Shape(
        "One text or many: the position of the label", small.PredictRequest, answers.PredictAnswer
    ),
    "/v1/completions": Shape(
        "Text that goes on from a prompt, in OpenAI's shape; streamed as server-sent events",
        completions.CompletionRequest,
        answers.CompletionAnswer,
    ),
    "/v1/chat/completions": Shape(
        "The next message of a conversation, in OpenAI's shape; streamed as server-sent events",
        chat.ChatRequest,
        answers.ChatAnswer,
    ),
    "/v1/translate": Shape(
        "Texts in another language", texts.TranslateRequest, answers.TranslateAnswer
    ),
    "/v1/summarize": Shape("Shorter texts", texts.SummarizeRequest, answers.SummarizeAnswer),
    V2_SUFFIX: Shape("Open Inference Protocol V2", v2.V2Request, answers.V2Answer),
}
"""By the path of :data:`POST_ROUTES`; the V2 route by its suffix."""


class Canonical(NamedTuple):
    path: str
    codec: CanonicalCodec


CANONICAL_ROUTES: dict[Task, Canonical] = {
    Task.EMBEDDINGS: Canonical("/v1/embeddings", embeddings.CODEC),
    Task.CLASSIFICATION: Canonical("/v1/classify", classify.CODEC),
    Task.ZERO_SHOT: Canonical("/v1/classify", classify.CODEC),
    Task.TOKEN_CLASSIFICATION: Canonical("/v1/tokens/classify", tokens.CODEC),
    Task.RELATION_EXTRACTION: Canonical("/v1/relations", relations.CODEC),
    Task.QUESTION_ANSWERING: Canonical("/v1/answer", questions.CODEC),
    Task.FILL_MASK: Canonical("/v1/fill-mask", fill_mask.CODEC),
    Task.RERANK: Canonical("/v1/rerank", rerank.CODEC),
    Task.TEXT_GENERATION: Canonical("/v1/completions", completions.CODEC),
    Task.CHAT: Canonical("/v1/chat/completions", chat.CODEC),
    Task.TRANSLATION: Canonical("/v1/translate", texts.TRANSLATE),
    Task.SUMMARIZATION: Canonical("/v1/summarize", texts.SUMMARIZE),
}
"""The route whose answers hold whole items; what the gateway asks when it needs some of them."""


def check_offered(below: str) -> None:
    """Raise :class:`ApiError` where ``below``, which names no model, is one of Triton's paths.

    Args:
        below: what a path has behind :data:`V2_PREFIX`.
    """
    if below.endswith(V2_NOT_OFFERED):
        raise ApiError(
            "route_not_found",
            f"There is nothing at {V2_PREFIX}{below[:200]}: GET /v2 lists the extensions.",
        )


USE_LABELS = "use POST /v1/classify with parameters.labels"
"""What to do where a classifier is missed and a zero-shot model is there."""


def canonical_call(call: Call, inputs: list[Input]) -> Call:
    """``call`` as its task's canonical route has it, for ``inputs`` alone."""
    assert call.task is not None
    codec = CANONICAL_ROUTES[call.task].codec
    return replace(call, codec=codec, inputs=inputs, options=None, passthrough=True, stream=None)


def canonical_body(call: Call, inputs: list[Input]) -> bytes:
    """The body that asks the canonical route of ``call.task`` for ``inputs`` alone.

    The worker's answer to it is read by the same route's codec, as the answer to
    :func:`canonical_call`.
    """
    assert call.task is not None
    return CANONICAL_ROUTES[call.task].codec.canonical_body(call, inputs)


def check_task(call: Call, tasks: list[Task], service: str) -> None:
    """Settle the task of ``call`` on a service that offers ``tasks``. Raises :class:`ApiError`."""
    if call.task is None:
        v2.with_task(call, *tasks)
    if call.task in tasks:
        return
    zero_shot_only = call.task == Task.CLASSIFICATION and Task.ZERO_SHOT in tasks
    if zero_shot_only and call.codec in (small.CLASSIFY_TEXT, small.PREDICT):
        raise ApiError(
            "task_not_supported",
            f"Model {service!r} classifies zero-shot only, and this route takes no labels:"
            f" {USE_LABELS}.",
            param="model",
        )
    if zero_shot_only:
        raise ApiError(
            "missing_field",
            f"parameters.labels: required, because model {service!r} classifies zero-shot only.",
            param="parameters.labels",
        )
    own = call.task == Task.ZERO_SHOT and Task.CLASSIFICATION in tasks
    raise ApiError(
        "task_not_supported",
        f"Model {service!r} does not do {call.task}; it does {', '.join(tasks)}."
        f"{' It has labels of its own: leave parameters.labels out.' if own else ''}",
        param="model",
    )
