"""One reason of the closed list and one message for whatever is wrong with a pod."""

from datetime import timedelta
from typing import Any

import pytest

from sluice_api import names, wire
from sluice_api.service_status import REASONS
from sluice_operator.diagnosis import _ORDER, Asked, diagnose, stuck_pods
from sluice_operator.state import Learnt, Observed
from sluice_operator.wording import MESSAGE_LENGTH, last_words
from sluice_operator.workers import worker_counts
from tests.support.pod_states import NOW, REVISION, ended, pod, seen, waiting

NAME = f"minilm-{REVISION}-1"


def found(observed: Observed, learnt: Learnt | None = None, digest: str = "") -> tuple[str, str]:
    finding = diagnose(observed, REVISION, digest, learnt or Learnt(), NOW)
    return (finding.reason, finding.message) if finding else ("", "")


def with_event(reason: str, message: str, made: dict[str, Any] | None = None) -> Observed:
    return seen(made or pod(), events={NAME: ((reason, message),)})


def test_a_download_is_no_failure_before_it_has_failed_some_times() -> None:
    passing = []
    for restarts in range(5):
        end = pod(state=ended(names.EXIT_MODEL_DOWNLOAD_FAILED, "no route"), restarts=restarts)
        finding = diagnose(seen(end), REVISION, "", Learnt(), NOW)
        assert finding is not None
        assert finding.reason == "ModelDownloadFailed"
        assert finding.message.endswith("again." if finding.may_pass else "ever more rarely.")
        passing.append(finding.may_pass)
    assert passing == [True, True, True, False, False]


