"""``--processes N``: one supervisor, N children on one listening socket. No request passes here.

The supervisor owns what there must be one of: the admin port, the source of services, the sums of
what the children count, and the signals. Children are ordinary gateways (``child``) that take
connections from the socket it made; one that ends is replaced while the others go on.

    signal → not ready → children drain → the last has ended → admin port closes
"""

import asyncio
import logging
import secrets
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import uvicorn
from prometheus_client import CollectorRegistry

from sluice_api import exposition, metric_names, names, wire
from sluice_api.errors import ApiError
from sluice_gateway.app import (
    announce,
    api_server,
    identity,
    make_discovery,
    make_readers,
    server_config,
    url_of,
)
from sluice_gateway.control.health import Health
from sluice_gateway.demand import INTERVAL_SECONDS, URGENT_PAUSE_SECONDS, DemandFeed
from sluice_gateway.edge import Connections
from sluice_gateway.fallback import make_guarded
from sluice_gateway.keys import SECRET_BYTES
from sluice_gateway.processes.admin import Forwarded, make_app
from sluice_gateway.processes.demand import Track, Tracks
from sluice_gateway.processes.link import Answered, Down, Put, Remove, Replace, Tick, Told
from sluice_gateway.processes.shares import share_of
from sluice_gateway.processes.slot import Gone, Slot
from sluice_gateway.processes.sums import Page, lasting, read_page, sum_pages, write_page
from sluice_gateway.settings import Settings

TELL_SECONDS: Final = 0.05
"""Children have so long to tell what a second held; what comes later counts for the next."""
GATHER_SECONDS: Final = 0.02
"""Children that are asked for a sleeping service at one instant are told of as one."""
TIMER_SECONDS: Final = 0.002
"""A timer of the loop may come so much too early."""
KILL_SECONDS: Final = 10.0
"""Beyond its time for draining, a child may take so long to end."""
_PAGE: Final = Forwarded("GET", "/metrics")

log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals alone."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Board:
    """The services there are: told by discovery, shared out to every child, old and new."""

    def __init__(self, processes: int, tracks: Tracks, send: Callable[[Down], None]) -> None:
        self._processes = processes
        self._tracks = tracks
        self._send = send
        self._specs: dict[tuple[str, str], wire.Service] = {}

    def __repr__(self) -> str:
        return f"<Board {len(self._specs)} services>"

    def everything(self) -> Replace:
        """For a child that knows nothing yet."""
        return Replace(list(self._specs.values()))

    def replace(self, table: wire.ServiceTable) -> None:
        wanted = {(spec.namespace, spec.name) for spec in table.services}
        for key in self._specs.keys() - wanted:
            self._forget(*key)
        for spec in table.services:
            self._keep(spec)
        self._send(self.everything())

    def put(self, spec: wire.Service) -> None:
        self._send(Put(self._keep(spec)))

    def remove(self, namespace: str, name: str) -> None:
        self._forget(namespace, name)
        self._send(Remove(namespace, name))

    def _keep(self, spec: wire.Service) -> wire.Service:
        share = share_of(spec, self._processes)
        self._specs[spec.namespace, spec.name] = share
        self._tracks.put(spec, time.monotonic())
        return share

    def _forget(self, namespace: str, name: str) -> None:
        self._specs.pop((namespace, name), None)
        self._tracks.remove((namespace, name))


