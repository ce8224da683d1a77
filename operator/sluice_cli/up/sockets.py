"""Listening sockets, bound here and handed to the children by descriptor.

So a taken port is an error before anything else starts, no two workers race for a port, and the
gateway's port stays open (connections wait in the kernel) while a crashed gateway is restarted.
"""

import errno
import ipaddress
import socket

from sluice_cli.up.errors import UpError

BACKLOG = 2048


def listen(host: str, port: int, *, option: str) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. Raises :class:`UpError`.

    Args:
        option: the command line option to change when it fails.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UpError(
            f"--host: {host!r} is no address of this machine ({error.strerror})."
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        # Takes over connections in TIME_WAIT only; a port that somebody listens on stays an error.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise UpError(_explain(error, host, port, option)) from None
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def url_of(listener: socket.socket) -> str:
    """``http://…`` by which this machine reaches the socket."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  compared, not bound
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _explain(error: OSError, host: str, port: int, option: str) -> str:
    where = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"{option}: {where} is taken by another program. Stop it, or choose another port."
    if error.errno == errno.EACCES:
        return f"{option}: {where} needs rights you do not have. Choose a port from 1024 on."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host: {host!r} is no address of this machine."
    return f"{option}: cannot listen on {where}: {error.strerror}."
