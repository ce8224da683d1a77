"""What programs have said, made fit for a message: the text of a log line, in bounds. Pure."""

from typing import Any, Final

import msgspec

MESSAGE_LENGTH: Final = 1024


def last_words(text: str) -> str:
    """The last line of a termination message that says something; of a log line its text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    try:
        entry = msgspec.json.decode(last, type=dict[str, Any])
    except msgspec.DecodeError:
        return last
    told = str(entry.get("detail") or entry.get("message") or last)
    raised = str(entry.get("exception") or "").strip().splitlines()
    return f"{told}: {raised[-1].strip()}" if raised else told


def shortened(text: str) -> str:
    """One line of bounded length."""
    text = " ".join(text.split())
    return text if len(text) <= MESSAGE_LENGTH else text[: MESSAGE_LENGTH - 1] + "…"
