"""The Open Inference Protocol V2 beside ``infer``: what server and models say about themselves.

A model has one version, its revision; paths may name it. Names in paths may hold a namespace, so
the version is taken off a path's end here and not by the router.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from fastapi import FastAPI, HTTPException, Request, Response

from sluice_api.errors import ApiError
from sluice_api.routes import V2_NOT_OFFERED, V2_PREFIX, V2_SUFFIX, V2_VERSIONS, check_offered
from sluice_api.shapes.tensors import VIEWS
from sluice_api.tasks import Task
from sluice_gateway.auth import Tenant
from sluice_gateway.control import models
from sluice_gateway.control.health import Health
from sluice_gateway.control.models import VERSION
from sluice_gateway.service import Service
from sluice_gateway.services import Services, name_for

UNKNOWN: Final = -1


class _Tensor(NamedTuple):
    name: str
    datatype: str
    shape: tuple[int, ...]


def add_routes(
    app: FastAPI, services: Services, identify: Callable[[Request], Tenant], health: Health
) -> None:
    """Add the V2 routes that are asked with GET."""

    @app.get("/v2", tags=["v2"], summary="What this server is")
    async def server_metadata() -> models.V2Server:
        return models.V2Server(name="sluice", version=VERSION, extensions=["binary_tensor_data"])

    @app.get("/v2/health/live", tags=["v2"], summary="Whether the gateway runs")
    async def server_live() -> models.Live:
        return models.Live(live=True)

    @app.get(
        "/v2/health/ready",
        tags=["v2"],
        summary="Whether the gateway takes requests",
        responses={503: {"model": models.Ready, "description": "Not now"}},
    )
    async def server_ready(response: Response) -> models.Ready:
        response.status_code = 200 if health.ready else 503
        return models.Ready(ready=health.ready)

    # Before the metadata route, whose path would take "/ready" for a part of the name.
    @app.get(
        V2_PREFIX + "{name:path}/ready",
        tags=["v2"],
        summary="Whether a model can be asked",
        responses={503: {"model": models.ModelReady, "description": "Not now"}},
    )
    async def model_ready(request: Request, name: str, response: Response) -> models.ModelReady:
        """A model that is asleep is ready, where the request wakes it."""
        tenant = identify(request)
        service = resolve(services, name, tenant)
        ready = service.state not in ("starting", "failed") and service.unwakeable is None
        response.status_code = 200 if ready else 503
        return models.ModelReady(name=name_for(tenant, service), ready=ready)

    @app.get(
        V2_PREFIX + "{name:path}",
        tags=["v2"],
        summary="Inputs and outputs of a model",
        response_model_exclude_none=True,
    )
    async def model_metadata(request: Request, name: str) -> models.V2Model:
        """The only version is the revision; `-1` stands for a size that is not fixed.

        A tensor that not every task of the model has says in `parameters.tasks` which do; tasks
        may have tensors of one name and different shapes.
        """
        if name.endswith(V2_SUFFIX):
            raise HTTPException(405, headers={"Allow": "POST"})
        tenant = identify(request)
        service = resolve(services, name, tenant)
        return models.V2Model(
            name=name_for(tenant, service),
            versions=[service.revision],
            platform="sluice",
            inputs=_inputs(service),
            outputs=_outputs(service),
        )

    async def not_offered(request: Request, name: str) -> None:
        check_offered(request.scope["path"].removeprefix(V2_PREFIX))

    for suffix in V2_NOT_OFFERED:
        app.post(V2_PREFIX + "{name:path}" + suffix, include_in_schema=False)(not_offered)


def resolve(services: Services, path: str, tenant: Tenant) -> Service:
    """The service that ``NAME`` or ``NAME/versions/VERSION`` means. Raises ApiError."""
    name, versioned, version = path.partition(V2_VERSIONS)
    try:
        service = services.resolve(name, tenant, None)
    except ApiError:
        check_offered(path)
        raise
    if versioned and version != service.revision:
        check_offered(path)
        raise ApiError(
            "model_not_found",
            f"Model {name[:200]!r} has version {service.revision!r} only, not {version[:200]!r}.",
            param="version",
        )
    return service


def _inputs(service: Service) -> list[models.TensorMetadata]:
    return _described(service, _inputs_of)


def _outputs(service: Service) -> list[models.TensorMetadata]:
    return _described(service, _outputs_of)


def _inputs_of(service: Service, task: Task) -> list[_Tensor]:
    return [_Tensor(name, "BYTES", (UNKNOWN,)) for name in VIEWS[task].inputs]


def _outputs_of(service: Service, task: Task) -> list[_Tensor]:
    last = (service.dimensions if task == Task.EMBEDDINGS else None) or UNKNOWN
    return [
        _Tensor(name, datatype, (UNKNOWN,) * (rank - 1) + (last,))
        for name, datatype, rank in VIEWS[task].outputs
    ]


def _described(
    service: Service, tensors_of: Callable[[Service, Task], list[_Tensor]]
) -> list[models.TensorMetadata]:
    """The tensors of every task it offers that has some; equal ones once, with their tasks."""
    tasks = [task for task in service.tasks if task in VIEWS]
    found: dict[_Tensor, list[str]] = {}
    for task in tasks:
        for tensor in tensors_of(service, task):
            found.setdefault(tensor, []).append(task)
    return [
        models.TensorMetadata(
            name=tensor.name,
            datatype=tensor.datatype,
            shape=[*tensor.shape],
            parameters=models.TensorTasks(tasks=of) if len(of) < len(tasks) else None,
        )
        for tensor, of in found.items()
    ]
