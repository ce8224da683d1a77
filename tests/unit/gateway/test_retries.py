"""The retry budget: a share of the requests with a floor, over a sliding window."""

from sluice_gateway.retries import FLOOR_PER_SECOND, SHARE, WINDOW_SECONDS, RetryBudget


def spent(budget: RetryBudget, now: float) -> int:
    count = 0
    while budget.take(now):
        count += 1
        assert count < 100_000
    return count


def test_floor_without_requests() -> None:
    assert spent(RetryBudget(0.0), 1.0) == FLOOR_PER_SECOND * WINDOW_SECONDS


def test_share_of_requests() -> None:
    budget = RetryBudget(0.0)
    for number in range(1000):
        budget.request(number / 1000)
    assert spent(budget, 1.0) == SHARE * 1000
    assert repr(budget) == "<RetryBudget 200 retries of 1000 requests>"


def test_window_slides() -> None:
    budget = RetryBudget(0.0)
    for _ in range(1000):
        budget.request(0.0)
    first = spent(budget, 0.0)
    assert spent(budget, WINDOW_SECONDS + 1) == 0  # the previous window still counts
    later = 2.5 * WINDOW_SECONDS
    assert 0 < spent(budget, later) <= FLOOR_PER_SECOND * WINDOW_SECONDS < first


def test_quiet_time_forgets_everything() -> None:
    budget = RetryBudget(0.0)
    spent(budget, 0.0)
    assert spent(budget, 100.0) == FLOOR_PER_SECOND * WINDOW_SECONDS
