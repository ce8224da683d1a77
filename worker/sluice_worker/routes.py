"""Every route of both ports, and what it answers.

``app`` calls :func:`respond` for the application port and :func:`observe` for the admin port. The
inference routes are ``sluice_api.routes``'s table; nothing is spelt again here.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sluice_api import names, wire
from sluice_api.call import Call, Codec
from sluice_api.errors import ApiError
from sluice_api.exposition import CONTENT_TYPE
from sluice_api.names import DRAIN_PATH
from sluice_api.routes import POST_ROUTES, V2_PREFIX, V2_SUFFIX, check_offered
from sluice_api.shapes import v2
from sluice_api.shapes.tensors import VIEWS
from sluice_worker.exchange import (
    Answer,
    Asked,
    Head,
    Receive,
    Response,
    attend,
    deadline_of,
    json_response,
    read_body,
)
from sluice_worker.lifecycle import Lifecycle
from sluice_worker.metrics import OTHER_ROUTE, V2_ROUTE, Metrics
from sluice_worker.settings import Settings

if TYPE_CHECKING:
    from sluice_worker.admission import Reservation

STARTING_RETRY_SECONDS = 1.0
DRAINING_RETRY_SECONDS = 0.05


EVENT_STREAM = (("content-type", "text/event-stream"), ("cache-control", "no-store"))


class AnyIntake(Protocol):
    """What takes requests to the loaded model: ``intake``, or ``generation.intake``."""

    def admit(self, call: Call, deadline: float) -> "Reservation": ...

    async def answer(self, call: Call, asked: Asked, reservation: "Reservation") -> Answer: ...


@runtime_checkable
class Streaming(Protocol):
    """An intake that can answer in parts."""

    def stream(
        self, call: Call, asked: Asked, reservation: "Reservation"
    ) -> AsyncGenerator[bytes, None]: ...


@dataclass(slots=True)
class Worker:
    """What the routes look at: one per process.

    Attributes:
        intake: None until the model is ready.
        accepting: False once the grace of the drain is over.
        drain: ends readiness, and returns when what was accepted is answered, or its time is over,
            with the number of requests left; None before there is anything to drain.
        exchanges: requests on the application port that are being answered now.
        idle: set while there are none.
        created: when the process began, in seconds since the epoch.
    """

    settings: Settings
    lifecycle: Lifecycle
    metrics: Metrics
    intake: "AnyIntake | None" = None
    accepting: bool = True
    drain: Callable[[], Awaitable[int]] | None = None
    exchanges: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    created: int = field(default_factory=lambda: int(time.time()))

    def __repr__(self) -> str:
        return f"<Worker {self.lifecycle!r}, {self.exchanges} exchanges, {self.intake!r}>"

    def __post_init__(self) -> None:
        self.idle.set()

    def begin(self) -> None:
        """A request came in; :meth:`end` follows, whatever happens."""
        self.exchanges += 1
        self.idle.clear()

    def end(self) -> None:
        self.exchanges -= 1
        if self.exchanges == 0:
            self.idle.set()


# inference ---------------------------------------------------------------------------------------


def codec_of(path: str) -> tuple[str, Codec, str | None] | None:
    """Route label, codec and the model named in the path; None when it is no inference route."""
    if codec := POST_ROUTES.get(path):
        return path, codec, None
    if path.startswith(V2_PREFIX) and path.endswith(V2_SUFFIX):
        return V2_ROUTE, v2.CODEC, path[len(V2_PREFIX) : -len(V2_SUFFIX)]
    return None


def label_of(path: str) -> str:
    """The route's label in metrics: never something a caller can invent."""
    found = codec_of(path)
    return found[0] if found else OTHER_ROUTE


async def respond(worker: Worker, head: Head, receive: Receive) -> Response:
    """Answer a request on the application port. Raises ApiError and ClientGone."""
    if found := codec_of(head.path):
        if head.method != "POST":
            raise _wrong_method(head, "POST")
        _, codec, name = found
        return await infer(worker, head, receive, codec, name)
    return _handle(worker, head, _PUBLIC.get(head.path) or _model_handler(worker, head.path))


async def infer(
    worker: Worker, head: Head, receive: Receive, codec: Codec, named: str | None
) -> Response:
    """Compute one answer; ``named`` is the model in the path, if the route has it there."""
    intake = _intake(worker)
    service = worker.settings.name
    deadline = deadline_of(head, worker.settings.timeout_seconds)
    body = await read_body(head, receive, worker.settings.max_body_bytes)
    call = codec.parse(body)
    wish = v2.named_model(named, call)
    asked = service if wish is None else wish
    _check_name(asked, service)
    wanted = Asked(
        asked,
        deadline,
        head.request_id,
        head.headers.get(names.TENANT.encode(), b""),
        head.headers.get(names.WANTS_ITEM.encode()) == b"1",
    )
    left = deadline - time.monotonic()
    with intake.admit(call, deadline) as reservation:
        if call.stream is not None:
            assert isinstance(intake, Streaming), "else its tasks were not asked for"
            parts = intake.stream(call, wanted, reservation)
            first = await attend(anext(parts), receive, seconds=left)
            return Response(200, first, [*EVENT_STREAM], parts=parts)
        answer = await attend(intake.answer(call, wanted, reservation), receive, seconds=left)
    return Response(200, answer.body, service_seconds=answer.service_seconds)


