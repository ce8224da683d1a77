"""The Service of one revision: where the gateway finds its workers, ready or not.

It has no address of its own. The gateway reads the EndpointSlices, which carry these labels, and
probes the workers itself; nobody calls the Service by name.
"""

from typing import Any

from sluice_api import names
from sluice_operator.children.identity import Rendering, of_revision, revision_labels


def render_service(rendering: Rendering) -> dict[str, Any]:
    service = rendering.service.metadata.name
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": revision_labels(service, rendering.revision),
        "ports": [
            {"name": "http", "port": names.APP_PORT, "targetPort": "http", "protocol": "TCP"},
            {"name": "admin", "port": names.ADMIN_PORT, "targetPort": "admin", "protocol": "TCP"},
        ],
    }
    return of_revision("v1", "Service", rendering, {"spec": spec})
