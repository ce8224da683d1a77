"""Who reaches whom in the installed platform: NetworkPolicies that are enforced, tried by pods."""

import json
from collections.abc import Iterator

import pytest

from tests.support.cluster.cluster import Cluster
from tests.support.published import Published, fixed, stub
from tests.support.release import Release

PROBE = {
    "apiVersion": "v1",
    "kind": "Pod",
    "spec": {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "probe",
                "image": "localhost/busybox:1",
                "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "600"],
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    },
}
GATEWAY_LABELS = {"app.kubernetes.io/name": "sluice", "app.kubernetes.io/component": "gateway"}


class Probe:
    """A pod of ours that tries to connect to others."""

    def __init__(
        self, cluster: Cluster, namespace: str, name: str, labels: dict[str, str] | None = None
    ) -> None:
        self._cluster, self._namespace, self._name = cluster, namespace, name
        metadata = {"name": name, "namespace": namespace, "labels": labels or {}}
        made = json.dumps(PROBE | {"metadata": metadata})
        cluster.kubectl("apply", "-f", "-", stdin=made)
        cluster.kubectl(
            "wait", "pod", name, "-n", namespace, "--for=condition=Ready", "--timeout=120s"
        )

    def reaches(self, address: str, port: int) -> bool:
        """Whether a connection comes about, rather than that its packets are dropped."""
        command = ("nc", "-w", "2", address, str(port))
        tried = self._cluster.kubectl(
            "exec", self._name, "-n", self._namespace, "--", *command, check=False
        )
        assert tried.returncode == 0 or "timed out" in tried.stderr, tried
        return tried.returncode == 0

    def delete(self) -> None:
        self._cluster.kubectl("delete", "pod", self._name, "-n", self._namespace)


@pytest.fixture
def worker(platform: Release, cluster: Cluster, restricted: str) -> str:
    """The address of a ready worker."""
    service = Published(cluster, restricted)
    service.apply(stub(scaling=fixed(1)))
    service.until_ready(1)
    (pod,) = service.workers(ready=True).values()
    return str(pod["status"]["podIP"])


@pytest.fixture
def gateway(platform: Release) -> str:
    """The address of a gateway pod."""
    return platform.addresses("gateway")[0]


@pytest.fixture
def stranger(worker: str, cluster: Cluster, restricted: str) -> Probe:
    """An unlabelled pod beside the worker."""
    return Probe(cluster, restricted, "stranger")


@pytest.fixture
def pretender(worker: str, cluster: Cluster, restricted: str) -> Probe:
    """A pod with the gateways' labels in another namespace than theirs."""
    return Probe(cluster, restricted, "pretender", GATEWAY_LABELS)


@pytest.fixture
def insider(platform: Release, cluster: Cluster) -> Iterator[Probe]:
    """A pod with the gateways' labels where they are."""
    probe = Probe(cluster, platform.namespace, "insider", GATEWAY_LABELS)
    yield probe
    probe.delete()


def test_only_gateways_reach_workers_and_only_operators_their_demand(
    cluster: Cluster, worker: str, gateway: str, stranger: Probe, pretender: Probe
) -> None:
    cluster.until(lambda: stranger.reaches(gateway, 8080), "applications are let in")
    for probe in (stranger, pretender):
        assert not probe.reaches(gateway, 8081)
        # The worker is new: whoever enforces policies learns of it a moment after its address.
        for port in (8080, 8081):
            cluster.until(
                lambda probe=probe, port=port: not probe.reaches(worker, port),  # type: ignore[misc]
                f"{port} of the worker is closed",
            )


def test_a_gateways_labels_in_its_namespace_open_the_way(
    cluster: Cluster, worker: str, insider: Probe
) -> None:
    # The control: what is refused to the others is not closed to everybody.
    cluster.until(lambda: insider.reaches(worker, 8080), "the policies know the new pod")
    cluster.until(lambda: insider.reaches(worker, 8081), "its other port too")
