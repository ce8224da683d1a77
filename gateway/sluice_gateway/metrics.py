"""The gateway's numbers: counted cheaply on the main path, put into Prometheus' terms on a scrape.

A prometheus-client child takes a lock per call; a plain list does not. So requests are counted in
:class:`RouteSeries` and read by a collector when ``/metrics`` is asked for. Names, labels and help
come from ``sluice_api.metric_names``.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sluice_api import exposition, metric_names
from sluice_gateway.priority import Priority

MAX_TENANTS = 1000
"""Of the keys file, which have labels of their own; those beyond it are ``other``."""


class Durations:
    """How long something took, in the buckets of all durations."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(metric_names.SECONDS) + 1)
        self.seconds = 0.0

    def took(self, seconds: float) -> None:
        self.buckets[bisect_left(metric_names.SECONDS, seconds)] += 1
        self.seconds += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """The buckets as Prometheus has them, each with what is below its bound."""
        bounds = [*map(str, metric_names.SECONDS), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self.buckets)), strict=True))


class RouteSeries(Durations):
    """Requests of one service on one route: outcomes and durations."""

    __slots__ = ("statuses",)

    def __init__(self) -> None:
        super().__init__()
        self.statuses: dict[int, int] = {}


class QueueSeries:
    """Who waited for a worker and how long, and who was refused, by priority."""

    __slots__ = ("refusals", "waits")

    def __init__(self) -> None:
        self.waits = {priority: Durations() for priority in Priority}
        self.refusals: Counter[tuple[Priority, str]] = Counter()

    def waited(self, priority: Priority, seconds: float) -> None:
        self.waits[priority].took(seconds)

    def refused(self, priority: Priority, cause: str) -> None:
        self.refusals[priority, cause] += 1

    def expired(self) -> Counter[str]:
        """By phase, as :attr:`ServiceSeries.expired`."""
        late = (n for (_, cause), n in self.refusals.items() if cause in ("timeout", "expired"))
        return Counter(queue=sum(late))


