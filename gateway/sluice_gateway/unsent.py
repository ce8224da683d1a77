"""What a client has yet to take of what was written to it, and whether it still takes any.

Both edges make an :class:`Unsent` when a connection's buffer is full, and ask it as time passes.
"""

import asyncio
import fcntl
import socket
import sys
import termios
from typing import Final

ANSWER_PACE: Final = 4096
"""Bytes per second that a client must take its answer at, on the whole."""


def unsent_bytes(transport: asyncio.Transport) -> int:
    """What was written and the client's machine has not confirmed.

    The process's buffer alone would not tell: the kernel takes from it only when a third of its own
    is free, which at a few KB a second takes minutes.
    """
    held = transport.get_write_buffer_size()
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is None:
        return held
    room = bytearray(4)
    try:  # SIOCOUTQ of Linux, which for TCP is what is not confirmed.
        fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, room)
    except OSError:  # Closed meanwhile, or a kernel that cannot tell.
        return held
    return held + int.from_bytes(room, sys.byteorder)


class Unsent:
    """An answer that waits for its client. Times on the monotonic clock.

    Attributes:
        moved: when the client took some of it last.
    """

    def __init__(self, transport: asyncio.Transport, now: float) -> None:
        self._transport = transport
        self._began = self.moved = now
        self._whole = self._left = unsent_bytes(transport)

    def __repr__(self) -> str:
        return f"<Unsent {self._left} of {self._whole} bytes>"

    def look(self, now: float) -> None:
        """See whether the client has taken some of it since."""
        left = unsent_bytes(self._transport)
        if left < self._left:
            self.moved = now
        self._left = left

    def is_stalled(self, now: float, seconds: float) -> bool:
        """Whether nothing was taken for so long."""
        return now - self.moved > seconds

    def is_late(self, now: float, seconds: float) -> bool:
        """Whether it takes longer on the whole than so many seconds and what its size allows.

        For an answer that is written whole; a stream has its own deadline, and more may come.
        """
        return now - self._began > seconds + self._whole / ANSWER_PACE
