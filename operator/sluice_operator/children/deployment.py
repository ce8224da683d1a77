"""The Deployment of one revision: how its workers replace one another.

A change that is no new revision (batching, resources, another worker image, the annotation that
``sluice restart`` writes) rolls inside: new workers are ready before old ones go. ``spec.replicas``
is left out here; see ``planning``.

What only the platform has changed (another release of Sluice, its settings) must not roll models:
the template stands beside the Deployment's spec in an annotation, with a digest of what the owner
asked for, and is taken from there while that stays the same.
"""

from typing import Any, Final

import msgspec

from sluice_api.digests import canonical_json, revision_digest
from sluice_api.inference_service import InferenceService
from sluice_api.names import RESTARTED, TEMPLATE
from sluice_api.service_status import DEFINING
from sluice_operator.children.identity import Rendering, of_revision, revision_labels
from sluice_operator.children.pod import render_pod
from sluice_operator.state import Object

PROGRESS_DEADLINE_SECONDS: Final = 600
"""After so long without a worker becoming ready the Deployment says so; nothing is stopped."""


def render_deployment(rendering: Rendering) -> dict[str, Any]:
    labels = revision_labels(rendering.service.metadata.name, rendering.revision)
    metadata: dict[str, Any] = {"labels": labels}
    if restarted := rendering.service.metadata.annotations.get(RESTARTED):
        metadata["annotations"] = {RESTARTED: restarted}
    made = {"metadata": metadata, "spec": render_pod(rendering)}
    template = rendering.template or made
    spec = {
        "selector": {"matchLabels": labels},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0},
        },
        "revisionHistoryLimit": 1,
        "progressDeadlineSeconds": PROGRESS_DEADLINE_SECONDS,
        "template": template,
    }
    deployment = of_revision("apps/v1", "Deployment", rendering, {"spec": spec})
    kept = {"for": _asked(rendering.service), "template": template}
    deployment["metadata"]["annotations"][TEMPLATE] = canonical_json(kept).decode()
    return deployment


def template_of(deployment: Object, service: InferenceService) -> Object | None:
    """The template that was made for ``service`` as it is; None when there is none."""
    text = (deployment["metadata"].get("annotations") or {}).get(TEMPLATE, "")
    try:
        kept = msgspec.json.decode(text, type=_Kept)
    except msgspec.MsgspecError:
        return None
    return kept.template if kept.asked == _asked(service) else None


class _Kept(msgspec.Struct):
    """The annotation's content."""

    asked: str = msgspec.field(name="for")
    template: dict[str, Any]


def _asked(service: InferenceService) -> str:
    """A digest of everything of a resource that its owner's workers are made from."""
    spec = service.spec
    parts = {part: getattr(spec, part).to_short_dict() for part in DEFINING}
    return revision_digest(parts | {"restarted": service.metadata.annotations.get(RESTARTED)})
