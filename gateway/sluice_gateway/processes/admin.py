"""The admin port of a supervisor: one answer for what its children know one by one.

Metrics and services are merged, demand is the supervisor's own feed, health is its own. Whatever
else the admin routes of a gateway are (``control.admin``), a request that only reads is put to one
child, any other to all of them, so that what one child is told to do all do.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Final, Protocol

import msgspec
from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from sluice_api import exposition
from sluice_api.errors import ApiError
from sluice_gateway.control import problems
from sluice_gateway.control.admin import Readers
from sluice_gateway.control.health import Health
from sluice_gateway.control.models import VERSION
from sluice_gateway.demand import DemandFeed
from sluice_gateway.processes.link import Answered
from sluice_gateway.processes.sums import merge_services

MAX_BODY_BYTES: Final = 1024 * 1024
_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_HOP_BY_HOP: Final = (b"content-length", b"connection", b"transfer-encoding")


class Children(Protocol):
    """The supervisor as this page needs it."""

    async def ask_one(self, request: "Forwarded") -> Answered:
        """Raises ApiError when there is none."""
        ...

    async def ask_all(self, request: "Forwarded") -> list[Answered]:
        """The answers of those that answered. Raises ApiError when none did."""
        ...


class Forwarded(msgspec.Struct, frozen=True):
    """A request as it is put to a child."""

    method: str
    path: str
    query: bytes = b""
    headers: list[tuple[bytes, bytes]] = []
    body: bytes = b""


def make_app(
    children: Children,
    health: Health,
    feed: DemandFeed,
    page: Callable[[], Awaitable[bytes]],
    status: Callable[[], dict[str, str]],
    readers: Readers | None,
    new_id: Callable[[], bytes],
) -> FastAPI:
    """The application of the admin port.

    Args:
        page: makes the page of metrics.
        status: one line about each part of the supervisor.
        readers: who may read below ``/internal/``; None where only this machine reaches the port.
    """
    app = FastAPI(title="Sluice gateway, admin", version=VERSION, docs_url=None, redoc_url=None)
    problems.install(app, new_id)

    @app.get("/livez")
    async def livez() -> JSONResponse:
        return JSONResponse({"live": True})

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        return JSONResponse(health.detail(), 200 if health.ready else 503)

    @app.get("/metrics")
    async def read_metrics() -> Response:
        return Response(await page(), headers={"content-type": exposition.CONTENT_TYPE})

    async def authorised(authorization: Annotated[str | None, Header()] = None) -> None:
        if readers is not None:
            await readers.check(authorization)

    @app.get("/internal/demand", dependencies=[Depends(authorised)])
    async def demand() -> StreamingResponse:
        """As a single gateway tells it, of all processes together."""
        return StreamingResponse(_lines(feed), media_type="application/x-ndjson")

    @app.get("/internal/services", dependencies=[Depends(authorised)])
    async def list_services(request: Request) -> Response:
        answers = await children.ask_all(await _forwarded(request))
        worst = max(answers, key=lambda answer: answer.status)
        if worst.status != 200:
            return _response(worst)
        told = [msgspec.json.decode(answer.body) for answer in answers]
        parts = status() | {
            f"{name} of process {number}": line
            for number, one in enumerate(told, 1)
            for name, line in one["parts"].items()
        }
        return JSONResponse({"parts": parts, "services": merge_services(told)})

    @app.api_route("/{path:path}", methods=_METHODS, include_in_schema=False)
    async def anything_else(request: Request) -> Response:
        forwarded = await _forwarded(request)
        if forwarded.method == "GET":
            return _response(await children.ask_one(forwarded))
        # What failed in one of them must show, so that it is done again.
        return _response(max(await children.ask_all(forwarded), key=lambda a: a.status))

    return app


async def _forwarded(request: Request) -> Forwarded:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise ApiError("body_too_large", f"At most {MAX_BODY_BYTES} bytes are taken here.")
    return Forwarded(
        request.method,
        request.url.path,
        request.scope["query_string"],
        [(name, value) for name, value in request.scope["headers"] if name not in _HOP_BY_HOP],
        body,
    )


def _response(answer: Answered) -> Response:
    headers = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in answer.headers
        if name not in _HOP_BY_HOP
    }
    return Response(answer.body, answer.status, headers)


async def _lines(feed: DemandFeed) -> AsyncIterator[bytes]:
    async with feed.subscribe() as lines:
        async for line in lines:
            yield line
