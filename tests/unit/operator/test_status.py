"""The status as tools read it: kstatus, conditions that keep their time, progress in steps."""

from dataclasses import replace
from datetime import timedelta

import pytest

from sluice_api import wire
from sluice_api.inference_service import revision_of
from sluice_api.service_status import CONDITIONS, REASONS, Status
from sluice_api.tasks import Task
from sluice_operator.state import Learnt, Wanted
from sluice_operator.status import AWARE_SECONDS, make_events
from sluice_operator.steps import Plan
from tests.support.kstatus import conditions, kstatus
from tests.support.planned_cluster import PLATFORM, START, PlannedCluster
from tests.support.pod_states import ended
from tests.support.resources import service

REVISION = revision_of(service())
NEW = revision_of(service(model__uri="hf://a/b"))


def test_it_is_a_status_of_the_contract() -> None:
    status = PlannedCluster().plan().status
    assert Status.model_validate(status).to_dict() == status
    assert {entry["type"] for entry in status["conditions"]} <= set(CONDITIONS)
    assert {entry["reason"] for entry in status["conditions"]} <= set(REASONS)
    assert status["url"] == "http://sluice-gateway.sluice-system"
    assert "sluice.dev/service=minilm" in status["selector"]


def test_tools_agree_on_a_start() -> None:
    cluster = PlannedCluster()
    assert kstatus(cluster.settle().status) == "InProgress"
    cluster.run_pods()
    assert kstatus(cluster.settle().status) == "Current"


