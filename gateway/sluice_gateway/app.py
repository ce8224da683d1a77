"""One gateway process: its parts, put together once, started and stopped in a fixed order.

``__main__`` makes a :class:`Gateway` from settings and runs it. Stopping goes the other way round
than starting: not ready → stop accepting → drain → cancel what is left, counted → close clients.
"""

import asyncio
import contextlib
import logging
import math
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

import uvicorn
from fastapi import FastAPI

from sluice_api import metric_names, names, wire
from sluice_api.errors import ApiError
from sluice_gateway import descriptors
from sluice_gateway.access_log import AccessLog
from sluice_gateway.auth import Anonymous, Authenticator
from sluice_gateway.balance import Rules
from sluice_gateway.cache import ResponseCache
from sluice_gateway.coalesce import Flights
from sluice_gateway.control import admin, public
from sluice_gateway.control.health import Health
from sluice_gateway.cors import Cors
from sluice_gateway.demand import DemandFeed
from sluice_gateway.discovery import Discovery, StaticDiscovery
from sluice_gateway.dispatch import Dispatcher
from sluice_gateway.edge import Edge
from sluice_gateway.fallback import make_guarded
from sluice_gateway.idempotency import Repeats
from sluice_gateway.invalidation import Invalidations
from sluice_gateway.keys import Keyring
from sluice_gateway.metrics import Metrics, Sample
from sluice_gateway.precompute import Precompute
from sluice_gateway.protocol import make_fast
from sluice_gateway.redis_cluster import open_store
from sluice_gateway.redis_store import Store
from sluice_gateway.services import Services
from sluice_gateway.settings import Settings
from sluice_gateway.shared_limits import SharedLimits
from sluice_gateway.tenants import Keys
from sluice_gateway.timers import TimerWheel

if TYPE_CHECKING:
    from sluice_gateway.cluster.api import ApiServer

AdminPort = tuple["_Server", "asyncio.Task[None]"]
SELF_PROBE_SECONDS: Final = 0.02
BACKLOG: Final = 2048

log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """A uvicorn server that tells of the first signal and leaves the rest to uvicorn."""

    gateway: "Gateway"
    owns_signals = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if not self.owns_signals:
            yield
            return
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.gateway.health.draining:
            self.force_exit = True  # Asked twice: do not wait for clients any longer.
            self.should_exit = True
        else:
            self.gateway.begin_draining()


