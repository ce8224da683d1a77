"""The services there are, by name: what discovery says, kept live.

``discovery`` hands over whole tables or single services; ``dispatch`` resolves names here. What is
kept about each stands in ``service``.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from sluice_api import wire
from sluice_api.errors import ApiError
from sluice_api.routes import USE_LABELS
from sluice_api.tasks import Task
from sluice_gateway.admission import Refusal
from sluice_gateway.auth import Rights, Tenant, may_call
from sluice_gateway.balance import Rules
from sluice_gateway.endpoint import Endpoint
from sluice_gateway.probing import watch
from sluice_gateway.service import REMOVED, TRIAL_OVER, Changes, Service
from sluice_gateway.timers import TimerWheel

MAX_NAMED: Final = 10_000
"""Names by caller whose meaning is remembered."""

_RULES: Final = Rules()

log = logging.getLogger(__name__)


class Services:
    """All services, and the probes of their endpoints.

    Args:
        urgent: told when a service's demand should be published at once.
        rules: of balancing, the same for all.
    """

    def __init__(
        self, wheel: TimerWheel, urgent: Callable[[Service], None], rules: Rules = _RULES
    ) -> None:
        self._wheel = wheel
        self._urgent = urgent
        self._rules = rules
        self._attended = True
        self._by_name: dict[tuple[str, str], Service] = {}
        self._only: dict[tuple[Rights, str, Task | None], Service | tuple[str, str]] = {}
        self._named: dict[tuple[Tenant, str], Service] = {}
        """What names have meant, until anything of it may have changed."""
        self._probes: dict[Endpoint, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Services {len(self._by_name)}, {len(self._probes)} endpoints>"

    def all(self) -> list[Service]:
        return list(self._by_name.values())

    def knows(self, namespace: str, name: str) -> bool:
        return (namespace, name) in self._by_name

    def tracks(self) -> list[Service]:
        """All services, and all revisions on trial."""
        return [track for service in self._by_name.values() for track in service.tracks()]

    def attended(self, whether: bool) -> None:
        """Learn whether somebody reads the demand, who would wake what is asleep."""
        self._attended = whether
        for service in self.all():
            service.attended(whether)

    def replace(self, table: wire.ServiceTable) -> None:
        """Make the services be exactly what ``table`` says."""
        wanted = {(spec.namespace, spec.name) for spec in table.services}
        for namespace, name in self._by_name.keys() - wanted:
            self.remove(namespace, name)
        for spec in table.services:
            self.put(spec)

    def put(self, spec: wire.Service) -> None:
        """Make one service be what ``spec`` says."""
        key = (spec.namespace, spec.name)
        service = self._by_name.get(key)
        before = service.spec if service is not None else None
        if service is None:
            service = self._by_name[key] = Service(
                spec, self._wheel, self._urgent, rules=self._rules
            )
            if not self._attended:
                service.attended(False)
        self._settle(service.update(spec), TRIAL_OVER)
        if before is None or not _same_offer(before, spec):
            self._forget()
        if before is None:
            self._urgent(service)  # it is not called ready before every gateway has spoken of it

    def remove(self, namespace: str, name: str) -> None:
        """The service is no more; whoever waits for it is told."""
        service = self._by_name.pop((namespace, name), None)
        if service is not None:
            self._settle(service.remove(), REMOVED)
            self._forget()

    def resolve(self, model: str | None, tenant: Tenant, task: Task | None) -> Service:
        """The service a request means.

        Raises:
            ApiError: ``model_not_found``, also where it exists but is not this caller's to see;
                ``model_required`` when no name was given and the choice is not clear;
                ``task_not_supported`` when there is none to choose from.
        """
        if model is None:
            return self._the_only(tenant, task)
        service = self._named.get((tenant, model))
        if service is None:
            service = self._find(model, tenant)
            if len(self._named) >= MAX_NAMED:
                self._named.clear()
            self._named[tenant, model] = service
        return service

    def _find(self, model: str, tenant: Tenant) -> Service:
        namespace, slash, name = model.rpartition("/")
        service = self._by_name.get((namespace if slash else tenant.namespace, name))
        if service is None or not _may_call(tenant, service):
            raise ApiError("model_not_found", f"There is no model {model[:200]!r}.", param="model")
        return service

    def visible(self, tenant: Tenant) -> list[Service]:
        """What ``tenant`` may call, by name."""
        found = [service for service in self._by_name.values() if _may_call(tenant, service)]
        return sorted(found, key=lambda service: (service.namespace, service.name))

    def rights_changed(self) -> None:
        """What tenants may call is not what it was."""
        self._forget()

    async def close(self) -> None:
        """End all probes and abort all connections to workers."""
        probes = list(self._probes.values())
        endpoints = list(self._probes)
        self._stop_probing(endpoints)
        await asyncio.gather(*probes, return_exceptions=True)
        for endpoint in endpoints:
            endpoint.pool.close()

    def _forget(self) -> None:
        """Look anew for what a request means."""
        self._only.clear()
        self._named.clear()

    def _the_only(self, tenant: Tenant, task: Task | None) -> Service:
        key = (tenant.rights, tenant.name, task)
        found = self._only.get(key)
        if found is None:
            visible = self.visible(tenant)
            offers = [service for service in visible if task is None or _offers(service, task)]
            # A reranker classifies too, if need be; the service that was made for it goes first.
            meant = [service for service in offers if service.tasks[:1] == [task]]
            offers = meant if len(meant) == 1 else offers
            found = offers[0] if len(offers) == 1 else _no_choice(task, offers, visible, tenant)
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

    def _settle(self, changes: Changes, refusal: Refusal) -> None:
        """Probe who came, let go of who went, and refuse those who wait in vain."""
        self._stop_probing(changes.gone)
        for endpoint in changes.came:
            self._probe(endpoint)
        for waiter in changes.waiting:
            waiter.refused(refusal.error())

    def _stop_probing(self, endpoints: list[Endpoint]) -> None:
        for endpoint in endpoints:
            probe = self._probes.pop(endpoint, None)
            if probe is not None:
                probe.cancel()


def _same_offer(before: wire.Service, after: wire.Service) -> bool:
    """Whether what is offered to whom is what it was."""
    return (
        before.revision == after.revision
        and before.tasks == after.tasks
        and before.public == after.public
        and before.tenants == after.tenants
    )


def _offers(service: Service, task: Task) -> bool:
    return not service.tasks or task in service.tasks


def _may_call(tenant: Tenant, service: Service) -> bool:
    spec = service.spec
    return may_call(tenant, spec.namespace, spec.name, public=spec.public, tenants=spec.tenants)


def _no_choice(
    task: Task | None, offers: list[Service], visible: list[Service], tenant: Tenant
) -> tuple[str, str]:
    """Why a request without a model cannot be served: an error's code and message."""
    if len(offers) > 1:
        some = ", ".join(name_for(tenant, service) for service in offers[:3])
        more = " and others" if len(offers) > 3 else ""
        return "model_required", f"model: required, because {some}{more} do {task or 'this'}."
    hint = ""
    if task is Task.CLASSIFICATION and any(_offers(s, Task.ZERO_SHOT) for s in visible):
        hint = f"; for zero-shot classification, {USE_LABELS}"
    return "task_not_supported", f"None of the services you may call does {task}{hint}."


def name_for(tenant: Tenant, service: Service) -> str:
    """How ``tenant`` names a service: bare in its own namespace, else ``namespace/name``."""
    if service.namespace == tenant.namespace:
        return service.name
    return f"{service.namespace}/{service.name}"
