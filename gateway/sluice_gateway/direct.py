"""A request that is passed on as it came, in one object, while all goes as it usually does.

Nothing is looked up, shared or stored for it, a worker has a place at once, and the worker's answer
is the caller's. That takes no exchange, no job and no forward of its own: a :class:`Direct` is what
``endpoints`` gives a lease to, what ``upstream`` tells the answer, and what the edge may cancel.
Whatever else happens – a refusal, a broken connection, another digest, a deadline, a caller that
leaves – turns it into the exchange that it would have been (:meth:`Direct.unfold`), at the point
where it stands. ``dispatch`` starts it.
"""

import math
import time
from functools import cache
from typing import Any, Final, Protocol

import msgspec

from sluice_api.call import Call
from sluice_api.errors import ApiError
from sluice_gateway.auth import Tenant
from sluice_gateway.cache_status import CACHE_STATUS
from sluice_gateway.endpoint import Lease
from sluice_gateway.exchange import Exchange
from sluice_gateway.forward import written
from sluice_gateway.passage import Passage, fail_with, path_at_worker
from sluice_gateway.request import JSON, Answer, Request, give
from sluice_gateway.service import UNFINISHED, WRITTEN, Binding, Service
from sluice_gateway.timers import Slot, TimerWheel
from sluice_gateway.upstream import Connection
from sluice_gateway.worker_answer import UpstreamAnswer

_NOBODY: Final[frozenset[int]] = frozenset()
_AT_WORKER: Final = b"queue;dur=0.00, worker;dur=%.2f, "
_HEADERS: Final = b"%bserver-timing: %btotal;dur=%.2f\r\n%b%b"


class Course(Protocol):
    """What the main path does for a request, whatever object that is."""

    wheel: TimerWheel

    def enter(self, request: Request, tenant: Tenant, service: Service, call: Call) -> Exchange: ...

    def step(self, exchange: Exchange, step: Any, *arguments: Any) -> None: ...

    def set_deadline(self, exchange: Exchange) -> None: ...

    def expired(self, exchange: Exchange) -> None:
        """Its deadline has come."""
        ...

    def count(self, request: Request, service: Service | None, status: int, now: float) -> None: ...


def why_direct(request: Request, call: Call, service: Service) -> bytes:
    """Why ``call`` may be passed on in this way, in a word for ``Cache-Status``; empty: it may not.

    Not what a stream, the gateway's own counting of tokens or a second worker has a part in; and
    what may be found, shared or kept after all is for the exchange to find out.
    """
    directives = request.head.directives
    why = b"no-store" if directives.no_store else b"" if service.binding.cache.enabled else b"off"
    if (
        not why
        or directives.only_if_cached
        or call.stream is not None
        or call.task in WRITTEN
        or call.task in UNFINISHED
        or service.limits.hedge is not None
        or request.background
    ):
        return b""
    return why


