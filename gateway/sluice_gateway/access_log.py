"""One JSON line per request, when asked for; never a body, never a header the caller chose freely.

Lines are written by a thread of their own, so that a full disk or a pipe nobody reads costs lines,
counted, and no request. ``dispatch`` records; ``app`` starts and closes.
"""

import os
import queue
import threading
import time
from typing import Final

import msgspec

from sluice_gateway.request import Request

MAX_WAITING_LINES: Final = 10_000

_encode = msgspec.json.Encoder().encode


class AccessLog:
    """Writes to the file descriptor ``fd``, which it does not own."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING_LINES)
        self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
        self.dropped = 0

    def __repr__(self) -> str:
        return f"<AccessLog {self._lines.qsize()} waiting, {self.dropped} dropped>"

    def start(self) -> None:
        self._thread.start()

    def record(
        self, request: Request, service: tuple[str, str], status: int, seconds: float
    ) -> None:
        route, tenant = request.head.route, request.tenant
        line = _encode(
            {
                "time": round(time.time(), 3),
                "event": "request",
                "request_id": request.id.decode("latin-1"),
                "tenant": tenant.name if tenant is not None else "",
                "key": tenant.key if tenant is not None else "",
                "namespace": service[0],
                "service": service[1],
                "route": route.path if route is not None else "",
                "status": status,
                "seconds": round(seconds, 6),
                "body_bytes": len(request.body),
            }
        )
        try:
            self._lines.put_nowait(line + b"\n")
        except queue.Full:
            self.dropped += 1

    def close(self, timeout: float = 1.0) -> None:
        """Write what waits, for at most ``timeout`` seconds."""
        try:
            self._lines.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                while line:
                    line = line[os.write(self._fd, line) :]
            except OSError:
                self.dropped += 1
