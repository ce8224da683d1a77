"""Relation extraction by classifying pairs of given entities, each marked in the text.

The model is a sequence classifier that was trained on texts with entity markers; which ones it
knows is read from its configuration or from its tokenizer (``models.description``). Every pair is
a forward pass of its own. Of a text too long for one window, a pair is read in the window around
it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np

from sluice_api.call import Call, Item, members_of, place
from sluice_api.errors import ApiError
from sluice_api.shapes.listing import item
from sluice_api.shapes.relations import MAX_PAIRS, check_asked_directly
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array, Unit, unit_of
from sluice_worker.models.description import Classifier, Description, Markers
from sluice_worker.models.tokenizer import Tokenizer
from sluice_worker.tasks.base import Material, Prepared, TaskModule, dealt
from sluice_worker.tasks.entity_markers import Marked, Mention, mark
from sluice_worker.tasks.ranking import sigmoid, softmax

TASK = Task.RELATION_EXTRACTION
NEEDS = (
    "a sequence classifier that knows entity markers (entity_markers in config.json, or [E1] [/E1] "
    "[E2] [/E2] or the like among the tokenizer's added tokens)"
)

NO_RELATION = frozenset(("no_relation", "norelation", "none", "na", "n_a", "no_rel", "other"))
"""Labels that say that there is none, in lower case with ``_`` for whatever is no letter."""

_SURE = 0.5
_MARGIN_CHARACTERS_PER_TOKEN = 8
"""Context is looked for no farther than this many characters for each token of a window."""


def offers(description: Description) -> bool:
    classifier = description.classifier
    labelled = classifier is not None and classifier.activation != "none"
    return labelled and description.markers is not None


def build(material: Material) -> TaskModule:
    description = material.description
    assert description.classifier is not None, "offers() said so"
    assert description.markers is not None
    return PairClassification(material.tokenizer, description.classifier, description.markers)


@dataclass(frozen=True, slots=True)
class _Read:
    """One text with its entities.

    Attributes:
        pairs: positions of head and tail, one for each of ``units``.
        skipped: pairs too far apart for a window.
        windowed: how many pairs were read without the whole text.
    """

    text: str
    mentions: list[Mention]
    pairs: list[tuple[int, int]]
    units: list[Unit]
    skipped: list[tuple[int, int]]
    windowed: int


class PairClassification:
    """Implements :class:`sluice_worker.tasks.base.TaskModule`."""

    task = TASK

    def __init__(self, tokenizer: Tokenizer, classifier: Classifier, markers: Markers) -> None:
        self._tokenizer = tokenizer
        self._labels = classifier.labels
        self._each_by_itself = classifier.activation == "sigmoid"
        self._markers = markers
        self._no_relation = {i for i, label in enumerate(self._labels) if says_no_relation(label)}

    def prepare(self, call: Call) -> Prepared:
        check_asked_directly(call)
        threshold = call.parameters["threshold"]
        texts = [self._read(call, index) for index in range(len(call.inputs))]
        if sum(len(text.units) for text in texts) > MAX_PAIRS:
            raise _too_many_pairs("input", sum(len(text.units) for text in texts))

        def finish(arrays: Sequence[Array]) -> list[Item]:
            each = dealt(arrays, [len(text.units) for text in texts])
            return [self._item(text, own, threshold) for text, own in zip(texts, each, strict=True)]

        return Prepared([unit for text in texts for unit in text.units], finish)

    def _read(self, call: Call, index: int) -> _Read:
        where = place(call, index)
        members = members_of(call.inputs[index])
        mentions = [Mention(**entity) for entity in self._entities(members, where)]
        pairs = [(head, tail) for head, tail in members.get("pairs") or ()]
        if "pairs" not in members:
            if len(mentions) * (len(mentions) - 1) > MAX_PAIRS:
                raise _too_many_pairs(f"{where}.entities", len(mentions) * (len(mentions) - 1))
            pairs = list(permutations(range(len(mentions)), 2))
        read = _Read(members["text"], mentions, [], [], [], 0)
        return self._with_pairs(read, pairs, where)

    def _entities(self, members: dict[str, Any], where: str) -> list[dict[str, Any]]:
        entities: list[dict[str, Any]] | None = members.get("entities")
        if entities is None:
            raise ApiError(
                "missing_field",
                f"{where}.entities: required, because this model says what holds between given "
                "entities and finds none itself. Write the input as "
                '{"text": …, "entities": [{"start": …, "end": …, "label": …}, …]}, or name a '
                "service that finds them in parameters.entities_from.",
                param=f"{where}.entities",
            )
        for index, entity in enumerate(entities):
            if entity["label"] is None and self._typed:
                field = f"{where}.entities[{index}].label"
                raise ApiError(
                    "missing_field",
                    f"{field}: required, because this model reads what the entities are.",
                    param=field,
                )
        return entities

    @property
    def _typed(self) -> bool:
        return any("{label}" in text for text in (*self._markers.head, *self._markers.tail))

    def _with_pairs(self, read: _Read, pairs: list[tuple[int, int]], where: str) -> _Read:
        windowed, margin = 0, self._tokenizer.room() * _MARGIN_CHARACTERS_PER_TOKEN
        for head, tail in pairs:
            mentions = read.mentions[head], read.mentions[tail]
            marked = mark(read.text, *mentions, self._markers, margin=margin)
            ids, whole = self._window(marked, where)
            if not ids:
                read.skipped.append((head, tail))
                continue
            framed = self._tokenizer.framed(ids)
            read.pairs.append((head, tail))
            read.units.append(unit_of(framed.ids, framed.type_ids))
            windowed += not whole
        return replace(read, windowed=windowed)

    def _window(self, marked: Marked, where: str) -> tuple[tuple[int, ...], bool]:
        """The tokens of a marked text that are read, and whether they are the whole text.

        As many as fit, with as much context before as after; none where the pair itself does not.
        """
        located, room = self._tokenizer.locate(marked.text, where=where), self._tokenizer.room()
        if len(located.ids) <= room:
            return located.ids, marked.whole
        inside = [
            place
            for place, (start, end) in enumerate(located.offsets)
            if end > marked.start and start < marked.end
        ]
        first, last = inside[0], inside[-1]
        spare = room - (last - first + 1)
        if spare < 0:
            return (), False
        start = min(max(0, first - spare // 2), len(located.ids) - room)
        return located.ids[start : start + room], False

    def _item(self, text: _Read, arrays: Sequence[Array], threshold: float | None) -> Item:
        relations: list[dict[str, Any]] = [
            {"head": head, "tail": tail, "label": self._labels[label], "score": score}
            for (head, tail), logits in zip(text.pairs, arrays, strict=True)
            for label, score in self._holding(logits, threshold)
        ]
        relations.sort(key=lambda relation: -relation["score"])
        answer: dict[str, Any] = {
            "entities": [
                {
                    "label": mention.label,
                    "start": mention.start,
                    "end": mention.end,
                    "text": text.text[mention.start : mention.end],
                }
                for mention in text.mentions
            ],
            "relations": relations,
        }
        if text.skipped:
            answer["skipped"] = text.skipped
        if text.windowed:  # One is told too: that pair was judged without the whole text.
            answer["chunks"] = text.windowed
        return item(answer, sum(unit.tokens for unit in text.units))

    def _holding(self, logits: Array, threshold: float | None) -> list[tuple[int, float]]:
        """(label, score) of what holds for one pair: one at most, or each by itself."""
        if self._each_by_itself:
            scores = sigmoid(logits)
            held = np.flatnonzero(scores >= (_SURE if threshold is None else threshold))
        else:
            scores = softmax(logits)
            held = np.array([scores.argmax()])
            held = held[scores[held] >= (threshold or 0.0)]
        return [
            (int(label), float(scores[label])) for label in held if label not in self._no_relation
        ]


def says_no_relation(label: str) -> bool:
    """Whether a label is a model's word for "nothing holds"."""
    return re.sub(r"[^a-z]+", "_", label.lower()).strip("_") in NO_RELATION


def _too_many_pairs(where: str, count: int) -> ApiError:
    return ApiError(
        "too_many_inputs",
        f"{where}: got {count} pairs of entities, at most {MAX_PAIRS} are classified in one "
        "request. Ask for some of them with pairs.",
        param=where,
    )
