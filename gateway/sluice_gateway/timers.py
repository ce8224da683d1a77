"""One timer for all deadlines: entries fall into coarse slots, a single loop timer walks them.

A loop timer per request would cost more than reading the request. Deadlines here are tens of
milliseconds at least, so a slot of :data:`RESOLUTION_SECONDS` is exact enough; an entry never
fires early. Used by exchanges, admission and upstream connections.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

RESOLUTION_SECONDS: Final = 0.01

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


class TimerWheel:
    """Owned by the gateway; used from its event loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, Slot] = {}
        self._latest: Slot = {}  # The slot asked for last, for what is due at these moments.
        self._latest_from = self._latest_until = 0.0
        self._walked = 0
        self._handle: asyncio.TimerHandle | None = None

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
            self._handle = self._loop.call_later(RESOLUTION_SECONDS, self._walk)
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

    def _walk(self) -> None:
        reached = int(time.monotonic() / RESOLUTION_SECONDS)
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
        self._handle = (
            self._loop.call_later(RESOLUTION_SECONDS, self._walk) if self._slots else None
        )
