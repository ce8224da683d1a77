"""The quantile of the last answers: known after some, and following what changes."""

from sluice_gateway.latencies import LEAST, WINDOW, Latencies


def test_unknown_until_enough_have_come() -> None:
    latencies = Latencies()
    for _ in range(LEAST - 1):
        latencies.took(1.0)
    assert latencies.figure() is None
    assert repr(latencies) == "<Latencies 95% within unknown>"
    for _ in range(16):
        latencies.took(1.0)
    assert latencies.figure() == 1.0
    assert repr(latencies) == "<Latencies 95% within 1000.0 ms>"


def test_ninety_five_of_a_hundred_took_no_longer() -> None:
    latencies = Latencies()
    for number in range(WINDOW):
        latencies.took(number / WINDOW)
    figure = latencies.figure()
    assert figure is not None and 0.94 < figure < 0.96


def test_what_was_long_ago_is_forgotten() -> None:
    latencies = Latencies()
    for seconds in (9.0, 0.1):
        for _ in range(WINDOW):
            latencies.took(seconds)
    assert latencies.figure() == 0.1
