"""The Deployment of one revision: how its workers replace one another.

A change that is no new revision (batching, resources, another worker image, the annotation that
``sluice restart`` writes) rolls inside: new workers are ready before old ones go. ``spec.replicas``
is left out here; see ``planning``.
"""

from typing import Any, Final

from sluice_api.names import RESTARTED
from sluice_operator.children.identity import Rendering, of_revision, revision_labels
from sluice_operator.children.pod import render_pod

PROGRESS_DEADLINE_SECONDS: Final = 600
"""After so long without a worker becoming ready the Deployment says so; nothing is stopped."""


def render_deployment(rendering: Rendering) -> dict[str, Any]:
    labels = revision_labels(rendering.service.metadata.name, rendering.revision)
    metadata: dict[str, Any] = {"labels": labels}
    if restarted := rendering.service.metadata.annotations.get(RESTARTED):
        metadata["annotations"] = {RESTARTED: restarted}
    spec = {
        "selector": {"matchLabels": labels},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0},
        },
        "revisionHistoryLimit": 1,
        "progressDeadlineSeconds": PROGRESS_DEADLINE_SECONDS,
        "template": {"metadata": metadata, "spec": render_pod(rendering)},
    }
    return of_revision("apps/v1", "Deployment", rendering, {"spec": spec})
