"""What pods are for scaling."""

from dataclasses import replace
from typing import Any

import pytest

from sluice_operator.scaling.recommend import WorkerCounts
from sluice_operator.state import Observed
from sluice_operator.workers import PodState, pod_state, worker_counts
from tests.support.pod_states import REVISION, ended, pod, seen, waiting


@pytest.mark.parametrize(
    ("made", "state"),
    [
        (pod(ready=True), PodState.READY),
        (pod(), PodState.STARTING),
        (pod(phase="Pending", state=waiting("ContainerCreating")), PodState.STARTING),
        (pod(scheduled="0/1 nodes are available"), PodState.UNSCHEDULABLE),
        (pod(state=waiting("CrashLoopBackOff"), last=ended(1)), PodState.FAILED),
        (pod(state=ended(1)), PodState.FAILED),
        (pod(state=waiting("ImagePullBackOff")), PodState.FAILED),
        (pod(state=waiting("CreateContainerConfigError")), PodState.FAILED),
        (pod(last=ended(1), restarts=1), PodState.STARTING),
        (pod(ready=True, gone=True), PodState.GONE),
        (pod(phase="Failed", reason="Evicted"), PodState.GONE),
        (pod(phase="Succeeded"), PodState.GONE),
        (pod(ready=True, node="lost"), PodState.FAILED),
    ],
)
def test_each_pod_is_one_thing(made: dict[str, Any], state: PodState) -> None:
    assert pod_state(made, frozenset({"lost"})) is state


def test_counts_add_up() -> None:
    observed = seen(
        *(pod(1, ready=True), pod(2), pod(3, scheduled="no"), pod(4, state=ended(1))),
        *(pod(5, ready=True, gone=True), pod(6, ready=True, revision="other")),
        replicas=6,
    )
    assert worker_counts(observed, REVISION) == WorkerCounts(
        ordered=6, ready=1, starting=3, failed=1, unschedulable=1
    )


def test_replicas_that_a_quota_refuses_find_no_room() -> None:
    observed = seen(pod(1, ready=True), replicas=3, refused="exceeded quota: small")
    assert worker_counts(observed, REVISION) == WorkerCounts(ordered=3, ready=1, unschedulable=2)


def test_without_a_deployment_nothing_is_ordered() -> None:
    assert worker_counts(seen(), "another") == WorkerCounts(ordered=0)


def remade(observed: Observed, **metadata: str) -> Observed:
    resource = {**observed.resource, "metadata": {**observed.resource["metadata"], **metadata}}
    return replace(observed, resource=resource)


def test_what_a_former_service_of_the_name_left_is_not_counted() -> None:
    observed = seen(pod(1, ready=True), pod(2, ready=True))
    observed = remade(observed, uid="u-2")
    assert worker_counts(observed, REVISION) == WorkerCounts(ordered=0)
    observed = seen(pod(1, ready=True), replicas=1)
    observed = remade(observed, creationTimestamp="2026-11-23T10:00:01Z")
    assert worker_counts(observed, REVISION) == WorkerCounts(ordered=1, starting=1)
