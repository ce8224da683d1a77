"""One local worker: its process, its two addresses, and what it last told about itself.

``service.py`` owns the workers of a service; each worker owns two tasks, one that asks its admin
port how it is and one that waits for its end. Both only note what they learn and call
``on_change``; decisions are taken in ``plan.py``.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping

import aiohttp
import msgspec

from sluice_api import names, wire
from sluice_cli.up.environment import WORKER_KNOBS, environment_of
from sluice_cli.up.exits import Exit
from sluice_cli.up.instances import Instance, Phase
from sluice_cli.up.sockets import listen, url_of
from sluice_cli.up.supervisor import Child, spawn

STARTING_PROBE_SECONDS = 0.1
READY_PROBE_SECONDS = 1.0
PROBE_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
STUCK_SECONDS = 60.0
"""A worker that denies being live for so long is ended. It says so itself only after a while."""

_LOOPBACK = "127.0.0.1"

_decode_readiness = msgspec.json.Decoder(wire.Readiness).decode


class Worker:
    """A worker process. Made by :func:`start_worker`.

    Attributes:
        template: what it was started from: the revision and everything else of its environment.
        since: monotonic time at which ``phase`` began.
        readiness: what it last told; None before the first answer.
        threads: it computes with.
        exit: how it ended; None while it runs.
    """

    def __init__(
        self,
        name: str,
        number: int,
        template: str,
        environment: Mapping[str, str],
        url: str,
        admin_url: str,
    ) -> None:
        self.name = name
        self.number = number
        self.template = template
        self.revision = environment[names.ENV_REVISION]
        self.threads = int(environment[names.ENV_WORKER_THREADS])
        self.url = url
        self.phase = Phase.STARTING
        self.started_at = self.since = time.monotonic()
        self.ready_at: float | None = None
        self.readiness: wire.Readiness | None = None
        self.exit: Exit | None = None
        self._admin_url = admin_url
        self._live_at = self.started_at
        self._child: Child | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Worker {self.name} {self.template} {self.state} {self.url}>"

    @property
    def state(self) -> str:
        """One or two words for people: ``loading 45%``, ``ready``, ``stopping``."""
        if self.phase != Phase.STARTING:
            return self.phase.value
        if self.readiness is None:
            return "starting"
        percent = self.readiness.progress
        return self.readiness.phase.value + (f" {percent:.0%}" if percent else "")

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def instance(self, now: float, *, outdated: bool) -> Instance:
        """The worker as the plan sees it."""
        capacity = self.readiness.capacity if self.readiness else None
        return Instance(
            name=self.name,
            number=self.number,
            revision=self.template,
            phase=self.phase,
            since=self.since,
            in_flight=capacity.in_flight if capacity else 0,
            outdated=outdated,
            stuck=self.phase == Phase.READY and now - self._live_at > STUCK_SECONDS,
        )

    def begin(self, phase: Phase) -> None:
        self.phase = phase
        self.since = time.monotonic()

    def stop(self) -> None:
        """Let it finish what it has, then end."""
        self.begin(Phase.STOPPING)
        if self._child:
            self._child.terminate()

    def kill(self) -> None:
        self.begin(Phase.KILLED)
        if self._child:
            self._child.kill()

    async def ended(self) -> None:
        """Wait until the process is gone."""
        if self._child:
            await self._child.wait()

    def attach(
        self, child: Child, session: aiohttp.ClientSession, on_change: Callable[[], None]
    ) -> None:
        """Watch the process that was started for this worker."""
        self._child = child
        self._tasks = [
            asyncio.create_task(self._probe(session, on_change), name=f"probe {self.name}"),
            asyncio.create_task(self._await_end(on_change), name=f"end {self.name}"),
        ]

    async def _await_end(self, on_change: Callable[[], None]) -> None:
        assert self._child is not None
        self.exit = await self._child.wait()
        self._tasks[0].cancel()
        on_change()

    async def _probe(self, session: aiohttp.ClientSession, on_change: Callable[[], None]) -> None:
        while True:
            ready = self.phase != Phase.STARTING
            await asyncio.sleep(READY_PROBE_SECONDS if ready else STARTING_PROBE_SECONDS)
            if (told := await self._ask_readiness(session)) is None:
                continue
            before, self.readiness = self.readiness, told
            if told.phase == wire.Phase.READY and self.phase == Phase.STARTING:
                self.begin(Phase.READY)
                self.ready_at = self._live_at = self.since
            if await self._ask_liveness(session):
                self._live_at = time.monotonic()
            if before is None or (before.phase, before.progress) != (told.phase, told.progress):
                on_change()

    async def _ask_readiness(self, session: aiohttp.ClientSession) -> wire.Readiness | None:
        try:
            async with session.get(f"{self._admin_url}/readyz", timeout=PROBE_TIMEOUT) as response:
                return _decode_readiness(await response.read())
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
            return None

    async def _ask_liveness(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self._admin_url}/livez", timeout=PROBE_TIMEOUT) as response:
                return response.ok
        except (aiohttp.ClientError, TimeoutError):
            return False


async def start_worker(
    name: str,
    number: int,
    template: str,
    environment: Mapping[str, str],
    *,
    session: aiohttp.ClientSession,
    on_line: Callable[[str], None],
    on_change: Callable[[], None],
) -> Worker:
    """Start a worker on two free ports of the loopback interface.

    Its address takes connections at once: they wait in the kernel until the worker listens.
    """
    with listen(_LOOPBACK, 0, option="--port") as app, listen(_LOOPBACK, 0, option="--port") as adm:
        worker = Worker(name, number, template, environment, url_of(app), url_of(adm))
        child = await spawn(
            name,
            ["-m", "sluice_worker", "--fd", str(app.fileno()), "--admin-fd", str(adm.fileno())],
            env=environment_of(environment, WORKER_KNOBS, os.environ),
            fds=[app.fileno(), adm.fileno()],
            on_line=on_line,
        )
    # Closed here, so that a dead worker's address refuses connections instead of keeping them.
    worker.attach(child, session, on_change)
    return worker
