"""Changes that roll inside a revision, as tools read them in the status."""

from typing import Any

from sluice_api import names, wire
from sluice_api.inference_service import revision_of
from sluice_operator.failures import Failure, shown
from sluice_operator.state import Learnt, Refusal
from sluice_operator.workers import template_digest
from tests.support.kstatus import conditions, kstatus
from tests.support.planned_cluster import PlannedCluster
from tests.support.pod_states import ended
from tests.support.resources import service

REVISION = revision_of(service())
MORE = {"resources": {"requests": {"memory": "3Gi"}}}
"""A change that is no new revision."""


def running(replicas: int = 1) -> PlannedCluster:
    """A service at rest."""
    cluster = PlannedCluster()
    cluster.want(**{f"r{REVISION}": replicas})
    cluster.settle()
    cluster.run_pods()
    assert kstatus(cluster.settle().status) == "Current"
    return cluster


def changing(cluster: PlannedCluster, state: dict[str, Any] | None = None) -> str:
    """Change a service inside its revision; the name of the new pod, which is in ``state``."""
    cluster.edit(hardware=MORE)
    cluster.settle()
    before = set(cluster.pods)
    cluster.run_pods(ready=False)
    [new] = set(cluster.pods) - before
    cluster.pods[new]["status"] |= state or {}
    return new


def no_room() -> dict[str, Any]:
    told = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "full"}
    return {"conditions": [told], "containerStatuses": []}


def killed() -> dict[str, Any]:
    end = {"name": "worker", "state": ended(137, reason="OOMKilled")}
    return {"containerStatuses": [end]}


def test_a_change_inside_a_revision_is_under_way_until_its_replicas_are_there() -> None:
    cluster = running()
    cluster.edit(hardware=MORE)
    first = cluster.plan()
    said = [event.reason for event in first.events]
    written = [first.status]
    cluster.carry_out(first)
    written.append(cluster.settle().status)  # Kubernetes has not looked at it yet
    cluster.run_pods(ready=False)
    written.append(cluster.settle().status)
    for status in written:
        assert status["observedGeneration"] == 2
        assert kstatus(status) == "InProgress"
        ready = conditions(status)["Ready"]
        assert (ready["status"], ready["reason"]) == ("True", "RollingOut")
    told = [status["conditions"] for status in written]
    assert told[0] == told[1] == told[2]
    assert said == ["RollingOut"]
    cluster.run_pods()
    last = cluster.plan()
    assert kstatus(last.status) == "Current"
    assert conditions(last.status)["Ready"]["reason"] == "Ready"


def test_a_change_of_what_never_ran_and_sleeps_replaces_nothing_and_does_not_say_so() -> None:
    cluster = PlannedCluster(scaling__mode="signal")
    cluster.settle()
    assert conditions(cluster.resource["status"])["Ready"]["reason"] == "Asleep"
    cluster.edit(scaling__mode="signal", hardware=MORE)
    plan = cluster.plan()
    refused = shown(plan.status, Failure("", "No."), cluster.resource["status"], cluster.now)
    for status in (plan.status, refused):
        found = conditions(status)
        assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("True", "Asleep")
        reconciling = found["Reconciling"]
        assert (reconciling["status"], reconciling["reason"]) == ("True", "Starting")
        assert "replaced" not in reconciling["message"]
    assert conditions(refused)["Reconciling"]["message"] == "No."
    cluster.settle()
    cluster.run_pods()
    assert kstatus(cluster.settle().status) == "Current"


def test_a_restart_is_under_way_as_well() -> None:
    cluster = running()
    cluster.resource["metadata"]["annotations"] = {names.RESTARTED: "2026-11-23T10:00:00Z"}
    cluster.settle()
    cluster.run_pods(ready=False)
    assert kstatus(cluster.settle().status) == "InProgress"
    cluster.run_pods()
    assert kstatus(cluster.settle().status) == "Current"


