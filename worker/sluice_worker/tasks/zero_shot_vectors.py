"""Zero-shot classification by an embedding model: the label whose meaning is nearest to the text's.

Label vectors are remembered, so a text costs one forward pass however many labels there are.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from sluice_api.call import Call, Item
from sluice_api.errors import ApiError
from sluice_api.shapes.classify import item
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array, Unit, unit_of
from sluice_worker.models.description import Description
from sluice_worker.models.tokenizer import Tokenizer
from sluice_worker.tasks.base import Material, Prepared, TaskModule, encode
from sluice_worker.tasks.labels import labels_of
from sluice_worker.tasks.ranking import rank, softmax

TASK = Task.ZERO_SHOT
NEEDS = "an embedding model"

SHARPNESS = 20.0
"""Cosines are multiplied by this before the softmax: the inverse temperature that sentence
encoders are trained with (the default scale of sentence-transformers' ranking loss)."""

REMEMBERED_LABELS = 4096


def offers(description: Description) -> bool:
    return description.pooling is not None


def build(material: Material) -> TaskModule:
    return VectorZeroShot(material.tokenizer)


class VectorZeroShot:
    """Implements :class:`sluice_worker.tasks.base.TaskModule`."""

    task = TASK

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._memory = VectorMemory(REMEMBERED_LABELS)

    def __repr__(self) -> str:
        return f"<VectorZeroShot {self._memory!r}>"

    def prepare(self, call: Call) -> Prepared:
        labels = labels_of(call)
        if labels.multi_label:
            raise ApiError(
                "invalid_field",
                "parameters.multi_label: got true, but this service compares embeddings, which "
                "ranks labels against each other. Deciding each by itself needs an NLI model.",
                param="parameters.multi_label",
            )
        texts = [encode(self._tokenizer, call, index) for index in range(len(call.inputs))]
        label_units = [self._label_unit(text) for text in labels.texts]
        known = [self._memory.get(unit.key) for unit in label_units]
        unknown = [index for index, vector in enumerate(known) if vector is None]

        def finish(arrays: Sequence[Array]) -> list[Item]:
            for index, vector in zip(unknown, arrays[len(texts) :], strict=True):
                known[index] = unit_length(vector)
                self._memory.put(label_units[index].key, unit_length(vector))
            matrix = np.stack([vector for vector in known if vector is not None])
            return [
                item(
                    rank(labels.names, _scores(vector, matrix), labels.top),
                    len(text.ids),
                    truncated=text.truncated,
                )
                for text, vector in zip(texts, arrays[: len(texts)], strict=True)
            ]

        units = [unit_of(text.ids, text.type_ids) for text in texts]
        return Prepared([*units, *(label_units[index] for index in unknown)], finish)

    def _label_unit(self, text: str) -> Unit:
        encoded = self._tokenizer.encode(text, where="parameters.labels")
        return unit_of(encoded.ids, encoded.type_ids)


class VectorMemory:
    """The last vectors used, by the key of their unit. Thread-safe."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._vectors: OrderedDict[bytes, Array] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<VectorMemory {len(self._vectors)} of {self._size}>"

    def get(self, key: bytes) -> Array | None:
        with self._lock:
            if key in self._vectors:
                self._vectors.move_to_end(key)
            return self._vectors.get(key)

    def put(self, key: bytes, vector: Array) -> None:
        with self._lock:
            self._vectors[key] = vector
            self._vectors.move_to_end(key)
            if len(self._vectors) > self._size:
                self._vectors.popitem(last=False)


def unit_length(vector: Array) -> Array:
    """A copy of length 1; independent of the batch that ``vector`` may be a row of."""
    length = float(np.linalg.norm(vector)) or 1.0
    return (vector / np.float32(length)).astype(np.float32)


def _scores(vector: Array, labels: Array) -> "np.typing.NDArray[np.float64]":
    return softmax(SHARPNESS * (labels @ unit_length(vector)).astype(np.float64))
