"""One computation at a worker: wait for a place, send, judge the answer, try again elsewhere.

``dispatch`` starts a :class:`Forward` and is told once what came of it. Until something has reached
the caller – a whole answer, or the first event of a stream (``stream_forward``) – nobody can tell
which worker is asked, so a request may be sent again: to another endpoint, within the service's
retry budget.
"""

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from sluice_api import names
from sluice_api.call import Call, Item
from sluice_api.errors import ApiError
from sluice_gateway.auth import Tenant
from sluice_gateway.endpoint import Lease
from sluice_gateway.prefix import fingerprint
from sluice_gateway.priority import Priority
from sluice_gateway.service import WRITTEN, Binding, Service
from sluice_gateway.upstream import Connection, Pool, Receiver
from sluice_gateway.worker_answer import UpstreamAnswer
from sluice_gateway.worker_errors import worker_error

MAX_RETRIES: Final = 2
SILENT_SHARE: Final = 0.5
"""Of the service's timeout; a worker that had a request for so long, and nothing to say when nobody
wanted to wait any longer, has failed it."""
WAITABLE: Final = frozenset(("connect", "reset", "stale", "unresponsive", "not_ready"))
"""Causes after which the same worker may be asked again once it has proved itself anew."""

_REQUEST: Final = (
    b"%b%d\r\n"
    + names.REQUEST_ID.encode()
    + b": %b\r\n"
    + names.DEADLINE_MS.encode()
    + b": %d\r\n"
    + names.TENANT.encode()
    + b": %b\r\n%b\r\n%b"
)

log = logging.getLogger(__name__)


class Rebound(ApiError):
    """The service's revision changed while the job waited: its keys are not those of the answer."""

    def __init__(self) -> None:
        super().__init__("starting", "The model changed while the request waited.", retry_after=0.1)


def is_everybodys(error: ApiError) -> bool:
    """Whether it would meet anybody who asks for the same, at whichever gateway."""
    if error.code == "deadline_exceeded" or isinstance(error, Rebound):
        return False
    return error.code == "overloaded" or error.status >= 500


class Job(msgspec.Struct, eq=False):
    """What is to be computed, apart from by whom.

    Attributes:
        binding: what the answer is to follow from.
        path: of the worker's route.
        units: inputs in it.
        since: when the request came, on the monotonic clock.
        cap: moment after which nobody wants the answer, whatever the service's limits say.
        read: takes the items out of an answer; raises ValueError when it is not one.
        headers: more lines for the worker, each whole.
        background: the gateway's own; scaling is not told of it.
        call: what is asked, as it was understood.
    """

    binding: Binding
    path: bytes
    body: bytes
    units: int
    request_id: bytes
    tenant: Tenant
    since: float
    cap: float
    read: Callable[[bytes], list[Item]]
    headers: bytes
    priority: Priority
    call: Call
    background: bool


def deadline(service: Service, since: float, cap: float) -> float:
    """When a request that came at ``since`` is given up, as things stand.

    While the service has no ready worker, its start may take ``start_timeout``; the time for the
    answer itself begins once there is one.
    """
    if service.endpoints.ready:
        # Each request comes here twice, and up to Python 3.12 a call of max costs ten such lines.
        begun = since if since > service.ready_since else service.ready_since
        moment = begun + service.limits.timeout_seconds
    else:
        moment = since + service.limits.start_timeout_seconds
    return moment if moment < cap else cap


def written(
    pool: Pool,
    path: bytes,
    body: bytes,
    request_id: bytes,
    milliseconds: int,
    tenant: Tenant,
    headers: bytes,
) -> bytes:
    """What a worker is sent. ``headers``: whole lines; it is told to answer in ``milliseconds``."""
    return _REQUEST % (
        pool.openings.get(path) or pool.opening(path),
        len(body),
        request_id,
        milliseconds if milliseconds > 1 else 1,
        tenant.wire_hash,
        headers,
        body,
    )