def test_a_new_service_is_ready_once_every_gateway_knows_it() -> None:
    cluster = PlannedCluster()
    cluster.resource["metadata"]["creationTimestamp"] = "2026-11-23T10:00:00Z"
    cluster.learnt = Learnt(unaware=1)
    cluster.settle()
    cluster.run_pods()
    plan = cluster.settle()
    ready = conditions(plan.status)["Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "Starting")
    assert "do not know the service yet: 1." in ready["message"]
    assert conditions(plan.status)["WorkersAvailable"]["status"] == "True"
    assert kstatus(plan.status) == "InProgress"
    assert plan.again_after is not None and plan.again_after < 1
    cluster.learnt = Learnt()
    assert conditions(cluster.settle().status)["Ready"]["status"] == "True"
    # A gateway that is new must not take it back.
    cluster.learnt = Learnt(unaware=1)
    plan = cluster.settle()
    assert conditions(plan.status)["Ready"]["status"] == "True"
    assert plan.again_after is None


def test_a_sleeping_service_is_not_called_ready_either_before_gateways_know_it() -> None:
    cluster = PlannedCluster(scaling__initialReplicas=0)
    cluster.resource["metadata"]["creationTimestamp"] = "2026-11-23T10:00:00Z"
    cluster.want(**{f"r{REVISION}": 0})
    cluster.learnt = Learnt(unaware=2)
    assert conditions(cluster.settle().status)["Ready"]["reason"] == "Starting"
    cluster.learnt = Learnt()
    assert conditions(cluster.settle().status)["Ready"]["reason"] == "Asleep"


def test_a_gateway_that_cannot_learn_of_it_is_not_waited_for_if_another_has() -> None:
    cluster = PlannedCluster()
    cluster.learnt = Learnt(aware=1, unaware=1)
    cluster.settle()
    cluster.run_pods()
    assert conditions(cluster.settle().status)["Ready"]["status"] == "False"
    cluster.pass_time(AWARE_SECONDS)
    assert conditions(cluster.settle().status)["Ready"]["status"] == "True"


def ready(plan: Plan) -> tuple[str, str]:
    found = conditions(plan.status)["Ready"]
    return found["status"], found["reason"]


def told(cluster: PlannedCluster) -> list[tuple[str, str]]:
    """Kind and reason of the Events of the next plan, which is carried out."""
    plan = cluster.plan()
    cluster.carry_out(plan)
    return [(event.type, event.reason) for event in plan.events]


@pytest.mark.parametrize("asleep", [False, True])
def test_one_that_no_gateway_knows_is_not_called_ready_however_old_it_is(asleep: bool) -> None:
    cluster = PlannedCluster(scaling__initialReplicas=0) if asleep else PlannedCluster()
    cluster.want(**{f"r{REVISION}": 0 if asleep else 1})
    cluster.learnt = Learnt(unaware=2)
    cluster.settle()
    cluster.run_pods()
    cluster.pass_time(AWARE_SECONDS)
    plan = cluster.settle()
    assert ready(plan) == ("False", "Starting")
    assert plan.again_after is None, "the fleet tells when one knows it"
    cluster.learnt = Learnt(unaware=2, unknown=True)
    assert told(cluster) == [("Warning", "UnknownToGateways")]
    plan = cluster.settle()
    assert ready(plan) == ("False", "UnknownToGateways")
    assert REVISION in conditions(plan.status)["Ready"]["message"]
    assert kstatus(plan.status) == "InProgress"
    assert plan.again_after is None
    cluster.learnt = Learnt(aware=1, unaware=1)
    reason = "Asleep" if asleep else "Ready"
    assert told(cluster) == [("Normal", reason)]
    assert ready(cluster.settle()) == ("True", reason)


def test_what_has_been_ready_stays_so_and_tells_that_no_gateway_knows_it() -> None:
    cluster = PlannedCluster()
    cluster.settle()
    cluster.run_pods()
    cluster.settle()
    cluster.pass_time(3600)
    # They have been restarted, and speak of it in a moment.
    cluster.learnt = Learnt(unaware=2)
    assert ready(cluster.settle()) == ("True", "Ready")
    cluster.learnt = Learnt(unaware=2, unknown=True)
    assert told(cluster) == [("Warning", "UnknownToGateways")]
    plan = cluster.settle()
    assert ready(plan) == ("True", "UnknownToGateways")
    assert kstatus(plan.status) == "Current"
    assert conditions(plan.status)["Stalled"]["status"] == "False"
    cluster.learnt = Learnt(aware=2)
    assert told(cluster) == [("Normal", "Ready")]


def test_who_hears_no_gateway_cannot_tell_what_they_know() -> None:
    cluster = PlannedCluster()
    cluster.learnt = Learnt(unaware=2)
    cluster.settle()
    cluster.run_pods()
    assert ready(cluster.settle()) == ("False", "Starting")
    cluster.platform = replace(PLATFORM, deaf="HTTP status 401")
    assert ready(cluster.settle()) == ("True", "Ready")


def test_tools_agree_on_a_failure() -> None:
    cluster = PlannedCluster()
    cluster.settle()
    cluster.run_pods(ready=False)
    [pod] = cluster.pods.values()
    pod["status"]["containerStatuses"][0]["state"] = ended(66, "no classifier")
    status = cluster.settle().status
    assert kstatus(status) == "Failed"
    assert conditions(status)["Ready"]["reason"] == "ModelRejected"
    assert conditions(status)["WorkersAvailable"]["status"] == "False"


def test_a_service_sleeps_well_beside_a_pod_that_was_evicted_once() -> None:
    cluster = PlannedCluster()
    cluster.settle()
    cluster.run_pods()
    cluster.settle()
    [pod] = cluster.pods.values()
    kept = {"phase": "Failed", "reason": "Evicted", "message": "full"}
    evicted = pod | {"metadata": pod["metadata"] | {"name": "kept"}, "status": kept}
    cluster.wanted[REVISION] = Wanted(0, "idle", "because")
    cluster.settle()
    cluster.run_pods()
    cluster.pods["kept"] = evicted
    status = cluster.settle().status
    assert conditions(status)["Ready"]["reason"] == "Asleep"
    assert conditions(status)["Stalled"]["message"] == "Nothing keeps the spec from coming true."
    assert kstatus(status) == "Current"


def test_what_may_pass_is_no_failure() -> None:
    cluster = PlannedCluster()
    cluster.settle()
    cluster.run_pods(ready=False)
    [pod] = cluster.pods.values()
    pod["status"] = {
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "a node is on its way",
            }
        ]
    }
    status = cluster.settle().status
    assert kstatus(status) == "InProgress"
    assert conditions(status)["Ready"]["reason"] == "Unschedulable"
    stalled = conditions(status)["Stalled"]
    assert (stalled["status"], stalled["reason"]) == ("False", "Unschedulable")
    assert stalled["message"].startswith("Unschedulable may pass by itself")


def test_a_broken_new_revision_stalls_and_the_old_one_is_ready() -> None:
    cluster = PlannedCluster()
    cluster.settle()
    cluster.run_pods()
    cluster.settle()
    cluster.edit(model__uri="hf://a/b")
    cluster.settle()
    assert kstatus(cluster.resource["status"]) == "InProgress"
    cluster.run_pods(ready=False)
    for pod in cluster.pods.values():
        if NEW in pod["owner"]:
            pod["status"]["containerStatuses"][0]["state"] = ended(64, "no such model")
    status = cluster.settle().status
    assert kstatus(status) == "Failed"
    ready = conditions(status)["Ready"]
    assert (ready["status"], ready["reason"]) == ("True", "RollingOut")
    assert "no such model" in ready["message"]
    assert status["revision"] == REVISION


