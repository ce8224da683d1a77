"""Refusals follow from four numbers, and reserved work is given back."""

import pytest

from sluice_api.errors import ApiError
from sluice_worker.admission import Reserved, judge


@pytest.mark.parametrize(
    ("wait", "own", "left", "code"),
    [
        (0.0, 0.1, 1.0, None),
        (4.9, 0.1, 30.0, None),
        (5.1, 0.1, 30.0, "overloaded"),
        (0.95, 0.1, 1.0, "overloaded"),
        (0.0, 1.1, 1.0, "deadline_exceeded"),
        (0.0, 0.0, -0.1, "deadline_exceeded"),
    ],
)
def test_who_is_refused(wait: float, own: float, left: float, code: str | None) -> None:
    try:
        judge(wait=wait, own=own, left=left, max_backlog=5.0)
        found = None
    except ApiError as error:
        found = error.code
    assert found == code


def test_a_prediction_that_nothing_confirms_loses_its_weight() -> None:
    def refused(quiet: float) -> bool:
        try:
            judge(wait=0.0, own=100.0, left=30.0, max_backlog=5.0, quiet=quiet)
        except ApiError:
            return True
        return False

    assert [refused(quiet) for quiet in (0.0, 15.0, 20.0, 3600.0)] == [True, True, False, False]
    with pytest.raises(ApiError):  # What is too late stays too late.
        judge(wait=0.0, own=0.0, left=-0.1, max_backlog=5.0, quiet=3600.0)


def test_a_refusal_says_when_the_work_ahead_will_be_done() -> None:
    with pytest.raises(ApiError) as refused:
        judge(wait=7.25, own=0.1, left=30.0, max_backlog=5.0)
    assert refused.value.retry_after == 7.25


def test_reserved_work_adds_up_and_is_given_back_once() -> None:
    reserved = Reserved()
    with reserved.hold(2.0) as one, reserved.hold(0.5):
        assert reserved.seconds == 2.5
        one.release()
        assert reserved.seconds == 0.5
    assert reserved.seconds == 0.0
