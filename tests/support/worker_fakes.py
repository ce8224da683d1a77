"""A model without weights, for tests of the worker's own machinery.

``ToyEngine`` computes ``[tokens, sum of ids]`` per unit and can be held at a gate, so that a test
decides what is running and what waits. ``ToyTask`` makes one unit of each text, one token a
character, and answers with embedding items.
"""

import threading
from collections.abc import Sequence

import numpy as np

from sluice_api.call import Call, Item
from sluice_api.errors import ApiError
from sluice_api.shapes import embeddings
from sluice_api.tasks import Task
from sluice_worker.engines.base import Array, Unit
from sluice_worker.loaded import LoadedModel
from sluice_worker.tasks.base import Prepared

POISON = "☠"
"""A text that holds it makes its whole batch fail."""
NOT_A_NUMBER = "∞"


def unit(text: str) -> Unit:
    return Unit(tuple(map(ord, text)), None, text.encode())


class ToyEngine:
    """Keeps every batch it ran, in order; waits at ``gate`` before each."""

    stepwise = False

    def __init__(self, *, padded: bool = False) -> None:
        self.name = "padded" if padded else "packed"
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[str]] = []
        self.broken = False

    def run(self, units: Sequence[Unit]) -> list[Array]:
        texts = ["".join(map(chr, unit.ids)) for unit in units]
        self.batches.append(texts)
        self.entered.release()
        assert self.gate.wait(60), "the test never opened the gate"
        if self.broken or any(POISON in text for text in texts):
            raise RuntimeError("poisoned")
        arrays = [np.array([u.tokens, sum(u.ids) % 9973], np.float32) for u in units]
        for text, array in zip(texts, arrays, strict=True):
            if NOT_A_NUMBER in text:
                array[0] = np.nan
        return arrays

    def computed_tokens(self, lengths: Sequence[int]) -> int:
        return len(lengths) * max(lengths) if self.name == "padded" else sum(lengths)


class ToyTask:
    task = Task.EMBEDDINGS

    def prepare(self, call: Call) -> Prepared:
        units = []
        for index, text in enumerate(call.inputs):
            if not isinstance(text, str):
                raise ApiError("invalid_field", f"input[{index}]: needs a text.")
            units.append(unit(text))

        def finish(arrays: Sequence[Array]) -> list[Item]:
            return [
                embeddings.item(array.astype("<f4").tobytes(), unit.tokens)
                for unit, array in zip(units, arrays, strict=True)
            ]

        return Prepared(units, finish)


def toy_model(engine: ToyEngine) -> LoadedModel:
    return LoadedModel(
        uri="toy://model",
        tasks={Task.EMBEDDINGS: ToyTask()},
        engine=engine,
        answer_digest="sha256:toy",
        max_input_tokens=512,
        labels=(),
        dimensions=2,
        dtype="float32",
        dtype_reason="it is a toy",
        device="cpu",
        canary=(unit("a"), unit("bb"), unit("cccc")),
    )
