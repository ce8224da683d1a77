"""The metrics API through a real API server: discovery, values, who may ask, who else may serve."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sluice_api import names
from tests.support.cluster.cluster import Cluster
from tests.support.metrics_replicas import values
from tests.support.published import Published, stub
from tests.support.release import Release

pytestmark = pytest.mark.usefixtures("platform")

ROOT = f"/apis/{names.METRICS_GROUP}"
FOREIGN = f"v1beta1.{names.METRICS_GROUP}"


def raw(cluster: Cluster, path: str) -> dict[str, Any]:
    found: dict[str, Any] = cluster.read(path)
    return found


def api_service(cluster: Cluster, name: str) -> dict[str, Any]:
    shown = cluster.kubectl("get", "apiservice", name, "-o", "json").stdout
    found: dict[str, Any] = json.loads(shown)
    return found


@pytest.fixture
def service(cluster: Cluster, namespace: str) -> Published:
    service = Published(cluster, namespace)
    service.apply(stub(scaling={"minReplicas": 0, "initialReplicas": 0, "maxReplicas": 2}))
    service.until(lambda: service.condition().get("reason") == "Asleep", "it is known")
    return service


def test_it_is_registered_and_listed(cluster: Cluster) -> None:
    name = f"v1beta2.{names.METRICS_GROUP}"
    cluster.kubectl("wait", "apiservice", name, "--for=condition=Available", "--timeout=120s")
    registered = api_service(cluster, name)
    assert registered["spec"]["caBundle"]
    assert not registered["spec"].get("insecureSkipTLSVerify")
    listed = [entry["name"] for entry in raw(cluster, f"{ROOT}/v1beta2")["resources"]]
    assert "inferenceservices.sluice.dev/desired_replicas" in listed
    assert raw(cluster, ROOT)["preferredVersion"]["version"] == "v1beta2"


def test_a_value_is_what_stands_in_status(
    cluster: Cluster, platform: Release, service: Published
) -> None:
    path = (
        f"{ROOT}/v1beta2/namespaces/{service.namespace}/inferenceservices.sluice.dev/model"
        f"/{names.METRIC_DESIRED}?metricLabelSelector={names.REVISION_LABEL}%3D"
    )
    service.apply(stub(scaling={"minReplicas": 1, "initialReplicas": 1, "maxReplicas": 2}))
    service.until(
        lambda: values(platform, path + service.revision) == ["1", "1"],
        "every replica of the operator has the number of status",
    )
    assert raw(cluster, path + service.revision)["items"][0]["value"] == "1"
    unknown = cluster.kubectl("get", "--raw", path + "unknown", check=False)
    assert unknown.returncode
    assert "NotFound" in unknown.stderr


def test_nobody_else_may_ask(cluster: Cluster, platform: Release) -> None:
    """Neither a user without the right, through the API server, nor anybody around it."""
    path = f"{ROOT}/v1beta2/namespaces/default/inferenceservices.sluice.dev/x/desired_replicas"
    stranger = cluster.kubectl("get", "--raw", path, "--as", "stranger", check=False)
    assert "Forbidden" in stranger.stderr
    url = f"https://sluice-metrics-api.{platform.namespace}.svc.cluster.local{path}"
    command = ["curl", "-sk", "--max-time", "60", "-H", "X-Remote-User: system:admin", url]
    status = json.loads(cluster.exec(command).stdout)
    assert (status["kind"], status["code"]) == ("Status", 401)


def test_its_certificate_is_the_one_that_is_registered(cluster: Cluster, platform: Release) -> None:
    """What the API server trusts is what the Secret holds, and it is one secret of one name."""
    shown = cluster.kubectl(
        "get", "secret", "-n", platform.namespace, "sluice-metrics-api-tls", "-o", "json"
    ).stdout
    data = json.loads(shown)["data"]
    registered = api_service(cluster, f"v1beta2.{names.METRICS_GROUP}")
    assert registered["spec"]["caBundle"] == data["ca.crt"]


@pytest.fixture
def another_server(cluster: Cluster, namespace: str) -> Iterator[dict[str, Any]]:
    """Somebody who serves another version of the group, as an adapter of Prometheus would."""
    wanted = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": FOREIGN},
        "spec": {
            "group": names.METRICS_GROUP,
            "version": "v1beta1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {"name": "adapter", "namespace": namespace, "port": 443},
        },
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(wanted))
    try:
        yield wanted["spec"]
    finally:
        # First of all: while its server is away, no namespace can be deleted.
        cluster.kubectl("delete", "apiservice", FOREIGN, "--ignore-not-found")


def test_anothers_registration_is_left_alone(
    cluster: Cluster, service: Published, another_server: dict[str, Any]
) -> None:
    def scaling() -> tuple[str, str]:
        condition = service.condition("ScalingActive")
        return condition.get("reason", ""), condition.get("message", "")

    service.until(lambda: scaling()[0] == "ScalingUnavailable", "somebody else is noticed")
    assert f"{service.namespace}/adapter" in scaling()[1]
    service.until(lambda: not service.kubectl("get", "hpa", "-o", "name"), "no HPA is misled")
    assert api_service(cluster, FOREIGN)["spec"] == another_server
    service.apply(stub(scaling={"minReplicas": 1, "initialReplicas": 1, "maxReplicas": 2}))
    service.until(lambda: service.status["readyReplicas"] == 1, "it is scaled all the same")
    cluster.kubectl("delete", "apiservice", FOREIGN)
    service.until(lambda: scaling()[0] != "ScalingUnavailable", "the way is free again")
    service.until(lambda: bool(service.kubectl("get", "hpa", "-o", "name")), "with an HPA")
