"""The control loop of ``sluice up``: operator and kubelet of a cluster of one machine.

Each second, and at once when something happens, it takes note of what workers and gateway told,
lets scaling decide, plans (``plan.py``, pure), carries the plan out, and writes the table the
gateway reads. It owns every service, worker and task; the others only tell it things.
"""

import asyncio
import os
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Any

import aiohttp

from sluice_api import wire
from sluice_api.inference_service import InferenceService
from sluice_api.spec_errors import SpecError
from sluice_cli.up import host
from sluice_cli.up.demand import follow
from sluice_cli.up.exits import Exit
from sluice_cli.up.files import load_services
from sluice_cli.up.gateway import Gateway
from sluice_cli.up.instances import ALIVE, Phase, Room
from sluice_cli.up.plan import Action, Kill, Promote, Retire, Start, Stop, plan_instances
from sluice_cli.up.quickstart import Quickstart
from sluice_cli.up.reload import changes
from sluice_cli.up.service import LocalService
from sluice_cli.up.settings import Settings
from sluice_cli.up.state import StateFolder
from sluice_cli.up.status import row_of
from sluice_cli.up.view import View
from sluice_cli.up.worker import start_worker
from sluice_operator.plan import notes

TURN_SECONDS = 1.0
LEAVING_TURN_SECONDS = 0.1
"""While a worker is leaving, its next step is due soon."""
GAP_SECONDS = 0.05
"""Between two turns, however much happens."""
SHUTDOWN_SECONDS = 60.0
MEMORY_SHARE = 0.9
"""Of the free memory that workers may take; the rest is for caches and the people's own work."""