def test_another_number_of_replicas_is_no_change() -> None:
    cluster = running()
    cluster.want(**{f"r{REVISION}": 3})
    cluster.settle()
    assert kstatus(cluster.resource["status"]) == "Current"
    cluster.run_pods(ready=False)
    assert kstatus(cluster.settle().status) == "Current"


def test_a_change_inside_a_revision_that_fails_stalls() -> None:
    cluster = running()
    changing(cluster, killed())
    plan = cluster.plan()
    assert kstatus(plan.status) == "Failed"
    found = conditions(plan.status)
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("True", "RollingOut")
    assert "the replicas without it go on" in found["Ready"]["message"]
    for kind, status in (
        ("Stalled", "True"),
        ("Reconciling", "False"),
        ("WorkersAvailable", "True"),
    ):
        assert (found[kind]["status"], found[kind]["reason"]) == (status, "OutOfMemory")
    assert [(e.type, e.reason) for e in plan.events] == [("Warning", "OutOfMemory")]


def test_a_change_inside_a_revision_that_finds_no_room_waits_and_says_so() -> None:
    cluster = running()
    changing(cluster, no_room())
    plan = cluster.plan()
    assert kstatus(plan.status) == "InProgress"
    found = conditions(plan.status)
    for kind in ("Ready", "Reconciling"):
        assert (found[kind]["status"], found[kind]["reason"]) == ("True", "RollingOut")
        assert "finds no room" in found[kind]["message"]
    assert found["WorkersAvailable"]["reason"] == "Unschedulable"
    [event] = plan.events
    assert (event.type, event.reason) == ("Warning", "Unschedulable")
    assert "finds no room" in event.message
    cluster.carry_out(plan)
    assert cluster.plan().events == ()


