"""Kinds of value: what each reads, writes, refuses and says about it."""

from typing import Any

import pytest

from sluice_api.fields import Choice, Duration, Flag, Kind, Text, TextMap, TextSet, Whole
from sluice_api.spec_errors import Refused, shown

WHOLE = Whole(1, 9)
AUTO_WHOLE = Whole(1, 9, auto=True)
DURATION = Duration("1s", "1h", auto=True)
NAMES = TextSet(Text(3), max_items=2)
LABELS = TextMap(max_items=2, max_value_length=3)


@pytest.mark.parametrize(
    ("kind", "given", "value", "written"),
    [
        (WHOLE, 1, 1, 1),
        (AUTO_WHOLE, "auto", None, "auto"),
        (AUTO_WHOLE, 9, 9, 9),
        (DURATION, "90s", 90.0, "1m30s"),
        (DURATION, "auto", None, "auto"),
        (Text(5), "größe", "größe", "größe"),
        (Choice("a", "b"), "b", "b", "b"),
        (Flag(), True, True, True),
        (NAMES, ["a", "b"], ("a", "b"), ["a", "b"]),
        (LABELS, {"team": "a"}, {"team": "a"}, {"team": "a"}),
    ],
)
def test_reads_and_writes(kind: Kind, given: Any, value: Any, written: Any) -> None:
    assert kind.parse(given) == value
    assert kind.dump(value) == written
    assert kind.parse(kind.dump(value)) == value


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (WHOLE, 10, "got 10, allowed 1 to 9."),
        (AUTO_WHOLE, 0, "got 0, allowed 1 to 9 or auto."),
        (WHOLE, "auto", "got auto, allowed a whole number, 1 to 9."),
        (WHOLE, "5", "got 5, allowed a whole number, 1 to 9. Write it without quotes."),
        (WHOLE, 5.0, "got 5.0, allowed a whole number, 1 to 9."),
        (WHOLE, True, "got true, allowed a whole number, 1 to 9."),
        (DURATION, "0s", "got 0s, allowed 1s to 1h or auto."),
        (DURATION, 90, "got 90, allowed a duration, 1s to 1h or auto. Add the unit, such as 90s."),
        (DURATION, 1.5, "got 1.5, allowed a duration, 1s to 1h or auto."),
        (DURATION, "1 m", "got 1 m, allowed a duration, 1s to 1h or auto. Write it like 500ms, "),
        (Text(3), "abcd", "got abcd, allowed at most 3 characters. It has 4."),
        (Text(3), 1, "got 1, allowed text of at most 3 characters. Put the value in quotes."),
        (Text(3), ["a"], "got a list, allowed text of at most 3 characters."),
        (Text(3, pattern="^a*$", form="as"), "b", "got b, allowed as."),
        (Choice("a", "b"), "c", "got c, allowed one of a, b."),
        (Choice("a", "b"), None, "got nothing, allowed one of a, b."),
        (Flag(), "true", "got true, allowed true or false. Write it without quotes."),
        (Flag(), 1, "got 1, allowed true or false."),
        (NAMES, "ab", "got ab, allowed a list of at most 2 entries."),
        (NAMES, ["a", "b", "c"], "got 3 entries, allowed at most 2."),
        (NAMES, ["a", "a"], "got a twice, allowed each entry once."),
        (NAMES, [1], "got 1, allowed text of at most 3 characters. Put the value in quotes."),
        (LABELS, [], "got a list, allowed a mapping from text to text."),
        (LABELS, {"a": 1}, "got 1, allowed text of at most 3 characters. Put the value in quotes."),
        (LABELS, {1: "a"}, "got 1, allowed text of at most 317 characters. Put the value in"),
        (LABELS, {"a": "", "b": "", "c": ""}, "got 3 entries, allowed at most 2."),
    ],
)
def test_says_what_was_given_and_what_is_allowed(kind: Kind, given: Any, message: str) -> None:
    with pytest.raises(Refused) as caught:
        kind.parse(given)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", "an empty text"),
        ("a\nb", '"a\\nb"'),
        ("x" * 100, "x" * 77 + "..."),
        ({"a": 1}, "a mapping"),
        (None, "nothing"),
        (False, "false"),
        (float("nan"), "NaN"),
    ],
)
def test_a_value_is_shown_in_one_short_line(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_pattern_that_holds_quotes_stays_one_expression() -> None:
    [rule] = Text(9, pattern="^[a'\\d]$", form="x").schema()["x-kubernetes-validations"]
    assert rule["rule"] == "self.matches('^[a\\'\\\\d]$')"
