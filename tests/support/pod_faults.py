"""How cluster tests harm pods: as a kernel out of memory, a node that fails, a person in a hurry.

Called by the tests of faults; everything that is harmed here is expected to come back by itself.
"""

from typing import Any

from tests.support.cluster.cluster import Cluster


def kill_container(cluster: Cluster, pod: dict[str, Any]) -> None:
    """SIGKILL the process of a pod's container; the kubelet starts another one in the same pod."""
    (status,) = pod["status"]["containerStatuses"]
    container = status["containerID"].removeprefix("containerd://")
    address = str(cluster.site.containerd_socket)
    cluster.exec(
        ["ctr", "-a", address, "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", container]
    )


def delete_pod(cluster: Cluster, namespace: str, name: str) -> None:
    """As a person or a node drain does: told to end, with the time the pod asks for."""
    cluster.kubectl("delete", "pod", name, "-n", namespace, "--wait=false")


def destroy_pod(cluster: Cluster, namespace: str, name: str) -> None:
    """Without any time to end: the object is gone at once, its processes with it."""
    cluster.kubectl("delete", "pod", name, "-n", namespace, "--force", "--grace-period=0")
