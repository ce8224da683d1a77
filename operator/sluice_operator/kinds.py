"""The kinds of objects the operator deals with, and where the API server keeps them.

``cluster`` builds paths from this table, ``handlers`` and ``audit`` follow those kinds that are
to be watched.
"""

from typing import Final, NamedTuple

from sluice_api import names


class Kind(NamedTuple):
    """One kind: ``group`` is empty for the core ones."""

    group: str
    version: str
    plural: str
    name: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        """The URL path of an object, or of the list when ``name`` is empty."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if namespace else ""
        return "/".join(
            part for part in (f"{root}{scope}/{self.plural}", name, subresource) if part
        )


class Watched(NamedTuple):
    """A kind that is watched in the whole cluster, and which of its objects."""

    kind: Kind
    label_selector: str = ""
    field_selector: str = ""


INFERENCE_SERVICE: Final = Kind(names.GROUP, names.VERSION, names.PLURAL, names.KIND)
DEPLOYMENT: Final = Kind("apps", "v1", "deployments", "Deployment")
SERVICE: Final = Kind("", "v1", "services", "Service")
SERVICE_ACCOUNT: Final = Kind("", "v1", "serviceaccounts", "ServiceAccount")
POD: Final = Kind("", "v1", "pods", "Pod")
NODE: Final = Kind("", "v1", "nodes", "Node", namespaced=False)
EVENT: Final = Kind("", "v1", "events", "Event")
SECRET: Final = Kind("", "v1", "secrets", "Secret")
CONFIG_MAP: Final = Kind("", "v1", "configmaps", "ConfigMap")
HORIZONTAL_POD_AUTOSCALER: Final = Kind(
    "autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"
)
POD_DISRUPTION_BUDGET: Final = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
NETWORK_POLICY: Final = Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
ENDPOINT_SLICE: Final = Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
LEASE: Final = Kind("coordination.k8s.io", "v1", "leases", "Lease")
API_SERVICE: Final = Kind(
    "apiregistration.k8s.io", "v1", "apiservices", "APIService", namespaced=False
)

CHILDREN: Final = (
    DEPLOYMENT,
    SERVICE,
    HORIZONTAL_POD_AUTOSCALER,
    POD_DISRUPTION_BUDGET,
    NETWORK_POLICY,
    SERVICE_ACCOUNT,
)
"""What is made for a service, besides the pods that its Deployments make."""

_BY_NAME: Final = {
    (kind.api_version, kind.name): kind
    for kind in (INFERENCE_SERVICE, *CHILDREN, POD, LEASE, EVENT)
}


def kind_of(api_version: str, name: str) -> Kind:
    """The kind that an object says it is of. Raises KeyError for one that we never write."""
    return _BY_NAME[api_version, name]


def watched(gateway_namespace: str, gateway_service: str) -> tuple[Watched, ...]:
    """Everything the operator follows; gateways are found by their admin Service's slices."""
    ours = f"{names.MANAGED_BY}={names.MANAGER}"
    return (
        Watched(INFERENCE_SERVICE),
        *(Watched(kind, ours) for kind in (*CHILDREN, POD)),
        Watched(
            ENDPOINT_SLICE,
            f"kubernetes.io/service-name={gateway_service}",
            f"metadata.namespace={gateway_namespace}",
        ),
    )
