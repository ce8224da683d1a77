"""Which tasks there are. Adding one is adding a module (see ``tasks.base``) and a line here."""

from types import ModuleType
from typing import Final

from sluice_api.tasks import Task
from sluice_worker.tasks import (
    classification,
    embeddings,
    fill_mask,
    question_answering,
    relations_pairs,
    relations_written,
    rerank,
    summarization,
    token_classification,
    translation,
    zero_shot_nli,
    zero_shot_vectors,
)
from sluice_worker.tasks.base import Material, TaskModule
from sluice_worker.tasks.writing import WritingMaterial

_MODULES: tuple[ModuleType, ...] = (
    embeddings,
    zero_shot_nli,
    rerank,
    relations_pairs,
    classification,
    zero_shot_vectors,
    token_classification,
    question_answering,
    fill_mask,
)
"""In the order in which a model that offers several is said to be made for them."""

_WRITING: tuple[ModuleType, ...] = (
    relations_written,
    summarization,
    translation,
)
"""The same for models that read one text and write another."""

_GENERATING: Final = {
    Task.CHAT: "a causal language model with a chat template",
    Task.TEXT_GENERATION: "a causal language model (config.json: architectures …ForCausalLM)",
}
"""What the tasks need that are no module here: ``generation`` does them."""


def offered(material: Material) -> dict[Task, TaskModule]:
    """The tasks that a model can do, the one it is made for first."""
    return {
        module.TASK: module.build(material)
        for module in _MODULES
        if module.offers(material.description)
    }


def offered_writing(material: WritingMaterial) -> dict[Task, TaskModule]:
    """The same of a model that writes texts."""
    return {module.TASK: module.build(material) for module in _WRITING if module.offers(material)}


def needs(task: Task) -> str:
    """What kind of model does ``task``, for people."""
    if task in _GENERATING:
        return _GENERATING[task]
    modules = (*_MODULES, *_WRITING)
    return " or ".join(module.NEEDS for module in modules if task == module.TASK)
