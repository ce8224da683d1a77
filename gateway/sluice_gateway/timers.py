"""One timer for all deadlines: entries fall into coarse slots, a single loop timer walks them.

A loop timer per request would cost more than reading the request. Deadlines here are tens of
milliseconds at least, so a slot of :data:`RESOLUTION_SECONDS` is exact enough; an entry never
fires early. Used by exchanges, admission and upstream connections.

A process that stood still (its machine was paused, its share of the processor was used up) finds
its timers due before it has looked at its sockets. What it waited for may lie there, or those who
were to send it stood still as well: :class:`Grace` gives them a moment, or every request would be
given up, and every worker called silent, for a pause of the gateway's own.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

RESOLUTION_SECONDS: Final = 0.01
STANDSTILL_SECONDS: Final = 0.5
"""A timer that is later than this says that the process stood still."""
GRACE_SECONDS: Final = 2.0
"""After a standstill of at least as long; after a shorter one, for as long as that was."""

log = logging.getLogger(__name__)


class Entry(Protocol):
    """What waits for its time in a slot; whoever takes it out of there hears nothing of it."""

    def fire(self) -> None:
        """The time has come."""
        ...


Slot = dict[Entry, None]
"""What is due at about the same time."""


class Timer(msgspec.Struct, eq=False):
    """A pending call; :meth:`cancel` is idempotent and safe after it fired."""

    fire: Callable[[], None]
    slot: Slot

    def cancel(self) -> None:
        self.slot.pop(self, None)


class Grace:
    """Tells of one timer that its process stood still, whose deadlines are given a moment then."""

    def __init__(self) -> None:
        self._due = float("inf")
        self._given = False

    def expect(self, moment: float) -> None:
        """The timer should come at ``moment`` of the monotonic clock."""
        self._due = moment

    def seconds(self, now: float) -> float:
        """It has come: how long to wait before anything is called late; 0 without a standstill.

        Never twice in a row, or a gateway that is always late would let everybody be late.
        """
        late = now - self._due
        self._given = late > STANDSTILL_SECONDS and not self._given
        return min(late, GRACE_SECONDS) if self._given else 0.0


class TimerWheel:
    """Owned by the gateway; used from its event loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, Slot] = {}
        self._latest: Slot = {}  # The slot asked for last, for what is due at these moments.
        self._latest_from = self._latest_until = 0.0
        self._walked = 0
        self._handle: asyncio.TimerHandle | None = None
        self._grace = Grace()

    def __repr__(self) -> str:
        return f"<TimerWheel {sum(map(len, self._slots.values()))} pending>"

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once, ``seconds`` from now or up to two slots later."""
        return self.at(time.monotonic() + seconds, callback)

    def at(self, moment: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once at ``moment`` of the monotonic clock."""
        slot = self.slot(moment)
        timer = Timer(callback, slot)
        slot[timer] = None
        return timer

    def slot(self, moment: float) -> Slot:
        """Where to put what is due at ``moment`` and needs no timer of its own."""
        if self._latest_from <= moment < self._latest_until:
            return self._latest
        number = int(moment / RESOLUTION_SECONDS) + 1
        if self._handle is None:
            self._walked = int(time.monotonic() / RESOLUTION_SECONDS)
            self._walk_after(RESOLUTION_SECONDS)
        if number <= self._walked:
            number = self._walked + 1
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = {}
        self._latest, self._latest_until = slot, number * RESOLUTION_SECONDS
        self._latest_from = self._latest_until - RESOLUTION_SECONDS
        return slot

    def close(self) -> None:
        """Drop everything that has not fired."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._slots.clear()
        self._latest_until = 0.0

    def _walk_after(self, seconds: float) -> None:
        self._grace.expect(time.monotonic() + seconds)
        self._handle = self._loop.call_later(seconds, self._walk)

    def _walk(self) -> None:
        now = time.monotonic()
        if wait := self._grace.seconds(now):
            self._walk_after(wait)
            return
        reached = int(now / RESOLUTION_SECONDS)
        for number in range(self._walked + 1, reached + 1):
            slot = self._slots.pop(number, None)
            if slot is self._latest:
                self._latest_until = 0.0
            self._walked = number
            while slot:
                entry, _ = slot.popitem()
                try:
                    entry.fire()
                except Exception:
                    log.exception("timer callback failed")
        # An idle gateway does not tick: the walk stops once nothing is left to wait for.
        self._handle = None
        if self._slots:
            self._walk_after(RESOLUTION_SECONDS)
