"""What one gateway process is told: options, environment, defaults; checked once, then frozen.

``--help`` and ``docs/gateway.md`` show the table of options. ``__main__`` reads them; nothing else
looks at the environment.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sluice_api import names
from sluice_api.key_file import LIMIT_KINDS, Limits
from sluice_api.rates import parse_rate
from sluice_api.settings import (
    MEBIBYTE,
    Option,
    SettingsError,
    choice,
    duration,
    mebibytes,
    read_options,
    switch,
    text,
    whole,
)

KUBERNETES: Final = "kubernetes"
AUTH_NONE: Final = "none"
AUTH_KEYS: Final = "keys"
API_HOST: Final = "kubernetes.default.svc"
EVERYBODY: Final = "*"
_ORIGIN = re.compile(
    r"[a-z][a-z0-9+.-]*://[a-z0-9._-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?"
)
BODY_PACE: Final = 65_536
"""Bytes per second that a client may be as slow as, however large its body is."""
SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What a client is held to. Times in seconds.

    Attributes:
        body_seconds: for a body to arrive, and beyond that a second for each :data:`BODY_PACE`
            bytes of it that have.
        linger_seconds: how long a refused client may go on sending before it is cut off.
        write_seconds: how long a client may take none of its answer.
        connections: of clients, at one time.
        buffered_bytes: of all bodies that are coming in or being answered, together.
    """

    body_bytes: int = names.MAX_BODY_BYTES
    head_seconds: float = 10.0
    body_seconds: float = 10.0
    keep_alive_seconds: float = 75.0
    write_seconds: float = 30.0
    linger_seconds: float = 2.0
    connections: int = 8_192
    buffered_bytes: int = 128 * MEBIBYTE

    def body_is_late(self, seconds: float, received: int) -> bool:
        """Whether a body of which so many bytes have come in so many seconds is given up."""
        return seconds > self.body_seconds + received / BODY_PACE


@dataclass(frozen=True, slots=True)
class Settings:
    """One gateway process. Raises SettingsError when it would be open to a network by accident.

    Attributes:
        discovery: ``static:FILE`` or ``kubernetes``.
        auth: ``none``: everybody is anonymous; ``keys``: callers show a key of ``keys_file``.
        tenant_limits: of each tenant that has none of its own in the keys file.
        limit_gateways: among how many gateways limits are divided while Redis cannot tell.
        namespaces: of the cluster, to be looked at; none for all.
        demand_readers: who may read ``/internal/``, by user name; in a cluster only.
        api_host, api_port: the API server, as Kubernetes tells every pod.
        service_account: folder with the ServiceAccount's ``token`` and ``ca.crt``.
        redis_timeout: how long a reply of Redis is waited for.
        fd, admin_fd: listening sockets made by the parent process, instead of host and port.
        cors_origins: whose pages may call from a browser; none: only the gateway's own.
        cors_credentials: they may send cookies along.
        repeats_seconds: how long the answer to an ``Idempotency-Key`` is remembered.
        repeats_bytes: of all such answers together.
        unheard_seconds: how long answers in memory are used on while invalidations by other
            gateways cannot be heard.
        drain_delay: seconds of going on, not ready any more, before the sockets close.
        drain_grace: seconds that requests in flight may take after that.
        zone: where this gateway runs; workers in the same zone are preferred.
        slow_start: seconds until a worker that is new, or back, gets its full share.
        connect_timeout: seconds for a connection to a worker to be made.
    """

    discovery: str
    auth: str = AUTH_NONE
    keys_file: Path | None = None
    tenant_limits: Limits = field(default_factory=Limits)
    limit_gateways: int = 1
    namespaces: tuple[str, ...] = ()
    demand_readers: frozenset[str] = frozenset()
    api_host: str = API_HOST
    api_port: int = 443
    service_account: Path = Path(SERVICE_ACCOUNT)
    host: str = "127.0.0.1"
    port: int = names.APP_PORT
    fd: int | None = None
    admin_host: str = "127.0.0.1"
    admin_port: int = names.ADMIN_PORT
    admin_fd: int | None = None
    processes: int = 1
    allow_anonymous_network: bool = False
    redis_url: str | None = None
    redis_timeout: float = 0.025
    cache_secret: Path | None = None
    cache_bytes: int = 64 * MEBIBYTE
    cors_origins: tuple[str, ...] = ()
    cors_credentials: bool = False
    repeats_seconds: float = 600.0
    repeats_bytes: int = 16 * MEBIBYTE
    unheard_seconds: float = 30.0
    access_log: bool = False
    log_level: str = "info"
    drain_delay: float = 0.0
    drain_grace: float = 30.0
    zone: str = ""
    slow_start: float = 10.0
    connect_timeout: float = 1.0
    limits: EdgeLimits = field(default_factory=EdgeLimits)

    def __post_init__(self) -> None:
        if self.cors_credentials and (EVERYBODY in self.cors_origins or not self.cors_origins):
            raise SettingsError(
                "--cors-credentials lets pages send cookies along, so it needs --cors-origins with "
                f"origins by name; got {','.join(self.cors_origins) or 'none'}."
            )
        if self.auth == AUTH_KEYS and self.keys_file is None:
            raise SettingsError(
                "--keys-file: required with --auth keys. `sluice keys create` makes such a file."
            )
        if self.auth == AUTH_NONE and self.keys_file is not None:
            raise SettingsError(
                "--keys-file: has no effect with --auth none. Add --auth keys, or leave it out."
            )
        if not self.allow_anonymous_network:
            for host in self._open_hosts():
                if not is_loopback(host):
                    raise SettingsError(
                        f"Without authentication, listening on {host!r} lets everybody in who can "
                        "reach it. Use 127.0.0.1, or allow it with --allow-anonymous-network."
                    )

    def _open_hosts(self) -> tuple[str, ...]:
        """Addresses where nobody is asked who it is."""
        if self.auth == AUTH_NONE:
            return self.host, self.admin_host
        # In a cluster the admin port asks too, for a token; keys are for applications.
        return () if self.in_cluster else (self.admin_host,)

    @property
    def in_cluster(self) -> bool:
        return self.discovery == KUBERNETES


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _discovery(value: str) -> str:
    kind, _, rest = value.partition(":")
    if value != KUBERNETES and (kind != "static" or not rest):
        raise ValueError("static:FILE or kubernetes")
    return value


