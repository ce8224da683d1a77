"""One stream of events to everybody who follows it, each at a speed of their own.

Nothing here awaits, and a chunk costs neither a task nor a timer: :meth:`Relay.push` writes it to
every reader that can take it. What was sent is kept up to a bound, so that who comes late gets the
beginning first and who is slow catches up. A reader alone may hold the stream up, by which the
worker is held up in turn; one of several is cut off when it falls behind what is kept.
"""

from collections.abc import Callable
from typing import Final, Protocol

from sluice_api.errors import ApiError

KEPT_BYTES: Final = 256 * 1024
"""How much of a stream is kept: bound on how late one can join, and on how far one can lag."""


class Listener(Protocol):
    """Who a stream is for. ``begin`` comes before ``send``, ``over`` at the end, each once."""

    def begin(self, data: bytes) -> bool:
        """The first events of the stream; what it returns stands at :meth:`send`."""
        ...

    def send(self, data: bytes) -> bool:
        """More events. False: no more can be taken until :meth:`Reader.resume` is called."""
        ...

    def over(self, error: ApiError | None) -> None:
        """All has been sent, or what failed. Nothing may have been sent before it."""
        ...

    def cut_off(self, cause: str) -> None:
        """Said instead of ``over`` to one that cannot be given the rest."""
        ...


class Reader:
    """One who follows a relay; made by :meth:`Relay.join`."""

    __slots__ = ("_began", "_listener", "_relay", "paused", "position")

    def __init__(self, relay: "Relay", listener: Listener) -> None:
        self._relay = relay
        self._listener = listener
        self._began = False
        self.position = 0
        self.paused = False

    def __repr__(self) -> str:
        return f"<Reader at {self.position}{' paused' if self.paused else ''} of {self._relay!r}>"

    def resume(self) -> None:
        """It can take more again."""
        if self.paused:
            self.paused = False
            self.catch_up()
            self._relay.settle(self)

    def leave(self) -> None:
        """It wants no more; nothing is called afterwards."""
        self._relay.forget(self)

    def catch_up(self) -> None:
        """For the relay alone: write what there is."""
        pieces = self._relay.after(self.position)
        if not pieces:
            return
        self.take(pieces[0] if len(pieces) == 1 else b"".join(pieces), len(pieces))

    def take(self, data: bytes, pieces: int = 1) -> None:
        """For the relay alone: write what comes next, which is so many pieces."""
        self.position += pieces
        if self._began:
            self.paused = not self._listener.send(data)
        else:
            self._began = True
            self.paused = not self._listener.begin(data)

    def finish(self, error: ApiError | None) -> None:
        """For the relay alone: nothing more will come."""
        self._listener.over(error)

    def cut_off(self) -> None:
        """For the relay alone: what comes next is not kept any more."""
        self._listener.cut_off("slow")


class Relay:
    """One stream.

    Args:
        shared: others may join; what was sent is kept for them. Otherwise it has one reader.
        hold: called with True to have the worker wait, with False to have it go on.

    Attributes:
        last: when something came last, on the clock of the caller of :meth:`push`.
        pieces: how many have come.
    """

    __slots__ = (
        "_base",
        "_error",
        "_hold",
        "_holding",
        "_hurried",
        "_kept",
        "_log",
        "_over",
        "_readers",
        "_shared",
        "last",
        "pieces",
    )

    def __init__(self, *, shared: bool, hold: Callable[[bool], None], now: float) -> None:
        self._shared = shared
        self._hold = hold
        self._holding = False
        self._log: list[bytes] = []
        self._base = 0  # position of the first piece that is kept
        self._kept = 0  # bytes
        self._readers: list[Reader] = []
        self._over = False
        self._error: ApiError | None = None
        self._hurried = False
        self.last = now
        self.pieces = 0

    def __repr__(self) -> str:
        state = "over" if self._over else "held" if self._holding else "open"
        return f"<Relay {state} {self.pieces} pieces {len(self._readers)} readers>"

    @property
    def joinable(self) -> bool:
        """Whether one who joins now can be given everything from the beginning."""
        return self._shared and self._base == 0 and not self._over

    def join(self, listener: Listener) -> Reader:
        """Have ``listener`` follow, from the beginning on."""
        reader = Reader(self, listener)
        self._readers.append(reader)
        reader.catch_up()
        self._set_pace()
        return reader

    def push(self, data: bytes, now: float) -> None:
        """More of the stream has come."""
        self.last = now
        self.pieces += 1
        readers = self._readers
        if not self._shared and not self._log and readers and not readers[0].paused:
            # The only one who will ever want it takes it at once.
            self._base += 1
            reader = readers[0]
            reader.take(data)
            if reader.paused:
                self._set_pace()
            return
        self._log.append(data)
        self._kept += len(data)
        for reader in tuple(readers):
            if not reader.paused:
                reader.catch_up()
        self._trim()
        self._set_pace()

    def end(self, error: ApiError | None = None) -> None:
        """The stream is complete, or failed. Who lags is told once it has caught up."""
        self._over = True
        self._error = error
        for reader in tuple(self._readers):
            self.settle(reader)

    def detach(self) -> None:
        """Where it came from is done with it: nobody is told to wait or go on any more."""
        self._hold = _nobody

    def hurry(self) -> None:
        """Somebody waits for the end of it: from now on no reader may hold it up."""
        self._hurried = True
        self._set_pace()

    def after(self, position: int) -> list[bytes]:
        """For readers: the pieces from ``position`` on."""
        return self._log[position - self._base :]

    def settle(self, reader: Reader) -> None:
        """For readers: ``reader`` has moved, or the end has come."""
        if not self._over:
            self._set_pace()
        elif reader.position == self.pieces and reader in self._readers:
            self._readers.remove(reader)
            reader.finish(self._error)

    def forget(self, reader: Reader) -> None:
        """For readers: ``reader`` has left."""
        if reader in self._readers:
            self._readers.remove(reader)
            self._set_pace()

    def _trim(self) -> None:
        """Keep no more than is of use, and cut off who lags behind it."""
        log, readers = self._log, self._readers
        if not self._shared and not (readers and readers[0].paused):
            self._base += len(log)
            log.clear()
            self._kept = 0
            return
        dropped = 0
        while self._kept > KEPT_BYTES and len(log) - dropped > 1:
            self._kept -= len(log[dropped])
            dropped += 1
        if dropped:
            del log[:dropped]
            self._base += dropped
            for reader in tuple(readers):
                if reader.position < self._base:
                    readers.remove(reader)
                    reader.cut_off()

    def _set_pace(self) -> None:
        """Hold the stream up while everybody who follows it has to catch up."""
        readers = self._readers
        hold = False
        if readers and readers[0].paused and not self._hurried:
            hold = all(reader.paused for reader in readers)
        if hold != self._holding:
            self._holding = hold
            self._hold(hold)


def _nobody(hold: bool) -> None:
    """There is no worker left to hold up."""
