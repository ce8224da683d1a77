"""Classification by a model's own labels: one of many, each by itself, or a number of each."""

from collections.abc import Sequence

from sluice_api.call import Call, Item
from sluice_api.shapes.classify import item
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array, unit_of
from sluice_worker.models.description import Classifier, Description
from sluice_worker.models.tokenizer import Tokenizer
from sluice_worker.tasks.base import Material, Prepared, TaskModule, encode
from sluice_worker.tasks.ranking import ACTIVATIONS, rank

TASK = Task.CLASSIFICATION
NEEDS = "a sequence classifier (config.json: architectures …ForSequenceClassification)"


def offers(description: Description) -> bool:
    return description.head == "sequence"


def build(material: Material) -> TaskModule:
    classifier = material.description.classifier
    assert classifier is not None, "offers() said so"
    return Classification(material.tokenizer, classifier)


class Classification:
    """Implements :class:`sluice_worker.tasks.base.TaskModule`."""

    task = TASK

    def __init__(self, tokenizer: Tokenizer, classifier: Classifier) -> None:
        self._tokenizer = tokenizer
        self._labels = classifier.labels
        self._each_by_itself = classifier.activation == "sigmoid"
        self._scores = ACTIVATIONS[classifier.activation]

    def prepare(self, call: Call) -> Prepared:
        top = call.parameters["top_k"]
        encoded = [encode(self._tokenizer, call, index) for index in range(len(call.inputs))]

        def finish(arrays: Sequence[Array]) -> list[Item]:
            return [
                item(
                    rank(self._labels, self._scores(logits), top),
                    len(text.ids),
                    multi_label=self._each_by_itself,
                    truncated=text.truncated,
                )
                for text, logits in zip(encoded, arrays, strict=True)
            ]

        return Prepared([unit_of(text.ids, text.type_ids) for text in encoded], finish)
