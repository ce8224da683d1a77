"""The PodDisruptionBudget of a service's workers: a drain takes them one at a time.

``maxUnavailable: 1`` and not ``minAvailable: 1``, which would block the drain of a node with a
single replica for ever: its request is rather held by the gateway until the replacement is ready.
Workers that are not ready stand in nobody's way, and a sleeping service has nothing to guard.
"""

from typing import Any

from sluice_operator.children.identity import Rendering, of_service, service_labels


def render_disruption_budget(rendering: Rendering) -> dict[str, Any]:
    spec = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": service_labels(rendering.service.metadata.name)},
    }
    return of_service("policy/v1", "PodDisruptionBudget", rendering, {"spec": spec})
