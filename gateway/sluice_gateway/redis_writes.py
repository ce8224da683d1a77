"""Writes to Redis, held back so that reads never wait behind many of them.

``redis_pipeline.py`` has one for each link. A list of two thousand answers is megabytes to store at
once; on one connection a lookup would stand behind all of it. So only a window of unanswered writes
is on its way, and the others wait here, bounded. The writes of one turn of the loop go together,
behind the turn's reads.
"""

from collections import deque
from functools import partial
from typing import Any, Final

from sluice_gateway.redis_link import Failure, Link

WINDOW_BYTES: Final = 256 * 1024
"""On its way at once; 2 ms of a gigabit network."""
MAX_WAITING_BYTES: Final = 16 * 1024 * 1024


class WriteQueue:
    """Write commands for one link, first in, first out; they are lost with it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._sent_bytes = 0
        link.before_flush = self._send

    def put(self, command: bytes) -> bool:
        """Write without waiting; False, having done nothing, when too much is waiting."""
        if self._waiting_bytes + len(command) > MAX_WAITING_BYTES:
            return False
        if not self._waiting:  # Otherwise it is on its way, or waits for replies to others.
            self._link.flush_soon()
        self._waiting.append(command)
        self._waiting_bytes += len(command)
        return True

    def _send(self) -> None:
        """Send what the window has room for."""
        commands: list[bytes] = []
        size = 0
        while self._waiting and self._sent_bytes + size < WINDOW_BYTES:
            commands.append(self._waiting.popleft())
            size += len(commands[-1])
        if commands:
            self._waiting_bytes -= size
            self._sent_bytes += size
            # Should the link be lost, this queue is with it.
            self._link.send(
                b"".join(commands), len(commands), partial(self._sent, size), write=True
            )

    def _sent(self, size: int, _: list[Any] | Failure) -> None:
        """They are answered; what went wrong has been counted."""
        self._sent_bytes -= size
        if self._waiting:
            self._link.flush_soon()

    def __repr__(self) -> str:
        return f"<WriteQueue {len(self._waiting)} waiting, {self._sent_bytes} bytes on their way>"
