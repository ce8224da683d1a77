"""Rules between fields of the resource, each said twice: for us and for the API server.

A rule is a Python check and a CEL expression that must agree, message included; a test runs both
on the same objects. ``inference_service`` follows the first, the CRD carries the second.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sluice_api.quantities import parse_quantity


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


def _precomputed_for_all(cache: Any) -> str:
    if not cache.precompute or cache.sharing == "service":
        return ""
    return (
        f"got {len(cache.precompute)} requests beside spec.cache.sharing: tenant, allowed only"
        " with service: what is computed before anybody asks belongs to no tenant. Set"
        " spec.cache.sharing: service, or remove precompute."
    )


def _precomputed_is_kept(cache: Any) -> str:
    if not cache.precompute or cache.enabled:
        return ""
    return (
        f"got {len(cache.precompute)} requests beside spec.cache.enabled: false, allowed only where"
        " answers are kept. Set spec.cache.enabled: true, or remove precompute."
    )


def _entities_for_relations(spec: Any) -> str:
    if not spec.entities_from or spec.model.task in _RELATIONS:
        return ""
    return (
        f"got {spec.entities_from} beside spec.model.task: {spec.model.task}, allowed only with"
        " relation-extraction or auto. Remove entitiesFrom, or correct the task."
    )


_RELATIONS: Final = ("auto", "relation-extraction")
_UNVERSIONED: Final = ("file://", "pvc://", "oci://")
"""Schemes whose uri alone says what is meant."""
_UNVERSIONED_CEL: Final = "^(file|pvc|oci)://"


def _has_no_versions(uri: str, revision: str) -> str:
    pinned = revision == "" or revision.startswith("sha256:")
    if pinned or not uri.startswith(_UNVERSIONED):
        return ""
    return (
        f"got {revision}, allowed sha256:DIGEST or nothing with {uri}, which alone names what is"
        " served. Keep each version in a place of its own."
    )


def _no_versions_cel(uri: str, revision: str) -> tuple[str, str]:
    """The same rule and message in CEL, for the fields called ``uri`` and ``revision``."""
    return (
        f"!{uri}.matches('{_UNVERSIONED_CEL}') || {revision} == ''"
        f" || {revision}.startsWith('sha256:')",
        f"'got ' + {revision} + ', allowed sha256:DIGEST or nothing with ' + {uri} + ', which alone"
        " names what is served. Keep each version in a place of its own.'",
    )


def _model_versions(model: Any) -> str:
    return _has_no_versions(model.uri, model.revision)


def _canary_revision(spec: Any) -> str:
    canary = spec.rollout.canary
    if canary is None or canary.model is None or canary.model.uri:
        return ""
    return _has_no_versions(spec.model.uri, canary.model.revision)


def _canary_changes(canary: Any) -> str:
    if canary.model is not None or canary.engine is not None:
        return ""
    return (
        "got neither model nor engine, allowed at least one of them. Say what the canary has"
        " otherwise, or remove spec.rollout.canary."
    )


def _gpu_fields_need_gpu(hardware: Any) -> str:
    gpu = hardware.gpu
    if hardware.device == "gpu" or (gpu.count == 1 and not gpu.product):
        return ""
    return (
        "got spec.hardware.gpu beside device cpu, allowed only with gpu. Set"
        " spec.hardware.device: gpu, or remove spec.hardware.gpu."
    )


def _own_engine_has_one_gpu(spec: Any) -> str:
    if spec.hardware.gpu.count == 1 or spec.engine.image:
        return ""
    return (
        f"got {spec.hardware.gpu.count}, allowed 1 with the default engine, which computes on one"
        " GPU. Set it to 1, or give an engine.image that uses more."
    )


def _requests_within_limits(kind: str) -> Callable[[Any], str]:
    def check(resources: Any) -> str:
        request, limit = getattr(resources.requests, kind), getattr(resources.limits, kind)
        if request is None or limit is None or parse_quantity(request) <= parse_quantity(limit):
            return ""
        return (
            f"got {request}, allowed at most spec.hardware.resources.limits.{kind} ({limit})."
            f" Raise limits.{kind} or lower requests.{kind}."
        )

    return check


def _requests_rule(kind: str) -> Rule:
    request, limit = f"string(self.requests.{kind})", f"string(self.limits.{kind})"
    return Rule(
        f"requests.{kind}",
        _requests_within_limits(kind),
        f"{request} == 'auto' || {limit} == 'auto'"
        f" || quantity({request}).compareTo(quantity({limit})) <= 0",
        f"'got ' + {request} + ', allowed at most spec.hardware.resources.limits.{kind} ('"
        f" + {limit} + '). Raise limits.{kind} or lower requests.{kind}.'",
        f"`requests.{kind}` may not exceed `limits.{kind}`.",
    )


SCALING_RULES = (
    Rule(
        "minReplicas",
        _min_within_max,
        "self.minReplicas <= self.maxReplicas",
        "'got %d, allowed 0 to spec.scaling.maxReplicas (%d). Raise maxReplicas or lower"
        " minReplicas.'"
        ".format([self.minReplicas, self.maxReplicas])",
        "`minReplicas` may not exceed `maxReplicas`.",
    ),
    Rule(
        "initialReplicas",
        _initial_within_max,
        "self.initialReplicas <= self.maxReplicas",
        "'got %d, allowed 0 to spec.scaling.maxReplicas (%d). Raise maxReplicas or lower"
        " initialReplicas.'"
        ".format([self.initialReplicas, self.maxReplicas])",
        "`initialReplicas` may not exceed `maxReplicas`.",
    ),
)

CACHE_RULES = (
    Rule(
        "precompute",
        _precomputed_for_all,
        "size(self.precompute) == 0 || self.sharing == 'service'",
        "'got %d requests beside spec.cache.sharing: tenant, allowed only with service: what is"
        " computed before anybody asks belongs to no tenant. Set spec.cache.sharing: service, or"
        " remove precompute.'.format([size(self.precompute)])",
        "`precompute` goes with `sharing: service` only.",
    ),
    Rule(
        "precompute",
        _precomputed_is_kept,
        "size(self.precompute) == 0 || self.enabled",
        "'got %d requests beside spec.cache.enabled: false, allowed only where answers are kept."
        " Set spec.cache.enabled: true, or remove precompute.'.format([size(self.precompute)])",
        "`precompute` goes with `enabled: true` only.",
    ),
)

ACCESS_RULES = (
    Rule(
        "tenants",
        _public_or_tenants,
        "!(self.public && size(self.tenants) > 0)",
        "'got %d tenants beside spec.access.public: true, allowed one of the two. Remove tenants to"
        " open the service to all, or public to keep it to them.'.format([size(self.tenants)])",
        "`public: true` and `tenants` exclude each other.",
    ),
)

MODEL_RULES = (
    Rule(
        "revision",
        _model_versions,
        *_no_versions_cel("self.uri", "self.revision"),
        "With a `file://`, `pvc://` or `oci://` uri, `revision` may only be `sha256:DIGEST`.",
    ),
)

CANARY_MODEL_RULES = (
    Rule(
        "revision",
        _model_versions,
        "!has(self.uri) || !has(self.revision) || "
        + _no_versions_cel("self.uri", "self.revision")[0],
        _no_versions_cel("self.uri", "self.revision")[1],
        "`revision` keeps to the rule of `spec.model`.",
    ),
)

CANARY_RULES = (
    Rule(
        "model",
        _canary_changes,
        "has(self.model) || has(self.engine)",
        "'got neither model nor engine, allowed at least one of them. Say what the canary has"
        " otherwise, or remove spec.rollout.canary.'",
        "A canary changes `model` or `engine` or both.",
    ),
)

HARDWARE_RULES = (
    Rule(
        "device",
        _gpu_fields_need_gpu,
        "self.device == 'gpu' || (self.gpu.count == 1 && self.gpu.product == '')",
        "'got spec.hardware.gpu beside device cpu, allowed only with gpu. Set"
        " spec.hardware.device: gpu, or remove spec.hardware.gpu.'",
        "`gpu` goes with `device: gpu` only.",
    ),
)

RESOURCES_RULES = tuple(_requests_rule(kind) for kind in ("cpu", "memory", "storage"))

_CANARY_CEL: Final = "self.rollout.canary.model"

SPEC_RULES = (
    Rule(
        "entitiesFrom",
        _entities_for_relations,
        f"self.entitiesFrom == '' || self.model.task in {list(_RELATIONS)}",
        "'got ' + self.entitiesFrom + ' beside spec.model.task: ' + self.model.task + ', allowed"
        " only with relation-extraction or auto. Remove entitiesFrom, or correct the task.'",
        "`entitiesFrom` goes with the task `relation-extraction` only, written or found (`auto`).",
    ),
    Rule(
        "hardware.gpu.count",
        _own_engine_has_one_gpu,
        "self.hardware.gpu.count == 1 || self.engine.image != ''",
        "'got %d, allowed 1 with the default engine, which computes on one GPU. Set it to 1, or"
        " give an engine.image that uses more.'.format([self.hardware.gpu.count])",
        "More than one GPU needs an `engine.image` that uses them.",
    ),
    Rule(
        "rollout.canary.model.revision",
        _canary_revision,
        f"!has(self.rollout.canary) || !has({_CANARY_CEL}) || has({_CANARY_CEL}.uri)"
        f" || !has({_CANARY_CEL}.revision) || "
        + _no_versions_cel("self.model.uri", f"{_CANARY_CEL}.revision")[0],
        _no_versions_cel("self.model.uri", f"{_CANARY_CEL}.revision")[1],
        "`canary.model.revision` keeps to the rule of `spec.model`.",
    ),
)
