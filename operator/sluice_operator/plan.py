"""What one InferenceService means for the parts that carry it out. Pure; no cluster, no clock.

Local mode (``sluice up``) and the cluster's renderer both take from here, so a file means the same
in both. Next: scaling/recommend.py says how many.
"""

from collections.abc import Iterator

from sluice_api import names
from sluice_api.fields import AUTO
from sluice_api.inference_service import InferenceService, revision_of
from sluice_api.quantities import format_duration
from sluice_api.spec_hardware import Hardware

_DEVICES = {"cpu": "cpu", "gpu": "cuda"}
"""What the resource calls a device → what torch calls it."""


def worker_environment(service: InferenceService) -> dict[str, str]:
    """The environment that makes a worker serve ``service``.

    What is ``auto`` is left out: the worker chooses. Ports and host are the starter's business.
    """
    model, batching = service.spec.model, service.spec.batching
    environment = {
        names.ENV_MODEL_URI: model.uri,
        names.ENV_MODEL_REVISION: model.revision,
        names.ENV_MODEL_NAME: service.metadata.name,
        names.ENV_TASK: model.task,
        names.ENV_DTYPE: model.dtype,
        names.ENV_DEVICE: _DEVICES[service.spec.hardware.device],
        names.ENV_REVISION: revision_of(service),
        # Work that could not be answered within the timeout is better refused than queued.
        names.ENV_MAX_BACKLOG: format_duration(service.spec.limits.timeout),
    }
    if model.max_input_tokens is not None:
        environment[names.ENV_MAX_INPUT_TOKENS] = str(model.max_input_tokens)
    if batching.latency_goal is not None:
        environment[names.ENV_BATCH_LATENCY_GOAL] = format_duration(batching.latency_goal)
    if batching.max_size is not None:
        environment[names.ENV_BATCH_MAX_SIZE] = str(batching.max_size)
    return {name: value for name, value in environment.items() if value not in ("", AUTO)}


def child_name(service: str, revision: str) -> str:
    """The name of a revision's Deployment, Service and HorizontalPodAutoscaler."""
    return f"{service}-{revision}"


def shared_name(service: str) -> str:
    """The name of what exists once a service."""
    return f"{service}-workers"


def refusals(service: InferenceService) -> Iterator[tuple[str, str]]:
    """Fields, with messages, that would change answers and that a local run cannot honour."""
    spec = service.spec
    for scheme in ("pvc://", "oci://"):
        if spec.model.uri.startswith(scheme):
            yield (
                "spec.model.uri",
                f"got {spec.model.uri}, allowed hf://, python:// or file:// in a local run, which"
                " has no volumes. Name the folder with file://.",
            )
    if spec.engine.image:
        yield (
            "spec.engine.image",
            f"got {spec.engine.image}, allowed none in a local run, which starts processes and no"
            " containers. Leave it out.",
        )
    if spec.rollout.canary is not None:
        yield (
            "spec.rollout.canary",
            "got a canary, allowed none in a local run, which serves one revision. Give the canary"
            " a file of its own, under another name.",
        )
    if spec.scaling.mode in ("signal", "off"):
        yield (
            "spec.scaling.mode",
            f"got {spec.scaling.mode}, allowed hpa or direct in a local run, where nobody else"
            " could set the number. Set minReplicas and maxReplicas alike for a fixed one.",
        )
    if spec.paused:
        yield (
            "spec.paused",
            "got true, allowed false in a local run. Leave it out, or leave the file out.",
        )


def notes(service: InferenceService, *, with_keys: bool = False) -> list[str]:
    """What a reader of the file might expect and will not get, one sentence each.

    Args:
        with_keys: callers are known by keys, so that there are tenants.
    """
    spec = service.spec
    found = []
    if spec.scaling.idle_after is not None and spec.scaling.min_replicas > 0:
        found.append(
            "spec.scaling.idleAfter has no effect while spec.scaling.minReplicas is"
            f" {spec.scaling.min_replicas}: the service never sleeps."
        )
    if unused := list(_placement(spec.hardware)):
        found.append(
            f"{', '.join(unused)}: not used, because a local run has one machine and shares it."
        )
    if spec.model.credentials:
        found.append(
            "spec.model.credentials is not used: a local run takes HF_TOKEN from its environment."
        )
    if not spec.access.public and not with_keys:
        found.append(
            "spec.access.public is false: without authentication nobody can call the service."
        )
    if spec.access.tenants and not with_keys:
        found.append("spec.access.tenants is not used: without --auth keys there are no tenants.")
    if service.metadata.labels or service.metadata.annotations:
        found.append("metadata.labels and metadata.annotations are not used by a local run.")
    return found


def _placement(hardware: Hardware) -> Iterator[str]:
    """What is set of the fields that say where in a cluster a replica runs."""
    set_here = hardware.to_short_dict()
    for name in sorted(set_here.keys() - {"device", "gpu"}):
        yield f"spec.hardware.{name}"
    for name in sorted(set_here.get("gpu", {}).keys() - {"count"}):
        yield f"spec.hardware.gpu.{name}"
