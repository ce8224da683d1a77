"""Pods, Deployments and services in one state or another, for tests of what is made of them."""

from datetime import UTC, datetime
from typing import Any

from sluice_api import names
from sluice_operator.plan import child_name
from sluice_operator.state import ChildKey, Observed
from tests.support.resources import document

REVISION = "0123456789"
NOW = datetime(2026, 11, 23, 10, 1, tzinfo=UTC)
"""A minute after every pod began."""
BEGAN = "2026-11-23T10:00:00Z"


def pod(
    number: int = 1,
    *,
    phase: str = "Running",
    ready: bool = False,
    scheduled: str = "",
    state: dict[str, Any] | None = None,
    last: dict[str, Any] | None = None,
    restarts: int = 0,
    node: str = "node1",
    reason: str = "",
    message: str = "",
    gone: bool = False,
    revision: str = REVISION,
) -> dict[str, Any]:
    """A worker's pod.

    Args:
        scheduled: what the scheduler says; empty when it has found a node.
        state: of the container; running when left out.
        last: the container's state before.
        reason, message: of the pod's own status.
    """
    name = f"minilm-{revision}-{number}"
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": BEGAN}
    if scheduled:
        placed |= {"status": "False", "reason": "Unschedulable", "message": scheduled}
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "default",
        "uid": f"uid-{name}",
        "creationTimestamp": BEGAN,
        "labels": {names.REVISION_LABEL: revision},
    }
    if gone:
        metadata["deletionTimestamp"] = BEGAN
    status: dict[str, Any] = {
        "phase": phase,
        "podIP": f"10.0.0.{number}",
        "conditions": [{"type": "Ready", "status": "True" if ready else "False"}, placed],
    }
    status |= {k: v for k, v in (("reason", reason), ("message", message)) if v}
    if not scheduled:
        status["containerStatuses"] = [
            {
                "name": "worker",
                "ready": ready,
                "restartCount": restarts,
                "state": state or {"running": {"startedAt": BEGAN}},
                "lastState": last or {},
            }
        ]
    return {
        "metadata": metadata,
        "spec": {} if scheduled else {"nodeName": node},
        "status": status,
    }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def ended(code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, "reason": reason}}


def seen(
    *pods: dict[str, Any],
    replicas: int | None = None,
    refused: str = "",
    updated: int = 0,
    events: dict[str, tuple[tuple[str, str], ...]] | None = None,
    lost: frozenset[str] = frozenset(),
) -> Observed:
    """The service with one Deployment of ``replicas`` (as many as it has or lacks) and these pods.

    Args:
        refused: what the Deployment says of pods that cannot be made.
        updated: pods of what the Deployment says now.
    """
    resource = document()
    resource["metadata"] |= {"namespace": "default", "uid": "u-1", "generation": 1}
    name = child_name("minilm", REVISION)
    conditions = (
        [{"type": "ReplicaFailure", "status": "True", "message": refused}] if refused else []
    )
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": "default",
            "ownerReferences": [{"uid": "u-1", "controller": True}],
        },
        "spec": {"replicas": len(pods) + bool(refused) if replicas is None else replicas},
        "status": {"conditions": conditions, "updatedReplicas": updated},
    }
    return Observed(
        resource=resource,
        children={ChildKey("Deployment", name): deployment},
        pods=pods,
        pod_events=events or {},
        lost_nodes=lost,
    )