class Control:
    """Runs everything. :meth:`run` returns when ``stop`` is set and all children have ended."""

    def __init__(
        self,
        settings: Settings,
        specs: Iterable[InferenceService],
        state: StateFolder,
        view: View,
        app: socket.socket,
        admin: socket.socket,
    ) -> None:
        self._settings = settings
        self._state = state
        self._view = view
        self._services: dict[str, LocalService] = {}
        self._new_specs: Sequence[InferenceService] | None = list(specs)
        self._wake = asyncio.Event()
        self._turned_at = 0.0
        self._trouble = ""
        self._gateway = Gateway(
            settings,
            state,
            app,
            admin,
            on_line=lambda line: view.line("gateway", line),
            on_problem=lambda text: view.problem("gateway", text),
            on_change=self._wake.set,
        )
        with_keys = settings.keys_file is not None
        self._quickstart = Quickstart(self._gateway.url, view.say, with_keys=with_keys)

    def __repr__(self) -> str:
        return f"<Control {self._gateway!r} {[*self._services.values()]}>"

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop``. Raises :class:`UpError` when the gateway cannot start."""
        async with aiohttp.ClientSession() as session:
            self._session = session
            tasks: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait(), name="stop")]
            try:
                # The table is there before the gateway: a service asleep is not unknown.
                await self._turn(time.monotonic())
                tasks += self._begin(session)
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # A task that ends by itself has failed, and ends everything.
            finally:
                await self._shut_down(tasks)

    def _begin(self, session: aiohttp.ClientSession) -> list[asyncio.Task[Any]]:
        demand = follow(session, self._gateway.admin_url, self._observe)
        return [
            asyncio.create_task(self._gateway.keep_running(session), name="gateway"),
            asyncio.create_task(self._keep_turning(), name="turns"),
            asyncio.create_task(self._watch_files(), name="files"),
            asyncio.create_task(demand, name="demand"),
        ]

    def kill(self) -> None:
        """End every child at once; :meth:`run` returns soon after."""
        self._gateway.kill()
        for service in self._services.values():
            for worker in service.workers.values():
                worker.kill()

    # Turns -----------------------------------------------------------------------------------

    async def _keep_turning(self) -> None:
        while True:
            await self._next_turn()
            await self._turn(time.monotonic())

    async def _next_turn(self) -> None:
        leaving = any(w.phase == Phase.LEAVING for s in self._each() for w in s.workers.values())
        try:
            async with asyncio.timeout(LEAVING_TURN_SECONDS if leaving else TURN_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            pass
        await asyncio.sleep(self._turned_at + GAP_SECONDS - time.monotonic())
        self._wake.clear()

    async def _turn(self, now: float) -> None:
        self._turned_at = now
        self._take_over_files()
        for service in self._each():
            service.take_note(now)
            service.decide(now)
        # Those whose callers wait choose first where the machine has not enough for all.
        for service in sorted(self._each(), key=lambda s: -s.held):
            await self._steer(service, now)
        self._publish()
        if self._gateway.ready_at is not None:
            self._quickstart.turn(self._each())
        self._view.show([row_of(service) for service in self._each()], now)

    async def _steer(self, service: LocalService, now: float) -> None:
        room = self._room(service)
        service.plan = plan_instances(service.wanted(), service.fleet(now), room, now)
        for action in service.plan.actions:
            await self._carry_out(service, action)

    async def _carry_out(self, service: LocalService, action: Action) -> None:
        match action:
            case Start(template, reason):
                await self._start(service, template, reason)
            case Promote(template, reason):
                if service.serving is not None:
                    self._view.event(service.label, f"switched to the new revision: {reason}")
                service.promote(template)
            case Retire(name, reason):
                self._view.event(service.label, f"{name} leaves: {reason}")
                service.workers[name].begin(Phase.LEAVING)
            case Stop(name, _):
                service.workers[name].stop()
            case Kill(name, reason):
                self._view.problem(service.label, f"{name} is ended: {reason}")
                service.workers[name].kill()

    async def _start(self, service: LocalService, template: str, reason: str) -> None:
        name, number = service.next_name()
        if failure := service.failure_of(template):
            reason = f"again, after {failure.cause}"
        self._view.event(service.label, f"{name} starts: {reason}")
        try:
            service.workers[name] = await start_worker(
                name,
                number,
                template,
                service.environment(template),
                session=self._session,
                on_line=lambda line: self._view.line(name, line),
                on_change=self._wake.set,
            )
        except OSError as error:  # No process, memory or descriptor is left.
            failed = Exit(os.EX_OSERR, f"cannot be started: {error.strerror}")
            service.note_crash(name, template, failed, 0.0, self._turned_at)

    def _room(self, service: LocalService) -> Room:
        workers = [w for s in self._each() for w in s.workers.values()]
        busy = sum(w.threads for w in workers if w.phase in ALIVE)
        cores = (host.cores() - busy) // service.threads
        free, size = host.free_memory_bytes(), service.worker_bytes()
        if free is None:
            return Room(cores, cores)
        # Those that are loading have not yet taken what they will need.
        loading = sum(w.phase == Phase.STARTING for w in workers)
        return Room(cores, int(free * MEMORY_SHARE) // size - loading)

    def _publish(self) -> None:
        table = wire.ServiceTable(services=[e for s in self._each() if (e := s.entry())])
        trouble = ""
        try:
            self._state.write_table(table)
        except OSError as error:
            trouble = f"the table cannot be written, the gateway keeps the last: {error.strerror}"
        if trouble and trouble != self._trouble:
            self._view.problem("state", trouble)
        self._trouble = trouble

    # What others tell ------------------------------------------------------------------------

    def _observe(self, demand: wire.Demand) -> None:
        service = self._services.get(f"{demand.namespace}/{demand.service}")
        if service is not None:
            service.observe(demand, time.monotonic())
            self._wake.set()

    async def _watch_files(self) -> None:
        async for _ in changes(self._settings.files):
            try:
                self._new_specs = await asyncio.to_thread(load_services, self._settings.files)
            except (SpecError, OSError) as error:
                self._view.problem("files", f"{error}\nWhat ran goes on as it was.")
            self._wake.set()

    def _take_over_files(self) -> None:
        specs, self._new_specs = self._new_specs, None
        if specs is not None:
            self._apply({spec.key: spec for spec in specs})
        for service in self._each():
            if service.gone:
                del self._services[service.key]

    def _apply(self, specs: dict[str, InferenceService]) -> None:
        for key, spec in specs.items():
            service = self._services.get(key)
            if service is None:
                service = self._services[key] = LocalService(
                    spec, self._state, self._view, self._turned_at, created=int(time.time())
                )
            elif service.template is not None and service.spec == spec:
                continue
            else:
                service.change(spec, self._turned_at)
            for note in notes(spec, with_keys=self._settings.keys_file is not None):
                self._view.event(service.label, f"note: {note}")
        for key, service in self._services.items():
            if key not in specs and service.template is not None:
                self._view.event(service.label, "removed from the files")
                service.remove()

    # The end ---------------------------------------------------------------------------------

    async def _shut_down(self, tasks: list[asyncio.Task[Any]]) -> None:
        """The gateway first, while the workers can still answer what it holds; then they."""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._view.event("up", "stopping: the gateway finishes what it has (Ctrl-C again: at once)")
        await self._gateway.stop()
        workers = [w for s in self._each() for w in s.workers.values() if w.exit is None]
        for worker in workers:
            if worker.ready_at is None:
                worker.kill()  # It has nothing to finish, and would first load its model.
            elif worker.phase != Phase.KILLED:
                worker.stop()
        ended = [asyncio.create_task(worker.ended()) for worker in workers]
        if ended:
            _, late = await asyncio.wait(ended, timeout=SHUTDOWN_SECONDS)
            if late:
                self.kill()
                await asyncio.wait(late)
        self._view.event("up", "stopped")

    def _each(self) -> list[LocalService]:
        return list(self._services.values())
