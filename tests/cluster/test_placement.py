"""Where real pods run and what they mount: accelerators, volumes, Secrets, drains, drift."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sluice_api import names
from tests.support.cluster.cluster import Cluster
from tests.support.failure_cases import ROOM, STUB, manifest
from tests.support.published import Published
from tests.support.resources import document

DRIFT_SECONDS = 60.0
"""Well within the five minutes after which everything is looked at anyway."""
GPU = "nvidia.com/gpu"

pytestmark = pytest.mark.usefixtures("platform")


def make(cluster: Cluster, namespace: str, name: str, **changes: Any) -> None:
    """A service of the stub engine, small enough for any node."""
    small = {"model__uri": "hf://stub/start100", "engine__image": STUB}
    resource = document(**{**small, "hardware__resources": ROOM, **changes})
    resource["metadata"] = {"name": name}
    cluster.kubectl("apply", "-f", "-", stdin=manifest(namespace, [resource]))


def wait_ready(cluster: Cluster, namespace: str, name: str) -> None:
    for condition in ("Ready", "WorkersAvailable"):
        how = (f"--for=condition={condition}", "--timeout=120s")
        cluster.kubectl("wait", f"inf/{name}", "-n", namespace, *how)


def items(cluster: Cluster, namespace: str, kind: str) -> list[dict[str, Any]]:
    found = cluster.kubectl("get", kind, "-n", namespace, "-o", "json").stdout
    listed: list[dict[str, Any]] = json.loads(found)["items"]
    return listed


def reason(cluster: Cluster, namespace: str, name: str) -> str:
    return Published(cluster, namespace, name).condition().get("reason", "")


@pytest.fixture
def labelled_node(cluster: Cluster) -> Iterator[None]:
    cluster.kubectl("label", "node", "node1", "nvidia.com/gpu.product=TEST-GPU")
    yield
    cluster.kubectl("label", "node", "node1", "nvidia.com/gpu.product-")
    cluster.advertise(GPU, 0)


@pytest.mark.usefixtures("labelled_node")
def test_a_gpu_is_waited_for_and_taken(cluster: Cluster, namespace: str) -> None:
    gpu = {"device": "gpu", "gpu": {"product": "TEST-GPU"}, "resources": ROOM}
    make(cluster, namespace, "fast", hardware=gpu)
    cluster.until(
        lambda: reason(cluster, namespace, "fast") == "Unschedulable", "the GPU to be missed"
    )
    cluster.advertise(GPU, 1)
    wait_ready(cluster, namespace, "fast")
    [pod] = items(cluster, namespace, "pods")
    assert pod["spec"]["containers"][0]["resources"]["limits"][GPU] == "1"
    assert pod["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "TEST-GPU"}


def test_a_model_volume_and_a_secret_are_mounted_read_only(
    cluster: Cluster, namespace: str
) -> None:
    volume = f"models-of-{namespace}"
    shape = {"accessModes": ["ReadOnlyMany"], "storageClassName": volume}
    objects = [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                **shape,
                "capacity": {"storage": "1Mi"},
                "hostPath": {"path": "/usr/share", "type": "Directory"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "models"},
            "spec": {
                **shape,
                "volumeName": volume,
                "resources": {"requests": {"storage": "1Mi"}},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "hub"},
            "stringData": {"token": "hf_test"},
        },
    ]
    cluster.kubectl("apply", "-f", "-", stdin=manifest(namespace, objects))
    try:
        make(
            *(cluster, namespace, "mounted"),
            model__uri="pvc://models/start100",
            model__credentials="hub",
        )
        wait_ready(cluster, namespace, "mounted")
        [pod] = items(cluster, namespace, "pods")
        told = cluster.kubectl(
            *("exec", "-n", namespace, pod["metadata"]["name"], "--", "python3", "-c"),
            "import os; print(os.environ['SLUICE_MODEL_URI'], open(os.environ['HF_TOKEN_PATH'])"
            ".read(), os.access('/models', os.W_OK), os.access('/cache', os.W_OK),"
            " os.access('/', os.W_OK), os.getuid())",
        ).stdout.split()
        assert told == ["file:///models/start100", "hf_test", "False", "True", "False", "65532"]
    finally:
        cluster.kubectl("delete", "persistentvolume", volume, "--wait=false")


def evict(cluster: Cluster, namespace: str, pod: str) -> int:
    """The status that the API server answers to an eviction."""
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace},
    }
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    answer = cluster.kubectl(
        "create", "--raw", path, "-f", "-", stdin=json.dumps(body), check=False
    )
    if answer.returncode == 0:
        return 201
    assert "disruption budget" in answer.stderr
    return 429


def test_a_drain_takes_one_at_a_time_and_is_never_blocked(cluster: Cluster, namespace: str) -> None:
    make(cluster, namespace, "pair", scaling__minReplicas=2, scaling__initialReplicas=2)
    pair = Published(cluster, namespace, "pair")

    def summary() -> str:
        return str(pair.status.get("scaling", {}).get("summary", ""))

    cluster.until(lambda: summary() == "2/2", "two replicas")
    cluster.until(
        lambda: items(cluster, namespace, "pdb")[0]["status"].get("disruptionsAllowed") == 1,
        "the budget to be counted",
    )
    pods = items(cluster, namespace, "pods")
    one, other = (pod["metadata"]["name"] for pod in pods)
    node = pods[0]["spec"]["nodeName"]
    cluster.kubectl("cordon", node)  # as a drain begins: no replacement comes up meanwhile
    try:
        assert evict(cluster, namespace, one) == 201
        assert evict(cluster, namespace, other) == 429
    finally:
        cluster.kubectl("uncordon", node)
    replaced = lambda: one not in pair.workers() and len(pair.workers(ready=True)) == 2  # noqa: E731
    cluster.until(replaced, "the replacement")


def test_drift_is_repaired(cluster: Cluster, namespace: str) -> None:
    make(cluster, namespace, "steady")
    wait_ready(cluster, namespace, "steady")
    [deployment] = items(cluster, namespace, "deployments")
    name = deployment["metadata"]["name"]
    kinds = ("service", "pdb", "networkpolicy", "serviceaccount", "hpa")
    selector = f"{names.SERVICE_LABEL}=steady"
    for kind in kinds:
        cluster.kubectl("delete", kind, "-n", namespace, "-l", selector, "--wait=false")
    for kind in kinds:
        cluster.until(
            lambda kind=kind: (
                cluster.kubectl(  # type: ignore[misc]
                    "get", kind, "-n", namespace, "-l", selector, "-o", "name"
                ).stdout
            ),
            f"the {kind} to be back",
            seconds=DRIFT_SECONDS,
        )
    cluster.kubectl("set", "image", f"deployment/{name}", "worker=localhost/x:1", "-n", namespace)

    def image() -> str:
        [found] = items(cluster, namespace, "deployments")
        return str(found["spec"]["template"]["spec"]["containers"][0]["image"])

    cluster.until(lambda: image() == STUB, "the image to be back", seconds=DRIFT_SECONDS)
    cluster.kubectl("delete", "inf", "steady", "-n", namespace)
    for kind in ("deployments", "pods", *kinds):
        cluster.until(
            lambda kind=kind: (
                not cluster.kubectl(  # type: ignore[misc]
                    "get", kind, "-n", namespace, "-l", selector, "-o", "name"
                ).stdout
            ),
            f"no {kind} to be left",
        )
