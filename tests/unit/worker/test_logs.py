"""Log lines: constant message, varying fields; a reader that stops reading costs no answer."""

import json
import logging
import queue

import pytest

from sluice_worker.logs import DroppingHandler, JsonFormatter, TextFormatter


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": message, "levelname": "INFO", "created": 0.0, "msecs": 7})
    vars(made).update(fields)
    return made


def test_a_text_line_is_time_level_message_and_fields() -> None:
    line = TextFormatter().format(record("model ready", seconds=1.23456, model="a b", units=3))
    assert line == ('1970-01-01T00:00:00.007Z INFO model ready seconds=1.235 model="a b" units=3')


def test_a_field_cannot_forge_a_second_line() -> None:
    line = TextFormatter().format(record("phase", detail="one\ntwo ERROR forged"))
    assert "\n" not in line


def test_a_json_line_is_one_object() -> None:
    made = record("model ready", seconds=1.5, path=object)
    assert json.loads(JsonFormatter().format(made)) == {
        "time": "1970-01-01T00:00:00.007Z",
        "level": "INFO",
        "message": "model ready",
        "seconds": 1.5,
        "path": str(object),
    }


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_an_exception_is_written_with_its_trace(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        made = record("failed", exc_info=(type(error), error, error.__traceback__))
    assert "ValueError: broken" in formatter.format(made)


def test_what_nobody_writes_away_is_dropped_and_counted() -> None:
    handler = DroppingHandler(queue.Queue(2))
    for number in range(5):
        handler.handle(record(f"line {number}"))
    assert handler.dropped == 3
