"""The plan: what is made, who owns replicas, modes, pauses, obstacles, ends."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from sluice_api import names
from sluice_api.inference_service import revision_of
from sluice_operator.state import ChildKey
from sluice_operator.steps import Apply, Delete, Rank, Scale
from tests.support.planned_cluster import PLATFORM, PlannedCluster
from tests.support.pod_states import waiting
from tests.support.resources import document, service

REVISION = revision_of(service())
NAME = f"minilm-{REVISION}"
DEPLOYMENT = ChildKey("Deployment", NAME)


def condition(status: dict[str, Any], kind: str = "Ready") -> tuple[str, str]:
    found = next(entry for entry in status["conditions"] if entry["type"] == kind)
    return found["status"], found["reason"]


def running(replicas: int = 1, **changes: Any) -> PlannedCluster:
    """A service at rest with so many ready workers."""
    cluster = PlannedCluster(**changes)
    cluster.want(**{f"r{REVISION}": replicas})
    cluster.settle()
    cluster.run_pods()
    cluster.settle()
    return cluster


def test_first_everything_is_made_in_order() -> None:
    plan = PlannedCluster().plan()
    kinds = [step.object["kind"] for step in plan.steps if isinstance(step, Apply)]
    assert kinds == [
        *("ServiceAccount", "NetworkPolicy", "PodDisruptionBudget"),
        *("Service", "Deployment", "HorizontalPodAutoscaler"),
    ]
    assert all(step.new for step in plan.steps if isinstance(step, Apply))
    assert plan.status["revision"] == REVISION
    assert condition(plan.status) == ("False", "Starting")


def test_replicas_are_handed_over_before_they_are_left_out() -> None:
    cluster = PlannedCluster()
    cluster.want(**{f"r{REVISION}": 3})
    cluster.carry_out(cluster.plan())
    assert cluster.children[DEPLOYMENT]["spec"]["replicas"] == 3
    [claim] = cluster.plan().steps
    assert claim == Scale("default", NAME, 3, "claimed")
    cluster.carry_out(cluster.plan())
    [leave] = cluster.plan().steps
    assert isinstance(leave, Apply)
    assert "replicas" not in leave.object["spec"]
    cluster.carry_out(cluster.plan())
    assert cluster.managers[NAME] == {names.SCALER_FIELD_MANAGER}
    assert cluster.plan().steps == ()


def test_drift_before_the_claim_does_not_reset_replicas() -> None:
    cluster = PlannedCluster()
    cluster.want(**{f"r{REVISION}": 3})
    cluster.carry_out(cluster.plan())
    cluster.children[DEPLOYMENT]["spec"]["template"]["spec"]["containers"][0]["image"] = "x:1"
    [claim, repair] = cluster.plan().steps
    assert isinstance(claim, Scale)
    assert claim.replicas == 3
    assert isinstance(repair, Apply)
    assert "replicas" not in repair.object["spec"]
    cluster.settle()
    assert cluster.children[DEPLOYMENT]["spec"]["replicas"] == 3


def test_a_service_can_be_made_asleep() -> None:
    cluster = PlannedCluster(scaling__initialReplicas=0)
    last = cluster.settle()
    assert cluster.children[DEPLOYMENT]["spec"]["replicas"] == 0
    assert condition(last.status) == ("True", "Asleep")
    assert condition(last.status, "WorkersAvailable") == ("False", "Asleep")


def test_waking_is_no_failure() -> None:
    cluster = running()
    cluster.want(**{f"r{REVISION}": 0})
    cluster.settle()
    cluster.run_pods()
    assert condition(cluster.settle().status) == ("True", "Asleep")
    cluster.want(**{f"r{REVISION}": 2})
    assert condition(cluster.settle().status) == ("True", "Starting")
    cluster.run_pods(ready=False)
    assert condition(cluster.settle().status) == ("True", "Starting")
    cluster.run_pods()
    cluster.make_ready(REVISION, 2)
    assert condition(cluster.settle().status) == ("True", "Ready")


def test_losing_all_workers_is_one() -> None:
    cluster = running()
    cluster.make_ready(REVISION, 0)
    status = cluster.settle().status
    assert condition(status) == ("False", "Starting")
    assert condition(status, "Reconciling") == ("True", "Starting")


@pytest.mark.parametrize("write_scale", [True, False])
@pytest.mark.parametrize(("current", "desired"), [(1, 3), (3, 1), (0, 2), (2, 0), (2, 2)])
def test_who_writes_the_number(current: int, desired: int, write_scale: bool) -> None:
    cluster = running(current)
    cluster.platform = replace(PLATFORM, write_scale=write_scale)
    cluster.want(**{f"r{REVISION}": desired})
    scales = [step for step in cluster.plan().steps if isinstance(step, Scale)]
    ours = current != desired and (write_scale or 0 in (current, desired))
    assert scales == ([Scale("default", NAME, desired, f"wanted, was {current}")] if ours else [])


def test_before_fewer_run_the_idlest_are_named() -> None:
    cluster = running(3)
    cluster.want(**{f"r{REVISION}": 1})
    steps = cluster.plan().steps
    assert [type(step) for step in steps] == [Rank, Rank, Scale]
    cluster.want(**{f"r{REVISION}": 0})
    assert [type(step) for step in cluster.plan().steps] == [Scale]


@pytest.mark.parametrize("mode", ["direct", "signal", "off"])
def test_without_an_autoscaler_the_operator_sets_the_number(mode: str) -> None:
    cluster = running()
    autoscaler = ChildKey("HorizontalPodAutoscaler", NAME)
    assert autoscaler in cluster.children
    cluster.edit(scaling__mode=mode)
    cluster.platform = replace(PLATFORM, write_scale=False)
    cluster.want(**{f"r{REVISION}": 2})
    first, *rest = cluster.plan().steps
    assert isinstance(first, Delete)
    assert first.kind == "HorizontalPodAutoscaler"
    assert any(isinstance(step, Scale) and step.replicas == 2 for step in rest)
    status = cluster.settle().status
    assert autoscaler not in cluster.children
    follows = "True" if mode == "direct" else "False"
    assert condition(status, "ScalingActive")[0] == follows


def test_without_the_metrics_api_it_is_as_direct_and_says_why() -> None:
    cluster = running()
    cluster.platform = replace(PLATFORM, metrics_api=False, metrics_api_note="KEDA serves it.")
    status = cluster.settle().status
    assert ChildKey("HorizontalPodAutoscaler", NAME) not in cluster.children
    assert condition(status, "ScalingActive") == ("True", "ScalingUnavailable")
    message = next(c["message"] for c in status["conditions"] if c["type"] == "ScalingActive")
    assert "follow: KEDA serves it. The operator" in message


@pytest.mark.parametrize("mode", ["hpa", "direct"])
def test_an_operator_that_hears_no_gateway_says_so(mode: str) -> None:
    cluster = running()
    cluster.edit(scaling__mode=mode)
    cluster.platform = replace(PLATFORM, deaf="HTTP status 401")
    status = cluster.settle().status
    assert condition(status, "ScalingActive") == ("False", "ScalingUnavailable")
    message = next(c["message"] for c in status["conditions"] if c["type"] == "ScalingActive")
    assert "HTTP status 401" in message
    cluster.want(**{f"r{REVISION}": 0})
    cluster.settle()
    cluster.run_pods()
    status = cluster.settle().status
    message = next(c["message"] for c in status["conditions"] if c["type"] == "Ready")
    assert "no request wakes it" in message


def test_paused_touches_nothing_and_says_so() -> None:
    cluster = running()
    cluster.edit(paused=True, model__uri="hf://a/b", scaling__minReplicas=3)
    cluster.want(**{f"r{REVISION}": 3})
    del cluster.children[ChildKey("Service", NAME)]
    plan = cluster.plan()
    assert plan.steps == ()
    assert condition(plan.status) == ("True", "Paused")
    assert plan.status["revision"] == REVISION
    assert plan.status["observedGeneration"] == 2
    cluster.make_ready(REVISION, 0)
    assert condition(cluster.plan().status) == ("False", "Paused")


def test_what_is_not_ours_is_left_alone() -> None:
    cluster = PlannedCluster()
    cluster.settle()
    account = cluster.children[ChildKey("ServiceAccount", "minilm-workers")]
    account["metadata"]["ownerReferences"] = []
    account["automountServiceAccountToken"] = True
    plan = cluster.plan()
    assert plan.steps == ()
    assert condition(plan.status, "Stalled") == ("True", "FieldConflict")


@pytest.mark.parametrize("kind", ["ServiceAccount", "Deployment"])
def test_what_has_lost_its_owner_is_adopted(kind: str) -> None:
    cluster = running(2)
    key = next(key for key in cluster.children if key.kind == kind)
    cluster.orphan(key)
    plan = cluster.plan()
    [adopt] = plan.steps
    assert isinstance(adopt, Apply)
    assert condition(plan.status) == ("True", "Ready")
    cluster.settle()
    assert cluster.children[key]["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    assert cluster.children[DEPLOYMENT]["spec"]["replicas"] == 2


def test_what_a_former_service_left_without_owners_is_taken_over_with_its_pods() -> None:
    """As `kubectl delete --cascade=orphan` leaves it."""
    cluster = running(2)
    for key in cluster.children:
        cluster.orphan(key)
    cluster.pass_time(5)
    cluster.resource["metadata"] |= {"uid": "u-2", "creationTimestamp": "2026-11-23T10:00:05Z"}
    del cluster.resource["status"]
    plan = cluster.plan()
    told = {step.repairs for step in plan.steps if isinstance(step, Apply)}
    assert told == {"nothing owned it any more"}
    status = cluster.settle().status
    assert condition(status) == ("True", "Ready")
    assert status["readyReplicas"] == 2


def test_what_nobody_needs_goes_even_without_its_owner() -> None:
    cluster = running()
    autoscaler = ChildKey("HorizontalPodAutoscaler", NAME)
    cluster.orphan(autoscaler)
    cluster.edit(scaling__mode="direct")
    cluster.settle()
    assert autoscaler not in cluster.children


def test_what_others_add_goes_and_is_told() -> None:
    cluster = running()
    cluster.add(DEPLOYMENT, True, "spec", "paused", manager="kubectl-rollout")
    [repair] = cluster.plan().steps
    assert isinstance(repair, Apply)
    assert repair.take_over
    assert repair.repairs == "spec.paused was set by kubectl-rollout"
    cluster.settle()
    assert "paused" not in cluster.children[DEPLOYMENT]["spec"]
    cluster.children[DEPLOYMENT]["spec"]["strategy"]["type"] = "Recreate"
    [repair] = cluster.plan().steps
    assert isinstance(repair, Apply)
    assert (repair.take_over, repair.repairs) == (False, "spec.strategy.type was changed")
    cluster.edit(limits__timeout="5s")
    [change] = cluster.plan().steps
    assert isinstance(change, Apply)
    assert change.repairs == "", "it is the owner's word"


@pytest.mark.parametrize("initial", [0, 1])
def test_what_a_former_service_left_is_waited_for(initial: int) -> None:
    cluster = running(scaling__initialReplicas=initial)
    cluster.resource["metadata"] |= {"uid": "u-2", "creationTimestamp": "2026-11-23T10:00:01Z"}
    del cluster.resource["status"]
    cluster.want(**{f"r{REVISION}": initial})
    plan = cluster.plan()
    assert plan.steps == ()
    assert condition(plan.status) == ("False", "Starting")
    assert condition(plan.status, "Reconciling") == ("True", "Starting")
    assert condition(plan.status, "Stalled") == ("False", "Starting")
    assert "belongs to a former minilm" in plan.status["conditions"][0]["message"]
    assert [event.type for event in plan.events] == ["Normal"]
    assert plan.status.get("readyReplicas", 0) == 0
    cluster.children.clear()
    cluster.managers.clear()  # the pods follow a little later
    cluster.pass_time(1)
    plan = cluster.settle()
    assert not plan.status["revisions"][0].get("proven")
    assert cluster.children[DEPLOYMENT]["spec"]["replicas"] == initial


def test_what_is_not_ours_is_told_before_what_a_former_service_left() -> None:
    cluster = running()
    cluster.resource["metadata"]["uid"] = "u-2"
    cluster.children[ChildKey("ServiceAccount", "minilm-workers")]["metadata"].pop(
        "ownerReferences"
    )
    status = cluster.plan().status
    assert condition(status, "Stalled") == ("True", "FieldConflict")


def test_a_spec_of_another_version_leaves_everything_running() -> None:
    cluster = running()
    before = cluster.resource["status"]
    cluster.resource["spec"]["model"]["uri"] = "teleport://here"
    cluster.resource["metadata"]["generation"] += 1
    plan = cluster.plan()
    assert plan.steps == ()
    assert condition(plan.status) == ("True", "InvalidSpec")
    assert condition(plan.status, "Stalled") == ("True", "InvalidSpec")
    assert plan.status["revisions"] == before["revisions"]
    cluster.carry_out(plan)
    assert cluster.plan().status == plan.status


def test_what_is_being_deleted_is_only_told() -> None:
    cluster = running()
    cluster.resource["metadata"]["deletionTimestamp"] = "2026-11-23T10:00:00Z"
    plan = cluster.plan()
    assert plan.steps == ()
    assert condition(plan.status) == ("False", "Deleting")
    cluster.carry_out(plan)
    again = cluster.plan()
    assert (again.status, again.events) == (plan.status, ())


def test_images_as_volumes_need_a_cluster_that_can() -> None:
    cluster = PlannedCluster(replace(PLATFORM, image_volumes=False), model__uri="oci://r/m:1")
    status = cluster.settle().status
    assert condition(status) == ("False", "VolumeFailed")
    assert not any(kind == "Deployment" for kind, _ in cluster.children)


def test_an_upgrade_of_sluice_rolls_no_model() -> None:
    cluster = running()
    newer = replace(PLATFORM, worker_image="registry.example/sluice/worker:2")
    cluster.platform = newer
    assert cluster.plan().steps == ()
    cluster.platform = replace(newer, upgrade_workers=True)
    [change] = cluster.plan().steps
    assert isinstance(change, Apply)
    assert change.object["metadata"]["name"] == NAME
    cluster.settle()
    cluster.platform = newer
    assert cluster.plan().steps == ()
    assert cluster.resource["status"]["revisions"][0]["image"] == newer.worker_image


OTHERWISE: list[dict[str, Any]] = [
    {"pull_policy": "Always"},
    {"pull_secrets": ("registry",)},
    {"worker_image": "registry.example/sluice/worker:2"},
]


@pytest.mark.parametrize("setting", OTHERWISE, ids=lambda setting: next(iter(setting)))
def test_what_the_platform_sets_comes_with_an_upgrade_or_a_change(setting: dict[str, Any]) -> None:
    cluster = running()
    template = deepcopy(cluster.children[DEPLOYMENT]["spec"]["template"])
    cluster.platform = replace(PLATFORM, **setting)
    assert cluster.plan().steps == ()
    cluster.children[DEPLOYMENT]["spec"]["template"]["spec"]["containers"][0]["image"] = "x:1"
    cluster.settle()
    assert cluster.children[DEPLOYMENT]["spec"]["template"] == template, "repaired to what it was"
    cluster.platform = replace(cluster.platform, upgrade_workers=True)
    cluster.settle()
    newer = deepcopy(cluster.children[DEPLOYMENT]["spec"]["template"])
    assert newer != template
    cluster.platform = replace(cluster.platform, upgrade_workers=False)
    assert cluster.plan().steps == ()
    cluster.edit(batching__maxSize=4)
    cluster.settle()
    assert cluster.children[DEPLOYMENT]["spec"]["template"] != newer
    assert cluster.children[DEPLOYMENT]["spec"]["template"] != template


def test_a_release_that_renders_pods_otherwise_rolls_no_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = running()
    monkeypatch.setattr("sluice_operator.children.pod.START_SECONDS", 300)
    assert cluster.plan().steps == ()
    cluster.edit(scaling__maxReplicas=9)
    cluster.settle()

    def startup() -> int:
        template = cluster.children[DEPLOYMENT]["spec"]["template"]["spec"]
        threshold = template["containers"][0]["startupProbe"]["failureThreshold"]
        assert isinstance(threshold, int)
        return threshold

    assert startup() == 120, "a change that is none of the pods'"
    cluster.platform = replace(PLATFORM, upgrade_workers=True)
    cluster.settle()
    assert startup() == 300


@pytest.mark.parametrize(
    "change",
    [
        {"model__credentials": "hub"},
        {"engine__image": "a/b:1"},
        {"hardware__resources": {"requests": {"cpu": "2"}}},
        {"batching__maxSize": 4},
        {"limits__timeout": "5s"},
        {"metadata__annotations": {names.RESTARTED: "2026-11-26"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_owner_changes_comes_at_once(change: dict[str, Any]) -> None:
    cluster = running()
    cluster.edit(**change)
    cluster.resource["metadata"] |= document(**change)["metadata"]
    parsed = service(**change)
    name = f"minilm-{revision_of(parsed)}"
    cluster.want(**{f"r{revision_of(parsed)}": 1})
    cluster.settle()
    cluster.run_pods()
    cluster.settle()
    made = cluster.children[ChildKey("Deployment", name)]["spec"]["template"]
    fresh = PlannedCluster(**change)
    fresh.settle()
    assert made == fresh.children[ChildKey("Deployment", name)]["spec"]["template"]


def test_a_revision_that_never_worked_takes_a_mended_image() -> None:
    cluster = PlannedCluster()
    cluster.settle()
    cluster.run_pods(ready=False)
    cluster.platform = replace(PLATFORM, worker_image="registry.example/sluice/worker:2")
    assert any(isinstance(step, Apply) for step in cluster.plan().steps)


def test_events_tell_changes_only() -> None:
    cluster = PlannedCluster()
    plan = cluster.plan()
    assert [event.reason for event in plan.events] == ["Starting"]
    cluster.carry_out(plan)
    assert cluster.plan().events == ()
    cluster.settle()
    cluster.run_pods()
    assert [(event.type, event.reason) for event in cluster.plan().events] == [("Normal", "Ready")]
    cluster.settle()
    cluster.want(**{f"r{REVISION}": 3})
    assert "Scaled" in [event.reason for event in cluster.plan().events]


def test_what_two_conditions_say_is_one_event() -> None:
    cluster = PlannedCluster()
    cluster.settle()
    cluster.run_pods(ready=False)
    for pod in cluster.pods.values():
        pod["status"]["containerStatuses"] = [{"name": "worker", "state": waiting("ErrImagePull")}]
    plan = cluster.plan()
    found = {c["type"] for c in plan.status["conditions"] if c["reason"] == "ImagePullFailed"}
    assert {"Ready", "Stalled"} <= found
    assert [event.reason for event in plan.events] == ["ImagePullFailed"]


def test_a_service_at_rest_asks_for_nothing() -> None:
    cluster = running(2)
    plan = cluster.plan()
    assert plan.steps == ()
    assert plan.events == ()
    assert plan.again_after is None
    assert plan.watch_pods == frozenset()
    cluster.pass_time(3600)
    assert cluster.plan() == plan
