"""Zero-shot classification by natural language inference (Yin et al. 2019, arXiv:1909.00161).

The text is the premise, each label makes a hypothesis, and the model says whether it follows. Equal
to transformers' ZeroShotClassificationPipeline.
"""

from collections.abc import Sequence

import numpy as np

from sluice_api.call import Call, Item, instead, place
from sluice_api.shapes.classify import item
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array, unit_of
from sluice_worker.models.description import Classifier, Description
from sluice_worker.models.tokenizer import Encoded, Tokenizer
from sluice_worker.tasks.base import Material, Prepared, TaskModule, text_of
from sluice_worker.tasks.labels import Labels, labels_of
from sluice_worker.tasks.ranking import Scores, rank, softmax

TASK = Task.ZERO_SHOT
NEEDS = (
    "a model of natural language inference (config.json: id2label with entailment and "
    "contradiction)"
)


def offers(description: Description) -> bool:
    classifier = description.classifier
    if description.head != "sequence" or classifier is None:
        return False
    return classifier.contradiction is not None


def build(material: Material) -> TaskModule:
    classifier = material.description.classifier
    assert classifier is not None, "offers() said so"
    return InferenceZeroShot(material.tokenizer, classifier)


class InferenceZeroShot:
    """Implements :class:`sluice_worker.tasks.base.TaskModule`."""

    task = TASK

    def __init__(self, tokenizer: Tokenizer, classifier: Classifier) -> None:
        assert classifier.entailment is not None
        assert classifier.contradiction is not None
        self._tokenizer = tokenizer
        self._entailment = classifier.entailment
        self._contradiction = classifier.contradiction

    def prepare(self, call: Call) -> Prepared:
        labels = labels_of(call)
        encoded = [
            self._tokenizer.encode_pairs(
                text_of(call, index),
                labels.texts,
                where=place(call, index),
                truncate=call.parameters["truncate"],
                instead=instead(call.codec),
            )
            for index in range(len(call.inputs))
        ]

        def finish(arrays: Sequence[Array]) -> list[Item]:
            logits = np.stack(arrays).reshape(len(encoded), len(labels.names), -1)
            return [
                self._item(labels, pairs, rows) for pairs, rows in zip(encoded, logits, strict=True)
            ]

        units = [unit_of(pair.ids, pair.type_ids) for pairs in encoded for pair in pairs]
        return Prepared(units, finish)

    def _item(self, labels: Labels, pairs: list[Encoded], logits: Array) -> Item:
        return item(
            rank(labels.names, self._scores(logits, labels.multi_label), labels.top),
            sum(len(pair.ids) for pair in pairs),
            multi_label=labels.multi_label,
            truncated=any(pair.truncated for pair in pairs),
        )

    def _scores(self, logits: Array, multi_label: bool) -> Scores:
        """``[labels, classes]`` → ``[labels]``."""
        if multi_label or len(logits) == 1:  # One label alone would always score 1.
            return softmax(logits[:, [self._contradiction, self._entailment]])[:, 1]
        return softmax(logits[:, self._entailment])
