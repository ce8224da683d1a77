"""What happened to the replicas of some services, moment by moment, from a watch of their own.

Deployments are watched on a thread; times are those of receipt, on the wall clock.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from kubernetes import client, watch
from urllib3.exceptions import HTTPError

from sluice_api.names import SERVICE_LABEL
from tests.support.cluster.access import Access


class Seen(NamedTuple):
    """A Deployment at one moment."""

    at: float
    ordered: int
    ready: int
    writer: str


class ReplicaLog:
    """The history of each service, oldest first; a service's Deployments are summed."""

    def __init__(self) -> None:
        self.history: dict[str, list[Seen]] = defaultdict(list)
        self._now: dict[str, tuple[str, int, int]] = {}

    def take(self, deployment: client.V1Deployment) -> None:
        service = deployment.metadata.labels.get(SERVICE_LABEL, "")
        ordered = deployment.spec.replicas or 0
        ready = (deployment.status and deployment.status.ready_replicas) or 0
        self._now[deployment.metadata.name] = (service, ordered, ready)
        mine = [counts for counts in self._now.values() if counts[0] == service]
        seen = Seen(
            time.time(), sum(c[1] for c in mine), sum(c[2] for c in mine), _writer(deployment)
        )
        before = self.history[service]
        if not before or before[-1][1:3] != seen[1:3]:
            before.append(seen)

    def first(self, service: str, since: float, **wanted: int) -> float | None:
        """When so many were ``ordered`` or ``ready`` at least, first after ``since``."""
        for seen in self.history[service]:
            if seen.at >= since and all(getattr(seen, k) >= n for k, n in wanted.items()):
                return seen.at
        return None

    def peak(self, service: str, since: float = 0.0) -> int:
        return max((s.ordered for s in self.history[service] if s.at >= since), default=0)

    def now(self, service: str) -> Seen:
        history = self.history[service]
        return history[-1] if history else Seen(time.time(), 0, 0, "")


def _writer(deployment: client.V1Deployment) -> str:
    """The field manager that owns ``spec.replicas``; the last one, if several do."""
    owners = [
        entry.manager
        for entry in deployment.metadata.managed_fields or ()
        if "f:replicas" in ((entry.fields_v1 or {}).get("f:spec") or {})
    ]
    return owners[-1] if owners else ""


@contextmanager
def replica_log(cluster: Access, namespace: str) -> Iterator[ReplicaLog]:
    """Watch the Deployments of a namespace until the block ends."""
    log, stopping, begun = ReplicaLog(), threading.Event(), threading.Event()
    api = client.AppsV1Api(cluster.api)

    def follow() -> None:
        while not stopping.is_set():
            stream = watch.Watch()
            try:
                begun.set()
                for event in stream.stream(
                    api.list_namespaced_deployment, namespace, timeout_seconds=2
                ):
                    log.take(event["object"])
            except (client.ApiException, HTTPError):
                stopping.wait(0.2)  # The API server is away in some tests.

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    begun.wait(60)
    try:
        yield log
    finally:
        stopping.set()
        thread.join(10)
