"""Turns what a child writes into lines for people: clean, of bounded length, one record a line.

``supervisor.py`` feeds it the bytes of the child's output. Records in JSON (the gateway's) become
``INFO message key=value``; everything else is shown as it came, without control characters.
"""

from typing import Any

import msgspec

LINE_LIMIT = 2000
"""Characters of one line that are kept; the rest of it is dropped."""
_RECORD_LIMIT = 8 * LINE_LIMIT
_HIDDEN = ("time", "level", "logger", "message", "exception")

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Lines:
    """Cuts a byte stream into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that ``data`` completes."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[:_RECORD_LIMIT]
        return [line for raw in complete for line in readable(raw)]

    def finish(self) -> list[str]:
        """The last line, where it had no end."""
        rest, self._rest = self._rest, b""
        return readable(rest)


def readable(raw: bytes) -> list[str]:
    """One line of output as lines for people: none when it is empty, several for a traceback."""
    if raw.startswith(b"{"):
        try:
            return [clean(line) for line in _record_lines(_decode(raw))]
        except msgspec.DecodeError:
            pass  # It only looked like a record.
    # A progress bar rewrites its line with carriage returns: its last state is what counts.
    text = raw.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode(errors="replace")
    line = clean(text)
    return [line] if line else []


def clean(text: str) -> str:
    """``text`` without control characters, shortened to the limit."""
    shown = "".join(c if c.isprintable() or c == "\t" else "�" for c in text.rstrip())
    return shown if len(shown) <= LINE_LIMIT else shown[: LINE_LIMIT - 1] + "…"


def _record_lines(record: dict[str, Any]) -> list[str]:
    fields = "".join(f" {k}={v}" for k, v in record.items() if k not in _HIDDEN)
    level = str(record.get("level", "info")).upper()
    lines = f"{level} {record.get('message', '')}{fields}".splitlines()
    return lines + str(record.get("exception", "")).splitlines()
