"""Due times and the choice of a batch, by example; the properties stand in tests/property."""

from sluice_worker.batching import PATIENCE_SECONDS, choose, due_times


def test_a_packed_batch_is_the_most_urgent_units_that_fit() -> None:
    assert choose([50, 40, 30, 5], budget=100, max_size=8, padded=False) == [0, 1]


def test_size_is_bounded() -> None:
    assert choose([1] * 10, budget=100, max_size=4, padded=False) == [0, 1, 2, 3]
    assert len(choose([1] * 10, budget=100, max_size=4, padded=True)) == 4


def test_a_unit_beyond_the_budget_runs_alone() -> None:
    assert choose([500, 1, 1], budget=100, max_size=8, padded=False) == [0]
    assert choose([500, 1, 1], budget=100, max_size=8, padded=True) == [0]


def test_a_padded_batch_takes_units_of_like_length_around_the_most_urgent() -> None:
    lengths = [20, 200, 21, 8, 19, 190]
    assert choose(lengths, budget=64, max_size=8, padded=True) == [0, 2, 4]


def test_a_short_deadline_is_due_first() -> None:
    assert due_times(10.0, 10.2, [0.1]) < due_times(10.0, 40.0, [0.1])


def test_a_long_deadline_waits_no_longer_than_patience() -> None:
    assert due_times(10.0, 4000.0, [0.1]) == [10.0 + PATIENCE_SECONDS]


def test_a_list_falls_due_at_the_pace_of_its_work() -> None:
    dues = due_times(0.0, 100.0, [0.5, 0.5, 0.5])
    assert dues == [PATIENCE_SECONDS, PATIENCE_SECONDS + 0.5, PATIENCE_SECONDS + 1.0]
    # A lone request that arrives later slips in before the list's tail.
    assert dues[1] < due_times(0.6, 100.0, [0.1])[0] < dues[2]