class ServiceSeries:
    """Everything counted of one service."""

    __slots__ = (
        "bypassed",
        "collapsed",
        "ejections",
        "expired",
        "first_events",
        "hedges",
        "l1",
        "leases",
        "misses",
        "prefixes",
        "queue",
        "redis",
        "refused",
        "renewals",
        "retries",
        "routes",
        "stale",
        "stream_chunks",
        "streams",
        "streams_cut",
        "tokens",
    )

    def __init__(self) -> None:
        self.routes: dict[str, RouteSeries] = {}
        self.retries: Counter[str] = Counter()
        self.ejections: Counter[str] = Counter()
        self.expired: Counter[str] = Counter()
        self.hedges: Counter[str] = Counter()
        self.prefixes: Counter[str] = Counter()
        self.queue = QueueSeries()
        self.l1 = 0
        self.redis = 0
        self.stale = 0
        self.refused = 0
        self.renewals: Counter[str] = Counter()
        self.leases: Counter[str] = Counter()
        self.collapsed = 0
        self.misses = 0
        self.bypassed = 0
        self.streams = 0
        self.stream_chunks = 0
        self.streams_cut: Counter[str] = Counter()
        self.first_events = Durations()
        self.tokens = 0

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request on the route ``path``."""
        series = self.routes.get(path)
        if series is None:
            series = self.route(path)
        statuses = series.statuses
        statuses[status] = statuses.get(status, 0) + 1
        # As ``took`` does, without the call: this is the end of every request.
        series.buckets[bisect_left(metric_names.SECONDS, seconds)] += 1
        series.seconds += seconds

    def route(self, path: str) -> RouteSeries:
        series = self.routes.get(path)
        if series is None:
            series = self.routes[path] = RouteSeries()
        return series


class Sample:
    """One service at the moment of a scrape. ``labels``: namespace, service, track."""

    __slots__ = ("endpoints", "in_flight", "labels", "precomputed", "series", "tenants", "waiting")

    def __init__(
        self,
        labels: tuple[str, str, str],
        series: ServiceSeries,
        in_flight: int,
        waiting: int,
        endpoints: dict[str, int],
        precomputed: dict[str, int],
        tenants: int = 0,
    ) -> None:
        self.labels = labels
        self.series = series
        self.in_flight = in_flight
        self.waiting = waiting
        self.endpoints = endpoints
        self.precomputed = precomputed
        self.tenants = tenants


class Metrics:
    """The registry and what is counted apart from any service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._faults = exposition.counter(metric_names.GATEWAY_CACHE_FAULTS, self.registry)
        self._cut = exposition.counter(metric_names.GATEWAY_CONNECTIONS_CUT, self.registry)
        self._repeats = exposition.counter(metric_names.GATEWAY_REPEATS, self.registry)
        self._denials = exposition.counter(metric_names.GATEWAY_DENIALS, self.registry)
        self._limit_faults = exposition.counter(metric_names.GATEWAY_LIMIT_FAULTS, self.registry)
        self._keys_faults = exposition.counter(metric_names.GATEWAY_KEYS_FAULTS, self.registry)
        self._tenants: set[str] = set()
        self.unrouted = ServiceSeries()
        """Requests that were refused before a service was found."""

    def cache_fault(self, cause: str) -> None:
        self._faults.labels(cause).inc()

    def connection_cut(self, cause: str) -> None:
        self._cut.labels(cause).inc()

    def repeated(self, outcome: str) -> None:
        self._repeats.labels(outcome).inc()

    def denied(self, tenant: str, code: str) -> None:
        if tenant not in self._tenants:
            if len(self._tenants) >= MAX_TENANTS:
                tenant = "other"
            self._tenants.add(tenant)
        self._denials.labels(tenant, code).inc()

    def limit_fault(self, cause: str) -> None:
        self._limit_faults.labels(cause).inc()

    def keys_fault(self) -> None:
        self._keys_faults.inc()

    def watch(self, samples: Callable[[], Iterable[Sample]]) -> None:
        """Collect the services' numbers through ``samples`` on each scrape."""
        self.registry.register(_ServiceCollector(samples))

    def watch_gauge(self, metric: metric_names.Metric, read: Callable[[], float]) -> None:
        """Export ``metric`` with the value that ``read`` gives at each scrape."""
        gauge = exposition.gauge(metric, self.registry)
        gauge.set_function(read)

    def watch_counter(self, metric: metric_names.Metric, read: Callable[[], float]) -> None:
        """Export what ``read`` has counted by each scrape."""
        self.registry.register(_CountCollector(metric, read))

    def page(self) -> bytes:
        return exposition.expose(self.registry)


class _CountCollector(Collector):
    def __init__(self, metric: metric_names.Metric, read: Callable[[], float]) -> None:
        self._metric = metric
        self._read = read

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._metric.name, self._metric.help, self._read())


class _ServiceCollector(Collector):
    def __init__(self, samples: Callable[[], Iterable[Sample]]) -> None:
        self._samples = samples

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        samples = list(self._samples())
        yield from _requests(samples)
        yield from _streams(samples)
        yield from _counters(samples)
        yield from _queues(samples)
        yield from _gauges(samples)


def _counter(metric: metric_names.Metric) -> CounterMetricFamily:
    return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)


def _gauge(metric: metric_names.Metric) -> GaugeMetricFamily:
    return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)


def _histogram(metric: metric_names.Metric) -> HistogramMetricFamily:
    return HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)


def _requests(samples: list[Sample]) -> Iterator[Metric]:
    requests = _counter(metric_names.GATEWAY_REQUESTS)
    durations = _histogram(metric_names.GATEWAY_DURATION)
    for sample in samples:
        for path, series in sample.series.routes.items():
            for status, count in series.statuses.items():
                requests.add_metric((*sample.labels, path, str(status)), count)
            durations.add_metric((*sample.labels, path), series.cumulative(), series.seconds)
    yield requests
    yield durations