class Supervisor:
    """All children and what they have in common. Must be made inside the running event loop.

    Args:
        arguments: of the command line, which the children are given too.
        public: the listening socket for applications.
    """

    def __init__(self, given: Settings, arguments: Sequence[str], public: socket.socket) -> None:
        self._settings = given
        self._public = public
        self._loop = asyncio.get_running_loop()
        api = api_server(given)
        self._discovery = make_discovery(given, api)
        self._health = Health(lambda: time.monotonic() - self._discovery.read_at)
        self._tracks = Tracks(self._urgent)
        self._feed = DemandFeed(identity(), self._tracks.all)
        self._board = Board(given.processes, self._tracks, self._send)
        self._told_soon: set[Track] = set()
        self._gone: Page = {}  # what ended children have counted
        self._connections = Connections(given.limits)
        self._registry = self._own_metrics()
        self._ends = exposition.counter(metric_names.GATEWAY_PROCESS_ENDS, self._registry)
        # They must agree on it: answers in Redis are for all of them.
        cache_secret = secrets.token_hex(SECRET_BYTES) if given.cache_secret is None else None
        self._slots = [
            Slot(
                number,
                arguments,
                public,
                on_joined=self._joined,
                on_ready=self._update_health,
                on_told=self._told,
                on_gone=self._child_gone,
                cache_secret=cache_secret,
            )
            for number in range(1, given.processes + 1)
        ]
        app = make_app(
            self,
            self._health,
            self._feed,
            self._page,
            self._status,
            make_readers(given, api),
            self._connections.new_id,
        )
        self._server = _Server(server_config(app, partial(make_guarded, self._connections), given))

    def __repr__(self) -> str:
        return f"<Supervisor {self._slots!r}>"

    async def serve(self, admin: socket.socket) -> bool:
        """Serve until a signal; False when it stopped by itself.

        Raises:
            TableError: there is nothing to begin with.
            SystemExit: the first child could not start; with its exit code.
        """
        self._discovery.begin(self._board)
        self._connections.start(self._loop)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._asked_to_stop)
        parts = [
            self._loop.create_task(self._discovery.run(self._board), name="discovery"),
            self._loop.create_task(self._tick(), name="demand"),
            self._loop.create_task(self._server.serve([admin]), name="admin"),
        ]
        first = self._slots[0]
        runs = [self._loop.create_task(first.run(first=True), name="process 1")]
        # One goes ahead: what it cannot start with, none can, and it is said once.
        await _first_of(first.ready.wait(), runs[0])
        if first.ready.is_set() and not self._health.draining:
            runs += [
                self._loop.create_task(slot.run(), name=f"process {slot.number}")
                for slot in self._slots[1:]
            ]
            parts.append(self._loop.create_task(self._announce(), name="announce"))
        try:
            ended, _ = await asyncio.wait([*runs, *parts[:3]], return_when=asyncio.FIRST_COMPLETED)
            well = self._health.draining
            if not well:
                self._report(next(iter(ended)))
                self._asked_to_stop()
            await self._children_ended(runs)
        finally:
            await self._stop(parts)
        code = runs[0].result() if not first.restarts and not well and runs[0].done() else 0
        if code == names.EXIT_BAD_CONFIGURATION:
            raise SystemExit(code)
        return well

    # For the admin port ---------------------------------------------------------------------------

    async def ask_one(self, request: Forwarded) -> Answered:
        for slot in self._ready():
            try:
                return await _ask(slot, request)
            except Gone:
                continue
        raise _nobody()

    async def ask_all(self, request: Forwarded) -> list[Answered]:
        answers = await asyncio.gather(
            *(_ask(slot, request) for slot in self._ready()), return_exceptions=True
        )
        found = [answer for answer in answers if isinstance(answer, Answered)]
        if not found:
            raise _nobody()
        return found

    # Services and demand --------------------------------------------------------------------------

    def _send(self, message: Down) -> None:
        for slot in self._slots:
            slot.send(message)

    def _joined(self, slot: Slot) -> None:
        if self._discovery.synced.is_set():
            slot.send(self._board.everything())

    def _told(self, slot: Slot, told: Told) -> None:
        track = self._tracks.take(slot.number, told.records, time.monotonic())
        if track is not None and not told.regular:
            self._urgent(track)

    def _urgent(self, track: Track) -> None:
        """Tell of ``track`` soon: after what other children have to say at this instant."""
        if track in self._told_soon:
            return
        self._told_soon.add(track)
        now = time.monotonic()
        due = max(now + GATHER_SECONDS, track.tally.started + URGENT_PAUSE_SECONDS)
        self._loop.call_later(due - now + TIMER_SECONDS, self._tell, track)

    def _tell(self, track: Track) -> None:
        self._told_soon.discard(track)
        self._feed.urgent(track)

    async def _tick(self) -> None:
        """Have every second's demand told, on a grid that does not drift."""
        number, due = 0, time.monotonic()
        while True:
            due = max(due + INTERVAL_SECONDS, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            number += 1
            for slot in self._slots:
                slot.tick(Tick(number))
            await asyncio.sleep(TELL_SECONDS)
            self._feed.tick(number, time.monotonic())

    # Children -------------------------------------------------------------------------------------

    def _ready(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.ready.is_set()]

    def _update_health(self) -> None:
        self._health.synced = self._discovery.synced.is_set()
        self._health.reached = bool(self._ready())

    def _child_gone(self, slot: Slot) -> None:
        self._gone = sum_pages([self._gone, lasting(slot.page)])
        slot.page = {}
        if not self._health.draining:
            self._ends.inc()
        self._tracks.forget(slot.number)
        self._update_health()

    async def _announce(self) -> None:
        for slot in self._slots:
            await slot.ready.wait()
        announce(url_of(self._public))

    # Metrics and status ---------------------------------------------------------------------------

    def _own_metrics(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        age = exposition.gauge(metric_names.GATEWAY_DISCOVERY_AGE, registry)
        age.set_function(lambda: time.monotonic() - self._discovery.read_at)
        ready = exposition.gauge(metric_names.GATEWAY_PROCESSES, registry)
        ready.set_function(lambda: len(self._ready()))
        return registry

    async def _page(self) -> bytes:
        """The sum of all pages. A child that does not answer counts with its last one."""
        await asyncio.gather(*(self._read_page(slot) for slot in self._ready()))
        total = sum_pages([self._gone, *(slot.page for slot in self._slots)])
        return write_page(total).encode() + exposition.expose(self._registry)

    async def _read_page(self, slot: Slot) -> None:
        try:
            answer = await _ask(slot, _PAGE)
        except Gone:
            return
        if answer.status == 200 and slot.ready.is_set():
            slot.page = read_page(answer.body.decode())

    def _status(self) -> dict[str, str]:
        parts = (self._discovery, self._board, self._tracks, self._feed, self._connections)
        slots = {f"Process {slot.number}": repr(slot) for slot in self._slots}
        return {type(part).__name__: repr(part) for part in parts} | slots

    # The end --------------------------------------------------------------------------------------

    def _asked_to_stop(self) -> None:
        """A signal. The first drains, the second ends the waiting."""
        if not self._health.draining:
            log.info("draining", extra={"delay_seconds": self._settings.drain_delay})
            self._health.draining = True
            # The children's own copies keep it open for as long as they take connections; ours
            # would let callers in to whom nobody speaks.
            self._public.close()
        for slot in self._slots:
            slot.stop()

    async def _children_ended(self, runs: "list[asyncio.Task[int]]") -> None:
        settings = self._settings
        bound = settings.drain_delay + settings.drain_grace + KILL_SECONDS
        _, left = await asyncio.wait(runs, timeout=bound)
        if left:
            log.error("processes ended by force", extra={"count": len(left)})
            for slot in self._slots:
                slot.signal(signal.SIGKILL)
            await asyncio.wait(left)

    async def _stop(self, parts: "list[asyncio.Task[None]]") -> None:
        self._feed.close()
        self._server.should_exit = True
        for part in parts:
            if part.get_name() != "admin":
                part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        self._connections.close()
        log.info("stopped")

    def _report(self, ended: "asyncio.Task[int | None]") -> None:
        """A part that must run for ever has ended: the process is of no use without it."""
        error = None if ended.cancelled() else ended.exception()
        log.critical("a part ended", exc_info=error, extra={"part": ended.get_name()})


async def _ask(slot: Slot, request: Forwarded) -> Answered:
    return await slot.ask(
        request.method, request.path, request.query, request.headers, request.body
    )


async def _first_of(
    awaited: "Coroutine[object, object, object]", task: "asyncio.Task[int]"
) -> None:
    """Return when one of both is over."""
    waiting = asyncio.ensure_future(awaited)
    await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _nobody() -> ApiError:
    return ApiError("starting", "No process of the gateway is ready.", retry_after=1.0)
