"""The inference routes, and which codec reads and writes each.

Gateway and worker serve this table and nothing beside it: adding a route is adding a codec and a
line here.
"""

from typing import Any, NamedTuple

import msgspec

from sluice_api.call import Call, Codec, Input
from sluice_api.errors import ApiError
from sluice_api.shapes import answers, classify, embeddings, small, v2
from sluice_api.tasks import Task

POST_ROUTES: dict[str, Codec] = {
    "/v1/embeddings": embeddings.CODEC,
    "/v1/classify": classify.CODEC,
    "/classify": small.CLASSIFY_TEXT,
    "/predict": small.PREDICT,
}
"""Path → codec, for the routes whose path is fixed."""

V2_PREFIX = "/v2/models/"
V2_SUFFIX = "/infer"
V2_VERSIONS = "/versions/"
"""Between a model's name and its version, where a path names one."""


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
    "/classify": Shape(
        "One text: 0 or 1 for each label", small.ClassifyTextRequest, answers.ClassifyTextAnswer
    ),
    "/predict": Shape(
        "One text or many: the position of the label", small.PredictRequest, answers.PredictAnswer
    ),
    V2_SUFFIX: Shape("Open Inference Protocol V2", v2.V2Request, answers.V2Answer),
}
"""By the path of :data:`POST_ROUTES`; the V2 route by its suffix."""

CANONICAL_ROUTES: dict[Task, str] = {
    Task.EMBEDDINGS: "/v1/embeddings",
    Task.CLASSIFICATION: "/v1/classify",
    Task.ZERO_SHOT: "/v1/classify",
}
"""The route whose answers hold whole items; what the gateway asks when it needs some of them."""

USE_LABELS = "use POST /v1/classify with parameters.labels"
"""What to do where a classifier is missed and a zero-shot model is there."""


def canonical_body(call: Call, inputs: list[Input]) -> bytes:
    """The body that asks the canonical route of ``call.task`` for ``inputs`` alone.

    The worker's answer to it is read with :func:`canonical_codec` and ``split_items``.
    """
    body: dict[str, Any] = {"input": inputs}
    if call.model is not None:
        body["model"] = call.model
    if call.task == Task.EMBEDDINGS:
        body["encoding_format"] = "base64"
        body["truncate"] = call.parameters["truncate"]
        if call.parameters["dimensions"] is not None:
            body["dimensions"] = call.parameters["dimensions"]
    else:
        parameters = {k: v for k, v in call.parameters.items() if v is not None}
        if "labels" in parameters:
            # A map cannot say "no description", so undescribed labels stay a plain list.
            pairs = parameters["labels"]
            described = any(description is not None for _, description in pairs)
            parameters["labels"] = dict(pairs) if described else [name for name, _ in pairs]
        body["parameters"] = parameters
    return msgspec.json.encode(body)


def check_task(call: Call, tasks: list[Task], service: str) -> None:
    """Settle the task of ``call`` on a service that offers ``tasks``. Raises :class:`ApiError`."""
    if call.task is None:
        v2.with_task(call, tasks[0])
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
    raise ApiError(
        "task_not_supported",
        f"Model {service!r} does not do {call.task}; it does {', '.join(tasks)}.",
        param="model",
    )