CREATING = pod(phase="Pending", state=waiting("ContainerCreating"))
CASES: list[tuple[Observed, str, str]] = [
    (seen(pod(scheduled="0/3 nodes: 3 Insufficient cpu.")), "Unschedulable", "Insufficient cpu"),
    (
        seen(pod(scheduled="1 Insufficient cpu.")),
        "Unschedulable",
        "spec.hardware.resources.requests",
    ),
    (seen(pod(scheduled="1 Insufficient nvidia.com/gpu.")), "Unschedulable", "spec.hardware.gpu."),
    (
        seen(pod(scheduled="1 node(s) didn't match Pod's node affinity/selector.")),
        *("Unschedulable", "(nodeSelector, affinity, gpu.product)"),
    ),
    (
        seen(pod(scheduled="1 node(s) had untolerated taint(s), 2 Insufficient memory.")),
        *("Unschedulable", "spec.hardware.resources.requests and spec.hardware.tolerations."),
    ),
    (
        seen(pod(scheduled="1 node(s) didn't match pod topology spread constraints.")),
        *("Unschedulable", "spec.hardware.topologySpreadConstraints."),
    ),
    (
        seen(pod(scheduled="1 node(s) didn't satisfy existing pods anti-affinity rules.")),
        *("Unschedulable", "spec.hardware.affinity."),
    ),
    (seen(pod(scheduled="1 node(s) were full.")), "Unschedulable", "or correct spec.hardware."),
    (
        seen(pod(scheduled='persistentvolumeclaim "m" not found')),
        *("VolumeFailed", "Check the claim"),
    ),
    (
        seen(pod(scheduled="pod has unbound immediate PersistentVolumeClaims")),
        *("VolumeFailed", "unbound"),
    ),
    (seen(pod(state=waiting("ErrImagePull", "no such image"))), "ImagePullFailed", "no such image"),
    (seen(pod(state=waiting("InvalidImageName", "bad"))), "ImagePullFailed", "pull secrets"),
    (
        seen(pod(state=waiting("CreateContainerConfigError", 'secret "a" not found'))),
        *("ConfigMissing", 'secret "a" not found'),
    ),
    (
        seen(pod(state=waiting("RunContainerError", 'exec: "/x": no such file'))),
        *("CrashLoop", "no such file"),
    ),
    (
        seen(pod(state=waiting("CrashLoopBackOff"), last=ended(1, "a\nlast words\n"), restarts=3)),
        *("CrashLoop", "container worker, ended with exit code 1, 3 restarts: last words"),
    ),
    (seen(pod(state=ended(1))), "CrashLoop", "exit code 1, 0 restarts. See kubectl"),
    (seen(pod(state=ended(137, reason="OOMKilled"))), "OutOfMemory", "limits.memory"),
    (seen(pod(last=ended(137, reason="OOMKilled"), restarts=1)), "OutOfMemory", "1 restart: it"),
    *(
        (seen(pod(state=ended(code, "why"))), reason, "why")
        for code, reason in (
            (names.EXIT_MODEL_NOT_FOUND, "ModelNotFound"),
            (names.EXIT_MODEL_DOWNLOAD_FAILED, "ModelDownloadFailed"),
            (names.EXIT_MODEL_REJECTED, "ModelRejected"),
            (names.EXIT_BAD_CONFIGURATION, "InvalidSpec"),
        )
    ),
    # While it tries again, what it said stands.
    (seen(pod(last=ended(64, "why"), restarts=2)), "ModelNotFound", "2 restarts: why"),
    (seen(pod(last=ended(1, "why"), restarts=1)), "Starting", "is starting"),
    (
        seen(pod(phase="Failed", reason="Evicted", message="low on disk.")),
        *("Evicted", "low on disk"),
    ),
    (seen(pod(ready=True, node="n2"), lost=frozenset({"n2"})), "NodeLost", "describe node n2"),
    (with_event("FailedMount", "no such folder", CREATING), "VolumeFailed", "no such folder"),
    (
        with_event("FailedMount", 'MountVolume failed: secret "a" not found', CREATING),
        *("ConfigMissing", 'secret "a" not found'),
    ),
    (
        with_event("FailedMount", "references non-existent secret key: token", CREATING),
        *("ConfigMissing", "key: token. Create what is missing, or correct spec.model.credentials"),
    ),
    (with_event("FailedAttachVolume", "in use", CREATING), "VolumeFailed", "in use"),
    (
        with_event("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 500"),
        *("ProbeFailed", "statuscode: 500"),
    ),
    (
        with_event("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503"),
        *("Starting", "is starting"),
    ),
    (with_event("Unhealthy", "Liveness probe failed: timeout"), "ProbeFailed", "Liveness"),
    (
        with_event("Unhealthy", "Startup probe failed: connection refused"),
        *("ProbeFailed", "Startup probe failed"),
    ),
    (
        with_event(
            "Unhealthy",
            "Startup probe failed: connection refused",
            pod(state=waiting("CrashLoopBackOff"), last=ended(137), restarts=2),
        ),
        *("ProbeFailed", "Startup"),
    ),
    (
        seen(pod(state=waiting("CrashLoopBackOff"), last=ended(0), restarts=2)),
        *("CrashLoop", "exit code 0, 2 restarts"),
    ),
    (
        with_event(
            "Unhealthy",
            "Startup probe failed: connection refused",
            pod(state=waiting("CrashLoopBackOff"), last=ended(0), restarts=2),
        ),
        *("CrashLoop", "exit code 0"),
    ),
    (seen(CREATING), "Starting", "is being made"),
    (seen(refused='pods "a" is forbidden: exceeded quota: q'), "QuotaExceeded", "ResourceQuota"),
    (
        seen(refused='pods "a" is forbidden: no PriorityClass with name x was found'),
        *("ConfigMissing", "correct spec.hardware.priorityClassName."),
    ),
    (
        seen(refused='pods "a" is forbidden: pod rejected: RuntimeClass "x" not found'),
        *("ConfigMissing", "correct spec.hardware.runtimeClassName."),
    ),
    (seen(refused='pods "a" is forbidden: violates PodSecurity'), "PermissionDenied", "PodSecur"),
    (seen(refused='Pod "a" is invalid: spec.x'), "InvalidSpec", "spec.x"),
    (
        seen(refused='pods "a" is forbidden: maximum memory usage per Container is 64Mi'),
        *("InvalidSpec", "describe limitrange"),
    ),
    (seen(pod(ready=True)), "", ""),
    (seen(pod(ready=True, last=ended(1), restarts=1)), "", ""),
    (seen(pod(gone=True, state=ended(1))), "", ""),
    (seen(), "", ""),
]


@pytest.mark.parametrize(("observed", "reason", "words"), CASES, ids=lambda value: str(value)[:40])
def test_every_state_has_its_reason(observed: Observed, reason: str, words: str) -> None:
    got, message = found(observed)
    assert got == reason, message
    assert words in message


def test_what_was_refused_of_the_pods_of_before_is_no_news() -> None:
    told = 'pods "minilm-5d8f7-" is forbidden: RuntimeClass "x" not found'
    missing, made = seen(pod(), refused=told, updated=1), seen(pod(), refused=told, updated=2)
    assert (found(missing)[0], worker_counts(missing, REVISION).unschedulable) == (
        "ConfigMissing",
        1,
    )
    assert (found(made)[0], worker_counts(made, REVISION).unschedulable) == ("Starting", 0)


def test_reasons_are_of_the_closed_list() -> None:
    assert set(_ORDER) <= set(REASONS)
    assert {reason for _, reason, _ in CASES} - {""} <= set(_ORDER)


def test_what_needs_a_hand_is_told_first() -> None:
    observed = seen(pod(1), pod(2, scheduled="no room"), pod(3, state=ended(64, "gone")))
    assert found(observed)[0] == "ModelNotFound"
    leftover = pod(1, phase="Failed", reason="Evicted", message="full")
    assert found(seen(leftover, pod(2, state=ended(1))))[0] == "CrashLoop"


