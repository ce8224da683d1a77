"""What applications find on the gateway beside inference: models, V2 metadata, health, docs."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sluice_api.errors import ApiError
from sluice_api.routes import V2_PREFIX
from sluice_api.tasks import Task
from sluice_gateway.auth import Authenticator, Tenant
from sluice_gateway.control import inference, models, problems
from sluice_gateway.control.health import Health
from sluice_gateway.control.models import VERSION
from sluice_gateway.edge import Edge
from sluice_gateway.services import Service, Services, full_name

_OUTPUTS = {
    Task.EMBEDDINGS: [("embedding", "FP32", [-1, -1])],
    Task.CLASSIFICATION: [
        ("label", "BYTES", [-1]),
        ("score", "FP32", [-1]),
        ("labels", "BYTES", [-1, -1]),
        ("scores", "FP32", [-1, -1]),
    ],
}


def make_app(
    edge: Edge, services: Services, authenticator: Authenticator, health: Health
) -> FastAPI:
    """The application behind every connection that is not on the fast path."""
    app = FastAPI(
        title="Sluice", version=VERSION, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    problems.install(app, edge.new_id)
    _add_models(app, services, authenticator)
    _add_v2(app, services, authenticator, health)
    _add_health(app, health)
    app.include_router(inference.make_router(edge))
    app.add_api_route("/docs", _docs_page(app), include_in_schema=False)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _tenant(request: Request, authenticator: Authenticator) -> Tenant:
    header = request.headers.get("authorization")
    return authenticator.identify(header.encode("latin-1") if header is not None else None)


def _add_models(app: FastAPI, services: Services, authenticator: Authenticator) -> None:
    @app.get("/v1/models", tags=["models"])
    async def list_models(request: Request) -> models.ModelList:
        """The models this caller may use."""
        tenant = _tenant(request, authenticator)
        return models.ModelList(data=[_card(service) for service in services.visible(tenant)])

    @app.get("/v1/models/{model:path}", tags=["models"])
    async def get_model(request: Request, model: str) -> models.ModelCard:
        """One model, by `name` or `namespace/name`."""
        return _card(services.resolve(model, _tenant(request, authenticator), None))


def _card(service: Service) -> models.ModelCard:
    failure = service.spec.failure
    return models.ModelCard(
        id=full_name(service),
        owned_by=service.namespace,
        tasks=list(service.tasks),
        revision=service.revision,
        state=service.state,
        reason=failure.reason if failure is not None and service.state == "failed" else "",
        message=service.trouble,
    )


def _add_v2(app: FastAPI, services: Services, authenticator: Authenticator, health: Health) -> None:
    @app.get("/v2", tags=["v2"])
    async def server_metadata() -> models.V2Server:
        return models.V2Server(name="sluice", version=VERSION, extensions=[])

    @app.get("/v2/health/live", tags=["v2"])
    async def server_live() -> models.V2Live:
        return models.V2Live(live=True)

    @app.get("/v2/health/ready", tags=["v2"])
    async def server_ready(response: Response) -> models.V2Ready:
        response.status_code = 200 if health.ready else 503
        return models.V2Ready(ready=health.ready)

    # Before the metadata route, whose path would take "/ready" for a part of the name.
    @app.get(V2_PREFIX + "{name:path}/ready", tags=["v2"])
    async def model_ready(request: Request, name: str, response: Response) -> models.V2ModelReady:
        """Ready to be asked: a model that is asleep is woken by the request."""
        service = services.resolve(name, _tenant(request, authenticator), None)
        ready = service.state not in ("starting", "failed")
        response.status_code = 200 if ready else 503
        return models.V2ModelReady(name=full_name(service), ready=ready)

    @app.get(V2_PREFIX + "{name:path}", tags=["v2"])
    async def model_metadata(request: Request, name: str) -> models.V2Model:
        service = services.resolve(name, _tenant(request, authenticator), None)
        task = service.tasks[0] if service.tasks else Task.CLASSIFICATION
        outputs = _OUTPUTS.get(task, _OUTPUTS[Task.CLASSIFICATION])
        return models.V2Model(
            name=full_name(service),
            versions=[service.revision],
            platform="sluice",
            inputs=[models.TensorMetadata(name="text", datatype="BYTES", shape=[-1])],
            outputs=[
                models.TensorMetadata(name=name, datatype=datatype, shape=shape)
                for name, datatype, shape in outputs
            ],
        )


def _add_health(app: FastAPI, health: Health) -> None:
    @app.get("/livez", tags=["health"])
    async def livez() -> JSONResponse:
        return JSONResponse({"live": True})

    @app.get("/readyz", tags=["health"])
    async def readyz() -> JSONResponse:
        return JSONResponse({"ready": health.ready}, 200 if health.ready else 503)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        raise ApiError("route_not_found", "Use /livez or /readyz.")


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The document, with the request bodies that FastAPI does not see."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        bodies: list[type[BaseModel]] = [*models.BODIES.values(), models.Infer]
        _, schemas = models_json_schema(
            [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
        )
        components = document.setdefault("components", {}).setdefault("schemas", {})
        components.update(schemas["$defs"])
        app.openapi_schema = document
    return app.openapi_schema


def _docs_page(app: FastAPI) -> Any:
    """A page without scripts or anything from elsewhere: routes, and where the document is."""

    async def docs() -> HTMLResponse:
        rows = []
        for path, methods in sorted(_openapi(app)["paths"].items()):
            for method, operation in methods.items():
                summary = operation.get("description") or operation.get("summary", "")
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
