"""Sentence vectors. The engine pools; here they are cut to ``dimensions`` and written."""

from collections.abc import Sequence

import numpy as np

from sluice_api.call import Call, Item
from sluice_api.errors import ApiError
from sluice_api.shapes.embeddings import item
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array, unit_of
from sluice_worker.models.description import Description
from sluice_worker.models.tokenizer import Tokenizer
from sluice_worker.tasks.base import Material, Prepared, TaskModule, encode

TASK = Task.EMBEDDINGS
NEEDS = "an encoder without a head, or a sentence-transformers folder"


def offers(description: Description) -> bool:
    return description.pooling is not None


def build(material: Material) -> TaskModule:
    return Embeddings(material.tokenizer, material.description.hidden_size)


class Embeddings:
    """Implements :class:`sluice_worker.tasks.base.TaskModule`."""

    task = TASK

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        self._size = size

    def prepare(self, call: Call) -> Prepared:
        dimensions = call.parameters["dimensions"]
        if dimensions is not None and dimensions > self._size:
            where = f"{call.codec.parameters}dimensions"
            raise ApiError(
                "invalid_field",
                f"{where}: got {dimensions}, this model's vectors have {self._size}.",
                param=where,
            )
        encoded = [encode(self._tokenizer, call, index) for index in range(len(call.inputs))]

        def finish(arrays: Sequence[Array]) -> list[Item]:
            return [
                item(vector_bytes(vector, dimensions), len(text.ids), truncated=text.truncated)
                for text, vector in zip(encoded, arrays, strict=True)
            ]

        return Prepared([unit_of(text.ids, text.type_ids) for text in encoded], finish)


def vector_bytes(vector: Array, dimensions: int | None) -> bytes:
    """Little-endian float32. A shortened vector keeps its direction and gets unit length again."""
    if dimensions is not None and dimensions < len(vector):
        vector = vector[:dimensions]
        length = float(np.linalg.norm(vector))
        vector = vector / np.float32(length or 1.0)
    return vector.astype("<f4", copy=False).tobytes()