class Gateway:
    """All parts of one process. Must be made inside the running event loop.

    Args:
        discovery: where the services come from, where the settings do not say it.
        on_demand: told of demand instead of a feed of this process's own.
    """

    def __init__(
        self,
        settings: Settings,
        discovery: Discovery | None = None,
        on_demand: Callable[[list[wire.Demand], bool], None] | None = None,
    ) -> None:
        self.settings = settings
        self.failed = False
        self._loop = asyncio.get_running_loop()
        self._public: _Server | None = None
        api = api_server(settings)
        self._know_services(discovery or make_discovery(settings, api), on_demand)
        dispatcher = self._lay_path(Keyring.load(settings.cache_secret, make=api is None))
        self._open_doors(dispatcher, make_readers(settings, api))

    def _know_services(
        self,
        discovery: Discovery,
        on_demand: Callable[[list[wire.Demand], bool], None] | None,
    ) -> None:
        """Who answers: the services, where they come from, and what is told of them."""
        settings = self.settings
        self.discovery = discovery
        self.health = Health(lambda: time.monotonic() - discovery.read_at)
        self.wheel = TimerWheel(self._loop)
        self.metrics = Metrics()
        self.feed = DemandFeed(
            identity(),
            lambda: self.services.tracks(),
            on_demand,
            # A table's workers come and go by other hands, which need not read the demand.
            self._attended if settings.in_cluster and on_demand is None else None,
        )
        self._feeds_itself = on_demand is None
        balancing = Rules(settings.zone, settings.slow_start, settings.connect_timeout)
        self.services = Services(self.wheel, self.feed.urgent, balancing)

    def _lay_path(self, keyring: Keyring) -> Dispatcher:
        """What a request passes: its caller's rights and limits, the cache, what is under way."""
        settings, metrics = self.settings, self.metrics
        self.redis = _redis(settings, metrics)
        self.cache = ResponseCache(
            keyring, l1_bytes=settings.cache_bytes, redis=self.redis, faults=metrics.cache_fault
        )
        self.invalidations = Invalidations(self.cache, self.redis, settings.unheard_seconds)
        self.flights = Flights()
        self.repeats = Repeats(
            settings.repeats_seconds,
            settings.repeats_bytes,
            metrics.repeated,
            self.wheel.at,
            version=lambda: self.cache.epochs.version,
        )
        self.access_log = AccessLog(1) if settings.access_log else None
        self.limits = SharedLimits(
            self.redis,
            gateways=settings.limit_gateways,
            identity=identity(),
            hide=lambda words: keyring.naming[0](b"sluice limit\0" + words),
            failed=metrics.limit_fault,
        )
        self.keys: Keys | None = None
        self.authenticator = self._authenticator(keyring.naming[0](b"sluice tenant"))
        return Dispatcher(
            authenticator=self.authenticator,
            services=self.services,
            keyring=keyring,
            cache=self.cache,
            flights=self.flights,
            wheel=self.wheel,
            unrouted=metrics.unrouted,
            access_log=self.access_log,
            repeats=self.repeats,
            denied=metrics.denied,
        )

    def _open_doors(self, dispatcher: Dispatcher, readers: admin.Readers | None) -> None:
        """Where requests come in: the two ports, and the gateway's own."""
        self.edge = self._edge(dispatcher)
        self.precompute = Precompute(dispatcher, self.services.tracks, self.edge.new_id)
        self._watch_metrics()
        self.public_app = public.make_app(self.edge, self.services, self.authenticator, self.health)
        self.admin_app = admin.make_app(
            self.edge,
            self.services,
            self.health,
            self.feed,
            self.metrics,
            self.status,
            readers,
            self.invalidations,
        )

    def status(self) -> dict[str, str]:
        """One line about each part."""
        parts = (self.edge, self.services, self.cache, self.flights, self.wheel, self.discovery)
        more = (self.feed, self.precompute, self.repeats, self.invalidations, self.limits)
        keys = (self.keys,) if self.keys is not None else ()
        return {type(part).__name__: repr(part) for part in (*parts, *more, *keys)}

    async def serve(
        self,
        public_socket: socket.socket,
        admin_socket: socket.socket | None,
        on_ready: Callable[[str], None] | None = None,
    ) -> None:
        """Serve until a signal. Raises ValueError when there is nothing to begin with.

        Args:
            admin_socket: None where somebody else serves the admin routes.
            on_ready: called with the address instead of printing it.
        """
        if self.keys is not None:
            self.keys.begin()
        self.discovery.begin(self.services)
        if self.access_log is not None:
            self.access_log.start()
        self.edge.start(self._loop)
        await self.cache.start()
        public_server = self._public = self._server(self.public_app, owns_signals=True)
        parts = [
            self._loop.create_task(self.discovery.run(self.services), name="discovery"),
            self._loop.create_task(self.precompute.run(), name="precompute"),
            self._loop.create_task(self.invalidations.run(), name="invalidations"),
        ]
        if self.keys is not None:
            parts.append(self._loop.create_task(self.keys.run(), name="keys"))
        if self.redis is not None:
            parts.append(self._loop.create_task(self.limits.run(), name="limits"))
        if self._feeds_itself:
            parts.append(self._loop.create_task(self.feed.run(), name="demand"))
        admin: AdminPort | None = None
        if admin_socket is not None:
            admin_server = self._server(self.admin_app, owns_signals=False)
            admin_task = self._loop.create_task(admin_server.serve([admin_socket]), name="admin")
            admin = admin_server, admin_task
        for part in parts + ([admin[1]] if admin else []):
            part.add_done_callback(self._part_ended)
        probe = self._announce(public_socket, on_ready or announce)
        parts.append(self._loop.create_task(probe, name="self-probe"))
        try:
            await public_server.serve([public_socket])
        finally:
            await self._stop(admin, parts)

    def begin_draining(self) -> None:
        """The first signal: not ready any more, and after the delay no new connections."""
        log.info("draining", extra={"delay_seconds": self.settings.drain_delay})
        self.health.draining = True
        self.edge.draining = True
        self._loop.call_soon_threadsafe(
            self._loop.call_later, self.settings.drain_delay, self._stop_accepting
        )

    # ----------------------------------------------------------------------------------------------

    def _authenticator(self, secret: bytes) -> Authenticator:
        """Who knows callers, as the settings say."""
        everybodys, path = self.settings.tenant_limits, self.settings.keys_file
        if path is None:
            return Anonymous(secret, self.limits.of(names.ANONYMOUS_TENANT, everybodys))

        def changed(tenants: set[str]) -> None:
            self.limits.keep(tenants)
            self.services.rights_changed()

        self.keys = Keys(
            path,
            secret=secret,
            limits_of=lambda name, own: self.limits.of(name, everybodys if own is None else own),
            changed=changed,
            refused=self.metrics.keys_fault,
        )
        return self.keys

    def _attended(self, whether: bool) -> None:
        if whether:
            log.info("the demand is read again")
        else:
            log.warning("nobody reads the demand: what is asleep is not woken")
        self.services.attended(whether)

    def _stop_accepting(self) -> None:
        if self._public is not None:
            self._public.should_exit = True
            self._loop.call_later(self.settings.drain_grace, self._cut_off)

    def _cut_off(self) -> None:
        """The grace time is over: those who still wait are told, and streams do not end cleanly."""
        waiting = [connection for connection in self.edge.connections if not connection.idle]
        if waiting:
            log.warning(
                "requests cut off at the end of the grace time", extra={"count": len(waiting)}
            )
        for connection in waiting:
            connection.cut_short(ApiError("draining", "The grace time is over."))

    async def _stop(self, admin: "AdminPort | None", tasks: "list[asyncio.Task[None]]") -> None:
        self.health.draining = True
        self.feed.close()
        for task in tasks:
            task.cancel()
        if admin is not None:
            admin[0].should_exit = True
            tasks = [*tasks, admin[1]]
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.services.close()
        await self.limits.close()
        await self.cache.close()
        self.edge.close()
        self.wheel.close()
        if self.access_log is not None:
            self.access_log.close()
        log.info("stopped")

    def _part_ended(self, task: "asyncio.Task[None]") -> None:
        """A part that must run for ever has ended: the process is of no use without it."""
        if not task.cancelled() and not self.health.draining:
            self.failed = True
            log.critical(
                "a part of the gateway ended",
                exc_info=task.exception(),
                extra={"part": task.get_name()},
            )
            self.begin_draining()

    async def _announce(self, listening: socket.socket, on_ready: Callable[[str], None]) -> None:
        """Become ready once the services are known and the port answers, and say so."""
        await self.discovery.synced.wait()
        self.health.synced = True
        host, port = listening.getsockname()[:2]
        asked = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host  # noqa: S104
        await _answering(asked, port)
        self.health.reached = True
        on_ready(url_of(listening))

    def _edge(self, dispatcher: Dispatcher) -> Edge:
        settings = self.settings
        limits = settings.limits
        count = descriptors.connections(limits.connections)
        if count < limits.connections:
            log.warning(
                "fewer connections than set, for so few files may be open",
                extra={"count": count, "set": limits.connections},
            )
        origins = settings.cors_origins
        cors = Cors(origins, credentials=settings.cors_credentials) if origins else None
        return Edge(
            dispatcher, replace(limits, connections=count), cors, self.metrics.connection_cut
        )

    def _server(self, app: FastAPI, *, owns_signals: bool) -> _Server:
        protocol = partial(make_fast if owns_signals else make_guarded, self.edge)
        server = _Server(server_config(app, protocol, self.settings))
        server.gateway = self
        server.owns_signals = owns_signals
        return server

    def _watch_metrics(self) -> None:
        metrics = self.metrics

        def samples() -> Iterator[Sample]:
            yield Sample(("", "", ""), metrics.unrouted, 0, 0, {}, {})
            for service in self.services.tracks():
                yield service.sample()

        metrics.watch(samples)
        metrics.watch_counter(metric_names.GATEWAY_CACHE_EVICTIONS, lambda: self.cache.l1_evictions)
        for metric, read in (
            (metric_names.GATEWAY_CACHE_BYTES, lambda: self.cache.l1_bytes),
            (metric_names.GATEWAY_REDIS_UP, lambda: int(self.cache.redis_up)),
            (metric_names.GATEWAY_CACHE_HEARING, lambda: int(self.invalidations.hearing)),
            (metric_names.GATEWAY_LIMITS_SHARED, lambda: int(self.limits.sharing.is_up)),
            (metric_names.GATEWAY_KEYS, lambda: len(self.keys) if self.keys else 0),
            (
                metric_names.GATEWAY_KEYS_AGE,
                lambda: time.monotonic() - self.keys.read_at if self.keys else 0,
            ),
            (metric_names.GATEWAY_BODY_BYTES, lambda: self.edge.buffered),
            (metric_names.GATEWAY_CONNECTIONS, lambda: len(self.edge.connections)),
            (
                metric_names.GATEWAY_DISCOVERY_AGE,
                lambda: time.monotonic() - self.discovery.read_at,
            ),
        ):
            metrics.watch_gauge(metric, read)


