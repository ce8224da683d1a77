"""One InferenceService as the gateway sees it: the line of the service table made from it.

Local mode writes such lines into a file; in a cluster the gateway makes them itself from what it
watches, with :func:`entry_from_status`. Both go through :func:`service_entry`, so a field of the
resource means the same in both.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from sluice_api import wire
from sluice_api.inference_service import InferenceService, revision_of
from sluice_api.tasks import Task

FATAL_REASONS: Final = {
    "InvalidSpec": "its definition is not understood",
    "ConfigMissing": "a Secret or ConfigMap that it needs is missing",
    "ImagePullFailed": "its image cannot be had",
    "VolumeFailed": "its volume cannot be mounted",
    "ModelNotFound": "its model does not exist",
    "ModelDownloadFailed": "its model cannot be downloaded",
    "ModelRejected": "its model cannot be served",
    "OutOfMemory": "it needs more memory than it may have",
    "CrashLoop": "its workers end as soon as they start",
    "QuotaExceeded": "its namespace has no quota left",
    "PermissionDenied": "the platform may not start it",
    "FieldConflict": "the platform may not start it",
}
"""Reasons of the Ready condition for which a request would wait in vain → what callers are told."""
PASSING_REASONS: Final = {
    "Starting": "its workers are starting",
    "Unschedulable": "no machine has room for it now",
    "DigestMismatch": "its workers have loaded something else than what answers",
    "ProbeFailed": "its workers do not answer",
    "Evicted": "its machine ran out of memory or disk",
    "NodeLost": "its machine does not answer",
    "UnknownToGateways": "no gateway has known it until now",
}
"""Reasons of the Ready condition that may pass while a request waits → what callers are told."""
_RETRY_SECONDS: Final = 10.0


def service_entry(
    service: InferenceService,
    *,
    created: int = 0,
    revision: str = "",
    answer_digest: str = "",
    tasks: Iterable[Task] = (),
    endpoints: Iterable[wire.Endpoint] = (),
    failure: wire.Failure | None = None,
    delay: wire.Delay | None = None,
    dormancy: wire.Dormancy | None = None,
    canary: wire.Canary | None = None,
) -> wire.Service:
    """The service's line in the gateway's table.

    Args:
        created: when it came to be, in seconds since the epoch.
        revision: the one that answers; empty for that of the spec.
        answer_digest: what the revision's workers are known to have loaded; empty when unknown.
        tasks: what they are known to offer.
        endpoints: every worker that exists, ready or not.
        failure: why a request would wait in vain.
        delay: why there is no worker yet.
        dormancy: why a request would wake nobody.
        canary: a second revision that gets a share.
    """
    spec, hedge = service.spec, service.spec.limits.hedge
    return wire.Service(
        name=service.metadata.name,
        namespace=service.metadata.namespace,
        created=created,
        revision=revision or revision_of(service),
        answer_digest=answer_digest,
        tasks=list(tasks),
        public=spec.access.public,
        tenants=list(spec.access.tenants),
        entities_from=spec.entities_from,
        cache=wire.CacheRules(
            enabled=spec.cache.enabled,
            ttl_seconds=spec.cache.ttl,
            stale_while_revalidate_seconds=spec.cache.stale_while_revalidate,
            stale_if_error_seconds=spec.cache.stale_if_error,
            sharing="service" if spec.cache.sharing == "service" else "tenant",
            generation=cast(Any, spec.cache.generation),  # One of its choices, as was checked.
        ),
        limits=wire.LimitRules(
            waiting=spec.limits.max_waiting,
            timeout_seconds=spec.limits.timeout,
            start_timeout_seconds=spec.limits.start_timeout,
            queue_timeout_seconds=spec.limits.queue_timeout,
            first_byte_timeout_seconds=spec.limits.first_byte_timeout,
            token_timeout_seconds=spec.limits.token_timeout,
            stream_timeout_seconds=spec.limits.stream_timeout,
            hedge=wire.HedgeRules(after_seconds=hedge.after) if hedge is not None else None,
        ),
        endpoints=list(endpoints),
        failure=failure,
        delay=delay,
        dormancy=dormancy,
        canary=canary,
        precompute=[
            wire.Precomputed(task=Task(entry["task"]), body=entry["body"])
            for entry in spec.cache.precompute
        ],
    )


def entry_from_status(
    service: InferenceService,
    status: Mapping[str, Any],
    *,
    created: int = 0,
    endpoints: Iterable[wire.Endpoint] = (),
) -> wire.Service:
    """The service's line when an operator runs it.

    Args:
        status: as the operator wrote it, JSON decoded; empty before its first write.
        created: when the API server took it, in seconds since the epoch.
        endpoints: every worker that exists, with its revision.
    """
    revision = str(status.get("revision") or "") or revision_of(service)
    known = {str(entry.get("name")): entry for entry in status.get("revisions") or ()}
    stable = known.get(revision, {})
    return service_entry(
        service,
        created=created,
        revision=revision,
        answer_digest=str(stable.get("answerDigest") or ""),
        tasks=_tasks(stable),
        endpoints=endpoints,
        failure=_failure(status),
        delay=_delay(status),
        dormancy=_dormancy(service, status),
        canary=_canary(service, known.values()),
    )


def _canary(
    service: InferenceService, revisions: Iterable[Mapping[str, Any]]
) -> wire.Canary | None:
    canary = service.spec.rollout.canary
    on_trial = next((entry for entry in revisions if entry.get("role") == "canary"), None)
    if canary is None or on_trial is None:
        return None
    return wire.Canary(
        revision=str(on_trial["name"]),
        weight=canary.weight,
        answer_digest=str(on_trial.get("answerDigest") or ""),
        tasks=_tasks(on_trial),
    )


def _tasks(revision: Mapping[str, Any]) -> list[Task]:
    # A task that this version does not know is one it cannot route.
    return [Task(task) for task in revision.get("tasks") or () if task in set(Task)]


def _failure(status: Mapping[str, Any]) -> wire.Failure | None:
    reason = _why_not_ready(status)
    if reason not in FATAL_REASONS:
        return None
    # The condition's own message names pods and files: it is for the service's owner.
    message = f"The service cannot start: {FATAL_REASONS[reason]} ({reason})."
    return wire.Failure(reason=reason, message=message, retry_after_seconds=_RETRY_SECONDS)


def _delay(status: Mapping[str, Any]) -> wire.Delay | None:
    reason = _why_not_ready(status)
    if reason not in PASSING_REASONS:
        return None
    message = f"The model cannot answer yet: {PASSING_REASONS[reason]} ({reason})."
    return wire.Delay(reason=reason, message=message)


def _dormancy(service: InferenceService, status: Mapping[str, Any]) -> wire.Dormancy | None:
    scaling, ready = service.spec.scaling, _ready(status)
    if scaling.mode == "off" and scaling.min_replicas == 0:
        reason, why = "ScalingOff", "its scaling is off, with minReplicas 0"
    elif ready.get("reason") == "Paused" and ready.get("status") == "True":
        reason, why = "Paused", "it is paused"  # And lacks no worker that it is to have.
    else:
        return None
    message = f"The model is asleep and no request wakes it: {why} ({reason})."
    return wire.Dormancy(reason=reason, message=message)


def _why_not_ready(status: Mapping[str, Any]) -> str:
    """The reason of the Ready condition; empty while it holds."""
    ready = _ready(status)
    return str(ready.get("reason") or "") if ready.get("status") == "False" else ""


def _ready(status: Mapping[str, Any]) -> Mapping[str, Any]:
    conditions = {entry.get("type"): entry for entry in status.get("conditions") or ()}
    ready: Mapping[str, Any] = conditions.get("Ready", {})
    return ready
