"""Where Redis is and how to be let in, read from a URL; ``redis_pipeline.py`` connects with it.

redis-py's own parser reads the URL, so that what works there works here. An option that this
pipeline cannot honour is refused instead of ignored.
"""

import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_FORMS = "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// and HOST:PORT"
ESCAPE = "In a password, signs other than letters and digits are written as %XX."
_KNOWN = {"host", "port", "path", "db", "username", "password", "connection_class", *_TLS_FILES}


@dataclass(frozen=True, slots=True)
class Address:
    """One Redis server.

    Attributes:
        path: of a Unix socket; None for TCP.
        shown: the address without credentials, for people and logs.
    """

    shown: str
    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None


def parse_address(url: str) -> Address:
    """Read ``redis://``, ``rediss://`` (TLS) or ``unix://``.

    TLS takes ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``, ``ssl_cert_reqs`` and
    ``ssl_check_hostname`` from the query. Raises ValueError, without the credentials in it.
    """
    # Imported late: it takes as long as the rest of a gateway, which may well run without Redis.
    from redis.asyncio.connection import SSLConnection, parse_url

    try:
        parts: dict[str, Any] = dict(parse_url(url))
    except ValueError:  # What it says may quote a part of the password.
        raise ValueError(f"The Redis URL cannot be read, needs {_FORMS}. {ESCAPE}") from None
    if unknown := sorted(set(parts) - _KNOWN):
        raise ValueError(f"The Redis URL has options that are not known: {', '.join(unknown)}.")
    split = urlsplit(url)
    place = parts.get("path") or f"{parts.get('host', 'localhost')}:{parts.get('port', 6379)}"
    return Address(
        shown=f"{split.scheme}://{place}/{parts.get('db', 0)}",
        host=parts.get("host", "localhost"),
        port=parts.get("port", 6379),
        path=parts.get("path"),
        db=parts.get("db", 0),
        username=parts.get("username"),
        password=parts.get("password"),
        tls=_tls(parts) if parts.get("connection_class") is SSLConnection else None,
    )


def _tls(parts: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=parts.get("ssl_ca_certs"))
    verify = str(parts.get("ssl_cert_reqs", "required"))
    if verify not in ("required", "none"):
        raise ValueError(f"ssl_cert_reqs: got {verify!r}, needs 'required' or 'none'.")
    named = str(parts.get("ssl_check_hostname", "true")).lower() in ("true", "1", "yes")
    context.check_hostname = named and verify == "required"
    if verify == "none":
        context.verify_mode = ssl.CERT_NONE
    if parts.get("ssl_certfile"):
        context.load_cert_chain(parts["ssl_certfile"], parts.get("ssl_keyfile"))
    return context