def _intake(worker: Worker) -> "AnyIntake":
    if not worker.accepting:
        worker.metrics.refused.labels("draining").inc()
        raise ApiError(
            "draining", "The worker is shutting down.", retry_after=DRAINING_RETRY_SECONDS
        )
    if worker.intake is None:
        worker.metrics.refused.labels("starting").inc()
        state = worker.lifecycle.state
        share = "" if state.progress is None else f", {state.progress:.0%}"
        raise ApiError(
            "starting", f"The worker is {state.phase}{share}.", retry_after=STARTING_RETRY_SECONDS
        )
    return worker.intake


def _check_name(asked: str, service: str) -> None:
    # ``name`` and ``namespace/name`` both do: a worker does not know its namespace.
    if asked.rpartition("/")[2] != service.rpartition("/")[2]:
        raise ApiError(
            "model_not_found",
            f"model: got {asked!r}, this worker serves {service!r}.",
            param="model",
        )


# observation -------------------------------------------------------------------------------------


async def observe(worker: Worker, head: Head, receive: Receive) -> Response:
    """Answer a request on the admin port, which computes nothing. Raises ApiError."""
    if head.path == DRAIN_PATH:
        return await _drain(worker, head)
    return _handle(worker, head, _ADMIN.get(head.path) or _missing(head.path))


async def _drain(worker: Worker, head: Head) -> Response:
    """Drain, and answer when it is over. By GET, because that is all that a pod's hook can send."""
    if head.method != "GET":
        raise _wrong_method(head, "GET")
    if worker.drain is None:
        raise ApiError("starting", "There is nothing to drain yet.")
    return json_response(200, {"unfinished": await worker.drain()})


def _handle(worker: Worker, head: Head, handler: "Handler") -> Response:
    if head.method not in ("GET", "HEAD"):
        raise _wrong_method(head, "GET")
    return handler(worker)


def livez(worker: Worker) -> Response:
    ailment = worker.lifecycle.ailment(time.monotonic())
    if ailment is None:
        return json_response(200, {"live": True})
    return json_response(503, {"live": False, "message": ailment})


def readyz(worker: Worker) -> Response:
    readiness = worker.lifecycle.readiness()
    return json_response(200 if readiness.phase is wire.Phase.READY else 503, readiness)


def metrics(worker: Worker) -> Response:
    worker.metrics.ready.set(worker.lifecycle.ready)
    return Response(200, worker.metrics.page(), [("content-type", CONTENT_TYPE)])


def models(worker: Worker) -> Response:
    return json_response(200, {"object": "list", "data": [_model_entry(worker)]})


def model(worker: Worker) -> Response:
    return json_response(200, _model_entry(worker))


def v2_server(worker: Worker) -> Response:
    return json_response(200, {"name": "sluice", "version": "2", "extensions": []})


def v2_live(worker: Worker) -> Response:
    return Response(livez(worker).status, b"{}")


def v2_ready(worker: Worker) -> Response:
    return Response(readyz(worker).status, b"{}")


def v2_model(worker: Worker) -> Response:
    identity = worker.lifecycle.identity
    views = [VIEWS[task] for task in identity.tasks if task in VIEWS]
    return json_response(
        200,
        {
            "name": worker.settings.name,
            "versions": [worker.settings.revision],
            "platform": "sluice",
            "inputs": [
                {"name": name, "datatype": "BYTES", "shape": [-1]}
                for name in (views[0].inputs if views else ())
            ],
            "outputs": [
                {"name": name, "datatype": datatype, "shape": [-1] * rank}
                for name, datatype, rank in (views[0].outputs if views else ())
            ],
        },
    )


def _model_entry(worker: Worker) -> dict[str, object]:
    lifecycle = worker.lifecycle
    return {
        "id": worker.settings.name,
        "object": "model",
        "created": worker.created,
        "owned_by": "sluice",
        "tasks": list(lifecycle.identity.tasks),
        "revision": worker.settings.revision,
        "state": "ready" if lifecycle.ready else str(lifecycle.state.phase),
    }


Handler = Callable[[Worker], Response]

_PROBES: dict[str, Handler] = {"/livez": livez, "/readyz": readyz}

_ADMIN: dict[str, Handler] = _PROBES | {"/metrics": metrics}

_PUBLIC: dict[str, Handler] = _PROBES | {
    "/v1/models": models,
    "/v2": v2_server,
    "/v2/health/live": v2_live,
    "/v2/health/ready": v2_ready,
}


def _model_handler(worker: Worker, path: str) -> Handler:
    """The handler of a path that names a model. Raises ApiError for any other path."""
    service = worker.settings.name
    if path.startswith("/v1/models/"):
        _check_name(path.removeprefix("/v1/models/"), service)
        return model
    if path.startswith(V2_PREFIX):
        name = path.removeprefix(V2_PREFIX)
        try:
            _check_name(name.removesuffix("/ready"), service)
        except ApiError:
            check_offered(name)
            raise
        return v2_ready if name.endswith("/ready") else v2_model
    return _missing(path)


def _missing(path: str) -> Handler:
    raise ApiError("route_not_found", f"{path[:200]}: no such route.")


def _wrong_method(head: Head, allowed: str) -> ApiError:
    return ApiError("method_not_allowed", f"{head.path} takes {allowed}, not {head.method}.")
