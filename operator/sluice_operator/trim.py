"""What is kept of an object from a watch: less than a fifth of it, in most cases.

``managedFields`` alone are half of most objects; ``ownership`` has read of them before what
matters. Of pods, what they are to run is known from their Deployment. Called by ``store``.
"""

from collections.abc import Mapping
from typing import Any, Final

_DROPPED_ANNOTATIONS: Final = ("kubectl.kubernetes.io/last-applied-configuration",)
_POD_SPEC: Final = ("nodeName", "priority", "schedulerName", "terminationGracePeriodSeconds")


def trimmed(item: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without what nobody here reads; parts of it are shared with ``item``."""
    metadata = dict(item["metadata"])
    metadata.pop("managedFields", None)
    metadata.pop("resourceVersion", None)  # or every write would look like a change
    metadata.pop("selfLink", None)
    if annotations := metadata.get("annotations"):
        kept = {k: v for k, v in annotations.items() if k not in _DROPPED_ANNOTATIONS}
        metadata["annotations"] = kept
    result = {**item, "metadata": metadata}
    if item.get("kind") == "Pod":
        result["spec"] = _pod_spec(item.get("spec") or {})
    return result


def _pod_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {key: spec[key] for key in _POD_SPEC if key in spec}
    for group in ("initContainers", "containers"):
        if containers := spec.get(group):
            kept[group] = [
                {key: one[key] for key in ("name", "image", "resources") if key in one}
                for one in containers
            ]
    return kept
