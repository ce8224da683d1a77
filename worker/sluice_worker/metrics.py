"""The worker's own collectors, built from the shared table, with every label set from the start."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry

from sluice_api import metric_names as table
from sluice_api.exposition import counter, expose, gauge, histogram
from sluice_api.routes import POST_ROUTES, V2_PREFIX, V2_SUFFIX
from sluice_api.tasks import Task

V2_ROUTE = f"{V2_PREFIX}{{name}}{V2_SUFFIX}"
OTHER_ROUTE = "other"
REFUSALS = ("overloaded", "deadline_exceeded", "starting", "draining")
CAPTURES = ("captured", "no_room", "failed")


class Metrics:
    """One per process; collectors are safe to touch from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = counter(table.WORKER_REQUESTS, registry)
        self.inputs = counter(table.WORKER_INPUTS, registry)
        self.tokens = counter(table.WORKER_TOKENS, registry)
        self.padding = counter(table.WORKER_PADDING, registry)
        self.queue_seconds = histogram(table.WORKER_QUEUE_SECONDS, registry)
        self.batch_seconds = histogram(table.WORKER_BATCH_SECONDS, registry)
        self.batch_tokens = histogram(table.WORKER_BATCH_TOKENS, registry)
        self.tokenize_seconds = histogram(table.WORKER_TOKENIZE_SECONDS, registry)
        self.first_token_seconds = histogram(table.WORKER_FIRST_TOKEN_SECONDS, registry)
        self.next_token_seconds = histogram(table.WORKER_NEXT_TOKEN_SECONDS, registry)
        self.written = counter(table.WORKER_WRITTEN, registry)
        self.found = counter(table.WORKER_FOUND, registry)
        self.preemptions = counter(table.WORKER_PREEMPTIONS, registry)
        self.captures = counter(table.WORKER_CAPTURES, registry)
        self.kv_use = gauge(table.WORKER_KV_USE, registry)
        self.waiting = gauge(table.WORKER_WAITING, registry)
        self.running = gauge(table.WORKER_RUNNING, registry)
        self.backlog = gauge(table.WORKER_BACKLOG, registry)
        self.refused = counter(table.WORKER_REFUSED, registry)
        self.ready = gauge(table.WORKER_READY, registry)
        self.info = gauge(table.WORKER_INFO, registry)
        for route in (*POST_ROUTES, V2_ROUTE, OTHER_ROUTE):
            self.requests.labels(route, "200")
        for outcome in CAPTURES:
            self.captures.labels(outcome)
        for reason in REFUSALS:
            self.refused.labels(reason)
        for task in Task:
            self.inputs.labels(task)
            self.tokens.labels(task)

    def watch(
        self,
        *,
        waiting: Callable[[], float],
        running: Callable[[], float],
        backlog: Callable[[], float],
    ) -> None:
        """Read these gauges at scrape time; the functions are called on the admin thread."""
        self.waiting.set_function(waiting)
        self.running.set_function(running)
        self.backlog.set_function(backlog)

    def page(self) -> bytes:
        """The text of ``GET /metrics``."""
        return expose(self.registry)
