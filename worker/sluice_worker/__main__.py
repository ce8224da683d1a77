"""``python -m sluice_worker``: settings, sockets, then the server; failures become exit codes."""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from sluice_api import names
from sluice_api.settings import SettingsError
from sluice_worker.lifecycle import Lifecycle
from sluice_worker.logs import start_logging
from sluice_worker.metrics import Metrics
from sluice_worker.models.errors import ModelError
from sluice_worker.routes import Worker
from sluice_worker.server import bind, serve
from sluice_worker.settings import read_settings
from sluice_worker.startup import start

LOG_SECONDS = 1.0
"""How long the last log lines may take to be written; the reader may have stopped reading."""


def main() -> NoReturn:
    """Run a worker; ends the process with one of the exit codes of ``sluice_api.names``."""
    code = 0
    last_line = ""
    try:
        settings = read_settings(sys.argv[1:], os.environ)
        sockets = bind(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - there is no log yet
        sys.exit(names.EXIT_BAD_CONFIGURATION)
    listener = start_logging(settings.log_format)
    worker = Worker(
        settings, Lifecycle(settings.name, settings.revision, time.monotonic()), Metrics()
    )
    try:
        serve(worker, sockets, start)
    except ModelError as error:
        code, last_line = error.exit_code, str(error)
    _end(listener.stop, last_line, code)


def _end(flush: Callable[[], None], last_line: str, code: int) -> NoReturn:
    """Write the last lines and leave, without waiting for threads that may still compute."""
    writing = threading.Thread(target=flush, daemon=True)
    writing.start()
    writing.join(LOG_SECONDS)
    if last_line:
        os.write(2, f"{last_line}\n".encode())
    os._exit(code)


if __name__ == "__main__":
    main()
