"""What loading a model yields: everything the server needs to know and nothing about how."""

from collections.abc import Mapping
from dataclasses import dataclass

from sluice_api.tasks import Task
from sluice_worker.engines.base import Engine, Unit
from sluice_worker.tasks.base import TaskModule


@dataclass(frozen=True, slots=True, repr=False)
class LoadedModel:
    """A model in memory, ready to be warmed up.

    Attributes:
        uri: where it came from, as given.
        tasks: what it can do, the one it is made for first.
        answer_digest: see ``sluice_api.digests``.
        labels: a classifier's labels in the model's order; empty otherwise.
        dimensions: length of a sentence vector; None for classifiers.
        dtype: what was chosen, and ``dtype_reason`` why.
        canary: units of three lengths, for warm-up and for seeding the cost model.
    """

    uri: str
    tasks: Mapping[Task, TaskModule]
    engine: Engine
    answer_digest: str
    max_input_tokens: int
    labels: tuple[str, ...]
    dimensions: int | None
    dtype: str
    dtype_reason: str
    device: str
    canary: tuple[Unit, ...]

    def __repr__(self) -> str:
        offers = ", ".join(self.tasks)
        return f"<LoadedModel {self.uri}: {offers}; {self.engine!r} in {self.dtype}>"
