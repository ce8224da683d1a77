"""How the tests talk to the box: one JSON object a connection over a Unix socket, and one back.

A Unix socket in the file system crosses network namespaces; a listening socket may travel with the
request. The box serves it, `Cluster` calls it.
"""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

MAX_REQUEST_BYTES = 64 * 1024
Answer = Callable[[dict[str, Any], socket.socket | None], Awaitable[Any]]


class ControlError(Exception):
    """The box refused; the message is its own."""


def call(
    path: Path, seconds: float, *, handing: socket.socket | None = None, **request: Any
) -> Any:
    """Ask the box. Raises ControlError if it refuses, OSError if it is not there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        connection.connect(str(path))
        descriptors = [handing.fileno()] if handing else []
        socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], descriptors)
        with connection.makefile("rb") as answer:
            content = json.loads(answer.readline() or b'{"error": "the box hung up"}')
    if "error" in content:
        raise ControlError(content["error"])
    return content.get("result")


class ControlServer:
    """The box's end. Every request is a task of its own, so a slow one delays nobody."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self._answer = answer
        self._path = path
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __repr__(self) -> str:
        return f"<ControlServer {self._path}, {len(self._tasks)} requests>"

    def start(self) -> None:
        self._listener.bind(str(self._path))
        self._listener.listen(64)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        # The line may be long in coming, from a caller who is stopped, or none at all.
        asyncio.get_running_loop().add_reader(connection, self._receive, connection)

    def _receive(self, connection: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(connection)
        try:
            line, descriptors, _, _ = socket.recv_fds(connection, MAX_REQUEST_BYTES, 1)
        except OSError:
            line, descriptors = b"", []
        if not line:
            connection.close()
            return
        handed = socket.socket(fileno=descriptors[0]) if descriptors else None
        task = asyncio.create_task(self._serve(connection, line, handed), name="control request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(
        self, connection: socket.socket, line: bytes, handed: socket.socket | None
    ) -> None:
        try:
            content = {"result": await self._answer(json.loads(line), handed)}
        except Exception as error:  # whatever went wrong belongs to the caller
            content = {"error": f"{type(error).__name__}: {error}"}
        with connection:
            try:
                data = json.dumps(content).encode() + b"\n"
                await asyncio.get_running_loop().sock_sendall(connection, data)
            except OSError:
                pass  # the caller has gone
