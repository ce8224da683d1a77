"""What the operator knows of one service at one moment, as plain values.

``store`` makes an :class:`Observed` from what the watches brought, ``fleet`` a
:class:`Wanted` and a :class:`Learnt` from what the gateways told; ``planning`` turns them into
steps. Nothing here asks anybody anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sluice_api import wire
from sluice_api.tasks import Task
from sluice_operator.ownership import Addition

Object = Mapping[str, Any]
"""A Kubernetes object as the API server writes it, JSON decoded, without ``managedFields``."""


class Key(NamedTuple):
    """Names one InferenceService."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ChildKey(NamedTuple):
    """Names one object that belongs to a service, in the service's namespace."""

    kind: str
    name: str


class Refusal(NamedTuple):
    """Pods of a Deployment that could not be made, as an Event told last.

    Attributes:
        template: of the Deployment when it was asked about, see ``workers.template_digest``.
        replica_set: whose pods they are.
    """

    template: str
    replica_set: str
    message: str


@dataclass(frozen=True, slots=True)
class Observed:
    """One service and everything that belongs to it, from the watches' caches.

    Attributes:
        resource: the InferenceService.
        children: objects labelled as the service's, by kind and name, whoever controls them.
        replicas_managers: Deployment's name → the field managers that own ``spec.replicas``.
        additions: what others have set in the ``spec`` of a child.
        orphans: children that we have applied and nothing controls any more.
        pods: the workers' pods.
        pod_events: pod's name → newest warning events of it (``reason``, ``message``); asked for
            only while a pod is stuck, so it is mostly empty.
        refusals: Deployment's name → what is known of its pods that were refused; asked for only
            while it says that some are.
        lost_nodes: names of nodes of these pods whose kubelet has fallen silent.
    """

    resource: Object
    children: Mapping[ChildKey, Object] = field(default_factory=dict)
    replicas_managers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    additions: Mapping[ChildKey, tuple[Addition, ...]] = field(default_factory=dict)
    orphans: frozenset[ChildKey] = frozenset()
    pods: tuple[Object, ...] = ()
    pod_events: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    lost_nodes: frozenset[str] = frozenset()

    @property
    def key(self) -> Key:
        metadata = self.resource["metadata"]
        return Key(metadata["namespace"], metadata["name"])

    def owns(self, key: ChildKey) -> bool:
        """Whether there is such a child, and it is the service's: controlled, or to be adopted."""
        child = self.children.get(key)
        if child is None:
            return False
        uid = str(self.resource["metadata"]["uid"])
        return key in self.orphans or is_controlled_by(child, uid)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What scaling says of one revision: a number, the rule that set it, a line for people."""

    desired: int
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Learnt:
    """What the gateways told about one service's workers.

    Attributes:
        answer_digests: revision → digest of what its workers have loaded.
        tasks: revision → what they can be asked to do.
        workers: by IP address; requests in flight are summed over the gateways.
        week: when they were asked, as ``scaling/season.py`` writes it; empty for nothing yet.
        aware: so many gateways have spoken of the service, as of the revision that answers.
        unaware: so many of those that are heard have not; while none is heard, of those that
            should be.
        unknown: for a while now gateways that take requests are heard, and none has.
    """

    answer_digests: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, tuple[Task, ...]] = field(default_factory=dict)
    workers: Mapping[str, wire.WorkerSeen] = field(default_factory=dict)
    week: str = ""
    aware: int = 0
    unaware: int = 0
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Platform:
    """What holds for all services: said by the chart, found out at the API server.

    Attributes:
        namespace: where gateway and operator run.
        gateway_url: where applications reach the gateway from inside the cluster.
        gateway_labels: of the gateway's pods; only they may reach workers.
        worker_image, worker_image_gpu: of new revisions, by device.
        pull_policy, pull_secrets: of new revisions' workers.
        metrics_api: whether HPAs can read our metric now: it is switched on, registered as ours
            and answers. Otherwise services with mode ``hpa`` are scaled as if ``direct``.
        metrics_api_note: why not; for the ScalingActive condition.
        deaf: why no gateway can be heard, so that no number follows demand; empty when one is.
        upgrade_workers: move revisions to the current image and pods without a change of spec.
        image_volumes: whether the cluster can mount an image as a volume.
        write_scale: whether the leader writes ``/scale`` itself beside the HPA; off in one test.
    """

    namespace: str
    gateway_url: str
    gateway_labels: Mapping[str, str]
    worker_image: str
    worker_image_gpu: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    metrics_api: bool = True
    metrics_api_note: str = ""
    deaf: str = ""
    upgrade_workers: bool = False
    image_volumes: bool = False
    write_scale: bool = True


def is_controlled_by(item: Object, uid: str) -> bool:
    """Whether the resource with ``uid`` is the controller of ``item``."""
    owners = item["metadata"].get("ownerReferences") or ()
    return any(owner.get("controller") and owner.get("uid") == uid for owner in owners)
