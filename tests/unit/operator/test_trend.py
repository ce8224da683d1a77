"""Climbs are foreseen; steps, bursts, tops and noise are none."""

import random
from collections.abc import Callable

import pytest

from sluice_operator.scaling.trend import BUCKETS, SPAN_SECONDS, Trend, proven_slope


def after(load: Callable[[int], float], seconds: int = 300) -> Trend:
    """A trend that has seen ``load`` requests in each second."""
    trend = Trend()
    rest = 0.0
    for second in range(seconds):
        rest += load(second)
        trend.observe(int(rest), second)
        rest -= int(rest)
    return trend


def foreseen(load: Callable[[int], float], ahead: float = 60.0, seconds: int = 300) -> float:
    return after(load, seconds).foreseen(float(seconds), ahead, 0.0)


def test_a_climb_is_foreseen_for_when_a_replica_has_started() -> None:
    def climb(now: int) -> float:
        return 20 + 0.2 * now

    assert foreseen(climb) == pytest.approx(20 + 0.2 * 360, rel=0.05)
    assert foreseen(climb, ahead=240.0) == pytest.approx(20 + 0.2 * 540, rel=0.1)
    assert foreseen(climb, ahead=5.0) <= 20 + 0.2 * 305


def test_nobody_looks_further_ahead_than_back() -> None:
    trend = after(lambda now: 20 + 0.2 * now)
    assert trend.foreseen(300.0, 1e6, 0.0) == trend.foreseen(300.0, SPAN_SECONDS, 0.0)


@pytest.mark.parametrize("at", range(0, 300, 20))
def test_a_step_is_no_climb_whenever_it_came(at: int) -> None:
    assert foreseen(lambda now: 120 if now >= at else 20) == 0.0


@pytest.mark.parametrize("at", range(0, 300, 20))
def test_a_burst_is_no_climb(at: int) -> None:
    assert foreseen(lambda now: 100 if at <= now < at + 30 else 20) == 0.0


def test_a_climb_that_has_reached_its_top_is_over() -> None:
    assert foreseen(lambda now: min(100, 20 + 0.4 * now), seconds=200 + 130) == 0.0


def test_a_fall_is_no_climb() -> None:
    assert foreseen(lambda now: 200 - 0.5 * now) == 0.0


@pytest.mark.parametrize("rate", [2, 20, 200])
def test_noise_is_hardly_ever_a_climb_and_never_a_steep_one(rate: int) -> None:
    chance = random.Random(rate)
    found = [
        proven_slope([chance.gauss(rate, (rate / 30) ** 0.5) for _ in range(BUCKETS)])
        for _ in range(2000)
    ]
    assert sum(slope > 0 for slope in found) <= 20
    assert max(found) * 240 <= 0.1 * rate


def test_rough_demand_must_climb_more_to_be_believed() -> None:
    smooth = [20 + 3 * n for n in range(BUCKETS)]
    rough = [rate + (8 if n % 2 else -8) for n, rate in enumerate(smooth)]
    assert 0 < proven_slope(rough) < proven_slope(smooth) / 2


def test_what_is_not_known_for_the_whole_time_is_no_climb() -> None:
    trend = after(lambda now: 20 + 0.2 * now)
    assert trend.foreseen(300.0, 60.0, 0.0) > 0
    assert trend.foreseen(300.0, 60.0, None) == 0.0
    assert trend.foreseen(300.0, 60.0, 30.0) == 0.0


def test_it_forgets() -> None:
    trend = after(lambda now: 20 + 0.2 * now, seconds=3000)
    assert trend.foreseen(3000.0, 60.0, 0.0) > 0
    assert trend.foreseen(3100.0, 60.0, 0.0) == 0.0
    assert len(trend._counts) == BUCKETS + 1
