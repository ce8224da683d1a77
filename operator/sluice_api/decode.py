"""Decode a JSON body into a struct, and say in the caller's words what is wrong with it.

The good path is one msgspec call. Only when that fails is the body decoded a second time, to be
able to name the field, the value it got and what it allows.
"""

import json
import re
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from sluice_api import type_words
from sluice_api.body_bounds import LARGE, check_counts
from sluice_api.errors import ApiError
from sluice_api.type_words import Step

T = TypeVar("T")

MAX_SHOWN = 80
"""Characters of the caller's own that a message repeats."""
MAX_DEPTH = 64
"""How deep lists and objects may nest where a caller may nest as it likes, such as in a schema."""

_MODEL = b'"model"'
_BACKSLASH = ord("\\")
"""One byte is looked for as a number: of bytes, Python asks first whether they are none."""
_ESCAPED = b"\\u006"
"""How every letter of it begins where it is written as an escape, which nobody does by chance."""

_PATH = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([A-Za-z0-9_-]+)|\[(\d+|\.\.\.)\]")
_UNKNOWN = re.compile(r"unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<name>.*)`$", re.DOTALL)
_SURROGATES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # both halves
    rb"|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
    rb"|\\."
)


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode ``body``. Raises :class:`ApiError` that names field, value and what is allowed."""
    if len(body) > LARGE:
        check_counts(body)
    try:
        value = decoder.decode(body)
        # Of a member that is given twice the last counts. The one that decides who answers must not
        # be read differently by anybody on the way, wherever it stands and however it is spelt.
        if body.count(_MODEL) > 1 or (_BACKSLASH in body and _ESCAPED in body):
            _check_repeated(body)
        return value
    except msgspec.ValidationError as error:
        raise explain(str(error), body, inspect.type_info(decoder.type)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _syntax_error(error, body) from None
    except RecursionError:
        raise _too_deep() from None


def explain(message: str, body: bytes, root: inspect.Type) -> ApiError:
    """Turn msgspec's message about ``body``, which is no ``root``, into one of the catalogue."""
    what, steps, is_key = _read_path(message)
    path, kind = _dotted(steps), type_words.type_at(root, steps)
    try:
        value: Any = msgspec.json.decode(body)
    except msgspec.ValidationError:  # Valid JSON with a number that no computer holds.
        where = path if "out of range" in what else ""
        message = f"{where or 'The body'}: holds a number that is out of range."
        return ApiError("invalid_field", message, param=where or None)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # The type was wrong before the syntax was; the syntax is what to repair first.
        return _syntax_error(error, body)
    except RecursionError:
        return _too_deep()
    if "..." in steps and not is_key:
        steps, path = _settled(steps, value, kind)
    if is_key and kind is not None:
        kind = type_words.key_type(kind)
    if unknown := _UNKNOWN.search(what):
        name = _cut(f"{path}.{unknown['name']}" if path else unknown["name"])
        known = f"; known are {', '.join(type_words.members(kind))}" if kind else ""
        return ApiError("unknown_field", f"{name}: this field is not known{known}.", param=name)
    if missing := _MISSING.search(what):
        name = f"{path}.{missing['name']}" if path else missing["name"]
        return ApiError("missing_field", f"{name}: this field is required.", param=name)
    got = shown(_lookup(value, steps))
    if not path:
        return ApiError("invalid_json", f"The body must be a JSON object, got {got}.")
    place = f"a name in {path}" if is_key else path
    allowed = f", allowed {type_words.one(kind)}" if kind else ""
    return ApiError("invalid_field", f"{place}: got {got}{allowed}.", param=path)


def value_at(message: str, value: Any) -> Any:
    """What msgspec speaks of where it says ``message`` of ``value``."""
    return _lookup(value, _read_path(message)[1])


def check_depth(value: Any, where: str) -> None:
    """Raise ApiError if ``value``, as it was decoded, nests deeper than :data:`MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for entry in level:
            if isinstance(entry, dict):
                below += entry.values()
            elif isinstance(entry, list):
                below += entry
        if not below:
            return
        level = below
    if any(isinstance(entry, dict | list) for entry in level):
        raise ApiError("invalid_field", f"{where}: nests deeper than {MAX_DEPTH}.", param=where)


def _check_repeated(body: bytes) -> None:
    """Raise ApiError if the object that is ``body`` has ``model`` twice."""
    members = json.loads(body, object_pairs_hook=lambda pairs: [name for name, _ in pairs])
    if members.count("model") > 1:
        raise ApiError("invalid_field", "model: given twice; give it once.", param="model")


def shown(value: Any) -> str:
    """``value`` as JSON, shortened: what a message says was given."""
    return _cut(msgspec.json.encode(value).decode())


def _syntax_error(error: Exception, body: bytes) -> ApiError:
    """What is wrong with a body that is no JSON, and at which byte where that can be told."""
    reason = str(error).removeprefix("JSON is malformed: ")
    if not body.strip():
        return ApiError("invalid_json", "The body is empty.")
    if isinstance(error, UnicodeDecodeError):
        reason = f"it is not UTF-8 (byte {_not_utf8(body)})"
    elif "surrogate" in reason or "truncated" in reason:
        halves = (match for match in _SURROGATES.finditer(body) if match["half"])
        if half := next(halves, None):
            escape = half["half"].decode()
            reason = f"{escape} is half a character (byte {half.start()}); write both or none"
        elif "truncated" in reason:
            reason = f"it ends before it is complete (byte {len(body)})"
    return ApiError("invalid_json", f"The body is not valid JSON: {reason}.")


def _not_utf8(body: bytes) -> int:
    """Where it stops being text. The decoder's own position counts from the string's beginning."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(body)


def _too_deep() -> ApiError:
    return ApiError("invalid_json", "The body nests too deeply.")


def _read_path(message: str) -> tuple[str, list[Step], bool]:
    """What msgspec says, where, and whether it says so of an object's name."""
    match = _PATH.match(message)
    assert match is not None
    return match["what"], _steps(match["path"] or ""), match["key"] is not None


def _steps(path: str) -> list[Step]:
    steps: list[Step] = []
    for name, index in _STEP.findall(path):
        steps.append(name if name else (int(index) if index != "..." else "..."))
    return steps


def _dotted(steps: list[Step]) -> str:
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step == "...":
            text += "[...]"
        else:
            text += f".{step}" if text else step
    return text


def _settled(steps: list[Step], value: Any, kind: inspect.Type | None) -> tuple[list[Step], str]:
    """Steps and path with the name of the value that is no ``kind``, where the last says "any"."""
    *before, last = steps
    holder = _lookup(value, before)
    if last == "..." and kind is not None and isinstance(holder, dict):
        for name, each in holder.items():
            if not type_words.fits(kind, each):
                return [*before, name], f"{_dotted(before)}[{shown(name)}]"
    return steps, _dotted(steps)


def _lookup(value: Any, steps: list[Step]) -> Any:
    for step in steps:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return value
    return value


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
