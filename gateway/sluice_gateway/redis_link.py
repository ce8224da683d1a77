"""One connection to Redis: commands of one loop turn in one write, replies to callbacks in order.

``redis_pipeline.py`` opens links and replaces lost ones. A link is used until its first doubt: a
reply that is late, unparsable, too large or that nobody asked for ends it, because after that no
reply could be trusted to belong to its question. No task or future per command.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import hiredis
import msgspec

_log = logging.getLogger(__name__)

MAX_REPLY_BYTES: Final = 1024 * 1024
MAX_PENDING: Final = 20_000
"""Replies a link may owe; 2048 inputs under two secrets are 4096."""
MAX_PENDING_BYTES: Final = 2 * 1024 * 1024

_STALL_SECONDS: Final = 0.005
_INCOMPLETE: Final = object()
_Refusal: Final = hiredis.ReplyError
_BROKEN: Final = "a caller failed on the replies of Redis"
"""It must not keep the others from theirs."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no reply, or what the reply was instead; ``cause`` is a metric label."""

    cause: str


OnReplies = Callable[[list[Any] | Failure], None]
"""Takes one reply per command (a refused command's is a :class:`Failure`), or one for them all."""


class Link(asyncio.Protocol):
    """A connection and the replies it owes, oldest first.

    Args:
        budget_seconds: how long any reply may take.
        on_refused: given the server's error message and whether the command was a write; returns
            what the caller is told. May drop the link.
        on_failed: told the cause of every call that gets no replies.
    """

    def __init__(
        self,
        *,
        budget_seconds: float,
        on_refused: Callable[[str, bool], Failure],
        on_failed: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._budget = budget_seconds
        self._on_refused = on_refused
        self._on_failed = on_failed
        self._transport: asyncio.WriteTransport | None = None
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._unparsed_bytes = 0
        self._calls: deque[_Call] = deque()
        self._turn: list[bytes] = []
        self._flushing = False
        self._deadline = 0.0  # of what is sent this turn
        self._timer: asyncio.TimerHandle | None = None
        self._graced = False
        self.pending = 0  # Replies that are owed, of calls that have not got all of theirs.
        self.pending_bytes = 0
        self.usable = False
        self.before_flush: Callable[[], None] = _nothing
        """Called once at the end of a turn; may send more."""
        self.lost: asyncio.Future[str] = self._loop.create_future()
        """Done with the cause once the link is of no more use."""

    def send(self, commands: bytes, count: int, on_replies: OnReplies, *, write: bool) -> bool:
        """Send ``count`` encoded commands with the rest of this turn.

        Returns False, having done nothing, when the link is lost.
        """
        size = len(commands)
        if not self.usable:
            return False
        if not self._flushing:
            self.flush_soon()
        self._calls.append(_Call(count, size, on_replies, self._deadline, write))
        self.pending += count
        self.pending_bytes += size
        self._turn.append(commands)
        return True

    def flush_soon(self) -> None:
        """Write at the end of this turn of the loop; replies are due a budget from now."""
        if self._flushing or not self.usable:
            return
        self._flushing = True
        self._loop.call_soon(self._flush)
        self._deadline = self._loop.time() + self._budget
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._expire)

    def drop(self, cause: str) -> None:
        """End the connection; everybody who waits for a reply is told the cause."""
        if self.lost.done():
            return
        self.lost.set_result(cause)
        self.usable = False
        if self._transport is not None:
            self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._turn.clear()
        calls, self._calls = self._calls, deque()
        self.pending = self.pending_bytes = 0
        failure = Failure(cause)
        for call in calls:
            self._on_failed(cause)
            try:
                call.on_replies(failure)
            except Exception:
                _log.exception(_BROKEN)

    # asyncio.Protocol -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            "asyncio.WriteTransport", transport
        )  # uvloop's own class is not one.
        self.usable = not self.lost.done()

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop("disconnected")

    def data_received(self, data: bytes) -> None:
        if self.lost.done():
            return
        reader, calls = self._reader, self._calls
        gets = reader.gets
        self._unparsed_bytes += len(data)
        try:
            reader.feed(data)
            while (reply := gets()) is not _INCOMPLETE:
                self._unparsed_bytes = 0  # Up to a chunk of the next one is not counted.
                if not calls:
                    self.drop("desync")  # Nobody asked for this.
                    return
                call = calls[0]
                if type(reply) is _Refusal:
                    reply = self._on_refused(str(reply), call.write)
                    if not self.usable:
                        return
                replies = call.replies
                replies.append(reply)
                if len(replies) == call.count:
                    calls.popleft()
                    self.pending -= call.count
                    self.pending_bytes -= call.size
                    self._graced = False
                    try:
                        call.on_replies(replies)
                    except Exception:
                        _log.exception(_BROKEN)
                    if not self.usable:
                        return
        except hiredis.ProtocolError:
            self.drop("protocol")
        else:
            if self._unparsed_bytes > MAX_REPLY_BYTES:
                self.drop("too_large")

    def _flush(self) -> None:
        if self.usable:
            self.before_flush()
        self._flushing = False
        if self._turn and self._transport is not None:
            self._transport.write(b"".join(self._turn))
            self._turn.clear()

    def _expire(self) -> None:
        """End the link if the oldest call is late; the others' deadlines are never earlier."""
        self._timer = None
        if not self._calls:
            return
        now = self._loop.time()
        late = now - self._calls[0].deadline
        if late >= 0 and (late < _STALL_SECONDS or self._graced):
            self.drop("timeout")
            return
        # A timer that is very late says that our own loop stood still: the reply may lie unread in
        # the socket, or the command may never have left. Once, the budget begins anew.
        self._graced = late >= 0
        when = now + self._budget if self._graced else self._calls[0].deadline
        self._timer = self._loop.call_at(when, self._expire)

    def __repr__(self) -> str:
        state = f"lost: {self.lost.result()}" if self.lost.done() else "up"
        return f"<Link {state}, {self.pending} replies and {self.pending_bytes} bytes pending>"


class _Call(msgspec.Struct, eq=False):
    count: int
    size: int
    on_replies: OnReplies
    deadline: float
    write: bool
    replies: list[Any] = []


def _nothing() -> None:
    """Nobody has more to send."""
