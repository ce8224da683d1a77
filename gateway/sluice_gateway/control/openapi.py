"""The OpenAPI document: what FastAPI knows of the routes, completed with the contract's shapes.

Inference routes are not described to FastAPI, which would validate their bodies once more. Requests
and answers come from the types in ``sluice_api.shapes``, errors from the catalogue.
"""

from typing import Any, Final

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from sluice_api import names
from sluice_api.errors import CATALOGUE
from sluice_api.routes import POST_ROUTES, SHAPES, V2_PREFIX, V2_SUFFIX, V2_VERSIONS, Shape
from sluice_api.shapes import answers
from sluice_gateway.head import MAX_DEADLINE_MS
from sluice_gateway.priority import WORDS
from sluice_gateway.tensors import BYTES
from sluice_gateway.upstream import EVENT_STREAM

V2_INFER: Final = V2_PREFIX + "{name}" + V2_SUFFIX
V2_INFER_VERSION: Final = V2_PREFIX + "{name}" + V2_VERSIONS + "{version}" + V2_SUFFIX
_BY_PATH: Final = {**SHAPES, V2_INFER: SHAPES[V2_SUFFIX], V2_INFER_VERSION: SHAPES[V2_SUFFIX]}
_BINARY: Final = frozenset((V2_INFER, V2_INFER_VERSION))
_STREAMED: Final = {path for path, codec in POST_ROUTES.items() if hasattr(codec, "render_stream")}
_NOT_INFERENCE: Final = frozenset(("route_not_found", "method_not_allowed", "forbidden"))
_GENERATED: Final = ("HTTPValidationError", "ValidationError")
"""FastAPI's answer to parameters it cannot read; ours are texts, which it always can."""


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document, as a new object."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    types = [kind for shape in SHAPES.values() for kind in (shape.request, shape.answer)]
    _, schemas = msgspec.json.schema_components(
        [*types, answers.Error, answers.Problem], ref_template="#/components/schemas/{name}"
    )
    found.setdefault("components", {})["securitySchemes"] = {_KEY: _SECURITY}
    found["security"] = [{_KEY: []}, {}]
    components = found["components"].setdefault("schemas", {})
    components.update(schemas)
    for name in _GENERATED:
        components.pop(name, None)
    for path, operations in found["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if path in _BY_PATH:
                operation.update(_inference(path, _BY_PATH[path]))
                operation["parameters"] = [*operation.get("parameters", ()), *_HEADERS]
                if path in _BINARY:
                    _add_binary(operation)
            else:
                operation["responses"]["default"] = _error(path, "An error of the catalogue")
    return found


def _inference(path: str, shape: Shape) -> dict[str, Any]:
    answer = {"description": "The answer", **_content(shape.answer)}
    if path in _STREAMED:
        answer["description"] = "The answer, or with `stream` the events that it comes in"
        answer["content"][EVENT_STREAM.decode()] = {"schema": _EVENT}
    responses = {"200": answer}
    for kind in sorted(CATALOGUE.values(), key=lambda kind: kind.status):
        if kind.code in _NOT_INFERENCE:
            continue
        status = str(kind.status)
        line = f"`{kind.code}`: {kind.title}"
        before = responses.get(status)
        told = f"{before['description']}. {line}" if before is not None else line
        responses[status] = _error(path, told)
    return {"requestBody": {"required": True, **_content(shape.request)}, "responses": responses}


def _add_binary(operation: dict[str, Any]) -> None:
    """Tensors may come, and be asked for, as bytes behind the JSON."""
    answer = operation["responses"]["200"]
    for body in (operation["requestBody"], answer):
        body["content"][BYTES.decode()] = {"schema": _TENSORS}
    length = {"type": "integer", "minimum": 1}
    told = "Bytes of JSON, where tensors follow them as bytes."
    operation["parameters"].append(_header(_JSON_BYTES, length, told))
    answer["headers"] = {_JSON_BYTES: {"description": told, "schema": length}}


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    """A header that a request may have."""
    return {"name": name, "in": "header", "schema": schema, "description": description}


_EVENT: Final = {
    "type": "object",
    "description": "One event; the last one's data is `[DONE]`.",
    "properties": {"data": {"type": "string"}},
    "required": ["data"],
}
_TENSORS: Final = {
    "type": "string",
    "format": "binary",
    "description": "JSON as for application/json, with `binary_data_size` among the parameters of"
    " tensors in place of their data, and behind it the bytes of these, in order.",
}
_JSON_BYTES: Final = names.INFERENCE_JSON_BYTES.title()
_HEADERS: Final = (
    _header(
        "Idempotency-Key",
        {"type": "string", "pattern": "^[!-~]{1,255}$"},
        "Equal requests with the same key are one request.",
    ),
    _header(
        names.DEADLINE_MS.title(),
        {"type": "integer", "minimum": 1, "maximum": MAX_DEADLINE_MS},
        "Milliseconds that the caller will wait.",
    ),
    _header(
        names.PRIORITY.title(),
        {"type": "string", "enum": list(WORDS)},
        "Who goes first where some must wait; no more than the tenant may claim.",
    ),
    _header(
        names.REQUEST_ID.title(),
        {"type": "string"},
        "Echoed and logged; one is made where it is missing or cannot be used.",
    ),
    _header(
        "Cache-Control",
        {"type": "string", "examples": ["no-store", "max-age=60"]},
        "How old or stale an answer may be (RFC 9111).",
    ),
)
_KEY: Final = "key"
_SECURITY: Final = {
    "type": "http",
    "scheme": "bearer",
    "description": "The caller's API key, where the gateway asks for one.",
}


def _error(path: str, description: str) -> dict[str, Any]:
    if path.startswith("/v1/"):
        return {"description": description, **_content(answers.Error)}
    return {"description": description, **_content(answers.Problem, "application/problem+json")}


def _content(kind: type[msgspec.Struct], media_type: str = "application/json") -> dict[str, Any]:
    return {"content": {media_type: {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}}
