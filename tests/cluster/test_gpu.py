"""A service on an accelerator that the node says it has, and load that asks for more than there is.

The device is fake: nothing computes on it, but it is requested, counted and refused as a real one.
"""

from collections.abc import Iterator

import pytest

from tests.support.cluster.cluster import Cluster
from tests.support.cluster_load import cluster_load
from tests.support.published import GATEWAY, Published, stub
from tests.support.release import Release

GPU = "nvidia.com/gpu"
BEHAVIOUR = "ms100-slots2-start300"  # 20 requests a second of one replica
MOST = 6


@pytest.fixture
def one_gpu(cluster: Cluster) -> Iterator[None]:
    cluster.advertise(GPU, 1)
    yield
    cluster.advertise(GPU, 0)


@pytest.mark.usefixtures("one_gpu")
def test_load_orders_no_more_gpus_than_there_are(
    platform: Release, cluster: Cluster, restricted: str
) -> None:
    service = Published(cluster, restricted)
    requests = {"cpu": "10m", "memory": "48Mi"}
    hardware = {"device": "gpu", "resources": {"requests": requests}}
    scaling = {"minReplicas": 1, "maxReplicas": MOST}
    service.apply(stub(BEHAVIOUR, hardware=hardware, scaling=scaling))
    service.until_ready(1)
    (worker,) = service.workers().values()
    assert worker["spec"]["containers"][0]["resources"]["requests"][GPU] == "1"

    # Half as much again as one carries, and the queue grows. The second one finds no device.
    with cluster_load(cluster, GATEWAY, service.model, 30) as load:
        service.until(lambda: bool(unschedulable(service)), "a worker without a device")
        service.until(
            lambda: service.condition("WorkersAvailable").get("reason") == "Unschedulable",
            "the status says so",
        )
        # What was ordered before the operator knew may be made only now.
        service.until(lambda: len(service.workers()) == replicas(service), "the pods of all orders")
        ordered = len(service.workers())
        cluster.until(load.more(100), "more load")
        assert len(service.workers()) == replicas(service) == ordered < MOST
        told = service.condition("WorkersAvailable")
        assert unschedulable(service)
        assert {answer.status for answer in load.answers} <= {200, 429}

        # Devices come: those that waited start, and more are ordered again.
        cluster.advertise(GPU, MOST)
        service.until(lambda: len(service.workers(ready=True)) > ordered, "scaling goes on")
    assert told["status"] == "True", "the first one goes on"
    assert f"Insufficient {GPU}" in told["message"]
    assert load.revisions.total() >= 100


def replicas(service: Published) -> int:
    """Of its only Deployment, as they are ordered."""
    path = f"/apis/apps/v1/namespaces/{service.namespace}/deployments"
    (deployment,) = service.cluster.read(path)["items"]
    return int(deployment["spec"]["replicas"])


def unschedulable(service: Published) -> set[str]:
    """Workers that the scheduler refuses."""
    pods = service.cluster.read(f"/api/v1/namespaces/{service.namespace}/pods")["items"]
    return {
        pod["metadata"]["name"]
        for pod in pods
        for condition in pod["status"].get("conditions") or ()
        if condition.get("reason") == "Unschedulable"
    }
