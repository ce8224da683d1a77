"""The gateway as a supervised child: started on sockets we hold, restarted when it ends.

The listening sockets stay open here, so that requests which come while a crashed gateway is
restarted wait in the kernel instead of being refused.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable

import aiohttp

from sluice_api import names
from sluice_cli.up.environment import GATEWAY_KNOBS, environment_of
from sluice_cli.up.errors import UpError
from sluice_cli.up.instances import Crashes, after_crash
from sluice_cli.up.settings import Settings
from sluice_cli.up.sockets import url_of
from sluice_cli.up.state import StateFolder
from sluice_cli.up.supervisor import Child, spawn

GIVE_UP_CRASHES = 3
"""A gateway that never worked and ended so often will not work the next time either."""
DRAIN_SECONDS = 45.0
_POLL_SECONDS = 0.1
_PROBE_TIMEOUT = aiohttp.ClientTimeout(total=2.0)


def gateway_arguments(settings: Settings, state: StateFolder) -> list[str]:
    """What the gateway is told on its command line, its sockets aside."""
    arguments = [
        *("--discovery", f"static:{state.table_path}"),
        *("--cache-secret", str(state.secret_path)),
        *("--host", settings.host),  # It listens on our sockets; this is what it is judged by.
    ]
    if settings.keys_file is not None:
        arguments += ["--auth", "keys", "--keys-file", str(settings.keys_file.absolute())]
    if settings.allow_anonymous_network:
        arguments.append("--allow-anonymous-network")
    return arguments


class Gateway:
    """Owns the gateway process. :meth:`keep_running` is a task of ``control.py``.

    Attributes:
        ready_at: monotonic time since which it answers ``/readyz``; None while it does not.
    """

    def __init__(
        self,
        settings: Settings,
        state: StateFolder,
        app: socket.socket,
        admin: socket.socket,
        *,
        on_line: Callable[[str], None],
        on_problem: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        self.url = url_of(app)
        self.admin_url = url_of(admin)
        self.ready_at: float | None = None
        self._settings = settings
        self._state = state
        self._sockets = (app, admin)
        self._on_line = on_line
        self._on_problem = on_problem
        self._on_change = on_change
        self._child: Child | None = None
        self._stopping = False
        self._was_ready = False

    def __repr__(self) -> str:
        return f"<Gateway {self.url} {'ready' if self.ready_at else 'not ready'} {self._child!r}>"

    async def keep_running(self, session: aiohttp.ClientSession) -> None:
        """Run the gateway until :meth:`stop`. Raises :class:`UpError` when it cannot start."""
        crashes: Crashes | None = None
        while not self._stopping:
            self._child = await self._start()
            probe = asyncio.create_task(self._await_ready(session), name="probe gateway")
            try:
                ended = await self._child.wait()
            finally:
                probe.cancel()
            ready_seconds = time.monotonic() - self.ready_at if self.ready_at else 0.0
            self.ready_at = None
            if self._stopping:
                return
            crashes = after_crash(crashes, ready_seconds, time.monotonic())
            hopeless = ended.code == names.EXIT_BAD_CONFIGURATION
            if not self._was_ready and (hopeless or crashes.count >= GIVE_UP_CRASHES):
                raise UpError(f"The gateway cannot start: {ended.describe()}")
            wait = crashes.backoff_seconds
            self._on_problem(f"{ended.describe()} – restart in {wait:.0f} s")
            await asyncio.sleep(wait)

    async def stop(self) -> None:
        """Drain and end the gateway."""
        self._stopping = True
        if self._child is None:
            return
        self._child.terminate()
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._child.wait()
        except TimeoutError:
            self.kill()

    def kill(self) -> None:
        self._stopping = True
        if self._child:
            self._child.kill()

    async def _start(self) -> Child:
        app, admin = self._sockets
        redis_url = self._settings.redis_url
        # Not an argument: it may hold a password, and arguments are public.
        planned = {names.ENV_REDIS_URL: redis_url} if redis_url else {}
        return await spawn(
            "gateway",
            [
                *("-m", "sluice_gateway", *gateway_arguments(self._settings, self._state)),
                *("--fd", str(app.fileno()), "--admin-fd", str(admin.fileno())),
            ],
            env=environment_of(planned, GATEWAY_KNOBS, os.environ),
            fds=[app.fileno(), admin.fileno()],
            on_line=self._on_line,
        )

    async def _await_ready(self, session: aiohttp.ClientSession) -> None:
        while True:
            try:
                async with session.get(f"{self.url}/readyz", timeout=_PROBE_TIMEOUT) as response:
                    if response.ok:
                        break
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(_POLL_SECONDS)
        self.ready_at = time.monotonic()
        self._was_ready = True
        self._on_change()