def evicted(ago: float, said: tuple[str, str] = ("DisruptionTarget", "True")) -> dict[str, Any]:
    """A pod of yesterday that Kubernetes keeps after its eviction.

    Its kubelet had lost the container, so that only the condition ``said`` tells when it ended: so
    many seconds before ``NOW``.
    """
    lost = {"exitCode": 137, "reason": "ContainerStatusUnknown", "finishedAt": None}
    made = pod(1, phase="Failed", reason="Evicted", message="full", state={"terminated": lost})
    began = (NOW - timedelta(days=1)).isoformat()
    made["metadata"]["creationTimestamp"] = began
    for each in made["status"]["conditions"]:
        each["lastTransitionTime"] = began
    moment = (NOW - timedelta(seconds=ago)).isoformat()
    last = dict(zip(("type", "status"), said, strict=True))
    made["status"]["conditions"].append({**last, "lastTransitionTime": moment})
    return made


def test_an_eviction_is_told_until_its_replacement_answers_and_no_longer() -> None:
    # The others were made a minute before NOW.
    assert found(seen(evicted(63), pod(2)))[0] == "Evicted"
    assert found(seen(evicted(63), pod(2, ready=True), replicas=1))[0] == "Evicted"
    assert found(seen(evicted(2), replicas=1))[0] == "Evicted"
    for later in (seen(evicted(3600), pod(2)), seen(evicted(3600), pod(2, gone=True))):
        assert found(later)[0] in ("", "Starting")
    assert found(seen(evicted(3600), replicas=1)) == ("", ""), "ordered, and not made yet"
    assert found(seen(evicted(2), replicas=0)) == ("", ""), "it sleeps"


def test_a_worker_that_ends_well_when_it_is_evicted_was_evicted_all_the_same() -> None:
    # Kubernetes forgets the reason then; only the pod's Events have it.
    done = {"terminated": {"exitCode": 0, "finishedAt": (NOW - timedelta(seconds=62)).isoformat()}}
    reason, message = found(seen(pod(1, phase="Succeeded", state=done), pod(2), replicas=1))
    assert reason == "Evicted"
    assert f"describe pod {NAME}" in message
    refused = pod(1, phase="Failed", reason="UnexpectedAdmissionError", message="no such device")
    assert "was put out: no such device" in found(seen(refused))[1]
    assert found(seen(pod(1, phase="Succeeded", state=done, gone=True), pod(2)))[0] == "Starting"


def test_an_eviction_for_a_full_disk_is_no_disruption_and_is_told_as_long() -> None:
    gone = ("PodReadyToStartContainers", "False")
    assert found(seen(evicted(63, gone), pod(2)))[0] == "Evicted"
    assert found(seen(evicted(3600, gone), pod(2)))[0] == "Starting"


def test_just_started_is_no_failed_probe() -> None:
    young = pod(state={"running": {"startedAt": NOW.isoformat()}})
    observed = with_event("Unhealthy", "Startup probe failed: connection refused", young)
    assert found(observed)[0] == "Starting"


@pytest.mark.parametrize(
    ("told", "may_pass"),
    [
        ("Readiness probe failed: context deadline exceeded", True),
        ("Startup probe failed: connection refused", True),
        ("Liveness probe failed: context deadline exceeded", True),
        ("Readiness probe failed: HTTP probe failed with statuscode: 404", False),
    ],
)
def test_no_answer_may_pass_until_the_kubelet_has_ended_the_worker(
    told: str, may_pass: bool
) -> None:
    finding = diagnose(with_event("Unhealthy", told), REVISION, "", Learnt(), NOW)
    assert finding is not None
    assert finding.may_pass is may_pass
    killed = pod(state=waiting("CrashLoopBackOff"), last=ended(137), restarts=1)
    finding = diagnose(with_event("Unhealthy", told, killed), REVISION, "", Learnt(), NOW)
    assert finding is not None
    assert (finding.reason, finding.may_pass) == ("ProbeFailed", False)


@pytest.mark.parametrize(
    "before",
    [
        ("Unhealthy", "Readiness probe failed: context deadline exceeded"),
        ("Unhealthy", "Startup probe failed: connection refused"),
        ("FailedMount", "the volume is still attached elsewhere"),
    ],
)
def test_what_has_passed_is_no_failure(before: tuple[str, str]) -> None:
    """A worker that says that it is not ready yet has its volumes, and answers."""
    answered = ("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503")
    observed = seen(pod(), events={NAME: (answered, before)})
    assert found(observed)[0] == "Starting"


