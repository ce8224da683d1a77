"""What all children of a service have in common: names, labels, the owner, a digest.

Every file beside this one begins here. ``planning`` finds children again by the same names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sluice_api import names
from sluice_api.digests import revision_digest
from sluice_api.inference_service import InferenceService
from sluice_operator.plan import child_name, shared_name
from sluice_operator.state import Object, Platform


@dataclass(frozen=True, slots=True)
class Rendering:
    """What the children of one revision are made from.

    Attributes:
        service: the resource as this revision has it.
        uid: of the resource.
        revision: the digest of ``service``.
        image: of the worker.
        floor: replicas that always run of this revision, for its autoscaler.
        template: of its pods, where they are to stay as they are.
    """

    service: InferenceService
    uid: str
    revision: str
    image: str
    platform: Platform
    floor: int = 0
    template: Object | None = None

    @property
    def name(self) -> str:
        """Of the children that exist once a revision."""
        return child_name(self.service.metadata.name, self.revision)


def service_labels(service: str) -> dict[str, str]:
    """What selects everything of a service, its workers among it."""
    return {
        names.MANAGED_BY: names.MANAGER,
        names.APP_NAME: names.MANAGER,
        names.COMPONENT: names.WORKER_COMPONENT,
        names.SERVICE_LABEL: service,
    }


def revision_labels(service: str, revision: str) -> dict[str, str]:
    """What selects one revision's workers."""
    return {**service_labels(service), names.REVISION_LABEL: revision}


def selector_of(service: str) -> str:
    """The service's workers, as the scale subresource reports them."""
    return ",".join(f"{name}={value}" for name, value in service_labels(service).items())


def child(
    api_version: str,
    kind: str,
    name: str,
    rendering: Rendering,
    labels: Mapping[str, str],
    content: Mapping[str, Any],
) -> dict[str, Any]:
    """A whole child, with a digest of itself."""
    service = rendering.service.metadata
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": service.namespace,
            "annotations": {names.RENDERED: revision_digest(content)},
            "labels": dict(labels),
            "ownerReferences": [
                {
                    "apiVersion": names.API_VERSION,
                    "kind": names.KIND,
                    "name": service.name,
                    "uid": rendering.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        **content,
    }


def of_revision(
    api_version: str, kind: str, rendering: Rendering, content: Mapping[str, Any]
) -> dict[str, Any]:
    """A child that exists once a revision."""
    labels = revision_labels(rendering.service.metadata.name, rendering.revision)
    return child(api_version, kind, rendering.name, rendering, labels, content)


def of_service(
    api_version: str, kind: str, rendering: Rendering, content: Mapping[str, Any]
) -> dict[str, Any]:
    """A child that exists once a service."""
    name = rendering.service.metadata.name
    labels = service_labels(name)
    return child(api_version, kind, shared_name(name), rendering, labels, content)
