"""``python -m sluice_gateway``: read settings, open both ports, run one gateway process or several.

Ports are bound before anything else starts, so that a taken one is a clear error and no half of a
gateway. Exit codes: 0 after a signal, 1 after a failure of its own, 78 when it cannot start
as it is told to.
"""

import os
import socket
import sys
from collections.abc import Sequence

from sluice_api.settings import SettingsError
from sluice_gateway import process, settings
from sluice_gateway.logs import configure
from sluice_gateway.settings import Settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        given = settings.read(arguments, os.environ)
        configure(given.log_level)
        public = listen(given.host, given.port, given.fd, "--port")
        admin = listen(given.admin_host, given.admin_port, given.admin_fd, "--admin-port")
        well = run(given, arguments, public, admin)
    except (SettingsError, ValueError) as error:
        process.exit_misconfigured(error)
    sys.exit(0 if well else 1)


def run(
    given: Settings, arguments: Sequence[str], public: socket.socket, admin: socket.socket
) -> bool:
    """Serve on two listening sockets until asked to stop; False when it stopped by itself.

    Raises ValueError when there is nothing to begin with.
    """
    if given.processes > 1:
        return _run_several(given, arguments, public, admin)
    # Imported late: what is wrong with the settings is told without waiting for a web framework.
    from sluice_gateway.app import Gateway

    async def serve() -> bool:
        gateway = Gateway(given)
        process.freeze()
        await gateway.serve(public, admin)
        return not gateway.failed

    return process.run(serve)


def _run_several(
    given: Settings, arguments: Sequence[str], public: socket.socket, admin: socket.socket
) -> bool:
    from sluice_gateway.processes.supervisor import Supervisor

    async def serve() -> bool:
        supervisor = Supervisor(given, arguments, public)
        return await supervisor.serve(admin)

    return process.run(serve)


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
