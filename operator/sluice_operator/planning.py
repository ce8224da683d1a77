"""One service, from what is seen to what is to be done: the plan. Pure.

``reconcile`` calls :func:`plan_service` with everything known at one moment and carries the plan
out. Whatever state it begins from, applying the plan and planning again comes to an empty plan.
``spec.replicas`` of a Deployment is never applied while something else owns it: a Deployment is
created with the wanted number, the scaler claims the field, and only then is it left out.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from sluice_api.inference_service import InferenceService
from sluice_api.names import FIELD_MANAGER, KIND, RENDERED
from sluice_api.service_files import parse_service
from sluice_api.spec_errors import SpecError
from sluice_operator.children.autoscaler import render_autoscaler
from sluice_operator.children.comparison import difference
from sluice_operator.children.deployment import render_deployment, template_of
from sluice_operator.children.disruption_budget import render_disruption_budget
from sluice_operator.children.identity import Rendering
from sluice_operator.children.network_policy import render_network_policy
from sluice_operator.children.service import render_service
from sluice_operator.children.service_account import render_service_account
from sluice_operator.children.volumes import OCI_SCHEME
from sluice_operator.diagnosis import Asked, Finding, diagnose, stuck_pods
from sluice_operator.ownership import Addition
from sluice_operator.plan import child_name
from sluice_operator.rollout import GRACE_SECONDS, Revision, Rollout, plan_rollout
from sluice_operator.scaling.victims import deletion_costs
from sluice_operator.state import ChildKey, Learnt, Object, Observed, Platform, Wanted
from sluice_operator.status import (
    AWARE_LOOK_SECONDS,
    Sight,
    Verdict,
    condition_of,
    conditions,
    is_new,
    is_rolling_out,
    is_stalled,
    is_starting,
    make_events,
    make_status,
    make_warnings,
    waits_for_gateways,
)
from sluice_operator.steps import Apply, Delete, Plan, Rank, Scale, Step
from sluice_operator.workers import (
    deployment_of,
    is_behind,
    is_rolling,
    pods_of,
    refused_words,
    template_digest,
)

AUTOSCALER: Final = "HorizontalPodAutoscaler"
_SHARED: Final = (render_service_account, render_network_policy, render_disruption_budget)


def plan_service(
    observed: Observed,
    wanted: Mapping[str, Wanted],
    learnt: Learnt,
    platform: Platform,
    now: datetime,
) -> Plan:
    """Everything that is to be done for one service now.

    Args:
        wanted: number of replicas by revision; where it says nothing, what runs stays.
        now: with its time zone.
    """
    if "deletionTimestamp" in observed.resource["metadata"]:
        return _plan_deleting(observed, now)
    document = {name: part for name, part in observed.resource.items() if name != "status"}
    try:
        service = parse_service(document, "the resource")
    except SpecError as error:
        return _plan_unreadable(observed, error, now)
    rollout = plan_rollout(service, observed, wanted, learnt, platform, now)
    # While nothing is deleted, what is over is still there and told of.
    paused = service.spec.paused
    over = [old for old in rollout.old if old.is_over(now) and not paused]
    rest = tuple(old for old in rollout.old if old not in over or _is_leaving(observed, old))
    steps: tuple[Step, ...] = ()
    if not paused:
        steps = tuple(_Steps(observed, service, rollout, learnt, platform, over).steps())
    rolling, ordered = _rolling(observed, rollout, steps)
    findings = {}
    for revision in rollout.all():
        if revision.name in ordered:
            continue  # whatever is the matter, it is so with what is about to go
        asked = _asked(revision)
        found = diagnose(observed, revision.name, revision.answer_digest, learnt, now, asked)
        if found is None and _lacks_image_volumes(revision, platform):
            found = _NO_IMAGE_VOLUMES
        if found is not None:
            findings[revision.name] = found
    obstacle = _foreign(observed, rollout)
    told = replace(rollout, old=rest)
    sight = Sight(observed, told, wanted, findings, obstacle, rolling, learnt, platform, now)
    before, status = sight.before, make_status(sight)
    stuck, next_look = stuck_pods(observed, learnt, now)
    if is_new(sight) and waits_for_gateways(sight):
        # Whoever waits for longer is told by the fleet.
        next_look = _soonest(next_look, AWARE_LOOK_SECONDS)
    if not paused:
        graced = (old for old in rest if old not in over)
        next_look = _soonest(next_look, *(_rest_of_grace(old, now) for old in graced))
    return Plan(
        status=status,
        steps=steps,
        # Two conditions may say the same.
        events=tuple(
            dict.fromkeys((*make_events(before, status), *make_warnings(service, before, status)))
        ),
        again_after=next_look or None,
        watch_pods=stuck,
        refused=dict(_refused(observed, rollout)),
    )


def _refused(observed: Observed, rollout: Rollout) -> Iterator[tuple[str, tuple[str, str]]]:
    for revision in rollout.running():
        deployment = deployment_of(observed, revision.name)
        if deployment is not None and (words := refused_words(deployment)):
            yield deployment["metadata"]["name"], (template_digest(deployment), words)


class _Steps:
    """The writes of one plan, in their order."""

    def __init__(
        self,
        observed: Observed,
        service: InferenceService,
        rollout: Rollout,
        learnt: Learnt,
        platform: Platform,
        over: list[Revision],
    ) -> None:
        self._observed, self._service, self._rollout = observed, service, rollout
        self._learnt, self._platform = learnt, platform
        self._over = over
        self._uid = str(observed.resource["metadata"]["uid"])
        self._follows_hpa = service.spec.scaling.mode == "hpa" and platform.metrics_api

    def steps(self) -> Iterator[Step]:
        kept = set[ChildKey]()
        applies = list[Step]()
        for rendered in self._rendered():
            key = ChildKey(rendered["kind"], rendered["metadata"]["name"])
            kept.add(key)
            applies += self._bring_about(key, rendered)
        kept |= set(self._kept_of_old())
        obsolete = list(self._obsolete(kept))
        # An autoscaler that has to go must not answer what is set below.
        yield from (step for step in obsolete if step.kind == AUTOSCALER)
        # The first refused write ends a pass, and what is to be made is refused the most easily:
        # by a quota, by a policy. What runs is scaled all the same.
        for revision in self._rollout.running():
            yield from self._scale(revision)
        yield from self._end_pods()
        yield from applies
        yield from (step for step in obsolete if step.kind != AUTOSCALER)

    def _rendered(self) -> Iterator[dict[str, Any]]:
        rollout = self._rollout
        newest = rollout.next or rollout.stable
        shared = self._rendering(newest)
        if shared is not None:
            yield from (render(shared) for render in _SHARED)
        for revision in rollout.running():
            rendering = self._rendering(revision)
            if rendering is None or _lacks_image_volumes(revision, self._platform):
                continue
            yield render_service(rendering)
            yield render_deployment(rendering)
            if self._follows_hpa:
                yield render_autoscaler(rendering)

    def _rendering(self, revision: Revision) -> Rendering | None:
        if revision.service is None:
            return None
        floor = self._service.spec.scaling.min_replicas
        return Rendering(
            service=revision.service,
            uid=self._uid,
            revision=revision.name,
            image=revision.image,
            platform=self._platform,
            floor=floor if revision.role == "stable" else 0,
            template=self._kept_template(revision, revision.service),
        )

    def _kept_template(self, revision: Revision, service: InferenceService) -> Object | None:
        """What its workers go on with: an upgrade of Sluice rolls no model that works."""
        deployment = deployment_of(self._observed, revision.name)
        if deployment is None or not revision.proven or self._platform.upgrade_workers:
            return None
        return template_of(deployment, service)

    def _bring_about(self, key: ChildKey, rendered: dict[str, Any]) -> Iterator[Apply]:
        found = self._observed.children.get(key)
        if found is not None and not self._observed.owns(key):
            return
        is_deployment = key.kind == "Deployment"
        if found is None:
            if is_deployment:
                rendered["spec"]["replicas"] = self._desired(key.name)
            yield Apply(rendered, "created", new=True)
            return
        owners = self._observed.replicas_managers.get(key.name, frozenset())
        drifted = difference(rendered, found)
        added = self._observed.additions.get(key, ())
        handed_over = is_deployment and FIELD_MANAGER in owners and len(owners) > 1
        if not (drifted or added or handed_over):
            return
        repairs = _repairs(drifted, added)
        if key in self._observed.orphans:
            repairs = "nothing owned it any more"
        why = repairs or ("changed" if drifted else "replicas handed over")
        # Without replicas: where we alone own them, the scaler has claimed them before this.
        yield Apply(
            rendered,
            why,
            take_over=bool(added),
            repairs=repairs,
            new_pods=is_deployment and _makes_new_pods(rendered, found, added),
        )

    def _desired(self, deployment: str) -> int:
        name = self._service.metadata.name
        return next(
            revision.desired
            for revision in self._rollout.running()
            if child_name(name, revision.name) == deployment
        )

    def _scale(self, revision: Revision) -> Iterator[Rank | Scale]:
        namespace = self._service.metadata.namespace
        name = child_name(self._service.metadata.name, revision.name)
        deployment = deployment_of(self._observed, revision.name)
        if deployment is None:
            return
        current, desired = int(deployment["spec"].get("replicas", 1)), revision.desired
        if 0 < desired < current:
            pods = pods_of(self._observed, revision.name)
            costs = deletion_costs(pods, self._learnt.workers, current - desired)
            yield from (Rank(namespace, pod, cost) for pod, cost in costs.items())
        owners = self._observed.replicas_managers.get(name, frozenset())
        if owners <= {FIELD_MANAGER}:
            yield Scale(namespace, name, desired, "claimed")
        elif current != desired and self._is_ours_to_write(current, desired):
            yield Scale(namespace, name, desired, f"wanted, was {current}")

    def _end_pods(self) -> Iterator[Scale]:
        """A revision's pods end before its Deployment goes.

        While pods are left that no Deployment controls, Kubernetes cannot tell how many there
        should be, and its disruption budget lets nobody drain a node.
        """
        metadata = self._service.metadata
        for revision in self._over:
            current = revision.counts.ordered
            if current:
                name = child_name(metadata.name, revision.name)
                yield Scale(metadata.namespace, name, 0, f"no longer needed, was {current}")

    def _is_ours_to_write(self, current: int, desired: int) -> bool:
        # The autoscaler neither wakes nor puts to sleep.
        return not self._follows_hpa or self._platform.write_scale or 0 in (current, desired)

    def _kept_of_old(self) -> Iterator[ChildKey]:
        """What stays of revisions whose time has not quite come, and of those nobody can render."""
        name = self._service.metadata.name
        for revision in self._rollout.all():
            over = revision in self._over
            if not over or _is_leaving(self._observed, revision):
                yield ChildKey("Deployment", child_name(name, revision.name))
            if not over:
                yield ChildKey("Service", child_name(name, revision.name))
        if self._follows_hpa:
            for revision in self._rollout.running():
                yield ChildKey(AUTOSCALER, child_name(name, revision.name))

    def _obsolete(self, kept: set[ChildKey]) -> Iterator[Delete]:
        for key, child in self._observed.children.items():
            metadata = child["metadata"]
            if key in kept or not self._observed.owns(key):
                continue
            if "deletionTimestamp" not in metadata:
                yield Delete(
                    child["apiVersion"],
                    key.kind,
                    metadata["namespace"],
                    key.name,
                    metadata["uid"],
                    "no longer needed",
                )


def _is_leaving(observed: Observed, revision: Revision) -> bool:
    """Whether a revision that is over still has pods, or may get some."""
    return bool(revision.counts.ordered) or any(map(_goes, pods_of(observed, revision.name)))


def _goes(pod: Object) -> bool:
    """Whether a pod of a ReplicaSet that is to have none will be gone.

    One that has ended by itself stays, until its ReplicaSet goes.
    """
    ended = (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")
    return not ended or "deletionTimestamp" in pod["metadata"]


def _asked(revision: Revision) -> Asked:
    if revision.service is None:
        return Asked()
    spec = revision.service.spec
    return Asked(
        # Nobody mends a canary in the model that answers beside it.
        field="spec.rollout.canary.model" if revision.role == "canary" else "spec.model",
        uri=spec.model.uri,
        memory_auto=spec.hardware.resources.limits.memory is None,
    )


def _repairs(drifted: str, added: tuple[Addition, ...]) -> str:
    """What somebody else did, in words; empty for nothing."""
    if added:
        return ", ".join(map(str, added))
    # The digest is of what we ask for: when that has changed, so may have any field.
    return f"{drifted} was changed" if drifted and not drifted.endswith(RENDERED) else ""


def _makes_new_pods(wanted: Object, found: Object, added: tuple[Addition, ...]) -> bool:
    """Whether applying a Deployment changes its template; what is dropped shows in the digest."""
    digests = [(one["metadata"].get("annotations") or {}).get(RENDERED) for one in (wanted, found)]
    return (
        digests[0] != digests[1]
        or any(addition.path.startswith("spec.template") for addition in added)
        or bool(difference(wanted["spec"]["template"], found["spec"]["template"]))
    )


def _rolling(
    observed: Observed, rollout: Rollout, steps: Iterable[Step]
) -> tuple[frozenset[str], frozenset[str]]:
    """Revisions that change inside their Deployment, and those of them that have not begun to."""
    before = observed.resource.get("status") or {}
    applies = [step for step in steps if isinstance(step, Apply) and step.new_pods]
    changed = {step.object["metadata"]["name"] for step in applies}
    rolling, ordered = set[str](), set[str]()
    for revision in rollout.running():
        deployment = deployment_of(observed, revision.name)
        if deployment is None:
            continue
        # Kubernetes is behind each new number of replicas, too: what was at rest stays so.
        behind = is_behind(deployment)
        # What never ran is called starting where others are called rolling out.
        under_way = is_rolling_out(before) or (not revision.proven and is_starting(before))
        if deployment["metadata"]["name"] in changed or (behind and under_way):
            ordered.add(revision.name)
        elif is_rolling(deployment) or (behind and is_stalled(before)):
            rolling.add(revision.name)
    return frozenset(rolling | ordered), frozenset(ordered)


# Obstacles ---------------------------------------------------------------------------------------

_NO_IMAGE_VOLUMES: Final = Finding(
    "VolumeFailed",
    "This cluster cannot mount an image as a volume: that needs Kubernetes 1.35 and a container"
    " runtime that can (containerd 2.1). Use hf:// or pvc:// in spec.model.uri.",
)


def _lacks_image_volumes(revision: Revision, platform: Platform) -> bool:
    service = revision.service
    return (
        service is not None
        and service.spec.model.uri.startswith(OCI_SCHEME)
        and not platform.image_volumes
    )


def _foreign(observed: Observed, rollout: Rollout) -> Finding | None:
    """An object that bears one of our names and is not ours."""
    name = observed.key.name
    going = None
    ours = {child_name(name, revision.name) for revision in rollout.running()}
    ours.add(f"{name}-workers")
    for key, child in sorted(observed.children.items()):
        if key.name not in ours or observed.owns(key):
            continue
        owners = child["metadata"].get("ownerReferences") or ()
        if (KIND, name) in [(owner.get("kind"), owner.get("name")) for owner in owners]:
            told = f"{key.kind} {key.name} belongs to a former {name} and is about to go."
            going = going or Finding("Starting", told)
            continue
        told = (
            f"{key.kind} {key.name} exists already and is not Sluice's. Delete it, or rename"
            " the service."
        )
        return Finding("FieldConflict", told)
    return going


def _rest_of_grace(revision: Revision, now: datetime) -> float:
    assert revision.retired_at is not None
    over = revision.retired_at + timedelta(seconds=GRACE_SECONDS)
    return max(0.1, (over - now).total_seconds())


def _soonest(*seconds: float) -> float:
    """The least of these that is not zero; zero for none."""
    return min((each for each in seconds if each), default=0.0)


# Services that cannot be planned -----------------------------------------------------------------


def _plan_deleting(observed: Observed, now: datetime) -> Plan:
    """Kubernetes collects the children; only what is told changes."""
    told = "The service is being deleted; its objects follow."
    return _only_told(observed, now, "Deleting", told, stalled=False)


def _plan_unreadable(observed: Observed, error: SpecError, now: datetime) -> Plan:
    """A spec that another version accepted. What runs goes on."""
    told = "; ".join(f"{problem.field}: {problem.message}" for problem in error.problems)
    return _only_told(observed, now, "InvalidSpec", told[:1024], stalled=True)


def _only_told(
    observed: Observed, now: datetime, reason: str, message: str, *, stalled: bool
) -> Plan:
    before = observed.resource.get("status") or {}
    generation = int(observed.resource["metadata"].get("generation", 0))
    answers = stalled and condition_of(before, "Ready").get("status") == "True"
    verdicts = (
        Verdict("Ready", answers, reason, message),
        Verdict("Reconciling", not stalled, reason, message),
        Verdict("Stalled", stalled, reason, message),
    )
    told = conditions(before, verdicts, generation, now)
    types = {entry["type"] for entry in told}
    others = [entry for entry in before.get("conditions") or () if entry["type"] not in types]
    status = {**before, "observedGeneration": generation, "conditions": told + others}
    status.setdefault("scaling", {"desired": 0, "summary": "", "rule": "", "reason": ""})
    status.setdefault("revision", "")
    return Plan(status=status, events=tuple(make_events(before, status)))