def test_a_worker_with_another_digest_is_named() -> None:
    worker = wire.WorkerSeen(address="10.0.0.1", answer_digest="sha256:b")
    learnt = Learnt(workers={"10.0.0.1": worker})
    assert found(seen(pod(ready=True)), learnt, "sha256:a")[0] == "DigestMismatch"
    assert found(seen(pod(ready=True)), learnt, "sha256:b") == ("", "")
    assert found(seen(pod(ready=True)), learnt) == ("", "")


@pytest.mark.parametrize(
    ("phase", "progress", "words"),
    [
        (wire.Phase.DOWNLOADING, 0.47, "downloads the model: 40 % after 60 s"),
        (wire.Phase.DOWNLOADING, None, "downloads the model."),
        (wire.Phase.LOADING, None, "loads the model."),
        (wire.Phase.WARMING, None, "warms up."),
    ],
)
def test_how_far_a_worker_is(phase: wire.Phase, progress: float | None, words: str) -> None:
    worker = wire.WorkerSeen(address="10.0.0.1", phase=phase, progress=progress)
    reason, message = found(seen(pod()), Learnt(workers={"10.0.0.1": worker}))
    assert reason == "Starting"
    assert message == f"{NAME} {words}" + ("" if words.endswith(".") else ".")


def test_pods_that_say_nothing_are_looked_at_more_closely() -> None:
    assert stuck_pods(seen(CREATING), Learnt(), NOW)[0] == {NAME}
    began = NOW - timedelta(seconds=60)
    stuck, again = stuck_pods(seen(CREATING), Learnt(), began + timedelta(seconds=1))
    assert stuck == frozenset()
    assert 0 < again <= 2
    for quiet in (pod(ready=True), pod(scheduled="no"), pod(gone=True), pod(state=ended(1))):
        assert stuck_pods(seen(quiet), Learnt(), NOW) == (frozenset(), 0.0)
    loading = wire.WorkerSeen(address="10.0.0.1", phase=wire.Phase.LOADING)
    assert stuck_pods(seen(pod()), Learnt(workers={"10.0.0.1": loading}), NOW)[0] == frozenset()
    killed = pod(state=waiting("CrashLoopBackOff"), last=ended(137), restarts=1)
    assert stuck_pods(seen(killed), Learnt(), NOW)[0] == {NAME}


def test_messages_are_one_bounded_line() -> None:
    _, message = found(seen(pod(state=ended(1, "x" * 5000))))
    assert len(message) == MESSAGE_LENGTH
    assert "\n" not in found(seen(pod(scheduled="a\nb")))[1]
    assert last_words("one\ntwo\n\n") == "two"
    assert last_words("") == ""


def test_of_a_log_line_its_text_is_told() -> None:
    assert last_words('{"level": "INFO", "message": "phase", "detail": "no such file"}') == (
        "no such file"
    )
    assert last_words('{"message": "died", "exception": "Traceback\\nKeyError: 1"}') == (
        "died: KeyError: 1"
    )
    for other in ('{"level": "INF', '{"time": "now"}', "[1]"):
        assert last_words(other) == other


def test_who_ran_out_of_memory_is_told_its_limit() -> None:
    line = '{"time": "2026", "message": "phase", "phase": "loading"}'
    made = pod(last=ended(137, line, reason="OOMKilled"), restarts=1)
    made["spec"]["containers"] = [{"name": "worker", "resources": {"limits": {"memory": "300Mi"}}}]
    asked = Asked(memory_auto=True)
    finding = diagnose(seen(made), REVISION, "", Learnt(), NOW, asked)
    assert finding is not None
    assert finding.message == (
        f"{NAME}, container worker, ended with exit code 137, 1 restart: it took more memory than"
        " it may have; its limit is 300Mi (auto: as requests.memory)."
        " Raise spec.hardware.resources.limits.memory."
    )
    assert "its limit is 300Mi. Raise" in found(seen(made))[1]


def test_the_remedy_names_the_field_at_fault() -> None:
    gone = seen(pod(state=ended(names.EXIT_MODEL_NOT_FOUND, "there is no folder /m.")))
    trial = Asked(field="spec.rollout.canary.model", uri="hf://a/b")
    finding = diagnose(gone, REVISION, "", Learnt(), NOW, trial)
    assert finding is not None
    assert finding.message.endswith("no folder /m. Correct spec.rollout.canary.model.")
    finding = diagnose(gone, REVISION, "", Learnt(), NOW, Asked(uri="file:///m"))
    assert finding is not None and "pvc://claim/folder into spec.model.uri" in finding.message


def test_what_the_scheduler_says_twice_is_told_once() -> None:
    told = 'persistentvolumeclaim "m" not found. not found'
    assert found(seen(pod(scheduled=told)))[1] == (
        f'{NAME} cannot be placed: persistentvolumeclaim "m" not found.'
        " Check the claim in spec.model.uri."
    )
