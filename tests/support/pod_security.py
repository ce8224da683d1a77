"""The Pod Security Standard `restricted`, as far as a rendered pod can break it.

The API server enforces the same in the cluster tests; here it is asked of every set of values.
Source: kubernetes.io/docs/concepts/security/pod-security-standards.
"""

from collections.abc import Iterator, Mapping
from typing import Any

VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
    *("persistentVolumeClaim", "projected", "secret"),
}
HOST_SHARING = ("hostNetwork", "hostPID", "hostIPC")


def breaches(pod: Mapping[str, Any]) -> list[str]:
    """What a pod's spec has that `restricted` forbids, or lacks that it demands."""
    found = [name for name in HOST_SHARING if pod.get(name)]
    for volume in pod.get("volumes", ()):
        found += [f"volume {kind}" for kind in volume.keys() - {"name"} - VOLUMES]
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        found += [f"{container['name']}: {what}" for what in _container(pod, container)]
    return found


def _container(pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    own = container.get("securityContext", {})
    shared = pod.get("securityContext", {})
    if own.get("allowPrivilegeEscalation") is not False:
        yield "may escalate privileges"
    if own.get("privileged"):
        yield "privileged"
    if "ALL" not in own.get("capabilities", {}).get("drop", ()):
        yield "keeps capabilities"
    if set(own.get("capabilities", {}).get("add", ())) - {"NET_BIND_SERVICE"}:
        yield "adds capabilities"
    if own.get("runAsNonRoot", shared.get("runAsNonRoot")) is not True:
        yield "may run as root"
    if own.get("runAsUser", shared.get("runAsUser")) == 0:
        yield "runs as root"
    profile = own.get("seccompProfile", shared.get("seccompProfile", {})).get("type")
    if profile not in {"RuntimeDefault", "Localhost"}:
        yield "no seccomp profile"
    if any("hostPort" in port for port in container.get("ports", ())):
        yield "host port"
