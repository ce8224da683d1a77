"""What the pods of a service are doing, one by one and counted. Pure.

``fleet`` asks for the counts before it decides how many there should be, ``diagnosis`` looks at the
pods that are not what they should be.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, Final

from sluice_api.names import REVISION_LABEL
from sluice_operator.plan import child_name
from sluice_operator.scaling.recommend import WorkerCounts
from sluice_operator.state import ChildKey, Object, Observed

HOPELESS_WAITING: Final = frozenset(
    {
        *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
        *("ImageInspectError", "CreateContainerConfigError", "CreateContainerError"),
        *("RunContainerError", "CrashLoopBackOff"),
    }
)
"""What a container waits for that does not come by waiting."""
_TEMPLATE: Final = "pod-template-hash"
"""The label by which Kubernetes tells the pods of one template from those of another."""
_REPLICA_SET: Final = re.compile(r'"[^"]+-([^"-]+)"')


class PodState(StrEnum):
    """What one pod is for scaling."""

    READY = "ready"
    STARTING = "starting"
    FAILED = "failed"
    """It ends again and again, or cannot begin."""
    UNSCHEDULABLE = "unschedulable"
    GONE = "gone"
    """It is ending or has ended: its ReplicaSet has made another one or will."""


def pod_state(pod: Object, lost_nodes: frozenset[str] = frozenset()) -> PodState:
    """What ``pod`` is now.

    Args:
        lost_nodes: nodes whose kubelet has fallen silent; nobody knows what runs there.
    """
    status: Mapping[str, Any] = pod.get("status") or {}
    if "deletionTimestamp" in pod["metadata"] or status.get("phase") in ("Failed", "Succeeded"):
        return PodState.GONE
    if (pod.get("spec") or {}).get("nodeName") in lost_nodes:
        return PodState.FAILED
    if condition(pod, "Ready").get("status") == "True":
        return PodState.READY
    if condition(pod, "PodScheduled").get("reason") == "Unschedulable":
        return PodState.UNSCHEDULABLE
    return PodState.FAILED if any(map(_is_failing, containers(pod))) else PodState.STARTING


def condition(item: Object, kind: str) -> Mapping[str, Any]:
    """The condition of a pod or a Deployment; empty when it has none of that type."""
    conditions: Iterable[Mapping[str, Any]] = (item.get("status") or {}).get("conditions") or ()
    return next((entry for entry in conditions if entry.get("type") == kind), {})


def containers(pod: Object) -> Iterator[Mapping[str, Any]]:
    """What is said of each of its containers."""
    status: Mapping[str, Any] = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _is_failing(container: Mapping[str, Any]) -> bool:
    state = container.get("state") or {}
    if (state.get("waiting") or {}).get("reason") in HOPELESS_WAITING:
        return True
    # Between two starts it is waiting or has just ended; while it runs again there is hope.
    return bool((state.get("terminated") or {}).get("exitCode", 0))


def pods_of(observed: Observed, revision: str) -> tuple[Object, ...]:
    """The pods of one revision, in the order of their names.

    Without those of a former service of this name: they go with its Deployment, or soon after. Who
    adopts that one has adopted them.
    """
    deployment = deployment_of(observed, revision)
    if deployment is None:
        return ()
    made = (item["metadata"].get("creationTimestamp") for item in (observed.resource, deployment))
    since = min((str(time) for time in made if time), default="")
    return tuple(
        pod
        for pod in observed.pods
        if (pod["metadata"].get("labels") or {}).get(REVISION_LABEL) == revision
        and pod["metadata"]["creationTimestamp"] >= since
    )


def deployment_of(observed: Observed, revision: str) -> Object | None:
    """The Deployment of one revision, if the service controls it."""
    key = ChildKey("Deployment", child_name(observed.key.name, revision))
    return observed.children[key] if observed.owns(key) else None


def is_behind(deployment: Object) -> bool:
    """Whether Kubernetes has not taken in yet what a Deployment says."""
    seen = int((deployment.get("status") or {}).get("observedGeneration", 0))
    return seen < int(deployment["metadata"].get("generation", 0))


def is_rolling(deployment: Object) -> bool:
    """Whether there are pods of what the Deployment said before; however many it should have."""
    status: Mapping[str, Any] = deployment.get("status") or {}
    return int(status.get("updatedReplicas", 0)) < int(status.get("replicas", 0))


def newest_pods(deployment: Object, pods: Iterable[Object]) -> tuple[Object, ...]:
    """Those made from what the Deployment says now; all where that cannot be told.

    A Deployment names its newest ReplicaSet nowhere but in this message.
    """
    found = _REPLICA_SET.search(str(condition(deployment, "Progressing").get("message", "")))
    if found is None:
        return tuple(pods)
    return tuple(
        pod for pod in pods if (pod["metadata"].get("labels") or {}).get(_TEMPLATE) == found[1]
    )


def refused_words(deployment: Object) -> str:
    """What a Deployment says of pods of it that cannot be made; empty when all are made.

    Once all are made of what it says now, it is about a ReplicaSet from before: the Deployment
    tells it until that one has gone.
    """
    failure = condition(deployment, "ReplicaFailure")
    made = int((deployment.get("status") or {}).get("updatedReplicas", 0))
    if failure.get("status") != "True" or made >= int(deployment["spec"].get("replicas", 1)):
        return ""
    return str(failure.get("message") or failure.get("reason") or "")


def refusal_of(observed: Observed, deployment: Object) -> str:
    """What keeps pods of a Deployment from being made; empty when nothing is known to.

    Of a second refusal with the same reason the Deployment keeps the first one's words, and so does
    its ReplicaSet: an Event's go before, unless they are of the pods before the last change.
    """
    told = refused_words(deployment)
    known = observed.refusals.get(deployment["metadata"]["name"])
    if not told or known is None:
        return told
    return known.message if known.template == template_digest(deployment) else ""


def template_digest(deployment: Object) -> str:
    """Another one for each change that makes new pods."""
    template = json.dumps(deployment["spec"].get("template"), sort_keys=True)
    return hashlib.sha256(template.encode()).hexdigest()[:16]


def worker_counts(observed: Observed, revision: str) -> WorkerCounts:
    """How many replicas of ``revision`` are what.

    Replicas that were ordered and have no pod yet are starting; where a quota keeps them from being
    made, they find no room.
    """
    states = [pod_state(pod, observed.lost_nodes) for pod in pods_of(observed, revision)]
    deployment = deployment_of(observed, revision)
    ordered = int(deployment["spec"].get("replicas", 1)) if deployment else 0
    alive = sum(state is not PodState.GONE for state in states)
    missing = max(0, ordered - alive)
    refused = deployment is not None and bool(refusal_of(observed, deployment))
    return WorkerCounts(
        ordered=ordered,
        ready=states.count(PodState.READY),
        starting=states.count(PodState.STARTING) + (0 if refused else missing),
        failed=states.count(PodState.FAILED),
        unschedulable=states.count(PodState.UNSCHEDULABLE) + (missing if refused else 0),
    )
