"""Rerank: how relevant a document is to a query, by a cross-encoder that reads both at once.

A document that is too long for one window counts as its most relevant part (Dai and Callan 2019,
arXiv:1905.09217: the maximum over passages).
"""

from collections.abc import Sequence

import numpy as np

from sluice_api.call import Call, Item, place
from sluice_api.shapes.listing import item
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array, Unit, unit_of
from sluice_worker.models.description import Description
from sluice_worker.models.tokenizer import Tokenizer
from sluice_worker.models.windows import windows
from sluice_worker.tasks.base import Material, Prepared, TaskModule, dealt, leading_part, text_of
from sluice_worker.tasks.ranking import sigmoid

TASK = Task.RERANK
NEEDS = (
    "a cross-encoder (config.json: architectures …ForSequenceClassification, and id2label or "
    "num_labels of one label)"
)


def offers(description: Description) -> bool:
    classifier = description.classifier
    return description.head == "sequence" and classifier is not None and len(classifier.labels) == 1


def build(material: Material) -> TaskModule:
    return Rerank(material.tokenizer)


class Rerank:
    """Implements :class:`sluice_worker.tasks.base.TaskModule`."""

    task = TASK

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def prepare(self, call: Call) -> Prepared:
        query = leading_part(self._tokenizer, call.parameters["query"], where="query")
        read = [self._read(call, index, query) for index in range(len(call.inputs))]
        raw = call.parameters["raw_scores"]

        def finish(arrays: Sequence[Array]) -> list[Item]:
            items = []
            for units, own in zip(read, dealt(arrays, map(len, read)), strict=True):
                best = max(float(array[0]) for array in own)
                score = best if raw else float(sigmoid(np.array(best)))
                tokens = sum(unit.tokens for unit in units)
                items.append(item({"relevance_score": score}, tokens, chunks=len(units)))
            return items

        return Prepared([unit for units in read for unit in units], finish)

    def _read(self, call: Call, index: int, query: tuple[int, ...]) -> list[Unit]:
        where = place(call, index)
        document = self._tokenizer.locate(text_of(call, index), where=where).ids
        room = self._tokenizer.room(pair=True) - len(query)
        framed = [
            self._tokenizer.framed(query, document[part.start : part.stop])
            for part in windows(len(document), room, None, where=where)
        ]
        return [unit_of(each.ids, each.type_ids) for each in framed]
