"""What a model's metadata says of its tensors, whichever tasks it offers."""

from types import SimpleNamespace
from typing import Any

import pytest

from sluice_api.shapes.tensors import VIEWS
from sluice_api.tasks import Task
from sluice_gateway.control import v2


def told(of: Any, *tasks: Task) -> list[dict[str, Any]]:
    service: Any = SimpleNamespace(tasks=list(tasks), dimensions=None)
    return [tensor.model_dump(exclude_none=True) for tensor in of(service)]


def test_tensors_of_one_task_say_nothing_of_tasks() -> None:
    assert told(v2._inputs, Task.RERANK, Task.CHAT) == [
        {"name": "query", "datatype": "BYTES", "shape": [-1]},
        {"name": "text", "datatype": "BYTES", "shape": [-1]},
    ]


def test_tensors_of_one_name_and_two_shapes_are_both_told() -> None:
    tasks = (Task.QUESTION_ANSWERING, Task.FILL_MASK)
    assert {tensor["name"] for tensor in told(v2._inputs, *tasks)} == {
        "question",
        "context",
        "text",
    }
    scores = [tensor for tensor in told(v2._outputs, *tasks) if tensor["name"] == "score"]
    assert scores == [
        {
            "name": "score",
            "datatype": "FP32",
            "shape": [-1] * rank,
            "parameters": {"tasks": [task]},
        }
        for task, rank in zip(tasks, (1, 3), strict=True)
    ]


@pytest.mark.parametrize("task", VIEWS)
def test_no_task_hides_the_tensors_of_another(task: Task) -> None:
    """Of all tasks at once, those that say one of them are exactly the task's own."""
    for of in (v2._inputs, v2._outputs):
        alone = told(of, task)
        among = [
            tensor
            for tensor in told(of, *VIEWS)
            if task in tensor.get("parameters", {"tasks": [task]})["tasks"]
        ]
        bare = [{k: v for k, v in tensor.items() if k != "parameters"} for tensor in among]
        assert sorted(bare, key=str) == sorted(alone, key=str)
