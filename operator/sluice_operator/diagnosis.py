"""Why the workers of a revision are not what they should be: one reason, one message. Pure.

``status`` asks for each revision. Pods, their containers, Deployments and, where these alone do not
say it, Events of stuck pods are read; the message names pod, container, exit code and last words,
and the next step to take.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from sluice_api import names, wire
from sluice_api.wording import sentence
from sluice_operator.state import Learnt, Object, Observed
from sluice_operator.wording import last_words, shortened
from sluice_operator.workers import (
    PodState,
    condition,
    containers,
    deployment_of,
    newest_pods,
    pod_state,
    pods_of,
    refusal_of,
)

STUCK_SECONDS: Final = 3.0
"""After so long in one state a pod's Events are asked for."""
PROBE_SECONDS: Final = 20.0
"""A process that does not even answer its probes after so long is not just starting."""
REPLACED_SECONDS: Final = 60.0
"""A replica that is made later than this after an eviction was not made because of it."""

EXIT_REASONS: Final = {
    names.EXIT_MODEL_NOT_FOUND: "ModelNotFound",
    names.EXIT_MODEL_DOWNLOAD_FAILED: "ModelDownloadFailed",
    names.EXIT_MODEL_REJECTED: "ModelRejected",
    names.EXIT_BAD_CONFIGURATION: "InvalidSpec",
}

_ORDER: Final = (
    *("PermissionDenied", "InvalidSpec", "ConfigMissing", "VolumeFailed", "ImagePullFailed"),
    *("ModelNotFound", "ModelRejected", "ModelDownloadFailed", "OutOfMemory", "CrashLoop"),
    *("DigestMismatch", "ProbeFailed", "QuotaExceeded", "NodeLost", "Unschedulable", "Evicted"),
    "Starting",
)
"""Of several findings the first is told: what needs a hand before what may pass."""

_OUT_OF_RANGE: Final = re.compile(r"usage per (Container|Pod)|limit to request ratio per")
"""How a LimitRange speaks, which nobody names."""

_PLACING: Final = (
    (
        re.compile(r"Insufficient (cpu|memory|ephemeral-storage)"),
        "spec.hardware.resources.requests",
    ),
    (re.compile(r"Insufficient [\w.-]+/"), "spec.hardware.gpu"),
    (
        re.compile("node affinity/selector"),
        "what chooses nodes in spec.hardware (nodeSelector, affinity, gpu.product)",
    ),
    (re.compile("untolerated taint"), "spec.hardware.tolerations"),
    (re.compile("topology spread"), "spec.hardware.topologySpreadConstraints"),
    (re.compile("pods? (anti-)?affinity"), "spec.hardware.affinity"),
)
"""How the scheduler says that no node will do, and the field that asks for such a node."""

_PASSING: Final = frozenset({"Starting", "Unschedulable", "NodeLost", "Evicted"})
DOWNLOAD_TRIES: Final = 4
"""A download that has failed so often hardly fails by chance."""