class Forward:
    """One job on its way. Waits in ``admission``, holds a lease, receives from ``upstream``.

    Args:
        on_answer: called with the complete answer and its items.
        on_error: called instead when the job failed for good.
    """

    __slots__ = (
        "_begun",
        "_connection",
        "_job",
        "_lease",
        "_on_answer",
        "_on_error",
        "_retries",
        "_sent",
        "_service",
        "_stale",
        "affinity",
        "excluded",
        "queue_seconds",
        "queued_at",
        "since",
    )

    def __init__(
        self,
        service: Service,
        job: Job,
        on_answer: Callable[[UpstreamAnswer, list[Item]], None],
        on_error: Callable[[ApiError], None],
    ) -> None:
        self._service = service
        self._job = job
        self._on_answer = on_answer
        self._on_error = on_error
        self._lease: Lease | None = None
        self._connection: Connection | None = None
        self._retries = 0
        self._stale = False
        self._begun = False  # Something has reached the caller: this attempt is the last.
        self._sent = 0.0
        self.since = self.queued_at = job.since
        self.queue_seconds = 0.0
        self.excluded: frozenset[int] = frozenset()
        """Incarnations of the endpoints that have failed this job."""
        self.affinity = fingerprint(job.tenant.name, job.call) if job.call.task in WRITTEN else None
        """What its prompt begins with, for tasks whose engines remember that."""

    def __repr__(self) -> str:
        where = f"at {self._lease.endpoint!r}" if self._lease else "waiting"
        return f"<Forward {self._job.path.decode()} {where}>"

    @property
    def deadline(self) -> float:
        return deadline(self._service, self._job.since, self._job.cap)

    def _until(self) -> float:
        """When the worker may give up."""
        return deadline(self._service, self._job.since, self._job.cap)

    @property
    def phase(self) -> str:
        """What it waits for, as errors and metrics call it."""
        if self._connection is not None:
            return self._connection.phase
        return "queue" if self._service.endpoints.ready else "start"

    # What the queue and the balancer go by --------------------------------------------------------

    @property
    def tenant(self) -> bytes:
        return self._job.tenant.wire_hash

    @property
    def weight(self) -> int:
        return self._job.tenant.weight

    @property
    def priority(self) -> Priority:
        return self._job.priority

    @property
    def units(self) -> int:
        return self._job.units

    # ----------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Raises ApiError when the job is refused at once."""
        self._service.retries.request(now)
        self._service.admission.submit(self, now)

    def take_over(
        self, before: Receiver, lease: Lease, connection: Connection | None, sent: float
    ) -> None:
        """Go on where ``before`` stands, which holds ``lease`` and asked over ``connection``."""
        self._sent = self.queued_at = sent
        self._lease, self._connection = lease, connection
        lease.holder = self
        if connection is not None and connection.serves(before):
            connection.hand_over(self)

    def hurry(self, priority: Priority) -> None:
        """Somebody more urgent waits for the answer too; nothing once a worker has the job."""
        self._service.admission.hurry(self, partial(setattr, self._job, "priority", priority))

    def abort(self) -> None:
        """Nobody wants the answer any more. Nothing is called afterwards."""
        self._service.admission.withdraw(self)
        if self._lease is not None:
            self._judge_silence(self._lease, time.monotonic())
        self._let_go()

    # From admission and endpoints -----------------------------------------------------------------

    def granted(self, lease: Lease) -> None:
        job = self._job
        if job.binding is not self._service.binding:
            lease.release()
            self._on_error(Rebound())
            return
        now = self._sent = time.monotonic()
        self.queue_seconds += now - self.queued_at
        self._lease = lease
        lease.endpoint.background += job.background
        self._connection = self._send_to(lease, self, now)

    def endpoint_lost(self) -> None:
        self._failed("unresponsive")

    def refused(self, error: ApiError) -> None:
        """Waiting on is in vain."""
        self._on_error(error)

    def _send_to(self, lease: Lease, receiver: Receiver, now: float) -> Connection:
        """Ask a worker, and have ``receiver`` told."""
        job, pool = self._job, lease.endpoint.pool
        left = math.floor((self._until() - now) * 1000)
        data = written(pool, job.path, job.body, job.request_id, left, job.tenant, job.headers)
        patience = self._service.limits.first_byte_timeout_seconds
        # Where one idle connection was closed already, the others may be as well.
        return pool.send(receiver, data, job.request_id, patience, fresh=self._stale)

    # From upstream --------------------------------------------------------------------------------

    def answered(self, answer: UpstreamAnswer) -> None:
        lease = self._lease
        assert lease is not None
        now = time.monotonic()
        endpoint = lease.endpoint
        endpoint.heard(answer, now)
        if answer.status != 200:
            self._declined(answer, now)
            return
        try:
            items = self._job.read(answer.body)
        except ValueError as error:
            log.warning(
                "worker answer not understood",
                extra={"endpoint": endpoint.url, "reason": str(error)},
            )
            self._failed("garbage")
            return
        service_seconds = answer.service
        if service_seconds is None:
            service_seconds = now - self._sent
        self._succeeded(answer, service_seconds, now)
        self._let_go()
        self._on_answer(answer, items)

    def broke(self, cause: str) -> None:
        if cause == "stale" and not self._stale:
            # The worker closed an idle connection as we used it; that is nobody's fault.
            self._stale = True
            self._let_go()
            self._service.admission.return_to_head(self, time.monotonic())
        else:
            self._failed(cause)

    # ----------------------------------------------------------------------------------------------

    def _succeeded(self, answer: UpstreamAnswer, service_seconds: float, now: float) -> None:
        """The answer is complete: what it says about the worker, and what it cost."""
        assert self._lease is not None
        service, endpoint, job = self._service, self._lease.endpoint, self._job
        endpoint.succeeded()
        # As it was when it was sent: since then the worker may have become another revision's.
        expected = job.binding.answer_digest
        if answer.digest != expected and answer.digest and expected:
            message = f"answers with digest {answer.digest}"
            endpoint.failed(now, "digest", prove=True, message=message)
        service.admission.took(now - self._sent, now)
        if not job.background:
            service.tally.completed(service_seconds, job.units)

    def _declined(self, answer: UpstreamAnswer, now: float) -> None:
        """The answer is none."""
        if answer.status == 429:
            self._full(answer, now)
        elif answer.status >= 500:
            self._ill(answer)
        else:
            self._let_go()
            self._on_error(worker_error(answer))

    def _full(self, answer: UpstreamAnswer, now: float) -> None:
        """The worker has no room: its word holds, and the job goes back to the head."""
        assert self._lease is not None
        retry_after = answer.retry_after or 0.1
        self._lease.endpoint.full(retry_after, now)
        self._let_go()
        if now + retry_after < self.deadline or self._service.endpoints.has_room(now):
            self._service.admission.return_to_head(self, now)
        else:
            self._on_error(ApiError("overloaded", "Every worker is busy.", retry_after=retry_after))

    def _ill(self, answer: UpstreamAnswer) -> None:
        assert self._lease is not None
        error = worker_error(answer)
        if error.code == "deadline_exceeded":
            self._let_go()
            self._on_error(error)
        elif error.code in ("draining", "starting"):
            self._lease.endpoint.not_ready(error.code)
            self._failed("not_ready")
        else:
            self._failed(f"status_{answer.status}")

    def _failed(self, cause: str) -> None:
        """The attempt came to nothing: try elsewhere if that may help, or tell."""
        assert self._lease is not None
        now = time.monotonic()
        service, endpoint = self._service, self._lease.endpoint
        waitable = cause in WAITABLE
        self._blame(cause, now)
        self._let_go()
        if service.removed and not self._begun:
            service.admission.return_to_head(self, now)  # Which tells its caller so.
            return
        elsewhere = waitable or any(
            other.incarnation not in self.excluded for other in service.endpoints.ready
        )
        resend = elsewhere and not self._begun
        # A refused connection cost nobody anything, so it needs no budget.
        if resend and (cause == "connect" or self._may_retry(now)):
            service.series.retries[cause] += 1
            service.admission.return_to_head(self, now)
            return
        log.warning(
            "request failed at worker",
            extra={
                "endpoint": endpoint.url,
                "cause": cause,
                "request_id": self._job.request_id.decode("latin-1"),
            },
        )
        self._on_error(self._error_of(cause))

    def _blame(self, cause: str, now: float) -> None:
        """The endpoint has failed this job, and does not get it again."""
        assert self._lease is not None
        endpoint = self._lease.endpoint
        self.excluded |= {endpoint.incarnation}
        if cause != "not_ready":
            endpoint.failed(now, cause, prove=cause in WAITABLE)

    def _error_of(self, cause: str) -> ApiError:
        """What the caller is told when nothing else can be tried."""
        if cause == "silent":
            self._service.series.expired["first-byte"] += 1
            message = (
                "The worker sent nothing within limits.firstByteTimeout of the service"
                " (phase: first-byte)."
            )
            return ApiError("deadline_exceeded", message)
        if cause == "slow":
            self._service.series.expired["answer"] += 1
            message = "The worker's answer stopped coming halfway (phase: answer)."
            return ApiError("upstream_failed", message)
        return ApiError("upstream_failed", "The worker did not answer properly.")

    def _judge_silence(self, lease: Lease, now: float) -> None:
        """Nobody waits any longer: one that hangs must not attract more by being rid of this."""
        silent = self._connection is not None and self._connection.phase != "answer"
        if silent and now - self._sent >= SILENT_SHARE * self._service.limits.timeout_seconds:
            lease.endpoint.failed(now, "silent", prove=False)

    def _may_retry(self, now: float) -> bool:
        if self._retries >= MAX_RETRIES or not self._service.retries.take(now):
            return False
        self._retries += 1
        return True

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        lease, self._lease = self._lease, None
        if connection is not None and connection.serves(self):
            connection.abort()
        if lease is not None:
            lease.endpoint.background -= self._job.background
            lease.release()
