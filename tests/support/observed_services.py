"""What the operator's watches would show of a service, for tests of scaling: objects by hand."""

from typing import Any

from sluice_api import names
from sluice_api.inference_service import revision_of
from sluice_api.service_files import parse_service
from sluice_operator.state import ChildKey, Observed
from tests.support.resources import document


def observed(
    *,
    replicas: dict[str, int] | None = None,
    ready: dict[str, int] | None = None,
    status: dict[str, Any] | None = None,
    pods: list[dict[str, Any]] | None = None,
    generation: int = 1,
    **changes: Any,
) -> Observed:
    """The service of :func:`document` with Deployments of so many replicas by revision.

    Args:
        ready: pods that are ready, by revision; beside ``pods``.
        status: of the resource.
    """
    resource = document(**changes)
    resource["metadata"] = {
        "namespace": "default",
        "uid": "u-1",
        "generation": generation,
        **resource["metadata"],
    }
    if status is not None:
        resource["status"] = status
    children = {}
    for revision, count in (replicas or {}).items():
        name = f"minilm-{revision}"
        children[ChildKey("Deployment", name)] = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": name,
                "labels": {names.REVISION_LABEL: revision},
                "ownerReferences": [{"uid": "u-1", "controller": True}],
            },
            "spec": {"replicas": count},
        }
    made = list(pods or [])
    for revision, count in (ready or {}).items():
        made += [pod(f"{revision}-{number}", revision, ready=True) for number in range(count)]
    managers = {name: frozenset({names.SCALER_FIELD_MANAGER}) for _, name in children}
    return Observed(
        resource=resource, children=children, replicas_managers=managers, pods=tuple(made)
    )


def spec_revision(**changes: Any) -> str:
    """The revision of the spec of :func:`document`."""
    return revision_of(parse_service(document(**changes), "test"))


def pod(
    name: str,
    revision: str,
    *,
    ready: bool = False,
    created: str = "2026-11-23T10:00:00Z",
    ready_at: str = "2026-11-23T10:00:04Z",
    restarts: int = 0,
    ip: str = "",
    cost: str | None = None,
    phase: str = "Running",
) -> dict[str, Any]:
    """One pod of a revision."""
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    metadata: dict[str, Any] = {
        "name": name,
        "uid": f"uid-{name}",
        "creationTimestamp": created,
        "labels": {names.REVISION_LABEL: revision},
    }
    if cost is not None:
        metadata["annotations"] = {names.DELETION_COST: cost}
    return {
        "metadata": metadata,
        "spec": {"nodeName": "node1"},
        "status": {
            "phase": phase,
            "podIP": ip,
            "conditions": [condition | {"lastTransitionTime": ready_at}],
            "containerStatuses": [{"restartCount": restarts, "state": {"running": {}}}],
        },
    }