class Direct(msgspec.Struct, eq=False):
    """A request at a worker.

    Attributes:
        why: nothing is looked up; a word for ``Cache-Status``.
        lease: of a worker that was asked, until it has answered; the inputs are counted against the
            tenant's limits then.
        exchange: what it has become; everything is up to that then.
        affinity: see ``Holder``.
    """

    course: Course
    request: Request
    tenant: Tenant
    service: Service
    call: Call
    binding: Binding
    why: bytes
    sent: float = 0.0
    slot: Slot | None = None
    lease: Lease | None = None
    connection: Connection | None = None
    exchange: Exchange | None = None
    affinity: int | None = None

    def __repr__(self) -> str:
        return f"<Direct {self.service.namespace}/{self.service.name} {self.lease!r}>"

    # On its way there -----------------------------------------------------------------------------

    def start(self) -> "Direct | Exchange | None":
        """Ask a worker, one of which has a place. Returns what can be cancelled, if anything."""
        try:
            request, service, call, tenant = self.request, self.service, self.call, self.tenant
            now = self.sent = time.monotonic()
            units = len(call.inputs)
            service.series.bypassed += units
            if tenant.limits is not None:
                tenant.limits.take_inputs(units, now)
            service.tally.arrived()
            service.retries.request(now)
            seconds, asked = service.limits.timeout_seconds, request.head.deadline_seconds
            if asked is not None and asked < seconds:
                seconds = asked
            end = request.received + seconds
            slot = self.slot = self.course.wheel.slot(end)
            slot[self] = None
            lease = self.lease = service.endpoints.choose(self, _NOBODY, now)
            assert lease is not None
            pool = lease.endpoint.pool
            trace = request.head.traceparent
            data = written(
                pool,
                path_at_worker(request, service),
                request.body,
                request.id,
                math.floor((end - now) * 1000),
                tenant,
                b"" if trace is None else b"traceparent: %b\r\n" % trace,
            )
            patience = service.limits.first_byte_timeout_seconds
            self.connection = pool.send(self, data, request.id, patience)
        except Exception as error:
            exchange = self.unfold()
            self.course.step(exchange, fail_with, error)
            return None if exchange.done else exchange
        return self

    # On its way back ------------------------------------------------------------------------------

    def answered(self, answer: UpstreamAnswer) -> None:
        """The worker's answer, whole. Called by the connection."""
        expected, lease = self.binding.answer_digest, self.lease
        if answer.status != 200 or (answer.digest != expected and answer.digest and expected):
            forward = self.unfold().forward
            assert forward is not None
            forward.answered(answer)
            return
        assert lease is not None
        request, service = self.request, self.service
        now = time.monotonic()
        took = now - self.sent
        lease.endpoint.served(answer, now)
        service.admission.took(took, now)
        computed = answer.service
        service.tally.completed(took if computed is None else computed, len(self.call.inputs))
        if self.slot is not None:
            self.slot.pop(self, None)
        self.lease = None
        lease.release()
        worker = b"" if computed is None else _AT_WORKER % (computed * 1000)
        headers = _HEADERS % (
            _cache_status(self.why),
            worker,
            (now - request.received) * 1000,
            self.binding.header,
            request.limit_lines,
        )
        status = give(request, Answer(200, JSON, headers, answer.body))
        self.course.count(request, service, status, now)

    # What does not go as usual --------------------------------------------------------------------

    def unfold(self) -> Exchange:
        """The exchange that it is from now on."""
        if self.exchange is not None:
            return self.exchange
        if self.slot is not None:
            self.slot.pop(self, None)
            self.slot = None
        exchange = self.course.enter(self.request, self.tenant, self.service, self.call)
        exchange.binding = self.binding  # As it was when the worker was asked.
        exchange.reason = b"fwd=bypass; detail=" + self.why
        if self.lease is not None:
            exchange.charged = True
            exchange.counted = self.service
            self.course.set_deadline(exchange)
            passage = Passage(exchange, self.course.step)
            passage.go_on(self, self.lease, self.connection, self.sent)
        self.exchange, self.lease, self.connection = exchange, None, None
        return exchange

    def broke(self, cause: str) -> None:
        forward = self.unfold().forward
        assert forward is not None
        forward.broke(cause)

    def endpoint_lost(self) -> None:
        forward = self.unfold().forward
        assert forward is not None
        forward.endpoint_lost()

    def fire(self) -> None:
        """Its deadline has come."""
        self.course.expired(self.unfold())

    # For the edge ---------------------------------------------------------------------------------

    @property
    def streams(self) -> bool:
        return False

    @property
    def _over(self) -> bool:
        return self.lease is None and self.exchange is None

    def cancel(self) -> None:
        if not self._over:
            self.unfold().cancel()

    def fail(self, error: ApiError) -> None:
        if not self._over:
            self.unfold().fail(error)

    def cut_off(self, cause: str) -> None:
        if not self._over:
            self.unfold().cut_off(cause)

    def resume(self) -> None:
        """There is nothing to go on with: its answer comes whole."""


@cache
def _cache_status(why: bytes) -> bytes:
    return b"%b; fwd=bypass; detail=%b\r\n" % (CACHE_STATUS, why)
