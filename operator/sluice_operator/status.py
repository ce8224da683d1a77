"""The status of a service, whole: revisions, counts, the last decision, conditions. Pure.

``planning`` hands in what it has planned from. Nothing here changes by itself: a service at rest
has the same status at every look, and what stands is written only when it differs.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sluice_api.inference_service import MAX_REPLICAS, InferenceService, revision_of
from sluice_api.precomputed import refused
from sluice_api.service_status import DEFINING, MOST_ENTRIES, Status
from sluice_api.tasks import Task
from sluice_api.wording import sentence
from sluice_operator.children.identity import selector_of
from sluice_operator.diagnosis import Finding
from sluice_operator.rollout import FIXED_MODES, Revision, Rollout
from sluice_operator.scaling.recommend import WorkerCounts
from sluice_operator.state import Learnt, Observed, Platform, Wanted
from sluice_operator.steps import Event

AWARE_SECONDS: Final = 15.0
"""For so long after its making a service is not called ready while a gateway does not know it."""
AWARE_LOOK_SECONDS: Final = 0.5
UNKNOWN: Final = "UnknownToGateways"


@dataclass(frozen=True, slots=True)
class Sight:
    """What a status is made from.

    Attributes:
        findings: what is the matter with a revision, by its name.
        obstacle: what is the matter with the service as a whole.
        rolling: names of revisions that change inside their Deployment.
        learnt: what the gateways told; its week, where there is one, is kept in the status.
    """

    observed: Observed
    rollout: Rollout
    wanted: Mapping[str, Wanted]
    findings: Mapping[str, Finding]
    obstacle: Finding | None
    rolling: frozenset[str]
    learnt: Learnt
    platform: Platform
    now: datetime

    @property
    def before(self) -> Mapping[str, Any]:
        return self.observed.resource.get("status") or {}

    @property
    def generation(self) -> int:
        return int(self.observed.resource["metadata"].get("generation", 0))

    @property
    def paused(self) -> bool:
        return bool(self.observed.resource["spec"].get("paused"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """One condition before it is written."""

    type: str
    holds: bool
    reason: str
    message: str = ""


def make_status(sight: Sight) -> dict[str, Any]:
    """The whole status as it should stand."""
    rollout, stable = sight.rollout, sight.rollout.stable
    counts = [revision.counts for revision in rollout.all()]
    decided = sight.wanted.get(stable.name)
    said = sight.before.get("scaling") or {}
    written = {
        "observedGeneration": sight.generation,
        "url": sight.platform.gateway_url,
        "revision": stable.name,
        "revisions": [_revision(revision, sight) for revision in rollout.all()][:MOST_ENTRIES],
        "replicas": min(MAX_REPLICAS, sum(map(_existing, counts))),
        "readyReplicas": min(MAX_REPLICAS, sum(c.ready for c in counts)),
        "selector": selector_of(sight.observed.key.name),
        "scaling": {
            "desired": stable.desired,
            "summary": f"{stable.counts.ready}/{stable.desired}",
            "rule": decided.rule[:32] if decided else said.get("rule", ""),
            "reason": decided.reason[:512] if decided else said.get("reason", ""),
            "week": sight.learnt.week or said.get("week", ""),
        },
        "conditions": conditions(sight.before, _verdicts(sight), sight.generation, sight.now),
    }
    return Status.model_validate(written).to_dict()


def _existing(counts: WorkerCounts) -> int:
    return counts.ready + counts.starting + counts.failed


def _revision(revision: Revision, sight: Sight) -> dict[str, Any]:
    counts, service = revision.counts, revision.service
    before = {entry["name"]: entry for entry in sight.before.get("revisions") or ()}
    definition = before.get(revision.name, {}).get("definition") or {}
    if service is not None:
        parts = {part: getattr(service.spec, part).to_short_dict() for part in DEFINING}
        definition = {part: written for part, written in parts.items() if written}
    return {
        "name": revision.name,
        "answerDigest": revision.answer_digest,
        "tasks": [str(task) for task in revision.tasks],
        "role": revision.role,
        "image": revision.image,
        "proven": revision.proven,
        "desiredReplicas": revision.desired,
        "replicas": min(MAX_REPLICAS, _existing(counts)),
        "readyReplicas": min(MAX_REPLICAS, counts.ready),
        "definition": definition,
        "retiredAt": timestamp(revision.retired_at) if revision.retired_at else "",
    }


# Conditions --------------------------------------------------------------------------------------


def conditions(
    before: Mapping[str, Any], verdicts: Iterable[Verdict], generation: int, now: datetime
) -> list[dict[str, Any]]:
    """The verdicts as they are written: a condition that stays keeps its time."""
    made = []
    for verdict in verdicts:
        status = "True" if verdict.holds else "False"
        old = condition_of(before, verdict.type)
        same = old.get("status") == status and old.get("lastTransitionTime")
        made.append(
            {
                "type": verdict.type,
                "status": status,
                "reason": verdict.reason,
                "message": verdict.message,
                "lastTransitionTime": old["lastTransitionTime"] if same else timestamp(now),
                "observedGeneration": generation,
            }
        )
    return made


def condition_of(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The condition of a type; empty when there is none."""
    entries: Iterable[Mapping[str, Any]] = status.get("conditions") or ()
    return next((entry for entry in entries if entry["type"] == kind), {})


