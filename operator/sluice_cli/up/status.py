"""How a service is shown: one row of the table, from what the service knows about itself.

``control.py`` asks for the rows each turn and gives them to the view.
"""

from sluice_api import wire
from sluice_cli.up.instances import Phase
from sluice_cli.up.service import LocalService, revision_in
from sluice_cli.up.table import Row
from sluice_cli.up.worker import Worker

_PHASES = [*wire.Phase]


def row_of(service: LocalService) -> Row:
    """The service as the table shows it; rates are over the gateway's last records."""
    ready = sum(
        w.template == service.serving and w.phase == Phase.READY for w in service.workers.values()
    )
    state, busy = _state(service, ready)
    arrivals = sum(d.arrivals for d in service.recent)
    hits = sum(d.cache_hits for d in service.recent)
    completions = sum(d.completions for d in service.recent)
    computed = sum(d.service_seconds for d in service.recent)
    seconds = sum(d.interval_seconds for d in service.recent)
    leader = _furthest(service)
    return Row(
        service=service.label,
        revision=revision_in(service.serving or service.template or ""),
        state=state,
        busy=busy,
        ready=ready,
        wanted=service.wanted_replicas,
        rate=(arrivals + hits) / seconds if seconds else None,
        hit_share=hits / (arrivals + hits) if arrivals + hits else None,
        compute_seconds=computed / completions if completions else None,
        held=service.held,
        decision=" · ".join(filter(None, _troubles(service, ready))) or service.why,
        progress=leader.readiness.progress if busy and leader and leader.readiness else None,
    )


def _state(service: LocalService, ready: int) -> tuple[str, bool]:
    """One or two words, and whether somebody may be waiting for them to change."""
    leader = _furthest(service)
    if service.template is None:
        return "removing", True
    if ready and service.template != service.serving:
        new = revision_in(service.template)
        if service.failure is not None:
            return f"ready, {new}: {service.failure.reason}", False
        return f"rolling out {new}", True
    if ready:
        return "ready", False
    if leader is not None:
        return leader.state, True
    if service.failure is not None and service.trying:
        return service.failure.reason, False
    return ("waiting", True) if service.wanted_replicas else ("asleep", False)


def _troubles(service: LocalService, ready: int) -> tuple[str, str]:
    """What went wrong with the workers that are missing, and what that keeps from being done."""
    missing = service.trying and (not ready or service.template != service.serving)
    failure = service.failure.describe() if service.failure and missing else ""
    return failure, service.plan.obstacle


def _furthest(service: LocalService) -> Worker | None:
    """The starting worker that will be ready first."""
    starting = [w for w in service.workers.values() if w.phase == Phase.STARTING]
    return max(starting, key=_progress, default=None)


def _progress(worker: Worker) -> tuple[int, float]:
    """How far a starting worker has come."""
    if worker.readiness is None:
        return -1, 0.0
    return _PHASES.index(worker.readiness.phase), worker.readiness.progress or 0.0
