"""Changes that roll inside a revision, on real pods: under way until they are there, or told of."""

import json
from typing import Any

import pytest

from tests.support.cluster.cluster import Cluster
from tests.support.failure_cases import ROOM, Case, at_once, images, misbehaving
from tests.support.published import Published, condition_of

pytestmark = pytest.mark.usefixtures("platform")

AWAKE = {"scaling__minReplicas": 1}
FITTING = misbehaving("fits", hardware__resources={**ROOM, "limits": {"memory": "64Mi"}}, **AWAKE)
NO_PODS = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "none"},
    "spec": {"hard": {"pods": "0"}},
}


def with_resources(**amounts: Any) -> dict[str, Any]:
    return {"hardware__resources": {**ROOM, **amounts}}


EDITS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "no-room": (
        AWAKE,
        with_resources(requests={"cpu": "5m", "memory": "900Gi"}),
        *("Reconciling/RollingOut", "Insufficient memory"),
    ),
    "no-memory": (
        FITTING,
        with_resources(requests={"cpu": "5m", "memory": "8Mi"}, limits={"memory": "16Mi"}),
        *("Stalled/OutOfMemory", "its limit is 16Mi"),
    ),
    "no-image": (
        AWAKE,
        {"engine__image": "localhost/absent:1"},
        *("Stalled/ImagePullFailed", "localhost/absent:1"),
    ),
    "no-quota": (
        AWAKE,
        {"batching__maxSize": 7},
        *("Stalled/QuotaExceeded", "exceeded quota: none"),
    ),
}
"""Service → how it is first, what is changed, and the condition that tells of it."""


def told(service: Published, condition: str, words: str) -> bool:
    kind, _, reason = condition.partition("/")
    found = service.condition(kind)
    right = (found.get("status"), found.get("reason")) == ("True", reason)
    return right and words in found["message"]


def is_done(service: Published) -> bool:
    resource = service.get()
    kinds = {"Ready": "True", "Reconciling": "False", "Stalled": "False"}
    return all(
        condition_of(resource, kind).get("status") == status for kind, status in kinds.items()
    )


def test_an_edit_that_cannot_be_is_told_while_the_service_answers(
    cluster: Cluster, namespace: str
) -> None:
    cluster.load(*images())
    services = {name: Published(cluster, namespace, name) for name in EDITS}

    def apply(name: str, **changes: Any) -> None:
        case = Case(name, "", (), at_once, {**EDITS[name][0], **changes})
        services[name].apply(case.resource(namespace)["spec"])

    for name in EDITS:
        apply(name)
    for name, service in services.items():
        service.until(lambda service=service: is_done(service), f"{name} is there")
    for name, (_, changes, condition, words) in EDITS.items():
        if name == "no-quota":  # of those before, the pods are made
            cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(NO_PODS))
        service = services[name]
        apply(name, **changes)
        service.until(
            lambda service=service, told_by=(condition, words): told(service, *told_by),
            f"{name} says so",
        )
        ready = service.condition()
        assert (ready["status"], ready["reason"]) == ("True", "RollingOut")
        assert words in ready["message"]
        assert service.status["readyReplicas"] == 1
        both = [service.condition(kind)["status"] for kind in ("Reconciling", "Stalled")]
        assert sorted(both) == ["False", "True"]
        reason = "Unschedulable" if name == "no-room" else condition.partition("/")[2]
        service.until(
            lambda service=service, reason=reason: warned(service, reason), f"an Event of {name}"
        )
    cluster.kubectl("delete", "resourcequota", "none", "-n", namespace)
    for name in EDITS:
        apply(name)
    for name, service in services.items():
        wait = ("wait", f"inf/{name}", "--for=condition=Reconciling=False", "--timeout=120s")
        service.kubectl(*wait)
        assert is_done(service), service.status


def warned(service: Published, reason: str) -> bool:
    """Whether a Warning of that reason stands with the service."""
    selector = f"involvedObject.kind=InferenceService,involvedObject.name={service.name}"
    path = f"/api/v1/namespaces/{service.namespace}/events"
    events = service.cluster.read(path, fieldSelector=f"{selector},type=Warning")["items"]
    return any(event["reason"] == reason for event in events)
