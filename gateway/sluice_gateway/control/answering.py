"""What every answer of the ordinary routes carries, whoever gave it: a request id, leave for pages.

Pure ASGI around the application, so that it costs nothing per part of a stream.
"""

import re
from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sluice_api import names, request_ids
from sluice_api.errors import ApiError, render
from sluice_gateway.cors import Cors

_HEADER_NAMES: Final = re.compile(
    r"[A-Za-z0-9!#$%&'*+.^_`|~-]+([ ]?,[ ]?[A-Za-z0-9!#$%&'*+.^_`|~-]+)*"
)


class Answering:
    """Adds the headers that all answers have, and answers HEAD as GET and browsers' questions.

    Args:
        cors: which pages may call; None: none but the gateway's own.
    """

    def __init__(self, app: ASGIApp, new_id: Callable[[], bytes], cors: Cors | None) -> None:
        self._app = app
        self._new_id = new_id
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "").encode("latin-1") or None
        given = headers.get(names.REQUEST_ID, "").encode("latin-1")
        request_id = (given if request_ids.harmless(given) else self._new_id()).decode()

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._complete(MutableHeaders(scope=message), request_id, origin)
            await send(message)

        asks = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        if self._cors is not None and origin is not None and asks:
            preflight = self._preflight(scope["path"], self._cors, origin, headers, request_id)
            await preflight(scope, receive, answer)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # uvicorn leaves the body out.
        await self._app(scope, receive, answer)

    def _complete(self, headers: MutableHeaders, request_id: str, origin: bytes | None) -> None:
        headers.setdefault(names.REQUEST_ID, request_id)
        if self._cors is not None:
            for name, value in self._cors.headers(origin):
                if name == "vary":
                    headers.add_vary_header(value)
                else:
                    headers.setdefault(name, value)

    def _preflight(
        self, path: str, cors: Cors, origin: bytes, headers: Headers, request_id: str
    ) -> Response:
        """The answer to a browser that asks whether a page may call."""
        if not cors.allows(origin):
            error = ApiError(
                "origin_not_allowed", f"Pages of {origin[:80].decode('latin-1')!r} may not call."
            )
            rendered = render(error, path=path, request_id=request_id)
            return Response(rendered.body, rendered.status, dict(rendered.headers))
        asked = headers.get("access-control-request-headers", "")
        named = asked if _HEADER_NAMES.fullmatch(asked) else ""
        return Response(None, 204, dict(cors.preflight(named)))