def is_rolling_out(status: Mapping[str, Any]) -> bool:
    """Whether a change is under way, as a status tells."""
    found = condition_of(status, "Reconciling")
    return (found.get("status"), found.get("reason")) == ("True", "RollingOut")


def is_stalled(status: Mapping[str, Any]) -> bool:
    return condition_of(status, "Stalled").get("status") == "True"


def is_starting(status: Mapping[str, Any]) -> bool:
    """Whether what the first replicas need is on its way, or they are, and nothing hinders it."""
    found = condition_of(status, "Reconciling")
    return (found.get("status"), found.get("reason")) == ("True", "Starting")


def is_unknown(status: Mapping[str, Any]) -> bool:
    """Whether it is told that no gateway knows the service."""
    return condition_of(status, "Ready").get("reason") == UNKNOWN


def _verdicts(sight: Sight) -> Iterator[Verdict]:
    ready = _ready(sight)
    yield ready
    stall = _stall(sight)
    if sight.paused:
        yield Verdict("Reconciling", False, "Paused", ready.message)
    elif stall is not None:
        # One or the other: tools that read both would call a stalled service under way.
        yield Verdict("Reconciling", False, stall.reason, stall.message)
    else:
        yield _reconciling(sight, ready)
    if stall is None:
        yield _not_stalled(sight, ready)
    else:
        yield Verdict("Stalled", True, stall.reason, stall.message)
    yield _workers_available(sight)
    yield _scaling_active(sight)
    if sight.rollout.canary is not None:
        yield _canary_healthy(sight, sight.rollout.canary)


def _ready(sight: Sight) -> Verdict:
    found = _stands(sight)
    if not found.holds:
        return found
    if sight.learnt.unknown:
        # What has been ready once stays so: gateways that come back know it again.
        return Verdict("Ready", _was_ready(sight), UNKNOWN, _unknown(sight))
    if waits_for_gateways(sight):
        told = f"Gateways that do not know the service yet: {sight.learnt.unaware}."
        return Verdict("Ready", False, "Starting", told)
    return found


def _unknown(sight: Sight) -> str:
    return (
        f"No gateway knows revision {sight.rollout.stable.name}, so nobody's requests reach it."
        " Either the gateways have lost the API server, or they cannot read the resource: their"
        " logs say which."
    )


def waits_for_gateways(sight: Sight) -> bool:
    """Whether a service that has never been ready would still be unknown to some of its callers.

    A gateway learns of it by a watch of its own, which may be a few seconds behind. One that has
    lost the API server for longer is not waited for, as long as another one knows the service.
    """
    learnt = sight.learnt
    if not learnt.unaware or learnt.unknown or _was_ready(sight):
        return False
    if not learnt.aware:
        return not sight.platform.deaf  # Who hears nobody cannot tell.
    return is_new(sight)


