"""Bodies of unknown length: the chunked transfer coding, read strictly (RFC 9112 §7.1).

llhttp reads it too, but does not say where a message ended inside a buffer, which pipelining needs.
Anything unusual (bare LF, signs, extensions, trailers) is refused: a body of JSON needs none of it,
and every laxness is a way to smuggle a request. Used by ``protocol``.
"""

from typing import Final

from sluice_api.errors import ApiError

MAX_SIZE_DIGITS: Final = 8
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")


class ChunkedBody:
    """Collects one body. ``feed`` until :attr:`complete`; :attr:`rest` is what came after it."""

    __slots__ = ("_data", "_left", "_line", "complete", "received", "rest")

    def __init__(self) -> None:
        self._line = b""
        self._left = 0  # bytes of the current chunk's data that are still to come
        self._data = bytearray()  # A list of parts would hold chunks of a byte each very dearly.
        self.received = 0
        self.complete = False
        self.rest = b""

    def __repr__(self) -> str:
        state = "complete" if self.complete else "open"
        return f"<ChunkedBody {state} {self.received} bytes>"

    @property
    def body(self) -> bytes:
        return bytes(self._data)

    def feed(self, data: bytes, limit: int) -> None:
        """Take more bytes. Raises ApiError ``bad_http``, or ``body_too_large`` beyond ``limit``."""
        position = 0
        while True:
            if self._left:
                part = data[position : position + self._left]
                self._data += part
                self._left -= len(part)
                position += len(part)
                if self._left:
                    return
            # Between chunks: "CRLF" of the last one (but for the first), then "size CRLF".
            end = self._find_line(data, position)
            if end < 0:
                return
            size = self._size()
            position = end
            if size == 0:
                self.complete = True
                self.rest = data[position:]
                return
            self.received += size
            if self.received > limit:
                raise ApiError("body_too_large", f"The body has more than {limit} bytes.")
            self._left = size

    def _find_line(self, data: bytes, position: int) -> int:
        """Gather the framing before the next data into ``_line``; where it ends, or -1 if open.

        The last chunk's framing includes the empty line that ends the body.
        """
        lead = b"\r\n" if self._data else b""
        longest = len(lead) + MAX_SIZE_DIGITS + 4
        held = len(self._line)
        line = self._line + data[position : position + longest - held]
        if lead and not line.startswith(lead[: len(line)]):
            raise ApiError("bad_http", "A chunk does not end with CRLF.")
        stop = line.find(b"\r\n", len(lead))
        if stop >= 0:
            stop += 2
            if line[len(lead) : stop - 2].strip(b"0") == b"":
                end = line[stop : stop + 2]
                if len(end) == 2 and end != b"\r\n":
                    raise ApiError("bad_http", "Trailers are not accepted.")
                stop = stop + 2 if len(end) == 2 else -1
        if stop < 0:
            if len(line) >= longest:
                raise ApiError("bad_http", "A chunk has no valid size line.")
            self._line = line
            return -1
        self._line = line[len(lead) : stop]
        return position + stop - held

    def _size(self) -> int:
        digits = self._line[: self._line.index(b"\r\n")]
        self._line = b""
        if not 0 < len(digits) <= MAX_SIZE_DIGITS or not _HEX.issuperset(digits):
            raise ApiError("bad_http", "A chunk has no valid size line.")
        return int(digits, 16)
