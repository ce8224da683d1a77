"""Extractive question answering: the spans of a context that answer a question.

The score of a span is the probability that it begins where it does times the probability that it
ends there, both over the tokens of one window's context and the first token, which stands for "no
answer" (Devlin et al. 2018, arXiv:1810.04805; the scores of transformers' former pipeline). Of the
windows of a long context each answers for itself: a span has the best score that it gets anywhere,
"no answer" the smallest. Spans reach to the ends of the words that they begin and end in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sluice_api.call import Call, Item, members_of, place
from sluice_api.shapes.listing import item
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array, Unit, unit_of
from sluice_worker.models.description import Description
from sluice_worker.models.tokenizer import Located, Tokenizer
from sluice_worker.models.windows import windows
from sluice_worker.tasks.base import Material, Prepared, TaskModule, dealt, leading_part
from sluice_worker.tasks.ranking import Scores, softmax

TASK = Task.QUESTION_ANSWERING
NEEDS = "a model with a head for spans (config.json: architectures …ForQuestionAnswering)"

Span = tuple[int, int]


def offers(description: Description) -> bool:
    return description.head == "span"


def build(material: Material) -> TaskModule:
    return QuestionAnswering(material.tokenizer)


@dataclass(frozen=True, slots=True)
class _Read:
    """One question with its context in one window or several.

    Attributes:
        before: rows of each window in front of its first token of the context.
    """

    located: Located
    before: int
    parts: list[range]
    units: list[Unit]


class QuestionAnswering:
    """Implements :class:`sluice_worker.tasks.base.TaskModule`."""

    task = TASK

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def prepare(self, call: Call) -> Prepared:
        texts = [self._read(call, index) for index in range(len(call.inputs))]

        def finish(arrays: Sequence[Array]) -> list[Item]:
            items = []
            each = dealt(arrays, [len(text.units) for text in texts])
            for text, own in zip(texts, each, strict=True):
                answers = _answers(text, own, call.parameters)
                tokens = sum(unit.tokens for unit in text.units)
                items.append(item({"answers": answers}, tokens, chunks=len(text.parts)))
            return items

        return Prepared([unit for text in texts for unit in text.units], finish)

    def _read(self, call: Call, index: int) -> _Read:
        where = place(call, index)
        members = members_of(call.inputs[index])
        question = leading_part(self._tokenizer, members["question"], where=f"{where}.question")
        located = self._tokenizer.locate(members["context"], where=f"{where}.context")
        frame = self._tokenizer.frame(pair=True)
        parts = windows(
            len(located.ids),
            self._tokenizer.room(pair=True) - len(question),
            call.parameters["stride"],
            where=f"{where}.context",
        )
        framed = [
            self._tokenizer.framed(question, located.ids[part.start : part.stop]) for part in parts
        ]
        return _Read(
            located,
            len(frame.ids[0]) + len(question) + len(frame.ids[1]),
            parts,
            [unit_of(each.ids, each.type_ids) for each in framed],
        )


def _answers(
    text: _Read, arrays: Sequence[Array], parameters: dict[str, Any]
) -> list[dict[str, Any]]:
    """The best spans of all windows, as they are written."""
    wanted, longest = parameters["top_k"], parameters["max_answer_tokens"]
    scores: dict[Span, float] = {}
    nothing = 1.0
    for part, logits in zip(text.parts, arrays, strict=True):
        rows = slice(text.before, text.before + len(part))
        starts, ends = _probabilities(logits[:, 0], rows), _probabilities(logits[:, 1], rows)
        nothing = min(nothing, float(starts[0] * ends[0]))
        # Some spans become one when they are aligned to words, so more than wanted are looked at.
        for first, last, score in best_spans(starts[1:], ends[1:], longest, 2 * wanted + 10):
            span = _whole_words(text.located, part.start + first, part.start + last)
            scores[span] = max(score, scores.get(span, 0.0))
    if parameters["no_answer"]:
        scores[0, 0] = nothing
    best = sorted(scores, key=lambda span: (-scores[span], span))[:wanted]
    context = text.located.text
    return [
        {"text": context[start:end], "score": scores[start, end], "start": start, "end": end}
        for start, end in best
    ]


def _probabilities(logits: Array, rows: slice) -> Scores:
    """Of the window's first token and of the context's tokens, which together are all there is."""
    return softmax(np.concatenate((logits[:1], logits[rows])))


def best_spans(
    starts: Scores, ends: Scores, longest: int, count: int
) -> list[tuple[int, int, float]]:
    """(first token, last token, score) of the best spans of at most ``longest`` tokens."""
    tokens = len(starts)
    products = np.outer(starts, ends)
    allowed = np.triu(np.tril(np.ones((tokens, tokens), dtype=bool), longest - 1))
    scores = np.where(allowed, products, -1.0).ravel()
    count = min(count, int(allowed.sum()))
    if count == 0:
        return []
    chosen = np.argpartition(-scores, count - 1)[:count]
    best = chosen[np.argsort(-scores[chosen], kind="stable")]
    return [(int(at) // tokens, int(at) % tokens, float(scores[at])) for at in best]


def _whole_words(located: Located, first: int, last: int) -> Span:
    """Characters from the beginning of the first token's word to the end of the last one's."""
    words, offsets = located.words, located.offsets
    while first > 0 and words[first] is not None and words[first - 1] == words[first]:
        first -= 1
    while last + 1 < len(words) and words[last] is not None and words[last + 1] == words[last]:
        last += 1
    return offsets[first][0], offsets[last][1]
