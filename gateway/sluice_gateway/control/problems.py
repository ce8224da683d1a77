"""Errors of the ordinary routes, written like those of the fast edge: one catalogue, one shape."""

import logging
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from sluice_api import names, request_ids
from sluice_api.errors import ApiError, render

log = logging.getLogger(__name__)


def install(app: FastAPI, new_id: Callable[[], bytes]) -> None:
    """Have every failure in ``app`` answered from the catalogue."""

    def answer(request: Request, error: ApiError, allow: str | None = None) -> Response:
        given = request.headers.get(names.REQUEST_ID, "").encode("latin-1")
        request_id = (given if request_ids.harmless(given) else new_id()).decode()
        rendered = render(error, path=request.scope["path"], request_id=request_id)
        headers = dict(rendered.headers) | {names.REQUEST_ID: request_id}
        if allow is not None:
            headers["allow"] = allow
        return Response(rendered.body, rendered.status, headers)

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return answer(request, error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            allow = _allow((error.headers or {}).get("Allow", ""))
            method = request.scope["method"]
            if method == "OPTIONS":
                return Response(None, 204, {"allow": allow})
            message = f"{request.scope['path'][:200]} does not take {method}."
            return answer(request, ApiError("method_not_allowed", message), allow)
        if error.status_code == 404:
            path = request.scope["path"]
            hint = " Leave out the slash at its end." if len(path) > 1 and path[-1] == "/" else ""
            return answer(
                request, ApiError("route_not_found", f"There is nothing at {path[:200]}.{hint}")
            )
        return answer(request, ApiError("bad_http", "The request could not be read."))

    async def bug(request: Request, error: Exception) -> Response:
        log.error("request failed", exc_info=error, extra={"path": request.url.path})
        return answer(request, ApiError("internal_error", "The request could not be handled."))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, bug)


def _allow(methods: str) -> str:
    """All methods of a path, from those that its route has."""
    # Starlette names them in any order.
    found = {method.strip() for method in methods.split(",") if method.strip()}
    if "GET" in found:
        found.add("HEAD")
    return ", ".join([*sorted(found), "OPTIONS"])
