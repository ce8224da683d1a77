"""A second worker is asked where the first is slow; the first answer counts, the other is stopped.

One slow worker of many – collecting garbage, sharing its cores, about to die – decides about the
slowest requests of all. Asking twice is safe for tasks whose answers follow from the input alone,
and cheap when it is rare: hedges take from the retry budget, half of it at most, and never a place
that somebody waits for. (Dean and Barroso, "The Tail at Scale", 2013.) ``dispatch`` and
``computation`` make their forwards here.
"""

import time
from collections.abc import Callable
from typing import Final

from sluice_api.call import Item
from sluice_api.errors import ApiError
from sluice_api.tasks import DETERMINISM, Determinism
from sluice_gateway.endpoint import Lease
from sluice_gateway.forward import WAITABLE, Forward, Job
from sluice_gateway.retries import SHARE
from sluice_gateway.service import Service
from sluice_gateway.timers import Timer
from sluice_gateway.upstream import Connection
from sluice_gateway.worker_answer import UpstreamAnswer

HEDGE_SHARE: Final = SHARE / 2
"""Of the service's requests."""


def make_forward(
    service: Service,
    job: Job,
    on_answer: Callable[[UpstreamAnswer, list[Item]], None],
    on_error: Callable[[ApiError], None],
) -> Forward:
    """``job`` on its way: with a hedge where the service has it and the task allows it."""
    hedged = service.limits.hedge is not None and not job.background
    if hedged and job.call.task and DETERMINISM[job.call.task] is Determinism.PURE:
        return HedgedForward(service, job, on_answer, on_error)
    return Forward(service, job, on_answer, on_error)


class HedgedForward(Forward):
    """A job that may be at two workers at once. What the second one breaks costs nobody anything;
    where the first one fails, the second is the first from then on."""

    __slots__ = ("_asked_first", "_second", "_timer")

    def __init__(
        self,
        service: Service,
        job: Job,
        on_answer: Callable[[UpstreamAnswer, list[Item]], None],
        on_error: Callable[[ApiError], None],
    ) -> None:
        super().__init__(service, job, on_answer, on_error)
        self._asked_first = 0.0
        self._second: _Second | None = None
        self._timer: Timer | None = None

    # From admission -------------------------------------------------------------------------------

    def granted(self, lease: Lease) -> None:
        super().granted(lease)
        self._asked_first = self._sent
        hedge = self._service.limits.hedge
        if self._lease is None or hedge is None:
            return
        after = hedge.after_seconds or self._service.latencies.figure()
        if after is not None and len(self._service.endpoints.ready) > 1:
            self._timer = lease.endpoint.pool.wheel.after(after, self._ask_second)

    # The second worker ----------------------------------------------------------------------------

    def _ask_second(self) -> None:
        self._timer = None
        service, now = self._service, time.monotonic()
        if self._lease is None or len(service.admission):
            return  # Who waits for a first worker goes before who wants a second.
        second = _Second(self)
        excluded = self.excluded | {self._lease.endpoint.incarnation}
        lease = service.endpoints.choose(second, excluded, now)
        if lease is None:
            service.series.hedges["no_room"] += 1
        elif not service.retries.take(now, HEDGE_SHARE):
            service.series.hedges["no_budget"] += 1
            lease.release()
        else:
            self._second = second
            second.lease = lease
            second.sent = now
            second.connection = self._send_to(lease, second, now)

    def second_answered(self, answer: UpstreamAnswer) -> None:
        second, now = self._second, time.monotonic()
        assert second is not None
        assert second.lease is not None
        endpoint = second.lease.endpoint
        if answer.status == 200:
            second.connection = None  # It is done, and may serve others already.
            self._adopt()
            self.answered(answer)
            return
        endpoint.heard(answer, now)
        if answer.status == 429:
            endpoint.full(answer.retry_after or 0.1, now)
        elif answer.status >= 500:
            endpoint.failed(now, f"status_{answer.status}", prove=False)
        self._drop_second("failed")

    def second_broke(self, cause: str) -> None:
        assert self._second is not None
        assert self._second.lease is not None
        if cause != "stale":
            endpoint = self._second.lease.endpoint
            endpoint.failed(time.monotonic(), cause, prove=cause in WAITABLE)
        self._drop_second("failed")

    # ----------------------------------------------------------------------------------------------

    def _succeeded(self, answer: UpstreamAnswer, service_seconds: float, now: float) -> None:
        # From the first asking: otherwise every hedge that won would make the next come sooner.
        self._service.latencies.took(now - self._asked_first)
        super()._succeeded(answer, service_seconds, now)

    def _full(self, answer: UpstreamAnswer, now: float) -> None:
        if self._second is None:
            super()._full(answer, now)
            return
        assert self._lease is not None
        self._lease.endpoint.full(answer.retry_after or 0.1, now)
        self._adopt()

    def _failed(self, cause: str) -> None:
        if self._second is None:
            super()._failed(cause)
            return
        self._blame(cause, time.monotonic())
        self._adopt()

    def _adopt(self) -> None:
        """The second worker is the only one from now on."""
        second, self._second = self._second, None
        assert second is not None
        self._service.series.hedges["won"] += 1
        super()._let_go()
        self._lease, self._connection, self._sent = second.lease, second.connection, second.sent
        if second.lease is not None:
            second.lease.holder = self
        if self._connection is not None:
            self._connection.hand_over(self)

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._second is not None:
            self._drop_second("lost")
        super()._let_go()

    def _drop_second(self, outcome: str) -> None:
        second, self._second = self._second, None
        assert second is not None
        self._service.series.hedges[outcome] += 1
        if second.connection is not None and second.connection.serves(second):
            second.connection.abort()
        if second.lease is not None:
            second.lease.release()


class _Second:
    """Holds the second worker's lease and receives its answer."""

    __slots__ = ("_forward", "connection", "lease", "sent")

    affinity: int | None = None  # Elsewhere than at home, that is the point.

    def __init__(self, forward: HedgedForward) -> None:
        self._forward = forward
        self.lease: Lease | None = None
        self.connection: Connection | None = None
        self.sent = 0.0

    def endpoint_lost(self) -> None:
        self._forward.second_broke("unresponsive")

    def answered(self, answer: UpstreamAnswer) -> None:
        self._forward.second_answered(answer)

    def broke(self, cause: str) -> None:
        self._forward.second_broke(cause)
