"""An open loop goes on where it was after its machine stood still, and makes up for less."""

from tests.support.arrivals import STANDSTILL_SECONDS, left_out


def test_a_standstill_is_left_out_and_a_delay_is_made_up_for() -> None:
    assert left_out(10.0, 9.0) == left_out(10.0, 10.0) == 0
    assert left_out(10.0, 10.0 + STANDSTILL_SECONDS) == 0
    assert left_out(10.0, 18.0) == 8.0
