"""Who goes next: the queue in front of a service's workers.

Requests are bound to a worker as late as possible. They wait here, in the order of ``fair_queue``,
until an endpoint has room, and a freed slot or a newly ready endpoint takes the next at once. The
queue is bounded, and a request that would wait past its deadline is refused when it comes.
``forward`` submits; ``endpoints`` calls :meth:`Admission.pump` whenever room appears.
"""

import time
from collections.abc import Callable, Set
from functools import partial
from typing import Final, NamedTuple, Protocol

from sluice_api.errors import ApiError
from sluice_api.wire import Failure, LimitRules
from sluice_api.wording import sentence
from sluice_gateway.endpoint import Holder, Lease
from sluice_gateway.endpoints import EndpointSet
from sluice_gateway.fair_queue import FairQueue, Queued
from sluice_gateway.metrics import QueueSeries
from sluice_gateway.timers import Timer, TimerWheel

DEFAULT_START_SECONDS: Final = 5.0
_WEIGHT: Final = 0.2
"""Of a new round of turns in the learnt mean."""
_MOST: Final = 3.0
"""Times the mean, that one round counts for: workers may have stood still for some seconds with all
that was on its way, and nobody who comes after that has to wait as long."""
_FEW: Final = 5
"""Rounds, of which the shortest counts alone: a first request meets cold connections and workers,
and who is refused on its account could have been served."""


class Waiter(Holder, Queued, Protocol):
    """What waits.

    Attributes:
        since: when it came, on the monotonic clock.
        queued_at: since when it has waited for a worker this time; admission sets it.
        deadline: when waiting on is of no use to anybody.
        excluded: incarnations of endpoints that it must not be given.
    """

    since: float
    queued_at: float

    @property
    def deadline(self) -> float: ...
    @property
    def excluded(self) -> Set[int]: ...
    def granted(self, lease: Lease) -> None: ...
    def refused(self, error: ApiError) -> None: ...


class Refusal(NamedTuple):
    """What those are told who would wait in vain.

    Attributes:
        code: of the error.
        reason: one word for programs.
        param: what of the request is at fault.
    """

    code: str
    reason: str
    message: str
    retry_after: float | None = None
    param: str | None = None

    def error(self) -> ApiError:
        """It, for one of them."""
        message = sentence(self.message)
        return ApiError(self.code, message, param=self.param, retry_after=self.retry_after)


