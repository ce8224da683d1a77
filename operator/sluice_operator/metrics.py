"""What scaling and the metrics API show on ``/metrics``, beside the operator's own instruments.

Services come and go by the thousand, so their numbers are not kept twice: a scrape reads them from
the fleet's memory.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry

from sluice_api import metric_names
from sluice_api.exposition import counter, gauge, histogram, readings
from sluice_operator.scaling.recommend import Decision
from sluice_operator.state import Key

Decisions = Callable[[], Iterable[tuple[Key, str, Decision]]]
Reading = tuple[tuple[str, ...], float]


class ScalingInstruments:
    """Everything in ``metric_names`` that begins with ``sluice_scaling_``.

    Args:
        decisions: the last one of every revision, asked at each scrape.
    """

    def __init__(self, registry: CollectorRegistry, decisions: Decisions) -> None:
        self._decisions = decisions
        self._changes = counter(metric_names.SCALING_CHANGES, registry)
        self._gateways = gauge(metric_names.SCALING_GATEWAYS, registry)
        self._records = counter(metric_names.SCALING_RECORDS, registry)
        self._feed_failures = counter(metric_names.SCALING_FEED_FAILURES, registry)
        readings(metric_names.SCALING_DESIRED, registry, self._desired)
        readings(metric_names.SCALING_ARRIVALS, registry, self._arrivals)
        readings(metric_names.SCALING_CAPACITY, registry, self._capacity)
        readings(metric_names.SCALING_HELD, registry, self._held)
        readings(metric_names.SCALING_FORESEEN, registry, self._foreseen)

    def changed(self, rule: str) -> None:
        """A number was decided that is another than before."""
        self._changes.labels(rule).inc()

    def gateways(self, heard: int, unheard: int) -> None:
        self._gateways.labels("heard").set(heard)
        self._gateways.labels("unheard").set(unheard)

    def received(self, records: int) -> None:
        self._records.inc(records)

    def feed_failed(self, cause: str) -> None:
        self._feed_failures.labels(cause).inc()

    def _desired(self) -> Iterator[Reading]:
        for key, revision, decision in self._decisions():
            yield (*key, revision), decision.desired

    def _arrivals(self) -> Iterator[Reading]:
        for key, revision, decision in self._decisions():
            yield (*key, revision), decision.inputs.arrivals

    def _capacity(self) -> Iterator[Reading]:
        for key, revision, decision in self._decisions():
            if decision.inputs.capacity is not None:
                yield (*key, revision), decision.inputs.capacity

    def _held(self) -> Iterator[Reading]:
        for key, revision, decision in self._decisions():
            yield (*key, revision), decision.inputs.held

    def _foreseen(self) -> Iterator[Reading]:
        for key, revision, decision in self._decisions():
            yield (*key, revision), max(decision.inputs.climb, decision.inputs.season)


class MetricsApiInstruments:
    """Everything in ``metric_names`` that begins with ``sluice_metrics_api_``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = counter(metric_names.METRICS_API_REQUESTS, registry)
        self._seconds = histogram(metric_names.METRICS_API_SECONDS, registry)
        self.available = gauge(metric_names.METRICS_API_AVAILABLE, registry)
        self.expires_at = gauge(metric_names.METRICS_API_EXPIRY, registry)

    def answered(self, code: int, seconds: float) -> None:
        self._requests.labels(str(code)).inc()
        self._seconds.observe(seconds)
