"""The table of bad inputs is whole, and tests ask every row of it."""

from sluice_api.shapes.tensors import VIEWS
from sluice_api.tasks import Task
from tests.support.bad_input import KINDS, TABLE, TENSORS


def test_every_task_is_given_every_kind_of_bad_input() -> None:
    assert {(case.task, case.kind) for case in TABLE} == {
        (task, kind) for task in Task for kind in KINDS
    }
    assert {(case.task, case.kind) for case in TENSORS} == {
        (task, kind) for task in VIEWS for kind in KINDS
    }
