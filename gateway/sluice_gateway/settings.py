"""What one gateway process is told: options, environment, defaults; checked once, then frozen.

Every option is also an environment variable, ``--redis-url`` as ``SLUICE_REDIS_URL``; the command
line wins. ``__main__`` reads them; nothing else looks at the environment.
"""

import argparse
import ipaddress
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sluice_api import names

MEBIBYTE: Final = 1024 * 1024


class SettingsError(Exception):
    """The process cannot start as it is told to; the message says what to change."""


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What a client is held to. Times in seconds.

    Attributes:
        linger_seconds: how long a refused client may go on sending before it is cut off.
        write_seconds: how long a client may take none of its answer.
    """

    body_bytes: int = 16 * MEBIBYTE
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    keep_alive_seconds: float = 75.0
    write_seconds: float = 30.0
    linger_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class Settings:
    """One gateway process.

    Attributes:
        discovery: ``static:FILE``.
        fd, admin_fd: listening sockets made by the parent process, instead of host and port.
        drain_delay: seconds of going on, not ready any more, before the sockets close.
        drain_grace: seconds that requests in flight may take after that.
    """

    discovery: str
    host: str = "127.0.0.1"
    port: int = names.APP_PORT
    fd: int | None = None
    admin_host: str = "127.0.0.1"
    admin_port: int = names.ADMIN_PORT
    admin_fd: int | None = None
    allow_anonymous_network: bool = False
    redis_url: str | None = None
    cache_secret: Path | None = None
    cache_bytes: int = 64 * MEBIBYTE
    access_log: bool = False
    log_level: str = "info"
    drain_delay: float = 0.0
    drain_grace: float = 30.0
    limits: EdgeLimits = field(default_factory=EdgeLimits)

    def __post_init__(self) -> None:
        kind, _, rest = self.discovery.partition(":")
        if kind != "static" or not rest:
            raise SettingsError(f"--discovery: got {self.discovery!r}, needs static:FILE.")
        for name in ("port", "admin_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise SettingsError(f"--{name.replace('_', '-')}: needs a number from 0 to 65535.")
        for name in ("drain_delay", "drain_grace"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise SettingsError(f"--{name.replace('_', '-')}: needs seconds, 0 or more.")
        if self.cache_bytes < 0 or self.limits.body_bytes <= 0:
            raise SettingsError("--cache-mib and --max-body-mib: need a positive number.")
        for name in ("head_seconds", "body_seconds", "keep_alive_seconds"):
            if not 0 < getattr(self.limits, name) < math.inf:
                raise SettingsError(f"--{name.replace('_', '-')}: needs seconds, more than 0.")
        if not self.allow_anonymous_network:
            for host in (self.host, self.admin_host):
                if not is_loopback(host):
                    raise SettingsError(
                        f"Without authentication, listening on {host!r} lets everybody in who can "
                        "reach it. Use 127.0.0.1, or allow it with --allow-anonymous-network."
                    )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from the command line and the environment.

    Raises SettingsError; ends the process for ``--help`` and unknown options, as argparse does.
    """
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    values = {}
    for action in parser._actions:
        name = action.dest
        if name == "help":
            continue
        value = given[name]
        if value is None:
            text = environment.get("SLUICE_" + name.upper())
            if text:
                value = _convert(action, "SLUICE_" + name.upper(), text)
        if value is not None:
            values[name] = value
    if "discovery" not in values:
        raise SettingsError("--discovery is required: static:FILE, a table of services.")
    limits: dict[str, Any] = {
        name: values.pop(name)
        for name in ("head_seconds", "body_seconds", "keep_alive_seconds")
        if name in values
    }
    if "max_body_mib" in values:
        limits["body_bytes"] = values.pop("max_body_mib") * MEBIBYTE
    values["limits"] = EdgeLimits(**limits)
    cache_mib = values.pop("cache_mib", None)
    if cache_mib is not None:
        values["cache_bytes"] = cache_mib * MEBIBYTE
    return Settings(**values)


def _convert(action: argparse.Action, name: str, text: str) -> object:
    if isinstance(action, argparse.BooleanOptionalAction):
        if text.lower() not in ("true", "false", "1", "0"):
            raise SettingsError(f"{name}: got {text!r}, needs true or false.")
        return text.lower() in ("true", "1")
    convert = action.type if callable(action.type) else str
    try:
        value: object = convert(text)
    except ValueError:
        raise SettingsError(f"{name}: got {text!r}, which cannot be read.") from None
    if action.choices is not None and value not in action.choices:
        raise SettingsError(f"{name}: got {text!r}, needs one of {', '.join(action.choices)}.")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sluice-gateway",
        description="Serve many models under one address. Each option is also read from the "
        "environment: --redis-url as SLUICE_REDIS_URL, and so on.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--discovery", metavar="static:FILE", help="where the table of services is")
    add("--host", help="address for applications (127.0.0.1)")
    add("--port", type=int, help="port for applications (8080; 0: any free one)")
    add("--fd", type=int, help="an open listening socket, instead of --host and --port")
    add("--admin-host", help="address for metrics, demand and docs (127.0.0.1)")
    add("--admin-port", type=int, help="port for metrics, demand and docs (8081; 0: any)")
    add("--admin-fd", type=int, help="an open listening socket for the admin port")
    add(
        "--allow-anonymous-network",
        action=argparse.BooleanOptionalAction,
        help="serve callers without credentials on other addresses than loopback",
    )
    add("--redis-url", help="shared response cache; without it each process has its own")
    add("--cache-secret", type=Path, metavar="FILE", help="secret of the cache; made if missing")
    add("--cache-mib", type=int, help="memory for cached answers in this process (64)")
    add("--max-body-mib", type=int, help="largest request body taken (16)")
    add("--head-seconds", type=float, help="for a request's headers to arrive (10)")
    add("--body-seconds", type=float, help="for a request's body to arrive (30)")
    add("--keep-alive-seconds", type=float, help="an idle connection is kept (75)")
    add("--access-log", action=argparse.BooleanOptionalAction, help="one JSON line per request")
    add("--log-level", choices=("debug", "info", "warning", "error"), help="(info)")
    add("--drain-delay", type=float, metavar="SECONDS", help="from SIGTERM to closing the port (0)")
    add("--drain-grace", type=float, metavar="SECONDS", help="for requests in flight then (30)")
    return parser
