"""Extractive question answering: the spans of a context that answer a question.

The score of a span is the probability that it begins where it does times the probability that it
ends there, both over the tokens of one window's context and the first token, which stands for "no
answer" (Devlin et al. 2018, arXiv:1810.04805; the scores of transformers' former pipeline). Of the
windows of a long context each answers for itself: a span has the best score that it gets anywhere,
"no answer" the smallest. Spans reach to the ends of the words that they begin and end in, where a
script has words.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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

_NO_BLANKS = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aad\u2e80-\u2fdf\u3000-\u30ff"
    "\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9fe\uaa60-\uaa7f"
    "\uf900-\ufaff\uff01-\uffef\U00020000-\U0003ffff]"
)
"""Of scripts that put no blanks between words: Thai, Lao, Tibetan, Burmese, Khmer, Tai, Chinese and
Japanese. What a tokenizer takes for one word there may be a whole sentence."""


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
    words = _words(text.located)
    scores: dict[Span, float] = {}
    nothing = 1.0
    for part, logits in zip(text.parts, arrays, strict=True):
        rows = slice(text.before, text.before + len(part))
        starts, ends = _probabilities(logits[:, 0], rows), _probabilities(logits[:, 1], rows)
        nothing = min(nothing, float(starts[0] * ends[0]))
        numbers = words.numbers[part.start : part.stop]
        for first, last, score in best_spans(starts[1:], ends[1:], numbers, longest, wanted):
            span = words.places[first][0], words.places[last][1]
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
    starts: Scores, ends: Scores, words: npt.NDArray[np.int64], longest: int, count: int
) -> list[tuple[int, int, float]]:
    """(first word, last word, score) of the best spans of at most ``longest`` tokens.

    Args:
        words: of each token. Of spans in the same words only the best one counts.
    """
    tokens = len(starts)
    # A row for each first token, a column for each length: few numbers even for long contexts.
    lasts = np.arange(tokens)[:, None] + np.arange(min(longest, tokens))
    firsts, lengths = np.nonzero(lasts < tokens)
    lasts = firsts + lengths
    scores = starts[firsts] * ends[lasts]
    order = np.argsort(-scores, kind="stable")
    pairs = np.stack((words[firsts], words[lasts]), axis=1)[order]
    _, best = np.unique(pairs, axis=0, return_index=True)
    chosen = np.sort(best)[:count]
    return [
        (int(first), int(last), float(score))
        for (first, last), score in zip(pairs[chosen], scores[order[chosen]], strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Words:
    """The words of a text: the number of each token's, and where each stands in characters."""

    numbers: npt.NDArray[np.int64]
    places: list[Span]


def _words(located: Located) -> _Words:
    numbers: list[int] = []
    places: list[Span] = []
    for token, (start, end) in enumerate(located.offsets):
        if token > 0 and _goes_on(located, token):
            places[-1] = (places[-1][0], end)
        else:
            places.append((start, end))
        numbers.append(len(places) - 1)
    return _Words(np.array(numbers, dtype=np.int64), places)


def _goes_on(located: Located, token: int) -> bool:
    """Whether a token goes on with the word of the one before it."""
    word = located.words[token]
    if word is None or word != located.words[token - 1]:
        return False
    (begin, end), (start, stop) = located.offsets[token - 1 : token + 1]
    if start < end or begin == end or start == stop:  # In one character, or beside nothing.
        return True
    return not _NO_BLANKS.search(located.text[max(0, end - 1) : start + 1])
