"""One computation for many equal questions that are in flight at the same time.

The main path joins a flight per cache key it missed. The first to join leads: it computes, and
tells the flight how that went; everybody who joined meanwhile gets the same result. In process
only, by callbacks, so that joining costs neither a task nor a future.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

import msgspec

from sluice_api.call import Item
from sluice_api.errors import ApiError
from sluice_gateway.priority import Priority

_log = logging.getLogger(__name__)

Result = Item | ApiError
OnResult = Callable[[Result], None]


class Asker(Protocol):
    """What is computed for who joins, should it come to that."""

    @property
    def priority(self) -> Priority: ...

    def hurry(self, priority: Priority) -> None:
        """Somebody more urgent waits for the answer."""
        ...


class Flights:
    """The computations under way, by key.

    Args:
        limit: waiters over all flights; a further one is refused.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._flights: dict[bytes, _Flight] = {}
        self._waiting = 0

    def join(
        self,
        key: bytes,
        on_result: OnResult,
        on_abandoned: Callable[[], None],
        asker: Asker | None = None,
    ) -> tuple[bool, Callable[[], None]]:
        """Wait for the answer to ``key``, leading its computation if nobody does yet.

        Args:
            on_result: called once with the item or the error, unless ``leave`` was called before.
            on_abandoned: how to stop the computation when everybody has left. Kept from the leader,
                who may itself have left long before; ignored from everybody else.
            asker: one that is more urgent than the leader hurries it.

        Returns:
            Whether the caller leads and so must see to it that :meth:`land` is called, and the
            function by which it leaves before the result (idempotent).

        Raises:
            ApiError: ``overloaded``, when too many are waiting already.
        """
        if self._waiting >= self._limit:
            raise ApiError(
                "overloaded", "Too many requests are waiting for answers.", retry_after=1.0
            )
        flight = self._flights.get(key)
        leads = flight is None
        if flight is None:
            flight = self._flights[key] = _Flight(key, on_abandoned, asker)
        else:
            flight.hurry(asker)
        seat = flight.taken
        flight.taken += 1
        flight.seats[seat] = on_result
        self._waiting += 1
        return leads, partial(self._leave, flight, seat)

    def land(self, key: bytes, result: Result) -> None:
        """Give everybody who waits for ``key`` their answer, or one error: it is not tried N times.

        Nothing when nobody waits.
        """
        flight = self._flights.pop(key, None)  # First, so that a callback may join anew.
        if flight is None:
            return
        for seat in list(flight.seats):
            on_result = flight.seats.pop(seat, None)
            if on_result is None:
                continue  # An earlier callback made this one leave.
            self._waiting -= 1
            try:
                on_result(result)
            except Exception:  # One broken waiter must not keep the answer from the others.
                _log.exception("a waiter failed on its result")

    def _leave(self, flight: "_Flight", seat: int) -> None:
        if flight.seats.pop(seat, None) is None:
            return
        self._waiting -= 1
        if not flight.seats and self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
            flight.on_abandoned()

    def __len__(self) -> int:
        return len(self._flights)

    def __repr__(self) -> str:
        return f"<Flights {len(self._flights)} under way, {self._waiting} waiting>"


class _Flight(msgspec.Struct, eq=False):
    """One computation. ``seats``: who waits for it, in the order they joined."""

    key: bytes
    on_abandoned: Callable[[], None]
    leader: Asker | None
    seats: dict[int, OnResult] = {}
    taken: int = 0

    def hurry(self, asker: Asker | None) -> None:
        leader = self.leader
        if leader is not None and asker is not None and asker.priority < leader.priority:
            leader.hurry(asker.priority)
