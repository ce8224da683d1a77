"""What a plan consists of: the writes that bring one service nearer to what is wanted.

``planning`` makes them, ``reconcile`` hands them to ``cluster`` in the order of the plan. Each is
idempotent: a reconcile that dies anywhere is simply done again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sluice_api.names import FIELD_MANAGER
from sluice_operator.state import Object


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply, by force.

    Attributes:
        why: for the log: created, drifted, changed.
        new_pods: a Deployment's template is otherwise now, so that its pods are replaced.
        new: the plan knows of no such object. If there is one after all, it has none of our labels
            and is left alone, unless it is controlled by the same service or was left by one.
        take_over: others have set something in its ``spec``, which is to go.
        repairs: what somebody did to it, such as ``spec.paused was set by kubectl-rollout``; empty
            where it is the service or the platform that has changed.
    """

    object: Object
    why: str
    manager: str = FIELD_MANAGER
    new: bool = False
    take_over: bool = False
    repairs: str = ""
    new_pods: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """Own and set ``spec.replicas`` of a Deployment, as the scaler."""

    namespace: str
    deployment: str
    replicas: int
    why: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete an object if it still is the one that was seen."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    why: str


@dataclass(frozen=True, slots=True)
class Rank:
    """Tell the ReplicaSet which pods to end first: the lowest cost goes."""

    namespace: str
    pod: str
    cost: int


Step = Apply | Scale | Delete | Rank


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes Event on the InferenceService. ``type`` is ``Normal`` or ``Warning``."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is to be done for one service now.

    Attributes:
        status: the whole status as it should stand; written first, and only when it differs.
        steps: in order.
        events: what people should be told; only changes.
        again_after: seconds after which to look again without an event; None for not.
        watch_pods: names of pods whose Events must be asked for, because their state alone does
            not say what they wait for.
        refused: Deployments that say that pods of theirs are refused, with the digest of their
            template and these words: Events must be asked for the newest.
    """

    status: dict[str, Any]
    steps: tuple[Step, ...] = ()
    events: tuple[Event, ...] = ()
    again_after: float | None = None
    watch_pods: frozenset[str] = field(default_factory=frozenset)
    refused: Mapping[str, tuple[str, str]] = field(default_factory=dict)
