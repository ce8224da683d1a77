"""Heads that are like one that was read before: nothing of them is parsed anew.

Who keeps a connection sends the same head again and again, or but for the few lines that are
another one in each request. ``incoming`` reads through :func:`read_head`, which remembers heads of
all connections; ``protocol`` looks at a connection's last one first (:class:`HeadForm`). Both say
of every head what :func:`~sluice_gateway.head.parse_head` does.
"""

import re
from functools import lru_cache
from typing import Final

from msgspec.structs import replace

from sluice_api.errors import ApiError
from sluice_gateway.head import MAX_HEADERS, REQUEST_ID, Head, parse_head, request_id, traceparent

KNOWN_BYTES: Final = 2048
"""A longer head is parsed each time: what is kept for anybody who asks must be small in all."""

_UNREAD = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"tracestate", b"x-amzn-trace-id")
"""What proxies on the way write anew for each client or request, and nobody reads here."""
_OWN = rb"\r\n((?i:content-length|traceparent|%b))" % b"|".join((REQUEST_ID, *_UNREAD))
_VALUE = rb"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?"
_OWN_LINE = re.compile(rb"%b: ?(%b)(?=\r\n[^ \t])" % (_OWN, _VALUE))
"""A whole line that is another one in each request, in the form that nobody reads differently."""
_plain = re.compile(_VALUE).fullmatch
_OWN_NAME = re.compile(_OWN + rb"[ \t]*:")


def read_head(raw: bytes) -> Head:
    """As :func:`~sluice_gateway.head.parse_head`, which see; what was read before is not parsed."""
    return _known(raw) if len(raw) <= KNOWN_BYTES else parse_head(raw)


@lru_cache(maxsize=1024)
def _known(raw: bytes) -> Head:
    """Many clients send the same head again and again, or but for the lines of ``_OWN_LINE``."""
    parts = _OWN_LINE.split(raw)
    if len(parts) > 1 and raw.count(b"\r\n") <= MAX_HEADERS:
        names, values = [name.lower() for name in parts[1::3]], parts[2::3]
        own = dict(zip(names, values, strict=True))
        common = _common(b"".join(parts[::3])) if len(own) == len(names) else None
        if common is not None and (head := _with_own(common, own)) is not None:
            return head
    return parse_head(raw)


@lru_cache(maxsize=1024)
def _common(raw: bytes) -> Head | None:
    """A head without the lines that are each request's own; None where it must be read whole."""
    if _OWN_NAME.search(raw):
        return None
    try:
        return parse_head(raw)
    except ApiError:
        return None  # What is wrong is said of the whole.


def _with_own(common: Head, own: dict[bytes, bytes]) -> Head | None:
    """``common`` with the lines of ``own`` besides; None where it must be read whole."""
    length = own.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 15 or (common.chunked and b"content-length" in own):
        return None
    return replace(
        common,
        content_length=int(length),
        request_id=request_id(own.get(REQUEST_ID)),
        traceparent=traceparent(own.get(b"traceparent")),
    )


class HeadForm:
    """The head of a connection's last request that was read whole, and those that are like it.

    Who keeps a connection sends the same head again and again, or but for the lines of
    ``_OWN_LINE``: these are looked for where they stood, and nothing is parsed.

    Args:
        most: bytes of a body that are taken.

    Attributes:
        raw: the last one, to which :attr:`head` belongs.
    """

    __slots__ = ("_common", "_lines", "_most", "_own", "_taken", "_unread", "head", "raw")

    def __init__(self, raw: bytes, head: Head, most: int) -> None:
        self._most = most
        self._taken = 0
        self._lines: list[bytes] = []
        """All lines up to the empty one, without the values of the own ones."""
        self._common = head
        self._unread: list[bytes] = []
        """Of the own lines those that are only looked at for what may not be in them."""
        self.take(raw, head)

    def __repr__(self) -> str:
        return f"<HeadForm {self.raw!r}>"

    def take(self, raw: bytes, head: Head) -> None:
        """Go by another head from now on, which ``raw`` was read as."""
        self.raw, self.head = raw, head
        self._taken += 1
        # Ever more rarely: where each head is another, none is worth the look.
        look = self._taken & (self._taken - 1) == 0
        self._own: list[tuple[int, bytes, bytes]] | None = None if look else []
        """Of each own line its place, how it begins, and its name; None until that is wanted."""

    def read(self, data: bytes) -> Head | None:
        """The head that ``data`` begins with, if it is like the last; None where it may not be."""
        if self._own is None:
            self._own = self._learn()
        if not self._own:
            return None
        lines, own = data.split(b"\r\n", len(self._lines)), {}
        if len(lines) <= len(self._lines):
            return None
        rest = lines.pop()
        for place, beginning, name in self._own:
            line = lines[place]
            lines[place], own[name] = line[: len(beginning)], line[len(beginning) :]
        if lines != self._lines:
            return None
        head = _with_own(self._common, own)
        if (
            head is None
            or head.content_length > self._most
            or (head.request_id is None and REQUEST_ID in own)
            or (head.traceparent is None and b"traceparent" in own)
        ):
            return None
        for name in self._unread:
            if not _plain(own[name]):
                return None
        self.raw, self.head = data[: len(data) - len(rest)], head
        return head

    def _learn(self) -> list[tuple[int, bytes, bytes]]:
        """The own lines of the last head; none where it must be read whole."""
        raw, lines = self.raw, []
        self._lines = raw[:-2].split(b"\r\n")
        for line in _OWN_LINE.finditer(raw):
            place = raw.count(b"\r\n", 0, line.end(2))
            beginning = raw[line.start() + 2 : line.start(2)]
            lines.append((place, beginning, line[1].lower()))
            self._lines[place] = beginning
        if len({name for _, _, name in lines}) < len(lines):
            return []
        common = _common(b"".join(_OWN_LINE.split(raw)[::3]))
        if common is None:
            return []
        self._common = common
        self._unread = [name for _, _, name in lines if name in _UNREAD]
        return lines
