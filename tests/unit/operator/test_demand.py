"""Summing what gateways report: windows, several gateways, silence."""

import pytest

from sluice_operator.scaling.demand import FORGET_SECONDS, SILENCE_SECONDS, DemandWindow
from tests.support.demand_records import Gateway


def test_nothing_known_is_said() -> None:
    traffic = DemandWindow().traffic(0.0)
    assert traffic.gateways == 0
    assert traffic.complete_since is None
    assert not traffic.asked


def test_means_over_their_windows() -> None:
    window, gateway = DemandWindow(), Gateway()
    for second in range(1, 61):
        window.observe(gateway.record(arrivals=10 if second <= 50 else 40), second)
    traffic = window.traffic(60.0)
    assert traffic.arrivals_10s == 40.0
    assert traffic.arrivals_60s == pytest.approx((50 * 10 + 10 * 40) / 60)
    assert traffic.arrivals_low == pytest.approx(40 - 2 * 40**0.5)


def test_a_short_life_is_no_high_rate() -> None:
    window, gateway = DemandWindow(), Gateway()
    window.observe(gateway.record(interval_seconds=0.05, arrivals=50, held=50), 100.0)
    traffic = window.traffic(100.0)
    assert traffic.arrivals_10s == 5.0
    assert traffic.arrivals_low == pytest.approx(50 - 2 * 50**0.5)
    assert traffic.asked


def test_records_that_come_late_together_are_not_counted_as_one_second() -> None:
    window, gateway = DemandWindow(), Gateway()
    for arrived_at in (1.0, 2.9, 2.95, 3.0):
        window.observe(gateway.record(arrivals=20), arrived_at)
    assert window.traffic(3.0).arrivals_low < 20


def test_early_records_are_merged_and_memory_is_bounded() -> None:
    window, gateway = DemandWindow(), Gateway()
    for step in range(100_000):
        window.observe(gateway.record(interval_seconds=0.01, arrivals=1), step * 0.01)
    traffic = window.traffic(1000.0)
    assert traffic.arrivals_60s == pytest.approx(100, rel=0.02)
    [kept] = window._gateways.values()
    assert len(kept.slices) <= 128


def test_a_record_that_comes_twice_or_late_counts_once() -> None:
    window, gateway = DemandWindow(), Gateway()
    first, second = gateway.record(arrivals=5), gateway.record(arrivals=7)
    for record in (first, second, second, first):
        window.observe(record, 1.0)
    assert window.traffic(1.0).arrivals_10s == 1.2


def test_gateways_are_summed() -> None:
    window, one, two = DemandWindow(), Gateway("one"), Gateway("two")
    for second in range(1, 11):
        window.observe(one.served(10, capacity=50, held=1, in_flight=2), second)
        window.observe(
            two.served(30, capacity=50, held=2, in_flight=3, oldest_held_seconds=0.4), second
        )
    traffic = window.traffic(10.0)
    assert traffic.gateways == 2
    assert traffic.arrivals_10s == 40.0
    assert traffic.completions == 40.0
    assert (traffic.held, traffic.in_flight, traffic.oldest_held_seconds) == (3, 5, 0.4)
    assert traffic.service_seconds == pytest.approx(1 / 50)
    assert traffic.response_seconds == pytest.approx(5 / 40)
    # Two counts of a second are one count of twice as much, not twice as sure.
    assert traffic.arrivals_low == pytest.approx(40 - 2 * 40**0.5)


def test_cache_hits_are_no_demand() -> None:
    window, gateway = DemandWindow(), Gateway()
    window.observe(gateway.record(cache_hits=1000), 1.0)
    traffic = window.traffic(1.0)
    assert traffic.arrivals_10s == 0
    assert traffic.active_at is None
    assert not traffic.asked


def test_a_silent_gateway_keeps_its_share_and_is_named() -> None:
    window, one, two = DemandWindow(), Gateway("one"), Gateway("two")
    for second in range(1, 11):
        window.observe(one.record(arrivals=10, held=5), second)
        window.observe(two.record(arrivals=10), second)
    later = 10.0 + SILENCE_SECONDS + 1
    for second in range(11, int(later) + 1):
        window.observe(two.record(arrivals=10), second)
    traffic = window.traffic(later)
    assert (traffic.gateways, traffic.silent) == (2, 1)
    assert traffic.complete_since is None
    assert traffic.arrivals_10s == 20.0
    assert traffic.held == 0, "what waited there six seconds ago says nothing about now"


def test_knowledge_begins_anew_after_a_silence() -> None:
    window, gateway = DemandWindow(), Gateway()
    window.observe(gateway.record(), 1.0)
    assert window.traffic(2.0).complete_since == 1.0
    window.observe(gateway.record(), 100.0)
    assert window.traffic(100.0).complete_since == 100.0


def test_a_gateway_that_is_gone_is_forgotten() -> None:
    window, gateway = DemandWindow(), Gateway()
    window.observe(gateway.record(arrivals=10), 1.0)
    window.forget("gateway-1")
    assert window.traffic(1.0).gateways == 0
    assert window.traffic(1.0).complete_since is None
    window.observe(gateway.record(arrivals=10), 2.0)
    assert window.traffic(2.0 + FORGET_SECONDS + 1).gateways == 0


def test_service_time_is_taken_from_a_minute_when_answers_are_few() -> None:
    window, gateway = DemandWindow(), Gateway()
    window.observe(gateway.record(completions=1, service_seconds=0.5), 1.0)
    for second in range(2, 30):
        window.observe(gateway.record(), second)
    assert window.traffic(30.0).service_seconds == 0.5
    for second in range(30, 100):
        window.observe(gateway.record(), second)
    assert window.traffic(100.0).service_seconds is None
