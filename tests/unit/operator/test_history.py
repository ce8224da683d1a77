"""What is learnt: start times, capacity, the most that was needed."""

import pytest

from sluice_operator.scaling.history import (
    COLD_START_SECONDS,
    ColdStarts,
    PeakWindow,
    ReplicaCapacity,
    Returns,
)


def test_cold_starts_are_the_ninetieth_percentile_of_the_last_twenty() -> None:
    starts = ColdStarts()
    assert starts.typical() == COLD_START_SECONDS
    starts.add(3.0)
    assert starts.typical() == 3.0
    for seconds in range(100, 120):
        starts.add(seconds)
    assert starts.typical() == 117


def test_capacity_is_unknown_then_reported() -> None:
    capacity = ReplicaCapacity()
    assert capacity.estimate(0.0) is None
    capacity.reported(None)
    assert capacity.estimate(0.0) is None
    capacity.reported(0.025)
    assert capacity.estimate(0.0) == 40.0
    capacity.reported(None)
    assert capacity.estimate(1e6) == 40.0, "a quiet night forgets nothing"


def test_what_was_measured_under_load_counts_more_than_what_is_reported() -> None:
    capacity = ReplicaCapacity()
    capacity.reported(0.025)
    capacity.saturated(30.0, now=0.0)
    assert capacity.estimate(1.0) == 30.0
    assert capacity.estimate(60.0) == 30.0
    assert capacity.estimate(61.0) == 40.0, "an old low figure gives way"
    capacity.saturated(80.0, now=100.0)
    assert capacity.estimate(500.0) == 80.0, "an old high one was possible once"
    assert capacity.estimate(701.0) == 40.0


def test_heavier_requests_lower_what_was_measured() -> None:
    capacity = ReplicaCapacity()
    capacity.reported(0.025)
    capacity.saturated(40.0, now=0.0)
    capacity.reported(0.05)
    assert capacity.estimate(1.0) == 20.0
    capacity.reported(0.001)
    assert capacity.estimate(1.0) == 40.0, "lighter ones in small batches prove nothing"


def test_measurements_are_smoothed_and_nothing_is_none() -> None:
    capacity = ReplicaCapacity()
    capacity.saturated(0.0, now=0.0)
    assert capacity.estimate(0.0) is None
    for second in range(100):
        capacity.saturated(30.0 if second % 2 else 50.0, now=second)
    assert capacity.estimate(100.0) == pytest.approx(40.0, abs=3.0)


def test_the_peak_of_a_window() -> None:
    peaks = PeakWindow(30.0)
    assert peaks.highest(10.0, 0.0) == 0
    for now, value in enumerate([1, 5, 2, 3, 1]):
        peaks.add(value, now)
    assert peaks.highest(10.0, 5.0) == 5
    assert peaks.highest(3.0, 5.0) == 3
    assert peaks.highest(1.0, 5.0) == 1


def test_the_peak_window_holds_no_more_than_it_must() -> None:
    peaks = PeakWindow(30.0)
    for now in range(10_000):
        peaks.add(now % 7, now)
        peaks.highest(30.0, now)
    assert len(peaks._peaks) <= 31


def test_what_is_measured_while_replicas_start_never_means_less() -> None:
    capacity = ReplicaCapacity()
    capacity.reported(1 / 40, only_more=True)
    assert capacity.estimate(0.0) == pytest.approx(40.0), "the first figure counts in any case"
    capacity.reported(1 / 10, only_more=True)
    capacity.saturated(5.0, 1.0, only_more=True)
    assert capacity.estimate(1.0) == pytest.approx(40.0)
    capacity.reported(1 / 50, only_more=True)
    assert capacity.estimate(1.0) == pytest.approx(50.0)
    capacity.saturated(5.0, 2.0)
    assert capacity.estimate(2.0) == pytest.approx(5.0)


def test_the_last_time_that_so_much_was_needed() -> None:
    peaks = PeakWindow(30.0)
    assert peaks.last(1) is None
    for now, value in enumerate([1, 5, 2, 3, 1]):
        peaks.add(value, now)
    assert [peaks.last(least) for least in (1, 2, 3, 4, 5, 6)] == [4, 3, 3, 1, 1, None]


def returning(returns: Returns, *gaps: float) -> float:
    """Demand that came back so long after it had fallen, each time for a minute."""
    now = 0.0
    for gap in gaps:
        now += gap
        returns.came_back(gap, now)
        now += 60.0
    return returns.patience()


def test_twice_is_a_habit_and_once_is_none() -> None:
    assert returning(Returns(300.0)) == 0.0
    assert returning(Returns(300.0), 200.0) == 0.0
    assert returning(Returns(300.0), 100.0, 200.0) == pytest.approx(240.0)


def test_what_comes_back_much_later_is_another_time() -> None:
    assert returning(Returns(300.0), 260.0, 260.0, 3600.0) == 0.0


def test_a_return_in_several_steps_is_one() -> None:
    returns = Returns(300.0)
    for now in (200.0, 201.0, 210.0):
        returns.came_back(200.0, now)
    assert returns.patience() == 0.0


def test_who_waited_in_vain_forgets() -> None:
    returns = Returns(300.0)
    assert returning(returns, 200.0, 200.0) == pytest.approx(240.0)
    returns.waited(30.0)
    assert returns.patience() > 0
    returns.waited(240.0)
    assert returns.patience() == 0.0
