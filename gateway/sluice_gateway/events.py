"""What a worker's event stream says, read as it comes: whole events out, the gateway's own kept.

A worker sends the caller's events and, for the gateway alone, each canonical item as a comment and
the usage chunk. ``stream_forward`` feeds one :class:`EventScanner` per attempt with bytes cut
anywhere. An ordinary event is passed on as it is, at the price of a comparison with how the first
one began, or of a few substring searches; JSON escapes quotes and line breaks, so what is searched
for cannot stand inside of a text.
"""

from typing import Final

import msgspec

from sluice_api.call import Item
from sluice_api.shapes.generated import DONE, ITEM_COMMENT

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
"""Bound on one event. The item of a whole answer is one."""

_DONE: Final = DONE.rstrip()
_ERROR: Final = b'data: {"error"'
_USAGE: Final = (b'"choices":[]', b'"choices": []')
"""Only the chunk that counts the tokens has no choices."""
_CHOICE: Final = b'"choices":[{'


class _Told(msgspec.Struct):
    choices: list[msgspec.Raw]
    tokens: int


_read_item = msgspec.json.Decoder(_Told).decode


class EventScanner:
    """One stream.

    Args:
        keeps_usage: the caller wants the usage chunk.

    Attributes:
        complete: the last event has come; nothing may follow. It is not among what is passed on:
            callers get it once the worker has also framed its end.
        error: the JSON text of the error that ends the stream.
        items: as the worker told them, in the order of the inputs.
    """

    __slots__ = ("_form", "_held", "_held_bytes", "_keeps_usage", "complete", "error", "items")

    def __init__(self, *, keeps_usage: bool) -> None:
        self._keeps_usage = keeps_usage
        self._held: list[bytes] = []  # parts of an event that is not whole yet
        self._held_bytes = 0
        self._form: bytes | None = None
        """How ordinary events begin, up to the first choice; empty where that says nothing."""
        self.complete = False
        self.error: bytes | None = None
        self.items: list[Item] = []

    def __repr__(self) -> str:
        state = "complete" if self.complete else "failed" if self.error else "open"
        return f"<EventScanner {state} {self._held_bytes} bytes held>"

    def feed(self, data: bytes) -> bytes:
        """Take more bytes. Returns the events for the caller, perhaps none.

        Raises ValueError when this is no stream of a worker's.
        """
        form = self._form
        if form and not self._held:
            event, whole, more = data.partition(b"\n\n")
            if whole and event.startswith(form) and (not more or _all_begin_with(form, more)):
                return data
        if self._held:
            # Put together only when it is whole: an item may come in a thousand parts.
            if b"\n\n" not in data and not (data[:1] == b"\n" == self._held[-1][-1:]):
                self._hold(data)
                return b""
            data = b"".join([*self._held, data])
            self._held.clear()
            self._held_bytes = 0
        last = data.rfind(b"\n\n")
        end = last + 2 if last >= 0 else 0
        if end != len(data):
            self._hold(data[end:])
            data = data[:end]
        if not data:
            return b""
        if self.complete or self.error is not None:
            raise ValueError("something follows the end")
        if _is_plain(data):
            if form is None:
                self._learn(data)
            return data
        return b"".join([self._sift(event) for event in data[:-2].split(b"\n\n")])

    def _hold(self, part: bytes) -> None:
        self._held.append(part)
        self._held_bytes += len(part)
        if self._held_bytes > MAX_EVENT_BYTES:
            raise ValueError("an event is too long")

    def finish(self) -> None:
        """No more bytes will come. Raises ValueError if that is too early."""
        if not self.complete or self._held:
            raise ValueError("the stream ends early")

    def _learn(self, data: bytes) -> None:
        """Know the form of the first event of ``data``, all of which are ordinary ones."""
        before, found, _ = data.partition(b"\n\n")[0].partition(_CHOICE)
        self._form = before + found if found else b""

    def _sift(self, event: bytes) -> bytes:
        if self.complete or self.error is not None:
            raise ValueError("something follows the end")
        if event.startswith(b":"):
            if event.startswith(ITEM_COMMENT):
                self.items.append(_item(event[len(ITEM_COMMENT) :]))
            return b""  # What else a worker remarks is not for callers.
        if event == _DONE:
            self.complete = True
            self._form = b""
            return b""
        if event.startswith(_ERROR):
            self.error = event[len(b"data: ") :]
            self._form = b""
            return b""
        if not self._keeps_usage and any(mark in event for mark in _USAGE):
            return b""
        return event + b"\n\n"


def _all_begin_with(form: bytes, data: bytes) -> bool:
    """Whether ``data`` is whole events that do."""
    events = data[:-2].split(b"\n\n")
    return data.endswith(b"\n\n") and all(event.startswith(form) for event in events)


def _is_plain(data: bytes) -> bool:
    # ``in`` would cost twice as much: of bytes, Python asks first whether they are a number.
    return not (
        data.startswith(b":")
        or data.find(b"\n:") >= 0
        or data.find(_DONE) >= 0
        or data.find(_ERROR) >= 0
        or data.find(_USAGE[0]) >= 0
        or data.find(_USAGE[1]) >= 0
    )


def _item(text: bytes) -> Item:
    try:
        return Item(text, _read_item(text).tokens)
    except msgspec.DecodeError as error:
        raise ValueError(f"no item: {error}") from None