def is_new(sight: Sight) -> bool:
    """Whether it has been made so lately that gateways may not have heard of it."""
    made = datetime.fromisoformat(sight.observed.resource["metadata"]["creationTimestamp"])
    return (sight.now - made).total_seconds() < AWARE_SECONDS


def _was_ready(sight: Sight) -> bool:
    return condition_of(sight.before, "Ready").get("status") == "True"


def _stands(sight: Sight) -> Verdict:
    """Ready, as far as pods show it."""
    stable = sight.rollout.stable
    serving = stable.counts.ready > 0
    finding = sight.obstacle or sight.findings.get(stable.name)
    if sight.paused:
        works = serving or not stable.desired
        return Verdict("Ready", works, "Paused", "spec.paused is true: nothing is changed.")
    if serving and (told := _rolling_out(sight)):
        return Verdict("Ready", True, "RollingOut", told)
    if serving:
        return Verdict("Ready", True, "Ready", _serving(sight))
    if finding is not None and (sight.obstacle or finding.reason != "Starting"):
        return Verdict("Ready", False, finding.reason, finding.message)
    if not stable.desired and not stable.counts.starting:
        told = "Nobody asks; the next request wakes the service."
        if _mode(stable) in FIXED_MODES:
            told = "spec.scaling.minReplicas is 0 and nothing but you changes it."
        elif sight.platform.deaf:
            told = "It sleeps and no request wakes it: the operator hears no gateway."
        return Verdict("Ready", True, "Asleep", told)
    return Verdict("Ready", _is_waking(sight), "Starting", _starting(sight, finding))


def _is_waking(sight: Sight) -> bool:
    """Whether it comes from sleep: requests are held and answered, so it is as good as ready."""
    if not sight.rollout.stable.proven:
        return False
    ready = condition_of(sight.before, "Ready")
    return ready.get("status") == "True" and ready.get("reason") in ("Asleep", "Starting")


def _serving(sight: Sight) -> str:
    told, canary = f"Revision {sight.rollout.stable.name} answers.", sight.rollout.canary
    finding = sight.findings.get(canary.name) if canary and not canary.counts.ready else None
    if canary is None or finding is None or finding.reason == "Starting":
        return told
    return f"{told} The canary {canary.name} does not come up: {finding.message}"


def _rolling_out(sight: Sight) -> str:
    """What is told of a change under way; empty for none."""
    stable, following = sight.rollout.stable, sight.rollout.next
    changing = following or stable
    starts = not stable.proven and (stable.desired or stable.counts.starting)
    if following is None and (stable.name not in sight.rolling or starts):
        return ""  # nothing changes, or the first replicas are only on their way
    finding = sight.findings.get(changing.name)
    sound = finding is None or finding.reason == "Starting"
    if following is not None and sound:
        return f"Revision {following.name} takes over from {stable.name} when enough is ready."
    if sound and not stable.proven:
        return f"The change of {stable.name} is on its way to its first replicas."
    if sound:
        return f"Replicas of {stable.name} are replaced as ones with the change become ready."
    assert finding is not None
    if following is not None:
        return f"{following.name} does not come up, {stable.name} goes on: {finding.message}"
    goes_on = ", the replicas without it go on" if stable.counts.ready else ""
    return f"The change of {stable.name} does not come up{goes_on}: {finding.message}"


def _starting(sight: Sight, finding: Finding | None) -> str:
    """What starting workers do; how far a download is changes every ten seconds at most."""
    told = finding.message if finding else "The workers are starting."
    last = str(condition_of(sight.before, "Ready").get("message", ""))
    head, sign, since = told.partition(" % after ")
    last_head, last_sign, last_since = last.partition(" % after ")
    same_worker = head.rpartition(":")[0] == last_head.rpartition(":")[0]
    if sign and last_sign and same_worker and (since == last_since or head == last_head):
        return last
    return told


