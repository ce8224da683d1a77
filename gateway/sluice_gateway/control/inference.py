"""The inference routes once more, as ordinary routes over the same ``dispatch``.

A connection that once asked for anything else stays with uvicorn, and its later inference requests
arrive here: slower, same answers. ``openapi`` describes them.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from sluice_api import names
from sluice_api.errors import ApiError
from sluice_api.routes import POST_ROUTES, SHAPES, V2_PREFIX, V2_SUFFIX, V2_VERSIONS
from sluice_gateway import request as requests
from sluice_gateway.control.streaming import EventStream, StreamCaller
from sluice_gateway.dispatch import Dispatcher
from sluice_gateway.edge import Edge
from sluice_gateway.fallback import CONNECTION
from sluice_gateway.head import routed
from sluice_gateway.idempotency import Pending
from sluice_gateway.service import Service


def make_router(edge: Edge, resolve: Callable[[Request, str], Service]) -> APIRouter:
    """The POST routes of ``sluice_api.routes``, answered by the edge's dispatcher.

    Args:
        resolve: the service that a V2 path names, with its version checked. Raises ApiError.
    """
    router = APIRouter()

    async def infer(request: Request) -> Response:
        return await handle(request, request.scope["path"])

    async def infer_named(request: Request, name: str) -> Response:
        return await infer(request)

    async def infer_version(request: Request, name: str, version: str) -> Response:
        resolve(request, name + V2_VERSIONS + version)
        # What remains is the request without its version: same answers, same cache.
        return await handle(request, V2_PREFIX + name + V2_SUFFIX)

    async def handle(request: Request, path: str) -> Response:
        head = routed(request.scope["extensions"][CONNECTION].head, path)
        edge.dispatcher.check_caller(head)
        if head.expect_continue:
            edge.dispatcher.check(head)  # What is refused anyway need not be sent.
        body = await _body(request)
        request_id = head.request_id or edge.new_id()
        caller = StreamCaller()
        asked = requests.Request(
            head, body, caller, request_id, time.monotonic(), counted=edge.count(len(body))
        )
        answer, handed = await _answer(request, edge.dispatcher, caller, asked)
        headers = {names.REQUEST_ID: request_id.decode("latin-1")}
        for line in answer.headers.decode("latin-1").split("\r\n")[:-1]:
            name, _, value = line.partition(": ")
            headers[name] = value
        if edge.draining:
            headers["connection"] = "close"
        headers["content-type"] = answer.content_type.decode("latin-1")
        if caller.streams and handed is not None:
            return EventStream(caller, handed, headers, edge.limits.write_seconds)
        return Response(answer.body, answer.status, headers)

    add = partial(
        router.add_api_route, methods=["POST"], tags=["inference"], response_class=Response
    )
    for path, codec in POST_ROUTES.items():
        add(path, infer, operation_id=codec.name, summary=SHAPES[path].summary)
    name = V2_PREFIX + "{name:path}"
    add(
        f"{name}{V2_VERSIONS}{{version}}{V2_SUFFIX}",
        infer_version,
        operation_id="v2-version",
        summary="The same, if the model's revision is the version",
    )
    add(name + V2_SUFFIX, infer_named, operation_id="v2", summary=SHAPES[V2_SUFFIX].summary)
    return router


async def _answer(
    request: Request,
    dispatcher: Dispatcher,
    caller: StreamCaller,
    asked: requests.Request,
) -> tuple[requests.Answer, Pending | None]:
    """Dispatch, and cancel the exchange when the client goes first.

    Returns the answer, and the exchange if that goes on: the answer is the head of a stream then.
    """
    handed = dispatcher.handle(asked)
    if handed is None:
        return await caller.result, None
    gone = asyncio.get_running_loop().create_task(_disconnected(request), name="await disconnect")
    try:
        await asyncio.wait((caller.result, gone), return_when=asyncio.FIRST_COMPLETED)
        if not caller.result.done():
            raise ApiError("bad_http", "The client has gone.")  # Nobody will read it.
        return caller.result.result(), handed
    finally:
        gone.cancel()
        if not caller.streams:
            handed.cancel()  # Does nothing once it is answered.


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    """The body; the connection holds it to its limits. Raises ApiError."""
    try:
        return await request.body()
    except ClientDisconnect:
        raise ApiError("bad_http", "The client has gone.") from None  # Nobody will read it.
