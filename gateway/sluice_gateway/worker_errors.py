"""What a worker's refusal means to the caller, who may have asked by another route and list.

A worker is asked for the missing inputs only, often by another route than the caller's, so the
field it names must be translated back. Used by ``forward`` and ``dispatch``.
"""

import re
from typing import Any, Final

import msgspec

from sluice_api.call import Call, Codec, instead, place
from sluice_api.errors import CATALOGUE, ApiError
from sluice_api.routes import CANONICAL_ROUTES
from sluice_api.shapes.tensors import VIEWS
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
    codec = CANONICAL_ROUTES[call.task].codec
    canonical = codec.field
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
    if whole:
        message = _advised(message, call.codec, codec)
    param = canonical + error.param[match.end() :]
    return indexes[position], ApiError(error.code, message, param=param)


def at_caller(error: ApiError, call: Call, indexes: list[int]) -> ApiError:
    """``error`` about a canonical request for ``indexes`` of ``call``, in the caller's terms."""
    assert call.task is not None
    if error.param is None:
        return error
    codec = CANONICAL_ROUTES[call.task].codec
    match = _WORKER_FIELDS[call.task].match(error.param)
    position = int(match[1] or 0) if match else 0
    if match and position < len(indexes):
        said, field = match[0], place(call, indexes[position])
    elif codec.parameters == "" and _is_tensor_parameter(call, error.param):
        said, field = error.param, f"{call.codec.parameters}{error.param}"
    else:
        return error
    message = _advised(error.message, codec, call.codec)
    if message.startswith(said):
        message = field + message[len(said) :]
    param = field + error.param[len(said) :]
    return ApiError(error.code, message, param=param, retry_after=error.retry_after)


def _is_tensor_parameter(call: Call, name: str) -> bool:
    """Whether the caller has in ``parameters`` what the task's own route has beside its inputs."""
    assert call.task is not None
    if not call.codec.parameters or call.task not in VIEWS:
        return False
    return name in VIEWS[call.task].parameters.__struct_fields__


def _advised(message: str, told: Codec, caller: Codec) -> str:
    """``message`` to a caller of ``told`` with advice that a caller of ``caller`` can take."""
    advice = instead(told)
    return message.replace(advice, instead(caller)) if advice else message
