"""The HorizontalPodAutoscaler of one revision: follows the number that the operator serves.

The operator sets the same number itself the moment it changes; the autoscaler is the visible guard
rail and the way it goes when the leader is gone. Its metric is the wanted number itself, so the
target is 1 and nothing is to be smoothed.
"""

from typing import Any

from sluice_api import names
from sluice_operator.children.identity import Rendering, of_revision

_PERIOD_SECONDS = 15


def render_autoscaler(rendering: Rendering) -> dict[str, Any]:
    service = rendering.service
    scaling = service.spec.scaling
    anything = {
        "stabilizationWindowSeconds": 0,
        "selectPolicy": "Max",
        "policies": [
            {"type": "Pods", "value": scaling.max_replicas, "periodSeconds": _PERIOD_SECONDS}
        ],
    }
    metric = {
        "type": "Object",
        "object": {
            "describedObject": {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": service.metadata.name,
            },
            "metric": {
                "name": names.METRIC_DESIRED,
                "selector": {"matchLabels": {names.REVISION_LABEL: rendering.revision}},
            },
            "target": {"type": "AverageValue", "averageValue": "1"},
        },
    }
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": rendering.name},
        # At zero it is out of work: waking and putting to sleep is the operator's.
        "minReplicas": max(1, rendering.floor),
        "maxReplicas": scaling.max_replicas,
        "metrics": [metric],
        "behavior": {"scaleUp": anything, "scaleDown": anything},
    }
    return of_revision("autoscaling/v2", "HorizontalPodAutoscaler", rendering, {"spec": spec})
