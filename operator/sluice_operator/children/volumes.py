"""What a worker's pod mounts: room to write, the model where it is no download, credentials.

Called by ``pod``. The root file system is read-only, so everything that is written is named here.
"""

from typing import Any, Final

from sluice_api.inference_service import InferenceService

CACHE_FOLDER: Final = "/cache"
"""Downloaded models; outlives a restart of the container, not of the pod."""
MODEL_FOLDER: Final = "/models"
CREDENTIALS_FOLDER: Final = "/credentials"
CREDENTIALS_KEY: Final = "token"
PVC_SCHEME: Final = "pvc://"
OCI_SCHEME: Final = "oci://"


def model_uri(service: InferenceService) -> str:
    """Where the worker finds the model: what is mounted is a folder to it."""
    uri = service.spec.model.uri
    if uri.startswith(OCI_SCHEME):
        return f"file://{MODEL_FOLDER}"
    if uri.startswith(PVC_SCHEME):
        _, slash, path = uri.removeprefix(PVC_SCHEME).partition("/")
        return f"file://{MODEL_FOLDER}{slash}{path}"
    return uri


def render_volumes(service: InferenceService, pull_policy: str) -> list[dict[str, Any]]:
    """The pod's volumes."""
    model, hardware = service.spec.model, service.spec.hardware
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "cache", "emptyDir": {}},
    ]
    if hardware.device == "gpu":
        # The container runtime's 64 MiB are too few for libraries that share tensors.
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    if model.uri.startswith(PVC_SCHEME):
        claim = model.uri.removeprefix(PVC_SCHEME).partition("/")[0]
        source = {"claimName": claim, "readOnly": True}
        volumes.append({"name": "model", "persistentVolumeClaim": source})
    if model.uri.startswith(OCI_SCHEME):
        reference = model.uri.removeprefix(OCI_SCHEME)
        volumes.append(
            {"name": "model", "image": {"reference": reference, "pullPolicy": pull_policy}}
        )
    if model.credentials:
        # By its name, so that a key that is missing is told: the hub's library would do without.
        key = {"key": CREDENTIALS_KEY, "path": CREDENTIALS_KEY}
        secret = {"secretName": model.credentials, "items": [key]}
        volumes.append({"name": "credentials", "secret": secret})
    return volumes


def render_mounts(service: InferenceService) -> list[dict[str, Any]]:
    """Where the worker's container has them."""
    model, hardware = service.spec.model, service.spec.hardware
    mounts: list[dict[str, Any]] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # the container's own
        {"name": "cache", "mountPath": CACHE_FOLDER},
    ]
    if hardware.device == "gpu":
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
    if model.uri.startswith((PVC_SCHEME, OCI_SCHEME)):
        mounts.append({"name": "model", "mountPath": MODEL_FOLDER, "readOnly": True})
    if model.credentials:
        mounts.append({"name": "credentials", "mountPath": CREDENTIALS_FOLDER, "readOnly": True})
    return mounts
