"""What a worker's refusal means to the caller, who may have asked by another route and list.

A worker is asked for the missing inputs only, often by another route than the caller's, so the
field it names must be translated back. Used by ``forward`` and ``dispatch``.
"""

import re
from typing import Any, Final

import msgspec

from sluice_api.call import Call, place
from sluice_api.errors import CATALOGUE, ApiError
from sluice_api.routes import CANONICAL_ROUTES
from sluice_gateway.worker_answer import UpstreamAnswer

_PLACE = r"{}(?:\[(\d{{1,6}})\])?(?=$|[.\[: ])"
_WORKER_FIELDS = {
    task: re.compile(_PLACE.format(re.escape(route.codec.field)))
    for task, route in CANONICAL_ROUTES.items()
}


def worker_error(answer: UpstreamAnswer) -> ApiError:
    """The catalogue's error behind a worker's answer; ``upstream_failed`` when it is none of ours.

    The text is passed on for codes of the catalogue only: whatever else a worker says stays here.
    """
    error = _read(answer.body)
    if error is None or error.status != answer.status:
        return ApiError("upstream_failed", f"The worker answered {answer.status}.")
    if error.kind.retryable:
        error.retry_after = answer.retry_after
    return error


def told_error(body: bytes) -> ApiError:
    """The same for an error that ends a stream, where there is no status any more."""
    return _read(body) or ApiError("upstream_failed", "The worker failed while it answered.")


def _read(body: bytes) -> ApiError | None:
    """An error as a worker writes it; None when it is none of the catalogue's."""
    try:
        told: Any = msgspec.json.decode(body)
        inner = told.get("error")  # On /v2 it is a text beside the rest.
        told = inner if isinstance(inner, dict) else told
        kind = CATALOGUE[told["code"]]
        message, param = told.get("message") or told["detail"], told.get("param")
        fix = told.get("fix", kind.fix)  # In the words of the worker's version, not of ours.
        if not isinstance(message, str) or not isinstance(fix, str):
            return None
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return None
    return ApiError(
        kind.code,
        message.removesuffix(fix).rstrip(),
        param=param if isinstance(param, str) else None,
    )


REFUSALS: Final = frozenset(("invalid_field", "input_too_long"))
"""What a worker says of an input as such: it would say so again."""


def refused_input(
    error: ApiError, call: Call, indexes: list[int], *, whole: bool
) -> tuple[int, ApiError] | None:
    """Which input of ``call`` was refused for itself, and the refusal as of that input alone.

    Args:
        indexes: the inputs that the worker was asked for, in order.
        whole: it was asked in the caller's own words, not by the canonical route.

    Returns:
        None where the error is not about one input, or may be another one the next time. What the
        second value is, :func:`at_caller` makes readable to whoever asks for that input.
    """
    if error.code not in REFUSALS or call.task is None:
        return None
    canonical = CANONICAL_ROUTES[call.task].codec.field
    field = call.codec.field if whole else canonical
    match = re.match(_PLACE.format(re.escape(field)), error.param or "")
    if match is None:
        # Of the parameters, which all inputs share: as good as of the only input.
        known = not whole or field == canonical or error.param is None
        return (indexes[0], error) if known and len(indexes) == 1 else None
    position = int(match[1] or 0)
    if position >= len(indexes) or error.param is None:
        return None
    message = error.message
    if message.startswith(match[0]):
        message = canonical + message[len(match[0]) :]
    param = canonical + error.param[match.end() :]
    return indexes[position], ApiError(error.code, message, param=param)


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
