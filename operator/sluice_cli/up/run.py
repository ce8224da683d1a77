"""Puts ``sluice up`` together and takes it apart: files, ports, state, signals, exit code.

Called by ``main.py``; everything that can be refused is refused here, before any process starts.
The path goes on in ``control.py``.
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from sluice_api.inference_service import InferenceService
from sluice_api.spec_errors import SpecError
from sluice_cli.up.control import Control
from sluice_cli.up.errors import UpError
from sluice_cli.up.files import load_services
from sluice_cli.up.settings import Settings
from sluice_cli.up.sockets import listen
from sluice_cli.up.state import StateFolder
from sluice_cli.up.view import choose_view

_FAILED = 1
_FORCED = 130
"""The shell's code for an end by Ctrl-C; here only for the second one."""
_ADMIN_HOST = "127.0.0.1"


def run(make_settings: Callable[[], Settings]) -> int:
    """Run until a signal comes; the exit code. Errors are printed, not raised."""
    try:
        settings = make_settings()
        specs = load_services(settings.files)
        with (
            listen(settings.host, settings.port, option="--port") as app,
            listen(_ADMIN_HOST, settings.admin_port, option="--admin-port") as admin,
            StateFolder(settings.state_dir) as state,
        ):
            return asyncio.run(_serve(settings, specs, state, app, admin))
    except KeyboardInterrupt:  # Before there was anything to end.
        return _FORCED
    except (UpError, SpecError, OSError) as error:
        print(f"sluice up: {error}", file=sys.stderr)
        return _FAILED


async def _serve(
    settings: Settings,
    specs: Sequence[InferenceService],
    state: StateFolder,
    app: socket.socket,
    admin: socket.socket,
) -> int:
    with choose_view(settings.live, settings.log_level) as view:
        control = Control(settings, specs, state, view, app, admin)
        stop = asyncio.Event()
        forced = False

        def on_signal() -> None:
            nonlocal forced
            if stop.is_set():
                forced = True
                control.kill()
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        await control.run(stop)
    return _FORCED if forced else 0
