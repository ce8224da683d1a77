"""Durations, as text and as seconds."""

import pytest

from sluice_api.quantities import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0),
        ("1m30s", 90.0),
        ("15m", 900.0),
        ("2h", 7200.0),
        ("500ms", 0.5),
        ("1s500ms", 1.5),
        ("0s", 0.0),
        ("99999h", 359996400.0),
    ],
)
def test_reads(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "90", "s", "1.5s", "-1s", "1 s", "1d", "1S", "1s\n", "123456s", "1s1s1s1s1s", "١s", "1µs"],
)
def test_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.5, "500ms"), (90, "1m30s"), (86400, "24h"), (3661.25, "1h1m1s250ms")],
)
def test_writes_the_shortest_form(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
    assert parse_duration(text) == seconds


def test_a_negative_duration_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="negative"):
        format_duration(-1)
