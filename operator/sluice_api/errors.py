"""The catalogue of errors a caller can meet, and the one way each is written on the wire.

Gateway and worker raise :class:`ApiError` with a code from :data:`CATALOGUE`; their edges call
:func:`render` once. ``/v1`` speaks OpenAI's error shape, everything else RFC 9457
``application/problem+json``, on ``/v2`` with the member ``error`` that its clients read. Pages in
``docs/errors.md`` are generated from the catalogue.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import msgspec

from sluice_api import names

RETRY_SECONDS: Final = 1.0
"""After which a retry is worth it where nobody knows better."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One entry of the catalogue: what happened, why it does, and what to do about it."""

    code: str
    status: int
    title: str
    cause: str
    fix: str
    retryable: bool = False
    openai_type: str = "invalid_request_error"


_KINDS: Final = (
    Kind(
        "invalid_json",
        400,
        "The body is not valid JSON",
        "The body could not be parsed, is not an object, or nests deeper than allowed.",
        "Send one JSON object, encoded as UTF-8.",
    ),
    Kind(
        "invalid_field",
        400,
        "A field has a value that is not allowed",
        "The type or the value of the named field does not fit.",
        "Correct the named field; the gateway's /openapi.json has what the route takes.",
    ),
    Kind(
        "missing_field",
        400,
        "A required field is missing",
        "The route needs a field that the body does not have.",
        "Add the named field.",
    ),
    Kind(
        "unknown_field",
        400,
        "A field is not known",
        "The field is misspelt, or this route cannot honour it. Nothing is ignored silently.",
        "Remove the named field or correct its name.",
    ),
    Kind(
        "input_too_long",
        400,
        "An input is longer than the model accepts",
        "The text has more tokens than the model's maximum.",
        "Ask for no more than the message allows.",
    ),
    Kind(
        "too_many_inputs",
        400,
        "The list of inputs is too long",
        "The request holds more inputs, or more values of any kind, than one may carry.",
        "Ask for less in one request.",
    ),
    Kind(
        "model_required",
        400,
        "The request names no model",
        "The model may be left out only where exactly one service of the task is available.",
        "Add a model field; GET /v1/models lists what is available.",
    ),
    Kind(
        "task_not_supported",
        400,
        "The model does not do this task",
        "The route or its parameters ask for a task that the service does not offer.",
        "Use a route for one of the service's tasks; GET /v1/models lists them.",
    ),
    Kind(
        "unauthorized",
        401,
        "The caller is not known",
        "No key came with the request, or one that is not known or not good any more.",
        "Send the header Authorization: Bearer KEY.",
        openai_type="authentication_error",
    ),
    Kind(
        "forbidden",
        403,
        "The caller may not do this",
        "The caller is known, but is not among those who may read this.",
        "Ask as somebody who may; the gateway's setting --demand-readers names them.",
        openai_type="permission_error",
    ),
    Kind(
        "model_not_found",
        404,
        "The model does not exist",
        "No service of that name is available to this caller.",
        "Check the name; GET /v1/models lists what is available.",
    ),
    Kind(
        "route_not_found",
        404,
        "There is nothing at this path",
        "The path is not a route of this server.",
        "See the gateway's /openapi.json for the routes.",
    ),
    Kind(
        "method_not_allowed",
        405,
        "The route does not take this method",
        "The path exists, but not with this HTTP method.",
        "See the gateway's /openapi.json for the routes.",
    ),
    Kind(
        "request_timeout",
        408,
        "The request took too long to arrive",
        "The headers or the body were not received within the time allowed.",
        "Send the whole request at once.",
        retryable=True,
    ),
    Kind(
        "body_too_large",
        413,
        "The body is too large",
        "The body has more bytes than the server accepts.",
        "Split the request.",
    ),
    Kind(
        "unsupported_media_type",
        415,
        "The body has a form that is not accepted",
        "Bodies must be plain JSON in UTF-8: no form, no other charset, no Content-Encoding.",
        "Send uncompressed JSON with Content-Type: application/json.",
    ),
    Kind(
        "expectation_failed",
        417,
        "The request expects what is not offered",
        "The header Expect asks for something else than 100-continue.",
        "Leave the header out, or send Expect: 100-continue.",
    ),
    Kind(
        "origin_not_allowed",
        403,
        "Pages of this origin may not call",
        "A browser asked on behalf of a page whose origin is not among those that may call.",
        "Have the gateway's setting --cors-origins name the origin.",
        openai_type="permission_error",
    ),
    Kind(
        "idempotency_key_reused",
        422,
        "The Idempotency-Key stands for another request",
        "The same key came with another route or another body a short while ago.",
        "Use a new key for a new request, and the old one only to send the very same again.",
    ),
    Kind(
        "idempotency_key_in_use",
        409,
        "The request with this Idempotency-Key is still running",
        "Its stream has gone on for too long to be joined from the beginning.",
        "Retry after the time in Retry-After, when it has ended.",
        retryable=True,
    ),
    Kind(
        "bad_http",
        400,
        "The request is not valid HTTP/1.1",
        "The request line, the headers or the framing break the protocol.",
        "Use a conforming HTTP/1.1 client.",
    ),
    Kind(
        "headers_too_large",
        431,
        "The headers are too large",
        "The request's headers have more bytes than the server accepts.",
        "Send fewer or shorter headers.",
    ),
    Kind(
        "overloaded",
        429,
        "The model is busy",
        "More work is waiting than can be answered in time.",
        "Retry after the time in Retry-After.",
        retryable=True,
        openai_type="rate_limit_error",
    ),
    Kind(
        "rate_limited",
        429,
        "The caller has used what it may use",
        "The limit of the caller's tenant on requests, inputs or tokens is used up for now.",
        "Retry after the time in Retry-After, or ask the platform team for a higher limit.",
        retryable=True,
        openai_type="rate_limit_error",
    ),
    Kind(
        "starting",
        503,
        "The model is still starting",
        "No worker of the model became ready within the time the request could wait.",
        "Retry after the time in Retry-After; GET /v1/models/{id} shows the state.",
        retryable=True,
        openai_type="server_error",
    ),
    Kind(
        "model_failed",
        503,
        "The model cannot be started",
        "Its workers fail for the reason in the message, so waiting for one would be in vain.",
        "Have the service's owner correct it; another start is tried after the time in "
        "Retry-After.",
        retryable=True,
        openai_type="server_error",
    ),
    Kind(
        "asleep",
        503,
        "The model is asleep and no request wakes it",
        "The service has no worker, and its owner has decided that requests start none.",
        "Have the service's owner start one: kubectl scale inferenceservice NAME --replicas=1, "
        "where spec.paused is not true.",
        openai_type="server_error",
    ),
    Kind(
        "no_operator",
        503,
        "Nobody is there to wake the model",
        "The model is asleep, and no operator of the platform reads what this gateway asks for.",
        "Retry after the time in Retry-After; the platform team sees to the operator: "
        "kubectl get pods --all-namespaces --selector app.kubernetes.io/component=operator.",
        retryable=True,
        openai_type="server_error",
    ),
    Kind(
        "draining",
        503,
        "This server is shutting down",
        "The process received a signal to stop and takes no new work.",
        "Retry at once; another server answers.",
        retryable=True,
        openai_type="server_error",
    ),
    Kind(
        "too_many_connections",
        503,
        "This server has too many connections",
        "Every connection that it may have is in use, each with a request that is being answered.",
        "Retry after the time in Retry-After; use connections for more than one request.",
        retryable=True,
        openai_type="server_error",
    ),
    Kind(
        "receiving_too_much",
        503,
        "This server is receiving too much",
        "The request bodies that are coming in or being answered have more bytes than may be here.",
        "Retry after the time in Retry-After; send each request at once.",
        retryable=True,
        openai_type="server_error",
    ),
    Kind(
        "upstream_failed",
        502,
        "The worker failed while answering",
        "The connection to the worker broke, or its answer broke the protocol.",
        "Retry; report it if it persists.",
        retryable=True,
        openai_type="server_error",
    ),
    Kind(
        "not_cached",
        504,
        "The answer is not in the cache",
        "The request said only-if-cached and no fresh answer is stored.",
        "Leave only-if-cached out to have it computed.",
    ),
    Kind(
        "cache_unreachable",
        503,
        "The shared cache cannot be reached",
        "Redis did not answer in time, so the other gateways could not be told.",
        "Repeat the request; it does no harm to do so.",
        retryable=True,
        openai_type="server_error",
    ),
    Kind(
        "deadline_exceeded",
        504,
        "The answer did not come in time",
        "The deadline of the request passed before the model answered.",
        "Retry, raise the deadline, or give the service more replicas.",
        retryable=True,
        openai_type="server_error",
    ),
    Kind(
        "internal_error",
        500,
        "Something went wrong on our side",
        "A bug. The server's log has the details under the request id.",
        "Report it with the request id.",
        openai_type="server_error",
    ),
)