def identity() -> str:
    """Of one gateway, to those who read demand."""
    # Not the pid: it is the same in every container, and readers tell processes apart by this.
    return f"{socket.gethostname()}-{secrets.token_hex(4)}"


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def announce(url: str) -> None:
    print(f"serving {url}", flush=True)  # noqa: T201 - the one line it prints


def server_config(
    app: FastAPI, protocol: Callable[..., asyncio.Protocol], settings: Settings
) -> uvicorn.Config:
    """How uvicorn serves ``app`` with connections of ``protocol``."""
    return uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(settings.limits.keep_alive_seconds),
        # A little longer than the grace, so that those who are cut off can be told.
        timeout_graceful_shutdown=1 + math.ceil(settings.drain_grace),
    )


def api_server(settings: Settings) -> "ApiServer | None":
    if not settings.in_cluster:
        return None
    # Imported late: outside a cluster, nobody pays for the client.
    from sluice_gateway.cluster.api import ApiServer

    return ApiServer(settings.api_host, settings.api_port, settings.service_account)


def make_discovery(settings: Settings, api: "ApiServer | None") -> Discovery:
    if api is None:
        return StaticDiscovery(Path(settings.discovery.partition(":")[2]))
    from sluice_gateway.cluster.discovery import KubernetesDiscovery

    return KubernetesDiscovery(api, settings.namespaces)


def make_readers(settings: Settings, api: "ApiServer | None") -> admin.Readers | None:
    if api is None:
        return None  # Only whoever is on this machine can ask.
    from sluice_gateway.cluster.readers import TokenReaders

    return TokenReaders(api, settings.demand_readers)


def _redis(settings: Settings, metrics: Metrics) -> Store | None:
    if settings.redis_url is None:
        return None
    return open_store(
        settings.redis_url, faults=metrics.cache_fault, budget_seconds=settings.redis_timeout
    )


async def _answering(host: str, port: int) -> None:
    """Return once something speaks HTTP at the address."""
    while True:
        try:
            async with asyncio.timeout(1.0):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                line = await reader.readline()
                writer.close()
            if line.startswith(b"HTTP/1.1 200"):
                return
        except (OSError, TimeoutError):
            pass
        await asyncio.sleep(SELF_PROBE_SECONDS)
