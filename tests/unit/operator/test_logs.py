"""Logs: one line a record, fields to be read by people or programs, no flood of retries."""

import json
import logging

import pytest

from sluice_operator.logs import QUIET_SECONDS, FewRetries, JsonFormatter, TextFormatter


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("sluice", logging.INFO, __file__, 1, message, None, None)
    vars(made).update(fields)
    return made


def test_text_shows_fields_as_pairs() -> None:
    line = TextFormatter().format(record("reconciled", service="team/one", steps="a, b", n=2))
    assert line.endswith('info    reconciled  service=team/one  steps="a, b"  n=2')


def test_no_text_breaks_the_line() -> None:
    for formatter in (TextFormatter(), JsonFormatter()):
        assert "\n" not in formatter.format(record("bad", value="a\nb", other="c\r\nd"))


def test_json_is_json() -> None:
    line = json.loads(JsonFormatter().format(record("scaled", desired=3)))
    assert (line["message"], line["desired"], line["level"]) == ("scaled", 3, "info")


@pytest.mark.parametrize("text", ["Request attempt #1/9 failed; will retry", "Request attempt #2"])
def test_of_retries_only_the_first_in_a_while_is_heard(text: str) -> None:
    few = FewRetries()
    first, second, later = record(text), record(text), record(text)
    second.created = first.created + 1
    later.created = first.created + QUIET_SECONDS + 1
    assert [few.filter(one) for one in (first, second, later)] == [True, False, True]
    assert few.filter(record("reconciled"))