def test_a_download_that_is_tried_again_is_no_failure_yet() -> None:
    cluster = PlannedCluster()
    cluster.settle()
    cluster.run_pods(ready=False)
    [pod] = cluster.pods.values()
    container = pod["status"]["containerStatuses"][0]
    container |= {"state": ended(65, "no route"), "restartCount": 0}
    status = cluster.settle().status
    assert kstatus(status) == "InProgress"
    assert conditions(status)["Ready"]["reason"] == "ModelDownloadFailed"
    container["restartCount"] = 5
    assert kstatus(cluster.settle().status) == "Failed"


def test_a_replica_too_many_to_place_is_told_without_alarm() -> None:
    cluster = PlannedCluster()
    cluster.want(**{f"r{REVISION}": 2})
    cluster.settle()
    cluster.run_pods()
    unplaced = sorted(cluster.pods)[1]
    cluster.pods[unplaced]["status"] = {
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "Insufficient cpu",
            }
        ]
    }
    status = cluster.settle().status
    assert kstatus(status) == "Current"
    available = conditions(status)["WorkersAvailable"]
    assert (available["status"], available["reason"]) == ("True", "Unschedulable")
    assert status["scaling"]["summary"] == "1/2"


def test_a_replica_that_loaded_something_else_is_told() -> None:
    cluster = PlannedCluster(scaling__minReplicas=2)
    cluster.want(**{f"r{REVISION}": 2})
    cluster.settle()
    cluster.run_pods()
    for number, pod in enumerate(cluster.pods.values()):
        pod["status"]["podIP"] = f"10.0.0.{number}"
    told = {f"10.0.0.{n}": f"sha256:{n}" for n in range(2)}
    workers = {
        address: wire.WorkerSeen(address=address, answer_digest=digest)
        for address, digest in told.items()
    }
    cluster.learnt = Learnt(answer_digests={REVISION: "sha256:0"}, workers=workers)
    found = conditions(cluster.settle().status)
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("True", "Ready")
    available = found["WorkersAvailable"]
    assert (available["status"], available["reason"]) == ("True", "DigestMismatch")
    assert "gets no requests" in available["message"]


def test_a_condition_that_stays_keeps_its_time() -> None:
    cluster = PlannedCluster()
    cluster.settle()
    first = conditions(cluster.resource["status"])
    cluster.pass_time(30)
    cluster.run_pods()
    later = conditions(cluster.settle().status)
    assert later["Stalled"]["lastTransitionTime"] == first["Stalled"]["lastTransitionTime"]
    assert later["Ready"]["lastTransitionTime"] == "2026-11-23T10:00:30Z"
    assert START.second == 0


def downloading(cluster: PlannedCluster, progress: float) -> str:
    worker = wire.WorkerSeen(address="10.0.0.1", phase=wire.Phase.DOWNLOADING, progress=progress)
    cluster.learnt = Learnt(workers={"10.0.0.1": worker})
    message = conditions(cluster.settle().status)["Ready"]["message"]
    assert isinstance(message, str)
    return message


def test_progress_is_written_every_ten_seconds_at_most() -> None:
    cluster = PlannedCluster()
    cluster.settle()
    cluster.run_pods(ready=False)
    written = [downloading(cluster, 0.0)]
    for step in range(1, 100):
        cluster.pass_time(0.5)
        message = downloading(cluster, step / 100)
        if message != written[-1]:
            written.append(message)
    # 50 seconds: so many windows of ten, and no write for what has not moved.
    assert 4 <= len(written) <= 6
    assert written[0].endswith(": 0 % after 0 s.")
    assert written[-1].endswith("80 % after 40 s.")
    before = cluster.resource["status"]
    cluster.pass_time(timedelta(minutes=5).total_seconds())
    downloading(cluster, 0.99 - 0.1)
    assert cluster.resource["status"] == before


