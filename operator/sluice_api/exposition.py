"""Make prometheus-client collectors from the table in ``metric_names``.

Gateway, worker and operator build their collectors here and nowhere else, so that no metric is
exported that the table (and so the documentation) does not hold.
"""

from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from sluice_api.metric_names import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of what :func:`expose` writes."""

# A ``_created`` series beside each counter doubles the page and nothing of ours reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations


def counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    """A counter of the table, registered; without labels it stands at 0 at once."""
    _check_kind(metric, "counter")
    return Counter(metric.name, metric.help, metric.labels, registry=registry)


def gauge(metric: Metric, registry: CollectorRegistry) -> Gauge:
    """A gauge of the table, registered; without labels it stands at 0 at once."""
    _check_kind(metric, "gauge")
    return Gauge(metric.name, metric.help, metric.labels, registry=registry)


def histogram(metric: Metric, registry: CollectorRegistry) -> Histogram:
    """A histogram of the table with the table's buckets, registered."""
    _check_kind(metric, "histogram")
    return Histogram(
        metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets
    )


def expose(registry: CollectorRegistry) -> bytes:
    """The page for ``GET /metrics``, of type :data:`CONTENT_TYPE`."""
    return generate_latest(registry)


def _check_kind(metric: Metric, kind: str) -> None:
    if metric.kind != kind:
        raise ValueError(f"{metric.name} is a {metric.kind}, not a {kind}")
