"""Which revisions of a service there are, and what each of them is for. Pure.

``planning`` begins here. A new revision starts beside the one that answers and takes over when
enough of it is ready; the old one stays until the gateways have turned to the new. A canary is on
trial beside both. What is remembered between two looks stands in ``status.revisions``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

from sluice_api.inference_service import InferenceService, Spec, canary_of, revision_of
from sluice_api.names import REVISION_LABEL
from sluice_api.service_status import DEFINING
from sluice_operator.scaling.recommend import WorkerCounts
from sluice_operator.state import Learnt, Observed, Platform, Wanted
from sluice_operator.workers import (
    PodState,
    deployment_of,
    pod_state,
    pods_of,
    worker_counts,
)

GRACE_SECONDS: Final = 10.0
"""How long a revision that has answered stays whole after another has taken over."""

Role = Literal["stable", "next", "canary", "old"]
FIXED_MODES: Final = frozenset({"signal", "off"})
"""Modes in which exactly ``minReplicas`` run."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision that there is or shall be.

    Attributes:
        service: the resource as this revision has it; None when nobody knows any more.
        image: of its workers.
        desired: replicas it should have.
        proven: one of its workers was ready once.
        retired_at: when it ceased to answer.
    """

    name: str
    role: Role
    service: InferenceService | None
    image: str
    counts: WorkerCounts
    desired: int = 0
    proven: bool = False
    answer_digest: str = ""
    tasks: tuple[str, ...] = ()
    retired_at: datetime | None = None

    def is_over(self, now: datetime) -> bool:
        """Whether nothing of it is needed any more."""
        if self.role != "old" or self.retired_at is None:
            return False
        age = (now - self.retired_at).total_seconds()
        # What was never ready was never asked; clocks of two leaders may differ a little.
        return not self.proven or not -GRACE_SECONDS < age < GRACE_SECONDS


@dataclass(frozen=True, slots=True)
class Rollout:
    """All revisions of a service.

    Attributes:
        switched: the stable one has just taken over from another.
    """

    stable: Revision
    next: Revision | None = None
    canary: Revision | None = None
    old: tuple[Revision, ...] = ()
    switched: bool = False

    def running(self) -> Iterator[Revision]:
        """Those that are to be kept up, the stable one first."""
        yield self.stable
        if self.next:
            yield self.next
        if self.canary:
            yield self.canary

    def all(self) -> tuple[Revision, ...]:
        return (*self.running(), *self.old)


class _Records:
    """What was known before, and what can be seen, by revision."""

    def __init__(
        self,
        service: InferenceService,
        observed: Observed,
        wanted: Mapping[str, Wanted],
        learnt: Learnt,
        platform: Platform,
    ) -> None:
        self.service, self.observed = service, observed
        self.wanted, self.learnt, self.platform = wanted, learnt, platform
        status = observed.resource.get("status") or {}
        self.stable = str(status.get("revision") or "")
        self.entries: dict[str, Mapping[str, Any]] = {
            str(entry["name"]): entry for entry in status.get("revisions") or ()
        }

    def names(self) -> Iterator[str]:
        """Every revision that was known, or that still has a Deployment."""
        yield from self.entries
        for key, child in self.observed.children.items():
            name = (child["metadata"].get("labels") or {}).get(REVISION_LABEL)
            if key.kind != "Deployment" or not name or name in self.entries:
                continue
            if self.observed.owns(key):
                yield name

    def revision(self, name: str, role: Role, service: InferenceService | None) -> Revision:
        entry = self.entries.get(name, {})
        counts = worker_counts(self.observed, name)
        learnt = self.learnt
        made = Revision(
            name=name,
            role=role,
            service=service,
            image="",
            counts=counts,
            proven=bool(entry.get("proven")) or counts.ready > 0,
            answer_digest=self._digest(name, str(entry.get("answerDigest") or "")),
            tasks=learnt.tasks.get(name) or tuple(entry.get("tasks") or ()),
        )
        return replace(made, image=self._image(made, entry), desired=self._desired(made, entry))

    def old(self, name: str, now: datetime) -> Revision:
        since = _time(self.entries.get(name, {}).get("retiredAt"))
        return replace(self.revision(name, "old", None), retired_at=since or now)

    def remembered(self, name: str) -> InferenceService | None:
        """The resource as a revision has it that the spec does not have any more."""
        definition = self.entries.get(name, {}).get("definition") or {}
        spec = self.service.spec
        kept = {
            part: type(getattr(spec, part)).model_validate(definition.get(part, {}))
            for part in DEFINING
            if part != "model" or definition.get("model")
        }
        remembered = self.service.model_copy(update={"spec": spec.model_copy(update=kept)})
        return remembered if revision_of(remembered) == name else None

    def _digest(self, name: str, recorded: str) -> str:
        """What the revision is held to have loaded: the first word counts while it is true.

        A worker with another digest gets no requests. But a source that is not pinned may have
        changed while the service slept: then no worker has the old content any more.
        """
        if not recorded:
            return self.learnt.answer_digests.get(name, "")
        told = []
        for pod in pods_of(self.observed, name):
            if pod_state(pod, self.observed.lost_nodes) is not PodState.GONE:
                seen = self.learnt.workers.get((pod.get("status") or {}).get("podIP", ""))
                told.append(seen.answer_digest if seen else "")
        if not told or recorded in told or "" in told:
            return recorded
        return max(sorted(set(told)), key=told.count)

    def _image(self, revision: Revision, entry: Mapping[str, Any]) -> str:
        service = revision.service
        recorded = str(entry.get("image") or "")
        if service is None:
            return recorded
        if service.spec.engine.image:
            return service.spec.engine.image
        platform = self.platform
        current = (
            platform.worker_image_gpu
            if service.spec.hardware.device == "gpu"
            else platform.worker_image
        )
        # An upgrade of Sluice rolls no model; but what never worked has nothing to lose.
        keep = recorded and revision.proven and not platform.upgrade_workers
        return recorded if keep else current

    def _desired(self, revision: Revision, entry: Mapping[str, Any]) -> int:
        if revision.name in self.wanted:
            return self.wanted[revision.name].desired
        # Nothing was decided: what is there stays.
        if deployment_of(self.observed, revision.name) is not None:
            return revision.counts.ordered
        if "desiredReplicas" in entry:
            return int(entry["desiredReplicas"])
        return first_replicas(self.service.spec)


def first_replicas(spec: Spec) -> int:
    """Replicas with which a revision proves itself before anybody asks."""
    scaling = spec.scaling
    if scaling.mode in FIXED_MODES:
        return scaling.min_replicas
    return max(scaling.min_replicas, scaling.initial_replicas)


def plan_rollout(
    service: InferenceService,
    observed: Observed,
    wanted: Mapping[str, Wanted],
    learnt: Learnt,
    platform: Platform,
    now: datetime,
) -> Rollout:
    """What each revision is for from now on."""
    records = _Records(service, observed, wanted, learnt, platform)
    target = revision_of(service)
    before = records.stable or target
    coming = records.revision(target, "stable", service)
    if before == target or (
        not service.spec.paused
        and _may_switch(records, records.revision(before, "stable", None), coming)
    ):
        stable, following = coming, None
    else:
        stable = records.revision(before, "stable", records.remembered(before))
        following = replace(coming, role="next")
    trial = canary_of(service)
    canary = None
    if trial is not None and revision_of(trial) != stable.name:
        canary = records.revision(revision_of(trial), "canary", trial)
    running = {revision.name for revision in (stable, following, canary) if revision}
    old = tuple(records.old(name, now) for name in records.names() if name not in running)
    return Rollout(stable, following, canary, old, switched=stable.name != before)


def _may_switch(records: _Records, stable: Revision, coming: Revision) -> bool:
    """Whether ``coming`` can answer what ``stable`` answers now."""
    carried = min(stable.desired, stable.counts.ready)
    if not carried and not stable.proven:
        return True  # nothing was ever answered: there is nothing to lose
    spec = records.service.spec
    needed = first_replicas(spec)
    if spec.scaling.mode not in FIXED_MODES:
        needed = min(max(needed, carried), spec.scaling.max_replicas)
    counts = coming.counts
    if counts.ready >= needed:
        return True
    # Where there is no room for both, the old ones must go for the rest of the new ones to come.
    stuck = counts.unschedulable > 0 and not counts.starting and not counts.failed
    return counts.ready > 0 and stuck


def _time(text: object) -> datetime | None:
    if not isinstance(text, str) or not text:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return None