def test_a_broken_canary_is_seen_and_names_its_own_field() -> None:
    cluster = PlannedCluster(rollout__canary={"model": {"uri": "hf://a/b"}, "weight": 10})
    cluster.settle()
    cluster.run_pods()
    cluster.settle()
    cluster.run_pods(ready=False)
    for pod in cluster.pods.values():
        if NEW in pod["owner"]:
            pod["status"] = {"containerStatuses": [{"name": "worker", "state": ended(64, "gone")}]}
    found = conditions(cluster.settle().status)
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("True", "Ready")
    assert f"The canary {NEW} does not come up" in found["Ready"]["message"]
    assert found["CanaryHealthy"]["status"] == "False"
    assert found["CanaryHealthy"]["message"].endswith("Correct spec.rollout.canary.model.")


def test_every_condition_has_a_message() -> None:
    cluster = PlannedCluster()
    written = [cluster.settle().status]
    cluster.run_pods()
    written.append(cluster.settle().status)
    cluster.edit(paused=True)
    written.append(cluster.settle().status)
    for status in written:
        assert [entry["type"] for entry in status["conditions"] if not entry["message"]] == []


def test_a_change_between_two_that_never_answered_is_no_promotion() -> None:
    before = {"revision": "a"}
    for proven, told in ((False, []), (True, ["Promoted"])):
        after = {
            "revision": "b",
            "revisions": [{"name": "b", "proven": proven}],
            "conditions": [],
            "scaling": {},
        }
        assert [event.reason for event in make_events(before, after)] == told


PRECOMPUTED = {
    "sharing": "service",
    "precompute": [
        {"task": "embeddings", "body": {"input": "a"}},
        {"task": "fill-mask", "body": {"input": "[MASK]"}},
    ],
}


def warnings(plan: Plan, reason: str = "PrecomputeRefused") -> list[str]:
    return [event.message for event in plan.events if event.reason == reason]


def test_what_cannot_be_precomputed_is_told_once_for_each_spec() -> None:
    cluster = PlannedCluster(model__task="fill-mask", cache=PRECOMPUTED)
    first = cluster.plan()
    [told] = warnings(first)
    assert told.startswith("spec.cache.precompute[0].task: got embeddings beside spec.model.task")
    assert "remove the entry" in told
    cluster.carry_out(first)
    assert warnings(cluster.plan()) == []
    assert warnings(cluster.settle()) == []
    cluster.edit(model__task="embeddings", cache=PRECOMPUTED)
    [told] = warnings(cluster.plan())
    assert told.startswith("spec.cache.precompute[1].task: got fill-mask beside")
    cluster.edit(model__task="embeddings", cache={**PRECOMPUTED, "precompute": []})
    assert warnings(cluster.plan()) == []


def test_what_only_the_model_can_tell_is_told_when_a_replica_has() -> None:
    cluster = PlannedCluster(cache=PRECOMPUTED)
    assert warnings(cluster.plan()) == []
    cluster.settle()
    revision = cluster.resource["status"]["revision"]
    cluster.learnt = Learnt(tasks={revision: (Task.EMBEDDINGS, Task.ZERO_SHOT)})
    plan = cluster.plan()
    [told] = warnings(plan)
    assert told.startswith(
        "spec.cache.precompute[1].task: got fill-mask beside the model, which does embeddings,"
    )
    cluster.carry_out(plan)
    assert warnings(cluster.plan()) == []


def test_a_finder_of_entities_that_the_model_has_no_use_for_is_told() -> None:
    cluster = PlannedCluster(entitiesFrom="ner")
    cluster.settle()
    revision = cluster.resource["status"]["revision"]
    cluster.learnt = Learnt(tasks={revision: (Task.TOKEN_CLASSIFICATION,)})
    plan = cluster.plan()
    [told] = warnings(plan, "EntitiesFromUnused")
    assert told.startswith("spec.entitiesFrom: got ner beside the model, which does token-")
    cluster.carry_out(plan)
    assert warnings(cluster.plan(), "EntitiesFromUnused") == []
    cluster.learnt = Learnt(tasks={revision: (Task.RELATION_EXTRACTION, Task.CLASSIFICATION)})
    assert warnings(cluster.plan(), "EntitiesFromUnused") == []


def test_a_request_that_its_route_refuses_is_told_with_the_field_in_it() -> None:
    entry = {"task": "embeddings", "body": {"inputs": "a"}}
    cluster = PlannedCluster(cache={"sharing": "service", "precompute": [entry]})
    [told] = warnings(cluster.plan())
    assert told.startswith("spec.cache.precompute[0].body.inputs: this field is not known")
