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

from sluice_api import names
from sluice_api.errors import ApiError
from sluice_api.routes import POST_ROUTES, SHAPES, V2_PREFIX, V2_SUFFIX, V2_VERSIONS
from sluice_gateway import exchange
from sluice_gateway.control.streaming import EventStream, StreamCaller
from sluice_gateway.dispatch import Dispatcher
from sluice_gateway.edge import Edge
from sluice_gateway.head import Head, parse_head
from sluice_gateway.service import Service


def make_router(edge: Edge, resolve: Callable[[Request, str], Service]) -> APIRouter:
    """The POST routes of ``sluice_api.routes``, answered by the edge's dispatcher.

    Args:
        resolve: the service that a V2 path names, with its version checked. Raises ApiError.
    """
    router = APIRouter()

    async def infer(request: Request) -> Response:
        return await handle(request, request.scope["raw_path"])

    async def infer_named(request: Request, name: str) -> Response:
        return await infer(request)

    async def infer_version(request: Request, name: str, version: str) -> Response:
        resolve(request, name + V2_VERSIONS + version)
        # What remains is the request without its version: same answers, same cache.
        raw_path: bytes = request.scope["raw_path"]
        return await handle(
            request, raw_path.partition(V2_VERSIONS.encode())[0] + V2_SUFFIX.encode()
        )

    async def handle(request: Request, path: bytes) -> Response:
        head = parse_head(_raw_head(request, path))
        body = await _body(request, head, edge)
        request_id = head.request_id or edge.new_id()
        caller = StreamCaller()
        answer, handed = await _answer(request, edge.dispatcher, caller, head, body, request_id)
        headers = {names.REQUEST_ID: request_id.decode("latin-1")}
        for line in answer.headers.decode("latin-1").splitlines():
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
    head: Head,
    body: bytes,
    request_id: bytes,
) -> tuple[exchange.Answer, exchange.Exchange | None]:
    """Dispatch, and cancel the exchange when the client goes first.

    Returns the answer, and the exchange if that goes on: the answer is the head of a stream then.
    """
    handed = dispatcher.handle(exchange.Request(head, body, caller, request_id, time.monotonic()))
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


async def _body(request: Request, head: Head, edge: Edge) -> bytes:
    """The body, held to the edge's limits by what is received. Raises ApiError."""
    limits = edge.limits
    parts: list[bytes] = []
    received = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                received += len(part)
                if max(received, head.content_length) > limits.body_bytes:
                    raise ApiError(
                        "body_too_large", f"At most {limits.body_bytes} bytes are taken."
                    )
                parts.append(part)
    except TimeoutError:
        raise ApiError("request_timeout", "The body did not arrive in time.") from None
    return b"".join(parts)


def _raw_head(request: Request, path: bytes) -> bytes:
    """The head as bytes again, so that one parser decides what it means on both edges."""
    scope = request.scope
    target = path + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    lines = [b"%b: %b\r\n" % pair for pair in scope["headers"]]
    version = scope["http_version"].encode()
    method = request.method.encode()
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, target, version, b"".join(lines))
