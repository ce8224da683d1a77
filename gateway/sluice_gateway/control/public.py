"""What applications find on the gateway beside inference: models, health, docs."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from sluice_api.errors import ApiError
from sluice_gateway.auth import Authenticator, Tenant
from sluice_gateway.control import inference, models, openapi, problems, v2
from sluice_gateway.control.answering import Answering
from sluice_gateway.control.health import Health
from sluice_gateway.control.models import VERSION
from sluice_gateway.edge import Edge
from sluice_gateway.service import Service
from sluice_gateway.services import Services, name_for


def make_app(
    edge: Edge, services: Services, authenticator: Authenticator, health: Health
) -> FastAPI:
    """The application behind every connection that is not on the fast path."""
    app = FastAPI(
        title="Sluice", version=VERSION, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    problems.install(app, edge.new_id)
    identify = partial(_tenant, authenticator)
    charge = partial(_charged, authenticator)
    # First, for among the paths of models are those below which they are asked.
    app.include_router(
        inference.make_router(
            edge, lambda request, path: v2.resolve(services, path, identify(request))
        )
    )
    _add_models(app, services, charge)
    v2.add_routes(app, services, charge, health)
    _add_health(app, health)
    app.add_api_route("/", _front_page, include_in_schema=False)
    app.add_api_route("/docs", _docs_page(app), include_in_schema=False)
    app.add_middleware(Answering, new_id=edge.new_id, cors=edge.cors)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


async def _front_page() -> JSONResponse:
    """For who opens the bare address."""
    links = {"docs": "/docs", "openapi": "/openapi.json", "models": "/v1/models"}
    return JSONResponse({"name": "sluice", "version": VERSION, **links})


def _tenant(authenticator: Authenticator, request: Request) -> Tenant:
    header = request.headers.get("authorization")
    return authenticator.identify(header.encode("latin-1") if header is not None else None)


def _charged(authenticator: Authenticator, request: Request) -> Tenant:
    """The caller of a request that ``dispatch`` does not see, and so does not count."""
    tenant = _tenant(authenticator, request)
    if tenant.limits is not None:
        tenant.limits.take_request(time.monotonic())
    return tenant


def _add_models(app: FastAPI, services: Services, identify: Callable[[Request], Tenant]) -> None:
    @app.get("/v1/models", tags=["models"], summary="The models this caller may use")
    async def list_models(request: Request) -> models.ModelList:
        tenant = identify(request)
        return models.ModelList(data=[_card(tenant, each) for each in services.visible(tenant)])

    @app.get("/v1/models/{model:path}", tags=["models"], summary="One model and its state")
    async def get_model(request: Request, model: str) -> models.ModelCard:
        """By `name` or `namespace/name`."""
        if not model:
            raise HTTPException(404)
        tenant = identify(request)
        return _card(tenant, services.resolve(model, tenant, None))


def _card(tenant: Tenant, service: Service) -> models.ModelCard:
    return models.ModelCard(
        id=name_for(tenant, service),
        created=service.spec.created,
        owned_by=service.namespace,
        tasks=list(service.tasks),
        revision=service.revision,
        state=service.state,
        reason=service.reason,
        message=service.trouble,
    )


def _add_health(app: FastAPI, health: Health) -> None:
    @app.get("/livez", tags=["health"], summary="Whether the gateway runs")
    async def livez() -> models.Live:
        return models.Live(live=True)

    @app.get(
        "/readyz",
        tags=["health"],
        summary="Whether the gateway takes requests",
        responses={503: {"model": models.Ready, "description": "Not now"}},
    )
    async def readyz(response: Response) -> models.Ready:
        response.status_code = 200 if health.ready else 503
        return models.Ready(ready=health.ready)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        raise ApiError("route_not_found", "Use /livez or /readyz.")


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = openapi.document(app)
    return app.openapi_schema


def _docs_page(app: FastAPI) -> Any:
    """A page without scripts or anything from elsewhere: routes, and where the document is."""

    async def docs() -> HTMLResponse:
        rows = []
        for path, methods in sorted(_openapi(app)["paths"].items()):
            for method, operation in methods.items():
                summary = operation["summary"]
                rows.append(
                    f"<tr><td>{method.upper()}</td><td><code>{path}</code></td>"
                    f"<td>{summary}</td></tr>"
                )
        return HTMLResponse(
            "<!doctype html><meta charset=utf-8><title>Sluice</title>"
            "<style>body{font:16px/1.5 system-ui;margin:2rem auto;max-width:60rem}"
            "td{padding:.2rem 1rem .2rem 0;vertical-align:top}</style>"
            f"<h1>Sluice {app.version}</h1><p>The whole contract: "
            "<a href=/openapi.json>openapi.json</a>. "
            f"Models: <a href=/v1/models>/v1/models</a>.</p><table>{''.join(rows)}</table>"
        )

    return docs
