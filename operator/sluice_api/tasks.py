"""What a model can be asked to do, and how far an answer may be reused."""

from enum import StrEnum


class Task(StrEnum):
    """The tasks a service may offer; ``model.task`` takes one of them or ``auto``."""

    EMBEDDINGS = "embeddings"
    CLASSIFICATION = "classification"
    ZERO_SHOT = "zero-shot"


class Determinism(StrEnum):
    """How far an answer to a task follows from its input alone; decides what may be cached."""

    PURE = "pure"
    """Same revision, parameters and input: same answer."""
    NEVER = "never"


DETERMINISM: dict[Task, Determinism] = {
    Task.EMBEDDINGS: Determinism.PURE,
    Task.CLASSIFICATION: Determinism.PURE,
    Task.ZERO_SHOT: Determinism.PURE,
}