def _words(value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _origins(value: str) -> tuple[str, ...]:
    origins = _words(value)
    for origin in origins:
        if origin != EVERYBODY and not _ORIGIN.fullmatch(origin):
            raise ValueError("origins such as https://app.example.com, or * for all")
    if EVERYBODY in origins and len(origins) > 1:
        raise ValueError("either * or origins by name")
    return origins


def _own(
    field: str,
    flag: str,
    default: str | None,
    read: Callable[[str], Any],
    meaning: str,
    *,
    optional: bool = False,
) -> Option:
    """An option whose variable is the gateway's own, so that workers beside it do not take it."""
    variable = "SLUICE_GATEWAY_" + flag[2:].upper().replace("-", "_")
    return Option(field, flag, variable, default, read, meaning, optional)


_fd = whole(3, 2**20)
_wait = duration(0.001, 3600)

OPTIONS: Final = (
    _own(
        "discovery",
        "--discovery",
        None,
        _discovery,
        "where the services are: static:FILE or kubernetes",
    ),
    _own(
        "namespaces",
        "--namespaces",
        "",
        _words,
        "namespaces to look at, separated by commas; none: all of the cluster",
    ),
    _own(
        "demand_readers",
        "--demand-readers",
        "",
        lambda value: frozenset(_words(value)),
        "users who may read /internal/ in a cluster, separated by commas",
    ),
    Option(
        "api_host",
        "--api-host",
        "KUBERNETES_SERVICE_HOST",
        API_HOST,
        text,
        "the API server; Kubernetes tells every pod its address",
    ),
    Option(
        "api_port",
        "--api-port",
        "KUBERNETES_SERVICE_PORT",
        "443",
        whole(1, 65535),
        "its port",
    ),
    _own(
        "service_account",
        "--service-account",
        SERVICE_ACCOUNT,
        Path,
        "folder with token and ca.crt of the API server",
    ),
    _own("host", "--host", "127.0.0.1", text, "address for applications"),
    _own("port", "--port", str(names.APP_PORT), whole(0, 65535), "port for them; 0: any free one"),
    Option("fd", "--fd", None, None, _fd, "listening socket instead of the two above", True),
    _own("admin_host", "--admin-host", "127.0.0.1", text, "address for metrics, demand, health"),
    _own(
        "admin_port",
        "--admin-port",
        str(names.ADMIN_PORT),
        whole(0, 65535),
        "port for metrics, demand, health; 0: any free one",
    ),
    Option(
        "admin_fd", "--admin-fd", None, None, _fd, "listening socket instead of the two above", True
    ),
    _own(
        "processes",
        "--processes",
        "1",
        whole(1, 64),
        "processes that serve the port together; 1 in a pod",
    ),
    _own(
        "allow_anonymous_network",
        "--allow-anonymous-network",
        "false",
        switch,
        "serve callers without credentials on other addresses than loopback",
    ),
    _own(
        "auth",
        "--auth",
        AUTH_NONE,
        choice(AUTH_NONE, AUTH_KEYS),
        "who may call: none (everybody, as the tenant anonymous) or keys",
    ),
    _own(
        "keys_file",
        "--keys-file",
        None,
        Path,
        "tenants and hashes of their keys, for --auth keys; read again whenever it changes",
        optional=True,
    ),
    _own(
        "requests",
        "--limit-requests",
        None,
        parse_rate,
        "requests of each tenant without limits of its own, such as 20/s or 600/m:50",
        optional=True,
    ),
    _own(
        "inputs",
        "--limit-inputs",
        None,
        parse_rate,
        "inputs computed for such a tenant",
        optional=True,
    ),
    _own(
        "tokens",
        "--limit-tokens",
        None,
        parse_rate,
        "tokens computed for such a tenant",
        optional=True,
    ),
    _own(
        "limit_gateways",
        "--limit-gateways",
        "1",
        whole(1, 10_000),
        "gateways among which limits are divided while Redis cannot tell",
    ),
    Option(
        "redis_url",
        "--redis-url",
        names.ENV_REDIS_URL,
        None,
        text,
        "shared response cache and limits; without it each process has its own",
        True,
    ),
    _own(
        "redis_timeout",
        "--redis-timeout",
        "25ms",
        duration(0.001, 10),
        "for a reply of Redis; one that is later is a miss, and a new connection is made",
    ),
    _own(
        "cache_secret",
        "--cache-secret",
        None,
        Path,
        "file with the secret of the cache; made if missing, but not in a cluster",
        optional=True,
    ),
    _own(
        "cache_bytes",
        "--cache-mib",
        "64",
        mebibytes(0, 2**20),
        "mebibytes of cached answers in this process",
    ),
    _own(
        "unheard_seconds",
        "--cache-unheard-for",
        "30s",
        duration(0, 3600),
        "how long answers in memory are used while invalidations by others cannot be heard",
    ),
    _own(
        "body_bytes",
        "--max-body-mib",
        str(names.MAX_BODY_BYTES // MEBIBYTE),
        mebibytes(1, 1024),
        "mebibytes of the largest request body",
    ),
    _own("head_seconds", "--head-timeout", "10s", _wait, "for a request's headers to arrive"),
    _own(
        "body_seconds",
        "--body-timeout",
        "10s",
        _wait,
        "for a request's body to arrive, and a second more for each 64 KiB that have",
    ),
    _own("keep_alive_seconds", "--keep-alive", "75s", _wait, "an idle connection is kept"),
    _own("write_seconds", "--write-timeout", "30s", _wait, "for a client that takes no answer"),
    _own(
        "connections",
        "--max-connections",
        "8192",
        whole(1, 2**20),
        "client connections at one time; beyond, the slowest client has to go",
    ),
    _own(
        "buffered_bytes",
        "--max-receiving-mib",
        "128",
        mebibytes(1, 2**20),
        "mebibytes of all request bodies that are coming in or being answered at one time",
    ),
    _own(
        "cors_origins",
        "--cors-origins",
        "",
        _origins,
        "origins whose pages may call from a browser, separated by commas; * for all",
    ),
    _own(
        "cors_credentials",
        "--cors-credentials",
        "false",
        switch,
        "these pages may send cookies along, for a proxy on the way that reads them",
    ),
    _own(
        "repeats_seconds",
        "--idempotency-ttl",
        "10m",
        _wait,
        "the answer to a request with an Idempotency-Key is remembered",
    ),
    _own(
        "repeats_bytes",
        "--idempotency-mib",
        "16",
        mebibytes(0, 2**20),
        "mebibytes of all these answers in this process",
    ),
    _own("access_log", "--access-log", "false", switch, "one JSON line per request"),
    _own(
        "log_level",
        "--log-level",
        "info",
        choice("debug", "info", "warning", "error"),
        "debug, info, warning or error",
    ),
    _own(
        "drain_delay",
        "--drain-delay",
        "0s",
        duration(0, 3600),
        "from SIGTERM, not ready any more, until no connection is taken",
    ),
    _own("drain_grace", "--drain-grace", "30s", duration(0, 3600), "for requests in flight then"),
    _own("zone", "--zone", "", str, "zone of this gateway; workers in the same one are preferred"),
    _own(
        "slow_start",
        "--slow-start",
        "10s",
        duration(0, 3600),
        "until a worker that is new, or back, gets its full share",
    ),
    _own("connect_timeout", "--connect-timeout", "1s", _wait, "for a connection to a worker"),
)
_LIMITS: Final = (
    "body_bytes",
    "head_seconds",
    "body_seconds",
    "keep_alive_seconds",
    "write_seconds",
    "connections",
    "buffered_bytes",
)


def read(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from the command line and the environment.

    Raises SettingsError; ends the process for ``--help``, as argparse does.
    """
    description = "Serve many models under one address."
    values = read_options("sluice-gateway", description, OPTIONS, arguments, environment)
    limits = EdgeLimits(**{name: values.pop(name) for name in _LIMITS})
    tenant_limits = Limits(**{kind: values.pop(kind) for kind in LIMIT_KINDS})
    return Settings(**values, limits=limits, tenant_limits=tenant_limits)
