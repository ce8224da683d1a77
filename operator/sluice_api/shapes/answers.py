"""What the routes answer, as types: for the OpenAPI document and for the tests that hold us to it.

Answers are written by the codecs, byte by byte, and never built from these. Members may be added to
an answer, so unlike requests these are open.
"""

from typing import Literal

import msgspec

from sluice_api.shapes.chat import ChatChoice
from sluice_api.shapes.classify import ScoredLabel
from sluice_api.shapes.completions import CompletionChoice
from sluice_api.shapes.fill_mask import Candidate
from sluice_api.shapes.generated import PromptUsage
from sluice_api.shapes.questions import Span
from sluice_api.shapes.relations import Relation, RelationEntity, Unlocated
from sluice_api.shapes.tokens import Entity


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


class Entities(msgspec.Struct):
    """The entities of one text, in its order. `chunks` says in how many parts it was read."""

    index: int
    entities: list[Entity]
    tokens: int
    chunks: int = 1


class TokensAnswer(msgspec.Struct):
    object: Literal["list"]
    model: str
    data: list[Entities]
    usage: Usage


class Relations(msgspec.Struct):
    """The entities of one text, and which relations hold between which of them.

    `head` and `tail` are positions in `entities`. `skipped` are pairs too far apart to be judged;
    `unlocated` were written by the model and do not stand in the text. `finish_reason` is there
    where a model writes: `length` when it was cut at its maximum, so that relations may be missing.
    `chunks` is there when a text was too long to be read at once: how many pairs were read in a
    window of it, or in how many windows a model that writes read it.
    """

    index: int
    entities: list[RelationEntity]
    relations: list[Relation]
    tokens: int
    skipped: list[tuple[int, int]] = []
    unlocated: list[Unlocated] = []
    finish_reason: Literal["stop", "length"] | None = None
    chunks: int | None = None


class RelationsAnswer(msgspec.Struct):
    object: Literal["list"]
    model: str
    data: list[Relations]
    usage: Usage


class QuestionAnswers(msgspec.Struct):
    """The answers to one question, best first; an empty one says that the context has none."""

    index: int
    answers: list[Span]
    tokens: int
    chunks: int = 1


class QuestionsAnswer(msgspec.Struct):
    object: Literal["list"]
    model: str
    data: list[QuestionAnswers]
    usage: Usage


class Masks(msgspec.Struct):
    """Candidates for each mask of one text, best first."""

    index: int
    masks: list[list[Candidate]]
    tokens: int
    truncated: bool = False


class FillMaskAnswer(msgspec.Struct):
    object: Literal["list"]
    model: str
    data: list[Masks]
    usage: Usage


class RankedText(msgspec.Struct):
    text: str


class Ranked(msgspec.Struct):
    """One document, by its position in the request; `document` where it was asked for."""

    index: int
    relevance_score: float
    tokens: int
    document: RankedText | None = None
    chunks: int = 1


class RerankAnswer(msgspec.Struct):
    """`results` are sorted by relevance."""

    object: Literal["list"]
    model: str
    results: list[Ranked]
    usage: Usage


class WritingUsage(msgspec.Struct):
    """`prompt_tokens` were read and `completion_tokens` written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Summary(msgspec.Struct):
    """One text, shortened. `finish_reason` is `length` when `max_tokens` cut it.

    `chunks` is there when a long text was read in several pieces; `truncated` when the caller had
    its end left out.
    """

    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    tokens: int
    chunks: int = 1
    truncated: bool = False


class SummarizeAnswer(msgspec.Struct):
    object: Literal["list"]
    model: str
    data: list[Summary]
    usage: WritingUsage


class Translation(msgspec.Struct):
    """One text in another language. `chunks` is there when it has several sentences.

    `source` and `target` are there where the model knows several languages.
    """

    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    tokens: int
    source: str | None = None
    target: str | None = None
    chunks: int = 1


class TranslateAnswer(msgspec.Struct):
    object: Literal["list"]
    model: str
    data: list[Translation]
    usage: WritingUsage


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


class GenerationUsage(msgspec.Struct):
    """`by_prompt` is there when several prompts were given."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    by_prompt: list[PromptUsage] | msgspec.UnsetType = msgspec.UNSET


class IndexedCompletion(CompletionChoice, kw_only=True):
    index: int


class CompletionAnswer(msgspec.Struct):
    """`sampled` is true where another call could get another answer."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[IndexedCompletion]
    usage: GenerationUsage
    sampled: bool = False


class IndexedMessage(ChatChoice, kw_only=True):
    index: int


class ChatAnswer(msgspec.Struct):
    """`sampled` is true where another call could get another answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[IndexedMessage]
    usage: GenerationUsage
    sampled: bool = False


class V2Tensor(msgspec.Struct):
    name: str
    datatype: Literal["BYTES", "FP32", "INT64"]
    shape: list[int]
    data: list[str | int | float]


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
