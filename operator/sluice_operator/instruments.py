"""The collectors of the operator's own process: calls, queue, leadership, watches.

``app`` makes one and hands it to those who count; ``health`` shows it on ``/metrics``, beside
what scaling has to say.
"""

from prometheus_client import CollectorRegistry

from sluice_api import metric_names
from sluice_api.exposition import counter, gauge, histogram


class Instruments:
    """Everything in ``metric_names`` that begins with ``sluice_operator_``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._calls = counter(metric_names.OPERATOR_API_REQUESTS, registry)
        self._call_seconds = histogram(metric_names.OPERATOR_API_SECONDS, registry)
        self.queue_depth = gauge(metric_names.OPERATOR_QUEUE_DEPTH, registry)
        self.queue_age = gauge(metric_names.OPERATOR_QUEUE_AGE, registry)
        self._reconciles = counter(metric_names.OPERATOR_RECONCILES, registry)
        self._reconcile_seconds = histogram(metric_names.OPERATOR_RECONCILE_SECONDS, registry)
        self._leader = gauge(metric_names.OPERATOR_LEADER, registry)
        self._leader_changes = counter(metric_names.OPERATOR_LEADER_CHANGES, registry)
        self.services = gauge(metric_names.OPERATOR_SERVICES, registry)
        self.watch_events = counter(metric_names.OPERATOR_WATCH_EVENTS, registry)
        self.findings = counter(metric_names.OPERATOR_AUDIT_FINDINGS, registry)
        self.synced = gauge(metric_names.OPERATOR_SYNCED, registry)
        self.events_dropped = counter(metric_names.OPERATOR_EVENTS_DROPPED, registry)

    def api_call(self, verb: str, resource: str, code: str, seconds: float) -> None:
        """Count one call; ``code`` is the HTTP status or ``none``."""
        self._calls.labels(verb, resource, code).inc()
        self._call_seconds.labels(verb).observe(seconds)

    def reconciled(self, outcome: str, seconds: float) -> None:
        self._reconciles.labels(outcome).inc()
        self._reconcile_seconds.observe(seconds)

    def leads(self, leading: bool) -> None:
        self._leader.set(leading)
        self._leader_changes.labels("leader" if leading else "follower").inc()
