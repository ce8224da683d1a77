"""Decode a JSON body into a struct, and say in the caller's words what is wrong with it.

The good path is one msgspec call. Only when that fails is the body decoded a second time, to be
able to name the field, the value it got and what it allows.
"""

import re
from typing import Any, TypeVar

import msgspec

from sluice_api.errors import ApiError

T = TypeVar("T")

_PATH = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([A-Za-z0-9_-]+)|\[(\d+|\.\.\.)\]")
_UNKNOWN = re.compile(r"unknown field `(?P<name>[^`]*)`")
_MISSING = re.compile(r"missing required field `(?P<name>[^`]*)`")


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode ``body``. Raises :class:`ApiError` that names field, value and what is allowed."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise explain(str(error), body) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError("invalid_json", f"The body is not valid JSON: {error}.") from None
    except RecursionError:
        raise ApiError("invalid_json", "The body nests too deeply.") from None


def explain(message: str, body: bytes) -> ApiError:
    """Turn msgspec's message about ``body`` into an error of the catalogue."""
    match = _PATH.match(message)
    what = match["what"] if match else message
    steps = _steps(match["path"] or "") if match else []
    path = _dotted(steps)
    try:
        value: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # The type was wrong before the syntax was; the syntax is what to repair first.
        return ApiError("invalid_json", f"The body is not valid JSON: {error}.")
    except RecursionError:
        return ApiError("invalid_json", "The body nests too deeply.")
    if unknown := _UNKNOWN.search(what):
        name = f"{path}.{unknown['name']}" if path else unknown["name"]
        return ApiError("unknown_field", f"{name}: this field is not known here.", param=name)
    if missing := _MISSING.search(what):
        name = f"{path}.{missing['name']}" if path else missing["name"]
        return ApiError("missing_field", f"{name}: this field is required.", param=name)
    if not path:
        return ApiError("invalid_json", f"The body must be a JSON object: {what}.")
    return ApiError(
        "invalid_field", f"{path}: got {_shown(_lookup(value, steps))}. {what}.", param=path
    )


def _steps(path: str) -> list[str | int]:
    steps: list[str | int] = []
    for name, index in _STEP.findall(path):
        steps.append(name if name else (int(index) if index != "..." else "..."))
    return steps


def _dotted(steps: list[str | int]) -> str:
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step == "...":
            text += "[...]"
        else:
            text += f".{step}" if text else step
    return text


def _lookup(value: Any, steps: list[str | int]) -> Any:
    for step in steps:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return value
    return value


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else text[:77] + "..."
