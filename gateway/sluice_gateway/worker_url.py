"""URLs of workers, checked where they come in: what passes can be looked up and connected to."""

import ipaddress
import re
from typing import Final

MAX_PORT: Final = 65535
MAX_HOST: Final = 253
"""Characters of a name, by RFC 1035."""

_LABELS: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", re.ASCII)
_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII)


def split_url(url: str) -> tuple[str, int]:
    """Host and port of an endpoint's URL.

    Raises ValueError unless it is plain ``http://`` with a host and a port that there can be.
    """
    scheme, _, rest = url.partition("://")
    authority = rest.rstrip("/")
    host, _, port = authority.rpartition(":")
    if scheme != "http" or not host or not _PORT.fullmatch(port) or "/" in authority:
        raise ValueError(f"{url!r:.300} is not of the form http://HOST:PORT")
    if not 1 <= int(port) <= MAX_PORT:
        raise ValueError(f"{url!r:.300}: port {port} is not from 1 to {MAX_PORT}")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (_is_ipv6(bare) if bare != host else _is_name(host)):
        raise ValueError(
            f"{url!r:.300}: {host!r:.80} is no host; needed is a name with labels of 1 to 63 of"
            " a-z, 0-9, - and _ between single dots, an IPv4 address, or an IPv6 address in []"
        )
    return bare, int(port)


def _is_name(host: str) -> bool:
    return len(host) <= MAX_HOST and _LABELS.fullmatch(host) is not None


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
