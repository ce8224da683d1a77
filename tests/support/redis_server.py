"""A real redis-server for one test module: on a Unix socket and a free port, ended by handle.

With a :class:`Guard` it takes TLS with a client's certificate only, and a password.
"""

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sluice_api import names
from tests.support.cluster.certificates import CLIENT, SERVER, Authority


@dataclass(frozen=True)
class Guard:
    """Certificates in ``folder``, and what servers are let in with."""

    folder: Path
    password: str

    @classmethod
    def make(cls, folder: Path) -> "Guard":
        Authority(folder, "ca", "redis-authority").issue(
            "redis", "redis", SERVER, CLIENT, alternative_names=("127.0.0.1",)
        )
        return cls(folder, "pass word/@")

    @property
    def options(self) -> list[str]:
        """For the servers, beside their ports."""
        files = (("cert", "redis.crt"), ("key", "redis.key"), ("ca-cert", "ca.crt"))
        given = [part for name, file in files for part in self._file(f"--tls-{name}-file", file)]
        return [*given, "--requirepass", self.password]

    @property
    def query(self) -> str:
        """For URLs."""
        files = (("ca_certs", "ca.crt"), ("certfile", "redis.crt"), ("keyfile", "redis.key"))
        return "&".join(f"ssl_{name}={self.folder / file}" for name, file in files)

    def _file(self, option: str, file: str) -> tuple[str, str]:
        return option, str(self.folder / file)


class RedisServer:
    """A server without persistence. It can be stopped, killed and started anew in its place."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        config: Path | None = None,
        sentinel: bool = False,
        guard: Guard | None = None,
    ) -> None:
        self.port = free_port()
        self._guard = guard
        ports = ("--port", "0", "--tls-port") if guard is not None else ("--port",)
        self.path = folder / "redis.sock"
        self._log = folder / "redis.log"
        self._command = [
            "redis-server",
            *([str(config)] if config is not None else []),
            *(*ports, str(self.port), "--bind", "127.0.0.1"),
            *(guard.options if guard is not None else []),
            *("--unixsocket", str(self.path)),
            *(["--sentinel"] if sentinel else ["--save", "", "--appendonly", "no"]),
            *("--dir", str(folder), "--logfile", str(self._log)),
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def unix_url(self) -> str:
        return f"unix://{self.path}"

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def client(self) -> "redis.Redis":
        """An independent client, for the test itself. Close it."""
        return redis.Redis(
            unix_socket_path=str(self.path),
            password=self._guard.password if self._guard is not None else None,
            socket_timeout=60,
            retry=Retry(NoBackoff(), 0),
        )

    def answers(self) -> int:
        """How many answers of gateways it holds, beside whatever leases come and go."""
        with self.client() as client:
            return len(client.keys(f"{names.REDIS_CACHE_PREFIX}*"))

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except (redis.AuthenticationError, redis.ResponseError):
                return  # It speaks; that is enough.
            except (redis.ConnectionError, redis.TimeoutError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"redis-server: {self._log.read_text()}") from None
                time.sleep(0.01)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(60)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self.kill()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)


@contextmanager
def running_redis(*options: str) -> Iterator[RedisServer]:
    """A started server in a folder of its own."""
    with TemporaryDirectory() as folder:
        server = RedisServer(Path(folder), *options)
        try:
            server.start()
            yield server
        finally:
            server.close()


def free_port() -> int:
    """A port for a program that cannot be given 0, and may take it some moments later.

    Below those that the kernel gives to who asks for any, or to who connects: between now and then
    it could give this one to somebody else.
    """
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
