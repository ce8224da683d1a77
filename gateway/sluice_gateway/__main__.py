"""``python -m sluice_gateway``: read settings, open both ports, run one gateway process.

Ports are bound before anything else starts, so that a taken one is a clear error and no half of a
gateway. Exit codes: 0 after a signal, 1 after a failure of its own, 78 when it cannot start
as it is told to.
"""

import asyncio
import gc
import logging
import os
import socket
import sys
from collections.abc import Sequence

from sluice_api import names
from sluice_api.settings import SettingsError
from sluice_gateway import settings
from sluice_gateway.logs import configure
from sluice_gateway.settings import Settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT."""
    try:
        given = settings.read(sys.argv[1:] if arguments is None else arguments, os.environ)
        configure(given.log_level)
        public = listen(given.host, given.port, given.fd, "--port")
        admin = listen(given.admin_host, given.admin_port, given.admin_fd, "--admin-port")
        well = run(given, public, admin)
    except (SettingsError, ValueError) as error:
        print(f"sluice-gateway: {error}", file=sys.stderr)  # noqa: T201 - for the person at the shell
        sys.exit(names.EXIT_BAD_CONFIGURATION)
    sys.exit(0 if well else 1)


def run(given: Settings, public: socket.socket, admin: socket.socket) -> bool:
    """Serve on two listening sockets until asked to stop; False when it stopped by itself.

    Raises ValueError when there is nothing to begin with.
    """
    # Imported late: what is wrong with the settings is told without waiting for a web framework.
    import uvloop

    from sluice_gateway.app import Gateway

    async def serve() -> bool:
        gateway = Gateway(given)
        freeze()
        logging.getLogger(__name__).info("starting", extra={"pid": os.getpid()})
        await gateway.serve(public, admin)
        return not gateway.failed

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve())


def freeze() -> None:
    """Tune the garbage collector: the main path makes no cycles."""
    # What exists now lives as long as the process: the collector need not look at it again, nor
    # run after every few hundred requests.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def listen(host: str, port: int, fd: int | None, option: str) -> socket.socket:
    """An open listening socket. Raises SettingsError that says what is in the way."""
    if fd is not None:
        try:
            return socket.socket(fileno=fd)
        except OSError as error:
            raise SettingsError(f"file descriptor {fd} is not a socket: {error.strerror}") from None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    # Not SO_REUSEPORT: two gateways on one port would share it silently.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise SettingsError(
            f"{host}:{port} cannot be used ({error.strerror}). Free it or choose another {option}."
        ) from None
    return listening


if __name__ == "__main__":
    main()
