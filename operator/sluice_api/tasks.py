"""What a model can be asked to do, and how far an answer may be reused."""

from enum import StrEnum


class Task(StrEnum):
    """The tasks a service may offer; ``model.task`` takes one of them or ``auto``."""

    EMBEDDINGS = "embeddings"
    CLASSIFICATION = "classification"
    ZERO_SHOT = "zero-shot"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105
    RELATION_EXTRACTION = "relation-extraction"
    QUESTION_ANSWERING = "question-answering"
    FILL_MASK = "fill-mask"
    RERANK = "rerank"
    SUMMARIZATION = "summarization"
    TRANSLATION = "translation"
    TEXT_GENERATION = "text-generation"
    CHAT = "chat"


_SIDE_BY_SIDE: tuple[tuple[Task, ...], ...] = (
    (Task.EMBEDDINGS, Task.ZERO_SHOT),
    (Task.CLASSIFICATION, Task.ZERO_SHOT, Task.RERANK, Task.RELATION_EXTRACTION),
    (Task.TEXT_GENERATION, Task.CHAT),
)
"""What models do with the same output: with vectors, with the scores of labels, with the next
token. A model served for any other task does that one only."""


def one_model_does(task: Task) -> list[Task]:
    """``task``, and what a model that is served for it may do beside it.

    Zero-shot hides classification: what such a model's own labels say (``entailment``) is no answer
    to a request whose labels were forgotten.
    """
    hidden = {task, Task.CLASSIFICATION} if task is Task.ZERO_SHOT else {task}
    others = [each for kind in _SIDE_BY_SIDE if task in kind for each in kind]
    return [task, *(each for each in others if each not in hidden)]


class Determinism(StrEnum):
    """How far an answer follows from its input alone; decides what may be cached.

    A task is of one of the first two classes; a call of it (``Call.determinism``) of any.
    """

    PURE = "pure"
    """Same revision, parameters and input: same answer. Kept."""
    GENERATION = "generation"
    """Like pure, unless chance has a part in it. Kept, unless the service's owner says never."""
    SAMPLED = "sampled"
    """Drawn by chance, with a seed too: another call may get another answer. Not kept."""
    NEVER = "never"
    """Nobody knows what it follows from. Neither kept nor shared."""


DETERMINISM: dict[Task, Determinism] = {
    Task.EMBEDDINGS: Determinism.PURE,
    Task.CLASSIFICATION: Determinism.PURE,
    Task.ZERO_SHOT: Determinism.PURE,
    Task.TOKEN_CLASSIFICATION: Determinism.PURE,
    Task.RELATION_EXTRACTION: Determinism.PURE,
    Task.QUESTION_ANSWERING: Determinism.PURE,
    Task.FILL_MASK: Determinism.PURE,
    Task.RERANK: Determinism.PURE,
    Task.SUMMARIZATION: Determinism.GENERATION,
    Task.TRANSLATION: Determinism.GENERATION,
    Task.TEXT_GENERATION: Determinism.GENERATION,
    Task.CHAT: Determinism.GENERATION,
}
