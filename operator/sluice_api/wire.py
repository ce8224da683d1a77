"""What the parts tell each other: a worker's readiness, the gateway's service table, demand.

Written as JSON with camelCase members. Unknown members are ignored when read, so that two parts
may differ by one version; everything a reader needs is required or has a safe default.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec

from sluice_api import bounds
from sluice_api.quantities import parse_duration
from sluice_api.tasks import Task

_KEPT = parse_duration(bounds.LONGEST_KEPT)
_WAIT = parse_duration(bounds.LONGEST_WAIT)
_STREAM = parse_duration(bounds.LONGEST_STREAM)
_HEDGE = parse_duration(bounds.LONGEST_HEDGE)


class _Message(msgspec.Struct, rename="camel", kw_only=True):
    """Base of every message: camelCase on the wire, snake_case here."""


# worker → gateway, worker → supervisor ------------------------------------------------------------


class Phase(StrEnum):
    """Where a worker stands. Only ``ready`` answers ``/readyz`` with 200."""

    STARTING = "starting"
    DOWNLOADING = "downloading"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Capacity(_Message, kw_only=True):
    """How much a worker can hold. On every answer too, as the header ``x-sluice-capacity``.

    Attributes:
        limit: requests it wants at most: what it runs plus one batch.
        in_flight: requests it has now, running and waiting.
        backlog_seconds: predicted time to finish all of them.
    """

    limit: int
    in_flight: int = 0
    backlog_seconds: float = 0.0

    def header(self) -> str:
        return f"{self.limit};{self.in_flight};{self.backlog_seconds:.3f}"


def parse_capacity(header: str) -> Capacity | None:
    """Read the capacity header; None when it is not one (a foreign server, a broken one)."""
    try:
        limit, in_flight, backlog = header.split(";")
        capacity = Capacity(
            limit=int(limit), in_flight=int(in_flight), backlog_seconds=float(backlog)
        )
    except ValueError:
        return None
    return capacity if capacity.limit > 0 and capacity.in_flight >= 0 else None


class Readiness(_Message, kw_only=True):
    """The body of a worker's ``GET /readyz``, whatever its status.

    Attributes:
        phase: 200 is answered only in phase ``ready``.
        progress: 0–1 within the phase, where it can be told.
        message: one line for people; in phase ``failed`` the cause and the next step.
        answer_digest: what was really loaded; empty until loaded.
        labels: a classifier's labels in the model's order.
    """

    phase: Phase
    model: str
    revision: str
    progress: float | None = None
    message: str = ""
    answer_digest: str = ""
    tasks: list[Task] = []
    labels: list[str] = []
    max_input_tokens: int | None = None
    dimensions: int | None = None
    dtype: str = ""
    device: str = ""
    capacity: Capacity | None = None


# the static service table: planner → gateway -----------------------------------------------------


class CacheRules(_Message, kw_only=True):
    """``spec.cache``, resolved.

    Attributes:
        ttl_seconds: how long an answer is fresh.
        stale_while_revalidate_seconds: how long after that it is still given, while it is renewed.
        stale_if_error_seconds: how long after that it is given when no worker can answer.
        generation: which generated answers are kept; ``sampled``: those drawn by chance as well.
    """

    enabled: bool = True
    ttl_seconds: Annotated[float, msgspec.Meta(gt=0, le=_KEPT)] = 86400.0
    stale_while_revalidate_seconds: Annotated[float, msgspec.Meta(ge=0, le=_KEPT)] = 600.0
    stale_if_error_seconds: Annotated[float, msgspec.Meta(ge=0, le=_KEPT)] = 3600.0
    sharing: Literal["tenant", "service"] = "tenant"
    generation: Literal["deterministic", "sampled", "never"] = "deterministic"


class Precomputed(_Message, kw_only=True):
    """A request that is answered before anybody asks; ``body`` as the task's route takes it."""

    task: Task
    body: dict[str, Any]


class HedgeRules(_Message, kw_only=True):
    """``spec.limits.hedge``, resolved.

    Attributes:
        after_seconds: without an answer, a second worker is asked; None: what 95 of 100 answers
            took lately.
    """

    after_seconds: Annotated[float, msgspec.Meta(gt=0, le=_HEDGE)] | None = None


class LimitRules(_Message, kw_only=True):
    """``spec.limits``, resolved.

    Attributes:
        waiting: requests that may wait in the gateway for a free worker.
        timeout_seconds: from the last byte of the request to the last byte of the answer; of a
            stream, to its first event and from each to the next.
        start_timeout_seconds: how long a request is held for a sleeping or starting model.
        queue_timeout_seconds: how long it waits for a place at a worker that is ready; None: as
            long as its deadline allows.
        first_byte_timeout_seconds: from sending it to a worker until the answer, or the first event
            of a stream, begins to come; None: as long as its deadline allows.
        token_timeout_seconds: from each event of a stream to the next; None: timeout_seconds.
        stream_timeout_seconds: from the last byte of a request to the last byte of its stream; the
            time that the service needs to start is not counted, as with timeout_seconds.
        hedge: when a second worker is asked; None: never.
    """

    waiting: Annotated[int, msgspec.Meta(ge=0, le=bounds.MAX_WAITING)] = 1000
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=_WAIT)] = 30.0
    start_timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=_WAIT)] = 120.0
    queue_timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=_WAIT)] | None = None
    first_byte_timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=_WAIT)] | None = None
    token_timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=_WAIT)] | None = None
    stream_timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=_STREAM)] = 3600.0
    hedge: HedgeRules | None = None


