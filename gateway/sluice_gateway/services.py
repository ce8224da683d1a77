"""The services there are, by name: what discovery says, and everything that is kept about each.

``discovery`` hands whole tables to :meth:`Services.apply`; ``dispatch`` resolves names here. A
service's *binding* is the object that cached answers hold on to: it is replaced whenever revision,
answer digest, cache rules or access change, and with it everything remembered becomes void.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from sluice_api import names, wire
from sluice_api.errors import ApiError
from sluice_api.routes import USE_LABELS
from sluice_api.tasks import DETERMINISM, Determinism, Task
from sluice_gateway.admission import Admission, Waiter
from sluice_gateway.auth import Tenant, may_call
from sluice_gateway.demand import Tally
from sluice_gateway.endpoints import Endpoint, EndpointSet, State
from sluice_gateway.keys import TenantScope
from sluice_gateway.metrics import Sample, ServiceSeries
from sluice_gateway.probing import watch
from sluice_gateway.retries import RetryBudget
from sluice_gateway.timers import TimerWheel

AGEING_SECONDS: Final = 0.2
"""A queue this old is told to the scaler out of turn."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """What an answer of a service follows from, beside the request. Compared by identity."""

    service: "Service"
    revision: str
    answer_digest: str
    cache: wire.CacheRules
    public: bool
    tenants: tuple[str, ...]

    def same_as(self, other: "Binding") -> bool:
        return (
            self.revision == other.revision
            and self.answer_digest == other.answer_digest
            and self.cache == other.cache
            and self.public == other.public
            and self.tenants == other.tenants
        )


class Service:
    """One InferenceService, live.

    Attributes:
        binding: see :class:`Binding`.
        tasks: from the table, or learnt from the first ready worker; empty until then.
        dimensions: of embeddings, as its workers tell; None until then.
        ready_since: when it last got its first ready worker.
    """

    def __init__(
        self, spec: wire.Service, wheel: TimerWheel, urgent: "Callable[[Service], None]"
    ) -> None:
        now = time.monotonic()
        self.spec = spec
        self.namespace = spec.namespace
        self.name = spec.name
        self.endpoints = EndpointSet(wheel, self._endpoints_changed, self._room)
        self.admission = Admission(self.endpoints, spec.limits, wheel, self._first_held)
        self.series = ServiceSeries()
        self.tally = Tally(now, lambda: urgent(self))
        self.retries = RetryBudget(now)
        self.removed = False
        self.ready_since = now
        self.dimensions: int | None = None
        self._wheel = wheel
        self._urgent = urgent
        self._learnt_tasks: list[Task] = []
        self._learnt_digest = ("", "")  # revision, digest
        self._was_ready = False
        self.binding = self._bind()

    def __repr__(self) -> str:
        return (
            f"<Service {self.namespace}/{self.name} {self.state} {self.endpoints!r} "
            f"{self.admission!r}>"
        )

    @property
    def revision(self) -> str:
        return self.spec.revision

    @property
    def tasks(self) -> list[Task]:
        return self.spec.tasks or self._learnt_tasks

    @property
    def limits(self) -> wire.LimitRules:
        return self.spec.limits

    @property
    def state(self) -> Literal["ready", "starting", "asleep", "failed"]:
        if self.endpoints.ready:
            return "ready"
        if self.spec.failure is not None:
            return "failed"
        return "starting" if self.endpoints.all or self.held else "asleep"

    @property
    def trouble(self) -> str:
        """Why nobody can answer, in words for callers; empty where it is a matter of time."""
        if self.endpoints.ready:
            return ""
        if self.spec.failure is not None:
            return self.spec.failure.message
        return self.endpoints.mismatch()

    @property
    def ready_endpoints(self) -> int:
        return len(self.endpoints.ready)

    @property
    def in_flight(self) -> int:
        return sum(endpoint.in_flight for endpoint in self.endpoints.all.values())

    @property
    def held(self) -> int:
        return len(self.admission)

    def oldest_held_seconds(self, now: float) -> float:
        return self.admission.oldest_seconds(now)

    def scope(self, tenant: Tenant) -> TenantScope:
        """Who shares cached answers with ``tenant``."""
        if self.spec.cache.sharing == "service":
            return TenantScope.service_wide()
        return tenant.scope

    def cacheable(self, task: Task | None) -> bool:
        """Whether answers may be stored: known to follow from the input, and from what."""
        return (
            self.binding.cache.enabled
            and self.binding.answer_digest != ""
            and task is not None
            and DETERMINISM[task] is Determinism.PURE
        )

    def update(self, spec: wire.Service) -> tuple[list[Endpoint], list[Endpoint]]:
        """Follow the table. Returns the endpoints that came and those that went."""
        if spec.revision != self.spec.revision:
            self.dimensions = None
        self.spec = spec
        self.admission.limits = spec.limits
        self.admission.failure = spec.failure
        self.endpoints.digest_learnt = not spec.answer_digest
        changes = self.endpoints.apply(spec.endpoints, spec.revision, self._digest())
        self._rebind()
        return changes

    def remove(self) -> tuple[list[Endpoint], list[Waiter]]:
        """Out of the table. Returns what there was: endpoints and waiting requests."""
        self.removed = True
        _, gone = self.endpoints.apply([], self.spec.revision, "")
        self.admission.close()
        return gone, self.admission.drain()

    def sample(self) -> Sample:
        states = {str(state): 0 for state in State if state is not State.GONE}
        for endpoint in self.endpoints.all.values():
            states[str(endpoint.state)] += 1
        self.series.ejections = self.endpoints.ejections
        return Sample((self.namespace, self.name), self.series, self.in_flight, self.held, states)

    # ---------------------------------------------------------------------------------------------

    def _digest(self) -> str:
        if self.spec.answer_digest:
            return self.spec.answer_digest
        revision, digest = self._learnt_digest
        return digest if revision == self.spec.revision else ""

    def _bind(self) -> Binding:
        return Binding(
            service=self,
            revision=self.spec.revision,
            answer_digest=self._digest(),
            cache=self.spec.cache,
            public=self.spec.public,
            tenants=tuple(self.spec.tenants),
        )

    def _rebind(self) -> None:
        binding = self._bind()
        if not binding.same_as(self.binding):
            self.binding = binding

    def _endpoints_changed(self) -> None:
        now = time.monotonic()
        ready = bool(self.endpoints.ready)
        if ready:
            self._learn(self.endpoints.ready[0])
        if ready != self._was_ready:
            self._was_ready = ready
            if ready:
                self.ready_since = now
            log.info(
                "service readiness changed",
                extra={"service": f"{self.namespace}/{self.name}", "ready": ready},
            )
        self.admission.readiness_changed(ready, now)

    def _learn(self, endpoint: Endpoint) -> None:
        """What the table leaves open, the first ready worker of the revision says for all."""
        told = endpoint.readiness
        if told is None or told.revision != self.spec.revision:
            return
        self._learnt_tasks = told.tasks
        self.dimensions = told.dimensions
        if told.answer_digest:
            self.tally.answer_digests[told.revision] = told.answer_digest
            if not self.spec.answer_digest:
                self._learnt_digest = (told.revision, told.answer_digest)
                self.endpoints.answer_digest = told.answer_digest
                self.endpoints.digest_learnt = True
        self._rebind()

    def _room(self) -> None:
        if self.admission:
            self.admission.pump()

    def _first_held(self) -> None:
        if self.endpoints.ready:
            self._wheel.after(AGEING_SECONDS, self._ageing)
        else:
            self._urgent(self)

    def _ageing(self) -> None:
        if self.oldest_held_seconds(time.monotonic()) >= AGEING_SECONDS:
            self._urgent(self)


class Services:
    """All services, and the probes of their endpoints.

    Args:
        urgent: told when a service's demand should be published at once.
    """

    def __init__(self, wheel: TimerWheel, urgent: Callable[[Service], None]) -> None:
        self._wheel = wheel
        self._urgent = urgent
        self._by_name: dict[tuple[str, str], Service] = {}
        self._only: dict[tuple[str, Task | None], Service | tuple[str, str]] = {}
        self._probes: dict[Endpoint, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Services {len(self._by_name)}, {len(self._probes)} endpoints>"

    def all(self) -> list[Service]:
        return list(self._by_name.values())

    def apply(self, table: wire.ServiceTable) -> list[Waiter]:
        """Make the services be what ``table`` says. Returns requests whose service is gone."""
        wanted = {(spec.namespace, spec.name): spec for spec in table.services}
        orphans: list[Waiter] = []
        for key in self._by_name.keys() - wanted.keys():
            gone, waiting = self._by_name.pop(key).remove()
            self._stop_probing(gone)
            orphans += waiting
        for key, spec in wanted.items():
            service = self._by_name.get(key)
            if service is None:
                service = self._by_name[key] = Service(spec, self._wheel, self._urgent)
            came, gone = service.update(spec)
            self._stop_probing(gone)
            for endpoint in came:
                self._probe(endpoint)
        self._only.clear()
        return orphans

    def resolve(self, model: str | None, tenant: Tenant, task: Task | None) -> Service:
        """The service a request means.

        Raises:
            ApiError: ``model_not_found``, also where it exists but is not this caller's to see;
                ``model_required`` when no name was given and the choice is not clear;
                ``task_not_supported`` when there is none to choose from.
        """
        if model is None:
            return self._the_only(tenant, task)
        namespace, slash, name = model.rpartition("/")
        service = self._by_name.get((namespace if slash else tenant.namespace, name))
        if service is None or not may_call(
            tenant, public=service.spec.public, tenants=service.spec.tenants
        ):
            raise ApiError("model_not_found", f"There is no model {model[:200]!r}.", param="model")
        return service

    def visible(self, tenant: Tenant) -> list[Service]:
        """What ``tenant`` may call, by name."""
        found = [
            service
            for service in self._by_name.values()
            if may_call(tenant, public=service.spec.public, tenants=service.spec.tenants)
        ]
        return sorted(found, key=lambda service: (service.namespace, service.name))

    async def close(self) -> None:
        """End all probes and abort all connections to workers."""
        probes = list(self._probes.values())
        endpoints = list(self._probes)
        self._stop_probing(endpoints)
        await asyncio.gather(*probes, return_exceptions=True)
        for endpoint in endpoints:
            endpoint.pool.close()

    def _the_only(self, tenant: Tenant, task: Task | None) -> Service:
        key = (tenant.name, task)
        found = self._only.get(key)
        if found is None:
            visible = self.visible(tenant)
            offers = [service for service in visible if task is None or _offers(service, task)]
            found = offers[0] if len(offers) == 1 else _no_choice(task, offers, visible)
            if all(service.tasks for service in visible):  # Otherwise there is more to be learnt.
                self._only[key] = found
        if isinstance(found, Service):
            return found
        code, message = found
        raise ApiError(code, message, param="model")

    def _probe(self, endpoint: Endpoint) -> None:
        probe = asyncio.get_running_loop().create_task(
            watch(endpoint), name=f"probe {endpoint.url}"
        )
        self._probes[endpoint] = probe
        probe.add_done_callback(partial(self._probe_ended, endpoint))

    def _probe_ended(self, endpoint: Endpoint, probe: "asyncio.Task[None]") -> None:
        """Probes end by being cancelled only; anything else is a bug, and costs one endpoint."""
        if not probe.cancelled() and self._probes.get(endpoint) is probe:
            log.error("probe ended", exc_info=probe.exception(), extra={"endpoint": endpoint.url})
            endpoint.not_ready("it is not probed any more")

    def _stop_probing(self, endpoints: list[Endpoint]) -> None:
        for endpoint in endpoints:
            probe = self._probes.pop(endpoint, None)
            if probe is not None:
                probe.cancel()


def _offers(service: Service, task: Task) -> bool:
    return not service.tasks or task in service.tasks


def _no_choice(task: Task | None, offers: list[Service], visible: list[Service]) -> tuple[str, str]:
    """Why a request without a model cannot be served: an error's code and message."""
    if len(offers) > 1:
        some = ", ".join(full_name(service) for service in offers[:3])
        more = " and others" if len(offers) > 3 else ""
        return "model_required", f"model: required, because {some}{more} do {task or 'this'}."
    hint = ""
    if task is Task.CLASSIFICATION and any(_offers(s, Task.ZERO_SHOT) for s in visible):
        hint = f"; for zero-shot classification, {USE_LABELS}"
    return "task_not_supported", f"None of the services you may call does {task}{hint}."


def full_name(service: Service) -> str:
    """How the API names a service: bare in the default namespace, else ``namespace/name``."""
    if service.namespace == names.DEFAULT_NAMESPACE:
        return service.name
    return f"{service.namespace}/{service.name}"
