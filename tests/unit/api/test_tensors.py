"""What answers look like as tensors, where they are not all alike."""

import msgspec

from sluice_api.call import Item
from sluice_api.shapes.questions import QuestionItem, Span
from sluice_api.shapes.tensors import VIEWS
from sluice_api.tasks import Task


def test_a_question_without_an_answer_has_a_row_like_the_others() -> None:
    """A context without a word has none."""
    found = Span(text="Rome", score=0.5, start=3, end=7)
    items = [Item(msgspec.json.encode(QuestionItem(answers, 4)), 4) for answers in ([], [found])]
    columns = VIEWS[Task.QUESTION_ANSWERING].write(items)
    assert [values for _, values in columns] == [["", "Rome"], [0.0, 0.5], [0, 3], [0, 7]]
    assert [shape for shape, _ in columns] == [[2]] * 4
