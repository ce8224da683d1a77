"""kopf, as a watcher and nothing else: what it brings goes into the store and onto the queue.

No finalizers, no annotations, no peering, no posting, no state: its handlers for ``event`` are the
only ones used, because they miss nothing and remember nothing. ``Watches.run`` ends only with an
error, so that a process whose watches have died ends as well. Started by ``app``.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, Protocol

import aiohttp
import kopf
from kopf._core.reactor.inventory import ResourceMemories  # an argument of spawn_tasks

from sluice_operator.instruments import Instruments
from sluice_operator.kinds import Watched
from sluice_operator.order import InOrder
from sluice_operator.state import Key
from sluice_operator.store import Store, address_of

log = logging.getLogger(__name__)

WATCH_SECONDS: Final = 600
"""The API server ends a watch after so long, and kopf goes on where it ended."""
CONNECT_SECONDS: Final = 10.0
LIST_CHUNK: Final = 100
BUSY_TASKS: Final = 250
"""kopf has a task for each object that it has listed and not yet handed over."""
PATIENCE_SECONDS: Final = 30.0
STOP_SECONDS: Final = 5.0
PAUSES_SECONDS: Final = (0.1, 0.2, 0.4, 0.8, 1, 1, 2, 2, 4, 4, 8, 8, 16, 16)


class WatchesEnded(Exception):
    """kopf has stopped, though nobody asked it to."""


class Api(Protocol):
    """What is needed of the cluster."""

    @property
    def server(self) -> str: ...
    def session(self, *middlewares: aiohttp.ClientMiddlewareType) -> aiohttp.ClientSession: ...


class Watches:
    """The watches of all kinds.

    Args:
        changed: called with each service about which something has changed.
        listed_anew: called when a watch had to begin from the start.
    """

    def __init__(
        self,
        watched: Sequence[Watched],
        api: Api,
        store: Store,
        changed: Callable[[Key], None],
        listed_anew: Callable[[], None],
        instruments: Instruments,
    ) -> None:
        self._watched = watched
        self._api = api
        self._listing = asyncio.Lock()
        self._store = store
        self._changed = changed
        self._listed_anew = listed_anew
        self._instruments = instruments
        self._order = InOrder(self._take)
        self._tasks: Collection[asyncio.Task[Any]] = ()

    def __repr__(self) -> str:
        state = "not begun" if not self._tasks else "running"
        ended = any(task.done() for task in self._tasks)
        return f"<Watches of {len(self._watched)} kinds, {'ended' if ended else state}>"

    async def start(self) -> None:
        """Begin to watch. kopf takes SIGINT and SIGTERM here; the caller takes them back."""
        self._tasks = await kopf.spawn_tasks(
            registry=self._registry(),
            settings=self._settings(),
            identity=_IDENTITY,
            memories=NoMemories(),
            standalone=True,
            clusterwide=True,
        )

    async def run(self) -> None:
        """Wait for the end of kopf. Raises what ended it, or WatchesEnded."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled() and (error := task.exception()):
                raise WatchesEnded(f"{task.get_name()}: {error}") from error
        raise WatchesEnded(f"{next(iter(done)).get_name()} has ended")

    async def stop(self) -> None:
        """End kopf's tasks; those that do not end in time are left to the end of the loop."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_SECONDS)

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(self._connection)
        for each in self._watched:
            group, version, plural = each.kind.group, each.kind.version, each.kind.plural
            kopf.on.event(group, version, plural, registry=registry)(self._brought)
        return registry

    def _settings(self) -> kopf.OperatorSettings:
        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.process.ultimate_exiting_timeout = None
        settings.persistence.diffbase_storage = NoDiffs()
        settings.watching.server_timeout = WATCH_SECONDS
        settings.watching.connect_timeout = CONNECT_SECONDS
        settings.watching.chunk_size = LIST_CHUNK
        settings.networking.connect_timeout = CONNECT_SECONDS
        settings.networking.request_timeout = 60
        settings.networking.error_backoffs = PAUSES_SECONDS
        settings.networking.enforce_retry_after = True
        settings.queueing.idle_timeout = 0.05  # or the object stays in memory for so long
        for each in self._watched:
            kind = (each.kind.group, each.kind.version, each.kind.plural)
            if each.label_selector:
                settings.watching.label_selectors[kind] = each.label_selector
            if each.field_selector:
                settings.watching.field_selectors[kind] = each.field_selector
        return settings

    async def _connection(self, **_: Any) -> kopf.AiohttpSession:
        session = self._api.session(self._in_turn)
        return kopf.AiohttpSession(aiohttp_session=session, server=self._api.server)

    async def _in_turn(
        self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Let a page be listed only when those before it are in the store.

        kopf would read them all at once, and hold them in memory until it comes to each object.
        """
        if "watch" in request.url.query:
            return await send(request)
        async with self._listing:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while len(asyncio.all_tasks()) > BUSY_TASKS:  # noqa: ASYNC110 - makes no sign
                        await asyncio.sleep(0.02)
            except TimeoutError:
                pass  # slow, but nobody has to starve for it
            response = await send(request)
            await response.read()
            return response

    async def _brought(self, event: kopf.RawEvent, **_: Any) -> None:
        self._order.add(event)

    def _take(self, event: kopf.RawEvent) -> None:
        item: Any = event["object"]
        self._instruments.watch_events.labels(item["kind"]).inc()
        if event["type"] is None:
            self._listed_anew()
        if event["type"] == "DELETED":
            metadata = item["metadata"]
            version = metadata.get("resourceVersion", "")
            keys = self._store.remove(address_of(item), metadata["uid"], version)
        else:
            keys = self._store.put(item)
        self._instruments.services.set(len(self._store))
        for key in keys:
            self._changed(key)


_IDENTITY: Final[Any] = "sluice-operator"  # unused: said so that kopf does not ask who runs it


class NoMemories(ResourceMemories):
    """Keeps nothing: what kopf remembers of each object is for handlers that we do not use."""

    async def recall(self, raw_body: Any, **options: Any) -> Any:
        return await super().recall(raw_body, **options | {"ephemeral": True})


class NoDiffs(kopf.DiffBaseStorage):
    """Keeps nothing: no handler here asks what differs, and finding out costs most of an event."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None
