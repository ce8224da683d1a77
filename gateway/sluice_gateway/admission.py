"""Who goes next: the queue in front of a service's workers.

Requests are bound to a worker as late as possible. They wait here, first in first out, until an
endpoint has room, and a freed slot or a newly ready endpoint takes the oldest at once. The queue is
bounded, and a request that would wait past its deadline is refused when it comes. ``forward``
submits; ``endpoints`` calls :meth:`Admission.pump` whenever room appears.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Set
from typing import Final, Protocol

from sluice_api.errors import ApiError
from sluice_api.wire import Failure, LimitRules
from sluice_gateway.endpoints import EndpointSet, Holder, Lease
from sluice_gateway.timers import Timer, TimerWheel

DEFAULT_START_SECONDS: Final = 5.0
_WEIGHT: Final = 0.1
"""Of a new observation in a learnt mean."""


class Waiter(Holder, Protocol):
    """What waits.

    Attributes:
        since: when it came, on the monotonic clock.
        deadline: when waiting on is of no use to anybody.
        excluded: incarnations of endpoints that it must not be given.
    """

    since: float

    @property
    def deadline(self) -> float: ...
    @property
    def excluded(self) -> Set[int]: ...
    def granted(self, lease: Lease) -> None: ...
    def refused(self, error: ApiError) -> None: ...


class Admission:
    """The queue of one service. Times are of the monotonic clock.

    Attributes:
        failure: why no endpoint will become ready; nobody is held while it stands.

    Args:
        on_first: called when the queue stops being empty.
    """

    def __init__(
        self,
        endpoints: EndpointSet,
        limits: LimitRules,
        wheel: TimerWheel,
        on_first: Callable[[], None],
    ) -> None:
        self.limits = limits
        self.failure: Failure | None = None
        self.start_seconds = DEFAULT_START_SECONDS
        self._endpoints = endpoints
        self._wheel = wheel
        self._on_first = on_first
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()
        self._turn_seconds = 0.0
        self._pumping = False
        self._unblock: Timer | None = None
        self._was_ready = False

    def __repr__(self) -> str:
        return f"<Admission {len(self._waiting)}/{self.limits.waiting} waiting>"

    def __len__(self) -> int:
        return len(self._waiting)

    def oldest_seconds(self, now: float) -> float:
        """Age of the request that has waited longest; 0 when none waits."""
        for waiter in self._waiting:
            return now - waiter.since
        return 0.0

    def submit(self, waiter: Waiter, now: float) -> None:
        """Grant ``waiter`` a lease now, or later in its turn. Raises ApiError when refused."""
        if not self._waiting:
            lease = self._endpoints.choose(waiter, waiter.excluded, now)
            if lease is not None:
                waiter.granted(lease)
                return
        self._check_room(waiter, now)
        first = not self._waiting
        self._waiting[waiter] = None
        if first:
            self._on_first()
        self._wait_for_unblocking(now)

    def return_to_head(self, waiter: Waiter, now: float) -> None:
        """Queue a request again that had been granted before; it keeps its place in time."""
        self._waiting[waiter] = None
        self._waiting.move_to_end(waiter, last=False)
        self.pump()
        self._wait_for_unblocking(now)

    def withdraw(self, waiter: Waiter) -> None:
        self._waiting.pop(waiter, None)

    def pump(self) -> None:
        """Give away whatever room there is, oldest first; refuse all when there will be none."""
        if not self._waiting or self._pumping:
            return
        if error := self._hopeless():
            for waiter in self.drain():
                waiter.refused(error)
            return
        self._pumping = True
        now = time.monotonic()
        passed_over: list[Waiter] = []
        try:
            while self._waiting:
                waiter, _ = self._waiting.popitem(last=False)
                lease = self._endpoints.choose(waiter, waiter.excluded, now)
                if lease is not None:
                    waiter.granted(lease)
                    continue
                passed_over.append(waiter)
                if not waiter.excluded:
                    break  # No room at all. Otherwise the next may go where this one may not.
        finally:
            for waiter in reversed(passed_over):
                self._waiting[waiter] = None
                self._waiting.move_to_end(waiter, last=False)
            self._pumping = False

    def took(self, seconds: float) -> None:
        """Learn how long a request occupies a slot."""
        if self._turn_seconds:
            self._turn_seconds += _WEIGHT * (seconds - self._turn_seconds)
        else:
            self._turn_seconds = seconds

    def readiness_changed(self, ready: bool, now: float) -> None:
        """Learn how long a start takes, and give waiting requests to who became ready."""
        if ready and not self._was_ready:
            waited = self.oldest_seconds(now)
            if waited:
                self.start_seconds += 0.5 * (waited - self.start_seconds)
        self._was_ready = ready
        self.pump()

    def predicted_wait(self, position: int) -> float:
        """Seconds until the request at ``position`` of the queue gets its turn."""
        return position * self._turn_seconds / max(1, self._endpoints.slots())

    def retry_after(self, now: float) -> float:
        """Seconds after which another try is worth it."""
        if self._endpoints.ready:
            return max(0.1, self.predicted_wait(len(self._waiting) + 1))
        return max(1.0, self.start_seconds - self.oldest_seconds(now))

    def drain(self) -> list[Waiter]:
        """Empty the queue; the caller tells them."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def close(self) -> None:
        if self._unblock is not None:
            self._unblock.cancel()

    def _hopeless(self) -> ApiError | None:
        failure = self.failure
        if failure is None or self._endpoints.ready:
            return None
        message = failure.message if failure.message.endswith(".") else f"{failure.message}."
        return ApiError("model_failed", message, retry_after=failure.retry_after_seconds)

    def _check_room(self, waiter: Waiter, now: float) -> None:
        if error := self._hopeless():
            raise error
        ready = bool(self._endpoints.ready)
        if len(self._waiting) >= self.limits.waiting:
            raise ApiError(
                "overloaded" if ready else "starting",
                f"{len(self._waiting)} requests are waiting for this model already.",
                retry_after=self.retry_after(now),
            )
        if ready:
            wait = self.predicted_wait(len(self._waiting) + 1)
            if now + wait > waiter.deadline:
                raise ApiError(
                    "overloaded",
                    f"The request would wait for about {wait:.1f} s, longer than its deadline.",
                    retry_after=wait,
                )

    def _wait_for_unblocking(self, now: float) -> None:
        """Endpoints that refused are asked again when the time they named has passed."""
        moment = self._endpoints.unblocked_at()
        if moment is not None and self._unblock is None:
            self._unblock = self._wheel.at(moment, self._unblocked)

    def _unblocked(self) -> None:
        self._unblock = None
        self.pump()
        if self._waiting:
            self._wait_for_unblocking(time.monotonic())
