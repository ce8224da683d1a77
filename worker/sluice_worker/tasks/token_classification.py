"""Token classification: the label of every token, and the entities that tokens make (NER).

A text of any length is read in windows that overlap; each token is decided where it has most
context, and only then are tokens joined, so that no entity is cut or found twice. Equal to
transformers' TokenClassificationPipeline on what fits into one window.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sluice_api.call import Call, Item, place
from sluice_api.decode import shown
from sluice_api.errors import ApiError
from sluice_api.shapes.listing import item
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array, Unit, unit_of
from sluice_worker.models.description import Classifier, Description
from sluice_worker.models.tokenizer import Located, Tokenizer
from sluice_worker.models.windows import own_parts, windows
from sluice_worker.tasks import entities
from sluice_worker.tasks.base import Material, Prepared, TaskModule, dealt, text_of
from sluice_worker.tasks.entities import Entity, Piece
from sluice_worker.tasks.ranking import softmax

TASK = Task.TOKEN_CLASSIFICATION
NEEDS = "a model with a head for tokens (config.json: architectures …ForTokenClassification)"


def offers(description: Description) -> bool:
    return description.head == "token"


def build(material: Material) -> TaskModule:
    classifier = material.description.classifier
    assert classifier is not None, "offers() said so"
    return TokenClassification(material.tokenizer, classifier)


@dataclass(frozen=True, slots=True)
class _Read:
    """One text and the windows it is computed in."""

    located: Located
    parts: list[range]
    units: list[Unit]

    @property
    def tokens(self) -> int:
        return sum(unit.tokens for unit in self.units)


class TokenClassification:
    """Implements :class:`sluice_worker.tasks.base.TaskModule`."""

    task = TASK

    def __init__(self, tokenizer: Tokenizer, classifier: Classifier) -> None:
        self._tokenizer = tokenizer
        self._labels = classifier.labels
        self._before = len(tokenizer.frame(pair=False).ids[0])

    def prepare(self, call: Call) -> Prepared:
        ignored = self._ignored(call)
        aggregation = call.parameters["aggregation"]
        texts = [self._read(call, index) for index in range(len(call.inputs))]

        def finish(arrays: Sequence[Array]) -> list[Item]:
            items = []
            each = dealt(arrays, [len(text.units) for text in texts])
            for text, own in zip(texts, each, strict=True):
                pieces = self._pieces(text, own)
                found = entities.aggregate(pieces, self._labels, aggregation)
                items.append(self._item(text, [e for e in found if e.label not in ignored]))
            return items

        return Prepared([unit for text in texts for unit in text.units], finish)

    def _ignored(self, call: Call) -> list[str]:
        ignored: list[str] = call.parameters["ignore_labels"]
        known = entities.names(self._labels)
        for label in ignored:
            if label != "O" and label not in known:
                raise ApiError(
                    "invalid_field",
                    f"parameters.ignore_labels: got {shown(label)}, the model's labels are "
                    f"{shown(known)[1:-1]}.",
                    param="parameters.ignore_labels",
                )
        return ignored

    def _read(self, call: Call, index: int) -> _Read:
        where = place(call, index)
        located = self._tokenizer.locate(text_of(call, index), where=where)
        parts = windows(
            len(located.ids), self._tokenizer.room(), call.parameters["stride"], where=where
        )
        framed = [self._tokenizer.framed(located.ids[part.start : part.stop]) for part in parts]
        return _Read(located, parts, [unit_of(each.ids, each.type_ids) for each in framed])

    def _pieces(self, text: _Read, arrays: Sequence[Array]) -> list[Piece]:
        """Every token of the text with its scores, each from the window that decides about it."""
        rows = [
            array[self._before + own.start - part.start : self._before + own.stop - part.start]
            for array, part, own in zip(arrays, text.parts, own_parts(text.parts), strict=True)
        ]
        scores = softmax(np.concatenate(rows))
        located = text.located
        subwords = self._subwords(located)
        return [
            Piece(start, end, scores[place], subwords[place])
            for place, (start, end) in enumerate(located.offsets)
        ]

    def _subwords(self, located: Located) -> list[bool]:
        """Whether each token goes on with the word before it, by the pipeline's own rule.

        A tokenizer that marks such tokens shows it in their spelling; with others, a token begins
        a word where a blank stands before it or in its place.
        """
        unknown, marked = self._tokenizer.unknown_id, self._tokenizer.marks_subwords
        text = located.text
        return [
            token_id != unknown
            and (
                len(token) != end - start
                if marked
                else start > 0 and " " not in text[start - 1 : start + 1]
            )
            for token_id, token, (start, end) in zip(
                located.ids, located.tokens, located.offsets, strict=True
            )
        ]

    def _item(self, text: _Read, found: list[Entity]) -> Item:
        written = [
            {
                "label": entity.label,
                "score": entity.score,
                "start": entity.start,
                "end": entity.end,
                "text": text.located.text[entity.start : entity.end],
            }
            for entity in found
        ]
        return item({"entities": written}, text.tokens, chunks=len(text.parts))
