"""Rules between fields of the resource, each said twice: for us and for the API server.

A rule is a Python check and a CEL expression that must agree, message included; a test runs both
on the same objects. ``inference_service`` follows the first, the CRD carries the second.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule over one section of the resource.

    Attributes:
        field: the field at fault, as it is called in the section.
        check: takes the section; returns the message when the rule is broken, else nothing.
        cel: true when the rule holds; ``self`` is the section.
        message_cel: yields the same message as ``check``.
        words: the rule for the reference page.
    """

    field: str
    check: Callable[[Any], str]
    cel: str
    message_cel: str
    words: str


def _min_within_max(scaling: Any) -> str:
    if scaling.min_replicas <= scaling.max_replicas:
        return ""
    return (
        f"got {scaling.min_replicas}, allowed 0 to spec.scaling.maxReplicas"
        f" ({scaling.max_replicas}). Raise maxReplicas or lower minReplicas."
    )


def _initial_within_max(scaling: Any) -> str:
    if scaling.initial_replicas <= scaling.max_replicas:
        return ""
    return (
        f"got {scaling.initial_replicas}, allowed 0 to spec.scaling.maxReplicas"
        f" ({scaling.max_replicas}). Raise maxReplicas or lower initialReplicas."
    )


def _public_or_tenants(access: Any) -> str:
    if not (access.public and access.tenants):
        return ""
    return (
        f"got {len(access.tenants)} tenants beside spec.access.public: true, allowed one of the"
        " two. Remove tenants to open the service to all, or public to keep it to them."
    )


def _folder_has_no_versions(model: Any) -> str:
    pinned = model.revision == "" or model.revision.startswith("sha256:")
    if pinned or not model.uri.startswith("file://"):
        return ""
    return (
        f"got {model.revision}, allowed sha256:DIGEST or nothing with a file:// uri. A folder has"
        " no versions: keep each in a folder of its own."
    )


SCALING_RULES = (
    Rule(
        "minReplicas",
        _min_within_max,
        "self.minReplicas <= self.maxReplicas",
        "'got ' + string(self.minReplicas) + ', allowed 0 to spec.scaling.maxReplicas ('"
        " + string(self.maxReplicas) + '). Raise maxReplicas or lower minReplicas.'",
        "`minReplicas` may not exceed `maxReplicas`.",
    ),
    Rule(
        "initialReplicas",
        _initial_within_max,
        "self.initialReplicas <= self.maxReplicas",
        "'got ' + string(self.initialReplicas) + ', allowed 0 to spec.scaling.maxReplicas ('"
        " + string(self.maxReplicas) + '). Raise maxReplicas or lower initialReplicas.'",
        "`initialReplicas` may not exceed `maxReplicas`.",
    ),
)

ACCESS_RULES = (
    Rule(
        "tenants",
        _public_or_tenants,
        "!(self.public && size(self.tenants) > 0)",
        "'got ' + string(size(self.tenants)) + ' tenants beside spec.access.public: true,"
        " allowed one of the two. Remove tenants to open the service to all, or public to keep"
        " it to them.'",
        "`public: true` and `tenants` exclude each other.",
    ),
)

MODEL_RULES = (
    Rule(
        "revision",
        _folder_has_no_versions,
        "!self.uri.startsWith('file://') || self.revision == ''"
        " || self.revision.startsWith('sha256:')",
        "'got ' + self.revision + ', allowed sha256:DIGEST or nothing with a file:// uri."
        " A folder has no versions: keep each in a folder of its own.'",
        "With a `file://` uri, `revision` may only be `sha256:DIGEST`.",
    ),
)
