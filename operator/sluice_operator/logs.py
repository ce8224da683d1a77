"""Logs on standard error: a constant message and its fields, as text or as JSON lines.

The fields are what the code passes as ``extra``. kopf is heard from warnings up, and of requests
that it tries again only the first in a while: a restart of the API server is one event. Set up
once by ``__main__``.
"""

import logging
import sys
import time
from typing import Final

import msgspec

QUIET_SECONDS: Final = 10.0
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = {k: v for k, v in vars(record).items() if k not in _STANDARD}
    return {k: v for k, v in fields.items() if not k.startswith("k8s_") and k != "settings"}


def _when(record: logging.LogRecord) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{stamp}.{int(record.msecs):03d}Z"


class JsonFormatter(logging.Formatter):
    """One object a line; whatever text comes in, no line break comes out."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _when(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        } | _fields(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=repr).decode()


class TextFormatter(logging.Formatter):
    """For people: time, level, message, then ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = [f"{name}={_shown(value)}" for name, value in _fields(record).items()]
        head = f"{_when(record)} {record.levelname.lower():7} {record.getMessage()}"
        line = "  ".join([head.replace("\n", " "), *fields])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _shown(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and text and " " not in text and '"' not in text
    return text if plain else msgspec.json.encode(text).decode()


class FewRetries(logging.Filter):
    """Lets through one line in a while of those about requests that will be tried again."""

    def __init__(self) -> None:
        super().__init__()
        self._said_at = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith("Request attempt"):
            return True
        if record.created - self._said_at < QUIET_SECONDS:
            return False
        self._said_at = record.created
        return True


def configure(form: str) -> None:
    """Send everything from INFO up to standard error; ``form`` is ``text`` or ``json``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(FewRetries())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for loud in ("kopf", "aiohttp.access"):
        logging.getLogger(loud).setLevel(logging.WARNING)
