"""The two ASGI applications of a worker: one for callers, one for probes and metrics.

``server`` runs them under uvicorn. Each request passes here once: head in, response out, errors
written by the catalogue, and the headers that every answer carries.
"""

import logging
import time
from collections.abc import Awaitable, Callable

from sluice_api import names
from sluice_api.errors import ApiError
from sluice_worker.exchange import (
    Broken,
    ClientGone,
    Head,
    Message,
    Receive,
    Response,
    Send,
    head_of,
    linger,
    refusal,
    relay,
)
from sluice_worker.routes import Worker, label_of, observe, respond

log = logging.getLogger(__name__)

CLIENT_GONE = 499
"""Counted as the status of requests whose client left, after nginx's example; never sent."""

CLOSE = (b"connection", b"close")

Responder = Callable[[Worker, Head, Receive], Awaitable[Response]]


class Application:
    """ASGI over one responder."""

    def __init__(self, worker: Worker, responder: Responder, *, counted: bool) -> None:
        self._worker = worker
        self._responder = responder
        self._counted = counted

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        worker = self._worker
        head = head_of(scope, time.monotonic())
        if self._counted:
            worker.begin()
        try:
            response = await self._respond(head, receive)
            self._count(head, response.status)
            headers = self._headers(head, response)
            await send(
                {
                    "type": "http.response.start",
                    "status": response.status,
                    "headers": headers,
                }
            )
            refused = response.status >= 400 and CLOSE in headers
            more = refused or response.parts is not None
            await send({"type": "http.response.body", "body": response.body, "more_body": more})
            if response.parts is not None:
                await relay(response.parts, receive, send)
            elif refused:  # Perhaps before its body was here.
                await linger(receive)
                await send({"type": "http.response.body"})
        except Broken:
            pass  # Without the last chunk, the server closes the connection: no caller is misled.
        except ClientGone:
            self._count(head, CLIENT_GONE)
        finally:
            if self._counted:
                worker.end()

    def _count(self, head: Head, status: int) -> None:
        if self._counted:
            self._worker.metrics.requests.labels(label_of(head.path), str(status)).inc()

    async def _respond(self, head: Head, receive: Receive) -> Response:
        try:
            return await self._responder(self._worker, head, receive)
        except ApiError as error:
            response = refusal(error, head)
            if error.code in ("body_too_large", "request_timeout"):
                # The rest of the body is still on its way; do not read it as a request.
                response.headers.append(("connection", "close"))
            return response
        except ClientGone:
            raise
        except Exception:
            log.exception("request failed", extra={"request_id": head.request_id})
            return refusal(ApiError("internal_error", "The worker failed."), head)

    def _headers(self, head: Head, response: Response) -> list[tuple[bytes, bytes]]:
        lifecycle = self._worker.lifecycle
        headers = [
            *response.headers,
            (names.REQUEST_ID, head.request_id),
        ]
        if response.parts is None:
            headers.append(("content-length", str(len(response.body))))
            headers.append((names.SERVICE_TIME, f"{response.service_seconds:.6f}"))
        if revision := self._worker.settings.revision:
            headers.append((names.REVISION, revision))
        if digest := lifecycle.identity.answer_digest:
            headers.append((names.ANSWER_DIGEST, digest))
        if lifecycle.capacity is not None:
            headers.append((names.CAPACITY, lifecycle.capacity().header()))
        if lifecycle.draining and ("connection", "close") not in headers:
            headers.append(("connection", "close"))
        return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]


def application(worker: Worker) -> Application:
    """What the application port serves."""
    return Application(worker, respond, counted=True)


def administration(worker: Worker) -> Application:
    """What the admin port serves."""
    return Application(worker, observe, counted=False)
