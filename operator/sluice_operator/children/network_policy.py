"""The NetworkPolicy of a service's workers: only gateways reach them.

Workers may call out: they download models. The kubelet's probes come from the node, which network
plugins let through.
"""

from typing import Any

from sluice_api import names
from sluice_operator.children.identity import Rendering, of_service, service_labels

_NAMESPACE_NAME = "kubernetes.io/metadata.name"


def render_network_policy(rendering: Rendering) -> dict[str, Any]:
    platform = rendering.platform
    gateways = {
        "namespaceSelector": {"matchLabels": {_NAMESPACE_NAME: platform.namespace}},
        "podSelector": {"matchLabels": dict(platform.gateway_labels)},
    }
    ports = [
        {"port": names.APP_PORT, "protocol": "TCP"},
        {"port": names.ADMIN_PORT, "protocol": "TCP"},
    ]
    spec = {
        "podSelector": {"matchLabels": service_labels(rendering.service.metadata.name)},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [gateways], "ports": ports}],
    }
    return of_service("networking.k8s.io/v1", "NetworkPolicy", rendering, {"spec": spec})
