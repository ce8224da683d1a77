"""Sockets, the two HTTP servers, and the order in which a worker ends.

The application port is served by the main thread's event loop; the admin port by a thread with a
loop of its own, so that computing and big bodies never starve a probe. ``__main__`` calls
:func:`serve`.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sluice_api import request_ids
from sluice_api.errors import ApiError, render
from sluice_api.settings import SettingsError
from sluice_worker.app import Application, administration, application
from sluice_worker.exchange import LINGER_SECONDS
from sluice_worker.routes import Worker
from sluice_worker.settings import Settings

log = logging.getLogger(__name__)

Start = Callable[[Worker], Coroutine[Any, Any, None]]

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
MAX_HEAD_BYTES = 64 * 1024


def bind(settings: Settings) -> tuple[socket.socket, socket.socket]:
    """The listening sockets of the two ports: inherited ones, or bound here.

    Listening starts at once, so that early callers wait in the kernel instead of being refused.
    Raises SettingsError when an address is taken or a descriptor is no listening socket.
    """
    return (
        _inherited(settings.fd, "--fd")
        if settings.fd is not None
        else _bound(settings.host, settings.port, "--port"),
        _inherited(settings.admin_fd, "--admin-fd")
        if settings.admin_fd is not None
        else _bound(settings.host, settings.admin_port, "--admin-port"),
    )


def _bound(host: str, port: int, flag: str) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"{flag}: got {host}:{port}, which cannot be bound: {_cause(error)}. "
            "Choose another port, or stop what uses it."
        ) from None


def _cause(error: OSError) -> str:
    # asyncio and socket write the address into strerror; the system's own words suffice.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


def _inherited(descriptor: int, flag: str) -> socket.socket:
    try:
        inherited = socket.socket(fileno=descriptor)
        if not inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError("it does not listen")
    except OSError as error:
        raise SettingsError(
            f"{flag}: got {descriptor}, needs an inherited listening socket: {_cause(error)}."
        ) from None
    return inherited


class Protocol(HttpToolsProtocol):
    """uvicorn's own, with a bound on the head, and its refusals from the catalogue too."""

    _head_bytes = 0
    _refused = False

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name + value)
        super().on_header(name, value)

    def _count(self, part: bytes) -> None:
        self._head_bytes += len(part) + 4
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("the head is too large")  # the parser passes it on as its own error

    def send_400_response(self, msg: str) -> None:
        if self._head_bytes > MAX_HEAD_BYTES:
            error = ApiError("headers_too_large", f"More than {MAX_HEAD_BYTES} bytes.")
        else:
            error = ApiError("bad_http", "The request could not be parsed.")
        rendered = render(error, path="", request_id=request_ids.accept(None))
        lines = [STATUS_LINE[rendered.status], b"connection: close\r\n"]
        headers = [*rendered.headers, ("content-length", str(len(rendered.body)))]
        lines += [f"{name}: {value}\r\n".encode("latin-1") for name, value in headers]
        self.transport.write(b"".join([*lines, b"\r\n", rendered.body]))
        # Closing while the client still sends would reset the connection and lose the answer.
        self._refused = True
        self.transport.write_eof()
        self.timeout_keep_alive_task = self.loop.call_later(LINGER_SECONDS, self.transport.close)


class Server(uvicorn.Server):
    """A uvicorn server that leaves the process's signals alone: they mean drain, see below."""

    def __init__(self, app: Application) -> None:
        config: dict[str, Any] = {
            "http": Protocol,
            "ws": "none",
            "lifespan": "off",
            "interface": "asgi3",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "proxy_headers": False,
            "timeout_keep_alive": KEEP_ALIVE_SECONDS,
            "timeout_graceful_shutdown": 5,
        }
        super().__init__(uvicorn.Config(app, **config))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def run_here(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` on a new event loop of the kind this server wants."""
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(work)


def serve(worker: Worker, sockets: tuple[socket.socket, socket.socket], start: Start) -> None:
    """Serve both ports until a signal comes and the drain is over.

    Args:
        sockets: of the application port and the admin port, listening.
        start: loads the model and makes the worker ready; its failure ends the serving.
    Raises:
        Whatever ``start`` raises.
    """
    app_socket, admin_socket = sockets
    start_admin(worker, admin_socket)
    server = Server(application(worker))
    server.run_here(_serve(worker, server, app_socket, start))


def start_admin(worker: Worker, listening: socket.socket) -> threading.Thread:
    """Serve the admin port on a thread of its own, for as long as the process lives."""
    server = Server(administration(worker))
    thread = threading.Thread(
        target=lambda: server.run_here(server.serve(sockets=[listening])), name="admin", daemon=True
    )
    thread.start()
    return thread


async def _serve(worker: Worker, server: Server, listening: socket.socket, start: Start) -> None:
    stopping = asyncio.Event()
    _on_signals(stopping)
    draining = Draining(worker)
    worker.drain = draining.from_elsewhere
    serving = asyncio.create_task(server.serve(sockets=[listening]), name="serve")
    turning = asyncio.create_task(_turn(worker), name="turn")
    starting = asyncio.create_task(start(worker), name="start")
    serving.add_done_callback(lambda _: stopping.set())
    starting.add_done_callback(lambda done: None if _succeeded(done) else stopping.set())
    try:
        await stopping.wait()
        if starting.done():
            starting.result()  # raises what went wrong
        if not serving.done():
            await draining.finish()
        server.should_exit = True
        await serving
    finally:
        draining.cancel()
        turning.cancel()
        starting.cancel()


class Draining:
    """The one drain of a process, begun by whoever asks first: a pod's hook or a signal.

    Kubernetes calls the hook, waits for its answer and only then sends the signal, which then finds
    everything done.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "not begun" if self._task is None else "over" if self._task.done() else "under way"
        return f"<Draining {state}, {self._worker!r}>"

    async def finish(self) -> None:
        """Begin unless it has begun, and wait for the end. On the application port's loop."""
        if self._task is None:
            self._task = asyncio.create_task(drain(self._worker), name="drain")
        # A caller that stops waiting must not stop the drain.
        await asyncio.shield(self._task)

    async def from_elsewhere(self) -> int:
        """The same from another thread's loop; tells how many requests were left unfinished."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.finish(), self._loop))
        return self._worker.exchanges

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


async def drain(worker: Worker) -> None:
    """Not ready at once; accept for the grace; finish what was accepted within the timeout.

    During the grace the callers learn that this worker leaves; what they send meanwhile is still
    answered.
    """
    settings = worker.settings
    worker.lifecycle.drain()
    if worker.intake is not None:
        await asyncio.sleep(settings.drain_grace_seconds)
    worker.accepting = False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.drain_timeout_seconds):
            await worker.idle.wait()
    log.info("drained", extra={"unfinished": worker.exchanges})


def _succeeded(task: "asyncio.Task[None]") -> bool:
    return not task.cancelled() and task.exception() is None


def _on_signals(stopping: asyncio.Event) -> None:
    def stop(number: int) -> None:
        if stopping.is_set():
            os._exit(128 + number)  # asked twice: at once
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)


async def _turn(worker: Worker) -> None:
    """Tell the health check once a second that this event loop still turns."""
    while True:
        worker.lifecycle.turn(time.monotonic())
        await asyncio.sleep(1.0)