class Admission:
    """The queue of one service. Times are of the monotonic clock.

    Attributes:
        ended: why there will never be an endpoint again; nobody is held from then on.
        failure: why no endpoint will become ready; nobody is held while it stands.
        unwakeable: why no endpoint will come; nobody is held while it stands and there is none.
        series: who waited how long, and who was refused.

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
        self.ended: Refusal | None = None
        self.failure: Failure | None = None
        self.unwakeable: Refusal | None = None
        self.start_seconds = DEFAULT_START_SECONDS
        self._endpoints = endpoints
        self._wheel = wheel
        self._on_first = on_first
        self.series = QueueSeries()
        self._waiting: FairQueue[Waiter] = FairQueue()
        self._bounds: dict[Waiter, Timer] = {}
        """What ends the waiting of those whose service bounds it."""
        self._ready_since = 0.0
        self._turn_seconds = 0.0
        self._rounds = 0
        self._round_began = 0.0
        self._round_seconds = 0.0
        self._round_turns = 0
        self._pumping = False
        self._passed_over: list[Waiter] = []
        self._unblock: Timer | None = None
        self._unblock_at = 0.0
        self._was_ready = False
        self._unready_since = 0.0
        endpoints.waiting = self._waiting.all
        endpoints.on_room = self.pump

    def __repr__(self) -> str:
        return f"<Admission {len(self._waiting)}/{self.limits.waiting} waiting>"

    def __len__(self) -> int:
        return len(self._waiting)

    def oldest_seconds(self, now: float) -> float:
        """Age of the request that has waited longest; 0 when none waits."""
        for waiter in self._waiting:
            return now - waiter.since
        return 0.0

    @property
    def waiting(self) -> FairQueue[Waiter]:
        """Who waits; for those who show it."""
        return self._waiting

    def submit(self, waiter: Waiter, now: float) -> None:
        """Grant ``waiter`` a lease now, or later in its turn. Raises ApiError when refused."""
        waiter.queued_at = now
        if not self._waiting.all:
            lease = self._endpoints.choose(waiter, waiter.excluded, now)
            if lease is not None:
                waiter.granted(lease)
                return
        if hopeless := self._hopeless():
            error, cause = hopeless
            self.series.refused(waiter.priority, cause)
            raise error
        try:
            self._check_room(waiter, now)
        except ApiError:
            self.series.refused(waiter.priority, "full")
            raise
        first = not self._waiting
        self._waiting.add(waiter)
        self._bound(waiter, now)
        if first:
            self._on_first()
        elif self._endpoints.has_room(now):
            self.pump()  # Those who wait may not go where this one may.
        self._wait_for_unblocking()

    def return_to_head(self, waiter: Waiter, now: float) -> None:
        """Queue a request again that had been granted before; it keeps its place in time."""
        first = not self._waiting
        waiter.queued_at = now
        self._waiting.put_back(waiter)
        self._bound(waiter, now)
        self.pump()
        if first and self._waiting:
            self._on_first()

    def hurry(self, waiter: Waiter, change: Callable[[], None]) -> None:
        """Call ``change``, which makes ``waiter`` more urgent, and let it wait accordingly."""
        self._waiting.change(waiter, change)

    def withdraw(self, waiter: Waiter) -> None:
        if self._waiting.remove(waiter):
            self._unbind(waiter)
        elif waiter in self._passed_over:
            self._passed_over.remove(waiter)
            self._unbind(waiter)

    def pump(self) -> None:
        """Give away whatever room there is, in turn; refuse all when there will be none."""
        if not self._waiting.all or self._pumping:
            return
        if hopeless := self._hopeless():
            error, cause = hopeless
            for waiter in self.drain():
                self.series.refused(waiter.priority, cause)
                waiter.refused(error)
            return
        self._pumping = True
        now = time.monotonic()
        passed_over = self._passed_over
        try:
            while self._waiting and self._endpoints.has_room(now):
                waiter = self._waiting.pop()
                if waiter.deadline <= now:
                    self._unbind(waiter)
                    self._expire(waiter)
                    continue
                lease = self._endpoints.choose(waiter, waiter.excluded, now)
                if lease is None:
                    passed_over.append(waiter)  # The next may go where this one may not.
                    continue
                self._unbind(waiter)
                self.series.waited(waiter.priority, now - waiter.queued_at)
                waiter.granted(lease)
        finally:
            for waiter in reversed(passed_over):
                self._waiting.put_back(waiter)
            passed_over.clear()
            self._pumping = False
        self._wait_for_unblocking()

    def took(self, seconds: float, now: float) -> None:
        """Learn how long a request occupies a slot.

        Requests that were on their way together are a round, which counts once: what holds up a
        worker or the machine holds up all of them.
        """
        if now - seconds >= self._round_began:
            if self._round_turns:
                self._learn(self._round_seconds / self._round_turns)
            self._round_began, self._round_seconds, self._round_turns = now, 0.0, 0
        self._round_seconds += seconds
        self._round_turns += 1

    def _learn(self, seconds: float) -> None:
        mean = self._turn_seconds
        self._rounds += 1
        if self._rounds > _FEW:
            self._turn_seconds += _WEIGHT * (min(seconds, _MOST * mean) - mean)
        else:
            self._turn_seconds = min(seconds, mean or seconds)

    def readiness_changed(self, ready: bool, now: float) -> None:
        """Learn how long a start takes, and give waiting requests to who became ready."""
        if ready and not self._was_ready:
            waited = self.oldest_seconds(now)
            # A worker that only had to prove itself again did not start.
            if waited and self._endpoints.began_at >= self._unready_since:
                self.start_seconds += 0.5 * (waited - self.start_seconds)
            self._ready_since = now
        elif self._was_ready and not ready:
            self._unready_since = now
        self._was_ready = ready
        self.pump()

    def predicted_wait(self, position: int) -> float:
        """Seconds until the request at ``position`` of the queue gets its turn."""
        return position * self._turn_seconds / max(1, self._endpoints.slots)

    def retry_after(self, now: float) -> float:
        """Seconds after which another try is worth it."""
        if self._endpoints.ready:
            return max(0.1, self.predicted_wait(len(self._waiting) + 1))
        return max(1.0, self.start_seconds - self.oldest_seconds(now))

    def drain(self) -> list[Waiter]:
        """Empty the queue; the caller tells them."""
        for timer in self._bounds.values():
            timer.cancel()
        self._bounds.clear()
        return self._waiting.clear()

    def close(self) -> None:
        if self._unblock is not None:
            self._unblock.cancel()

    # Bounds on waiting ----------------------------------------------------------------------------

    def _bound(self, waiter: Waiter, now: float) -> None:
        """End its waiting in time, where the service says how long that may be."""
        longest = self.limits.queue_timeout_seconds
        if longest is not None:
            end = max(now, self._begun(waiter) + longest)
            self._bounds[waiter] = self._wheel.at(end, partial(self._waited_enough, waiter))

    def _unbind(self, waiter: Waiter) -> None:
        if self._bounds and (timer := self._bounds.pop(waiter, None)) is not None:
            timer.cancel()

    def _begun(self, waiter: Waiter) -> float:
        """Since when it waits for a place, and no longer for the service to start."""
        return max(waiter.since, self._ready_since)

    def _waited_enough(self, waiter: Waiter) -> None:
        del self._bounds[waiter]
        now, longest = time.monotonic(), self.limits.queue_timeout_seconds
        if longest is None:
            return
        end = self._begun(waiter) + longest if self._endpoints.ready else now + longest
        if now < end:
            self._bounds[waiter] = self._wheel.at(end, partial(self._waited_enough, waiter))
            return
        self._waiting.remove(waiter)
        self.series.refused(waiter.priority, "timeout")
        waiter.refused(
            ApiError(
                "overloaded",
                f"The request waited {longest:g} s for a worker, as long as limits.queueTimeout "
                "of the service allows (phase: queue).",
                retry_after=self.retry_after(now),
            )
        )

    def _expire(self, waiter: Waiter) -> None:
        """Nobody wants the answer any more: no worker is troubled with it."""
        self.series.refused(waiter.priority, "expired")
        waiter.refused(
            ApiError(
                "deadline_exceeded",
                "The deadline of the request passed before a worker had room (phase: queue).",
            )
        )

    def _hopeless(self) -> tuple[ApiError, str] | None:
        """What to tell who would wait in vain, and the cause that is counted."""
        if self.ended is not None:
            return self.ended.error(), "failed"
        if self._endpoints.ready:
            return None
        if (failure := self.failure) is not None:
            message = sentence(failure.message)
            error = ApiError("model_failed", message, retry_after=failure.retry_after_seconds)
            return error, "failed"
        if (told := self.unwakeable) is not None and not self._endpoints.all:
            return told.error(), "asleep"
        return None

    def _check_room(self, waiter: Waiter, now: float) -> None:
        ready = bool(self._endpoints.ready)
        if ready and self._rounds >= _FEW:
            wait = self.predicted_wait(self._waiting.ahead_of(waiter) + 1)
            if now + wait > waiter.deadline:
                raise ApiError(
                    "overloaded",
                    f"The request would wait for about {wait:.1f} s, longer than its deadline.",
                    retry_after=wait,
                )
        if len(self._waiting) >= self.limits.waiting:
            self._make_room(waiter, now)

    def _make_room(self, waiter: Waiter, now: float) -> None:
        """Refuse who has the least right to wait. Raises ApiError when that is ``waiter``."""
        displaced = self._waiting.displaced_by(waiter, self.limits.waiting)
        code = "overloaded" if self._endpoints.ready else "starting"
        if displaced is None:
            raise ApiError(
                code,
                f"{len(self._waiting)} requests are waiting for this model already.",
                retry_after=self.retry_after(now),
            )
        self.withdraw(displaced)
        self.series.refused(displaced.priority, "displaced")
        displaced.refused(
            ApiError(
                code,
                "The queue for this model is full, and others have fewer requests in it or more "
                "urgent ones.",
                retry_after=self.retry_after(now),
            )
        )

    def _wait_for_unblocking(self) -> None:
        """Endpoints that refused are asked again when the time they named has passed."""
        moment = self._endpoints.unblocked_at()
        if moment is None or not self._waiting:
            return
        if self._unblock is not None:
            if self._unblock_at <= moment:
                return
            self._unblock.cancel()
        self._unblock_at = moment
        self._unblock = self._wheel.at(moment, self._unblocked)

    def _unblocked(self) -> None:
        self._unblock = None
        self.pump()
