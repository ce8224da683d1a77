"""What a worker's refusal means to the caller, who may have asked by another route and list.

A worker is asked for the missing inputs only, often by another route than the caller's, so the
field it names must be translated back. Used by ``forward`` and ``dispatch``.
"""

import re
from typing import Any

import msgspec

from sluice_api.call import Call, place
from sluice_api.errors import CATALOGUE, ApiError
from sluice_api.routes import CANONICAL_ROUTES
from sluice_gateway.upstream import UpstreamAnswer

_PLACE = r"{}(?:\[(\d{{1,6}})\])?(?=$|[.\[: ])"
_WORKER_FIELDS = {
    task: re.compile(_PLACE.format(re.escape(route.codec.field)))
    for task, route in CANONICAL_ROUTES.items()
}


def worker_error(answer: UpstreamAnswer) -> ApiError:
    """The catalogue's error behind a worker's answer; ``upstream_failed`` when it is none of ours.

    The text is passed on for codes of the catalogue only: whatever else a worker says stays here.
    """
    try:
        told: Any = msgspec.json.decode(answer.body)
        inner = told.get("error")  # On /v2 it is a text beside the rest.
        told = inner if isinstance(inner, dict) else told
        kind = CATALOGUE[told["code"]]
        message = told.get("message") or told["detail"]
        if kind.status != answer.status or not isinstance(message, str):
            raise ValueError("not an error of the catalogue")
        param = told.get("param")
    except (msgspec.DecodeError, ValueError, KeyError, TypeError, AttributeError):
        return ApiError("upstream_failed", f"The worker answered {answer.status}.")
    return ApiError(
        kind.code,
        message.removesuffix(kind.fix).rstrip(),
        param=param if isinstance(param, str) else None,
        retry_after=answer.retry_after if kind.retryable else None,
    )


def at_caller(error: ApiError, call: Call, indexes: list[int]) -> ApiError:
    """``error`` about a canonical request for ``indexes`` of ``call``, in the caller's terms."""
    assert call.task is not None
    match = _WORKER_FIELDS[call.task].match(error.param or "")
    if error.param is None or match is None:
        return error
    position = int(match[1] or 0)
    if position >= len(indexes):
        return error
    field = place(call, indexes[position])
    message = error.message
    if message.startswith(match[0]):
        message = field + message[len(match[0]) :]
    param = field + error.param[match.end() :]
    return ApiError(error.code, message, param=param, retry_after=error.retry_after)
