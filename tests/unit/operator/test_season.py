"""What a week remembers, expects, doubts, and how it is written down."""

import pytest

from sluice_operator.scaling.season import DAYS, SLOT_SECONDS, SLOTS_PER_DAY, Season, newest

DAY = SLOT_SECONDS * SLOTS_PER_DAY
NINE = 9 * 3600.0
MONDAY = 20_000 * DAY
"""Any midnight; weekdays have no names here."""


def hour(season: Season, day: int, rate: int, at: float = NINE) -> None:
    """``rate`` requests a second from nine to ten of the day."""
    began = MONDAY + day * DAY + at
    for second in range(0, 3600, 5):
        season.observe(rate * 5, began + second)


def working_days(days: range, rate: int = 50) -> Season:
    season = Season()
    for day in days:
        hour(season, day, rate)
    return season


def expected(season: Season, day: int, at: float = NINE, ahead: float = 1.0) -> float:
    return season.expected(MONDAY + day * DAY + at, ahead)


@pytest.mark.parametrize(("days", "known"), [(0, False), (2, False), (3, True), (7, True)])
def test_what_came_on_three_days_is_expected(days: int, known: bool) -> None:
    season = working_days(range(days))
    assert (expected(season, days) > 0) == known
    if known:
        assert expected(season, days) == pytest.approx(50, rel=0.13), "a letter is a quarter more"


def test_it_is_expected_at_its_time_and_ahead_of_it() -> None:
    season = working_days(range(4))
    early = NINE - 300
    assert expected(season, 4, early) == 0.0
    assert expected(season, 4, early, ahead=301.0) > 0
    assert expected(season, 4, NINE + 3601) == 0.0


def test_the_busiest_minute_counts() -> None:
    season = Season()
    for day in range(3):
        for second in range(60):
            season.observe(30, MONDAY + day * DAY + NINE + second)
    assert expected(season, 3) == pytest.approx(30, rel=0.13)


def test_a_week_later_the_same_weekday_is_believed() -> None:
    season = working_days(range(5))
    assert expected(season, 5) > 0, "weekends are not known before there was one"
    assert expected(season, 6) == 0.0, "but the first day of it is believed"
    for day in range(7, 12):
        hour(season, day, 50)
        assert expected(season, day, NINE + 1800) > 0
    assert expected(season, 12) == expected(season, 13) == 0.0, "nobody came a week before"
    assert expected(season, 14) > 0, "and nobody concludes from that on the next Monday"


def test_a_holiday_costs_a_slot() -> None:
    season = working_days(range(4))
    assert expected(season, 4) > 0
    assert expected(season, 4, NINE + SLOT_SECONDS + 1) == 0.0, "what was expected did not come"
    assert expected(season, 5) == 0.0
    hour(season, 5, 50)
    assert expected(season, 6) > 0, "a day like the others again"


def test_a_weaker_day_is_expected_to_stay_so() -> None:
    season = working_days(range(4))
    began = MONDAY + 4 * DAY + NINE
    for second in range(int(SLOT_SECONDS)):
        season.observe(20, began + second)
    assert expected(season, 4, NINE + SLOT_SECONDS + 1) == pytest.approx(20, rel=0.15)


@pytest.mark.parametrize("rate", [1, 3, 17, 250, 4000])
def test_a_letter_is_near_enough(rate: int) -> None:
    season = working_days(range(3), rate)
    assert expected(season, 3) == pytest.approx(rate, rel=0.13)


def test_more_than_can_be_written_is_the_most_that_can() -> None:
    season = working_days(range(3), 10**9)
    assert 10_000 < expected(season, 3) < 100_000


def test_nobody_asks_and_nothing_is_kept() -> None:
    season = Season()
    season.observe(0, MONDAY)
    assert expected(season, 100) == 0.0
    assert season.text() == ""
    assert not season.is_worth_writing("", MONDAY + 100 * DAY)


def test_a_written_week_goes_on_elsewhere() -> None:
    season, other = working_days(range(4)), Season()
    expected(season, 4, 0.0)
    other.restore(season.text(), MONDAY + 4 * DAY)
    assert expected(other, 4) == expected(season, 4) > 0
    assert len(season.text()) <= 1100
    hour(other, 4, 50)
    assert expected(other, 5) > 0


def test_what_came_while_nobody_listened_is_unknown_and_proves_nothing() -> None:
    season, other = working_days(range(7)), Season()
    expected(season, 7, 0.0)
    other.restore(season.text(), MONDAY + 9 * DAY)
    assert expected(other, 9) > 0, "five of the last seven days are known"
    late = Season()
    late.restore(season.text(), MONDAY + 30 * DAY)
    assert expected(late, 30) == 0.0


def test_what_was_heard_before_the_text_was_read_is_not_lost() -> None:
    season, other = working_days(range(2)), Season()
    expected(season, 2, 0.0)
    other.observe(50 * 60, MONDAY + 2 * DAY + NINE + 1)
    other.restore(season.text(), MONDAY + 2 * DAY + NINE + 2)
    assert expected(other, 3) > 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1.2",
        "1.2.000",
        "2.1." + "0" * 1008,
        "1.99999999999." + "0" * 1008,
        "1.2." + "ä" * 1008,
        "1.2." + "/" * 1008,
        "-1.2." + "0" * 1008,
    ],
)
def test_a_text_that_cannot_be_is_none(text: str) -> None:
    season = Season()
    season.restore(text, MONDAY)
    assert season.text() == ""
    hour(season, 0, 5)
    expected(season, 1)
    assert season.text()


def test_it_is_written_once_an_hour_and_only_while_somebody_asks() -> None:
    season, written, writes = Season(), "", 0
    for minute in range(24 * 60):
        at = MONDAY + minute * 60.0
        if minute < 12 * 60:
            season.observe(60, at)
        if season.is_worth_writing(written, at):
            written, writes = season.text(), writes + 1
    assert 11 <= writes <= 13
    assert not season.is_worth_writing(written, MONDAY + 365 * DAY), "asleep for a year"


def test_the_newer_of_two_weeks() -> None:
    old, new = "10.20.x", "10.30.x"
    assert newest(old, new) == newest(new, old) == new
    assert newest("", old) == old
    assert newest("garbled", old) == old
    assert newest("", "") == ""


def test_a_clock_that_is_set_back_breaks_nothing() -> None:
    season = working_days(range(4))
    season.observe(10, MONDAY)
    assert expected(season, 4) > 0


def test_the_week_is_all_there_is() -> None:
    season = working_days(range(40))
    expected(season, 40)
    assert len(season._levels) == DAYS * SLOTS_PER_DAY
