"""What ``sluice up`` was asked for, checked once. Made by ``main.py``."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from sluice_cli.up.errors import UpError
from sluice_cli.up.sockets import is_loopback

_REDIS_SCHEMES = ("redis", "rediss", "unix")


class LogLevel(StrEnum):
    """How much is printed beside the table."""

    DEBUG = "debug"
    """Every scaling decision too."""
    INFO = "info"
    """What happens, and the lines of gateway and workers."""
    WARNING = "warning"
    """Only what went wrong."""


class Auth(StrEnum):
    """Who may call."""

    NONE = "none"
    """Everybody who reaches the port; services with ``access.public`` only."""
    KEYS = "keys"
    """Whoever shows a key of the keys file."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Raises :class:`UpError` when the options contradict each other.

    Attributes:
        files: InferenceService files, and folders of them.
        keys_file: of ``auth`` keys.
        redis_url: of the shared cache; None keeps answers in the gateway's memory only.
        live: a live table; False prints plain lines; None decides by the terminal.
    """

    files: tuple[Path, ...]
    host: str
    port: int
    admin_port: int
    redis_url: str | None
    state_dir: Path
    live: bool | None = None
    log_level: LogLevel = LogLevel.INFO
    allow_anonymous_network: bool = False
    auth: Auth = Auth.NONE
    keys_file: Path | None = None

    def __post_init__(self) -> None:
        anonymous = self.auth is Auth.NONE and not self.allow_anonymous_network
        if anonymous and not is_loopback(self.host):
            raise UpError(
                f"--host: got {self.host!r}, which other machines can reach, and callers need no "
                "credentials. Use 127.0.0.1, give them keys with --auth keys, or add "
                "--allow-anonymous-network if that is meant."
            )
        if self.auth is Auth.KEYS and self.keys_file is None:
            raise UpError(
                "--keys: required with --auth keys. Make one: "
                "sluice keys create me --namespace default --file keys.yaml"
            )
        _check_redis_url(self.redis_url)
        if self.port == self.admin_port and self.port != 0:
            raise UpError(f"--admin-port: got {self.port}, which is --port too. Choose another.")


def _check_redis_url(url: str | None) -> None:
    """Find here what would end the gateway once workers are loading. Never repeats the URL."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
        if parts.port == 0:
            raise ValueError
    except ValueError:
        raise UpError("--redis-url: its port cannot be read, needs 1 to 65535.") from None
    if "://" not in url or parts.scheme not in _REDIS_SCHEMES:
        got = f"{parts.scheme}://" if "://" in url else "an address without a scheme"
        raise UpError(f"--redis-url: got {got}, needs redis://, rediss:// or unix://.")
    if parts.scheme == "unix" and not parts.path:
        raise UpError("--redis-url: needs the path of the socket, such as unix:///run/redis.sock.")
