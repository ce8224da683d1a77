"""``POST /v1/answer``: the parts of a context that answer a question.

An input is ``{"question", "context"}``. Canonical item::

    {"answers": [{"text": "in Bern", "score": 0.8, "start": 17, "end": 24}, …],
     "chunks": 3?, "tokens": 60}

sorted by score. Offsets are characters of the context (Unicode code points), half-open. With
``no_answer`` one of the answers may be empty: ``{"text": "", "score", "start": 0, "end": 0}``.
"""

from typing import Annotated

import msgspec

from sluice_api.call import CanonicalCodec, Input, structured
from sluice_api.shapes.listing import ListCodec, required
from sluice_api.shapes.tokens import Stride
from sluice_api.tasks import Task

MAX_ANSWERS = 100

AnswerTokens = Annotated[int, msgspec.Meta(ge=1, le=512)]


class Question(msgspec.Struct, forbid_unknown_fields=True):
    question: str
    context: str


class QuestionParameters(msgspec.Struct, forbid_unknown_fields=True):
    """What a caller may ask of an answer.

    ``no_answer`` lets "the context does not say" compete. ``stride`` is how many tokens the windows
    of a long context share.
    """

    top_k: Annotated[int, msgspec.Meta(ge=1, le=MAX_ANSWERS)] = 1
    max_answer_tokens: AnswerTokens = 15
    no_answer: bool = False
    stride: Stride | None = None


class QuestionRequest(msgspec.Struct, forbid_unknown_fields=True):
    input: Question | list[Question]
    model: str | None = None
    parameters: QuestionParameters | None = None


class Span(msgspec.Struct):
    """``text`` is the context from ``start`` to ``end``; all empty where it does not say."""

    text: str
    score: float
    start: int
    end: int


class QuestionItem(msgspec.Struct):
    """A canonical item, read back."""

    answers: list[Span]
    tokens: int
    chunks: int = 1


read_item = msgspec.json.Decoder(QuestionItem).decode


def question_of(question: str, context: str, where: str = "input") -> str:
    """One input, as a call carries it. Raises ApiError when one of the texts is empty."""
    required(question, f"{where}.question")
    required(context, f"{where}.context")
    return structured({"question": question, "context": context})


class QuestionCodec(ListCodec):
    def input_of(self, value: Question, where: str) -> Input:
        return question_of(value.question, value.context, where)


CODEC: CanonicalCodec = QuestionCodec(
    "answer", Task.QUESTION_ANSWERING, QuestionRequest, QuestionParameters, structured=True
)
