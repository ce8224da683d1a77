"""Kubernetes Events on InferenceServices: what people see in ``kubectl describe``.

``reconcile`` announces; a task of ``app`` posts, at a bounded pace and from a bounded queue, so
that Events never hold anything up. One that is said again soon counts up instead of standing
there twice.
"""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any, Final

from sluice_api import names
from sluice_operator import kinds
from sluice_operator.api_errors import ApiError, Conflict, NamespaceEnding, NotFound, NotLeader
from sluice_operator.cluster import Cluster
from sluice_operator.instruments import Instruments
from sluice_operator.pace import Pace
from sluice_operator.state import Key, Object
from sluice_operator.steps import Event

log = logging.getLogger(__name__)

WAITING: Final = 1000
REMEMBERED: Final = 5000
PER_SECOND: Final = 10.0
MESSAGE_LENGTH: Final = 1000


class Announcer:
    """Posts Events in the background.

    Args:
        identity: the pod's name, for ``reportingInstance``.
    """

    def __init__(self, cluster: Cluster, identity: str, instruments: Instruments) -> None:
        self._cluster = cluster
        self._identity = identity
        self._instruments = instruments
        self._pace = Pace(PER_SECOND, burst=50)
        self._waiting: asyncio.Queue[tuple[Object, Event]] = asyncio.Queue(WAITING)
        self._counts: OrderedDict[tuple[Key, str], int] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Announcer {self._waiting.qsize()} waiting>"

    def announce(self, resource: Object, event: Event) -> None:
        """Have an Event posted; dropped, and counted, when too many wait."""
        try:
            self._waiting.put_nowait((resource, event))
        except asyncio.QueueFull:
            self._instruments.events_dropped.inc()

    async def run(self) -> None:
        """Post until cancelled."""
        while True:
            resource, event = await self._waiting.get()
            await self._pace.take()
            try:
                await self._post(resource, event)
            except (NotLeader, NamespaceEnding):
                pass  # the next leader tells what it does; of what goes, nothing is to be told
            except ApiError as error:
                self._instruments.events_dropped.inc()
                log.warning("event not posted", extra={"error": str(error)})

    async def _post(self, resource: Object, event: Event) -> None:
        metadata = resource["metadata"]
        name = event_name(resource, event)
        key = (Key(metadata["namespace"], metadata["name"]), name)
        count = self._counts.get(key, 0) + 1
        self._counts[key] = count
        self._counts.move_to_end(key)
        while len(self._counts) > REMEMBERED:
            self._counts.popitem(last=False)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            await self._cluster.create(kinds.EVENT, self._object(resource, event, name, now))
        except Conflict:
            self._counts[key] = count = max(2, count)  # an operator before this one said it first
            again = {"count": count, "lastTimestamp": now}
            try:
                await self._cluster.merge(kinds.EVENT, metadata["namespace"], name, again)
            except NotFound:
                pass  # it ran out in this very moment

    def _object(self, resource: Object, event: Event, name: str, now: str) -> dict[str, Any]:
        metadata = resource["metadata"]
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": metadata["namespace"], "name": name},
            "involvedObject": {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:MESSAGE_LENGTH],
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": "sluice-operator"},
            "reportingComponent": "sluice-operator",
            "reportingInstance": self._identity,
        }


def event_name(resource: Object, event: Event) -> str:
    """The same for the same news of the same object, so that saying it twice is a conflict."""
    metadata = resource["metadata"]
    news = "\0".join((metadata["uid"], event.type, event.reason, event.message))
    return f"{metadata['name']}.{hashlib.sha256(news.encode()).hexdigest()[:16]}"