def test_a_change_whose_pods_may_not_be_made_stalls() -> None:
    cluster = running()
    del cluster.pods[changing(cluster)]
    [deployment] = [child for key, child in cluster.children.items() if key.kind == "Deployment"]
    deployment["status"] |= {"replicas": 1, "updatedReplicas": 0}
    deployment["status"]["conditions"] += [
        {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: small"}
    ]
    status = cluster.plan().status
    assert kstatus(status) == "Failed"
    assert conditions(status)["Stalled"]["reason"] == "QuotaExceeded"
    assert conditions(status)["Ready"]["status"] == "True"


def test_what_was_refused_before_an_edit_is_not_said_of_it() -> None:
    """A Deployment that is refused twice for the same reason keeps the first one's words."""
    cluster = running()
    del cluster.pods[changing(cluster)]
    [deployment] = [child for key, child in cluster.children.items() if key.kind == "Deployment"]
    name = deployment["metadata"]["name"]
    first, second = (f'pods "{name}-{n}-" is forbidden: no PriorityClass {n}' for n in "12")
    refused = {"type": "ReplicaFailure", "status": "True", "message": first}
    deployment["status"] |= {"replicas": 1, "updatedReplicas": 0}
    deployment["status"]["conditions"] += [refused]
    plan = cluster.settle()
    assert first in conditions(plan.status)["Stalled"]["message"], "before anybody has asked"
    assert plan.refused == {name: (template_digest(deployment), first)}
    cluster.refusals[name] = Refusal(template_digest(deployment), f"{name}-1", first)
    assert first in conditions(cluster.settle().status)["Stalled"]["message"]

    cluster.edit(hardware={"resources": {"requests": {"memory": "4Gi"}}})
    written = [cluster.plan().status, cluster.settle().status]
    [deployment] = [child for key, child in cluster.children.items() if key.kind == "Deployment"]
    deployment["status"]["observedGeneration"] = deployment["metadata"]["generation"]
    plan = cluster.settle()
    for status in (*written, plan.status):
        assert kstatus(status) == "InProgress"
        assert not any(first in one["message"] for one in conditions(status).values())
    assert plan.refused == {name: (template_digest(deployment), first)}
    cluster.refusals[name] = Refusal(template_digest(deployment), f"{name}-2", second)
    status = cluster.settle().status
    assert kstatus(status) == "Failed"
    assert second in conditions(status)["Stalled"]["message"]
    assert cluster.settle().refused
    cluster.run_pods()
    plan = cluster.settle()
    assert kstatus(plan.status) == "Current"
    assert plan.refused == {}


def test_what_failed_before_an_edit_is_not_said_of_it() -> None:
    cluster = running()
    name = changing(cluster, killed())
    pod = cluster.pods[name]
    assert kstatus(cluster.settle().status) == "Failed"
    cluster.edit(hardware={"resources": {"requests": {"memory": "4Gi"}}})
    assert kstatus(cluster.plan().status) == "InProgress"
    assert kstatus(cluster.settle().status) == "InProgress", "Kubernetes has not looked yet"
    cluster.run_pods(ready=False)
    cluster.pods[name] = pod  # it goes a little later
    assert kstatus(cluster.settle().status) == "InProgress"
    cluster.run_pods()
    assert kstatus(cluster.settle().status) == "Current"


def test_one_that_starts_and_fails_may_be_mended_inside_its_revision() -> None:
    cluster = PlannedCluster()
    cluster.settle()
    cluster.run_pods(ready=False)
    [(name, pod)] = cluster.pods.items()
    pod["status"] |= killed()
    assert kstatus(cluster.settle().status) == "Failed"
    cluster.edit(hardware=MORE)
    written = [cluster.plan().status]
    written.append(cluster.settle().status)  # Kubernetes has not looked at it yet
    cluster.run_pods(ready=False)
    cluster.pods[name] = pod  # it goes a little later
    written.append(cluster.settle().status)
    [deployment] = [child for key, child in cluster.children.items() if key.kind == "Deployment"]
    deployment["status"] |= {"replicas": 1, "updatedReplicas": 1}  # seen before the pod's end is
    written.append(cluster.settle().status)
    for status in written:
        assert kstatus(status) == "InProgress"
        found = conditions(status)
        assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("False", "Starting")
        # Nothing has run that could be replaced, and what failed was of the edit before.
        assert {one["reason"] for one in found.values()} <= {"Starting", "Ready"}
        assert not any("137" in one["message"] for one in found.values())
    cluster.run_pods()
    assert kstatus(cluster.settle().status) == "Current"


def test_replicas_that_load_other_content_replace_one_another() -> None:
    """A source that is not pinned has changed: the new one gets no requests until it is alone."""
    cluster = running(2)
    cluster.learnt = Learnt(answer_digests={REVISION: "sha256:a"})
    cluster.settle()
    new = changing(cluster)
    workers = {}
    for number, (name, pod) in enumerate(cluster.pods.items()):
        address = f"10.0.0.{number}"
        pod["status"] = {"podIP": address, "conditions": [{"type": "Ready", "status": "True"}]}
        digest = "sha256:b" if name == new else "sha256:a"
        workers[address] = wire.WorkerSeen(address=address, answer_digest=digest)
    cluster.learnt = Learnt(answer_digests={REVISION: "sha256:a"}, workers=workers)
    status = cluster.settle().status
    assert kstatus(status) == "InProgress"
    assert conditions(status)["Stalled"]["status"] == "False"


def test_a_canary_that_cannot_be_changed_is_not_healthy() -> None:
    cluster = PlannedCluster(rollout__canary={"model": {"uri": "hf://a/b"}, "weight": 10})
    cluster.settle()
    cluster.run_pods()
    cluster.settle()
    cluster.edit(rollout__canary={"model": {"uri": "hf://a/b"}, "weight": 10}, hardware=MORE)
    cluster.settle()
    before = set(cluster.pods)
    cluster.run_pods(ready=False)
    for name in set(cluster.pods) - before:
        cluster.pods[name]["status"] |= killed()
    found = conditions(cluster.settle().status)["CanaryHealthy"]
    assert (found["status"], found["reason"]) == ("False", "OutOfMemory")
