"""Make prometheus-client collectors from the table in ``metric_names``.

Gateway, worker and operator build their collectors here and nowhere else, so that no metric is
exported that the table (and so the documentation) does not hold.
"""

from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sluice_api.metric_names import Metric

Reading = tuple[tuple[str, ...], float]
"""Label values and a number."""

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


def readings(
    metric: Metric, registry: CollectorRegistry, read: Callable[[], Iterable[Reading]]
) -> None:
    """A gauge whose values are asked for at each scrape: label values in order, and the number."""
    _check_kind(metric, "gauge")
    registry.register(_Readings(metric, read))


class _Readings(Collector):
    def __init__(self, metric: Metric, read: Callable[[], Iterable[Reading]]) -> None:
        self._metric = metric
        self._read = read

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return [GaugeMetricFamily(self._metric.name, self._metric.help)]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            self._metric.name, self._metric.help, labels=list(self._metric.labels)
        )
        for labels, value in self._read():
            family.add_metric(list(labels), value)
        return [family]


def expose(registry: CollectorRegistry) -> bytes:
    """The page for ``GET /metrics``, of type :data:`CONTENT_TYPE`."""
    return generate_latest(registry)


def _check_kind(metric: Metric, kind: str) -> None:
    if metric.kind != kind:
        raise ValueError(f"{metric.name} is a {metric.kind}, not a {kind}")
