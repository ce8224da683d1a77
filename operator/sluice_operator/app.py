"""The operator put together: what is made of what, started and stopped in a fixed order.

``__main__`` makes one :class:`Operator` and runs it. Every replica watches, listens to the
gateways and serves the metrics API; only the one that leads has an open queue, and only it may
write. A task that ends unasked ends the process: the kubelet starts a sound one.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final

from prometheus_client import CollectorRegistry

from sluice_api import names
from sluice_operator import kinds
from sluice_operator.announce import Announcer
from sluice_operator.audit import Auditor
from sluice_operator.cluster import Cluster, connect
from sluice_operator.demand_feed import DemandFeed, admin_addresses
from sluice_operator.evidence import Evidence
from sluice_operator.fleet import Fleet
from sluice_operator.handlers import Watches
from sluice_operator.health import Health
from sluice_operator.instruments import Instruments
from sluice_operator.leader import Leader
from sluice_operator.metrics import MetricsApiInstruments, ScalingInstruments
from sluice_operator.metrics_api.registration import Registration
from sluice_operator.metrics_api.server import MetricsApi
from sluice_operator.pace import Pace
from sluice_operator.preflight import Preflight
from sluice_operator.reconcile import Planner, Reconciler
from sluice_operator.settings import Settings
from sluice_operator.state import Key, Platform
from sluice_operator.store import Store
from sluice_operator.work_queue import WorkQueue

log = logging.getLogger(__name__)

GATEWAY_ADMIN_SERVICE: Final = "sluice-gateway-admin"
IMAGE_VOLUMES_SINCE: Final = (1, 35)
STUCK_SECONDS: Final = 300.0
"""A service that waits so long for a worker means that the workers are stuck."""
FINISH_SECONDS: Final = 3.0
STOP_SECONDS: Final = 5.0
LAST_SECONDS: Final = 20.0
"""After so long the process ends whatever it still does."""


class Ended(Exception):
    """A part of the operator has stopped that should run for ever."""


class Operator:
    """One replica.

    Args:
        plan: ``planning.plan_service``.
    """

    def __init__(
        self, settings: Settings, cluster: Cluster, instruments: Instruments, plan: Planner
    ):
        self._settings = settings
        self._cluster = cluster
        self._instruments = instruments
        self._platform = platform_of(settings)
        self._watched = kinds.watched(settings.namespace, GATEWAY_ADMIN_SERVICE)
        self._preflight = Preflight(cluster, self._watched)
        self._fleet = Fleet(
            lambda key: self._queue.add(key, urgent=True),
            lambda key: self._store.observe(key),
            decided=lambda rule: scaling.changed(rule),
        )
        scaling = ScalingInstruments(instruments.registry, self._fleet.decisions)
        self._store = Store(on_gateways=lambda: self._demand.look())
        self._demand = DemandFeed(
            self._fleet, self._gateways, settings.token_file, scaling, self._all_changed
        )
        self._evidence = Evidence(self._store, cluster, self._changed)
        self._announcer = Announcer(cluster, settings.pod_name, instruments)
        self._reconciler = Reconciler(
            store=self._store,
            scaling=self._fleet,
            plan=plan,
            writer=cluster,
            platform=self._platform_now,
            announce=self._announcer.announce,
            watch_stuck=self._evidence.watch,
        )
        self._queue = WorkQueue(self._reconciler.reconcile, settings.workers, instruments)
        self._auditor = Auditor(self._store, cluster, self._watched, self._changed, instruments)
        self._watches = Watches(
            self._watched,
            cluster,
            self._store,
            self._changed,
            self._auditor.listed_anew,
            instruments,
        )
        self._leader = Leader(cluster, settings.namespace, settings.pod_name, self._led)
        self._registration = self._make_registration() if settings.metrics_api else None
        cluster.guard(self._leader.check)
        self._tasks: list[asyncio.Task[None]] = []
        self._told = asyncio.Event()
        self._health = Health(
            instruments.registry,
            live=[self._stuck],
            ready=[self._not_ready],
            explain=self._fleet.explain,
        )

    def __repr__(self) -> str:
        return f"<Operator {self._leader!r} {self._store!r} {self._queue!r}>"

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT. Raises what ended a part of it."""
        loop = asyncio.get_running_loop()
        await self._health.start(self._settings.host, self._settings.port)
        log.info("started", extra={"port": self._health.port, "pod": self._settings.pod_name})
        self._listen_to_signals(loop)
        told = loop.create_task(self._told.wait(), name="signals")
        work = loop.create_task(self._work(), name="operator")
        try:
            await asyncio.wait([told, work], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            loop.call_later(LAST_SECONDS, os._exit, 1)
            told.cancel()
            await self._stop(work)

    # In order ------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Start everything, each when what it needs is there; then see that nothing ends."""
        loop = asyncio.get_running_loop()
        version = await self._preflight.passed()
        self._platform = replace(self._platform, image_volumes=version >= IMAGE_VOLUMES_SINCE)
        await self._watches.start()
        self._listen_to_signals(loop)  # kopf has taken them
        self._begin("watches", self._watches.run())
        self._begin("audit", self._auditor.run())
        self._begin("demand feed", self._demand.run())
        self._begin("fleet", self._fleet.run())
        synced = self._begin("sync", self._synced())
        await self._all_well(until=synced)
        if self._registration is not None:
            await self._registration.server.listen(
                self._settings.host, self._settings.metrics_api_port
            )
            await self._registration.look()  # so that the first plans know who serves metrics
            self._begin("metrics API", self._registration.run())
        self._begin("leader", self._leader.run())
        self._begin("work queue", self._queue.run())
        self._begin("announcer", self._announcer.run())
        self._begin("evidence", self._evidence.run())
        await self._all_well()

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.append(task)
        return task

    async def _synced(self) -> None:
        await self._auditor.synced.wait()

    async def _all_well(self, until: asyncio.Task[None] | None = None) -> None:
        """Return when ``until`` is done. Raises Ended when anything else is."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task is until:
                self._tasks.remove(task)
            elif error := task.exception():
                raise Ended(f"{task.get_name()}: {error}") from error
            else:
                raise Ended(f"{task.get_name()} has ended")

    async def _stop(self, work: asyncio.Task[None]) -> None:
        """Finish what is being written, let go of the lease, then stop to watch and to answer."""
        self._told.set()
        log.info("stopping", extra={"state": repr(self)})
        work.cancel()
        self._queue.close()
        await self._queue.finished(FINISH_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.wait([work, *self._tasks], timeout=STOP_SECONDS)
        if self._registration is not None:
            await self._registration.server.close()
        await self._watches.stop()
        await self._health.stop()
        await self._cluster.close()
        log.info("stopped")

    def _listen_to_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told.set)

    # Between the parts ---------------------------------------------------------------------------

    def _make_registration(self) -> Registration:
        instruments = MetricsApiInstruments(self._instruments.registry)
        server = MetricsApi(
            resource=self._store.resource,
            keys=self._store.services,
            signals=self._fleet.signals,
            synced=self._auditor.synced.is_set,
            instruments=instruments,
        )
        return Registration(
            self._cluster,
            server,
            instruments,
            namespace=self._settings.namespace,
            leading=lambda: self._leader.leading,
            changed=self._all_changed,
        )

    def _changed(self, key: Key) -> None:
        self._fleet.touch(key)
        self._queue.add(key)

    def _all_changed(self) -> None:
        for key in self._store.services():
            self._queue.add(key)

    def _platform_now(self) -> Platform:
        platform = replace(self._platform, deaf=self._demand.deaf)
        if self._registration is None:
            return platform
        available, note = self._registration.standing
        return replace(platform, metrics_api=available, metrics_api_note=note)

    def _led(self, leading: bool) -> None:
        self._instruments.leads(leading)
        if leading:
            self._queue.open(self._store.services())
        else:
            self._queue.close()

    def _gateways(self) -> Mapping[str, bool]:
        return admin_addresses(self._store.gateway_slices(), names.ADMIN_PORT)

    def _stuck(self) -> str:
        age = self._queue.age()
        return f"a service has waited {age:.0f} s" if age > STUCK_SECONDS else ""

    def _not_ready(self) -> str:
        if self._told.is_set():
            return "stopping"
        if self._preflight.problem:
            return self._preflight.problem
        if not self._auditor.synced.is_set():
            return "not synced yet"
        return self._registration.problem() if self._registration is not None else ""


def platform_of(settings: Settings) -> Platform:
    """What is known before the API server was asked."""
    return Platform(
        namespace=settings.namespace,
        gateway_url=settings.gateway_url,
        gateway_labels=settings.gateway_labels,
        worker_image=settings.worker_image,
        worker_image_gpu=settings.worker_image_gpu,
        pull_policy=settings.pull_policy,
        pull_secrets=settings.pull_secrets,
        metrics_api=settings.metrics_api,
        metrics_api_note="" if settings.metrics_api else "switched off",
        upgrade_workers=settings.upgrade_workers,
        write_scale=settings.write_scale,
    )


async def run(settings: Settings, plan: Planner) -> None:
    """One operator, from its settings. Raises ValueError when there is no way to a cluster."""
    instruments = Instruments(CollectorRegistry())
    pace = Pace(settings.writes_per_second, burst=2 * settings.writes_per_second)
    cluster = await connect(instruments, pace)
    await Operator(settings, cluster, instruments, plan).run()