def _streams(samples: list[Sample]) -> Iterator[Metric]:
    under_way = _gauge(metric_names.GATEWAY_STREAMS)
    first_events = _histogram(metric_names.GATEWAY_FIRST_EVENT)
    chunks = _counter(metric_names.GATEWAY_STREAM_CHUNKS)
    cut = _counter(metric_names.GATEWAY_STREAMS_CUT)
    tokens = _counter(metric_names.GATEWAY_TOKENS)
    for sample in samples:
        series, labels = sample.series, sample.labels
        under_way.add_metric(labels, series.streams)
        first = series.first_events
        first_events.add_metric(labels, first.cumulative(), first.seconds)
        chunks.add_metric(labels, series.stream_chunks)
        for cause, count in series.streams_cut.items():
            cut.add_metric((*labels, cause), count)
        tokens.add_metric(labels, series.tokens)
    yield from (under_way, first_events, chunks, cut, tokens)


def _counters(samples: list[Sample]) -> Iterator[Metric]:
    cache = _counter(metric_names.GATEWAY_CACHE)
    renewals = _counter(metric_names.GATEWAY_CACHE_RENEWALS)
    leases = _counter(metric_names.GATEWAY_CACHE_LEASES)
    retries = _counter(metric_names.GATEWAY_RETRIES)
    ejections = _counter(metric_names.GATEWAY_EJECTIONS)
    expired = _counter(metric_names.GATEWAY_EXPIRED)
    hedges = _counter(metric_names.GATEWAY_HEDGES)
    prefixes = _counter(metric_names.GATEWAY_PREFIXES)
    for sample in samples:
        series = sample.series
        for result, count in (
            ("l1", series.l1),
            ("redis", series.redis),
            ("stale", series.stale),
            ("refused", series.refused),
            ("joined", series.collapsed),
            ("miss", series.misses),
            ("bypass", series.bypassed),
        ):
            cache.add_metric((*sample.labels, result), count)
        for outcome, count in series.renewals.items():
            renewals.add_metric((*sample.labels, outcome), count)
        for outcome, count in series.leases.items():
            leases.add_metric((*sample.labels, outcome), count)
        for cause, count in series.retries.items():
            retries.add_metric((*sample.labels, cause), count)
        for cause, count in series.ejections.items():
            ejections.add_metric((*sample.labels, cause), count)
        for phase, count in (series.expired + series.queue.expired()).items():
            expired.add_metric((*sample.labels, phase), count)
        for outcome, count in series.hedges.items():
            hedges.add_metric((*sample.labels, outcome), count)
        for result, count in series.prefixes.items():
            prefixes.add_metric((*sample.labels, result), count)
    yield from (expired, hedges, prefixes)
    yield cache
    yield renewals
    yield leases
    yield retries
    yield ejections


def _queues(samples: list[Sample]) -> Iterator[Metric]:
    waits = _histogram(metric_names.GATEWAY_QUEUE_WAIT)
    refused = _counter(metric_names.GATEWAY_QUEUE_REFUSED)
    tenants = _gauge(metric_names.GATEWAY_QUEUE_TENANTS)
    for sample in samples:
        labels, queue = sample.labels, sample.series.queue
        for priority, waited in queue.waits.items():
            waits.add_metric((*labels, priority.word), waited.cumulative(), waited.seconds)
        for (priority, cause), count in queue.refusals.items():
            refused.add_metric((*labels, priority.word, cause), count)
        tenants.add_metric(labels, sample.tenants)
    yield from (waits, refused, tenants)


def _gauges(samples: list[Sample]) -> Iterator[Metric]:
    in_flight = _gauge(metric_names.GATEWAY_IN_FLIGHT)
    waiting = _gauge(metric_names.GATEWAY_WAITING)
    endpoints = _gauge(metric_names.GATEWAY_ENDPOINTS)
    precomputed = _gauge(metric_names.GATEWAY_PRECOMPUTED)
    for sample in samples:
        in_flight.add_metric(sample.labels, sample.in_flight)
        waiting.add_metric(sample.labels, sample.waiting)
        for state, count in sample.endpoints.items():
            endpoints.add_metric((*sample.labels, state), count)
        for state, count in sample.precomputed.items():
            precomputed.add_metric((*sample.labels, state), count)
    yield in_flight
    yield waiting
    yield endpoints
    yield precomputed