class Endpoint(_Message, kw_only=True):
    """One worker. It gets traffic once its own ``/readyz`` agrees on revision and digest."""

    url: str
    revision: str = ""
    """Empty: the service's own."""
    zone: str = ""
    """Where it runs; empty when nobody said."""


class Failure(_Message, kw_only=True):
    """Why a service has no worker and will not have one by waiting.

    Attributes:
        reason: one word for programs, such as ``ModelNotFound``.
        message: one or two sentences, safe to be shown to callers.
        retry_after_seconds: when another try is made; callers are told.
    """

    reason: str
    message: str
    retry_after_seconds: Annotated[float, msgspec.Meta(gt=0, le=_WAIT)]


class Delay(_Message, kw_only=True):
    """Why a service has no worker yet, where that may pass: requests are held meanwhile.

    Attributes:
        reason: one word for programs, such as ``Unschedulable``.
        message: one or two sentences, safe to be shown to callers.
    """

    reason: str
    message: str


class Dormancy(_Message, kw_only=True):
    """Why no request wakes a service without workers, where somebody has decided so.

    Attributes:
        reason: one word for programs, such as ``ScalingOff``.
        message: one or two sentences, safe to be shown to callers.
    """

    reason: str
    message: str


class Canary(_Message, kw_only=True):
    """A second revision that gets a share of the requests.

    Attributes:
        weight: percent of the requests; it gets none while it has no ready worker.
        answer_digest: empty until known; without it nothing is cached.
    """

    revision: str
    weight: Annotated[int, msgspec.Meta(ge=0, le=100)]
    answer_digest: str = ""
    tasks: list[Task] = []


class Service(_Message, kw_only=True):
    """One InferenceService as the gateway sees it.

    Attributes:
        created: when it came to be, in seconds since the epoch; 0 where nobody has said.
        tasks: what it offers, the one it is made for first; empty until a worker has told.
        answer_digest: empty until known; without it nothing is cached.
        public: open to callers without credentials.
        tenants: who else may call it.
        endpoints: every worker that exists, ready or not.
        failure: set while no worker can be started; void as soon as an endpoint is ready.
        delay: set while workers are wanted and held up; void as soon as an endpoint is ready.
        dormancy: set while a request would wake nobody; void as long as there is an endpoint.
        canary: a second revision on trial; its endpoints are among ``endpoints``.
        entities_from: finds the entities of texts that come to it without any; empty: nobody does.
        precompute: answered at the start of a revision and kept warm; shared by the whole service.
    """

    name: str
    namespace: str = "default"
    created: Annotated[int, msgspec.Meta(ge=0)] = 0
    revision: str
    answer_digest: str = ""
    tasks: list[Task] = []
    public: bool = False
    tenants: Annotated[list[str], msgspec.Meta(max_length=bounds.MAX_TENANTS)] = []
    cache: CacheRules = msgspec.field(default_factory=CacheRules)
    limits: LimitRules = msgspec.field(default_factory=LimitRules)
    endpoints: list[Endpoint] = []
    entities_from: str = ""
    failure: Failure | None = None
    delay: Delay | None = None
    dormancy: Dormancy | None = None
    canary: Canary | None = None
    precompute: Annotated[list[Precomputed], msgspec.Meta(max_length=bounds.MAX_PRECOMPUTED)] = []


class ServiceTable(_Message, kw_only=True):
    """The file behind ``--discovery static:FILE`` (YAML or JSON)."""

    services: list[Service]


# gateway → operator ------------------------------------------------------------------------------


class WorkerSeen(_Message, kw_only=True, omit_defaults=True):
    """One worker as a gateway's probes and requests see it.

    Attributes:
        address: its IP address, which is its pod's.
        ready: gets requests.
        in_flight: this gateway's requests at it.
        phase, progress, message: what its ``/readyz`` told last, while it is not ready.
        answer_digest: what it has loaded; empty until known.
    """

    address: str
    ready: bool = False
    in_flight: int = 0
    phase: Phase | None = None
    progress: float | None = None
    message: str = ""
    answer_digest: str = ""


class Demand(_Message, kw_only=True, omit_defaults=True):
    """What one gateway saw of one service in one interval; one line of ``GET /internal/demand``.

    Members that have their default are left out. A service at rest is told of every three seconds,
    so a gateway is silent only after five. Counters are per interval, so a reader that misses a
    line loses that interval and nothing else.

    Attributes:
        sequence: of this gateway process, rising by one a line.
        gateway: identity of the gateway process.
        interval_seconds: what the counters cover.
        arrivals: requests that needed a worker; cache hits do not count.
        held: requests waiting for a worker now.
        oldest_held_seconds: age of the oldest of them.
        completions: answers received from workers.
        service_seconds: sum over them of the time spent computing, without queueing.
        in_flight: requests at workers now.
        work_units: inputs computed.
        cache_hits: requests answered without a worker.
        answer_digests: digests seen on answers, by revision.
        tasks: tasks the workers say they offer.
        wake: held requests stand before a service without ready workers.
        workers_only: the gateway sends this revision nothing; the record is there for ``workers``,
            and its counters are no demand.
        workers: of this revision, as far as this gateway knows; the operator reads progress,
            idleness and digests here, because nobody but the gateway can reach a worker.
    """

    sequence: int
    gateway: str
    namespace: str
    service: str
    revision: str
    interval_seconds: float
    arrivals: int = 0
    held: int = 0
    oldest_held_seconds: float = 0.0
    completions: int = 0
    service_seconds: float = 0.0
    in_flight: int = 0
    work_units: int = 0
    cache_hits: int = 0
    ready_endpoints: int = 0
    answer_digests: dict[str, str] = {}
    tasks: list[Task] = []
    wake: bool = False
    workers_only: bool = False
    workers: list[WorkerSeen] = []