def _stall(sight: Sight) -> Finding | None:
    """What keeps the spec from coming true until somebody does something."""
    found = _hindrance(sight)
    return found if found and not found.may_pass else None


def _not_stalled(sight: Sight, ready: Verdict) -> Verdict:
    found = _hindrance(sight)
    if found is None or found.reason == "Starting" or ready.reason == "Asleep":
        told = "Nothing keeps the spec from coming true."
        return Verdict("Stalled", False, ready.reason, told)
    told = f"{found.reason} may pass by itself; the condition Reconciling says what it waits for."
    return Verdict("Stalled", False, found.reason, told)


def _hindrance(sight: Sight) -> Finding | None:
    """What the spec waits for to come true, or what keeps it from it."""
    if sight.paused:
        return None
    if sight.obstacle is not None:
        return sight.obstacle
    stable = sight.rollout.stable
    awaited = sight.rollout.next or stable
    if awaited is not stable or not stable.counts.ready:
        return sight.findings.get(awaited.name)
    found = sight.findings.get(stable.name) if stable.name in sight.rolling else None
    # What has loaded something else is ready to Kubernetes, which goes on: the others are to go.
    return None if found and found.reason == "DigestMismatch" else found


def _reconciling(sight: Sight, ready: Verdict) -> Verdict:
    if told := _rolling_out(sight):
        replaces = sight.rollout.next is not None or sight.rollout.stable.proven
        return Verdict("Reconciling", True, "RollingOut" if replaces else "Starting", told)
    if sight.obstacle is not None:
        return Verdict("Reconciling", True, sight.obstacle.reason, sight.obstacle.message)
    if not ready.holds:
        return Verdict("Reconciling", True, ready.reason, ready.message)
    return Verdict("Reconciling", False, ready.reason, "No change is under way.")


def _workers_available(sight: Sight) -> Verdict:
    stable = sight.rollout.stable
    finding = sight.findings.get(stable.name)
    # What has loaded something else is ready to Kubernetes, and gets no request.
    idle = finding is not None and finding.reason == "DigestMismatch"
    held_up = stable.counts.ready < stable.desired or stable.name in sight.rolling or idle
    if stable.counts.ready:
        if held_up and finding is not None and finding.reason != "Starting":
            return Verdict("WorkersAvailable", True, finding.reason, finding.message)
        return Verdict("WorkersAvailable", True, "Ready", f"Revision {stable.name} has replicas.")
    if finding is not None and finding.reason != "Starting":
        return Verdict("WorkersAvailable", False, finding.reason, finding.message)
    if stable.desired:
        return Verdict("WorkersAvailable", False, "Starting", "No replica is ready yet.")
    return Verdict("WorkersAvailable", False, "Asleep", "No replica is wanted.")


def _scaling_active(sight: Sight) -> Verdict:
    mode = _mode(sight.rollout.stable)
    if sight.paused:
        told = "spec.paused is true: the number stays as it is."
        return Verdict("ScalingActive", False, "Paused", told)
    if mode in FIXED_MODES:
        told = f"spec.scaling.mode is {mode}: exactly spec.scaling.minReplicas run."
        return Verdict("ScalingActive", False, "ScalingUnavailable", told)
    if sight.platform.deaf:
        told = (
            f"The operator hears no gateway: {sentence(sight.platform.deaf)}"
            " Nothing is woken, put to sleep or scaled by demand until it does."
        )
        return Verdict("ScalingActive", False, "ScalingUnavailable", told)
    if mode == "direct":
        return Verdict("ScalingActive", True, "Ready", "The operator sets the number.")
    if not sight.platform.metrics_api:
        told = sentence(sight.platform.metrics_api_note or "the metrics API is not available")
        message = f"No HorizontalPodAutoscaler can follow: {told} The operator sets the number."
        return Verdict("ScalingActive", True, "ScalingUnavailable", message)
    return Verdict("ScalingActive", True, "Ready", "A HorizontalPodAutoscaler follows the number.")


