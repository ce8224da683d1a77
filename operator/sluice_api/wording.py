"""What others have said, made fit for a message of ours: one mark at its end. Pure.

Whoever repeats the words of a library, of the API server or of a model's own files goes through
here: nobody knows whether they end in a full stop, and mostly something of ours follows.
"""

from typing import Final

_ENDS: Final = ("...", "…", "!", "?")


def sentence(text: str) -> str:
    """``text`` with one full stop at its end, or what else it ends in."""
    text = text.strip()
    return text if text.endswith(_ENDS) else text.rstrip(".") + "."