_WAITING: Final = {
    **dict.fromkeys(
        (
            *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
            *("ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"),
        ),
        "ImagePullFailed",
    ),
    "CreateContainerConfigError": "ConfigMissing",
    "CreateContainerError": "CrashLoop",
    "RunContainerError": "CrashLoop",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What is the matter.

    Attributes:
        reason: one of the closed list.
        tried_again: what failed is done again without a hand, and may well succeed then.
    """

    reason: str
    message: str
    tried_again: bool = False

    @property
    def may_pass(self) -> bool:
        """Whether it may pass without a hand: the service is on its way, not stalled."""
        return self.tried_again or self.reason in _PASSING


@dataclass(frozen=True, slots=True)
class Asked:
    """What a revision was asked for, as far as a remedy depends on it.

    Attributes:
        field: where its model is written.
        uri: its model's; empty when unknown.
        memory_auto: whether its memory limit is not given, but follows the request.
    """

    field: str = "spec.model"
    uri: str = ""
    memory_auto: bool = False


def diagnose(
    observed: Observed,
    revision: str,
    digest: str,
    learnt: Learnt,
    now: datetime,
    asked: Asked = Asked(),
) -> Finding | None:
    """The most telling finding about a revision; None while nothing is the matter.

    Args:
        digest: what its workers are held to have loaded; empty when unknown.
    """
    found = [*_of_deployment(observed, revision)]
    pods = pods_of(observed, revision)
    deployment = deployment_of(observed, revision)
    if deployment is not None:
        pods = newest_pods(deployment, pods)  # those from before only wait until they may go
    wanted = _is_wanted(observed, revision)
    for pod in pods:
        if _is_put_out(pod) and not (wanted and _is_news(pod, pods, now)):
            continue
        if (finding := _of_pod(observed, pod, digest, learnt, now, asked)) is not None:
            found.append(finding)
    if not found:
        return None
    first = min(found, key=lambda finding: _ORDER.index(finding.reason))
    return replace(first, message=shortened(first.message))


def stuck_pods(observed: Observed, learnt: Learnt, now: datetime) -> tuple[frozenset[str], float]:
    """Pods whose Events would tell more, and seconds until another one is stuck (0: none will)."""
    stuck, next_look = set[str](), 0.0
    for pod in observed.pods:
        since = _silent_since(pod, observed, learnt)
        if since is None:
            continue
        rest = STUCK_SECONDS - (now - since).total_seconds()
        if rest <= 0:
            stuck.add(str(pod["metadata"]["name"]))
        else:
            next_look = min(next_look or rest, rest)
        patience = PROBE_SECONDS - (now - since).total_seconds()
        if patience > 0:
            next_look = min(next_look or patience, patience)
    return frozenset(stuck), next_look


# The Deployment ----------------------------------------------------------------------------------


def _of_deployment(observed: Observed, revision: str) -> Iterator[Finding]:
    deployment = deployment_of(observed, revision)
    if deployment is None:
        return
    told = refusal_of(observed, deployment)
    if not told:
        return
    namespace = deployment["metadata"]["namespace"]
    if "exceeded quota" in told:
        yield Finding(
            "QuotaExceeded",
            f"{sentence(told)} Raise the ResourceQuota, or ask for less in"
            f" spec.hardware.resources; see kubectl -n {namespace} describe resourcequota.",
        )
    elif _OUT_OF_RANGE.search(told):
        yield Finding(
            "InvalidSpec",
            f"{sentence(told)} Ask for what the LimitRange allows in spec.hardware.resources, or"
            f" have it changed; see kubectl -n {namespace} describe limitrange.",
        )
    elif "not found" in told or "no PriorityClass" in told:
        yield Finding(
            "ConfigMissing", f"{sentence(told)} Create what is missing, or correct {_named(told)}."
        )
    elif "forbidden" in told:
        yield Finding(
            "PermissionDenied", f"{sentence(told)} Have the platform team allow it in {namespace}."
        )
    else:
        yield Finding(
            "InvalidSpec", f"Kubernetes refuses the pods: {sentence(told)} Correct the spec."
        )


# A pod -------------------------------------------------------------------------------------------


def _of_pod(
    observed: Observed, pod: Object, digest: str, learnt: Learnt, now: datetime, asked: Asked
) -> Finding | None:
    metadata, status = pod["metadata"], pod.get("status") or {}
    name, namespace = metadata["name"], metadata["namespace"]
    describe = f"See kubectl -n {namespace} describe pod {name}."
    if _is_put_out(pod):
        told = str(status.get("message") or status.get("reason") or "the node wanted it to go")
        how = "was evicted" if status.get("reason") in (None, "", "Evicted") else "was put out"
        return Finding("Evicted", f"{name} {how}: {sentence(told)} {describe}")
    state = pod_state(pod, observed.lost_nodes)
    if state is PodState.GONE:
        return None
    node = (pod.get("spec") or {}).get("nodeName", "")
    if node and node in observed.lost_nodes:
        return Finding(
            "NodeLost",
            f"{name} ran on {node}, which has fallen silent; a replacement comes when Kubernetes"
            f" gives the node up. See kubectl describe node {node}.",
        )
    seen = learnt.workers.get(str(status.get("podIP") or ""))
    if seen and digest and seen.answer_digest and seen.answer_digest != digest:
        return Finding(
            "DigestMismatch",
            f"{name} has loaded {seen.answer_digest[:19]}…, the revision is {digest[:19]}…: it gets"
            f" no requests. Pin {asked.field}.revision, so that all replicas load the same.",
        )
    if state is PodState.READY:
        return None
    if state is PodState.UNSCHEDULABLE:
        return _unschedulable(name, str(condition(pod, "PodScheduled").get("message") or ""), asked)
    for container in containers(pod):
        if (finding := _of_container(pod, container, asked)) is not None:
            killed = finding.reason == "CrashLoop" and _was_killed(container)
            return (_from_events(observed, pod, now, asked) if killed else None) or finding
    return _from_events(observed, pod, now, asked) or _starting(name, pod, seen, now)


def _is_wanted(observed: Observed, revision: str) -> bool:
    """Whether the revision should have replicas now."""
    deployment = deployment_of(observed, revision)
    return deployment is not None and int(deployment["spec"].get("replicas", 1)) > 0


def _is_put_out(pod: Object) -> bool:
    """Whether the node has ended a pod that nobody deleted: evicted, refused, shut down.

    Kubernetes restarts the containers of a worker for ever, whatever their exit code. A worker that
    ends well when it is evicted leaves a pod that says Succeeded, and no reason.
    """
    phase = (pod.get("status") or {}).get("phase")
    return phase in ("Failed", "Succeeded") and "deletionTimestamp" not in pod["metadata"]


def _is_news(put_out: Object, pods: Iterable[Object], now: datetime) -> bool:
    """Whether a pod that its node has ended may be why a replica is missing.

    Kubernetes keeps such pods for weeks, while replicas come and go for other reasons.
    """
    # Where the container has been lost, only the conditions tell when its sandbox went; a pod that
    # is refused at once has had neither.
    times = [put_out["metadata"]["creationTimestamp"]]
    times += [c.get("lastTransitionTime") for c in put_out["status"].get("conditions") or ()]
    for container in containers(put_out):
        ended = (container.get("state") or {}).get("terminated") or {}
        times.append(ended.get("finishedAt"))
    end = max((time for time in map(_time, times) if time), default=now)
    last = max(_time(pod["metadata"]["creationTimestamp"]) or now for pod in pods)
    since = last if last > end else now  # none has come yet
    return (since - end).total_seconds() <= REPLACED_SECONDS


def _unschedulable(name: str, told: str, asked: Asked) -> Finding:
    # The scheduler also speaks when a claim is missing; more nodes would not help then.
    if "persistentvolumeclaim" in told.lower():
        once = sentence(told.strip().removesuffix(". not found"))  # it may say so twice
        return Finding(
            "VolumeFailed", f"{name} cannot be placed: {once} Check the claim in {asked.field}.uri."
        )
    fields = [field for words, field in _PLACING if words.search(told)]
    remedy = f"Add nodes, or correct {' and '.join(fields or ['spec.hardware'])}."
    return Finding("Unschedulable", f"{name} finds no room: {sentence(told)} {remedy}")


def _of_container(pod: Object, container: Mapping[str, Any], asked: Asked) -> Finding | None:
    name, state = container.get("name", ""), container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason = str(waiting.get("reason") or "")
    who = f"{pod['metadata']['name']}, container {name}"
    if reason in _WAITING and not (_ended(container) and _WAITING[reason] == "CrashLoop"):
        told = str(waiting.get("message") or reason)
        remedy = _remedy(_WAITING[reason], asked)
        return Finding(_WAITING[reason], f"{who}: {reason}: {sentence(told)} {remedy}".rstrip())
    # A worker that ends well is still a worker that does not answer, when it does so again.
    ended = _ended(container, well_too=reason == "CrashLoopBackOff")
    if ended is None or (state.get("running") and container.get("ready")):
        return None
    if not state.get("running") or reason == "CrashLoopBackOff" or _explained(ended):
        return _of_end(who, pod, container, ended, asked)
    return None


def _ended(container: Mapping[str, Any], *, well_too: bool = False) -> Mapping[str, Any] | None:
    """How the container ended last, if it did not end well; or in any way."""
    for state in (container.get("state") or {}, container.get("lastState") or {}):
        ended: Mapping[str, Any] | None = state.get("terminated")
        if ended and (well_too or ended.get("exitCode", 0) != 0):
            return ended
    return None


def _was_killed(container: Mapping[str, Any]) -> bool:
    """Whether somebody ended it, such as a kubelet whose probes failed."""
    ended = _ended(container)
    return ended is not None and ended.get("exitCode") in (137, 143)


def _explained(ended: Mapping[str, Any]) -> bool:
    """Whether the end says so much that it stands until a later start has succeeded."""
    return ended.get("reason") == "OOMKilled" or ended.get("exitCode") in EXIT_REASONS


def _of_end(
    who: str, pod: Object, container: Mapping[str, Any], ended: Mapping[str, Any], asked: Asked
) -> Finding:
    metadata = pod["metadata"]
    code = int(ended.get("exitCode", 0))
    restarts = int(container.get("restartCount", 0))
    how = f"{who}, ended with exit code {code}, {restarts} restart{'s' if restarts != 1 else ''}"
    if ended.get("reason") == "OOMKilled":
        # Killed in the middle of something: its last words are about something else.
        limit = _memory_limit(pod, str(container.get("name", "")))
        auto = " (auto: as requests.memory)" if asked.memory_auto else ""
        its = f"; its limit is {limit}{auto}" if limit else ""
        return Finding(
            "OutOfMemory",
            f"{how}: it took more memory than it may have{its}."
            " Raise spec.hardware.resources.limits.memory.",
        )
    words = last_words(str(ended.get("message") or ""))
    said = f": {words}" if words else ""
    reason = EXIT_REASONS.get(code, "CrashLoop")
    logs = f"See kubectl -n {metadata['namespace']} logs {metadata['name']} --previous."
    told = f"{sentence(how + said)} {_remedy(reason, asked) or logs}"
    if reason != "ModelDownloadFailed":
        return Finding(reason, told)
    if restarts + 1 < DOWNLOAD_TRIES:
        return Finding(reason, f"{told} It is tried again.", tried_again=True)
    return Finding(reason, f"{told} It is tried ever more rarely.")


def _memory_limit(pod: Object, name: str) -> str:
    """What a container may take; empty when unknown."""
    for container in (pod.get("spec") or {}).get("containers") or ():
        if container.get("name") == name:
            limits = (container.get("resources") or {}).get("limits") or {}
            return str(limits.get("memory") or "")
    return ""


def _remedy(reason: str, asked: Asked) -> str:
    match reason:
        case "ImagePullFailed":
            return "Check the image's name and the pull secrets."
        case "ConfigMissing":
            return f"Create what is missing, or correct {asked.field}.credentials."
        case "ModelNotFound" if asked.uri.startswith("file://"):
            return (
                "Here file:// is a folder in the worker's image: for one on a volume write"
                f" pvc://claim/folder into {asked.field}.uri."
            )
        case "ModelNotFound" | "ModelRejected":
            return f"Correct {asked.field}."
        case "ModelDownloadFailed":
            return f"Check the network policy and {asked.field}.credentials."
        case "InvalidSpec":
            return "Correct the spec."
        case _:
            return ""


def _named(told: str) -> str:
    """Where the spec names what does not exist."""
    for kind in ("PriorityClass", "RuntimeClass"):
        if kind in told:
            return f"spec.hardware.{kind[0].lower()}{kind[1:]}Name"
    return "the spec"


# What only Events and gateways tell ---------------------------------------------------------------

_PROBE = re.compile(r"(Startup|Liveness|Readiness) probe failed: (.*)", re.DOTALL)
_MISSING = re.compile(r'(secret|configmap) ".*not found|references non-existent secret key')
"""How a kubelet says that a Secret or ConfigMap, or the key in it, is not there."""
_NOT_READY_YET = "statuscode: 503"
"""How a worker says itself that it is not ready: nothing is wrong with the probe."""


def _from_events(observed: Observed, pod: Object, now: datetime, asked: Asked) -> Finding | None:
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    events = observed.pod_events.get(name, ())
    if _running_since(pod) is None:  # a container that runs has its volumes
        for reason, told in events:
            if reason in ("FailedMount", "FailedAttachVolume", "FailedMapVolume"):
                kind = "ConfigMissing" if _MISSING.search(told) else "VolumeFailed"
                volume = f"Check the claim in {asked.field}.uri and its volume."
                remedy = _remedy(kind, asked) or volume
                return Finding(kind, f"{name}: {sentence(told)} {remedy}")
    # The newest alone: what was not answered before has been answered since.
    probes = (_PROBE.match(told) for reason, told in events if reason == "Unhealthy")
    probe = next(filter(None, probes), None)
    if probe and _is_fatal(probe[1], probe[2], pod, now):
        words = f"{name}: {sentence(probe[0])} See kubectl -n {namespace} logs {name}."
        # A process that is slow to answer on a busy node may well answer the next probe.
        silent = "statuscode" not in probe[2] and not any(map(_was_killed, containers(pod)))
        return Finding("ProbeFailed", words, tried_again=silent)
    return None


def _is_fatal(probe: str, told: str, pod: Object, now: datetime) -> bool:
    """Whether a failed probe means more than that the worker is not ready yet."""
    if probe == "Liveness" or any(map(_was_killed, containers(pod))):
        return True
    if _NOT_READY_YET in told:
        return False
    if probe == "Readiness" and "statuscode" in told:
        return True
    since = _running_since(pod)
    return since is not None and (now - since).total_seconds() >= PROBE_SECONDS


def _starting(name: str, pod: Object, seen: wire.WorkerSeen | None, now: datetime) -> Finding:
    if seen is None or seen.phase is None:
        stage = "is starting" if _running_since(pod) else "is being made"
        return Finding("Starting", f"{name} {stage}.")
    doing = {
        wire.Phase.DOWNLOADING: "downloads the model",
        wire.Phase.LOADING: "loads the model",
        wire.Phase.WARMING: "warms up",
    }.get(seen.phase, "is starting")
    if seen.progress is None:
        return Finding("Starting", f"{name} {doing}.")
    # Coarse, and with a time that moves in steps of ten seconds: see status.
    share = int(seen.progress * 10) * 10
    since = _running_since(pod) or now
    age = int((now - since).total_seconds() // 10) * 10
    return Finding("Starting", f"{name} {doing}: {share} % after {age} s.")


def _silent_since(pod: Object, observed: Observed, learnt: Learnt) -> datetime | None:
    """Since when a pod has been waiting for something that its state does not name."""
    state = pod_state(pod, observed.lost_nodes)
    if state is PodState.FAILED and any(map(_was_killed, containers(pod))):
        return datetime.min.replace(tzinfo=UTC)
    if state is not PodState.STARTING or not (pod.get("spec") or {}).get("nodeName"):
        return None
    seen = learnt.workers.get(str((pod.get("status") or {}).get("podIP") or ""))
    if seen and seen.phase in (wire.Phase.DOWNLOADING, wire.Phase.LOADING, wire.Phase.WARMING):
        return None
    return _running_since(pod) or _time(condition(pod, "PodScheduled").get("lastTransitionTime"))


def _running_since(pod: Object) -> datetime | None:
    for container in containers(pod):
        running = (container.get("state") or {}).get("running")
        if running:
            return _time(running.get("startedAt"))
    return None


def _time(text: object) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if isinstance(text, str) else None
