"""The second port, for operators and machines: metrics, demand, and what the gateway thinks.

Never exposed to applications. ``/internal/demand`` is the stream that scaling lives on; in a
cluster whoever asks for it must show who it is.
"""

import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Final, Protocol

import msgspec
from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from sluice_api import exposition, names
from sluice_api.decode import decode
from sluice_api.errors import ApiError
from sluice_gateway.control import problems
from sluice_gateway.control.health import Health
from sluice_gateway.control.models import VERSION
from sluice_gateway.demand import DemandFeed
from sluice_gateway.edge import Edge
from sluice_gateway.invalidation import Invalidations
from sluice_gateway.keys import TenantScope
from sluice_gateway.metrics import Metrics
from sluice_gateway.service import Service
from sluice_gateway.services import Services


class Readers(Protocol):
    """Who may read below ``/internal/``."""

    async def check(self, authorization: str | None) -> None:
        """Return if the header names a reader. Raises ApiError."""
        ...


def make_app(
    edge: Edge,
    services: Services,
    health: Health,
    feed: DemandFeed,
    metrics: Metrics,
    status: Callable[[], dict[str, str]],
    readers: Readers | None,
    invalidations: Invalidations,
) -> FastAPI:
    """The application of the admin port.

    Args:
        status: one line about each part of the process.
        readers: who may read below ``/internal/``; None where only this machine reaches the port.
    """
    app = FastAPI(title="Sluice gateway, admin", version=VERSION, docs_url=None, redoc_url=None)
    problems.install(app, edge.new_id)

    @app.get("/livez")
    async def livez() -> JSONResponse:
        return JSONResponse({"live": True})

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        return JSONResponse(health.detail(), 200 if health.ready else 503)

    @app.get("/metrics")
    async def read_metrics() -> Response:
        return Response(metrics.page(), headers={"content-type": exposition.CONTENT_TYPE})

    async def authorised(authorization: Annotated[str | None, Header()] = None) -> None:
        if readers is not None:
            await readers.check(authorization)

    @app.get("/internal/demand", dependencies=[Depends(authorised)])
    async def demand() -> StreamingResponse:
        """NDJSON of `Demand`, one line per service each second, and at once when it matters."""
        return StreamingResponse(_lines(feed), media_type="application/x-ndjson")

    @app.get("/internal/services", dependencies=[Depends(authorised)])
    async def list_services() -> dict[str, Any]:
        """Every service and worker as this gateway knows them."""
        return {"parts": status(), "services": [_service(s) for s in services.all()]}

    @app.post("/internal/cache/invalidate", dependencies=[Depends(authorised)])
    async def invalidate(request: Request) -> JSONResponse:
        """Give no answer any more that was stored for a service or a tenant until now.

        `known` tells a name that is misspelt from one that is right; what is not known, such as a
        service that is no more, is invalidated all the same.
        """
        asked = _invalidation(await request.body())
        namespace = asked.namespace or names.DEFAULT_NAMESPACE
        service = f"{namespace}/{asked.service}" if asked.service else ""
        scope = TenantScope.of(asked.tenant).wire if asked.tenant else b""
        await invalidations.throw_away(service=service, tenant=scope)
        known = not service or services.knows(namespace, asked.service)
        return JSONResponse({"invalidated": True, "known": known})

    return app


class _Invalidation(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be thrown away; with both, everything of either."""

    service: str = ""
    namespace: str = ""
    tenant: str = ""


_decoder: Final = msgspec.json.Decoder(_Invalidation)


def _invalidation(body: bytes) -> _Invalidation:
    asked = decode(_decoder, body)
    if not asked.service and not asked.tenant:
        message = "service: missing, and so is tenant; needs one of them."
        raise ApiError("missing_field", message, param="service")
    return asked


async def _lines(feed: DemandFeed) -> AsyncIterator[bytes]:
    async with feed.subscribe() as lines:
        async for line in lines:
            yield line


def _service(service: Service) -> dict[str, Any]:
    trial = service.canary
    return _track(service) | {"canary": _track(trial) if trial is not None else None}


def _track(service: Service) -> dict[str, Any]:
    return {
        "namespace": service.namespace,
        "name": service.name,
        "state": service.state,
        "message": service.trouble,
        "revision": service.revision,
        "answerDigest": service.binding.answer_digest,
        "tasks": list(service.tasks),
        "waiting": service.held,
        "waitingByPriority": {
            priority.word: count for priority, count in service.admission.waiting.lengths().items()
        },
        "waitingTenants": service.admission.waiting.tenants(),
        "startSeconds": round(service.admission.start_seconds, 3),
        "latencies": repr(service.latencies),
        "retries": repr(service.retries),
        "precomputed": service.precomputed,
        "endpoints": [
            {
                "url": endpoint.url,
                "revision": endpoint.revision,
                "state": str(endpoint.state),
                "message": endpoint.message,
                "inFlight": endpoint.in_flight,
                "limit": endpoint.limit,
                "zone": endpoint.zone,
                "warmth": round(endpoint.warmth(time.monotonic()), 2),
                "connections": repr(endpoint.pool),
            }
            for endpoint in service.endpoints.all.values()
        ],
    }
