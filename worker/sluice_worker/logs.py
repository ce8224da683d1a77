"""One line a record on stderr: a constant message, then the fields that vary.

``log.info("model loaded", extra={"seconds": 1.2})`` becomes ``… INFO model loaded seconds=1.2`` or,
with ``SLUICE_LOG=json``, one JSON object. A thread of its own writes, from a bounded queue: a
reader that stops reading costs log lines, never answers.
"""

import logging
import logging.handlers
import queue
import sys
import time
from typing import Any

import msgspec

_STANDARD = set(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}
_CAPACITY = 10_000


class TextFormatter(logging.Formatter):
    """Time, level, message, ``key=value`` pairs; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = "".join(f" {name}={_shown(value)}" for name, value in _fields(record).items())
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{_stamp(record)} {record.levelname} {record.getMessage()}{pairs}{trace}"


class JsonFormatter(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _stamp(record),
            "level": record.levelname,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry, enc_hook=str).decode()


class DroppingHandler(logging.handlers.QueueHandler):
    """Hands records to the writer's thread; counts what a full queue made it drop."""

    dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # The writer is in this process: nothing needs to be made picklable.

    def handleError(self, record: logging.LogRecord) -> None:
        self.dropped += 1


def start_logging(log_format: str) -> logging.handlers.QueueListener:
    """Send every record to stderr; stop the returned listener to have the last ones written."""
    writer = logging.StreamHandler(sys.stderr)
    writer.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    waiting: queue.Queue[Any] = queue.Queue(_CAPACITY)
    listener = logging.handlers.QueueListener(waiting, writer)
    logging.basicConfig(level=logging.INFO, handlers=[DroppingHandler(waiting)], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # we say ourselves what we serve
    listener.start()
    return listener


def _stamp(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return msgspec.json.encode(text).decode() if not text or " " in text or "\n" in text else text
