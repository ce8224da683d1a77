"""What the metrics API answers, as plain JSON documents. Pure; ``server`` sends them.

The forms are those of ``k8s.io/metrics/pkg/apis/custom_metrics`` and of Kubernetes' discovery. The
aggregator's newer discovery falls back to these when it is given a plain list.
"""

from datetime import datetime
from typing import Any, Final

from sluice_api.names import API_VERSION, GROUP, KIND, METRICS_GROUP, PLURAL
from sluice_operator.metrics_api.values import METRICS, Metric, quantity
from sluice_operator.state import Object

VERSIONS: Final = ("v1beta2", "v1beta1")
"""Newest first; which of them the API server sends here is up to the chart."""
RESOURCE: Final = f"{PLURAL}.{GROUP}"

Document = dict[str, Any]

OPENAPI: Final[dict[str, Document]] = {
    "/openapi/v2": {
        "swagger": "2.0",
        "info": {"title": METRICS_GROUP, "version": VERSIONS[0]},
        "paths": {},
    },
    "/openapi/v3": {"paths": {}},
}
"""Nothing to describe; without an answer the API server complains in its log every minute."""


def group() -> Document:
    """``/apis/custom.metrics.k8s.io``"""
    versions = [
        {"groupVersion": f"{METRICS_GROUP}/{version}", "version": version} for version in VERSIONS
    ]
    return {
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": METRICS_GROUP,
        "versions": versions,
        "preferredVersion": versions[0],
    }


def groups() -> Document:
    """``/apis``"""
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group()]}


def resources(version: str) -> Document:
    """``/apis/custom.metrics.k8s.io/VERSION``: the availability probe and the list of metrics."""
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{METRICS_GROUP}/{version}",
        "resources": [
            {
                "name": f"{RESOURCE}/{name}",
                "singularName": "",
                "namespaced": True,
                "kind": "MetricValueList",
                "verbs": ["get"],
            }
            for name in METRICS
        ],
    }


def metric_values(
    version: str,
    metric: Metric,
    found: list[tuple[Object, float]],
    match_labels: Document | None,
    now: datetime,
) -> Document:
    """The values of one metric, one item for each service.

    Args:
        match_labels: the metric selector that was asked with, to be shown again.
    """
    items = [_item(version, metric, *pair, match_labels, now) for pair in found]
    return {
        "kind": "MetricValueList",
        "apiVersion": f"{METRICS_GROUP}/{version}",
        "metadata": {},
        "items": items,
    }


def _item(
    version: str,
    metric: Metric,
    resource: Object,
    value: float,
    match_labels: Document | None,
    now: datetime,
) -> Document:
    metadata = resource["metadata"]
    item: Document = {
        "describedObject": {
            "kind": KIND,
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "apiVersion": API_VERSION,
        },
        "timestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "value": quantity(value),
    }
    selector = {"matchLabels": match_labels} if match_labels else None
    if version == "v1beta1":
        item |= {"metricName": metric.name, "selector": selector}
    else:
        item["metric"] = {"name": metric.name, "selector": selector}
    if metric.window is not None:
        item["window" if version == "v1beta1" else "windowSeconds"] = metric.window
    return item


_REASONS: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    500: "InternalError",
    503: "ServiceUnavailable",
}


def status(code: int, message: str) -> Document:
    """An error as every Kubernetes client understands it."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "reason": _REASONS.get(code, "Unknown"),
        "code": code,
        "message": message,
    }