def _canary_healthy(sight: Sight, canary: Revision) -> Verdict:
    finding = sight.findings.get(canary.name)
    failing = finding is not None and finding.reason != "Starting"
    if canary.counts.ready and not (failing and canary.name in sight.rolling):
        return Verdict("CanaryHealthy", True, "Ready", f"Revision {canary.name} gets its share.")
    if finding is not None:
        return Verdict("CanaryHealthy", False, finding.reason, finding.message)
    if not canary.desired:
        return Verdict("CanaryHealthy", True, "Asleep", "No replica of it is wanted.")
    return Verdict("CanaryHealthy", False, "Starting", f"Revision {canary.name} is starting.")


def _mode(revision: Revision) -> str:
    return revision.service.spec.scaling.mode if revision.service else "hpa"


# Events ------------------------------------------------------------------------------------------


def make_events(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Event]:
    """What people should be told: what the status says otherwise than before."""
    for entry in after["conditions"]:
        if entry["type"] not in ("Ready", "Stalled", "CanaryHealthy"):
            continue
        stood = condition_of(before, entry["type"])
        if (stood.get("status"), stood.get("reason")) == (entry["status"], entry["reason"]):
            continue
        if _waits(after, entry):
            told = condition_of(after, "Reconciling").get("message", "")
            yield Event("Warning", entry["reason"], told)
            continue
        bad = (entry["status"] == "True") == (entry["type"] == "Stalled")
        if entry["type"] != "Ready" and not bad:
            continue
        calm = not bad or entry["reason"] in ("Starting", "Deleting")
        calm = calm and entry["reason"] != UNKNOWN
        yield Event("Normal" if calm else "Warning", entry["reason"], entry["message"])
    proven = {entry["name"] for entry in after["revisions"] if entry.get("proven")}
    moved = before.get("revision") and before["revision"] != after["revision"]
    if moved and after["revision"] in proven:  # of two that never answered there is no news
        told = f"Revision {after['revision']} answers now, {before['revision']} no longer."
        yield Event("Normal", "Promoted", told)
    was, now = before.get("scaling") or {}, after["scaling"]
    if was and was.get("desired") != now["desired"]:
        told = f"From {was.get('desired')} to {now['desired']} replicas: {now['reason']}"
        yield Event("Normal", "Scaled", told)


def _waits(status: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether a condition says that a change waits for something while the service is ready.

    While it is not, Ready says so.
    """
    if entry["type"] != "Stalled" or entry["status"] == "True" or not is_rolling_out(status):
        return False
    ready = condition_of(status, "Ready")
    return ready.get("status") == "True" and entry["reason"] != ready.get("reason")


def make_warnings(
    service: InferenceService, before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[Event]:
    """What of the spec comes to nothing, said when the spec or what its model does is news."""
    known, last = _offered(service, after), _offered(service, before)
    if before.get("observedGeneration") == after["observedGeneration"] and known == last:
        return
    faults = [f"{field}: {message}" for field, message in refused(service, known)]
    if faults:
        yield Event("Warning", "PrecomputeRefused", " ".join(faults))
    if service.spec.entities_from and known and Task.RELATION_EXTRACTION not in known:
        told = (
            f"spec.entitiesFrom: got {service.spec.entities_from} beside the model, which does"
            f" {', '.join(known)} and asks nobody for entities. Remove entitiesFrom, or correct the"
            " model."
        )
        yield Event("Warning", "EntitiesFromUnused", told)


def _offered(service: InferenceService, status: Mapping[str, Any]) -> list[Task]:
    """The tasks of the model that the spec names; empty until a worker has told."""
    revision = revision_of(service)
    found = (r for r in status.get("revisions") or () if r["name"] == revision)
    # A task that this version does not know is one that it cannot judge.
    return [Task(task) for r in found for task in r.get("tasks") or () if task in set(Task)]


def timestamp(moment: datetime) -> str:
    """As Kubernetes writes times, to the second."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
