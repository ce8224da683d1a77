"""Services and workers from the API server: ``--discovery kubernetes``.

Watches InferenceServices and the EndpointSlices of their workers, and hands over what changed, one
service at a time. While the API server is away everything goes on with what was known last; how old
that is shows in a metric. Made by ``app``.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from sluice_api import names, wire
from sluice_gateway.cluster.api import ApiServer
from sluice_gateway.cluster.view import Key, Services, Slices, View
from sluice_gateway.cluster.watch import Watch
from sluice_gateway.discovery import Table

GATHER_SECONDS: Final = 0.005
"""Changes that come together are applied together: a worker's end is often two events."""
TURN: Final = 50
"""Services applied before requests get their turn."""
_RESOURCES: Final = f"apis/{names.API_VERSION}", names.PLURAL
_SLICES: Final = "apis/discovery.k8s.io/v1", "endpointslices"
_SELECTOR: Final = f"{names.MANAGED_BY}={names.MANAGER},{names.SERVICE_LABEL}"

log = logging.getLogger(__name__)


class KubernetesDiscovery:
    """The cluster as a source.

    Args:
        namespaces: those to look at; none for all.
    """

    def __init__(self, api: ApiServer, namespaces: Sequence[str]) -> None:
        self.synced = asyncio.Event()
        self._dirty: set[Key] = set()
        self._wake = asyncio.Event()
        self._view = View(self._changed)
        self._watches = []
        for namespace in namespaces or (None,):
            services, slices = Services(self._view, namespace), Slices(self._view, namespace)
            self._watches += [
                Watch(api, _path(_RESOURCES, namespace), "", services),
                Watch(api, _path(_SLICES, namespace), _SELECTOR, slices),
            ]

    def __repr__(self) -> str:
        return f"<KubernetesDiscovery {self._view!r} {self._watches!r}>"

    @property
    def read_at(self) -> float:
        """When the quietest of the watches was last heard."""
        return min(watch.heard_at for watch in self._watches)

    def begin(self, table: Table) -> None:
        """Nothing is known yet, and that is no error: the API server may be away."""

    async def run(self, table: Table) -> None:
        async with asyncio.TaskGroup() as group:
            for watch in self._watches:
                group.create_task(watch.run(), name=f"watch {watch.path}")
            for watch in self._watches:
                await watch.listed.wait()
            lines = (self._view.line(key) for key in self._view.lines)
            table.replace(wire.ServiceTable(services=[line for line in lines if line]))
            self._dirty.clear()
            self.synced.set()
            while True:
                await self._wake.wait()
                await asyncio.sleep(GATHER_SECONDS)
                await self._apply(table)

    async def _apply(self, table: Table) -> None:
        self._wake.clear()
        dirty, self._dirty = self._dirty, set()
        for number, key in enumerate(dirty, 1):
            try:
                line = self._view.line(key)
                if line is None:
                    table.remove(*key)
                else:
                    table.put(line)
            except Exception:  # One service must not take the others' changes with it.
                log.exception("service could not be applied", extra={"service": "/".join(key)})
            if number % TURN == 0:
                await asyncio.sleep(0)

    def _changed(self, key: Key) -> None:
        self._dirty.add(key)
        self._wake.set()


def _path(collection: tuple[str, str], namespace: str | None) -> str:
    group, plural = collection
    inside = f"namespaces/{namespace}/" if namespace is not None else ""
    return f"/{group}/{inside}{plural}"
