"""Rates as they are written, and what is not one."""

import pytest

from sluice_api.rates import Rate, parse_rate


@pytest.mark.parametrize(
    ("text", "per_second", "burst"),
    [
        ("20/s", 20, 20),
        ("600/m", 10, 600),
        ("7200/h", 2, 7200),
        ("20/s:100", 20, 100),
        ("1/m", 1 / 60, 1),
        ("100/s:10", 100, 10),
    ],
)
def test_rates(text: str, per_second: float, burst: int) -> None:
    assert parse_rate(text) == Rate(text, pytest.approx(per_second), burst)


def test_a_rate_says_what_it_allows() -> None:
    assert str(parse_rate("600/m:50")) == "600/m, 50 at once"


@pytest.mark.parametrize(
    "text", ["", "20", "0/s", "-1/s", "1/d", "20/s:", "20/s:0", "1.5/s", "1/s "]
)
def test_what_is_none_says_what_one_is(text: str) -> None:
    with pytest.raises(ValueError, match="a rate such as 20/s"):
        parse_rate(text)


def test_a_burst_lasts_until_gateways_have_agreed() -> None:
    with pytest.raises(ValueError, match=r"a burst of 10 or more, what comes in 0.1 s"):
        parse_rate("100/s:9")
