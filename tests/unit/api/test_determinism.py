"""How far answers may be reused: a class for every task, and for every kind of call of it."""

from typing import Any

import msgspec
import pytest

from sluice_api.routes import CANONICAL_ROUTES
from sluice_api.shapes import v2
from sluice_api.tasks import DETERMINISM, Determinism, Task

TEXT: dict[str, Any] = {"input": "a text"}
BODIES: dict[Task, dict[str, Any]] = {
    Task.EMBEDDINGS: TEXT,
    Task.CLASSIFICATION: TEXT,
    Task.ZERO_SHOT: {"input": "a text", "parameters": {"labels": ["x", "y"]}},
    Task.TOKEN_CLASSIFICATION: TEXT,
    Task.RELATION_EXTRACTION: TEXT,
    Task.QUESTION_ANSWERING: {"input": {"question": "who", "context": "me"}},
    Task.FILL_MASK: {"input": "a [MASK]"},
    Task.RERANK: {"query": "a", "documents": ["b"]},
    Task.SUMMARIZATION: TEXT,
    Task.TRANSLATION: TEXT,
    Task.TEXT_GENERATION: {"prompt": "a text"},
    Task.CHAT: {"messages": [{"role": "user", "content": "hello"}]},
}
CHANCE: dict[Task, list[dict[str, Any]]] = {
    Task.SUMMARIZATION: [{"parameters": {"temperature": 0.5}}, {"parameters": {"seed": 1}}],
    Task.TRANSLATION: [{"parameters": {"temperature": 0.5}}, {"parameters": {"top_p": 0.5}}],
    Task.TEXT_GENERATION: [{"temperature": 0.5}, {"seed": 1}, {"n": 2}],
    Task.CHAT: [{"temperature": 0.5}, {"top_k": 3}, {"n": 2}],
}


def determinism(task: Task, **members: Any) -> Determinism:
    body = msgspec.json.encode({"model": "m", **BODIES[task], **members})
    return CANONICAL_ROUTES[task].codec.parse(body).determinism


def test_every_task_has_a_class_and_a_body_here() -> None:
    assert DETERMINISM.keys() == set(Task) == BODIES.keys()
    assert set(DETERMINISM.values()) == {Determinism.PURE, Determinism.GENERATION}
    generating = {task for task, of_task in DETERMINISM.items() if of_task != Determinism.PURE}
    assert generating == CHANCE.keys()


@pytest.mark.parametrize("task", Task)
def test_a_plain_call_is_of_its_task_s_class(task: Task) -> None:
    if task in (Task.TEXT_GENERATION, Task.CHAT):
        assert determinism(task, temperature=0) is Determinism.GENERATION
    assert determinism(task) is DETERMINISM[task]


@pytest.mark.parametrize(
    ("task", "members"), [(task, members) for task in CHANCE for members in CHANCE[task]]
)
def test_where_chance_is_asked_for_it_is_sampled(task: Task, members: dict[str, Any]) -> None:
    assert determinism(task, **members) is Determinism.SAMPLED


def test_while_nobody_knows_what_is_asked_it_is_never_kept() -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    call = v2.CODEC.parse(msgspec.json.encode({"inputs": [tensor]}))
    assert call.task is None and call.determinism is Determinism.NEVER and not call.reusable
