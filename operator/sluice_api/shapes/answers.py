"""What the routes answer, as types: for the OpenAPI document and for the tests that hold us to it.

Answers are written by the codecs, byte by byte, and never built from these. Members may be added to
an answer, so unlike requests these are open.
"""

from typing import Literal

import msgspec

from sluice_api.shapes.classify import ScoredLabel


class Usage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct):
    """One vector: numbers, or base64 of little-endian float32."""

    index: int
    object: Literal["embedding"]
    embedding: list[float] | str
    tokens: int
    truncated: bool = False


class EmbeddingsAnswer(msgspec.Struct):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: Usage


class Classification(msgspec.Struct):
    """The best label of one text, and all of them sorted by score.

    `multi_label` is there when each label was decided by itself.
    """

    index: int
    label: str
    score: float
    labels: list[ScoredLabel]
    tokens: int
    multi_label: bool = False
    truncated: bool = False


class ClassifyAnswer(msgspec.Struct):
    object: Literal["list"]
    model: str
    data: list[Classification]
    usage: Usage


class ClassifyTextAnswer(msgspec.Struct):
    """`prediction` has 0 or 1 for each label, in the model's order."""

    text: str
    prediction: list[Literal[0, 1]]
    label: str
    score: float


class PredictAnswer(msgspec.Struct):
    """One entry a text in each list; `predictions` are positions in the model's labels."""

    predictions: list[int]
    labels: list[str]
    scores: list[float]


class V2Tensor(msgspec.Struct):
    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]
    data: list[str | float]


class V2Answer(msgspec.Struct):
    model_name: str
    outputs: list[V2Tensor]
    id: str | None = None


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str
    request_id: str


class Error(msgspec.Struct):
    """OpenAI's shape, on `/v1`."""

    error: ErrorDetail


class Problem(msgspec.Struct):
    """RFC 9457, everywhere else; on `/v2` with `error` as that protocol asks: the detail again."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    param: str | None
    request_id: str
    error: str = ""