CATALOGUE: Final[Mapping[str, Kind]] = MappingProxyType({kind.code: kind for kind in _KINDS})


class ApiError(Exception):
    """A failure that the caller is told about.

    Args:
        code: a key of :data:`CATALOGUE`.
        message: what happened here: the field, what was given, what is allowed. Never internals.
        param: the path of the field at fault, or the header's name, if there is one.
        retry_after: seconds after which a retry is worth it; only for retryable codes, of which
            those without it are told :data:`RETRY_SECONDS`.
        headers: more that goes with it, names in lower case.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.kind = CATALOGUE[code]
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.headers = headers

    @property
    def code(self) -> str:
        return self.kind.code

    @property
    def status(self) -> int:
        return self.kind.status

    def __repr__(self) -> str:
        return f"<ApiError {self.kind.status} {self.kind.code}: {self.message}>"


@dataclass(frozen=True, slots=True)
class Rendered:
    """An error as it goes on the wire."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def render(error: ApiError, *, path: str, request_id: str, with_fix: bool = False) -> Rendered:
    """Write ``error`` in the shape that callers of ``path`` expect, with its retry headers.

    Args:
        with_fix: repeat the fix in a member of its own, for a gateway of perhaps another version,
            which puts its own words in the place of it.
    """
    kind = error.kind
    headers = [(names.SHOULD_RETRY, "true" if kind.retryable else "false")]
    after = error.retry_after
    if after is None and kind.retryable:
        after = RETRY_SECONDS
    if after is not None:
        # Retry-After holds whole seconds; the OpenAI client reads the exact one as well.
        headers.append((names.RETRY_AFTER_MS, str(max(1, round(after * 1000)))))
        headers.append(("retry-after", str(max(1, math.ceil(after)))))
    headers.extend(error.headers)
    if kind.status == 401 and not error.headers:
        headers.append(("www-authenticate", 'Bearer realm="sluice"'))
    if path.startswith("/v1/") or path == "/v1":
        headers.append(("content-type", "application/json"))
        inner: dict[str, object] = {
            "message": f"{error.message} {kind.fix}",
            "type": kind.openai_type,
            "param": error.param,
            "code": kind.code,
            "request_id": request_id,
        }
        if with_fix:
            inner["fix"] = kind.fix
        body = msgspec.json.encode({"error": inner})
    else:
        headers.append(("content-type", "application/problem+json"))
        problem: dict[str, object] = {
            "type": f"https://sluice.dev/errors#{kind.code}",
            "title": kind.title,
            "status": kind.status,
            "detail": f"{error.message} {kind.fix}",
            "code": kind.code,
            "param": error.param,
            "request_id": request_id,
        }
        if path.startswith("/v2/") or path == "/v2":
            problem["error"] = problem["detail"]
        if with_fix:
            problem["fix"] = kind.fix
        body = msgspec.json.encode(problem)
    return Rendered(kind.status, headers, body)
