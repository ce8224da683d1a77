"""Bytes of a client on their way to being a request, as both protocols of connections take them.

``protocol`` and ``fallback`` derive from :class:`Incoming`, so that both edges find heads in the
same way and count the same bytes.
"""

import re
import time

from sluice_api.errors import ApiError
from sluice_gateway.edge import Connections
from sluice_gateway.head import MAX_HEAD_BYTES, Head, count_empty_line, find_end
from sluice_gateway.known_heads import read_head

_ORIGIN = re.compile(rb"\r\norigin:[ \t]*([!-~]{1,255})[ \t]*\r\n", re.IGNORECASE)


class Incoming:
    """What is here of the next request."""

    __slots__ = ("_ahead", "_edge", "_empty_lines", "_held", "_origin", "_partial", "_since")

    def __init__(self, edge: Connections) -> None:
        self._edge = edge
        self._ahead = b""  # not read yet
        self._partial = 0  # bytes of a head that is not complete
        self._empty_lines = 0  # before it
        self._origin: bytes | None = None  # of the page whose head could not be read
        self._held = 0  # bytes of a body that is not complete, which the edge counts
        self._since = 0.0  # when the present phase began

    def _read_head(self, data: bytes) -> tuple[Head, bytes, bytes] | None:
        """The head that ``data`` begins with: read, as it came, and what follows it.

        None where more of it must come; what is here is kept until then. Raises ApiError.
        """
        try:
            while data[:2] == b"\r\n":
                self._empty_lines = count_empty_line(self._empty_lines)
                self._partial = 0
                data = data[2:]
            end = find_end(data, self._partial) if data else 0
            if end:
                self._partial = self._empty_lines = 0
                raw = data[:end]
                return read_head(raw), raw, data[end:]
        except ApiError:
            # A page, whose cookies may be too many, is to read why.
            found = _ORIGIN.search(data, 0, MAX_HEAD_BYTES)
            self._origin = found[1] if found is not None else None
            raise
        if data and not self._partial:
            self._since = time.monotonic()
        self._partial = len(data)
        self._ahead = data
        return None

    def _hold(self, size: int) -> None:
        self._held += size
        self._edge.hold(size)

    def _let_body_go(self) -> None:
        """What has come of a body is of no more concern here."""
        if self._held:
            self._edge.buffered -= self._held
            self._held = 0
