"""A worker's pod: the container, where it may run, what it may do.

Called by ``deployment``. Everything that Kubernetes' ``restricted`` profile asks for is set here.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from sluice_api import names
from sluice_api.inference_service import InferenceService
from sluice_api.quantities import format_duration, parse_quantity
from sluice_operator.children.identity import Rendering, revision_labels
from sluice_operator.children.volumes import (
    CACHE_FOLDER,
    CREDENTIALS_FOLDER,
    CREDENTIALS_KEY,
    model_uri,
    render_mounts,
    render_volumes,
)
from sluice_operator.plan import shared_name, worker_environment

WORKER_CONTAINER: Final = "worker"
GPU_PRODUCT_LABEL: Final = "nvidia.com/gpu.product"
DEFAULT_MEMORY: Final = "2Gi"

DRAIN_GRACE_SECONDS: Final = 2.0
"""How long a worker that ends still takes requests: until all gateways have noticed."""
_END_SECONDS: Final = 10
"""Beyond the drain: for the process to end."""
_LOST_NODE_SECONDS: Final = 30
"""Kubernetes' default of 300 s is for nodes that come back; a lone replica is away for as long."""
_LOST_NODE_TAINTS: Final = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
START_SECONDS: Final = 120
"""In which a worker must be live, that is, answer its probes; loading its model may take longer."""


def render_pod(rendering: Rendering) -> dict[str, Any]:
    """The pod's ``spec``."""
    service, platform = rendering.service, rendering.platform
    hardware = service.spec.hardware
    pod: dict[str, Any] = {
        "serviceAccountName": shared_name(service.metadata.name),
        "automountServiceAccountToken": False,
        # Or every Service of the namespace becomes a handful of environment variables.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _drain_seconds(service) + _END_SECONDS,
        "securityContext": {
            # Which user is the image's word, or the cluster's: some hand out a range a namespace.
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(rendering)],
        "volumes": render_volumes(service, platform.pull_policy),
        "nodeSelector": dict(hardware.node_selector),
        "tolerations": [*hardware.tolerations, *_lost_nodes(hardware.tolerations)],
        "affinity": dict(hardware.affinity),
        "topologySpreadConstraints": _spread(rendering),
        "priorityClassName": hardware.priority_class_name,
        "runtimeClassName": hardware.runtime_class_name,
        "imagePullSecrets": [{"name": name} for name in platform.pull_secrets],
    }
    if hardware.device == "gpu":
        # Nodes with accelerators are usually tainted by the name of the resource.
        taint = {"key": hardware.gpu.resource, "operator": "Exists", "effect": "NoSchedule"}
        if taint not in pod["tolerations"]:
            pod["tolerations"].append(taint)
        if hardware.gpu.product:
            pod["nodeSelector"][GPU_PRODUCT_LABEL] = hardware.gpu.product
    # What is empty is left out: the API server drops it, or takes it for something else.
    return {name: value for name, value in pod.items() if value not in ({}, [], "")}


def _container(rendering: Rendering) -> dict[str, Any]:
    admin = {"port": "admin", "scheme": "HTTP"}
    live = {"httpGet": {"path": "/livez", **admin}, "timeoutSeconds": 2}
    ready = {"httpGet": {"path": "/readyz", **admin}, "timeoutSeconds": 2}
    return {
        "name": WORKER_CONTAINER,
        "image": rendering.image,
        "imagePullPolicy": rendering.platform.pull_policy,
        "env": [
            {"name": name, "value": value} for name, value in sorted(environment(rendering).items())
        ],
        "ports": [
            {"name": "http", "containerPort": names.APP_PORT, "protocol": "TCP"},
            {"name": "admin", "containerPort": names.ADMIN_PORT, "protocol": "TCP"},
        ],
        "resources": _resources(rendering.service),
        # Live comes with the process, ready with the model: a slow download is not ended.
        "startupProbe": {**live, "periodSeconds": 1, "failureThreshold": START_SECONDS},
        "livenessProbe": {**live, "periodSeconds": 10, "failureThreshold": 3},
        "readinessProbe": {**ready, "periodSeconds": 1, "failureThreshold": 2},
        # Answers when nothing is being computed any more; SIGTERM follows at once.
        "lifecycle": {"preStop": {"httpGet": {"path": "/drain", **admin}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": render_mounts(rendering.service),
    }


def environment(rendering: Rendering) -> dict[str, str]:
    """What the worker is told."""
    service = rendering.service
    told = {
        **worker_environment(service),
        names.ENV_MODEL_URI: model_uri(service),
        names.ENV_REVISION: rendering.revision,
        names.ENV_WORKER_HOST: "0.0.0.0",  # noqa: S104  # the NetworkPolicy says who gets through
        names.ENV_WORKER_PORT: str(names.APP_PORT),
        names.ENV_WORKER_ADMIN_PORT: str(names.ADMIN_PORT),
        names.ENV_WORKER_THREADS: str(_threads(service)),
        names.ENV_DRAIN_GRACE: format_duration(DRAIN_GRACE_SECONDS),
        names.ENV_DRAIN_TIMEOUT: format_duration(service.spec.limits.timeout),
        names.ENV_LOG: "json",
        "HF_HOME": f"{CACHE_FOLDER}/huggingface",
    }
    if service.spec.model.credentials:
        told["HF_TOKEN_PATH"] = f"{CREDENTIALS_FOLDER}/{CREDENTIALS_KEY}"
    return told


def _drain_seconds(service: InferenceService) -> int:
    return math.ceil(DRAIN_GRACE_SECONDS + service.spec.limits.timeout)


def _threads(service: InferenceService) -> int:
    """As many as there are whole cores for the worker; more than its quota costs dearly."""
    resources = service.spec.hardware.resources
    return max(1, int(parse_quantity(resources.limits.cpu or resources.requests.cpu)))


def _resources(service: InferenceService) -> dict[str, Any]:
    hardware = service.spec.hardware
    asked, most = hardware.resources.requests, hardware.resources.limits
    memory = asked.memory or most.memory or DEFAULT_MEMORY
    requests = {"cpu": asked.cpu, "memory": memory, "ephemeral-storage": asked.storage}
    limits = {
        "cpu": most.cpu,
        # Memory is not shared: what a worker takes beyond its request is somebody else's.
        "memory": most.memory or memory,
        "ephemeral-storage": most.storage,
    }
    if hardware.device == "gpu":
        requests[hardware.gpu.resource] = limits[hardware.gpu.resource] = str(hardware.gpu.count)
    return {
        "requests": {name: amount for name, amount in requests.items() if amount},
        "limits": {name: amount for name, amount in limits.items() if amount},
    }


def _lost_nodes(given: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """How long a replica waits for its node; whoever has said so already is right."""
    said = {
        toleration.get("key", "")  # without a key: every taint
        for toleration in given
        if toleration.get("effect", "") in ("", "NoExecute")
    }
    for key in _LOST_NODE_TAINTS:
        if said.isdisjoint({key, ""}):
            yield {
                "key": key,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": _LOST_NODE_SECONDS,
            }


def _spread(rendering: Rendering) -> list[dict[str, Any]]:
    service = rendering.service
    labels = revision_labels(service.metadata.name, rendering.revision)
    return [
        {"labelSelector": {"matchLabels": labels}, **constraint}
        for constraint in service.spec.hardware.topology_spread_constraints
    ]
